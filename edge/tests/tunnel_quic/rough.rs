//! A relay behind a line that drops half of all packets and has others overtake each other.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use vector_edge::tunnel::{ArrivalHandler, Path};
use vector_proto::{
    id::ExchangeId,
    tunnel::{VERSION, v1},
};
use vector_wan::{Detour, Way};

use crate::town::{Authority, Node, node, read, start, wanted};

/// Pieces of an answer and of a request's body, 5 ms apart.
const PIECES: usize = 100;

/// An egress that gives the body back.
fn echoing() -> ArrivalHandler {
    Arc::new(|arrival| {
        Box::pin(async move {
            let (mut body, mut answer) = arrival.accept().await.unwrap();
            answer.head(&v1::ResponseHead::default());
            while let Some(piece) = body.next().await.unwrap() {
                answer.data(piece).await.unwrap();
                answer.flush().await.unwrap();
            }
            answer.finish(&v1::Trailers::default()).await.unwrap();
        })
    })
}

fn relay(authority: &Authority) -> Node {
    let me = v1::Hello {
        version: VERSION,
        node: "relay".into(),
        epoch: 1,
        roles: vec!["relay".into()],
        ..v1::Hello::default()
    };
    let any = "127.0.0.1:0".parse().unwrap();
    start(any, me, &authority.node("relay", "relay"), None)
}

#[tokio::test]
async fn an_exchange_stays_whole_when_its_relay_drops_half_and_reorders_the_rest() {
    let authority = Authority::new();
    let server = node(
        &authority.node("egress", "egress"),
        "egress",
        Some(echoing()),
    );
    let mut relay = relay(&authority);
    relay.network.keep(&[wanted("egress", server.address)]);
    let line = Detour::to(relay.address, "rtt_ms=4", 1).unwrap();
    let long = Detour::to(server.address, "rtt_ms=20", 2).unwrap();
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    client.network.keep(&[
        wanted("relay", line.address()),
        wanted("egress", long.address()),
    ]);
    let relays = [("egress".into(), vec!["relay".into()])];
    client.tunnel.know_relays(relays.into_iter().collect());
    while client.tunnel.status().len() < 2 || relay.tunnel.status().is_empty() {
        tokio::task::yield_now().await;
    }
    let path = Path {
        egress: "egress".into(),
        relay: Some("relay".into()),
    };
    let exchange = ExchangeId::fresh();
    let open = v1::Open {
        exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
        egress: "egress".into(),
        ..v1::Open::default()
    };
    let call = client.tunnel.open(&path, exchange, &open).await.unwrap();
    let (mut request, mut response) = (call.request, call.response);
    let piece = |at: usize| Bytes::from(format!("{at} "));
    let up = async {
        for at in 0..PIECES {
            request.data(piece(at)).await.unwrap();
            request.flush().await.unwrap();
            if at == PIECES / 4 {
                let rough = "loss=50% reorder=50% reorder_ms=10 duplicate=10%";
                line.set(Way::Both, rough).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        request.end().await.unwrap();
    };
    let down = read(&mut response);
    let ((), text) = tokio::join!(up, down);
    let whole: Vec<u8> = (0..PIECES).flat_map(piece).collect();
    assert_eq!(text, whole);
    let lost: u64 = line.counters().iter().map(|way| way.lost).sum();
    assert!(lost > 0, "the line was not rough");
}
