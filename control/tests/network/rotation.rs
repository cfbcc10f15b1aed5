//! A new root takes the old one's place in steps, and nobody who follows is out.

use vector_proto::control::v1::RootStep;

use super::{
    replicas::{Etcd, pair},
    *,
};

async fn step(admin: &Admin, step: RootStep) -> Result<pb::AuthorityView, Status> {
    let asked = pb::RotateRootRequest { step: step.into() };
    admin
        .call(asked, |mut c, r| async move { c.rotate_root(r).await })
        .await
}

async fn refused(admin: &Admin, wanted: RootStep) -> String {
    let refused = step(admin, wanted).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    refused.message().to_owned()
}

fn new_pin(view: &pb::AuthorityView) -> String {
    let rotation = view.rotation.as_ref().unwrap();
    rotation.root.as_ref().unwrap().pin.clone()
}

fn pins(ders: &[bytes::Bytes]) -> Vec<String> {
    let pins = ders.iter().map(|der| dial::pin_of(der).unwrap());
    pins.collect()
}

impl Stream {
    /// The next word of whom to trust.
    async fn roots(&mut self) -> pb::Roots {
        self.until(|event| match event {
            Event::Roots(roots) => Some(roots),
            _ => None,
        })
        .await
    }

    /// The node says whom it trusts and whose it is; returns once control has heard it.
    async fn trusts(&mut self, roots: &[&str], proven_by: &[&str]) {
        let owned = |pins: &[&str]| pins.iter().map(|&pin| pin.to_owned()).collect();
        let status = pb::Status {
            trusted_roots: owned(roots),
            proven_by: owned(proven_by),
            ..pb::Status::default()
        };
        Self::send(&self.up, node_event::Event::Status(status)).await;
        // The first piece of the next one, which has links alone.
        let piece = pb::Status {
            more: true,
            ..pb::Status::default()
        };
        Self::send(&self.up, node_event::Event::Status(piece)).await;
        // What is answered after it was heard after it.
        let made = pb::ObjectsMade {
            batch: 1,
            ..pb::ObjectsMade::default()
        };
        Self::send(&self.up, node_event::Event::ObjectsMade(made)).await;
        self.until(|event| match event {
            Event::ObjectsAnswered(answer) => Some(answer.batch),
            _ => None,
        })
        .await;
    }
}

async fn renewed(node: &mut NodeClient<Channel>) -> (pb::EnrollResponse, Identity) {
    let (key, csr) = request();
    let answer = node.renew(pb::RenewRequest { csr: csr.into() }).await;
    let answer = answer.unwrap().into_inner();
    let identity = Identity::new(&answer, &key);
    (answer, identity)
}

async fn remove(admin: &Admin, node: &str) {
    let gone = pb::NameRequest {
        name: node.to_owned(),
    };
    let removed = admin.call(gone, |mut c, r| async move { c.remove_node(r).await });
    removed.await.unwrap();
}

/// Whether control takes somebody for a node; in TLS 1.3 a client learns of a refusal only afterwards.
async fn is_known(control: &Control, identity: &Identity) -> bool {
    let certificate = (identity.chain.clone(), identity.key.clone_key());
    match dial::dial(&control.url, &control.pin, Some(certificate)).await {
        Err(_) => false,
        Ok(channel) => {
            let asked = pb::AdmitRequest::default();
            NodeClient::new(channel).admit(asked).await.is_ok()
        }
    }
}

