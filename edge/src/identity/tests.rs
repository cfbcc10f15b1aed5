//! A network in a folder: enrols, restarts, renews, and meets strangers.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateSigningRequestDer, UnixTime},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier as _},
};

use super::{grace::Lenient, *};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        let issuer = Issuer::from_ca_cert_der(&root, key).unwrap();
        Self { issuer, root }
    }

    fn issue(&self, csr: &[u8], node: &str) -> EnrollResponse {
        let csr = CertificateSigningRequestDer::from(csr);
        let csr = CertificateSigningRequestParams::from_der(&csr).unwrap();
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://vector.local/node/ingress+egress/{node}");
        let dns = format!("{node}.node.vector.local");
        params.subject_alt_names = vec![
            SanType::URI(uri.try_into().unwrap()),
            SanType::DnsName(dns.try_into().unwrap()),
        ];
        let leaf = params.signed_by(&csr.public_key, &self.issuer).unwrap();
        EnrollResponse {
            node: node.into(),
            region: "eu".into(),
            certificate_chain: vec![leaf.der().to_vec().into()],
            roots: vec![self.root.to_vec().into()],
            trust_domain: "vector.local".into(),
            ..EnrollResponse::default()
        }
    }

    fn node(&self, folder: &Path, name: &str) -> Identity {
        let request = Request::fresh().unwrap();
        let issued = self.issue(request.csr(), name);
        Identity::enrolled(folder, &request, &issued).unwrap();
        Identity::load(folder).unwrap().unwrap()
    }
}

