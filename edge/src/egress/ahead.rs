//! Takes a body that comes ahead of what is asked, and keeps it until that is there.
//!
//! It has a seat and is accepted at once, as any exchange; with its head it goes their road (`receive`), and only refusals are
//! said in the sequence. Before that it is none: nothing is executed, recorded or counted, whatever becomes of it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OwnedSemaphorePermit;
use vector_proto::{id::ExchangeId, refusal::Code, tunnel::v1};

use super::{
    Room,
    receive::{self, Exchange, Seat, untouched},
};
use crate::tunnel::{Answer, Arrival, Lost, LostReason, RequestBody};

/// Bodies that wait for what is asked. 2,000 x 512 KiB = 1 GiB at the worst.
pub(super) const WAITING_MAX: usize = 2_000;

/// How long one waits. Longer than any ingress keeps a body going ahead.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// An accepted exchange, once it is asked for.
pub(super) struct Asked {
    pub(super) exchange: Box<Exchange>,
    pub(super) keep: Option<v1::Keep>,
    pub(super) body: RequestBody,
    pub(super) answer: Answer,
}

/// Accepts an exchange and waits for what is asked, or says why not.
pub(super) async fn receive(room: &Room, arrival: Arrival) -> Option<Asked> {
    let (place, waits) = match admit(room, &arrival) {
        Ok(admitted) => admitted,
        Err(refused) => {
            Box::pin(arrival.refuse(headless(*refused))).await;
            return None;
        }
    };
    let first = (arrival.exchange, arrival.open.clone());
    let (mut body, answer) = arrival.accept().await.ok()?;
    let entered = match asked(room, &mut body, first.1.deadline_ms).await {
        Ok(open) => enter(room, first, open, place),
        Err(Some(refused)) => Err(Box::new(headless(*refused))),
        // Nobody asks any more.
        Err(None) => return None,
    };
    drop(waits);
    match entered {
        Ok((exchange, keep)) => Some(Asked {
            exchange: Box::new(exchange),
            keep,
            body,
            answer,
        }),
        Err(refused) => {
            body.leave();
            Box::pin(answer.refuse(*refused)).await;
            None
        }
    }
}

/// What is said before anything was asked.
fn headless(refused: v1::Refused) -> v1::Refused {
    v1::Refused {
        headless: true,
        ..refused
    }
}

/// A seat, and a place among those that wait.
fn admit(room: &Room, arrival: &Arrival) -> Result<(Seat, OwnedSemaphorePermit), Box<v1::Refused>> {
    receive::stays(room)?;
    if arrival.open.request.is_some() {
        let message = "The exchange has its head and wants to go ahead of it.";
        return Err(Box::new(untouched(Code::Protocol, message, false)));
    }
    let place = receive::seat(room, &arrival.from)?;
    let waits = Arc::clone(&room.waits).try_acquire_owned();
    let full = "Too many bodies wait here for their heads.";
    let waits = waits.map_err(|_| Box::new(untouched(Code::Overloaded, full, true)))?;
    Ok((place, waits))
}

/// What is asked, once it is there; without a refusal if that will never be.
async fn asked(
    room: &Room,
    body: &mut RequestBody,
    deadline_ms: u64,
) -> Result<v1::Open, Option<Box<v1::Refused>>> {
    let time = match deadline_ms {
        0 => HEAD_TIME,
        ms => HEAD_TIME.min(Duration::from_millis(ms)),
    };
    let head = tokio::select! {
        biased;
        head = tokio::time::timeout(time, body.head()) => head,
        () = room.stop.cancelled() => {
            let message = "This egress is going down.";
            return Err(Some(Box::new(untouched(Code::Draining, message, true))));
        }
    };
    let (code, message) = match head {
        Ok(Ok(open)) => return Ok(open),
        Ok(Err(Lost {
            reason: LostReason::Protocol(error),
            ..
        })) => (Code::Protocol, error.to_string()),
        Ok(Err(_)) => return Err(None),
        Err(_) => {
            let ms = time.as_millis();
            let message = format!("What is asked did not follow its body within {ms} ms.");
            (Code::Deadline, message)
        }
    };
    let refused = untouched(code, message, code == Code::Deadline);
    Err(Some(Box::new(refused)))
}

/// Makes an exchange of it, as `receive` does of one that came with its head.
fn enter(
    room: &Room,
    (id, first): (ExchangeId, v1::Open),
    mut open: v1::Open,
    place: Seat,
) -> Result<(Exchange, Option<v1::Keep>), Box<v1::Refused>> {
    let same = open.exchange == first.exchange
        && open.egress == first.egress
        && open.attempt == first.attempt;
    if !same || open.ahead || open.replay.is_some() || open.adopt.is_some() {
        let message = "What is asked is not what its body went ahead for.";
        return Err(Box::new(untouched(Code::Protocol, message, false)));
    }
    receive::stays(room)?;
    let keep = open.keep.take();
    let exchange = receive::enter(room, (id, &mut open), place, Instant::now())?;
    Ok((exchange, keep))
}
