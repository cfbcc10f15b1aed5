//! What operators say, and what nodes hear of it.

use tonic_types::{FieldViolation, StatusExt as _};

use super::*;

#[tokio::test]
async fn applying_twice_changes_once_and_faults_change_nothing() {
    let control = Control::start().await;
    let admin = control.admin().await;
    let first = admin.apply(plan(), false).await.unwrap();
    assert_eq!(first.changes.len(), 4);
    let second = admin.apply(plan(), true).await.unwrap();
    assert_eq!(second.changes, [], "the second time there is nothing to do");
    assert_eq!(second.revision, first.revision);

    let mut bad = plan();
    bad.providers[0].base_url = "http://example.com/?key=1".to_owned();
    bad.models[0].upstreams[0].provider = "nobody".to_owned();
    bad.accounts[0].time_zone = "Mars/Olympus".to_owned();
    let refused = admin.apply(bad, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_details_bad_request().unwrap();
    for field in [
        "providers[openai].base_url",
        "models[*].upstreams[0].provider",
        "accounts[acme].time_zone",
    ] {
        assert!(
            refused.message().contains(field),
            "{field} is missing in: {refused}"
        );
        let named = |fault: &FieldViolation| fault.field == field && !fault.description.is_empty();
        assert!(
            details.field_violations.iter().any(named),
            "{field} is missing in: {details:?}"
        );
    }

    let mut less = plan();
    less.models.clear();
    let pruned = admin.apply(less.clone(), true).await.unwrap();
    assert_eq!(
        (pruned.changes.len(), pruned.changes[0].action.as_str()),
        (1, "remove")
    );
    let stale = pb::ApplyRequest {
        plan: Some(plan()),
        base_revision: first.revision,
        ..pb::ApplyRequest::default()
    };
    let conflict = admin
        .call(stale, |mut c, r| async move { c.apply(r).await })
        .await
        .unwrap_err();
    assert_eq!(
        conflict.code(),
        Code::Aborted,
        "two operators at once are told"
    );

    less.credentials[0].secret = "sk-another-secret".to_owned();
    let changed = admin.apply(less, false).await.unwrap();
    assert_eq!(changed.changes[0].details, ["secret: changed"]);
    let in_use = pb::NameRequest {
        name: "openai".to_owned(),
    };
    let refused = admin
        .call(in_use, |mut c, r| async move { c.remove_provider(r).await })
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("credentials[openai-1].provider"),
        "{refused}"
    );
    control.stop().await;
}

#[tokio::test]
async fn nodes_hear_of_everything_and_credentials_go_to_egress_only() {
    let control = Control::start().await;
    control.admin().await.apply(plan(), false).await.unwrap();
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let mut at_ingress = Stream::open(&mut ingress, 0).await;
    let mut at_egress = Stream::open(&mut egress, 0).await;
    let credentials = at_egress
        .until(|event| match event {
            Event::Credentials(credentials) if !credentials.credentials.is_empty() => {
                Some(credentials)
            }
            _ => None,
        })
        .await;
    assert_eq!(
        credentials.credentials[0].secret,
        "sk-proj-very-secret-canary"
    );
    let snapshot = at_ingress
        .until(|event| match event {
            Event::Credentials(_) => panic!("an ingress never gets credentials"),
            Event::Snapshot(snapshot) if serves(&snapshot, "e-1") && !snapshot.paths.is_empty() => {
                Some(snapshot)
            }
            _ => None,
        })
        .await;
    let bare = pb::Snapshot {
        digest: Default::default(),
        ..snapshot.clone()
    };
    assert_eq!(
        &snapshot.digest[..],
        digest(&SHA256, &bare.encode_to_vec()).as_ref()
    );
    assert_eq!(snapshot.providers[0].base_url, "https://api.openai.com/v1");

    let rejected = pb::Rejected {
        revision: snapshot.revision,
        reason: "because".to_owned(),
        kept: 0,
    };
    Stream::send(&at_ingress.up, node_event::Event::Rejected(rejected)).await;
    let drain = pb::DrainNodeRequest {
        node: "e-1".to_owned(),
        on: true,
    };
    let admin = control.admin().await;
    admin
        .call(drain, |mut c, r| async move { c.drain_node(r).await })
        .await
        .unwrap();
    at_egress
        .until(|event| matches!(event, Event::Drain(pb::Drain { on: true })).then_some(()))
        .await;
    let draining = at_ingress
        .snapshot(|snapshot| snapshot.nodes.iter().any(|node| node.draining))
        .await;
    assert!(serves(&draining, "e-1"), "a draining node stays listed");
    assert!(draining.revision > snapshot.revision);

    let stored = std::fs::read(control.dir.path().join("control.sqlite")).unwrap();
    let log = std::fs::read(control.dir.path().join("control.sqlite-wal")).unwrap_or_default();
    let canary = b"very-secret-canary";
    let clear = [stored, log]
        .iter()
        .any(|bytes| bytes.windows(canary.len()).any(|part| part == canary));
    assert!(!clear, "no credential lies on disk in clear");
    control.stop().await;
}