/// Runs a handshake in memory. Says whom the server saw.
fn handshake(
    client: &Identity,
    server: &Identity,
    name: &str,
) -> Result<Option<Peer>, rustls::Error> {
    let name = server.server_name(name).try_into().unwrap();
    let mut client = rustls::ClientConnection::new(client.client_config(b"x"), name)?;
    let mut accepted = rustls::ServerConnection::new(server.server_config(b"x"))?;
    while client.is_handshaking() || accepted.is_handshaking() {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        accepted.read_tls(&mut wire.as_slice()).unwrap();
        accepted.process_new_packets()?;
        wire.clear();
        while accepted.wants_write() {
            accepted.write_tls(&mut wire).unwrap();
        }
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(server.peer(accepted.peer_certificates().unwrap_or_default()))
}

#[test]
fn a_node_is_the_same_after_a_restart_but_for_its_epoch() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    assert!(Identity::load(folder.path()).unwrap().is_none());
    let first = Authority::new().node(folder.path(), "n-1");
    let again = Identity::load(folder.path()).unwrap().unwrap();
    assert_eq!((again.node(), again.region()), ("n-1", "eu"));
    assert_eq!(again.trust_domain(), "vector.local");
    assert_eq!(again.reset_key(), first.reset_key());
    assert!(again.epoch() > first.epoch());
    let key = std::fs::metadata(folder.path().join("identity.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

#[test]
fn an_epoch_grows_when_the_clock_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let state = State::open(folder.path()).unwrap();
    assert_eq!(state.next_epoch(1_000), 1_000);
    assert_eq!(state.next_epoch(1_000), 1_001);
    assert_eq!(state.next_epoch(500), 1_002);
}

/// A folder where a file would be written first: the disk refuses it until this is taken away.
fn refuse(folder: &Path, file: &str) -> impl FnOnce() {
    let beside = folder.join(format!("{file}.new"));
    std::fs::create_dir(&beside).unwrap();
    move || std::fs::remove_dir(beside).unwrap()
}

#[test]
fn a_node_starts_on_a_full_disk_with_a_larger_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let first = Authority::new().node(folder.path(), "n-1");
    let allow = refuse(folder.path(), "epoch");
    let mut last = first.epoch();
    for _ in 0..3 {
        let again = Identity::load(folder.path()).unwrap().unwrap();
        assert!(again.epoch() > last);
        last = again.epoch();
    }
    // With the clock behind as well.
    let state = State::open(folder.path()).unwrap();
    assert_eq!(state.next_epoch(1_000), last + 1);
    assert_eq!(state.next_epoch(1_000), last + 2, "it was written in place");
    let epoch = folder.path().join("epoch");
    std::fs::remove_file(&epoch).unwrap();
    std::fs::create_dir(epoch).unwrap();
    assert_eq!(state.next_epoch(last + 60_000), last + 60_000);
    assert!(Identity::load(folder.path()).unwrap().is_some());
    allow();
}

#[test]
fn a_key_is_on_disk_before_control_is_asked_to_certify_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let allow = refuse(folder.path(), "enroll.pem");
    assert!(matches!(
        Request::kept(folder.path()),
        Err(Error::File { .. })
    ));
    allow();
    let asked = Request::kept(folder.path()).unwrap();
    let key = std::fs::metadata(folder.path().join("enroll.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    // The answer was lost: control hears the very same request again.
    let again = Request::kept(folder.path()).unwrap();
    assert_eq!(again.csr(), asked.csr());
    let issued = Authority::new().issue(again.csr(), "n-1");
    Identity::enrolled(folder.path(), &again, &issued).unwrap();
    assert!(!folder.path().join("enroll.pem").exists());
    let next = Request::kept(folder.path()).unwrap();
    assert_ne!(next.csr(), asked.csr());
}

#[test]
fn an_enrolment_that_was_cut_anywhere_leaves_the_old_identity_or_the_new_one() {
    let network = Authority::new();
    for (cut_at, finished) in [
        ("roots.pem", false),
        ("region", false),
        ("identity.pem", false),
        ("identity.key", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let old = network.node(folder.path(), "n-1");
        old.removed().unwrap();
        let request = Request::kept(folder.path()).unwrap();
        let issued = network.issue(request.csr(), "n-1");
        let allow = refuse(folder.path(), cut_at);
        Identity::enrolled(folder.path(), &request, &issued).unwrap_err();
        allow();
        let kept = Identity::load(folder.path()).unwrap().unwrap();
        let leaf = kept.0.held.load().leaf();
        assert_eq!(leaf[..] == issued.certificate_chain[0][..], finished);
        assert_eq!(kept.was_removed(), !finished, "cut at {cut_at}");
        let again = Request::kept(folder.path()).unwrap();
        assert_eq!(again.csr() == request.csr(), !finished, "cut at {cut_at}");
    }
    // Of a first enrolment as well.
    let folder = tempfile::tempdir().unwrap();
    let request = Request::kept(folder.path()).unwrap();
    let issued = network.issue(request.csr(), "n-1");
    let allow = refuse(folder.path(), "identity.key");
    Identity::enrolled(folder.path(), &request, &issued).unwrap_err();
    allow();
    assert_eq!(
        Identity::load(folder.path()).unwrap().unwrap().node(),
        "n-1"
    );
}

#[test]
fn nodes_of_one_network_know_each_other_and_no_stranger() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let network = Authority::new();
    let here = network.node(folders[0].path(), "here");
    let there = network.node(folders[1].path(), "there");
    let stranger = Authority::new().node(folders[2].path(), "there");
    let seen = handshake(&here, &there, "there").unwrap().unwrap();
    assert_eq!(seen.id.as_str(), "here");
    assert_eq!(seen.roles, [Role::Ingress, Role::Egress]);
    assert!(
        handshake(&here, &there, "other").is_err(),
        "another node's name"
    );
    assert!(
        handshake(&stranger, &there, "there").is_err(),
        "a foreign client"
    );
    assert!(
        handshake(&here, &stranger, "there").is_err(),
        "a foreign server"
    );
}

#[test]
fn a_renewed_certificate_is_used_at_once() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let network = Authority::new();
    let here = network.node(folders[0].path(), "here");
    let there = network.node(folders[1].path(), "there");
    let config = here.client_config(b"x");
    let before = here.0.held.load_full();
    let request = here.renewal().unwrap();
    here.renewed(&request, &network.issue(request.csr(), "here"))
        .unwrap();
    assert!(!Arc::ptr_eq(&before, &here.0.held.load_full()));
    drop(config);
    assert!(handshake(&here, &there, "there").unwrap().is_some());
    let kept = Identity::load(folders[0].path()).unwrap().unwrap();
    assert_eq!(kept.node(), "here");
}

#[test]
fn a_renewed_certificate_that_the_disk_refuses_is_used_and_kept_later() {
    let folder = tempfile::tempdir().unwrap();
    let network = Authority::new();
    let here = network.node(folder.path(), "here");
    let before = here.0.held.load().leaf();
    let request = here.renewal().unwrap();
    let allow = refuse(folder.path(), "identity.pem");
    here.renewed(&request, &network.issue(request.csr(), "here"))
        .unwrap();
    let renewed = here.0.held.load().leaf();
    assert_ne!(renewed, before);
    let on_disk = || {
        let kept = Identity::load(folder.path()).unwrap().unwrap();
        kept.0.held.load().leaf()
    };
    assert!(!here.keep());
    assert_eq!(on_disk(), before);
    allow();
    assert!(here.keep());
    assert_eq!(on_disk(), renewed);
}

#[test]
fn what_does_not_belong_to_this_node_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let network = Authority::new();
    let here = network.node(folder.path(), "here");
    let request = here.renewal().unwrap();
    let other = Request::fresh().unwrap();
    for issued in [
        network.issue(request.csr(), "other"),
        network.issue(other.csr(), "here"),
        Authority {
            root: network.root.clone(),
            ..Authority::new()
        }
        .issue(request.csr(), "here"),
        EnrollResponse::default(),
    ] {
        assert!(matches!(
            here.renewed(&request, &issued),
            Err(Error::Issued(_))
        ));
    }
}

