//! Keys: where they are carried, what they may, and how fast they stop.

use harness::{Client, Connection, INGRESS, Network, http::Request, wait};
use serde_json::json;

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn a_key_is_taken_from_each_of_its_places() {
    let tenant = Network::shared().tenant("carried");
    let address = tenant.network.address(INGRESS[0]);
    let key = &tenant.key.text;
    for (name, value) in [
        ("authorization", format!("Bearer {key}")),
        ("x-api-key", key.clone()),
        ("x-goog-api-key", key.clone()),
    ] {
        Request::new(address, "GET", "/v1/models")
            .header(name, &value)
            .send()
            .expect(200);
    }
    Request::new(address, "GET", &format!("/v1/models?key={key}"))
        .send()
        .expect(200);
    let mut socket = Connection::open(address);
    let head = format!(
        "GET /v1/realtime?model={} HTTP/1.1\r\nHost: x\r\n{UPGRADE}Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{key}\r\n\r\n",
        tenant.name
    );
    socket.write(head.as_bytes());
    let stream = socket.answer().unwrap();
    assert_eq!(stream.status, 101);
    assert_eq!(stream.header("sec-websocket-protocol"), Some("realtime"));
    drop(stream);
    wait::wait_for("the provider's session ends with the client's", || {
        tenant.sample.count("sessions_open") == 0
    });
}

#[test]
fn no_key_and_a_wrong_key_are_refused_and_never_repeated() {
    let address = Network::shared().address(INGRESS[0]);
    Request::new(address, "GET", "/v1/models")
        .send()
        .refused(401, "missing_api_key");
    let known = Network::shared().env("OPENAI_API_KEY");
    let mut stranger = known.to_owned();
    let last = stranger.pop().unwrap();
    stranger.push(if last == 'a' { 'b' } else { 'a' });
    for wrong in ["sk-nonsense", &stranger] {
        let answer = Client::new(address, wrong)
            .get("/v1/models")
            .refused(401, "invalid_api_key");
        assert!(!answer.text().contains(wrong), "{}", answer.text());
    }
}

#[test]
fn a_disabled_key_stops_at_every_ingress_before_the_command_returns() {
    let tenant = Network::shared().tenant("switched");
    let set = |state: &str| {
        let set = tenant.network.ctl(&["key", state, &tenant.key.id]).unwrap();
        let confirmed = set["heard"]["confirmed"].as_array().unwrap();
        for ingress in INGRESS {
            assert!(confirmed.iter().any(|id| id == ingress), "{set}");
        }
    };
    let ask = tenant.chat(&json!({}));
    let chat = |ingress: &str| tenant.client(ingress).post("/v1/chat/completions", &ask);
    for _ in 0..2 {
        for ingress in INGRESS {
            chat(ingress).expect(200);
        }
        set("disable");
        for ingress in INGRESS {
            chat(ingress).refused(401, "api_key_disabled");
        }
        set("enable");
        for ingress in INGRESS {
            chat(ingress).expect(200);
        }
    }
}

#[test]
fn a_disabled_account_stops_all_its_keys() {
    let tenant = Network::shared().tenant("closed");
    let second = tenant.network.create_key("closed", &[]);
    let get = |key: &str, ingress: &str| {
        Client::new(tenant.network.address(ingress), key).get("/v1/models")
    };
    let keys = [&tenant.key.text, &second.text];
    let each = |status: u16| {
        for key in keys {
            for ingress in INGRESS {
                wait::wait_for("the account's keys follow it", || {
                    get(key, ingress).status == status
                });
            }
        }
    };
    each(200);
    tenant
        .network
        .ctl(&["account", "put", "closed", "--disabled"])
        .unwrap();
    each(401);
    get(keys[0], INGRESS[0]).refused(401, "api_key_disabled");
    tenant.network.ctl(&["account", "put", "closed"]).unwrap();
    each(200);
}

#[test]
fn a_key_may_use_only_the_models_it_lists() {
    let tenant = Network::shared().tenant("narrow");
    let key = tenant.network.create_key("narrow", &["--model", "narrow"]);
    let client = Client::new(tenant.network.address(INGRESS[1]), &key.text);
    client
        .post("/v1/chat/completions", &tenant.chat(&json!({})))
        .expect(200);
    let other = harness::tenant::chat("gpt-4o-mini", &json!({}));
    let answer = client
        .post("/v1/chat/completions", &other)
        .refused(403, "model_not_allowed");
    assert_eq!(answer.json()["error"]["param"], "model");
}

#[test]
fn requests_beyond_a_keys_rate_are_refused_with_the_limit_and_when_to_come_back() {
    let tenant = Network::shared().tenant("rated");
    let key = tenant
        .network
        .create_key("rated", &["--requests-per-minute", "2"]);
    let client = Client::new(tenant.network.address(INGRESS[0]), &key.text);
    let ask = tenant.chat(&json!({}));
    // How many go at once is the limiter's affair; beyond two a minute none does.
    let answers: Vec<_> = (0..4)
        .map(|_| client.post("/v1/chat/completions", &ask))
        .collect();
    assert_eq!(answers[0].status, 200);
    let mut refused = 0;
    for answer in answers.into_iter().filter(|answer| answer.status != 200) {
        let answer = answer.refused(429, "rate_limit_exceeded");
        assert!(
            answer.text().contains("2 requests per minute"),
            "{}",
            answer.text()
        );
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        refused += 1;
    }
    assert!(refused >= 2);
    assert_eq!(tenant.sample.calls(), 4 - refused);
}

#[test]
fn requests_beyond_a_keys_concurrency_are_refused_until_one_ends() {
    let tenant =
        Network::shared().tenant_of("single", 1, &["--first-ms", "0", "--token-ms", "600000"]);
    let key = tenant.network.create_key("single", &["--concurrency", "1"]);
    let client = Client::new(tenant.network.address(INGRESS[0]), &key.text);
    let mut running = client
        .json(
            "/v1/chat/completions",
            &tenant.chat(&json!({"stream": true})),
        )
        .open();
    assert!(running.event().is_some());
    let ask = tenant.chat(&json!({}));
    let answer = client
        .post("/v1/chat/completions", &ask)
        .refused(429, "concurrency_limit_exceeded");
    assert!(
        answer.text().contains("1 requests at once"),
        "{}",
        answer.text()
    );
    assert!(answer.header("retry-after").is_some());
    drop(running);
    wait::wait_for("the place is free again", || {
        client.post("/v1/chat/completions", &ask).status == 200
    });
}