#[tokio::test]
async fn a_key_that_is_switched_off_is_told_before_the_command_returns() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(plan(), false).await.unwrap();
    let created = admin.create_key().await;
    let id = created.key.unwrap().id;
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let mut stream = Stream::open(&mut ingress, 0).await;
    stream
        .until(|event| matches!(event, Event::KeysChanged(_)).then_some(()))
        .await;

    let asked = admit_request(&created.secret);
    let granted = ingress.admit(asked.clone()).await.unwrap().into_inner();
    assert_eq!(granted.policy.unwrap().account, "acme");
    let mut wrong = asked.clone();
    wrong.digest = vec![0; 32].into();
    assert_eq!(
        ingress.admit(wrong).await.unwrap().into_inner().refusal,
        "invalid_api_key"
    );
    let unknown = admit_request(&ApiKey::assemble(
        "0123456789",
        &"x".repeat(ApiKey::SECRET_CHARS),
    ));
    assert_eq!(
        ingress.admit(unknown).await.unwrap().into_inner().refusal,
        "invalid_api_key"
    );

    admin.set_key(&id, true).await;
    let changed = stream.until(|event| match event {
        Event::KeysChanged(changed) => Some(changed),
        _ => None,
    });
    assert_eq!(changed.await.keys, std::slice::from_ref(&id));
    assert_eq!(
        ingress
            .admit(asked.clone())
            .await
            .unwrap()
            .into_inner()
            .refusal,
        "api_key_disabled"
    );
    admin.set_key(&id, false).await;
    assert!(
        ingress
            .admit(asked.clone())
            .await
            .unwrap()
            .into_inner()
            .policy
            .is_some()
    );

    let off = pb::AccountSpec {
        name: "acme".to_owned(),
        disabled: true,
        ..pb::AccountSpec::default()
    };
    admin
        .call(off, |mut c, r| async move { c.put_account(r).await })
        .await
        .unwrap();
    assert_eq!(
        ingress.admit(asked).await.unwrap().into_inner().refusal,
        "api_key_disabled"
    );
    control.stop().await;
}

/// Reads on, keeps every byte of it, and stops after the event that `last` knows.
async fn heard(stream: &mut Stream, seen: &mut Vec<u8>, last: impl Fn(&Event) -> bool) {
    stream
        .until(|event| {
            let found = last(&event).then_some(());
            let message = pb::ControlEvent { event: Some(event) };
            seen.extend(message.encode_to_vec());
            found
        })
        .await;
}

fn brings(event: &Event, secret: &str) -> bool {
    match event {
        Event::Credentials(sent) => sent.credentials.iter().any(|one| one.secret == secret),
        _ => false,
    }
}

#[tokio::test]
async fn a_credential_reaches_no_egress_that_does_not_route_to_its_provider() {
    const MOVED: &str = "sk-proj-very-secret-canary-2";
    let control = Control::start().await;
    let admin = control.admin().await;
    let mut plan = plan();
    plan.providers[0].egress = vec!["e-1".to_owned()];
    let mut provider = plan.providers[0].clone();
    provider.name = "other".to_owned();
    provider.egress = vec!["e-2".to_owned()];
    let mut credential = plan.credentials[0].clone();
    credential.name = "other-1".to_owned();
    credential.provider = "other".to_owned();
    credential.secret = "sk-of-the-other".to_owned();
    let mut upstream = plan.models[0].upstreams[0].clone();
    upstream.provider = "other".to_owned();
    plan.providers.push(provider);
    plan.credentials.push(credential);
    plan.models[0].upstreams.push(upstream);
    admin.apply(plan.clone(), false).await.unwrap();
    let mut one = control.node(&control.enroll("egress", "e-1").await).await;
    let mut two = control.node(&control.enroll("egress", "e-2").await).await;
    let mut at_one = Stream::open(&mut one, 0).await;
    let mut at_two = Stream::open(&mut two, 0).await;
    let (mut seen_by_one, mut seen_by_two) = (Vec::new(), Vec::new());
    heard(&mut at_one, &mut seen_by_one, |event| {
        brings(event, "sk-proj-very-secret-canary")
    })
    .await;
    heard(&mut at_two, &mut seen_by_two, |event| {
        brings(event, "sk-of-the-other")
    })
    .await;

    // A new secret goes the same way; the drain comes to the other node after all that.
    plan.credentials[0].secret = MOVED.to_owned();
    admin.apply(plan.clone(), false).await.unwrap();
    heard(&mut at_one, &mut seen_by_one, |event| brings(event, MOVED)).await;
    let drain = pb::DrainNodeRequest {
        node: "e-2".to_owned(),
        on: true,
    };
    admin
        .call(drain, |mut c, r| async move { c.drain_node(r).await })
        .await
        .unwrap();
    heard(&mut at_two, &mut seen_by_two, |event| {
        matches!(event, Event::Drain(pb::Drain { on: true }))
    })
    .await;
    let holds = |bytes: &[u8], canary: &str| {
        let mut parts = bytes.windows(canary.len());
        parts.any(|part| part == canary.as_bytes())
    };
    assert!(holds(&seen_by_one, "very-secret-canary"));
    assert!(holds(&seen_by_two, "sk-of-the-other"));
    assert!(!holds(&seen_by_two, "very-secret-canary"));
    assert!(!holds(&seen_by_one, "sk-of-the-other"));

    // When the provider moves, so does its credential, and the node that had it has none.
    plan.providers[0].egress = vec!["e-2".to_owned()];
    admin.apply(plan, false).await.unwrap();
    heard(&mut at_two, &mut seen_by_two, |event| brings(event, MOVED)).await;
    heard(
        &mut at_one,
        &mut seen_by_one,
        |event| matches!(event, Event::Credentials(sent) if sent.credentials.is_empty()),
    )
    .await;
    control.stop().await;
}
