//! A key that is switched off: which ingress nodes have it in force when the command returns, and which do not and why.

use super::{
    replicas::{Etcd, pair},
    *,
};

/// A stream of an ingress that confirms changes of keys, or of one that is too old for it.
async fn ingress(control: &Control, identity: &Identity, hears_keys: bool) -> Stream {
    let register = pb::Register {
        hears_keys,
        ..pb::Register::default()
    };
    let mut stream = Stream::open_as(&mut control.node(identity).await, register).await;
    // What is told at first is no answer to anything.
    stream
        .until(|event| matches!(event, Event::KeysChanged(_)).then_some(()))
        .await;
    stream
}

/// The next change of a key that the node is told of, and is asked about if it confirms.
async fn told(stream: &mut Stream, id: &str, confirms: bool) -> u64 {
    stream
        .until(|event| match event {
            // Told twice: the replica that made the change asks, and what it hears from the store it only tells.
            Event::KeysChanged(changed) if changed.revision == 0 && changed.keys == [id] => {
                assert_eq!(changed.asked > 0, confirms, "{changed:?}");
                Some(changed.asked)
            }
            _ => None,
        })
        .await
}

#[tokio::test]
async fn the_answer_says_where_a_key_has_stopped_and_where_that_is_not_known() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(plan(), false).await.unwrap();
    let created = admin.create_key().await;
    let id = created.key.unwrap().id;
    let mut identities = Vec::new();
    for name in ["i-1", "i-2", "i-3"] {
        identities.push(control.enroll("ingress", name).await);
    }
    let egress = control.enroll("egress", "e-1").await;
    let _egress = Stream::open(&mut control.node(&egress).await, 0).await;
    let mut good = ingress(&control, &identities[0], true).await;
    let mut old = ingress(&control, &identities[1], false).await;

    let confirm = async {
        let asked = told(&mut good, &id, true).await;
        told(&mut old, &id, false).await;
        // An answer to what was never asked says nothing.
        for asked in [asked + 1, asked] {
            let heard = pb::KeysHeard { asked };
            Stream::send(&good.up, node_event::Event::KeysHeard(heard)).await;
        }
    };
    let (view, ()) = tokio::join!(admin.set_key(&id, true), confirm);
    assert!(view.disabled);
    let heard = view.heard.unwrap();
    assert!(heard.took_us > 0);
    let lists = |heard: pb::KeyHeard| {
        [
            heard.confirmed,
            heard.silent,
            heard.older,
            heard.elsewhere,
            heard.away,
        ]
    };
    let name = |name: &str| vec![name.to_owned()];
    let expected = [name("i-1"), vec![], name("i-2"), vec![], name("i-3")];
    assert_eq!(lists(heard), expected);

    // One that says nothing holds up neither the change nor, for long, the command.
    let mut at_control = control.node(&identities[0]).await;
    let asked = admit_request(&created.secret);
    let on = admin.set_key(&id, false).await;
    let granted = at_control.admit(asked.clone()).await.unwrap().into_inner();
    assert!(granted.policy.is_some());
    let expected = [vec![], name("i-1"), name("i-2"), vec![], name("i-3")];
    assert_eq!(lists(on.heard.unwrap()), expected);

    // And what is listed later tells of no command.
    let listed = pb::ListKeysRequest::default();
    let listed = admin
        .call(listed, |mut c, r| async move { c.list_keys(r).await })
        .await
        .unwrap();
    assert_eq!(listed.keys[0].heard, None);
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_at_another_replica_is_told_there_and_named_here() {
    let etcd = Etcd::start();
    let (one, other) = pair(&etcd).await;
    let admin = one.admin().await;
    admin.apply(plan(), false).await.unwrap();
    let id = admin.create_key().await.key.unwrap().id;
    let identity = one.enroll("ingress", "i-1").await;
    let mut there = ingress(&other, &identity, true).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    // Known here once the other replica has said whom it hears.
    loop {
        let heard = admin.set_key(&id, true).await.heard.unwrap();
        assert_eq!((heard.confirmed.len(), heard.silent.len()), (0, 0));
        if heard.elsewhere == ["i-1"] {
            break;
        }
        assert_eq!(heard.away, ["i-1"]);
        assert!(tokio::time::Instant::now() < deadline, "never heard of");
    }
    let changed = there.until(|event| match event {
        Event::KeysChanged(changed) if changed.keys.contains(&id) => Some(changed),
        _ => None,
    });
    assert_eq!(changed.await.asked, 0, "nobody waits for it there");

    // Told of both replicas, vectorctl asks the other one for it.
    let urls = format!("{},{}", one.url, other.url);
    let said = tokio::process::Command::new(env!("CARGO_BIN_EXE_vectorctl"))
        .args(["--json", "--control", &urls, "key", "disable", &id])
        .env("VECTOR_ADMIN_TOKEN", &one.token)
        .kill_on_drop(true)
        .output();
    let confirm = async {
        let asked = told(&mut there, &id, true).await;
        let heard = node_event::Event::KeysHeard(pb::KeysHeard { asked });
        Stream::send(&there.up, heard).await;
    };
    let (said, ()) = tokio::join!(said, confirm);
    let said = said.unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(said.status.success(), "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let heard = &value["heard"];
    assert_eq!(heard["confirmed"], serde_json::json!(["i-1"]), "{text}");
    assert_eq!(heard["elsewhere"], serde_json::json!([]), "{text}");

    // Who only asks changes nothing, even if somebody else did.
    let asked = pb::SetKeyStateRequest {
        id,
        disabled: false,
        ask_only: true,
    };
    let ask = other.admin().await;
    let refused = ask.call(asked, |mut c, r| async move { c.set_key_state(r).await });
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    one.stop().await;
    other.stop().await;
}
