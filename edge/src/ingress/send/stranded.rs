//! Waits while no path leads to any egress that could serve a request.
//!
//! That lasts as long as the last of them takes to start again, or until a cut is mended: mostly less than the pause after
//! which a client would try again, and no provider has had a byte. Bounded in time, and by the places of the queue.

use std::time::{Duration, Instant};

use vector_proto::refusal::Code;

use super::{Denied, Sending};
use crate::ingress::{
    queue::Visitor,
    record::Record,
    tries::{Round, Tries},
};

/// Longest wait. A node that starts again is dialled within about as long.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// How often a request looks whether there is a path.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Sending<'_> {
    /// What comes of a request that was denied: the same, unless it was for want of a path and one is there soon.
    ///
    /// Cancel safety: its place is given up, and a running attempt is cancelled at its egress.
    pub(super) async fn until_reached(
        &self,
        mut denied: Denied,
        tries: &mut Tries,
        record: &mut Record,
    ) -> Round {
        let until = Instant::now() + WAIT_MAX.min(self.ingress.config.queue);
        let visitor = Visitor {
            line: self.ingress.queue.stranded(),
            account: &self.policy.account,
            bytes: tries.waiting_bytes(),
            again: false,
        };
        let mut place = None;
        while wants_a_path(&denied) && tries.can_wait() && Instant::now() < until {
            if place.is_none() {
                let Ok(free) = self.ingress.queue.hold(visitor) else {
                    break;
                };
                place = Some(free);
            }
            tokio::time::sleep(LOOK_EVERY).await;
            tries.forget();
            match Box::pin(self.round(tries, record)).await {
                Round::Denied(again) => denied = again,
                round => return round,
            }
        }
        Round::Denied(denied)
    }
}

/// Whether nothing is wrong but that nobody was there to take it.
fn wants_a_path(denied: &Denied) -> bool {
    match denied {
        Denied::Ours(refusal) => matches!(refusal.code, Code::NoPath | Code::Draining),
        Denied::Provider(_) => false,
    }
}
