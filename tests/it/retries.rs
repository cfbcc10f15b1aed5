//! Clients that ask again: the provider is called once, whatever was cut, wherever they come back.

use harness::{Answer, CANARY, Client, INGRESS, Network, Stream, Tenant, http::Request, wait};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn keyed(client: &Client, key: &str, body: &Value) -> Request {
    client.json(CHAT, body).header("idempotency-key", key)
}

/// A stream of so many chunks, one every 20 ms.
fn counting(tenant: &Tenant<'_>, chunks: u32) -> Value {
    let pace = json!({"sample_chunks": chunks.to_string(), "sample_token_ms": "20"});
    tenant.chat(&json!({"stream": true, "metadata": pace}))
}

/// Reads some of a stream and cuts the connection: its exchange, and the bytes that came.
fn cut(mut stream: Stream) -> (String, Vec<u8>) {
    assert_eq!(stream.status, 200);
    let exchange = stream.header("x-request-id").unwrap_or_default();
    let exchange = exchange.to_owned();
    let mut seen = Vec::new();
    while seen.len() < 1_000 {
        let piece = stream.piece();
        assert!(piece.is_some(), "the stream is over");
        seen.extend(piece.unwrap_or_default());
    }
    (exchange, seen)
}

fn is_again(answer: &Answer, exchange: &str) {
    assert_eq!(answer.header("x-vector-replayed"), Some("true"));
    assert_eq!(answer.header("x-request-id"), Some(exchange));
}

#[test]
fn a_stream_cut_in_the_middle_is_whole_at_another_ingress_and_was_made_once() {
    let network = Network::shared();
    let tenant = network.tenant("retry-stream");
    let [here, there] = INGRESS.map(|ingress| tenant.client(ingress));
    let body = counting(&tenant, 60);
    let (exchange, seen) = cut(keyed(&here, "key-1", &body).open());
    // While it runs: from its first byte, and from where it was cut.
    let rest = format!("/v1/exchanges/{exchange}/stream?from={}", seen.len());
    let rest = there.get(&rest).expect(200);
    is_again(&rest, &exchange);
    let kind = rest.header("content-type").unwrap_or_default();
    assert!(kind.starts_with("text/event-stream"), "{kind}");
    let whole = keyed(&there, "key-1", &body).send().expect(200);
    is_again(&whole, &exchange);
    assert!(
        whole.text().ends_with("data: [DONE]\n\n"),
        "{}",
        whole.text()
    );
    assert!(
        [&seen[..], &rest.body].concat() == whole.body,
        "every byte once"
    );
    // And when it is over, from either.
    for client in [&here, &there] {
        let again = keyed(client, "key-1", &body).send().expect(200);
        is_again(&again, &exchange);
        assert!(again.body == whole.body);
    }
    assert_eq!(tenant.sample.calls(), 1);
    let beyond = format!(
        "/v1/exchanges/{exchange}/stream?from={}",
        whole.body.len() + 1
    );
    here.get(&beyond).refused(416, "offset_beyond_end");
}

#[test]
fn usage_of_a_retried_request_is_counted_once() {
    let network = Network::shared();
    let tenant = network.tenant("retry-usage");
    let body = tenant.chat(&json!({}));
    let mut answers = Vec::new();
    for ingress in [INGRESS[0], INGRESS[1], INGRESS[0]] {
        let client = tenant.client(ingress);
        answers.push(keyed(&client, "key-1", &body).send().expect(200));
    }
    assert!(answers.iter().all(|answer| answer.body == answers[0].body));
    assert!(answers[0].header("x-vector-replayed").is_none());
    let exchange = answers[0].header("x-request-id").unwrap();
    answers[1..]
        .iter()
        .for_each(|answer| is_again(answer, exchange));
    assert_eq!(tenant.sample.calls(), 1);
    // A request of another key comes after those in the ledger.
    keyed(&tenant.client(INGRESS[0]), "key-2", &body)
        .send()
        .expect(200);
    let records = wait::wait_some("both are in the ledger", || {
        let said = network.ctl(&["usage", "--account", &tenant.name]).unwrap();
        let records = said["records"].as_array().cloned()?;
        (records.len() >= 2).then_some(records)
    });
    assert_eq!(records.len(), 2, "{records:?}");
}

