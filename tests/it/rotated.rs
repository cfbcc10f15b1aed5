//! What signs certificates is replaced while nodes serve: those of before and after know each other.

use harness::Network;
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
