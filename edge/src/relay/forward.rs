//! Splices the streams of the two hops.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use vector_proto::{
    refusal::{Code, Refusal},
    tunnel::{
        codec::{self, Kind},
        v1,
    },
};

use crate::tunnel::{
    Link,
    accept::Transit,
    transport::{Receiver, Sender},
};

/// How long words about an exchange still pass after its streams have ended: the last
/// acknowledgement, which lets the egress forget it, comes behind them.
const LINGER: Duration = Duration::from_secs(2);

/// Carries the exchange on over `next` until both directions have ended or one hop is gone.
///
/// What a stream buffers is bounded by QUIC's stream window on each hop.
pub(super) async fn forward(mut transit: Transit, next: &Arc<Link>) {
    let exchange = transit.exchange;
    let Ok((mut onward, mut back)) = next.open_stream().await else {
        let refusal = Refusal::new(Code::NoPath, "the relay's next hop is down");
        return refuse(transit, &refusal).await;
    };
    let passing = Link::splice(&transit.link, next, exchange);
    let preamble = codec::message(Kind::Open, &transit.open);
    let first = [preamble, std::mem::take(&mut transit.rest)];
    let up = async {
        let mut first = first;
        if onward.write(&mut first).await.is_ok() {
            pump(&mut transit.receive, &mut onward).await;
        }
    };
    let down = async { pump(&mut back, &mut transit.send).await };
    // The answer decides: when it has passed, or cannot, an upload that still runs is of no use.
    tokio::select! {
        () = down => {}
        () = async { up.await; std::future::pending::<()>().await } => {}
    }
    tokio::time::sleep(LINGER).await;
    drop(passing);
}

async fn pump(from: &mut Receiver, to: &mut Sender) {
    while let Ok(Some(bytes)) = from.read().await {
        if to.write(&mut [bytes] as &mut [Bytes; 1]).await.is_err() {
            return;
        }
    }
    to.finish();
}

/// Tells the ingress that the exchange goes no further. Nothing of it left this node.
pub(super) async fn refuse(mut transit: Transit, refusal: &Refusal) {
    let refused = v1::Refused {
        code: refusal.code.to_string(),
        message: refusal.message.clone(),
        retryable: true,
        untouched: true,
        ..v1::Refused::default()
    };
    // If it cannot be said, the ingress is gone.
    let _ = transit
        .send
        .write(&mut [codec::message(Kind::Refused, &refused)])
        .await;
    transit.send.finish();
}