#[test]
fn a_key_stands_for_one_request_of_one_account() {
    let network = Network::shared();
    let (tenant, other) = (network.tenant("retry-mine"), network.tenant("retry-theirs"));
    let body = tenant.chat(&json!({}));
    let mine = keyed(&tenant.client(INGRESS[0]), "shared", &body)
        .send()
        .expect(200);
    let exchange = mine.header("x-request-id").unwrap();
    let changed = tenant.chat(&json!({"temperature": 1}));
    keyed(&tenant.client(INGRESS[1]), "shared", &changed)
        .send()
        .refused(422, "idempotency_key_reused");
    keyed(&tenant.client(INGRESS[1]), &"k".repeat(256), &body)
        .send()
        .refused(400, "invalid_idempotency_key");
    let theirs = keyed(&other.client(INGRESS[0]), "shared", &other.chat(&json!({})))
        .send()
        .expect(200);
    assert!(
        theirs.header("x-vector-replayed").is_none(),
        "their key is their own"
    );
    let stream = format!("/v1/exchanges/{exchange}/stream");
    tenant.client(INGRESS[1]).get(&stream).expect(200);
    other
        .client(INGRESS[1])
        .get(&stream)
        .refused(404, "exchange_not_found");
    assert_eq!((tenant.sample.calls(), other.sample.calls()), (1, 1));
}

#[test]
fn a_storm_of_one_request_is_one_call() {
    let tenant = Network::shared().tenant_of("retry-storm", 1, &["--first-ms", "200"]);
    let body = tenant.chat(&json!({}));
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..24)
            .map(|at| {
                let client = tenant.client(INGRESS[at % 2]);
                let body = &body;
                scope.spawn(move || keyed(&client, "storm", body).send())
            })
            .collect();
        asked
            .into_iter()
            .map(|asked| asked.join().unwrap())
            .collect()
    });
    for answer in &answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.body == answers[0].body);
    }
    let first = answers
        .iter()
        .filter(|answer| answer.header("x-vector-replayed").is_none());
    assert_eq!(first.count(), 1);
    assert_eq!(tenant.sample.calls(), 1);
}

#[test]
fn a_key_whose_request_failed_may_be_used_again() {
    let tenant = Network::shared().tenant("retry-failed");
    let client = tenant.client(INGRESS[0]);
    let body = tenant.chat(&json!({}));
    tenant.sample.fault(&json!({"kind": "500", "count": 2}));
    let failed = keyed(&client, "key-1", &body).send();
    assert!(failed.status >= 500, "{}", failed.text());
    tenant.sample.clear_faults();
    let done = keyed(&tenant.client(INGRESS[1]), "key-1", &body)
        .send()
        .expect(200);
    assert!(done.header("x-vector-replayed").is_none());
}

/// Asks as an official SDK does on its `count`th retry.
fn sdk(client: &Client, count: u32, body: &Value) -> Request {
    client
        .json(CHAT, body)
        .header("x-stainless-retry-count", &count.to_string())
}

