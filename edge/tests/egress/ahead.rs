//! Bodies that come ahead of what is asked.

use std::task::Poll;

use vector_edge::tunnel::{Ahead, Failure, Path};

use super::*;

const EGRESS: &str = "egress";

/// What would have been said with the body.
fn asked(exchange: ExchangeId, request: v1::RequestHead) -> v1::Open {
    v1::Open {
        exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
        egress: EGRESS.into(),
        attempt: 1,
        request: Some(request),
        ..v1::Open::default()
    }
}

impl Town {
    /// Sends a body ahead.
    async fn ahead(&self, exchange: ExchangeId, body: &[u8]) -> Ahead {
        let open = v1::Open {
            request: None,
            ..asked(exchange, v1::RequestHead::default())
        };
        let path = Path::direct(EGRESS.into());
        let mut ahead = self.tunnel.go_ahead(&path, exchange, open).await.unwrap();
        ahead.push(&Bytes::copy_from_slice(body));
        drive(&mut ahead).await;
        ahead
    }

    /// A peer that does with its exchange what it likes.
    async fn lies(&self, exchange: ExchangeId) -> vector_edge::tunnel::Call {
        let open = v1::Open {
            ahead: true,
            ..v1::Open::default()
        };
        self.open(exchange, open).await
    }

    async fn alone(&self) {
        while self.egress.exchanges() > 0 {
            tokio::task::yield_now().await;
        }
    }

    async fn has(&self, exchanges: usize) {
        while self.egress.exchanges() != exchanges {
            tokio::task::yield_now().await;
        }
    }
}

