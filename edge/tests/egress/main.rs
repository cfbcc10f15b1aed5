//! The egress at its border: an ingress's end of a tunnel on one side, a provider's socket on the other.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "all of it is a test's scaffold"
)]

mod ahead;

mod endings;

mod keys;

mod kept;

mod probes;

mod tls;

mod town;

mod websocket;

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
async fn a_redirect_is_passed_on_and_never_followed() {
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let location = format!(
        "location: http://{}/v1\r\n",
        elsewhere.local_addr().unwrap()
    );
    let address = provider(move |_, mut caller: Caller| {
        let location = location.clone();
        async move {
            while caller.request().await.is_some() {
                caller.answer(307, &location, "").await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let answered = town.ask(chat(2), b"{}").await.unwrap();
    assert_eq!(answered.head.status, 307);
    let nobody = elsewhere.accept().unwrap_err();
    assert_eq!(nobody.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_provider_inside_our_walls_is_called_only_when_marked() {
    let address = provider(|_, mut caller: Caller| async move {
        while caller.request().await.is_some() {
            caller.answer(200, JSON, COMPLETION).await;
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    assert_eq!(town.ask(chat(2), b"{}").await.unwrap().head.status, 200);
    // The warm connection goes with the mark.
    let mut inside = row(&url(address), "");
    inside.allow_private = false;
    town.egress.take_providers(&[inside]);
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.code, "provider_unreachable");
}

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

#[tokio::test]
async fn a_clients_own_request_id_reaches_the_provider() {
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
    request.headers = headers(&[("X-Client-Request-Id", "trace-7")]);
    town.ask(request, b"{}").await.unwrap();
    let (head, _) = heads.recv().await.unwrap();
    let ids = lines(&head);
    let ids = ids
        .iter()
        .filter(|line| line.starts_with("x-client-request-id"));
    assert_eq!(ids.collect::<Vec<_>>(), ["x-client-request-id: trace-7"]);
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

#[tokio::test]
async fn what_an_answer_tells_of_is_its_credentials_too() {
    let address = provider(|_, mut caller: Caller| async move {
        while caller.request().await.is_some() {
            let batch = r#"{"id":"batch_1","output_file_id":"file-out","error_file_id":"file-err","metadata":{"output_file_id":"file-no"}}"#;
            caller.answer(200, JSON, batch).await;
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    for (path, operation) in [
        ("/files/batch_1", "files.retrieve"),
        ("/batches/batch_1", "batches.retrieve"),
    ] {
        let mut request = chat(0);
        request.method = "GET".into();
        (request.path, request.operation) = (path.into(), operation.into());
        let answered = town.ask(request, b"").await.unwrap();
        assert_eq!(answered.trailers.object, "", "nothing was made");
    }
    let objects = town.told.objects.lock();
    let told: Vec<_> = objects
        .iter()
        .map(|object| {
            let of = (object.account.as_str(), object.credential.as_str());
            (object.id.as_str(), of, object.told)
        })
        .collect();
    let of = ("initech", "one");
    assert_eq!(told, [("file-out", of, true), ("file-err", of, true)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_was_consumed_is_recorded_before_the_answers_end_leaves() {
    for events in [false, true] {
        let address = provider(move |_, mut caller: Caller| async move {
            while caller.request().await.is_some() {
                if events {
                    caller
                        .answer(200, EVENTS, "data: {}\n\ndata: [DONE]\n\n")
                        .await;
                } else {
                    caller.answer(200, JSON, COMPLETION).await;
                }
            }
        })
        .await;
        let town = Town::new(&url(address), &["one"]).await;
        let (seen, end_seen) = std::sync::mpsc::channel();
        *town.told.slow.lock() = Some(end_seen);
        let answered = town.ask(chat(2), b"{}").await.unwrap();
        // Nobody waits for it when all is well.
        let _ = seen.send(());
        assert_eq!(answered.head.status, 200);
        assert_eq!(town.told.record().await.outcome, "whole");
        let late = town.told.late.load(Ordering::Relaxed);
        assert!(!late, "the client had the end before the record was kept");
    }
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