#[tokio::test]
async fn a_new_root_takes_the_old_ones_place_and_nobody_is_out() {
    let mut control = Control::start().await;
    let admin = control.admin().await;
    let old = control.pin.clone();
    let (near, away) = (
        control.enroll("ingress", "i-1").await,
        control.enroll("ingress", "i-2").await,
    );
    let mut stream = Stream::open(&mut control.node(&near).await, 0).await;
    for early in [RootStep::Switch, RootStep::Finish, RootStep::Abort] {
        assert!(refused(&admin, early).await.contains("begin"));
    }

    let begun = step(&admin, RootStep::Begin).await.unwrap();
    let new = new_pin(&begun);
    assert_eq!(begun.root.as_ref().unwrap().pin, old);
    assert_eq!(pins(&begun.roots), [old.as_str(), new.as_str()]);
    assert_eq!(step(&admin, RootStep::Begin).await.unwrap(), begun);
    assert!(refused(&admin, RootStep::Finish).await.contains("switch"));
    let told = stream.roots().await;
    assert_eq!(pins(&told.roots), [old.as_str(), new.as_str()]);
    assert_eq!(told.signing, old);
    // What is given out is good beyond the end already, and the old one signs nodes.
    let invite = control.invite("ingress", "i-3").await;
    assert!(invite.ends_with(&new), "{invite}");
    let by_new = NodeClient::new(dial::dial(&control.url, &new, None).await.unwrap());
    let (_, csr) = request();
    let third = by_new.clone().enroll(enrolment(&invite, &csr, "")).await;
    let third = third.unwrap().into_inner();
    assert_eq!(pins(&third.roots), [old.as_str(), new.as_str()]);

    let waits = refused(&admin, RootStep::Switch).await;
    assert!(waits.contains("i-1") && !waits.contains("i-2"), "{waits}");
    stream.trusts(&[&old, &new], &[&old]).await;
    let switched = step(&admin, RootStep::Switch).await.unwrap();
    assert!(switched.rotation.as_ref().unwrap().switched);
    assert_eq!(step(&admin, RootStep::Switch).await.unwrap(), switched);
    let back = refused(&admin, RootStep::Abort).await;
    assert!(back.contains("signs already"), "{back}");
    let told_again = stream.roots().await;
    assert_eq!(told_again.signing, new);
    assert!(told_again.generation > told.generation);

    // The one that was away knows the old root only: it knows control by it, is known, and hears of both.
    let mut returned = control.node(&away).await;
    let (answer, away_new) = renewed(&mut returned).await;
    assert_eq!(pins(&answer.roots), [old.as_str(), new.as_str()]);
    let mut returned = Stream::open(&mut returned, 0).await;
    assert_eq!(returned.roots().await, told_again);
    returned.trusts(&[&old, &new], &[&old, &new]).await;
    let waits = refused(&admin, RootStep::Finish).await;
    assert!(waits.contains("i-1") && !waits.contains("i-2"), "{waits}");
    let (_, near_new) = renewed(&mut control.node(&near).await).await;
    stream.trusts(&[&old, &new], &[&old, &new]).await;
    let waits = refused(&admin, RootStep::Finish).await;
    assert!(waits.contains("i-3"), "it never said anything: {waits}");
    remove(&admin, "i-3").await;

    let finished = step(&admin, RootStep::Finish).await.unwrap();
    assert_eq!(pins(&finished.roots), [new.as_str()]);
    assert_eq!(finished.root.as_ref().unwrap().pin, new);
    assert!(finished.rotation.is_none());
    assert_eq!(step(&admin, RootStep::Finish).await.unwrap(), finished);
    assert_eq!(pins(&stream.roots().await.roots), [new.as_str()]);
    let wrong = dial::dial(&control.url, &old, None).await.unwrap_err();
    assert!(matches!(wrong, dial::Error::WrongPin { .. }), "{wrong}");
    control.pin.clone_from(&new);
    for (before, after) in [(&near, &near_new), (&away, &away_new)] {
        assert!(!is_known(&control, before).await && is_known(&control, after).await);
    }

    is_kept(control, &near_new, &near).await;
}

