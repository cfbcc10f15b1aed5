//! What can be seen of a running network, and what must never be: health, metrics, logs.

use std::collections::BTreeSet;

use harness::{
    CANARY, Connection, INGRESS, Network,
    http::{self, Request},
    network::NODES,
    wait,
};
use serde_json::json;

fn processes() -> impl Iterator<Item = &'static str> {
    NODES.into_iter().chain(["control"])
}

#[test]
fn every_process_says_that_it_lives_is_ready_and_what_it_measures() {
    let network = Network::shared();
    for name in processes() {
        let admin = network.admin(name);
        for target in ["/livez", "/readyz"] {
            assert_eq!(http::status(admin, target), Some(200), "{name}{target}");
        }
        assert_eq!(http::status(admin, "/nothing"), Some(404), "{name}");
        let page = Request::new(admin, "GET", "/metrics").send().expect(200);
        let text = page.text();
        let helped: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP "))
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, help)| !help.trim().is_empty())
            .map(|(name, _)| name)
            .collect();
        let mut ours = 0;
        for line in text.lines().filter(|line| line.starts_with("vector_")) {
            let sample = line.split(['{', ' ']).next().unwrap();
            let known = helped.iter().any(|family| sample.starts_with(family));
            assert!(known, "{name}: no HELP for {sample}");
            ours += 1;
        }
        assert!(ours > 0, "{name}: {text}");
    }
}

#[test]
fn a_node_logs_json_and_says_when_it_is_ready() {
    let network = Network::shared();
    for name in NODES {
        let text = network.log(name);
        assert!(!text.is_empty(), "{name}");
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{name}: {error}: {line}"));
            assert!(
                line["level"].is_string() && line["message"].is_string(),
                "{line}"
            );
        }
        assert!(
            network
                .lines(name)
                .iter()
                .any(|line| line["message"] == "ready"),
            "{name} never said ready"
        );
    }
}

#[test]
fn an_exchange_has_one_line_at_each_node_that_it_crossed() {
    let tenant = Network::shared().tenant("traced");
    let answer = tenant
        .client(INGRESS[1])
        .post("/v1/chat/completions", &tenant.chat(&json!({})))
        .expect(200);
    let id = answer.header("x-request-id").unwrap();
    let egress = answer.header("x-vector-egress").unwrap();
    for node in [INGRESS[1], egress] {
        tenant.network.exchange_line(node, id);
        let lines = tenant.network.lines(node);
        let told =
            |line: &&serde_json::Value| line["message"] == "exchange" && line["exchange"] == id;
        assert_eq!(lines.iter().filter(told).count(), 1);
    }
}

#[test]
fn an_exchange_has_a_line_at_the_relay_that_it_crossed() {
    let network = Network::own();
    let tenant = network.tenant_of("relayed", 1, &["--first-ms", "0", "--token-ms", "20"]);
    // One address makes one direct link, so the second of two paths goes over the relay.
    let egress = network.extra_egress("egress-far", |address| vec![address]);
    network.apply(&format!(
        "[[provider]]\nname = \"relayed\"\nkind = \"openai\"\nbase_url = \"http://{}/v1\"\nallow_private = true\negress = [\"egress-far\"]\n\
         [[model]]\nname = \"relayed\"\nredundant = true\nupstreams = [{{ provider = \"relayed\" }}]\n",
        tenant.sample.address
    ));
    wait::wait_for("ingress and relay have links to the egress", || {
        let all = network.ctl(&["paths"]).unwrap();
        let rows: Vec<_> = all["paths"].as_array().unwrap().iter().collect();
        [INGRESS[0], "relay-us-1"].iter().all(|node| {
            let of =
                |row: &&&serde_json::Value| row["node"] == *node && row["peer"] == "egress-far";
            rows.iter().filter(of).any(|row| row["state"] == "up")
        })
    });
    let answer = tenant
        .client(INGRESS[0])
        .post(
            "/v1/chat/completions",
            &tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "50"}})),
        )
        .expect(200);
    let id = answer.header("x-request-id").unwrap();
    let line = network.exchange_line("relay-us-1", id);
    assert_eq!(line["role"], "relay");
    let ends = BTreeSet::from([&line["from"], &line["to"]].map(|end| end.as_str().unwrap()));
    assert_eq!(ends, BTreeSet::from([INGRESS[0], "egress-far"]));
    let bytes = ["bytes_on", "bytes_back"].map(|way| line[way].as_u64().unwrap());
    assert!(bytes.iter().sum::<u64>() > 0, "{line}");
    assert!(
        line["duration_ms"].is_number() && line["outcome"].is_string(),
        "{line}"
    );
    let relay = network.admin("relay-us-1");
    assert!(network.counted(relay, "vector_relay_bytes_total") > 0.0);
    drop(egress);
}

