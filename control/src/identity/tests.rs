//! What an intermediate signs counts for everybody who trusts the root, and ends in time.

use std::time::Duration;

use rustls::{
    RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    pki_types::{CertificateDer, UnixTime},
    server::ParsedCertificate,
};

use super::*;

const NOW: Duration = Duration::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

fn csr() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let request = rcgen::CertificateParams::default();
    request.serialize_request(&key).unwrap().der().to_vec()
}

fn leaf(authority: &Authority, now: Duration) -> Vec<CertificateDer<'static>> {
    let peer = Peer {
        id: "egress-1".parse().unwrap(),
        roles: vec![Role::Egress],
    };
    authority.node_leaf(&csr(), &peer, now).unwrap()
}

fn counts(authority: &Authority, chain: &[CertificateDer<'static>], at: Duration) -> bool {
    comes_from(authority.signing().root(), chain, at)
}

fn comes_from(root: &Root, chain: &[CertificateDer<'static>], at: Duration) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(root.certificate().clone()).unwrap();
    let leaf = ParsedCertificate::try_from(&chain[0]).unwrap();
    let all = rustls::crypto::ring::default_provider().signature_verification_algorithms;
    let at = UnixTime::since_unix_epoch(at);
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots, &chain[1..], at, all.all).is_ok()
}

#[test]
fn leaves_of_the_intermediate_before_stay_good() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::open(&dir.path().join("ours"), "vector.local", NOW).unwrap();
    let others = Authority::open(&dir.path().join("others"), "vector.local", NOW).unwrap();
    assert!(ours.signing().root().has_intermediates());
    let by_root = leaf(&ours, NOW);
    assert_eq!(by_root.len(), 1);

    ours.take_up(ours.new_intermediate(NOW).unwrap());
    let by_first = leaf(&ours, NOW);
    ours.take_up(ours.new_intermediate(NOW).unwrap());
    let by_second = leaf(&ours, NOW);
    assert_ne!(by_first[1], by_second[1]);
    for chain in [&by_root, &by_first, &by_second] {
        assert!(counts(&ours, chain, NOW));
        assert!(!counts(&others, chain, NOW));
    }
    assert!(
        !counts(&ours, &by_second[..1], NOW),
        "nobody knows the intermediate by itself"
    );
}

#[test]
fn no_leaf_outlives_what_signed_it() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Authority::open(dir.path(), "vector.local", NOW).unwrap();
    let signing = ours.new_intermediate(NOW).unwrap();
    let ends = signing.facts().ends;
    assert!(
        !signing.is_old(ends.saturating_sub(DAY * 121))
            && signing.is_old(ends.saturating_sub(DAY * 119))
    );
    let (key, certificate) = signing.export();
    let again = Intermediate::import(&key, &certificate).unwrap();
    assert_eq!(again.facts(), signing.facts());
    let (another, _) = ours.new_intermediate(NOW).unwrap().export();
    assert!(Intermediate::import(&another, &certificate).is_err());

    ours.take_up(signing);
    assert_eq!(ours.signs_until(), ends);
    let late = ends.saturating_sub(DAY / 2);
    let chain = leaf(&ours, late);
    assert!(counts(&ours, &chain, late));
    let life = Facts::read(&chain[0]).unwrap();
    assert_eq!(life.ends, ends, "a day would be beyond it");
}

/// A root from before there were intermediates.
fn root_that_signs_itself() -> Root {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(
        rcgen::DnType::CommonName,
        "Vector Engine root of vector.local",
    );
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let root = params.self_signed(&key).unwrap();
    Root::import(&key.serialize_der(), root.der()).unwrap()
}

#[test]
fn who_trusts_either_root_knows_control_while_one_takes_the_others_place() {
    let dir = tempfile::tempdir().unwrap();
    let of_now = Authority::open(dir.path(), "vector.local", NOW).unwrap();
    of_now.take_up(of_now.new_intermediate(NOW).unwrap());
    let of_before = Authority::of(root_that_signs_itself(), "vector.local");
    for ours in [of_now, of_before] {
        let old = ours.signing().root().clone();
        let rotation = ours.new_rotation(NOW).unwrap();
        let new = rotation.root.clone();
        // Who trusts the old one, and who the new one.
        let known = |chain: &[CertificateDer<'static>]| {
            [&old, &new].map(|root| comes_from(root, chain, NOW))
        };
        ours.take_up_rotation(7, Some(rotation.clone()));
        assert_eq!(ours.pin(), old.facts().pin);
        assert_eq!(ours.lasting_pin(), new.facts().pin);
        assert_eq!(known(&leaf(&ours, NOW)), [true, false]);
        let control = ours.control_leaf(&[], NOW).unwrap();
        assert_eq!(known(&control.cert), [true, true]);
        assert_eq!(control.cert.last(), Some(old.certificate()));

        ours.take_up_rotation(6, None);
        assert!(ours.signing().rotation().is_some(), "that is old");
        let switched = Rotation {
            switched: true,
            ..rotation
        };
        ours.take_up_rotation(8, Some(switched));
        assert_eq!(known(&leaf(&ours, NOW)), [true, true]);

        let (key, root) = new.export();
        let (signing, certificate) = ours.signing().rotation().unwrap().intermediate.export();
        let signing = Intermediate::import(&signing, &certificate).unwrap();
        let root = || Root::import(&key, &root).unwrap();
        ours.succeed(8, root(), None, None);
        assert_eq!(ours.pin(), old.facts().pin, "that is old");
        ours.succeed(9, root(), Some(signing), None);
        assert_eq!(known(&leaf(&ours, NOW)), [false, true]);
        let control = ours.control_leaf(&[], NOW).unwrap();
        assert_eq!(known(&control.cert), [false, true]);
    }
}
