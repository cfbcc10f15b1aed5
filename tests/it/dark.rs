//! Control is dead, and every node is started anew in that state: what was known goes on working, and nothing is lost.
#![expect(
    clippy::unwrap_used,
    reason = "what this test's own steps use may fail it"
)]

use std::{collections::BTreeSet, fs};

use harness::{Answer, CANARY, Client, INGRESS, Network, network::NODES, wait};
use serde_json::{Value, json};

/// Asks so often through each ingress, and notes the exchanges. Nodes that have just started find each other first: until
/// then nothing is executed, and the client is told to come again.
fn ask(network: &Network, key: &str, body: &Value, exchanges: &mut BTreeSet<String>, times: usize) {
    for ingress in INGRESS {
        let client = Client::new(network.address(ingress), key);
        for _ in 0..times {
            let answer = wait::wait_some("an answer", || {
                let answer = client.post("/v1/chat/completions", body);
                (answer.status != 503).then_some(answer)
            });
            exchanges.insert(exchange(&answer.expect(200)));
        }
    }
}

fn exchange(answer: &Answer) -> String {
    answer.header("x-request-id").unwrap().to_owned()
}

fn recorded(network: &Network, account: &str) -> (u64, BTreeSet<String>) {
    let usage = network
        .ctl(&["usage", "--account", account, "--rows", "1000"])
        .unwrap();
    let rows = usage["records"].as_array().unwrap();
    let exchanges = rows
        .iter()
        .map(|row| row["exchange"].as_str().unwrap().to_owned());
    (usage["exchanges"].as_u64().unwrap(), exchanges.collect())
}

#[test]
fn nodes_that_start_while_control_is_dead_serve_known_keys_and_lose_no_usage() {
    let network = Network::own();
    let tenant = network.tenant("dark");
    let (known, chat) = (&tenant.key.text, tenant.chat(&json!({})));
    let revoked = network.create_key("dark", &[]);
    let never_seen = network.create_key("dark", &[]);
    let mut exchanges = BTreeSet::new();
    ask(&network, known, &chat, &mut exchanges, 3);
    ask(&network, &revoked.text, &chat, &mut exchanges, 1);
    network.ctl(&["key", "disable", &revoked.id]).unwrap();
    let with = |key: &str, ingress| {
        Client::new(network.address(ingress), key).post("/v1/chat/completions", &chat)
    };
    for ingress in INGRESS {
        wait::wait_for("the key is refused", || {
            let answer = with(&revoked.text, ingress);
            if answer.status == 200 {
                exchanges.insert(exchange(&answer));
            }
            answer.status == 401
        });
    }
    // One snapshot more, so that the one before it knows the model too.
    network.apply("[[model]]\nname = \"dark-2\"\nupstreams = [{ provider = \"dark\" }]\n");

    network.kill("control");
    ask(&network, known, &chat, &mut exchanges, 3);
    // At once: what was answered is in the journal already. A crash left half a file, and a disk damaged another.
    let state = |node: &str, file: &str| network.dir().join("node").join(node).join(file);
    for node in NODES {
        network.kill(node);
    }
    fs::write(state(INGRESS[0], "snapshot.bin.new"), b"half").unwrap();
    let path = state(INGRESS[0], "snapshot.bin");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut revived: Vec<_> = NODES.iter().map(|node| network.revive(node)).collect();
    for node in &mut revived {
        node.ready();
    }

    ask(&network, known, &chat, &mut exchanges, 5);
    for ingress in INGRESS {
        refused(with(&revoked.text, ingress));
        refused(with(&never_seen.text, ingress));
        with("sk-nonsense", ingress).refused(401, "invalid_api_key");
    }
    assert!(revived[0].log().contains("the snapshot before the last"));
    // What lies on disk names no key and no credential.
    for node in NODES {
        for secret in [known.as_str(), CANARY] {
            assert!(!holds(&network, node, secret), "{node} holds {secret}");
        }
    }

    // Killed again, with usage of two lives that nobody has heard of.
    drop(revived);
    network.up();
    wait::wait_for("all usage is there", || {
        recorded(&network, "dark").1.is_superset(&exchanges)
    });
    // Delivered twice, perhaps; counted once.
    assert_eq!(
        recorded(&network, "dark"),
        (exchanges.len() as u64, exchanges.clone())
    );
    for ingress in INGRESS {
        with(&never_seen.text, ingress).expect(200);
        with(&revoked.text, ingress).refused(401, "api_key_disabled");
    }
}

/// Nobody here can say whether the key is good.
fn refused(answer: Answer) {
    answer.refused(503, "control_unreachable");
}

/// Whether any file of a node's state holds this text.
fn holds(network: &Network, node: &str, text: &str) -> bool {
    let mut folders = vec![network.dir().join("node").join(node)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if fs::read(&path)
                .unwrap()
                .windows(text.len())
                .any(|part| part == text.as_bytes())
            {
                return true;
            }
        }
    }
    false
}
