//! Prompts over lines that lose packets: whole by repair symbols before what was lost is sent again.

use std::sync::Arc;

use bytes::Bytes;
use vector_edge::tunnel::{ArrivalHandler, Tunnel};
use vector_proto::{
    id::ExchangeId,
    tunnel::{VERSION, v1},
};
use vector_wan::{Detour, Way};

use crate::town::{Authority, Node, node, path, read, start, up, wanted};

fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 % 251) as u8).collect()
}

/// An egress that says whether the body is what it should be.
fn judge(authority: &Authority) -> Node {
    let handler: ArrivalHandler = Arc::new(|arrival| {
        Box::pin(async move {
            let (mut body, mut answer) = arrival.accept().await.unwrap();
            let mut all = Vec::new();
            while let Some(piece) = body.next().await.unwrap() {
                all.extend_from_slice(&piece);
            }
            answer.head(&v1::ResponseHead::default());
            let right = all == text(all.len());
            let verdict = format!("{} {right}", all.len());
            answer.data(verdict.into()).await.unwrap();
            answer.finish(&v1::Trailers::default()).await.unwrap();
        })
    });
    let me = v1::Hello {
        version: VERSION,
        node: "egress".into(),
        epoch: 1,
        roles: vec!["egress".into()],
        mends: true,
        ..v1::Hello::default()
    };
    let any = "127.0.0.1:0".parse().unwrap();
    start(any, me, &authority.node("egress", "egress"), Some(handler))
}

/// An egress, a line to it, and an ingress that knows no other.
async fn over(line: &str, seed: u64) -> (Node, Detour, Node) {
    let authority = Authority::new();
    let server = judge(&authority);
    let line = Detour::to(server.address, line, seed).unwrap();
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    client.network.keep(&[wanted("egress", line.address())]);
    up(&client.tunnel).await;
    measured(&client.tunnel).await;
    (server, line, client)
}

/// Waits for the round trip that heartbeats measure.
async fn measured(tunnel: &Tunnel) {
    while tunnel.link("egress").unwrap().vitals().cost_us().is_none() {
        tokio::task::yield_now().await;
    }
}

async fn send(tunnel: &Tunnel, length: usize, known: bool) -> Vec<u8> {
    let head = v1::RequestHead {
        body_bytes: known.then_some(length as u64),
        ..v1::RequestHead::default()
    };
    send_with(tunnel, length, head).await
}

/// Sends a body behind a head of so many bytes.
async fn send_after(tunnel: &Tunnel, length: usize, head_bytes: usize) -> Vec<u8> {
    let head = v1::RequestHead {
        headers: vec![b'h'; head_bytes].into(),
        ..v1::RequestHead::default()
    };
    send_with(tunnel, length, head).await
}

async fn send_with(tunnel: &Tunnel, length: usize, head: v1::RequestHead) -> Vec<u8> {
    let exchange = ExchangeId::fresh();
    let open = v1::Open {
        exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
        egress: "egress".into(),
        request: Some(head),
        ..v1::Open::default()
    };
    let call = tunnel.open(&path(), exchange, &open).await.unwrap();
    let (mut request, mut response) = (call.request, call.response);
    let up = async {
        for piece in text(length).chunks(9_000) {
            request.data(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        request.end().await.unwrap();
    };
    let down = read(&mut response);
    tokio::join!(up, down).1
}

#[tokio::test]
async fn prompts_are_mended_on_a_line_that_loses_reorders_and_doubles() {
    let (server, line, client) = over("rtt_ms=60", 5).await;
    for rough in ["loss=3%", "loss=2% reorder=20% reorder_ms=2 duplicate=10%"] {
        line.set(Way::Both, rough).unwrap();
        let before = server.tunnel.tally().mended.get();
        let mut prompts = 0;
        while server.tunnel.tally().mended.get() < before + 5 {
            prompts += 1;
            assert!(prompts < 200, "nothing is mended");
            let length = 1_000 + prompts * 3_001 % 250_000;
            let verdict = send(&client.tunnel, length, true).await;
            assert_eq!(verdict, format!("{length} true").into_bytes());
        }
    }
    assert!(client.tunnel.tally().repairs_sent.get() > 0);
    // What is too large to be mended, and does not say so, comes whole as well.
    let verdict = send(&client.tunnel, 1_500_000, false).await;
    assert_eq!(verdict, b"1500000 true");
}

/// Heads of several packets, of which the first is lost and the next come twice: what is read in order before the rest is
/// taken as it comes ends in the middle of what comes again.
#[tokio::test]
async fn a_long_head_that_comes_in_pieces_and_twice_moves_no_byte() {
    let (server, line, client) = over("rtt_ms=40", 9).await;
    let rough = "loss=15% reorder=40% reorder_ms=8 duplicate=20%";
    line.set(Way::There, rough).unwrap();
    line.set(Way::Back, "loss=30%").unwrap();
    for at in 0..60 {
        let length = 20_000 + at * 997;
        let verdict = send_after(&client.tunnel, length, 3_000 + at * 211).await;
        assert_eq!(verdict, format!("{length} true").into_bytes());
    }
    assert!(server.tunnel.tally().mended.get() > 0);
}

#[tokio::test]
async fn nothing_is_sent_for_nothing() {
    let (_server, line, client) = over("rtt_ms=4", 1).await;
    assert_eq!(send(&client.tunnel, 100_000, true).await, b"100000 true");
    let sent = || client.tunnel.tally().repairs_sent.get();
    assert_eq!(sent(), 0, "a round trip more is no matter there");
    line.set(Way::Both, "rtt_ms=60").unwrap();
    let rtt_us = || client.tunnel.link("egress").unwrap().vitals().cost_us();
    while rtt_us().is_none_or(|(rtt_us, _)| rtt_us < 20_000) {
        assert_eq!(send(&client.tunnel, 100, true).await, b"100 true");
    }
    assert_eq!(sent(), 0, "one packet is lost whole, or not at all");
    assert_eq!(send(&client.tunnel, 700_000, true).await, b"700000 true");
    assert_eq!(sent(), 0, "too large");
    assert_eq!(send(&client.tunnel, 100_000, true).await, b"100000 true");
    assert!(sent() > 0);
}
