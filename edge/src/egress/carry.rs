//! One exchange at an egress, from its arrival to the end of its answer.
//!
//! Thousands of these wait for slow answers at once: what is over or rare while an answer streams is in boxes of its own,
//! since a future keeps room for its largest moment as long as it lives.

use std::{
    future::pending,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tracing::Instrument as _;
use vector_proto::{id::ExchangeId, refusal::Code, tunnel::v1};

use super::{
    Room,
    ahead::{self, Asked},
    answer::{self, Ending},
    attempt,
    kept::{self, Place},
    outlet::Outlet,
    provider::Upload,
    receive::{Exchange, receive, untouched},
    replay, translate,
    watch::Watch,
    websocket,
};
use crate::{
    config::Role,
    tunnel::{Answer, Arrival, Cancelled, Lost, LostReason, RequestBody},
};

/// What came of a request.
enum Outcome {
    Ended(Ending),
    Refused(String),
}

/// An exchange that was accepted.
struct Taken {
    exchange: Box<Exchange>,
    keep: Option<v1::Keep>,
    place: Option<Place>,
    body: RequestBody,
    answer: Answer,
}

/// Carries one exchange from its arrival to the end of its answer.
pub(super) fn serve(room: Arc<Room>, arrival: Arrival) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    if arrival.open.replay.is_some() || arrival.open.adopt.is_some() {
        return Box::pin(replay::serve(room, arrival));
    }
    if arrival.open.ahead {
        let taking = Box::pin(take_ahead(Arc::clone(&room), arrival));
        return Box::pin(serve_taken(room, taking));
    }
    let taking = Box::pin(take(Arc::clone(&room), arrival));
    Box::pin(serve_taken(room, taking))
}

/// What takes the exchange is gone while its answer streams.
async fn serve_taken(room: Arc<Room>, taking: Pin<Box<impl Future<Output = Option<Taken>>>>) {
    if let Some(taken) = taking.await {
        carry(&room, taken).await;
    }
}

/// Accepts an exchange, or says why not.
async fn take(room: Arc<Room>, mut arrival: Arrival) -> Option<Taken> {
    let mut exchange = match receive(&room, &mut arrival, Instant::now()) {
        Ok(exchange) => exchange,
        Err(refused) => {
            Box::pin(arrival.refuse(*refused)).await;
            return None;
        }
    };
    let keep = arrival.open.keep.take();
    let place = match begin(&room, &mut exchange, keep.is_some()) {
        Ok(place) => place,
        Err(full) => {
            Box::pin(arrival.refuse(*full)).await;
            return None;
        }
    };
    let Ok((body, answer)) = arrival.accept().await else {
        // Nobody heard that it was accepted, and nothing was executed.
        exchange.running.refused();
        return None;
    };
    Some(Taken {
        exchange: Box::new(exchange),
        keep,
        place,
        body,
        answer,
    })
}

/// As [`take`], of one whose body comes ahead of what is asked.
async fn take_ahead(room: Arc<Room>, arrival: Arrival) -> Option<Taken> {
    let Asked {
        mut exchange,
        keep,
        body,
        answer,
    } = ahead::receive(&room, arrival).await?;
    match begin(&room, &mut exchange, keep.is_some()) {
        Ok(place) => Some(Taken {
            exchange,
            keep,
            place,
            body,
            answer,
        }),
        Err(full) => {
            body.leave();
            Box::pin(answer.refuse(*full)).await;
            None
        }
    }
}

/// Executes an accepted exchange, unless nobody wants its answer any more.
async fn carry(room: &Arc<Room>, taken: Taken) {
    let Taken {
        mut exchange,
        keep,
        place,
        body,
        answer,
    } = taken;
    let cancelled = answer.canceller();
    let reading = place.as_ref().and_then(|place| place.recording().read());
    let (outlet, followed) = match (&place, reading) {
        (Some(place), Some(reading)) => {
            let given = room.given.clone();
            let first = replay::give(reading, answer, replay::Copy::First, given);
            room.tasks.spawn(first);
            (Outlet::Kept(Arc::clone(place.recording())), None)
        }
        _ => (Outlet::Tunnel(answer), Some(cancelled)),
    };
    let begun = AtomicBool::new(false);
    let outcome = {
        let span = room
            .telemetry
            .span(Role::Egress, exchange.id, &exchange.head.traceparent);
        let id = exchange.id;
        let run = pin!(run(room, &mut exchange, body, outlet, &begun).instrument(span));
        tokio::select! {
            biased;
            outcome = run => outcome,
            () = unwanted(room, id, followed, &begun) => Outcome::Ended(Ending::Cancelled),
        }
    };
    exchange.meter.settle(Instant::now());
    if let Some(recording) = room.kept.adopted(exchange.id) {
        // Adopted too late, or given up: who waits for it is told. What has ended stays as it is.
        recording.end(kept::End::Lost);
    }
    match outcome {
        Outcome::Refused(code) => room.refused(&mut exchange, &code),
        Outcome::Ended(ending) => room.ended(&mut exchange, ending),
    }
    if let (Some(place), Some(keep)) = (place, keep) {
        place.put_away(Duration::from_millis(keep.kept_ms)).await;
    }
}