/// What is on disk is the new root, and is taken up; and it may be replaced as well.
async fn is_kept(control: Control, known: &Identity, unknown: &Identity) {
    use rustls::pki_types::pem::PemObject as _;
    let pin = control.pin.clone();
    let dir = control.stop().await;
    let control = Control::start_in(dir).await;
    assert_eq!(control.pin, pin);
    let pem = std::fs::read(control.dir.path().join("ca/root.pem")).unwrap();
    let kept = CertificateDer::from_pem_slice(&pem).unwrap();
    assert_eq!(dial::pin_of(&kept), Some(pin.clone()));
    assert!(is_known(&control, known).await && !is_known(&control, unknown).await);
    let begun = step(&control.admin().await, RootStep::Begin).await.unwrap();
    assert_ne!(new_pin(&begun), pin);
    control.stop().await;
}

#[tokio::test]
async fn a_root_that_is_given_up_is_trusted_no_more() {
    let control = Control::start().await;
    let mut admin = control.admin().await;
    let node = control.enroll("ingress", "i-1").await;
    let mut stream = Stream::open(&mut control.node(&node).await, 0).await;
    let begun = step(&admin, RootStep::Begin).await.unwrap();
    let new = new_pin(&begun);
    assert_eq!(stream.roots().await.roots.len(), 2);
    let asked = pb::RotateIntermediateRequest {};
    let busy = admin.call(
        asked,
        |mut c, r| async move { c.rotate_intermediate(r).await },
    );
    let busy = busy.await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition, "{busy}");
    for _ in 0..2 {
        let aborted = step(&admin, RootStep::Abort).await.unwrap();
        assert_eq!(pins(&aborted.roots), [control.pin.as_str()]);
    }
    assert_eq!(stream.roots().await.roots.len(), 1);
    let wrong = dial::dial(&control.url, &new, None).await.unwrap_err();
    assert!(matches!(wrong, dial::Error::WrongPin { .. }), "{wrong}");
    assert!(refused(&admin, RootStep::Finish).await.contains("begin"));
    // Again, and over whoever does not follow.
    let again = step(&admin, RootStep::Begin).await.unwrap();
    assert_ne!(new_pin(&again), new);
    assert!(refused(&admin, RootStep::Switch).await.contains("i-1"));
    admin.force = true;
    step(&admin, RootStep::Switch).await.unwrap();
    step(&admin, RootStep::Finish).await.unwrap();
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_replace_their_root_together_and_one_that_was_away_follows() {
    let etcd = Etcd::start();
    let (mut one, mut other) = pair(&etcd).await;
    let node = one.enroll("ingress", "i-1").await;
    let mut at_other = Stream::open(&mut other.node(&node).await, 0).await;
    let admin = one.admin().await;
    let new = new_pin(&step(&admin, RootStep::Begin).await.unwrap());
    let old = one.pin.clone();
    at_other.roots().await;
    // What the node tells one replica, the other judges by.
    assert!(refused(&admin, RootStep::Switch).await.contains("i-1"));
    at_other.trusts(&[&old, &new], &[&old]).await;
    step(&admin, RootStep::Switch).await.unwrap();
    assert_eq!(at_other.roots().await.signing, new);
    let (_, after) = renewed(&mut other.node(&node).await).await;
    at_other.trusts(&[&old, &new], &[&old, &new]).await;

    drop(at_other);
    let settings = etcd.settings();
    let token = one.dir.path().join("admin.token");
    let dir = other.stop().await;
    step(&admin, RootStep::Finish).await.unwrap();
    one.pin.clone_from(&new);
    other = match Control::try_start_in(dir, &settings, &token).await {
        Ok(control) => control,
        Err((_, error)) => panic!("{error}"),
    };
    assert_eq!(other.pin, new);
    for control in [&one, &other] {
        assert!(is_known(control, &after).await && !is_known(control, &node).await);
    }
    // The first, whose folder has the CA, starts again.
    let dir = one.stop().await;
    let one = match Control::try_start_in(dir, &settings, &token).await {
        Ok(control) => control,
        Err((_, error)) => panic!("{error}"),
    };
    assert_eq!(one.pin, new);
    one.stop().await;
    other.stop().await;
}