#[test]
fn a_peers_certificate_counts_beyond_its_end_while_control_is_not_heard() {
    const HOUR: Duration = Duration::from_secs(3_600);
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let node = ours.node(&folder.path().join("a"), "a");
    let stranger = theirs.node(&folder.path().join("b"), "a");
    let (_, ends) = node.validity();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ours.root.clone()).unwrap();
    let crypto = Arc::new(rustls::crypto::ring::default_provider());
    let judge = WebPkiClientVerifier::builder_with_provider(roots.into(), crypto);
    let verifier = Lenient {
        judge: judge.build().unwrap(),
        grace: Arc::default(),
        revoked: Arc::default(),
    };
    let leaf = |node: &Identity| node.0.held.load().leaf();
    let judged = |leaf: &CertificateDer<'_>, now: Duration| {
        let now = UnixTime::since_unix_epoch(now);
        verifier.verify_client_cert(leaf, &[], now).is_ok()
    };
    assert!(judged(&leaf(&node), ends - HOUR));
    assert!(judged(&leaf(&node), ends + HOUR));
    assert!(judged(&leaf(&node), ends + GRACE - HOUR));
    assert!(!judged(&leaf(&node), ends + GRACE + HOUR));
    assert!(!judged(&leaf(&stranger), ends + HOUR), "another network's");
    // Control is back: everybody has a little time to renew.
    verifier.grace.heard(true, ends + HOUR);
    verifier.grace.heard(true, ends + 2 * HOUR);
    assert!(judged(&leaf(&node), ends + HOUR));
    assert!(!judged(&leaf(&node), ends + 2 * HOUR));
    assert!(judged(&leaf(&node), ends - HOUR));
    verifier.grace.heard(false, ends + 3 * HOUR);
    assert!(judged(&leaf(&node), ends + 3 * HOUR));
}