/// A recording for an exchange that is to be kept. Where there is no room for it, the attempt is over.
fn begin(
    room: &Room,
    exchange: &mut Exchange,
    wanted: bool,
) -> Result<Option<Place>, Box<v1::Refused>> {
    // A conversation over a WebSocket has two sides: there is no answer to give again.
    if !wanted || exchange.head.websocket {
        return Ok(None);
    }
    let now = Instant::now();
    let place = room.kept.begin(exchange.id, &exchange.head.account, now);
    place.map(Some).map_err(|full| {
        exchange.running.refused();
        Box::new(untouched(Code::Overloaded, full.to_string(), true))
    })
}

/// Resolves once nobody wants the answer any more. A kept one is always wanted, an adopted one for a while.
async fn unwanted(room: &Room, id: ExchangeId, followed: Option<Cancelled>, begun: &AtomicBool) {
    let Some(cancelled) = followed else {
        return pending().await;
    };
    cancelled.cancelled().await;
    if !begun.load(Ordering::Relaxed)
        && let Some(recording) = room.kept.adopted(id)
    {
        recording.given_up().await;
    }
}

/// Everything between acceptance and the answer's end.
///
/// `begun` is set once the answer goes to the ingress that asked, and can no longer be kept.
async fn run(
    room: &Room,
    exchange: &mut Exchange,
    body: RequestBody,
    outlet: Outlet,
    begun: &AtomicBool,
) -> Outcome {
    let mut watch = Watch::new(exchange.deadline, Instant::now());
    let answer = match outlet {
        Outlet::Tunnel(answer) if exchange.head.websocket => {
            let carried =
                Box::pin(websocket::carry(room, exchange, body, answer, &mut watch)).await;
            return match carried {
                Ok(ending) => Outcome::Ended(ending),
                Err((refused, answer)) => Box::pin(say_no(*refused, Outlet::Tunnel(answer))).await,
            };
        }
        outlet => outlet,
    };
    let (length, splice) = (exchange.head.body_bytes, translate::splice(&exchange.head));
    let taken = Upload::take(body, length, splice);
    match Box::pin(watch.within(taken, || 0)).await {
        Ok(Ok(upload)) => exchange.upload = upload,
        Ok(Err(Lost {
            reason: LostReason::Protocol(error),
            ..
        })) => {
            let refused = untouched(Code::Protocol, error.to_string(), false);
            return Box::pin(say_no(refused, answer)).await;
        }
        Ok(Err(_)) => return Outcome::Ended(Ending::Cancelled),
        Err(expired) => {
            let refused = attempt::Fault::of_time(expired, false).refusal(false, 0);
            return Box::pin(say_no(refused, answer)).await;
        }
    }
    // Boxed, they are gone while the answer streams.
    let attempted = Box::pin(attempt::attempt(room, exchange, &mut watch)).await;
    let answer = answer.unless_adopted(&room.kept, exchange.id, &exchange.head.account);
    begun.store(matches!(answer, Outlet::Tunnel(_)), Ordering::Relaxed);
    match attempted {
        Err(refused) => Box::pin(say_no(refused, answer)).await,
        Ok(answered) => {
            let ending = answer::pass_on(room, exchange, answered, answer, &mut watch).await;
            Outcome::Ended(ending)
        }
    }
}

async fn say_no(refused: v1::Refused, answer: Outlet) -> Outcome {
    let code = refused.code.clone();
    answer.refuse(refused).await;
    Outcome::Refused(code)
}
