//! What a client gets of an answer that went all the way: its bytes, its headers, its names.

use harness::{CANARY, End, INGRESS, Network};
use serde_json::json;

#[test]
fn a_chat_is_answered_through_both_ingress_nodes() {
    let tenant = Network::shared().tenant("plain");
    for ingress in INGRESS {
        let answer = tenant
            .client(ingress)
            .post("/v1/chat/completions", &tenant.chat(&json!({})))
            .expect(200);
        let body = answer.json();
        assert_eq!(body["object"], "chat.completion");
        let content = body["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(content.contains(CANARY), "the prompt arrived: {content}");
        assert_eq!(answer.end, End::Whole);
    }
    assert_eq!(tenant.sample.calls(), 2);
}

#[test]
fn a_stream_arrives_event_by_event_and_whole_through_both_ingress_nodes() {
    let tenant = Network::shared().tenant("stream");
    for ingress in INGRESS {
        let body = tenant.chat(&json!({"stream": true, "stream_options": {"include_usage": true}}));
        let mut stream = tenant
            .client(ingress)
            .json("/v1/chat/completions", &body)
            .open();
        assert_eq!(stream.status, 200);
        let kind = stream.header("content-type").unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        assert_eq!(stream.header("x-accel-buffering"), Some("no"));
        let mut events = Vec::new();
        while let Some(event) = stream.event() {
            events.push(event);
        }
        assert_eq!(stream.end(), Some(End::Whole));
        assert_eq!(events.last().unwrap(), "data: [DONE]\n\n");
        let usage = &events[events.len() - 2];
        assert!(usage.contains("\"total_tokens\""), "{usage}");
        assert!(events.len() > 4, "{events:?}");
    }
}

#[test]
fn a_streams_first_event_arrives_before_its_last_is_made() {
    // The provider stops for good after its first chunks, so whatever arrives did not wait for the end.
    let tenant = Network::shared().tenant_of(
        "unbuffered",
        1,
        &["--first-ms", "0", "--token-ms", "600000"],
    );
    let mut stream = tenant
        .client(INGRESS[0])
        .json(
            "/v1/chat/completions",
            &tenant.chat(&json!({"stream": true})),
        )
        .open();
    let event = stream.event().unwrap();
    assert!(event.starts_with("data: {"), "{event}");
}

#[test]
fn an_answer_names_its_exchange_its_egress_and_its_attempts() {
    let tenant = Network::shared().tenant("stamped");
    let answer = tenant
        .client(INGRESS[0])
        .post("/v1/chat/completions", &tenant.chat(&json!({})))
        .expect(200);
    let id = answer.header("x-request-id").unwrap();
    let bytes = id.as_bytes();
    assert!(
        id.len() == 36 && bytes[14] == b'7' && b"89ab".contains(&bytes[19]),
        "a UUIDv7: {id}"
    );
    assert_eq!(answer.header("x-vector-attempts"), Some("1"));
    let egress = answer.header("x-vector-egress").unwrap();
    assert!(egress.starts_with("egress-us-"), "{egress}");
    for (node, role) in [(INGRESS[0], "ingress"), (egress, "egress")] {
        let line = tenant.network.exchange_line(node, id);
        assert_eq!(line["role"], role);
        assert_eq!(line["model"], tenant.name.as_str());
        assert_eq!(line["account"], tenant.name.as_str());
        assert_eq!(line["upstream"], tenant.name.as_str());
        assert_eq!(line["status"], 200);
        assert!(line["duration_ms"].is_number(), "{line}");
    }
}

#[test]
fn headers_that_sdks_read_arrive() {
    let tenant = Network::shared().tenant("headers");
    let answer = tenant
        .client(INGRESS[0])
        .post("/v1/chat/completions", &tenant.chat(&json!({})))
        .expect(200);
    assert!(answer.header("openai-processing-ms").is_some());
    assert_eq!(answer.header("openai-version"), Some("2020-10-01"));
    assert_eq!(
        answer.header("x-ratelimit-limit-requests"),
        Some("10000"),
        "the provider's, since the key has no limit of its own"
    );
    assert_eq!(answer.header("x-ratelimit-reset-tokens"), Some("3ms"));
    assert_eq!(answer.header("openai-organization"), None);
}

#[test]
fn a_renamed_model_has_its_public_name_on_this_side_and_its_own_on_that() {
    let network = Network::shared();
    let tenant = network.tenant("renamed");
    network.apply(
        "[[model]]\nname = \"house/fast\"\nupstreams = [{ provider = \"renamed\", model = \"gpt-4o-inner\" }]\n",
    );
    let client = tenant.client(INGRESS[1]);
    let ask = harness::tenant::chat(
        "house/fast",
        &json!({"response_format": {"type": "json_object"}}),
    );
    let answer = client.post("/v1/chat/completions", &ask).expect(200);
    assert_eq!(answer.json()["model"], "house/fast");
    assert!(!answer.text().contains("gpt-4o-inner"), "{}", answer.text());
    let mut body = ask.clone();
    body["model"] = json!("gpt-4o-inner");
    let arrived = tenant.sample.stats()["last_request"]["body_bytes"].clone();
    assert_eq!(
        arrived,
        body.to_string().len(),
        "nothing but the name has changed"
    );

    let mut stream = client
        .json(
            "/v1/chat/completions",
            &harness::tenant::chat("house/fast", &json!({"stream": true})),
        )
        .open();
    let mut named = 0;
    while let Some(event) = stream.event() {
        assert!(!event.contains("gpt-4o-inner"), "{event}");
        named += u32::from(event.contains("\"model\":\"house/fast\""));
    }
    assert!(named > 2);
    a_call_by_id_has_the_public_name_too(&tenant);
}

/// Through either ingress: only one of them saw the object being made.
fn a_call_by_id_has_the_public_name_too(tenant: &harness::Tenant<'_>) {
    let body = json!({"model": "house/fast", "input": "hello"});
    let made = tenant
        .client(INGRESS[1])
        .post("/v1/responses", &body)
        .expect(200);
    assert_eq!(made.json()["model"], "house/fast");
    for ingress in INGRESS {
        let found = tenant
            .client(ingress)
            .get(&format!("/v1/responses/{}", made.id()))
            .expect(200);
        assert_eq!(found.json()["model"], "house/fast");
        assert!(!found.text().contains("gpt-4o-inner"), "{}", found.text());
    }
}

#[test]
fn bytes_pass_untouched_in_both_directions() {
    let tenant = Network::shared().tenant("bytes");
    let client = tenant.client(INGRESS[0]);
    // Order, spaces, escapes, an unknown field, a number that no double holds: all as written.
    let body = format!(
        "{{ \"zeta\" : 12345678901234567890123.00, \"model\":\"{}\",\"messages\" :[{{\"role\":\"user\",\"content\":\"\\u4f60 {CANARY}\"}}] , \"new\":[ ] }}",
        tenant.name
    );
    let answer = client
        .request("POST", "/v1/chat/completions")
        .header("content-type", "application/json")
        .body(body.clone())
        .send()
        .expect(200);
    assert!(answer.text().contains('你'), "{}", answer.text());
    let last = &tenant.sample.stats()["last_request"];
    assert_eq!(last["body_bytes"], body.len());
    assert_eq!(last["path"], "/v1/chat/completions");
    let headers = last["headers"].to_string();
    assert!(
        !headers.contains("x-forwarded") && !headers.contains("via"),
        "{headers}"
    );
}

#[test]
fn headers_that_are_the_providers_affair_reach_it() {
    let tenant = Network::shared().tenant("asking");
    let passed = [
        ("last-event-id", "7"),
        ("content-disposition", "attachment"),
        ("x-openai-experiment", "a"),
        ("openai-beta", "assistants=v2"),
        ("accept-language", "de"),
    ];
    let mut request = tenant
        .client(INGRESS[0])
        .json("/v1/chat/completions", &tenant.chat(&json!({})));
    for (name, value) in passed {
        request = request.header(name, value);
    }
    request.send().expect(200);
    let stats = tenant.sample.stats();
    let headers = stats["last_request"]["headers"].as_array().unwrap();
    for (name, value) in passed {
        assert!(headers.contains(&json!([name, value])), "{headers:?}");
    }
}

#[test]
fn models_are_listed_for_the_key_that_asks() {
    let network = Network::shared();
    let tenant = network.tenant("listed");
    let names = |answer: harness::Answer| -> Vec<String> {
        let body = answer.expect(200).json();
        assert_eq!(body["object"], "list");
        let rows = body["data"].as_array().unwrap();
        rows.iter()
            .map(|row| row["id"].as_str().unwrap().to_owned())
            .collect()
    };
    let all = names(tenant.client(INGRESS[0]).get("/v1/models"));
    assert!(all.contains(&"listed".to_owned()), "{all:?}");
    assert!(all.len() > 1);
    let narrow = network.create_key("listed", &["--model", "listed"]);
    let client = harness::Client::new(network.address(INGRESS[0]), &narrow.text);
    assert_eq!(names(client.get("/v1/models")), ["listed"]);
    client.get("/v1/models/listed").expect(200);
}

#[test]
fn a_providers_error_passes_with_status_and_body() {
    let tenant = Network::shared().tenant("erring");
    tenant.sample.fault(&json!({"kind": "500", "count": 64}));
    let answer = tenant
        .client(INGRESS[0])
        .post("/v1/chat/completions", &tenant.chat(&json!({})))
        .expect(500);
    let body = answer.json();
    assert_eq!(
        body["error"]["message"],
        "The server had an error while processing your request."
    );
    assert!(answer.header("x-request-id").is_some());
    tenant.sample.clear_faults();
    tenant
        .client(INGRESS[0])
        .post("/v1/chat/completions", &tenant.chat(&json!({})))
        .expect(200);
}

#[test]
fn a_client_error_of_the_provider_passes_and_is_not_tried_again() {
    let tenant = Network::shared().tenant("faulty");
    let mut body = tenant.chat(&json!({}));
    body["messages"] = json!([]);
    let answer = tenant
        .client(INGRESS[0])
        .post("/v1/chat/completions", &body)
        .expect(400);
    assert_eq!(answer.error_code(), "invalid_value");
    assert_eq!(answer.header("x-vector-attempts"), Some("1"));
    assert_eq!(tenant.sample.calls(), 1);
}