async fn drive(ahead: &mut Ahead) {
    std::future::poll_fn(|cx| {
        ahead.poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// A provider that answers everything, counts what it is asked and gives its bodies.
async fn counting() -> (
    std::net::SocketAddr,
    Arc<AtomicUsize>,
    mpsc::Receiver<Vec<u8>>,
) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (came, bodies) = mpsc::channel(8);
    let counted = Arc::clone(&asked);
    let address = provider(move |_, mut caller| {
        let (counted, came) = (Arc::clone(&counted), came.clone());
        async move {
            while let Some((_, body)) = caller.request().await {
                counted.fetch_add(1, Ordering::SeqCst);
                came.send(body).await.unwrap();
                caller.answer(200, JSON, COMPLETION).await;
            }
        }
    });
    (address.await, asked, bodies)
}

#[tokio::test]
async fn a_body_waits_for_its_head_and_reaches_the_provider_as_it_came() {
    let (address, calls, mut bodies) = counting().await;
    let town = Town::new(&url(address), &["a"]).await;
    for (done, (ahead, length)) in [
        (1, 1),
        (9_000, 20_000),
        (200_000, 300_000),
        (300_000, 300_000),
    ]
    .into_iter()
    .enumerate()
    {
        let body: Vec<u8> = (0..length).map(|at: usize| (at % 251) as u8).collect();
        let exchange = ExchangeId::fresh();
        let going = town.ahead(exchange, &body[..ahead]).await;
        town.has(1).await;
        assert_eq!(calls.load(Ordering::SeqCst), done, "asked for nothing");
        let open = v1::Open {
            keep: (length == 20_000).then_some(v1::Keep { kept_ms: 1_000 }),
            ..asked(exchange, chat(length))
        };
        let mut call = going.begin(&open).unwrap();
        call.request.data(body.clone().into()).await.unwrap();
        call.request.end().await.unwrap();
        let answered = read(&mut call).await.unwrap();
        assert_eq!(answered.text(), COMPLETION);
        assert!(bodies.recv().await.unwrap() == body, "{ahead} of {length}");
        let record = town.told.record().await;
        assert_eq!(record.exchange, exchange.to_bytes().to_vec());
        assert_eq!(record.request_bytes, length as u64);
        town.alone().await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn what_is_never_asked_for_is_executed_recorded_and_remembered_by_nobody() {
    let (address, calls, mut bodies) = counting().await;
    let town = Town::new(&url(address), &["a"]).await;
    let exchange = ExchangeId::fresh();
    drop(town.ahead(exchange, &[1; 100_000]).await);
    town.alone().await;
    // The next attempt runs, even with its predecessor there.
    let going = town.ahead(exchange, b"never asked for").await;
    town.has(1).await;
    let open = v1::Open {
        attempt: 2,
        ..asked(exchange, chat(9))
    };
    let mut call = town.open(exchange, open).await;
    call.request.data("asked for".into()).await.unwrap();
    call.request.end().await.unwrap();
    assert_eq!(read(&mut call).await.unwrap().text(), COMPLETION);
    drop(going);
    assert_eq!(bodies.recv().await.unwrap(), b"asked for");
    town.told.record().await;
    town.alone().await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(town.told.records.lock().is_empty());
}

#[tokio::test]
async fn a_refusal_of_what_is_asked_late_is_that_of_any_other() {
    let (address, calls, _bodies) = counting().await;
    let town = Town::new(&url(address), &["a"]).await;
    let unknown = v1::RequestHead {
        provider: "nobody".into(),
        ..chat(3)
    };
    let exchange = ExchangeId::fresh();
    let going = town.ahead(exchange, b"abc").await;
    let mut call = going.begin(&asked(exchange, unknown)).unwrap();
    call.request.end().await.unwrap();
    let refused = read(&mut call).await.unwrap_err();
    assert_eq!(refused.code, "no_route");
    assert!(refused.untouched && refused.retryable && !refused.headless);
    // A node that is going down waits for no heads.
    let exchange = ExchangeId::fresh();
    let going = town.ahead(exchange, b"abc").await;
    town.has(1).await;
    let mut call = going.begin(&asked(exchange, chat(3))).unwrap();
    let (left, refused) = tokio::join!(town.egress.drain(Duration::from_secs(30)), async {
        read(&mut call).await.unwrap_err()
    });
    assert_eq!(left, 0);
    assert_eq!(refused.code, "draining");
    assert!(refused.untouched && refused.retryable && refused.headless);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    assert!(town.told.records.lock().is_empty());
}

#[tokio::test]
async fn a_head_that_is_of_something_else_is_refused() {
    let (address, calls, _bodies) = counting().await;
    let town = Town::new(&url(address), &["a"]).await;
    let good = asked(ExchangeId::fresh(), chat(3));
    let changes: [fn(&mut v1::Open); 7] = [
        |open| open.exchange = Bytes::copy_from_slice(&ExchangeId::fresh().to_bytes()),
        |open| open.attempt = 2,
        |open| open.egress = "other".into(),
        |open| open.ahead = true,
        |open| open.replay = Some(v1::Replay::default()),
        |open| open.adopt = Some(v1::Adopt::default()),
        |open| open.request = None,
    ];
    for change in changes {
        let exchange = ExchangeId::fresh();
        let going = town.ahead(exchange, b"abc").await;
        let mut open = v1::Open {
            exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
            ..good.clone()
        };
        change(&mut open);
        let mut call = going.begin(&open).unwrap();
        call.request.end().await.unwrap();
        let refused = read(&mut call).await.unwrap_err();
        assert_eq!(refused.code, "protocol_error", "{open:?}");
    }
    // A head and a request at once.
    let exchange = ExchangeId::fresh();
    let both = v1::Open {
        ahead: true,
        ..asked(exchange, chat(3))
    };
    let mut call = town.open(exchange, both).await;
    call.request.end().await.unwrap();
    assert_eq!(read(&mut call).await.unwrap_err().code, "protocol_error");
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    town.alone().await;
}

#[tokio::test]
async fn who_breaks_the_rules_is_refused_and_nobody_else() {
    let (address, calls, mut bodies) = counting().await;
    let town = Town::new(&url(address), &["a"]).await;
    let exchange = ExchangeId::fresh();
    let honest = town.ahead(exchange, b"abc").await;
    // No head.
    let mut call = town.lies(ExchangeId::fresh()).await;
    call.request.data("abc".into()).await.unwrap();
    call.request.end().await.unwrap();
    assert_eq!(read(&mut call).await.unwrap_err().code, "protocol_error");
    // More than may wait for one.
    let mut call = town.lies(ExchangeId::fresh()).await;
    for _ in 0..20 {
        // It is no longer listened to at some time.
        let _ = call.request.data(vec![1; 50_000].into()).await;
    }
    let sending = call.request.flush();
    let (_, head) = tokio::join!(sending, call.response.head());
    let Err(Failure::Refused(refused)) = head else {
        panic!("{head:?}")
    };
    assert_eq!(refused.code, "protocol_error");
    // Two heads.
    for length in [6, 100_000] {
        let exchange = ExchangeId::fresh();
        let mut call = town.lies(exchange).await;
        for _ in 0..2 {
            call.request.ask(&asked(exchange, chat(length)));
            call.request.data("abc".into()).await.unwrap();
        }
        call.request.flush().await.unwrap();
        let refused = read(&mut call).await.unwrap_err();
        assert_eq!(refused.code, "protocol_error", "{length}: {refused:?}");
    }
    assert!(bodies.try_recv().is_err() && calls.load(Ordering::SeqCst) == 0);
    // Nothing of that concerns anybody else.
    let mut call = honest.begin(&asked(exchange, chat(3))).unwrap();
    call.request.data("abc".into()).await.unwrap();
    call.request.end().await.unwrap();
    assert_eq!(read(&mut call).await.unwrap().text(), COMPLETION);
}
