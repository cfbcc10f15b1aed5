//! What signs certificates is replaced while nodes serve: those of before and after know each other.

use harness::{Network, wait::wait_for};
use serde_json::json;

#[test]
fn nodes_under_two_intermediates_carry_each_others_traffic() {
    let network = Network::own();
    let tenant = network.tenant("rotating");
    let chat = tenant.chat(&json!({}));
    let pins = || {
        let status = network.ctl(&["ca", "status"]).unwrap();
        let pin = |name: &str| status[name]["pin"].as_str().unwrap_or_default().to_owned();
        (pin("root"), pin("intermediate"))
    };
    let before = pins();
    let early = network.extra_ingress("ingress-early", "");
    let from_early = early.client(&tenant.key.text);
    from_early.post("/v1/chat/completions", &chat).expect(200);

    let said = network
        .ctl_text(&["ca", "rotate-intermediate"], "")
        .unwrap();
    let after = pins();
    assert!(said.contains(&after.1), "{said}");
    assert!(before.0 == after.0 && before.1 != after.1);

    let mut late = network.extra_ingress("ingress-late", "");
    let from_late = late.client(&tenant.key.text);
    for _ in 0..2 {
        for client in [&from_early, &from_late] {
            client.post("/v1/chat/completions", &chat).expect(200);
        }
        // Its links are made anew, with the certificate that it kept.
        late.restart("KILL");
        late.ready();
    }
}

#[test]
fn traffic_flows_while_a_new_root_takes_the_old_ones_place() {
    let network = Network::own();
    let tenant = network.tenant("rooted");
    let chat = tenant.chat(&json!({}));
    let mut away = network.extra_ingress("ingress-away", "");
    let near = tenant.client("ingress-eu-1");
    let from_away = away.client(&tenant.key.text);
    let serves = || near.post("/v1/chat/completions", &chat).expect(200);
    from_away.post("/v1/chat/completions", &chat).expect(200);

    away.signal("STOP");
    let begun = network.ctl(&["ca", "rotate-root", "begin"]).unwrap();
    let new = begun["rotation"]["root"]["pin"]
        .as_str()
        .unwrap()
        .to_owned();
    serves();
    let token = network.env("VECTOR_ADMIN_TOKEN");
    let (secret, old) = token.rsplit_once('.').unwrap();
    let token = format!("{secret}.{new}");
    let ctl = |arguments: &[&str]| network.ctl(&[&["--token", &token], arguments].concat());
    wait_for("connected nodes trust the new root", || {
        serves();
        ctl(&["ca", "rotate-root", "switch"]).is_ok()
    });
    // Enrols by the new root, and is known by all.
    let late = network.extra_ingress("ingress-late", "");
    let from_late = late.client(&tenant.key.text);
    from_late.post("/v1/chat/completions", &chat).expect(200);
    let roots = network.ctl_text(&["ca", "roots"], "").unwrap();
    assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 2);
    // What comes back knows the old root only.
    away.restart("KILL");
    away.ready();
    from_away.post("/v1/chat/completions", &chat).expect(200);

    wait_for("every node has a certificate from the new root", || {
        serves();
        ctl(&["ca", "rotate-root", "finish"]).is_ok()
    });
    let refused = network.ctl(&["ca", "status"]).unwrap_err();
    assert_eq!(refused.code, Some(4), "its token names {old}: {refused:?}");
    let status = ctl(&["ca", "status"]).unwrap();
    assert_eq!(status["root"]["pin"], *new);
    for client in [&near, &from_away, &from_late] {
        client.post("/v1/chat/completions", &chat).expect(200);
    }
    // Links and streams are made anew, with what was kept.
    away.restart("KILL");
    away.ready();
    from_away.post("/v1/chat/completions", &chat).expect(200);
}
