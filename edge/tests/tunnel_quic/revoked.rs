//! A node is removed while it holds links: they end at once, it does not come back by itself, others notice nothing.

use std::sync::Arc;

use tokio::sync::mpsc;
use vector_edge::tunnel::{ArrivalHandler, Failure, Tunnel};
use vector_proto::{id::ExchangeId, tunnel::v1};

use super::{
    pulse::beating,
    town::{Authority, Node, ask, egress_at, node, node_at, path, up, wanted},
};

/// Lets everything run until it holds.
async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_ingress_that_is_removed_loses_its_links_and_the_others_keep_theirs() {
    let authority = Authority::new();
    let credentials = authority.node("egress", "egress");
    let (server, _arrivals) = egress_at("127.0.0.1:0".parse().unwrap(), 1, &credentials);
    let links: [Node; 2] = ["bad", "good"].map(|id| node(&authority.node(id, "ingress"), id, None));
    let [mut bad, mut good] = links;
    for client in [&mut bad, &mut good] {
        client.network.keep(&[wanted("egress", server.address)]);
        // With its probe, which would meet the removal, too.
        beating(&client.tunnel).await;
    }
    until(|| server.network.accepted_links() == 2).await;

    credentials.removed.set(&["bad"]);
    assert_eq!(server.network.revoke(["bad", "unknown"].into_iter()), 1);
    until(|| bad.tunnel.path_state(&path()).is_none()).await;
    until(|| server.network.accepted_links() == 1).await;
    // It has asked once more by itself, was told why not, and rests until there is news.
    until(|| credentials.removed.met() == 2).await;
    for _ in 0..200 {
        assert_eq!(ask(&good.tunnel).await, b"hello");
    }
    assert_eq!(
        (server.network.accepted_links(), credentials.removed.met()),
        (1, 2)
    );
    bad.network.keep(&[wanted("egress", server.address)]);
    until(|| credentials.removed.met() == 3).await;
    assert!(bad.tunnel.path_state(&path()).is_none());

    // There again: the next news leads back.
    credentials.removed.set(&[]);
    bad.network.keep(&[wanted("egress", server.address)]);
    up(&bad.tunnel).await;
    assert_eq!(ask(&bad.tunnel).await, b"hello");
}

#[tokio::test]
async fn what_runs_on_an_egress_that_is_removed_ends_at_once_on_both_sides() {
    let authority = Authority::new();
    let (stopped, mut stops) = mpsc::channel(1);
    let (arrived, mut arrivals) = mpsc::channel(1);
    let handler: ArrivalHandler = Arc::new(move |arrival| {
        let (arrived, stopped) = (arrived.clone(), stopped.clone());
        Box::pin(async move {
            let (_body, answer) = arrival.accept().await.unwrap();
            arrived.send(()).await.unwrap();
            answer.canceller().cancelled().await;
            stopped.send(()).await.unwrap();
        })
    });
    let theirs = authority.node("egress", "egress");
    let any = "127.0.0.1:0".parse().unwrap();
    let server = node_at(any, 1, &theirs, "egress", Some(handler));
    let credentials = authority.node("ingress", "ingress");
    let mut client = node(&credentials, "ingress", None);
    client.network.keep(&[wanted("egress", server.address)]);
    up(&client.tunnel).await;
    let mut call = open(&client.tunnel).await;
    arrivals.recv().await.unwrap();

    credentials.removed.set(&["egress"]);
    assert_eq!(client.network.revoke(std::iter::once("egress")), 1);
    let lost = call.response.head().await.unwrap_err();
    assert!(matches!(lost, Failure::Lost(_)), "{lost}");
    until(|| client.tunnel.path_state(&path()).is_none()).await;
    // The keeper has looked once more, and dials on news only.
    until(|| credentials.removed.met() == 2).await;
    until(|| server.network.accepted_links() == 0).await;

    // The egress hears of the ingress's removal, and lets its exchange go.
    credentials.removed.set(&[]);
    client.network.keep(&[wanted("egress", server.address)]);
    up(&client.tunnel).await;
    let _running = open(&client.tunnel).await;
    arrivals.recv().await.unwrap();
    theirs.removed.set(&["ingress"]);
    assert_eq!(server.network.revoke(std::iter::once("ingress")), 1);
    stops.recv().await.unwrap();
}

#[tokio::test]
async fn a_node_that_is_out_itself_ends_everything() {
    let authority = Authority::new();
    let credentials = authority.node("egress", "egress");
    let (mut server, _arrivals) = egress_at("127.0.0.1:0".parse().unwrap(), 1, &credentials);
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    client.network.keep(&[wanted("egress", server.address)]);
    up(&client.tunnel).await;
    server.network.leave();
    until(|| client.tunnel.path_state(&path()).is_none()).await;
    until(|| server.network.accepted_links() == 0).await;
}

#[tokio::test]
async fn who_is_dialled_must_be_one_that_is_called() {
    let authority = Authority::new();
    let imposter = node(&authority.node("egress", "ingress"), "egress", None);
    let credentials = authority.node("ingress", "ingress");
    let mut client = node(&credentials, "ingress", None);
    // Watched for, not refused: every dial asks who answers.
    credentials.removed.set(&["nobody"]);
    client.network.keep(&[wanted("egress", imposter.address)]);
    let (good, _arrivals) = super::town::egress(&authority);
    let mut other = node(&authority.node("other", "ingress"), "other", None);
    other.network.keep(&[wanted("egress", good.address)]);
    up(&other.tunnel).await;
    for _ in 0..50 {
        assert_eq!(ask(&other.tunnel).await, b"hello");
    }
    assert!(client.tunnel.path_state(&path()).is_none());
    assert_eq!(imposter.network.accepted_links(), 0);
}

async fn open(tunnel: &Tunnel) -> vector_edge::tunnel::Call {
    let exchange = ExchangeId::fresh();
    let open = v1::Open {
        exchange: exchange.to_bytes().to_vec().into(),
        egress: "egress".into(),
        ..v1::Open::default()
    };
    let mut call = tunnel.open(&path(), exchange, &open).await.unwrap();
    call.request.end().await.unwrap();
    call
}
