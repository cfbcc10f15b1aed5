//! Who is let in, and who may call what.

use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use vector_control::{
    coordinate::{Embedded, Store as _, Transaction},
    identity::{Authority, Peer, Role},
    registry::NodeSpec,
};
use vector_proto::control::{BACKDATE_S, REMOVED};

use super::*;

#[tokio::test]
async fn an_invite_makes_one_node_and_no_second() {
    let control = Control::start().await;
    let invite = control.invite("egress", "").await;
    let (_, csr) = request();
    let mut stranger = control.stranger().await;
    let bad_csr = stranger
        .enroll(enrolment(&invite, b"nonsense", "e-1"))
        .await
        .unwrap_err();
    assert_eq!(
        bad_csr.code(),
        Code::InvalidArgument,
        "and the invite is still good"
    );
    let enrolled = stranger
        .enroll(enrolment(&invite, &csr, "e-1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(enrolled.roles, ["egress"]);
    // The answer was lost: the same request gets a certificate again, with the name or without. Another one does not.
    for name in ["e-1", ""] {
        let again = stranger.enroll(enrolment(&invite, &csr, name)).await;
        assert_eq!(again.unwrap().into_inner().node, "e-1");
    }
    let (_, another) = request();
    let stolen = stranger.enroll(enrolment(&invite, &another, "e-1")).await;
    assert_eq!(stolen.unwrap_err().code(), Code::PermissionDenied);
    let reused = stranger
        .enroll(enrolment(&invite, &csr, "e-2"))
        .await
        .unwrap_err();
    assert_eq!(reused.code(), Code::PermissionDenied);
    let made_up = stranger
        .enroll(enrolment("vinv_nonsense", &csr, ""))
        .await
        .unwrap_err();
    assert_eq!(made_up.code(), Code::PermissionDenied);

    let other = control.invite("egress", "").await;
    let taken = stranger
        .enroll(enrolment(&other, &csr, "e-1"))
        .await
        .unwrap_err();
    assert_eq!(
        taken.code(),
        Code::FailedPrecondition,
        "a name is not taken over: {taken}"
    );
    let bound = control.invite("egress", "e-1").await;
    let elsewhere = stranger
        .enroll(enrolment(&bound, &csr, "e-9"))
        .await
        .unwrap_err();
    assert_eq!(elsewhere.code(), Code::PermissionDenied);

    // Invited again by its name, it is another one, and the first request has no more part in it.
    let again = control.invite("egress", "e-1").await;
    let (key, newer) = request();
    let enrolled = stranger.enroll(enrolment(&again, &newer, "")).await;
    let enrolled = enrolled.unwrap().into_inner();
    let late = stranger.enroll(enrolment(&invite, &csr, "e-1")).await;
    assert_eq!(late.unwrap_err().code(), Code::PermissionDenied);

    let mut node = control.node(&Identity::new(&enrolled, &key)).await;
    let (_, csr) = request();
    let renewed = node
        .renew(pb::RenewRequest { csr: csr.into() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(renewed.node, "e-1");
    control.stop().await;
}

#[tokio::test]
async fn roles_say_who_may_call_what() {
    let control = Control::start().await;
    control.admin().await.apply(plan(), false).await.unwrap();
    let mut stranger = control.stranger().await;
    let (_, csr) = request();
    let nobody = stranger
        .renew(pb::RenewRequest { csr: csr.into() })
        .await
        .unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    let nobody = stranger
        .admit(pb::AdmitRequest::default())
        .await
        .unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);

    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let refused = egress.admit(pb::AdmitRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = egress
        .locate(pb::LocateRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = ingress
        .record(pb::RecordRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let by_node = AdminClient::new(dial::dial(&control.url, &control.pin, None).await.unwrap());
    let refused = by_node
        .clone()
        .status(pb::StatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let wrong = control.admin_with("vadm_0000").await;
    let refused = wrong
        .call(
            pb::StatusRequest {},
            |mut c, r| async move { c.status(r).await },
        )
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    control.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_out_for_good_and_back_by_an_invite_at_once() {
    let control = Control::start().await;
    let i = control.enroll("ingress", "i-1").await;
    let e = control.enroll("egress", "e-1").await;
    let (mut ingress, mut egress) = (control.node(&i).await, control.node(&e).await);
    let gone = pb::NameRequest {
        name: "i-1".to_owned(),
    };
    let admin = control.admin().await;
    let stream = Stream::open(&mut ingress, 0).await;
    let mut told = Stream::open(&mut egress, 0).await;
    admin
        .call(gone, |mut c, r| async move { c.remove_node(r).await })
        .await
        .unwrap();
    stream.ended().await;
    // It is refused for good, and every other node hears that its certificate counts no more.
    let refused = ingress
        .admit(pb::AdmitRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.metadata().contains_key(REMOVED), "{refused:?}");
    let revoked = |snapshot: &pb::Snapshot| {
        let row = snapshot.revocations.iter().find(|row| row.node == "i-1");
        row.map(|row| row.before_unix_s)
    };
    let snapshot = told.snapshot(|snapshot| revoked(snapshot).is_some()).await;
    let before = revoked(&snapshot).unwrap();
    assert!(snapshot.nodes.iter().all(|node| node.id != "i-1"));

    // There again under its name at once: its new certificate is one of those that count, the old one stays out.
    let again = control.enroll("ingress", "i-1").await;
    assert!(issued(&again.chain[0]) >= before);
    let mut again = control.node(&again).await;
    let answer = again.admit(pb::AdmitRequest::default()).await.unwrap();
    assert_ne!(answer.into_inner().refusal, "");
    let old = ingress.admit(pb::AdmitRequest::default()).await;
    assert!(old.unwrap_err().metadata().contains_key(REMOVED));
    control.stop().await;
}

/// When a certificate was issued, in seconds since 1970.
fn issued(leaf: &[u8]) -> u64 {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).unwrap();
    let begins = leaf.validity().not_before.timestamp();
    u64::try_from(begins).unwrap() + BACKDATE_S
}

/// A certificate of the node that ended two hours ago, in a network that is older than it.
async fn ended(dir: &std::path::Path, node: &str, role: Role, key: &rcgen::KeyPair) -> Identity {
    let store = Embedded::open(&dir.join("control.sqlite")).await.unwrap();
    let at = format!("/nodes/{node}");
    let mut spec = NodeSpec::read(&store.get(&at).await.unwrap().unwrap().value).unwrap();
    spec.enrolled_unix_ms -= 7 * 24 * 3_600_000;
    let put = Transaction::new().put(at, spec.encode_to_vec());
    store.commit(put).await.unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.unwrap();
    let authority = Authority::open(&dir.join("ca"), "vector.local", now).unwrap();
    let peer = Peer {
        id: node.parse().unwrap(),
        roles: vec![role],
    };
    let csr = rcgen::CertificateParams::default();
    let csr = csr.serialize_request(key).unwrap();
    let issued = now - Duration::from_secs(26 * 3_600);
    Identity {
        chain: authority.node_leaf(csr.der(), &peer, issued).unwrap(),
        key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
    }
}

#[tokio::test]
async fn an_ended_certificate_is_good_for_its_renewal_alone() {
    let control = Control::start().await;
    control.admin().await.apply(plan(), false).await.unwrap();
    control.enroll("ingress", "i-1").await;
    control.enroll("egress", "e-1").await;
    let dir = control.stop().await;
    let (i_key, e_key) = (request().0, request().0);
    let i = ended(dir.path(), "i-1", Role::Ingress, &i_key).await;
    let e = ended(dir.path(), "e-1", Role::Egress, &e_key).await;
    let control = Control::start_in(dir).await;

    let (mut ingress, mut egress) = (control.node(&i).await, control.node(&e).await);
    let (up, events) = mpsc::channel(1);
    Stream::send(&up, node_event::Event::Register(pb::Register::default())).await;
    let refused = [
        ingress.sync(ReceiverStream::new(events)).await.err(),
        ingress.admit(pb::AdmitRequest::default()).await.err(),
        ingress.locate(pb::LocateRequest::default()).await.err(),
        ingress.claim(pb::ClaimRequest::default()).await.err(),
        ingress.settle(pb::SettleRequest::default()).await.err(),
        ingress.recall(pb::RecallRequest::default()).await.err(),
        egress.record(pb::RecordRequest::default()).await.err(),
    ];
    for refused in refused {
        let refused = refused.unwrap();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(!refused.metadata().contains_key(REMOVED), "{refused:?}");
        let told = refused.message();
        assert!(
            told.contains("ended at 2") && told.contains("Renew"),
            "{told}"
        );
    }
    let csr = rcgen::CertificateParams::default();
    let csr = csr.serialize_request(&e_key).unwrap().der().to_vec();
    let renewed = egress.renew(pb::RenewRequest { csr: csr.into() }).await;
    let renewed = renewed.unwrap().into_inner();
    assert_eq!(renewed.roles, ["egress"]);
    let mut renewed = control.node(&Identity::new(&renewed, &e_key)).await;
    let mut stream = Stream::open(&mut renewed, 0).await;
    stream.snapshot(|_| true).await;
    control.stop().await;
}

#[tokio::test]
async fn a_connection_with_an_ended_certificate_is_closed_and_none_is_resumed() {
    let control = Control::start().await;
    let fresh = control.enroll("ingress", "i-1").await;
    let dir = control.stop().await;
    let i = ended(dir.path(), "i-1", Role::Ingress, &request().0).await;
    let root = CertificateDer::from_pem_file(dir.path().join("ca/root.pem"));
    let control = Control::start_in(dir).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.unwrap()).unwrap();
    let crypto = Arc::new(rustls::crypto::ring::default_provider());
    let twice = async |who: &Identity| {
        let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&crypto))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(who.chain.clone(), who.key.clone_key());
        let mut config = config.unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let connect = async || {
            let address = control.url.trim_start_matches("https://");
            let socket = tokio::net::TcpStream::connect(address).await.unwrap();
            let name = "vector-control".try_into().unwrap();
            let shaken = connector.connect(name, socket).await.unwrap();
            let kind = shaken.get_ref().1.handshake_kind();
            let (io, spawner) = (TokioIo::new(shaken), TokioExecutor::new());
            let shaken = hyper::client::conn::http2::handshake::<_, _, String>(spawner, io).await;
            let (asks, connection) = shaken.unwrap();
            // Answered, it has read all that control says at first, a session to resume included.
            let url = format!("{}/", control.url);
            let ask = http::Request::post(url).body(String::new()).unwrap();
            let mut open = tokio::spawn(connection);
            let answered = asks.clone().send_request(ask).await;
            assert!(answered.is_ok() && !open.is_finished(), "{answered:?}");
            (kind, asks, async move { (&mut open).await.unwrap() })
        };
        drop(connect().await);
        connect().await
    };
    let (kind, ..) = twice(&fresh).await;
    assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    // Held open by its client, which answers when control asks whether it is there.
    let (_, _asks, closed) = twice(&i).await;
    // With a farewell or without.
    let _ = tokio::time::timeout(PATIENCE, closed)
        .await
        .expect("it is closed");
    control.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_network_is_refused() {
    let (control, other) = (Control::start().await, Control::start().await);
    let foreign = other.enroll("ingress", "i-1").await;
    control.enroll("ingress", "i-1").await;
    let certificate = (foreign.chain.clone(), foreign.key.clone_key());
    let refused = match dial::dial(&control.url, &control.pin, Some(certificate)).await {
        Err(_) => true,
        // In TLS 1.3 a client learns that its certificate is refused only afterwards.
        Ok(channel) => NodeClient::new(channel)
            .admit(pb::AdmitRequest::default())
            .await
            .is_err(),
    };
    assert!(refused);
    let wrong_pin = dial::dial(&control.url, &other.pin, None)
        .await
        .unwrap_err();
    assert!(
        matches!(wrong_pin, dial::Error::WrongPin { .. }),
        "{wrong_pin}"
    );
    control.stop().await;
    other.stop().await;
}

async fn authority(admin: &Admin) -> pb::AuthorityView {
    let asked = pb::ShowAuthorityRequest {};
    let shown = admin.call(asked, |mut c, r| async move { c.show_authority(r).await });
    shown.await.unwrap()
}

fn pin_of(certificate: Option<&[u8]>) -> Option<String> {
    dial::pin_of(certificate?)
}

#[tokio::test]
async fn another_intermediate_signs_and_nobody_is_out() {
    let control = Control::start().await;
    let admin = control.admin().await;
    let before = authority(&admin).await;
    assert_eq!(before.root.as_ref().unwrap().pin, control.pin);
    let first = before.intermediate.unwrap();
    let old = control.enroll("egress", "e-1").await;
    assert_eq!(
        pin_of(old.chain.get(1).map(AsRef::as_ref)),
        Some(first.pin.clone())
    );

    let asked = pb::RotateIntermediateRequest {};
    let rotated = admin.call(
        asked,
        |mut c, r| async move { c.rotate_intermediate(r).await },
    );
    let rotated = rotated.await.unwrap();
    let second = rotated.intermediate.clone().unwrap();
    assert_ne!(second.pin, first.pin);
    assert_eq!(rotated, authority(&admin).await);

    // The one under the old one is known, and gets its next certificate under the new one.
    let mut node = control.node(&old).await;
    let (_, csr) = request();
    let renewed = node.renew(pb::RenewRequest { csr: csr.into() }).await;
    let renewed = renewed.unwrap().into_inner();
    let above = renewed.certificate_chain.get(1).map(AsRef::as_ref);
    assert_eq!(pin_of(above), Some(second.pin.clone()));
    let new = control.enroll("egress", "e-2").await;
    assert_eq!(
        pin_of(new.chain.get(1).map(AsRef::as_ref)),
        Some(second.pin)
    );

    let asked = pb::AddOperatorRequest {
        name: "cleo".to_owned(),
        role: "viewer".to_owned(),
        csr: request().1.into(),
        ttl_s: 2 * 365 * 86_400,
    };
    let beyond = admin.call(asked, |mut c, r| async move { c.add_operator(r).await });
    let beyond = beyond.await.unwrap_err();
    assert_eq!(beyond.code(), Code::InvalidArgument, "{beyond}");

    let dir = control.stop().await;
    let control = Control::start_in(dir).await;
    assert_eq!(authority(&control.admin().await).await, rotated);
    let mut node = control.node(&old).await;
    let (_, csr) = request();
    node.renew(pb::RenewRequest { csr: csr.into() })
        .await
        .unwrap();
    control.stop().await;
}
