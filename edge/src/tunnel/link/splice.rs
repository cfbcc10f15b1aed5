//! Words about an exchange that only passes through this node, from the link on one side to that on the other.

use std::sync::{Arc, Weak};

use vector_proto::{
    id::ExchangeId,
    tunnel::codec::{Entry, GoneReason},
};

use super::Link;

impl Link {
    /// Lets words about `exchange` pass from either link to the other, until the guard is dropped.
    #[must_use]
    pub fn splice(up: &Arc<Self>, down: &Arc<Self>, of: (ExchangeId, u32)) -> Splice {
        let (exchange, attempt) = of;
        down.pass(exchange, up);
        up.pass(exchange, down);
        if up.was_cancelled(exchange, attempt) {
            // Cancelled before it came: say so behind the OPEN that is about to leave.
            let reason = GoneReason::of_attempt(attempt);
            down.say(Entry::Cancel { exchange, reason });
        }
        Splice {
            up: Arc::clone(up),
            down: Arc::clone(down),
            exchange,
        }
    }

    fn pass(&self, exchange: ExchangeId, other: &Arc<Self>) {
        let mut passing = self.passing.lock();
        let entry = passing.entry(exchange).or_insert_with(|| {
            self.vitals.began();
            (Weak::new(), 0)
        });
        *entry = (Arc::downgrade(other), entry.1 + 1);
    }

    fn unpass(&self, exchange: ExchangeId) {
        let mut passing = self.passing.lock();
        if let Some((_, streams)) = passing.get_mut(&exchange) {
            *streams -= 1;
            if *streams == 0 {
                passing.remove(&exchange);
                self.vitals.ended(1);
            }
        }
    }
}

/// Two links that pass on each other's words about one exchange.
#[derive(Debug)]
pub struct Splice {
    up: Arc<Link>,
    down: Arc<Link>,
    exchange: ExchangeId,
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.up.unpass(self.exchange);
        self.down.unpass(self.exchange);
    }
}
