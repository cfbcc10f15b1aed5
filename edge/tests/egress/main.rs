//! The egress at its border: an ingress's end of a tunnel on one side, a provider's socket on the other.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of it is a test's scaffold"
)]

mod kept;

mod town;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{Notify, mpsc, oneshot},
};
use vector_proto::{control::v1 as control, id::ExchangeId, tunnel::v1};

use town::{Caller, Town, chat, headers, provider, read, row, value_of};

const JSON: &str = "content-type: application/json\r\n";
const EVENTS: &str = "content-type: text/event-stream\r\n";
const COMPLETION: &str = r#"{"id":"chatcmpl-1","model":"gpt-public","choices":[{"index":0,"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}"#;

fn url(address: std::net::SocketAddr) -> String {
    format!("http://{address}/v1")
}

fn lines(head: &str) -> Vec<String> {
    let mut lines: Vec<String> = head.trim_end().lines().map(str::to_owned).collect();
    lines[1..].sort_unstable();
    lines
}

/// Some may pass, most may not.
const OF_A_CLIENT: &[(&str, &str)] = &[
    ("content-type", "application/json"),
    ("user-agent", "OpenAI/Python 2.0"),
    ("openai-beta", "assistants=v2"),
    ("authorization", "Bearer sk-of-the-client"),
    ("cookie", "a=b"),
    ("connection", "keep-alive"),
    ("x-forwarded-for", "192.0.2.1"),
    ("openai-organization", "org-of-the-client"),
    ("x-stainless-retry-count", "0"),
];

