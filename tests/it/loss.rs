//! Processes that are killed: what goes on without them, what is honestly refused, and that they are taken back.

use harness::{INGRESS, Network, http, tenant::chat, wait};
use serde_json::json;

#[test]
fn a_killed_egress_is_replaced_for_new_requests_and_taken_back() {
    let network = Network::own();
    let tenant = network.tenant("survivor");
    let ask = tenant.chat(&json!({}));
    let client = tenant.client(INGRESS[0]);
    let first = client.post("/v1/chat/completions", &ask).expect(200);
    let killed = first.header("x-vector-egress").unwrap().to_owned();
    network.kill(&killed);
    for ingress in INGRESS {
        for _ in 0..10 {
            let answer = tenant
                .client(ingress)
                .post("/v1/chat/completions", &ask)
                .expect(200);
            assert_ne!(answer.header("x-vector-egress"), Some(killed.as_str()));
        }
    }
    network.up();
    for ingress in INGRESS {
        let client = tenant.client(ingress);
        wait::wait_for("the killed egress answers again", || {
            let answer = client.post("/v1/chat/completions", &ask).expect(200);
            answer.header("x-vector-egress") == Some(&killed)
        });
    }
}

#[test]
fn requests_go_on_without_control_and_new_words_come_with_it() {
    let network = Network::own();
    let tenant = network.tenant("static");
    let ask = tenant.chat(&json!({}));
    let mut node = network.extra_ingress("ingress-fresh", "");
    let fresh = node.client(&tenant.key.text);
    for ingress in INGRESS {
        tenant
            .client(ingress)
            .post("/v1/chat/completions", &ask)
            .expect(200);
    }
    network.kill("control");
    for _ in 0..10 {
        for ingress in INGRESS {
            tenant
                .client(ingress)
                .post("/v1/chat/completions", &ask)
                .expect(200);
        }
    }
    // One that begins now has its routes from disk; a key that it has not met it cannot know.
    node.restart("KILL");
    wait::wait_for("a node begins without control", || {
        http::status(node.address, "/v1/models") == Some(401)
    });
    let answer = fresh.post("/v1/chat/completions", &ask);
    if answer.status != 200 {
        answer.refused(503, "control_unreachable");
    }
    network.up();
    network.apply("[[model]]\nname = \"after\"\nupstreams = [{ provider = \"static\" }]\n");
    for ingress in INGRESS {
        let client = tenant.client(ingress);
        wait::wait_for("the new model is known", || {
            let answer = client.post("/v1/chat/completions", &chat("after", &json!({})));
            answer.status == 200
        });
    }
    wait::wait_for("the fresh node knows the key and the model", || {
        fresh
            .post("/v1/chat/completions", &chat("after", &json!({})))
            .status
            == 200
    });
}

#[test]
fn a_killed_relay_is_not_missed() {
    let network = Network::own();
    let tenant = network.tenant("relayless");
    network.kill("relay-us-1");
    for ingress in INGRESS {
        for _ in 0..5 {
            tenant
                .client(ingress)
                .post("/v1/chat/completions", &tenant.chat(&json!({})))
                .expect(200);
        }
    }
}
