//! Whole exchanges over the in-memory twin of a link.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use vector_proto::{
    id::ExchangeId,
    tunnel::{VERSION, v1},
};

use super::{
    accept::Acceptor,
    exchange::{INITIAL_CREDIT_BYTES, REQUEST_CREDIT_BYTES},
    link::Link,
    transport::{Connection, memory},
    *,
};
use crate::{relay::Relay, telemetry::Telemetry};

mod resume;

#[derive(Debug)]
struct NoCredentials;

impl Credentials for NoCredentials {
    fn client(&self) -> Arc<rustls::ClientConfig> {
        unreachable!("memory links have no TLS")
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        unreachable!("memory links have no TLS")
    }

    fn server_name(&self, node: &str) -> String {
        node.into()
    }

    fn peer(&self, _: &[CertificateDer<'_>]) -> Option<Peer> {
        None
    }
}

fn hello(node: &str) -> v1::Hello {
    hello_of(node, 7)
}

fn hello_of(node: &str, epoch: u64) -> v1::Hello {
    v1::Hello {
        version: VERSION,
        node: node.into(),
        epoch,
        roles: vec![node.into()],
        request_credit: if node == "egress" {
            REQUEST_CREDIT_BYTES
        } else {
            0
        },
        hears_hops: true,
        takes_ahead: node == "egress",
        ..v1::Hello::default()
    }
}

/// Links `from` to an acceptor by memory, adds the link to its tunnel and returns it.
async fn link(
    tunnel: &Tunnel,
    from: &str,
    to: &str,
    acceptor: &Arc<Acceptor>,
    tasks: &TaskTracker,
) -> Arc<Link> {
    link_as(tunnel, hello(from), to, acceptor, tasks).await
}

async fn link_as(
    tunnel: &Tunnel,
    me: v1::Hello,
    to: &str,
    acceptor: &Arc<Acceptor>,
    tasks: &TaskTracker,
) -> Arc<Link> {
    let (here, there) = memory::pair();
    let (dialled, adopted) = tokio::join!(
        Link::dialled(
            tunnel,
            Connection::Memory(here),
            &me,
            Peer::within(to.into()),
            "memory".into()
        ),
        acceptor.adopt(Connection::Memory(there), me.node.as_str().into()),
    );
    adopted.unwrap();
    let ready = dialled.unwrap();
    let link = Arc::clone(&ready.link);
    tunnel.add(&link);
    tasks.spawn(ready.serve());
    link
}

/// A node that gives up early, so that tests need not wait.
fn impatient() -> Tunnel {
    let tunnel = Tunnel::default();
    tunnel.set_patience(Patience {
        grace: Duration::from_millis(400),
        ..Patience::default()
    });
    tunnel
}

/// An egress named `egress`, whose arrivals come out of the queue.
fn egress(tasks: &TaskTracker) -> (Arc<Acceptor>, mpsc::Receiver<Arrival>) {
    egress_of(&impatient(), 7, tasks)
}

fn egress_of(
    tunnel: &Tunnel,
    epoch: u64,
    tasks: &TaskTracker,
) -> (Arc<Acceptor>, mpsc::Receiver<Arrival>) {
    let (arrived, arrivals) = mpsc::channel(64);
    let handler: ArrivalHandler = Arc::new(move |arrival| {
        let arrived = arrived.clone();
        Box::pin(async move { arrived.send(arrival).await.unwrap() })
    });
    let me = hello_of("egress", epoch);
    (
        Acceptor::new(
            tunnel.clone(),
            Arc::new(NoCredentials),
            me,
            Some(handler),
            None,
            tasks.clone(),
        ),
        arrivals,
    )
}

fn open() -> (ExchangeId, v1::Open) {
    let exchange = ExchangeId::fresh();
    let bytes = Bytes::copy_from_slice(&exchange.to_bytes());
    (
        exchange,
        v1::Open {
            exchange: bytes,
            egress: "egress".into(),
            ..v1::Open::default()
        },
    )
}

async fn direct() -> (Tunnel, Arc<Link>, mpsc::Receiver<Arrival>) {
    let tasks = TaskTracker::new();
    let (acceptor, arrivals) = egress(&tasks);
    let tunnel = Tunnel::default();
    let link = link(&tunnel, "ingress", "egress", &acceptor, &tasks).await;
    (tunnel, link, arrivals)
}

async fn over_relay() -> (Tunnel, Arc<Link>, mpsc::Receiver<Arrival>) {
    let tasks = TaskTracker::new();
    let (acceptor, arrivals) = egress(&tasks);
    let onward = Tunnel::default();
    link(&onward, "relay", "egress", &acceptor, &tasks).await;
    let handler = Relay::new(onward.clone(), Telemetry::silent()).handler();
    let relay = Acceptor::new(
        onward,
        Arc::new(NoCredentials),
        hello("relay"),
        None,
        Some(handler),
        tasks.clone(),
    );
    let tunnel = Tunnel::default();
    let link = link(&tunnel, "ingress", "relay", &relay, &tasks).await;
    (tunnel, link, arrivals)
}

fn direct_path() -> Path {
    Path::direct("egress".into())
}

fn relay_path() -> Path {
    Path {
        egress: "egress".into(),
        relay: Some("relay".into()),
    }
}

/// Echoes the request's body as the answer's.
async fn echo(arrival: Arrival) {
    let (mut body, mut answer) = arrival.accept().await.unwrap();
    answer.head(&v1::ResponseHead {
        status: 200,
        ..v1::ResponseHead::default()
    });
    while let Some(bytes) = body.next().await.unwrap() {
        answer.data(bytes).await.unwrap();
    }
    answer
        .finish(&v1::Trailers {
            object: "made".into(),
            ..v1::Trailers::default()
        })
        .await
        .unwrap();
}

/// Sends `total` bytes and reads them back; returns what the window held at the most.
async fn there_and_back(
    tunnel: &Tunnel,
    path: &Path,
    arrivals: &mut mpsc::Receiver<Arrival>,
    total: usize,
) {
    let (exchange, open) = open();
    let Call {
        mut request,
        mut response,
    } = tunnel.open(path, exchange, &open).await.unwrap();
    let sender = async move {
        let mut left = total;
        while left > 0 {
            let len = left.min(10_000);
            request
                .data(Bytes::from(vec![(left % 251) as u8; len]))
                .await
                .unwrap();
            left -= len;
        }
        request.end().await.unwrap();
    };
    let receiver = async {
        assert_eq!(response.head().await.unwrap().status, 200);
        let (mut got, mut trailers) = (0, None);
        loop {
            match response.next().await.unwrap() {
                Part::Data(bytes) => {
                    got += bytes.len();
                }
                Part::Trailers(measured) => trailers = Some(measured),
                Part::End => break,
            }
        }
        assert_eq!(got, total);
        assert_eq!(trailers.unwrap().object, "made");
        assert_eq!(response.next().await, Ok(Part::End), "the end stays");
    };
    let serving = async {
        let arrival = arrivals.recv().await.unwrap();
        assert_eq!(arrival.exchange, exchange);
        echo(arrival).await;
    };
    tokio::join!(sender, receiver, serving);
}

#[tokio::test]
async fn bodies_of_any_size_go_there_and_back() {
    let (tunnel, link, mut arrivals) = direct().await;
    for total in [0, 1, 15_000, 300_000, 9_000_000] {
        there_and_back(&tunnel, &direct_path(), &mut arrivals, total).await;
    }
    assert_eq!(link.outstanding(), 0);
}

#[tokio::test]
async fn an_egress_says_how_much_of_a_request_it_takes_unasked() {
    for ((tunnel, _, _arrivals), path, wanted) in [
        (direct().await, direct_path(), REQUEST_CREDIT_BYTES),
        // The relay answers for itself.
        (over_relay().await, relay_path(), INITIAL_CREDIT_BYTES),
    ] {
        let (exchange, open) = open();
        let _call = tunnel.open(&path, exchange, &open).await.unwrap();
        let end = tunnel.calls().get(exchange).unwrap();
        assert_eq!(end.sending.lock().outgoing.room(), wanted, "{path:?}");
    }
}

#[tokio::test]
async fn a_relay_passes_bodies_and_credit_on() {
    let (tunnel, _, mut arrivals) = over_relay().await;
    for total in [0, 1, 300_000, 3_000_000] {
        there_and_back(&tunnel, &relay_path(), &mut arrivals, total).await;
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_ingress_before_and_after_acceptance() {
    let (tunnel, _, mut arrivals) = direct().await;
    for accept_first in [false, true] {
        let (exchange, open) = open();
        let mut call = tunnel.open(&direct_path(), exchange, &open).await.unwrap();
        call.request.end().await.unwrap();
        let arrival = arrivals.recv().await.unwrap();
        let refused = v1::Refused {
            code: "no_credential".into(),
            retryable: true,
            ..v1::Refused::default()
        };
        if accept_first {
            arrival
                .accept()
                .await
                .unwrap()
                .1
                .refuse(refused.clone())
                .await;
        } else {
            arrival.refuse(refused.clone()).await;
        }
        assert_eq!(
            call.response.head().await,
            Err(Failure::Refused(Box::new(refused)))
        );
    }
}

async fn a_client_that_leaves_is_told(
    tunnel: Tunnel,
    path: Path,
    mut arrivals: mpsc::Receiver<Arrival>,
) {
    let (exchange, open) = open();
    let mut call = tunnel.open(&path, exchange, &open).await.unwrap();
    call.request.end().await.unwrap();
    let (_body, mut answer) = arrivals.recv().await.unwrap().accept().await.unwrap();
    call.response.accepted().await.unwrap();
    assert!(!answer.canceller().is_cancelled());
    drop(call);
    answer.canceller().cancelled().await;
    let lost = answer.data(Bytes::from(vec![0; 1 << 20])).await;
    assert_eq!(
        lost,
        Err(Lost {
            reason: LostReason::Cancelled,
            accepted: true
        })
    );
}

#[tokio::test]
async fn a_cancelled_exchange_stops_the_egress() {
    let (tunnel, _, arrivals) = direct().await;
    a_client_that_leaves_is_told(tunnel, direct_path(), arrivals).await;
}

#[tokio::test]
async fn a_cancellation_passes_a_relay() {
    let (tunnel, _, arrivals) = over_relay().await;
    a_client_that_leaves_is_told(tunnel, relay_path(), arrivals).await;
}

#[tokio::test]
async fn a_link_that_is_lost_for_good_ends_its_exchanges_on_both_sides() {
    let (tunnel, link, mut arrivals) = direct().await;
    let (exchange, open) = open();
    let mut call = tunnel.open(&direct_path(), exchange, &open).await.unwrap();
    call.request.flush().await.unwrap();
    let (_body, answer) = arrivals.recv().await.unwrap().accept().await.unwrap();
    call.response.accepted().await.unwrap();
    link.close("test");
    let lost = Failure::Lost(Lost {
        reason: LostReason::LinkDown,
        accepted: true,
    });
    assert_eq!(call.response.head().await, Err(lost));
    answer.canceller().cancelled().await;
    link.closed().await;
    assert_eq!(tunnel.path_state(&direct_path()), None);
}

#[tokio::test]
async fn an_answer_that_is_dropped_is_never_a_clean_end() {
    let (tunnel, _, mut arrivals) = direct().await;
    let (exchange, open) = open();
    let mut call = tunnel.open(&direct_path(), exchange, &open).await.unwrap();
    call.request.end().await.unwrap();
    let (_body, mut answer) = arrivals.recv().await.unwrap().accept().await.unwrap();
    answer.head(&v1::ResponseHead {
        status: 200,
        ..v1::ResponseHead::default()
    });
    answer.data(Bytes::from_static(b"half of")).await.unwrap();
    answer.flush().await.unwrap();
    drop(answer);
    call.response.head().await.unwrap();
    assert_eq!(
        call.response.next().await,
        Ok(Part::Data(Bytes::from_static(b"half of")))
    );
    assert_eq!(
        call.response.next().await,
        Err(Lost {
            reason: LostReason::Reset,
            accepted: true
        })
    );
}

#[tokio::test]
async fn a_draining_egress_gets_no_new_exchanges() {
    let tasks = TaskTracker::new();
    let (acceptor, _arrivals) = egress(&tasks);
    let tunnel = Tunnel::default();
    link(&tunnel, "ingress", "egress", &acceptor, &tasks).await;
    assert!(tunnel.path_state(&direct_path()).is_some());
    acceptor.drain(true);
    while tunnel.path_state(&direct_path()).is_some() {
        tokio::task::yield_now().await;
    }
    let (exchange, open) = open();
    assert!(matches!(
        tunnel.open(&direct_path(), exchange, &open).await,
        Err(OpenError::NoLink)
    ));
    acceptor.drain(false);
    while tunnel.path_state(&direct_path()).is_none() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_slow_reader_holds_the_sender_back() {
    let (tunnel, _, mut arrivals) = direct().await;
    let (exchange, open) = open();
    let mut call = tunnel.open(&direct_path(), exchange, &open).await.unwrap();
    call.request.end().await.unwrap();
    let (_body, mut answer) = arrivals.recv().await.unwrap().accept().await.unwrap();
    answer.head(&v1::ResponseHead::default());
    let flood = async {
        for sent in 0_u64.. {
            answer.data(Bytes::from(vec![0; 16 << 10])).await.unwrap();
            assert!(sent < 1000, "nothing holds the sender back");
        }
    };
    // The sender must come to a stop by itself while everything else runs on.
    let others = async {
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = flood => unreachable!("it stops or panics"),
        () = others => {}
    }
    call.response.head().await.unwrap();
    assert!(
        matches!(call.response.next().await, Ok(Part::Data(_))),
        "and goes on when it is read"
    );
}