#[tokio::test]
async fn a_request_is_built_from_scratch_and_signed_with_our_key() {
    let (seen, mut heads) = mpsc::channel(4);
    let address = provider(move |_, mut caller: Caller| {
        let seen = seen.clone();
        async move {
            while let Some(request) = caller.request().await {
                seen.send(request).await.unwrap();
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let mut request = chat(2);
    request.path = "/chat/completions?x=1".into();
    request.headers = headers(OF_A_CLIENT);
    let exchange = ExchangeId::fresh();
    let open = v1::Open {
        request: Some(request),
        ..v1::Open::default()
    };
    let mut call = town.open(exchange, open).await;
    call.request.data(Bytes::from_static(b"{}")).await.unwrap();
    call.request.end().await.unwrap();
    let answered = read(&mut call).await.unwrap();
    assert_eq!(answered.head.status, 200);
    assert_eq!(answered.head.credential, "one");
    assert_eq!(answered.text(), COMPLETION);
    assert_eq!(answered.trailers.broken, "");
    let (head, body) = heads.recv().await.unwrap();
    assert_eq!(body, b"{}");
    assert_eq!(
        lines(&head),
        [
            "POST /v1/chat/completions?x=1 HTTP/1.1".to_owned(),
            "accept-encoding: identity".to_owned(),
            "authorization: Bearer secret-one".to_owned(),
            "content-length: 2".to_owned(),
            "content-type: application/json".to_owned(),
            format!("host: {address}"),
            "openai-beta: assistants=v2".to_owned(),
            "openai-organization: org-one".to_owned(),
            "user-agent: OpenAI/Python 2.0".to_owned(),
            format!("x-client-request-id: {exchange}"),
            format!("x-request-id: {exchange}"),
        ]
    );
    let record = town.told.record().await;
    assert_eq!(record.exchange.as_ref(), exchange.to_bytes());
    assert_eq!((record.outcome.as_str(), record.status), ("whole", 200));
    assert_eq!(record.egress, "egress");
    assert_eq!(
        (record.request_bytes, record.credential.as_str()),
        (2, "one")
    );
    let usage = record.usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens), (5, 7));
    assert_eq!(answered.trailers.usage, Some(usage));
    assert!(
        town.told.objects.lock().is_empty(),
        "it was not to be stored"
    );
}

/// A provider that answers `first` to the key `one` and a completion to all others.
async fn fussy(status: u16, headers: &'static str, body: &'static str) -> std::net::SocketAddr {
    provider(move |_, mut caller: Caller| async move {
        while let Some((head, _)) = caller.request().await {
            if head.contains("secret-one") {
                caller.answer(status, headers, body).await;
            } else {
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_limited_key_rests_and_the_next_one_serves() {
    for headers in ["", "retry-after: 7\r\n"] {
        let address = fussy(429, headers, "{}").await;
        let town = Town::new(&url(address), &["one", "two"]).await;
        for _ in 0..4 {
            let answered = town.ask(chat(2), b"{}").await.unwrap();
            assert_eq!(
                (answered.head.status, answered.head.credential.as_str()),
                (200, "two")
            );
        }
        let status = town.egress.status();
        assert_eq!(status[0].state(), control::CredentialState::Resting);
        assert_eq!(status[1].state(), control::CredentialState::Ready);
    }
}

#[tokio::test]
async fn a_key_that_runs_dry_is_used_last_and_shown() {
    let address = provider(move |_, mut caller: Caller| async move {
        while let Some((head, _)) = caller.request().await {
            let left = if head.contains("secret-one") { "0.25" } else { "40.00" };
            let told = format!(
                r#"{{"is_available":true,"balance_infos":[{{"currency":"CNY","total_balance":"{left}"}}]}}"#
            );
            if head.starts_with("GET /user/balance ") {
                caller.answer(200, JSON, &told).await;
            } else {
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one", "two"]).await;
    town.egress
        .take_providers(&[row(&url(address), "deepseek")]);
    let told = async {
        while town.egress.status().iter().any(|key| key.balance.is_none()) {
            town.egress.news().await;
        }
    };
    tokio::select! {
        () = told => {}
        () = town.egress.ask_for_balances() => panic!("the egress does not drain"),
    }
    for _ in 0..4 {
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.head.credential, "two");
    }
    let status = town.egress.status();
    let left = status[0].balance.clone().unwrap();
    assert_eq!((left.micros, left.currency.as_str()), (250_000, "CNY"));
    assert!(status[0].reason.contains("low"), "{}", status[0].reason);
}

#[tokio::test]
async fn when_all_keys_are_limited_the_providers_words_go_up() {
    let address = fussy(
        429,
        "retry-after-ms: 2500\r\nx-should-retry: true\r\n",
        "slow down",
    )
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.code, "provider_refused");
    assert!(refused.retryable && !refused.untouched);
    // What is left of it when the call is given up.
    assert!((1..=2_500).contains(&refused.retry_after_ms));
    assert_eq!(refused.provider_body, Bytes::from_static(b"slow down"));
    let head = refused.provider_head.unwrap();
    assert_eq!(head.status, 429);
    assert!(value_of(&head.headers, "x-should-retry").is_some());
    // Now nobody is called: the refusal is known beforehand.
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.untouched),
        ("no_credential", true)
    );
    assert!((1..=2_500).contains(&refused.retry_after_ms));
}

#[tokio::test]
async fn a_key_that_the_provider_refuses_is_put_out_and_its_words_stay_here() {
    let address = fussy(
        401,
        "",
        r#"{"error":"Incorrect API key provided: secr***"}"#,
    )
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.code, "no_credential");
    assert!(refused.retryable && refused.provider_body.is_empty());
    assert_eq!(
        town.egress.status()[0].state(),
        control::CredentialState::Out
    );
    assert!(town.egress.status()[0].rests_ms > 0);
}

#[tokio::test]
async fn a_model_that_a_key_may_not_use_does_not_put_it_out() {
    let body = r#"{"error":{"code":"model_not_found"}}"#;
    let address = fussy(403, JSON, body).await;
    let town = Town::new(&url(address), &["one"]).await;
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.provider_body, Bytes::from_static(body.as_bytes()));
    assert_eq!(
        town.egress.status()[0].state(),
        control::CredentialState::Ready
    );
}

#[tokio::test]
async fn a_server_error_is_tried_once_with_another_key() {
    let address = fussy(503, "", "later").await;
    let town = Town::new(&url(address), &["one", "two"]).await;
    for _ in 0..4 {
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.head.credential, "two");
    }
    assert!(town.egress.status().iter().all(|key| key.rests_ms == 0));
    let alone = Town::new(&url(address), &["one"]).await;
    let refused = alone.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.provider_head.unwrap().status, 503);
    assert_eq!(refused.upstream_attempts, 1);
}

#[tokio::test]
async fn client_errors_pass_as_answers() {
    let address = fussy(404, JSON, r#"{"error":{"code":"x"}}"#).await;
    let town = Town::new(&url(address), &["one"]).await;
    let answered = town.ask(chat(2), b"{}").await.unwrap();
    assert_eq!(
        (answered.head.status, answered.text()),
        (404, r#"{"error":{"code":"x"}}"#)
    );
    assert_eq!(town.told.record().await.status, 404);
}

#[tokio::test]
async fn a_connection_that_the_provider_closed_is_replaced_unseen() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let closed = Arc::new(Notify::new());
    let told = Arc::clone(&closed);
    let address = provider(move |_, mut caller: Caller| {
        counted.fetch_add(1, Ordering::SeqCst);
        let told = Arc::clone(&told);
        async move {
            caller.request().await;
            caller.answer(200, JSON, COMPLETION).await;
            drop(caller);
            told.notify_one();
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    for _ in 0..3 {
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.head.status, 200);
        closed.notified().await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn connections_are_used_again() {
    let (seen, mut numbers) = mpsc::channel(8);
    let address = provider(move |number, mut caller: Caller| {
        let seen = seen.clone();
        async move {
            while caller.request().await.is_some() {
                seen.send(number).await.unwrap();
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    for _ in 0..5 {
        town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(numbers.recv().await, Some(0));
    }
}

#[tokio::test]
async fn connections_are_there_before_the_first_call() {
    let (seen, mut events) = mpsc::channel(8);
    let address = provider(move |number, mut caller: Caller| {
        let seen = seen.clone();
        async move {
            seen.send((number, "made")).await.unwrap();
            while caller.request().await.is_some() {
                seen.send((number, "asked")).await.unwrap();
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let egress = town.egress.clone();
    town.spawn(async move { egress.tend().await });
    assert_eq!(events.recv().await, Some((0, "made")));
    assert_eq!(events.recv().await, Some((1, "made")));
    town.ask(chat(2), b"{}").await.unwrap();
    // A third one may be made meanwhile, in place of the one that is in use.
    let asked = loop {
        if let (number, "asked") = events.recv().await.unwrap() {
            break number;
        }
    };
    assert!(asked < 2, "a warm connection serves, not {asked}");
    town.egress.drain(Duration::ZERO).await;
}

#[tokio::test]
async fn a_post_without_a_body_has_none() {
    let (seen, mut heads) = mpsc::channel(4);
    let address = provider(move |_, mut caller: Caller| {
        let seen = seen.clone();
        async move {
            while let Some((head, _)) = caller.request().await {
                seen.send(head).await.unwrap();
                caller.answer(200, JSON, "{}").await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    for method in ["POST", "GET"] {
        let mut request = chat(0);
        request.method = method.into();
        request.body_bytes = None;
        town.ask(request, b"").await.unwrap();
        let head = heads.recv().await.unwrap();
        assert!(!head.contains("transfer-encoding"), "{head}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_providers_connection() {
    let (gone, was_gone) = oneshot::channel();
    let gone = Arc::new(parking_lot::Mutex::new(Some(gone)));
    let address = provider(move |_, mut caller: Caller| {
        let gone = Arc::clone(&gone);
        async move {
            caller.request().await.unwrap();
            caller.say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: text/event-stream\r\n\r\n").await;
            caller.say("a\r\ndata: {}\n\n\r\n").await;
            let read = caller.socket.read_u8().await;
            assert!(read.is_err());
            let gone = gone.lock().take();
            gone.unwrap().send(()).unwrap();
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let mut call = town.send(chat(2), b"{}").await;
    assert_eq!(call.response.head().await.unwrap().status, 200);
    drop(call);
    was_gone.await.unwrap();
    assert_eq!(town.told.record().await.outcome, "cancelled");
    assert_eq!(town.egress.status()[0].in_flight, 0);
}

async fn answering(answer: &'static str) -> Town {
    let address = provider(move |_, mut caller: Caller| async move {
        caller.request().await;
        caller.say(answer).await;
    })
    .await;
    Town::new(&url(address), &["one"]).await
}

#[tokio::test]
async fn a_cut_answer_never_ends_cleanly() {
    let short = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    let unended = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\nx\n\n\r\n";
    let no_mark = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":null}]}\n\n",
    );
    for (answer, why) in [
        (short, "the provider's connection broke off"),
        (unended, "the provider's connection broke off"),
        (no_mark, "cut"),
    ] {
        let town = answering(answer).await;
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        assert_eq!(answered.trailers.broken, why);
        let record = town.told.record().await;
        assert_eq!((record.outcome.as_str(), record.status), ("broken", 200));
    }
    let marked = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n",
        "data: {\"id\":\"c\",\"choices\":[]}\n\ndata: [DONE]\n\n",
    );
    let answered = answering(marked).await.ask(chat(2), b"{}").await.unwrap();
    assert_eq!(answered.trailers.broken, "");
}

#[tokio::test]
async fn garbage_and_silence_are_refused_with_their_own_words() {
    let refused = answering("SMTP ready\r\n\r\n")
        .await
        .ask(chat(2), b"{}")
        .await;
    let refused = refused.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.untouched),
        ("provider_broke", false)
    );
    let refused = answering("").await.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.retryable),
        ("provider_broke", true)
    );
    let nobody = Town::new("http://127.0.0.1:1/v1", &["one"]).await;
    let refused = nobody.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.untouched),
        ("provider_unreachable", true)
    );
}

#[tokio::test]
async fn the_deadline_bounds_the_whole_exchange() {
    let address = provider(|_, mut caller: Caller| async move {
        caller.request().await;
        caller.request().await;
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let open = v1::Open {
        request: Some(chat(2)),
        deadline_ms: 50,
        ..v1::Open::default()
    };
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.data(Bytes::from_static(b"{}")).await.unwrap();
    call.request.end().await.unwrap();
    let refused = read(&mut call).await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.retryable),
        ("deadline_exceeded", false)
    );
}

#[tokio::test]
async fn the_models_name_is_replaced_both_ways() {
    let (seen, mut bodies) = mpsc::channel(4);
    let address = provider(move |_, mut caller: Caller| {
        let seen = seen.clone();
        async move {
            while let Some((head, body)) = caller.request().await {
                seen.send(String::from_utf8(body).unwrap()).await.unwrap();
                if head.contains("accept: text/event-stream") {
                    let events =
                        "data: {\"id\":\"1\",\"model\":\"up-7\",\"x\":1}\n\ndata: [DONE]\n\n";
                    caller.answer(200, EVENTS, events).await;
                } else {
                    caller
                        .answer(200, JSON, r#"{"id":"1","model":"up-7","x":[1]}"#)
                        .await;
                }
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let body = br#"{"model":"gpt-public","n":1}"#;
    let mut request = chat(body.len());
    request.upstream_model = "up-7".into();
    (request.model_start, request.model_end) = (10, 20);
    let answered = town.ask(request.clone(), body).await.unwrap();
    assert_eq!(
        answered.text(),
        r#"{"id":"1","model":"gpt-public","x":[1]}"#
    );
    assert_eq!(answered.header("content-length"), None);
    request.headers = headers(&[
        ("content-type", "application/json"),
        ("accept", "text/event-stream"),
    ]);
    let answered = town.ask(request, body).await.unwrap();
    let events = "data: {\"id\":\"1\",\"model\":\"gpt-public\",\"x\":1}\n\ndata: [DONE]\n\n";
    assert_eq!(answered.text(), events);
    for _ in 0..2 {
        assert_eq!(bodies.recv().await.unwrap(), r#"{"model":"up-7","n":1}"#);
    }
}

#[tokio::test]
async fn an_object_is_told_before_the_answer_ends() {
    let go = Arc::new(Notify::new());
    let going = Arc::clone(&go);
    let address = provider(move |_, mut caller: Caller| {
        let go = Arc::clone(&going);
        async move {
            caller.request().await;
            caller.say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n").await;
            caller.say("data: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n").await;
            go.notified().await;
            caller.say("data: {\"type\":\"response.completed\"}\n\n").await;
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let mut request = chat(2);
    request.path = "/responses".into();
    request.operation = "responses.create".into();
    let mut call = town.send(request, b"{}").await;
    call.response.head().await.unwrap();
    call.response.next().await.unwrap();
    let object = town.told.objects.lock()[0].clone();
    assert_eq!(
        (object.id.as_str(), object.credential.as_str()),
        ("resp_1", "one")
    );
    assert_eq!(
        (object.account.as_str(), object.provider.as_str()),
        ("initech", "acme")
    );
    go.notify_one();
    let answered = read_rest(&mut call).await;
    assert_eq!(
        (answered.object.as_str(), answered.broken.as_str()),
        ("resp_1", "")
    );
}

async fn read_rest(call: &mut vector_edge::tunnel::Call) -> v1::Trailers {
    read_rest_of(&mut call.response).await
}

async fn read_rest_of(response: &mut vector_edge::tunnel::ResponseReader) -> v1::Trailers {
    use vector_edge::tunnel::Part;
    let mut trailers = v1::Trailers::default();
    loop {
        match response.next().await.unwrap() {
            Part::Data(_) => {}
            Part::Trailers(told) => trailers = told,
            Part::End => return trailers,
        }
    }
}

#[tokio::test]
async fn a_named_key_is_used_or_the_call_is_refused() {
    let address = fussy(200, JSON, "{}").await;
    let town = Town::new(&url(address), &["one", "two"]).await;
    for name in ["one", "two", "one", "two"] {
        let mut request = chat(2);
        request.credential = name.into();
        let answered = town.ask(request, b"{}").await.unwrap();
        assert_eq!(answered.head.credential, name);
    }
    let mut request = chat(2);
    request.credential = "gone".into();
    let refused = town.ask(request, b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.retryable),
        ("object_not_found", false)
    );
}

#[tokio::test]
async fn an_exchange_runs_once() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let address = provider(move |_, mut caller: Caller| {
        let counted = Arc::clone(&counted);
        async move {
            while caller.request().await.is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let id = ExchangeId::fresh();
    let open = |attempt| v1::Open {
        request: Some(v1::RequestHead {
            body_bytes: Some(0),
            ..chat(0)
        }),
        attempt,
        ..v1::Open::default()
    };
    let mut first = town.open(id, open(1)).await;
    first.request.end().await.unwrap();
    assert_eq!(read(&mut first).await.unwrap().head.status, 200);
    town.told.record().await;
    for attempt in [1, 2] {
        let mut copy = town.open(id, open(attempt)).await;
        copy.request.flush().await.unwrap();
        let refused = read(&mut copy).await.unwrap_err();
        assert_eq!(
            (refused.code.as_str(), refused.retryable),
            ("protocol_error", false)
        );
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_draining_egress_and_another_incarnation_take_nothing() {
    let address = fussy(200, JSON, "{}").await;
    let town = Town::new(&url(address), &["one"]).await;
    let open = v1::Open {
        request: Some(chat(2)),
        egress_epoch: 6,
        ..v1::Open::default()
    };
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.flush().await.unwrap();
    assert_eq!(read(&mut call).await.unwrap_err().code, "path_broken");
    let mut request = chat(2);
    request.provider = "other".into();
    assert_eq!(town.ask(request, b"{}").await.unwrap_err().code, "no_route");
    assert_eq!(town.egress.drain(Duration::from_secs(5)).await, 0);
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(
        (refused.code.as_str(), refused.untouched),
        ("draining", true)
    );
}

#[tokio::test]
async fn a_large_upload_waits_for_the_provider_and_arrives_whole() {
    const TOTAL: usize = 64 << 20;
    let sent = Arc::new(AtomicUsize::new(0));
    let watched = Arc::clone(&sent);
    let address = provider(move |_, mut caller: Caller| {
        let sent = Arc::clone(&watched);
        async move {
            // All others run as far as they can while nobody reads: without a limit that is to the end.
            for _ in 0..20_000 {
                tokio::task::yield_now().await;
            }
            let ahead = sent.load(Ordering::SeqCst);
            assert!(ahead < TOTAL / 2, "{ahead} bytes were taken in");
            let mut buffer = vec![0; 1 << 20];
            let mut read_bytes = 0;
            while read_bytes < TOTAL {
                read_bytes += caller.socket.read(&mut buffer).await.unwrap();
            }
            caller.answer(200, JSON, "{}").await;
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let mut request = chat(TOTAL);
    request.operation = "files.create".into();
    let open = v1::Open {
        request: Some(request),
        ..v1::Open::default()
    };
    let call = town.open(ExchangeId::fresh(), open).await;
    let (mut upload, mut response) = (call.request, call.response);
    let counted = Arc::clone(&sent);
    town.spawn(async move {
        let chunk = Bytes::from(vec![b'x'; 64 << 10]);
        while counted.load(Ordering::SeqCst) < TOTAL {
            upload.data(chunk.clone()).await.unwrap();
            counted.fetch_add(chunk.len(), Ordering::SeqCst);
        }
        upload.end().await.unwrap();
    });
    assert_eq!(response.head().await.unwrap().status, 200);
    assert_eq!(sent.load(Ordering::SeqCst), TOTAL);
    read_rest_of(&mut response).await;
    let sent_bytes = town.told.record().await.request_bytes;
    // The head adds to what the provider counted, so a few bytes may still be on their way.
    assert!(sent_bytes > TOTAL as u64 - 4096, "{sent_bytes}");
}

/// Says every frame of five bytes back; when the client is done, two responses end.
async fn converse(caller: &mut Caller) {
    let mut frame = [0; 5];
    while caller.socket.read_exact(&mut frame).await.is_ok() {
        caller.socket.write_all(&frame).await.unwrap();
    }
    for (input, output) in [(20, 3), (30, 4)] {
        let message = format!(
            r#"{{"type":"response.done","response":{{"usage":{{"input_tokens":{input},"output_tokens":{output}}}}}}}"#
        );
        caller
            .socket
            .write_all(&[0x81, message.len() as u8])
            .await
            .unwrap();
        caller.say(&message).await;
    }
}

#[tokio::test]
async fn a_websocket_is_joined_with_our_key() {
    let (seen, mut heads) = mpsc::channel(1);
    let address = provider(move |_, mut caller: Caller| {
        let seen = seen.clone();
        async move {
            let (head, _) = caller.request().await.unwrap();
            let nonce = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: "));
            let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
            hash.update(nonce.unwrap().as_bytes());
            hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
            use base64::Engine as _;
            let accept = base64::engine::general_purpose::STANDARD.encode(hash.finish());
            seen.send(head).await.unwrap();
            caller
                .say(&format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: realtime\r\nsec-websocket-accept: {accept}\r\n\r\n"))
                .await;
            converse(&mut caller).await;
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let mut request = chat(0);
    request.method = "GET".into();
    request.path = "/realtime?model=gpt-public".into();
    request.operation = "realtime.connect".into();
    request.upstream_model = "up-7".into();
    request.websocket = true;
    request.body_bytes = None;
    request.headers = headers(&[(
        "sec-websocket-protocol",
        "realtime, openai-insecure-api-key.sk-client",
    )]);
    let open = v1::Open {
        request: Some(request),
        ..v1::Open::default()
    };
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.flush().await.unwrap();
    let head = call.response.head().await.unwrap();
    assert_eq!(head.status, 101);
    let protocol = value_of(&head.headers, "sec-websocket-protocol");
    assert_eq!(protocol.as_deref(), Some("realtime"));
    for frame in [b"\x81\x03hey", b"\x81\x03you"] {
        call.request.data(Bytes::from_static(frame)).await.unwrap();
        call.request.flush().await.unwrap();
        let part = call.response.next().await.unwrap();
        assert!(matches!(part, vector_edge::tunnel::Part::Data(bytes) if bytes == frame[..]));
    }
    call.request.end().await.unwrap();
    let trailers = read_rest(&mut call).await;
    assert_eq!(trailers.broken, "");
    let usage = trailers.usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens), (50, 7));
    let head = heads.recv().await.unwrap();
    assert!(
        head.starts_with("GET /v1/realtime?model=up-7 HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("authorization: Bearer secret-one\r\n"));
    assert!(head.contains("sec-websocket-protocol: realtime\r\n") && !head.contains("sk-client"));
    assert_eq!(town.told.record().await.status, 101);
}

mod tls {
    //! A provider behind TLS that speaks HTTP/2.

    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, Full};
    use hyper::{Request, Response, body::Incoming, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use rustls::pki_types::PrivatePkcs8KeyDer;
    use tokio_util::task::TaskTracker;

    use super::*;

    async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let said = format!("{:?} {}", request.version(), request.uri());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let said = format!("{said} {}", body.len());
        Ok(Response::new(Full::new(said.into())))
    }

    #[tokio::test]
    async fn http2_is_spoken_where_it_is_offered() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let roots = folder.path().join("roots.pem");
        std::fs::write(&roots, made.cert.pem()).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let tasks = TaskTracker::new();
        tasks.clone().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let acceptor = acceptor.clone();
                tasks.spawn(async move {
                    let tls = acceptor.accept(socket).await.unwrap();
                    let io = TokioIo::new(tls);
                    // The connection ends when the test does.
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service_fn(echo))
                        .await;
                });
            }
        });
        let base = format!("https://localhost:{port}/v1");
        let town = Town::with_roots(&base, &["one"], Some(&roots)).await;
        let asks = (0..20).map(|_| town.ask(chat(2), b"{}"));
        for answered in futures_util::future::join_all(asks).await {
            let expected = format!("HTTP/2.0 https://localhost:{port}/v1/chat/completions 2");
            assert_eq!(answered.unwrap().text(), expected);
        }
        let body = vec![b'x'; 300 << 10];
        let answered = town.ask(chat(body.len()), &body).await.unwrap();
        assert!(answered.text().ends_with(&format!(" {}", body.len())));
        assert_eq!(
            connections.load(Ordering::SeqCst),
            1,
            "a crowd makes one connection"
        );
    }
}