#[test]
fn an_sdk_that_lost_its_patience_finds_its_answer_at_another_ingress() {
    let tenant = Network::shared().tenant("retry-sdk");
    let slow = json!({"metadata": {"sample_fault": "slow-first:1500"}});
    let body = tenant.chat(&slow);
    for (at, other) in [(0, 1), (1, 0)] {
        let calls = tenant.sample.calls();
        let client = tenant.client(INGRESS[at]);
        let text = body.to_string();
        let mut impatient = harness::Connection::open(client.address);
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nx-stainless-retry-count: 0\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            client.key,
            text.len()
        );
        impatient.write(head.as_bytes());
        wait::wait_for("the provider has the request", || {
            tenant.sample.calls() == calls + 1
        });
        drop(impatient);
        // An SDK waits 375 ms at least before it tries again; by then the exchange has been handed over.
        wait::wait_for("the exchange goes on without its client", || {
            let handed_over =
                |line: &Value| line["key"] == tenant.key.id.as_str() && line["adopted"] == true;
            let lines = tenant.network.lines(INGRESS[at]);
            lines.iter().filter(|line| handed_over(line)).count() == 1
        });
        let answer = sdk(&tenant.client(INGRESS[other]), 1, &body)
            .send()
            .expect(200);
        assert_eq!(answer.header("x-vector-replayed"), Some("true"));
        assert!(answer.text().contains(CANARY), "{}", answer.text());
        assert_eq!(tenant.sample.calls(), calls + 1, "no second call");
    }
    // A retry of what is not there is a request.
    let fresh = tenant.chat(&json!({"temperature": 0.5}));
    let answer = sdk(&tenant.client(INGRESS[0]), 2, &fresh)
        .send()
        .expect(200);
    assert!(answer.header("x-vector-replayed").is_none());
}

#[test]
fn a_whole_answer_survives_its_egress_and_a_running_one_is_not_run_again() {
    let network = Network::own();
    let tenant = network.tenant("retry-restart");
    let client = tenant.client(INGRESS[0]);
    let body = tenant.chat(&json!({}));
    let whole = keyed(&client, "whole", &body).send().expect(200);
    let egress = whole.header("x-vector-egress").unwrap().to_owned();
    // One more, on the same egress, that will not end by itself.
    let running = counting(&tenant, 5_000);
    let (mut at, mut streams) = (0, Vec::new());
    let key = loop {
        let key = format!("running-{at}");
        let stream = keyed(&client, &key, &running).open();
        let found = stream.header("x-vector-egress") == Some(&egress);
        streams.push(stream);
        if found {
            break key;
        }
        at += 1;
        assert!(at < 100, "one egress gets everything");
    };
    // The key's egress is told to control beside the answer.
    wait::wait_for("the whole one is found", || {
        let again = keyed(&client, "whole", &body).send();
        again.header("x-vector-replayed") == Some("true")
    });
    let calls = tenant.sample.calls();
    network.kill(&egress);
    drop(streams);
    let gone = keyed(&client, "whole", &body).send();
    assert_eq!((gone.status, gone.error_code().as_str()), (503, "no_path"));
    network.up();
    wait::wait_for("the whole answer is given again", || {
        let again = keyed(&client, "whole", &body).send();
        again.status == 200 && again.body == whole.body
    });
    // The other ingress may not have reached the egress yet, and says so until it has.
    wait::wait_for("the running one is told to be lost", || {
        let lost = keyed(&tenant.client(INGRESS[1]), &key, &running).send();
        match (lost.status, lost.error_code().as_str()) {
            (503, "no_path") => false,
            told => {
                assert_eq!(told, (409, "answer_lost"));
                true
            }
        }
    });
    assert_eq!(tenant.sample.calls(), calls, "nothing was run again");
}

#[test]
fn without_control_a_key_is_refused_and_everything_else_goes_on() {
    let network = Network::own();
    let tenant = network.tenant("retry-control");
    let client = tenant.client(INGRESS[0]);
    let body = tenant.chat(&json!({}));
    let first = keyed(&client, "key-1", &body).send().expect(200);
    network.kill("control");
    let refused = keyed(&client, "key-1", &body).send();
    assert_eq!(
        (refused.status, refused.error_code().as_str()),
        (503, "control_unreachable")
    );
    client.post(CHAT, &body).expect(200);
    // The egress knows what it keeps without asking anybody.
    let exchange = first.header("x-request-id").unwrap();
    let again = client.get(&format!("/v1/exchanges/{exchange}/stream"));
    assert_eq!(again.body, first.body);
    assert_eq!(tenant.sample.calls(), 2);
}
