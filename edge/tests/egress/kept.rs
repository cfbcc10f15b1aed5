//! Answers that outlive their clients: run to their end, given again from any byte, and executed once.

use vector_edge::tunnel::{Call, Failure, Part};

use super::*;

const ACCOUNT: &str = "initech";

/// A provider that counts calls, and sends the second half of a stream when told to.
async fn halting(
    calls: Arc<AtomicUsize>,
    go_on: Arc<Notify>,
    wait_for_head: bool,
) -> std::net::SocketAddr {
    provider(move |_, mut caller: Caller| {
        let (calls, go_on) = (Arc::clone(&calls), Arc::clone(&go_on));
        async move {
            if caller.request().await.is_some() {
                calls.fetch_add(1, Ordering::SeqCst);
                if wait_for_head {
                    go_on.notified().await;
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
                caller.say(head).await;
                caller.say("data: {\"choices\":[],\"n\":1}\n\n").await;
                if !wait_for_head {
                    go_on.notified().await;
                }
                let usage = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}"#;
                caller.say(&format!("data: {usage}\n\ndata: [DONE]\n\n")).await;
            }
        }
    })
    .await
}

fn keep() -> v1::Open {
    v1::Open {
        request: Some(chat(2)),
        keep: Some(v1::Keep { kept_ms: 3_600_000 }),
        ..v1::Open::default()
    }
}

fn replay(account: &str, exchange: ExchangeId, from: u64) -> v1::Open {
    v1::Open {
        replay: Some(v1::Replay {
            account: account.into(),
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            from,
            ..v1::Replay::default()
        }),
        ..v1::Open::default()
    }
}

async fn begin(town: &Town, exchange: ExchangeId, open: v1::Open) -> Call {
    let mut call = town.open(exchange, open).await;
    call.request.data(Bytes::from_static(b"{}")).await.unwrap();
    call.request.end().await.unwrap();
    call
}

async fn again(town: &Town, open: v1::Open) -> Call {
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.end().await.unwrap();
    call
}