/// Everything that carries something secret past every node: good, refused, broken and malformed requests.
fn spill(tenant: &harness::Tenant<'_>) {
    let [client, other] = INGRESS.map(|ingress| tenant.client(ingress));
    let chat = "/v1/chat/completions";
    client.post(chat, &tenant.chat(&json!({}))).expect(200);
    other
        .post(chat, &tenant.chat(&json!({"stream": true})))
        .expect(200);
    for fault in ["500", "429", "401", "die:1", "garbage", "wrong-length"] {
        let metadata = json!({"metadata": {"sample_fault": fault}});
        client.post(chat, &tenant.chat(&metadata));
        let metadata = json!({"stream": true, "metadata": {"sample_fault": fault}});
        other.post(chat, &tenant.chat(&metadata));
    }
    let key = &client.key;
    client
        .request("POST", chat)
        .header("content-type", "application/json")
        .body(format!("{{\"model\":\"{CANARY}\",\"prompt\":\"{CANARY}\""))
        .send()
        .expect(400);
    client.form("/v1/files", &[("purpose", CANARY)], CANARY.as_bytes());
    for target in [
        format!("/v1/models?key={key}"),
        format!("/v1/nothing?key={key}&{CANARY}"),
        format!("/v1/files/file-{CANARY}?key={key}"),
    ] {
        Request::new(client.address, "GET", &target).send();
    }
    for head in [
        format!(
            "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\nX : {CANARY}\r\n\r\n"
        ),
        format!("{key} {CANARY} \u{1}\r\n\r\n"),
        format!("POST {chat} HTTP/1.1\r\nHost: x\r\nHost: {CANARY}\r\nx-api-key: {key}\r\n\r\n"),
    ] {
        let mut connection = Connection::open(client.address);
        connection.write(head.as_bytes());
        connection.finish();
        connection.rest();
    }
}

#[test]
fn no_secret_and_no_content_is_in_any_log_or_metric() {
    let network = Network::shared();
    let tenant = network.tenant("secretive");
    spill(&tenant);
    let mut secrets = vec![
        CANARY.to_owned(),
        tenant.key.text.clone(),
        network.env("OPENAI_API_KEY").to_owned(),
        network.env("VECTOR_ADMIN_TOKEN").to_owned(),
        "vinv_".to_owned(),
        "vadm_".to_owned(),
        "BEGIN PRIVATE KEY".to_owned(),
    ];
    // The secret's own part, should somebody log a key without its beginning.
    secrets.push(tenant.key.text[tenant.key.text.len() - 24..].to_owned());
    let mut pages: Vec<(String, String)> = processes()
        .map(|name| {
            let page = Request::new(network.admin(name), "GET", "/metrics").send();
            (format!("{name}/metrics"), page.text())
        })
        .collect();
    for entry in std::fs::read_dir(network.dir().join("log")).unwrap() {
        let path = entry.unwrap().path();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        pages.push((path.display().to_string(), text));
    }
    assert!(pages.len() > 12);
    for (name, text) in &pages {
        for line in text.lines() {
            for secret in &secrets {
                assert!(
                    !line.contains(secret.as_str()),
                    "{secret} in {name}: {line}"
                );
            }
        }
    }
}
