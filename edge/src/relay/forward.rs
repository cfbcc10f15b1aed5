//! Splices the streams of the two hops.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use vector_proto::{
    refusal::{Code, Refusal},
    tunnel::{
        codec::{self, Entry, GoneReason, Kind},
        v1,
    },
};

use crate::tunnel::{
    Link,
    inbound::{Preamble, Transit},
    transport::{Receiver, Sender},
};

/// How long words about an exchange still pass after its streams have ended: the last
/// acknowledgement, which lets the egress forget it, comes behind them.
const LINGER: Duration = Duration::from_secs(2);

/// Carries the exchange on over `next` until both directions have ended or one hop is gone.
///
/// What a stream buffers is bounded by QUIC's stream window on each hop.
pub(super) async fn forward(transit: Transit, next: &Arc<Link>) {
    let exchange = transit.exchange;
    let Ok((mut onward, mut back)) = next.open_stream().await else {
        let refusal = Refusal::new(Code::NoPath, "the relay's next hop is down");
        return refuse(transit, &refusal).await;
    };
    let passing = Link::splice(&transit.link, next, exchange);
    let preamble = match &transit.preamble {
        Preamble::Open(open) => codec::message(Kind::Open, &**open),
        Preamble::Attach(attach) => codec::message(Kind::Attach, attach),
    };
    let Transit {
        mut send,
        mut receive,
        rest,
        ..
    } = transit;
    let mut first = [preamble, rest];
    // Each direction ends by itself: an exchange that goes on elsewhere may have left only one of them here.
    let up = async move {
        if onward.write(&mut first).await.is_ok() {
            pump(&mut receive, &mut onward).await;
        }
    };
    let down = async move { pump(&mut back, &mut send).await };
    tokio::join!(up, down);
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

/// Tells who sent it that the exchange goes no further here. Nothing of it left this node.
pub(super) async fn refuse(mut transit: Transit, refusal: &Refusal) {
    if let Preamble::Attach(_) = transit.preamble {
        // It runs: another way is to be found for it.
        return transit.link.say(Entry::Gone {
            exchange: transit.exchange,
            reason: GoneReason::HopDown as u64,
        });
    }
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
