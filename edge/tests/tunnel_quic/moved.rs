//! A running exchange whose path falls silent goes on over another one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use vector_edge::tunnel::{ArrivalHandler, Part, Tunnel};
use vector_proto::{id::ExchangeId, tunnel::v1};
use vector_wan::{Detour, Way};

use crate::town::{Authority, node, path, wanted};

const TOKENS: usize = 60;

/// An egress that says numbers, one after the other.
fn counting() -> ArrivalHandler {
    Arc::new(|arrival| {
        Box::pin(async move {
            let (_body, mut answer) = arrival.accept().await.unwrap();
            answer.head(&v1::ResponseHead::default());
            for token in 0..TOKENS {
                answer.data(format!("{token} ").into()).await.unwrap();
                answer.flush().await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer.finish(&v1::Trailers::default()).await.unwrap();
        })
    })
}

async fn both_beat(tunnel: &Tunnel) {
    let heard = |status: &[_]| status.len() == 2;
    while !heard(&tunnel.status()) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_survives_a_path_that_falls_silent() {
    let authority = Authority::new();
    let credentials = authority.node("egress", "egress");
    let server = node(&credentials, "egress", Some(counting()));
    let lines = [1, 2].map(|seed| Detour::to(server.address, "rtt_ms=4", seed).unwrap());
    let mut client = node(&authority.node("ingress", "ingress"), "ingress", None);
    let all = lines
        .each_ref()
        .map(|line| wanted("egress", line.address()));
    client.network.keep(&all);
    both_beat(&client.tunnel).await;
    let exchange = ExchangeId::fresh();
    let open = v1::Open {
        exchange: Bytes::copy_from_slice(&exchange.to_bytes()),
        egress: "egress".into(),
        ..v1::Open::default()
    };
    let mut call = client.tunnel.open(&path(), exchange, &open).await.unwrap();
    call.request.end().await.unwrap();
    call.response.head().await.unwrap();
    // The idle link is the better one for a new exchange; the other one carries ours.
    let idle = client.tunnel.link("egress").unwrap();
    let busy = lines
        .iter()
        .find(|line| line.address().to_string() != *idle.address);
    let busy = busy.unwrap();
    let (mut text, mut parts) = (Vec::new(), 0);
    loop {
        match call.response.next().await.unwrap() {
            Part::Data(bytes) => text.extend_from_slice(&bytes),
            Part::Trailers(_) => {}
            Part::End => break,
        }
        parts += 1;
        if parts == 10 {
            busy.set(Way::Both, "blackhole=on").unwrap();
        }
    }
    let whole: String = (0..TOKENS).map(|token| format!("{token} ")).collect();
    assert_eq!(String::from_utf8(text).unwrap(), whole);
    let moved = |tunnel: &Tunnel| tunnel.tally().moved.get();
    assert!(moved(&client.tunnel) + moved(&server.tunnel) > 0);
}
