//! A node is removed while it serves: it is out within the push, with every other node, and nobody else notices.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::{Connection, INGRESS, Network, http, wait};
use serde_json::json;

#[test]
fn a_removed_node_is_out_at_once_and_comes_back_only_by_an_invite() {
    let network = Network::own();
    let tenant = network.tenant_of("removing", 1, &["--first-ms", "0", "--token-ms", "5"]);
    let node = network.extra_ingress("ingress-gone", "");
    let client = node.client(&tenant.key.text);
    let chat = tenant.chat(&json!({}));
    client.post("/v1/chat/completions", &chat).expect(200);
    let mut egress = network.extra_egress("egress-gone", |own| vec![own]);
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));

    std::thread::scope(|threads| {
        // Others' requests, at both of the other doors, all the while.
        for ingress in INGRESS {
            let (client, chat, stop, asked) = (tenant.client(ingress), &chat, &stop, &asked);
            threads.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let body = chat_of(chat, asked.load(Ordering::Relaxed));
                    client.post("/v1/chat/completions", &body).expect(200);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let more = |count: usize| {
            let from = asked.load(Ordering::Relaxed);
            wait::wait_for("others are served", || {
                asked.load(Ordering::Relaxed) >= from + count
            });
        };
        more(20);

        network.ctl(&["node", "remove", "ingress-gone"]).unwrap();
        for far in ["egress-us-1", "egress-us-2", "relay-us-1"] {
            wait::wait_for("its links are closed", || {
                closed(&network, far, "ingress-gone")
            });
        }
        wait::wait_for("its door is closed", || {
            Connection::try_open(node.address).map_or(true, Connection::is_closed)
        });
        assert_eq!(http::status(node.admin, "/readyz"), Some(503));
        more(20);

        // An egress is drained first, so that nothing runs there; its certificate still is worth nothing afterwards.
        network.ctl(&["node", "drain", "egress-gone"]).unwrap();
        more(20);
        network.ctl(&["node", "remove", "egress-gone"]).unwrap();
        wait::wait_for("its links are closed", || {
            INGRESS
                .iter()
                .all(|ingress| closed(&network, ingress, "egress-gone"))
        });
        wait::wait_for("it knows", || {
            let said = http::Request::new(egress.admin, "GET", "/readyz").send();
            said.text().contains("removed")
        });
        more(20);
        stop.store(true, Ordering::Relaxed);
    });
    for gone in ["ingress-gone", "egress-gone"] {
        let state = network.dir().join("node").join(gone);
        assert!(state.join("removed").exists() && !state.join("credentials").exists());
    }

    // With its used invite it stays out, whoever starts it.
    egress.restart("KILL");
    assert!(!egress.ended().success());
    assert!(egress.log().contains("invite"), "{}", egress.log());
    drop(node);

    // Invited anew under the same name and in the same folder it is there at once.
    let node = network.extra_ingress("ingress-gone", "");
    let client = node.client(&tenant.key.text);
    client.post("/v1/chat/completions", &chat).expect(200);
}

/// The same request, but another body, which nothing can have answered before.
fn chat_of(chat: &serde_json::Value, number: usize) -> serde_json::Value {
    let mut chat = chat.clone();
    chat["metadata"] = json!({"number": number.to_string()});
    chat
}

/// Whether a node has closed a link, as its peer was removed.
fn closed(network: &Network, node: &str, peer: &str) -> bool {
    network.lines(node).iter().any(|line| {
        let message = line["message"].as_str().unwrap_or_default();
        message.starts_with("link closed: the peer was removed") && line["peer"] == peer
    })
}
