//! Answers that break, and clients that leave: nobody takes half an answer for a whole one, and nobody works for nobody.

use harness::{Client, End, INGRESS, Network, wait};
use serde_json::{Value, json};

#[test]
fn a_stream_that_the_provider_cuts_ends_with_an_error_and_not_with_done() {
    let tenant = Network::shared().tenant("cut-stream");
    for ingress in INGRESS {
        let body = tenant.chat(&json!({"stream": true, "metadata": {"sample_fault": "die:3"}}));
        let answer = tenant
            .client(ingress)
            .post("/v1/chat/completions", &body)
            .expect(200);
        let text = answer.text();
        assert!(!text.contains("[DONE]"), "{text}");
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert!(error["error"]["message"].is_string(), "{error}");
        assert!(text.contains("\"delta\""), "what came before stays: {text}");
    }
}

#[test]
fn an_answer_that_the_provider_cuts_never_looks_whole() {
    let tenant = Network::shared().tenant("cut-plain");
    for fault in ["die:1", "wrong-length"] {
        let body = tenant.chat(&json!({"metadata": {"sample_fault": fault}}));
        let client = tenant.client(INGRESS[0]);
        // A connection that is closed before any head has arrived is no answer either.
        let Some(answer) = client.json("/v1/chat/completions", &body).try_send() else {
            continue;
        };
        if answer.status == 200 {
            assert_eq!(answer.end, End::Cut, "{fault}: {}", answer.text());
        } else {
            assert!(answer.status >= 500, "{fault}: {}", answer.status);
        }
    }
}

#[test]
fn what_is_no_event_passes_as_it_is_and_never_ends_cleanly() {
    let network = Network::shared();
    let tenant = network.tenant("garbage");
    // Where a name is put in the place of another, every event is looked into.
    network.apply(
        "[[model]]\nname = \"house/garbage\"\nupstreams = [{ provider = \"garbage\", model = \"garbage\" }]\n",
    );
    let more = json!({"stream": true, "metadata": {"sample_fault": "garbage"}});
    let said = Client::new(tenant.sample.address, &tenant.secrets[0])
        .post("/v1/chat/completions", &tenant.chat(&more))
        .expect(200)
        .body;
    for ingress in INGRESS {
        for model in ["garbage", "house/garbage"] {
            let answer = tenant
                .client(ingress)
                .post("/v1/chat/completions", &harness::tenant::chat(model, &more))
                .expect(200);
            let text = answer.text();
            let added = answer.body.strip_prefix(&said[..]);
            let added = std::str::from_utf8(added.unwrap_or_else(|| panic!("{text}"))).unwrap();
            let error = added.trim_end().strip_prefix("data: ").unwrap();
            let error: Value = serde_json::from_str(error).unwrap();
            assert!(error["error"]["message"].is_string(), "{error}");
            let id = answer.header("x-request-id").unwrap();
            let line = network.exchange_line(ingress, id);
            assert_eq!(line["outcome"], "broken", "{line}");
        }
    }
}

#[test]
fn what_is_no_json_passes_as_it_is() {
    let tenant = Network::shared().tenant("no-json");
    let ask = tenant.chat(&json!({"metadata": {"sample_fault": "garbage"}}));
    let said = Client::new(tenant.sample.address, &tenant.secrets[0])
        .post("/v1/chat/completions", &ask)
        .expect(200);
    for ingress in INGRESS {
        let answer = tenant
            .client(ingress)
            .post("/v1/chat/completions", &ask)
            .expect(200);
        assert_eq!((&answer.body, answer.end), (&said.body, End::Whole));
    }
}

#[test]
fn a_client_that_leaves_is_noticed_by_the_provider() {
    let tenant =
        Network::shared().tenant_of("leaving", 1, &["--first-ms", "0", "--token-ms", "20"]);
    for ingress in INGRESS {
        let gone = tenant.sample.count("client_gone");
        let body = tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "10000"}}));
        let mut stream = tenant
            .client(ingress)
            .json("/v1/chat/completions", &body)
            .open();
        assert!(stream.event().is_some());
        drop(stream);
        wait::wait_for("the provider sees that the client has left", || {
            tenant.sample.count("client_gone") > gone
        });
    }
    let body = tenant.chat(&json!({"metadata": {"sample_fault": "hang"}}));
    let gone = tenant.sample.count("client_gone");
    let waiting = harness::Connection::open(tenant.network.address(INGRESS[0]));
    let mut waiting = waiting;
    let text = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        tenant.key.text,
        text.len()
    );
    waiting.write(head.as_bytes());
    wait::wait_for("the provider has the request", || {
        tenant.sample.count("in_flight") > 1
    });
    drop(waiting);
    wait::wait_for("the provider sees that nobody waits any more", || {
        tenant.sample.count("client_gone") > gone
    });
}

#[test]
fn a_silent_stream_gives_signs_of_life_between_its_events() {
    let network = Network::shared();
    let tenant = network.tenant_of("silent", 1, &["--first-ms", "400", "--token-ms", "400"]);
    let node = network.extra_ingress("ingress-ping", "ping_ms = 100");
    let body = tenant.chat(&json!({"stream": true, "metadata": {"sample_chunks": "3"}}));
    let mut stream = node
        .client(&tenant.key.text)
        .json("/v1/chat/completions", &body)
        .open();
    assert_eq!(stream.status, 200);
    let (mut pings, mut said, mut done) = (0, String::new(), false);
    while let Some(event) = stream.event() {
        // As SDKs read: comment lines mean nothing, data lines are JSON or the end mark.
        for line in event.lines().filter(|line| !line.is_empty()) {
            let Some(data) = line.strip_prefix("data: ") else {
                assert!(line.starts_with(':'), "{line}");
                pings += 1;
                continue;
            };
            assert!(!done, "nothing follows the end mark");
            if data == "[DONE]" {
                done = true;
                continue;
            }
            let chunk: Value = serde_json::from_str(data).unwrap();
            said += chunk["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap_or_default();
        }
    }
    assert_eq!((said.as_str(), done), ("1 2 3", true));
    assert!(pings >= 2, "{pings}");
    assert_eq!(stream.end(), Some(End::Whole));
}