#[test]
fn a_removed_node_is_nobody_to_either_side_and_a_new_one_of_its_name_is_known() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let network = Authority::new();
    let here = network.node(folders[0].path(), "here");
    let there = network.node(folders[1].path(), "there");
    let chain = [here.0.held.load().leaf()];
    assert!(there.peer(&chain).is_some());
    // These certificates begin in 1975, as rcgen has it.
    let revoked = |before: u64| Arc::new([("here".into(), before)].into_iter().collect());
    let issued = here.validity().0.as_secs() + vector_proto::control::BACKDATE_S;
    assert!(there.revoke(&revoked(issued)));
    assert!(handshake(&here, &there, "there").unwrap().is_some());
    assert!(there.revoke(&revoked(issued + 1)));
    assert!(there.peer(&chain).is_none());
    for refused in [
        handshake(&here, &there, "there"),
        handshake(&there, &here, "here"),
    ] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("Revoked"), "{refused}");
    }
    // A session from before verifies no certificate, and is seen through all the same.
    let other = network.node(folders[2].path(), "other");
    assert!(handshake(&here, &other, "other").unwrap().is_some());
    other.revoke(&revoked(issued + 1));
    assert!(other.peer(&chain).is_none());
    assert!(handshake(&there, &other, "other").unwrap().is_some());
}

#[test]
fn that_a_node_was_removed_is_remembered_until_it_enrols_anew() {
    let folder = tempfile::tempdir().unwrap();
    let network = Authority::new();
    let node = network.node(folder.path(), "n-1");
    assert!(!node.was_removed());
    node.removed().unwrap();
    assert!(
        Identity::load(folder.path())
            .unwrap()
            .unwrap()
            .was_removed()
    );
    assert!(!network.node(folder.path(), "n-1").was_removed());
}

#[test]
fn a_root_takes_anothers_place_under_settings_in_use() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (old, new) = (Authority::new(), Authority::new());
    let here = old.node(folders[0].path(), "here");
    let there = old.node(folders[1].path(), "there");
    let ders = |roots: &[&Authority]| roots.iter().map(|by| by.root.to_vec().into()).collect();
    let pin_of = |by: &Authority| {
        let roots = Roots::new(vec![by.root.clone()]).unwrap();
        roots.standing(&[]).roots.remove(0)
    };
    let (old_pin, new_pin) = (pin_of(&old), pin_of(&new));
    let told =
        |generation: u64, roots: &[&Authority], signing: &str| vector_proto::control::v1::Roots {
            roots: ders(roots),
            generation,
            signing: signing.to_owned(),
        };
    assert!(here.trust(&told(2, &[&old, &new], &old_pin)).unwrap());
    assert!(there.trust(&told(2, &[&old, &new], &old_pin)).unwrap());
    assert!(!here.trust(&told(1, &[&old], &old_pin)).unwrap(), "is old");
    let standing = here.standing();
    assert_eq!(standing.roots, [old_pin.clone(), new_pin.clone()]);
    assert_eq!(standing.proven_by, [old_pin]);
    assert!(!*here.leaving().borrow());
    for bad in [told(3, &[], ""), told(3, &[&old; 9], "")] {
        assert!(matches!(here.trust(&bad), Err(Error::Issued(_))));
    }

    // The new one signs: one of them has renewed, and both know each other.
    assert!(!there.trust(&told(3, &[&old, &new], &new_pin)).unwrap());
    assert!(*there.leaving().borrow());
    let renew = |node: &Identity| {
        let request = node.renewal().unwrap();
        let issued = EnrollResponse {
            roots: ders(&[&old, &new]),
            roots_generation: 3,
            ..new.issue(request.csr(), node.node())
        };
        node.renewed(&request, &issued).unwrap();
    };
    renew(&there);
    assert!(!*there.leaving().borrow());
    assert_eq!(there.standing().proven_by, std::slice::from_ref(&new_pin));
    assert!(handshake(&here, &there, "there").unwrap().is_some());
    assert!(handshake(&there, &here, "here").unwrap().is_some());

    // The old one is gone, also after a restart.
    assert!(there.trust(&told(4, &[&new], &new_pin)).unwrap());
    assert!(handshake(&here, &there, "there").is_err());
    let there = Identity::load(folders[1].path()).unwrap().unwrap();
    assert_eq!(there.standing().roots, [new_pin]);
    assert!(handshake(&here, &there, "there").is_err());
    renew(&here);
    assert!(handshake(&here, &there, "there").unwrap().is_some());
    assert!(handshake(&there, &here, "here").unwrap().is_some());
}
