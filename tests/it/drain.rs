//! A node that is told to end: what runs is finished, nothing new is taken, and it says so by its exit.

use harness::{Connection, End, INGRESS, Network, wait};
use serde_json::json;

#[test]
fn an_ingress_finishes_its_streams_takes_nobody_new_and_ends_well() {
    let network = Network::shared();
    let tenant = network.tenant_of("draining", 1, &["--first-ms", "0", "--token-ms", "20"]);
    let mut node = network.extra_ingress("ingress-drain", "drain_ms = 10000");
    let client = node.client(&tenant.key.text);
    let body = tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "60"}}));
    let mut stream = client.json("/v1/chat/completions", &body).open();
    assert!(stream.event().is_some());
    node.signal("TERM");
    wait::wait_for("nobody new is taken", || {
        Connection::try_open(node.address).map_or(true, Connection::is_closed)
    });
    let mut last = String::new();
    let mut events = 1;
    while let Some(event) = stream.event() {
        events += 1;
        last = event;
    }
    assert_eq!(
        (last.as_str(), stream.end()),
        ("data: [DONE]\n\n", Some(End::Whole))
    );
    assert!(events > 60, "{events}");
    let status = node.ended();
    assert!(status.success(), "{status}: {}", node.log());
}

#[test]
fn an_egress_that_ends_finishes_what_runs_and_others_take_the_rest() {
    let network = Network::own();
    let tenant = network.tenant_of("leaving", 1, &["--first-ms", "0", "--token-ms", "20"]);
    let client = tenant.client(INGRESS[0]);
    let body = tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "40"}}));
    let mut stream = client.json("/v1/chat/completions", &body).open();
    assert!(stream.event().is_some());
    let egress = stream.header("x-vector-egress").unwrap().to_owned();
    network.signal(&egress, "TERM");
    let mut streams = vec![stream];
    while network.runs(&egress) && streams.len() < 200 {
        let answer = client.post("/v1/chat/completions", &tenant.chat(&json!({})));
        let answer = answer.expect(200);
        if answer.header("x-vector-egress") != Some(&egress) {
            break;
        }
    }
    for stream in &mut streams {
        let mut last = String::new();
        while let Some(event) = stream.event() {
            last = event;
        }
        assert_eq!(last, "data: [DONE]\n\n");
    }
    wait::wait_for("it ends", || !network.runs(&egress));
    for _ in 0..8 {
        let answer = client
            .post("/v1/chat/completions", &tenant.chat(&json!({})))
            .expect(200);
        assert_ne!(answer.header("x-vector-egress"), Some(egress.as_str()));
    }
}
