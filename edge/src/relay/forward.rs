//! Splices the streams of the two hops.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use vector_proto::{
    refusal::{Code, Refusal},
    tunnel::{
        codec::{self, Entry, GoneReason, Kind},
        v1,
    },
};

use super::passage::Passage;
use crate::tunnel::{
    Link,
    inbound::{Preamble, Transit},
    transport::{Error, Receiver, Sender},
};

/// How long words about an exchange still pass after its streams have ended: the last
/// acknowledgement, which lets the egress forget it, comes behind them.
const LINGER: Duration = Duration::from_secs(2);

/// Carries the exchange on over `next` until both directions have ended or one hop is gone.
///
/// What a stream buffers is bounded by QUIC's stream window on each hop.
pub(super) async fn forward(mut transit: Transit, next: &Arc<Link>, mut passage: Passage) {
    let exchange = transit.exchange;
    passage.leaves(&next.peer, &mut transit.preamble);
    let Ok((mut onward, mut back)) = next.open_stream().await else {
        let refusal = Refusal::new(Code::NoPath, "the relay's next hop is down");
        return refuse(transit, &refusal, passage).await;
    };
    let of = (exchange, transit.preamble.attempt());
    let passing = Link::splice(&transit.link, next, of);
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
    let [on, returned] = &passage.bytes;
    let up = async move {
        let bytes: usize = first.iter().map(Bytes::len).sum();
        onward.write(&mut first).await?;
        on.fetch_add(bytes as u64, Ordering::Relaxed);
        pump(&mut receive, &mut onward, on).await
    };
    let down = async move { pump(&mut back, &mut send, returned).await };
    let (up, down) = tokio::join!(up, down);
    passage.ended(up, down);
    drop(passage);
    tokio::time::sleep(LINGER).await;
    drop(passing);
}

async fn pump(from: &mut Receiver, to: &mut Sender, passed: &AtomicU64) -> Result<(), Error> {
    let read = loop {
        let bytes = match from.read().await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let length = bytes.len() as u64;
        to.write(&mut [bytes] as &mut [Bytes; 1]).await?;
        passed.fetch_add(length, Ordering::Relaxed);
    };
    to.finish();
    read
}

/// Tells who sent it that the exchange goes no further here. Nothing of it left this node.
pub(super) async fn refuse(mut transit: Transit, refusal: &Refusal, mut passage: Passage) {
    passage.refused(refusal.code.verdict().code);
    drop(passage);
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