#[tokio::test]
async fn a_kept_stream_goes_on_without_its_client_and_is_given_again_from_any_byte() {
    let (calls, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let address = halting(Arc::clone(&calls), Arc::clone(&go_on), false).await;
    let town = Town::new(&url(address), &["one"]).await;
    let exchange = ExchangeId::fresh();
    let mut first = begin(&town, exchange, keep()).await;
    first.response.head().await.unwrap();
    let Part::Data(seen) = first.response.next().await.unwrap() else {
        panic!("a part of the body")
    };
    drop(first);
    // Two follow it while it runs, one from where the client was cut off.
    let from = seen.len() as u64;
    let mut whole = again(&town, replay(ACCOUNT, exchange, 0)).await;
    let mut rest = again(&town, replay(ACCOUNT, exchange, from)).await;
    whole.response.accepted().await.unwrap();
    rest.response.accepted().await.unwrap();
    go_on.notify_one();
    let (whole, rest) = (
        read(&mut whole).await.unwrap(),
        read(&mut rest).await.unwrap(),
    );
    assert!(
        whole.text().ends_with("data: [DONE]\n\n"),
        "{}",
        whole.text()
    );
    assert_eq!([&seen[..], &rest.body].concat(), whole.body);
    assert_eq!(whole.head.replays, exchange.to_bytes()[..]);
    assert_eq!(whole.trailers.usage, None, "a replay consumes nothing");
    let record = town.told.record().await;
    assert_eq!(record.exchange, exchange.to_bytes()[..]);
    assert_eq!(
        (record.outcome.as_str(), record.usage.unwrap().output_tokens),
        ("whole", 7)
    );
    // And after its end.
    let later = read(&mut again(&town, replay(ACCOUNT, exchange, 3)).await)
        .await
        .unwrap();
    assert_eq!(later.body, whole.body[3..]);
    assert_eq!(later.header("content-type"), whole.header("content-type"));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_kept_answer_is_its_accounts_and_ends_where_it_ends() {
    let (calls, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let address = halting(Arc::clone(&calls), Arc::clone(&go_on), false).await;
    let town = Town::new(&url(address), &["one"]).await;
    let exchange = ExchangeId::fresh();
    let mut first = begin(&town, exchange, keep()).await;
    go_on.notify_one();
    let whole = read(&mut first).await.unwrap();
    assert!(whole.head.replays.is_empty());
    assert_eq!(whole.trailers.usage.unwrap().input_tokens, 5);
    let end = whole.body.len() as u64;
    let last = read(&mut again(&town, replay(ACCOUNT, exchange, end)).await).await;
    assert!(last.unwrap().body.is_empty());
    for (open, code) in [
        (replay("other", exchange, 0), "exchange_not_found"),
        (
            replay(ACCOUNT, ExchangeId::fresh(), 0),
            "exchange_not_found",
        ),
        (replay(ACCOUNT, exchange, end + 1), "offset_beyond_end"),
    ] {
        let refused = read(&mut again(&town, open).await).await.unwrap_err();
        assert_eq!((refused.code.as_str(), refused.retryable), (code, false));
    }
    // A late copy of the OPEN itself is no second execution.
    let copy = read(&mut begin(&town, exchange, keep()).await)
        .await
        .unwrap_err();
    assert_eq!(copy.code, "protocol_error");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_the_provider_refused_is_not_kept_and_may_run_again() {
    let address = provider(|_, mut caller: Caller| async move {
        while caller.request().await.is_some() {
            caller.answer(503, JSON, "{}").await;
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let exchange = ExchangeId::fresh();
    let refused = read(&mut begin(&town, exchange, keep()).await)
        .await
        .unwrap_err();
    assert_eq!(refused.provider_head.unwrap().status, 503);
    let gone = read(&mut again(&town, replay(ACCOUNT, exchange, 0)).await)
        .await
        .unwrap_err();
    assert_eq!(gone.code, "exchange_not_found");
    let second = v1::Open {
        attempt: 2,
        ..keep()
    };
    let refused = read(&mut begin(&town, exchange, second).await)
        .await
        .unwrap_err();
    assert_eq!(
        refused.provider_head.unwrap().status,
        503,
        "it was tried again"
    );
}

fn adopt(account: &str, exchange: ExchangeId, window_ms: u64) -> v1::Open {
    v1::Open {
        adopt: Some(v1::Adopt {
            account: account.into(),
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            print: vec![7; 32].into(),
            window_ms,
        }),
        ..v1::Open::default()
    }
}

fn by_print(account: &str) -> v1::Open {
    v1::Open {
        replay: Some(v1::Replay {
            account: account.into(),
            print: vec![7; 32].into(),
            ..v1::Replay::default()
        }),
        ..v1::Open::default()
    }
}

fn plain() -> v1::Open {
    v1::Open {
        keep: None,
        ..keep()
    }
}

/// An exchange that runs at the provider without its client, with whoever adopted it.
struct Adopted {
    calls: Arc<AtomicUsize>,
    /// Lets the provider go on.
    go_on: Arc<Notify>,
    town: Town,
    exchange: ExchangeId,
    call: Call,
}

async fn adopted() -> Adopted {
    let (calls, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let address = halting(Arc::clone(&calls), Arc::clone(&go_on), true).await;
    let town = Town::new(&url(address), &["one"]).await;
    let exchange = ExchangeId::fresh();
    let mut first = begin(&town, exchange, plain()).await;
    first.response.accepted().await.unwrap();
    let mut call = again(&town, adopt(ACCOUNT, exchange, 10_000)).await;
    call.response.accepted().await.unwrap();
    drop(first);
    Adopted {
        calls,
        go_on,
        town,
        exchange,
        call,
    }
}

#[tokio::test]
async fn an_exchange_whose_client_left_before_its_head_is_adopted_and_taken_up() {
    let Adopted {
        calls,
        go_on,
        town,
        exchange,
        mut call,
    } = adopted().await;
    let foreign = read(&mut again(&town, by_print("other")).await)
        .await
        .unwrap_err();
    assert_eq!(foreign.code, "exchange_not_found");
    let mut retry = again(&town, by_print(ACCOUNT)).await;
    retry.response.accepted().await.unwrap();
    go_on.notify_one();
    let answered = read(&mut retry).await.unwrap();
    assert!(answered.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(answered.head.replays, exchange.to_bytes()[..]);
    let recorded = town.told.record().await;
    assert_eq!(recorded.outcome, "whole");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let ended = read(&mut call).await.unwrap();
    assert_eq!(ended.trailers.usage, recorded.usage);
    assert!(answered.trailers.usage.is_none(), "it counts once");
}

#[tokio::test]
async fn who_has_an_exchange_adopted_hears_when_it_is_over() {
    let Adopted {
        go_on,
        town,
        mut call,
        ..
    } = adopted().await;
    let mut told = std::pin::pin!(read(&mut call));
    let early = futures_util::FutureExt::now_or_never(&mut told);
    assert!(early.is_none(), "it runs");
    go_on.notify_one();
    assert_eq!(town.told.record().await.outcome, "whole");
    assert!(told.await.is_ok());
}

#[tokio::test]
async fn an_adopted_exchange_that_nobody_takes_up_is_cancelled() {
    let (calls, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let address = halting(Arc::clone(&calls), Arc::clone(&go_on), true).await;
    let town = Town::new(&url(address), &["one"]).await;
    let exchange = ExchangeId::fresh();
    let mut first = begin(&town, exchange, plain()).await;
    first.response.accepted().await.unwrap();
    let mut adopted = again(&town, adopt(ACCOUNT, exchange, 1)).await;
    adopted.response.accepted().await.unwrap();
    drop(first);
    assert_eq!(town.told.record().await.outcome, "cancelled");
    let late = read(&mut again(&town, by_print(ACCOUNT)).await)
        .await
        .unwrap_err();
    assert_eq!(late.code, "exchange_not_found");
}

#[tokio::test]
async fn nobody_adopts_what_does_not_run_or_is_anothers() {
    let (calls, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let address = halting(Arc::clone(&calls), Arc::clone(&go_on), true).await;
    let town = Town::new(&url(address), &["one"]).await;
    let unknown = read(&mut again(&town, adopt(ACCOUNT, ExchangeId::fresh(), 10)).await).await;
    assert_eq!(unknown.unwrap_err().code, "exchange_not_found");
    let exchange = ExchangeId::fresh();
    let mut first = begin(&town, exchange, plain()).await;
    first.response.accepted().await.unwrap();
    let mut lie = again(&town, adopt("other", exchange, 10_000)).await;
    lie.response.accepted().await.unwrap();
    let mut stolen = again(&town, by_print("other")).await;
    stolen.response.accepted().await.unwrap();
    go_on.notify_one();
    let answered = read(&mut first).await.unwrap();
    assert!(
        answered.text().ends_with("data: [DONE]\n\n"),
        "its own client has it"
    );
    let Err(Failure::Refused(refused)) = stolen.response.head().await else {
        panic!("nothing of it is given")
    };
    assert_eq!(refused.code, "exchange_not_found");
}

#[tokio::test]
async fn an_egress_that_ends_waits_for_whoever_reads_a_kept_answer() {
    // More than the tunnel carries ahead of its reader.
    let body = "x".repeat(1 << 20);
    let length = body.len();
    let address = provider(move |_, mut caller: Caller| {
        let body = body.clone();
        async move {
            if caller.request().await.is_some() {
                caller.answer(200, "", &body).await;
            }
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let exchange = ExchangeId::fresh();
    read(&mut begin(&town, exchange, keep()).await)
        .await
        .unwrap();
    while town.egress.exchanges() > 0 {
        tokio::task::yield_now().await;
    }
    let mut late = again(&town, replay(ACCOUNT, exchange, 0)).await;
    late.response.accepted().await.unwrap();
    let drained = town.egress.drain(Duration::from_secs(20));
    tokio::pin!(drained);
    tokio::select! {
        biased;
        _ = &mut drained => panic!("somebody still reads"),
        () = tokio::task::yield_now() => {}
    }
    let (again, left) = tokio::join!(read(&mut late), drained);
    assert_eq!((again.unwrap().body.len(), left), (length, 0));
}
