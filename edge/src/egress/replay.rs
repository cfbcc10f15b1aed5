//! Gives kept answers: to the client that caused them, and again to whoever of its account asks.
//!
//! A replay calls no provider and consumes nothing. It begins at any byte, and follows an answer that still runs. An ingress
//! whose client has left before the answer's head asks here for the exchange to be adopted, and hears when that is over.

use std::{sync::Arc, time::Duration, time::Instant};

use bytes::Bytes;
use vector_proto::{
    id::ExchangeId,
    refusal::Code,
    tunnel::{
        fields::{Block, Fields},
        v1,
    },
};

use super::{
    Room,
    kept::{End, Next, Place, Reading, Recording},
    receive::untouched,
};
use crate::tunnel::{Answer, Arrival};

/// From where, and for whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Copy {
    /// The client that caused the answer: it gets what it consumed, too.
    First,
    /// Somebody later, from this byte of the body.
    Again(u64),
}

/// Answers that are being given. An egress that ends waits for them, too.
#[derive(Clone, Debug, Default)]
pub struct Given(Arc<()>);

impl Given {
    /// Whether there is any.
    pub fn any(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// Serves an arrival that is no request.
pub async fn serve(room: Arc<Room>, mut arrival: Arrival) {
    if let Some(adopt) = arrival.open.adopt.take() {
        return adopted(&room, arrival, &adopt).await;
    }
    let asked = arrival.open.replay.take().unwrap_or_default();
    let Some(found) = room.kept.find(&asked).await else {
        return arrival.refuse(unknown()).await;
    };
    let Some(reading) = found.read() else {
        let message = "This answer is read by as many as may at once.";
        let refused = untouched(Code::ReplaysLimited, message, false);
        return arrival.refuse(refused).await;
    };
    tracing::info!(exchange = %reading.exchange, from = asked.from, "a kept answer is given again");
    if let Ok((_, answer)) = arrival.accept().await {
        let given = room.given.clone();
        give(reading, answer, Copy::Again(asked.from), given).await;
    }
}

/// Keeps a running exchange whose client has left.
async fn adopted(room: &Arc<Room>, arrival: Arrival, adopt: &v1::Adopt) {
    let (Ok(exchange), Ok(print)) = (
        ExchangeId::try_from(&adopt.exchange[..]),
        <[u8; 32]>::try_from(&adopt.print[..]),
    ) else {
        let refused = untouched(Code::Protocol, "This cannot be adopted.", false);
        return arrival.refuse(refused).await;
    };
    if !room.dedupe.runs(exchange) {
        return arrival.refuse(unknown()).await;
    }
    let now = Instant::now();
    let place: Place = match room.kept.adopt(exchange, &adopt.account, print, now) {
        Ok(place) => place,
        Err(full) => {
            let refused = untouched(Code::Overloaded, full.to_string(), false);
            return arrival.refuse(refused).await;
        }
    };
    let recording = Arc::clone(place.recording());
    let window = Duration::from_millis(adopt.window_ms);
    room.tasks.spawn(place.wait_for_readers(window));
    // If that cannot be said, the ingress cancels the exchange, which is kept all the same.
    let Ok((_, answer)) = arrival.accept().await else {
        return;
    };
    let gone = answer.canceller();
    tokio::select! {
        biased;
        () = gone.cancelled() => {}
        () = tell_its_end(&recording, answer) => {}
    }
}

/// Waits for the end of an adopted exchange, so that its ingress counts it until then, and knows what it consumed.
async fn tell_its_end(recording: &Recording, mut answer: Answer) {
    let usage = match recording.ended().await {
        End::Whole(trailers) => trailers.usage,
        End::Refused(_) | End::Lost => None,
    };
    answer.head(&v1::ResponseHead::default());
    let trailers = v1::Trailers {
        usage,
        ..v1::Trailers::default()
    };
    // If it cannot be said, the link is gone and the ingress knows.
    let _ = answer.finish(&trailers).await;
}

/// Passes a kept answer on to its end, or until nobody waits for it.
pub async fn give(reading: Reading, answer: Answer, copy: Copy, _given: Given) {
    let gone = answer.canceller();
    tokio::select! {
        biased;
        () = gone.cancelled() => {}
        () = tell(&reading, answer, copy) => {}
    }
}

async fn tell(reading: &Reading, mut answer: Answer, copy: Copy) {
    let mut head = match reading.head().await {
        Ok(head) => head,
        Err(End::Refused(refused)) => return answer.refuse(refused).await,
        Err(End::Whole(_) | End::Lost) => return answer.refuse(unknown()).await,
    };
    let mut at = 0;
    if let Copy::Again(from) = copy {
        let bytes = reading.bytes();
        if from > bytes {
            let message = format!("The answer has {bytes} bytes so far: there is no byte {from}.");
            let refused = untouched(Code::OffsetBeyond, message, false);
            return answer.refuse(refused).await;
        }
        head.replays = Bytes::copy_from_slice(&reading.exchange.to_bytes());
        shorten(&mut head, from);
        at = from;
    }
    answer.head(&head);
    loop {
        match reading.next(at).await {
            Ok(Next::Data(bytes)) => {
                at += bytes.len() as u64;
                if answer.data(bytes).await.is_err() || answer.flush().await.is_err() {
                    return;
                }
            }
            Ok(Next::End(End::Whole(mut trailers))) => {
                if copy != Copy::First {
                    // It was counted, and its object made known, the first time.
                    trailers.usage = None;
                    trailers.object = String::new();
                }
                // If it cannot be said, the link is gone and the ingress knows.
                let _ = answer.finish(&trailers).await;
                return;
            }
            // Dropped unfinished, the answer breaks off.
            Ok(Next::End(End::Refused(_) | End::Lost)) => return,
            Err(error) => {
                tracing::error!(exchange = %reading.exchange, %error, "a kept answer cannot be read");
                return;
            }
        }
    }
}

/// Takes what the client has already from the length that the head announces.
fn shorten(head: &mut v1::ResponseHead, from: u64) {
    if from == 0 {
        return;
    }
    let mut block = Block::with_capacity(head.headers.len());
    for (name, value) in Fields::of(&head.headers) {
        let Ok(name) = std::str::from_utf8(name) else {
            continue;
        };
        let length = std::str::from_utf8(&value).ok();
        match length.and_then(|text| text.parse::<u64>().ok()) {
            Some(length) if name == "content-length" => {
                let left = length.saturating_sub(from).to_string();
                block.push(name, left.as_bytes());
            }
            _ => block.push(name, &value),
        }
    }
    head.headers = block.finish();
}

fn unknown() -> v1::Refused {
    let message = "This egress keeps no such answer.";
    untouched(Code::ExchangeUnknown, message, false)
}
