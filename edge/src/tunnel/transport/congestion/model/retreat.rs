//! Retreats from loss that is more than the path's own.
//!
//! Where the queue is full, loss is its overflow. Where it is not, something drops what is above a
//! rate: a policer or a shallow buffer.

use std::time::{Duration, Instant};

use super::{
    HOLD_ROUNDS, Model, RETREAT_MIN, STEP,
    crowd::{CROWD_S, CROWD_YIELD},
};
use crate::tunnel::transport::congestion::loss::Verdict;

/// What of the rate that came through a retreat from loss goes to.
const GENTLE: f64 = 0.9;

/// How long growth stops where loss began, before it is tried again.
const CEILING: Duration = Duration::from_secs(3);

/// Loss that does not count as the path's own even just after a retreat.
const LOSS_KNOWN: f64 = 0.15;

impl Model {
    /// Whether loss made the window smaller.
    pub(super) fn yielded(
        &mut self,
        now: Instant,
        queue: Option<(f64, f64)>,
        rate: f64,
        loss: Verdict,
    ) -> bool {
        let share = match loss {
            Verdict::Usual => return false,
            Verdict::Heavy => STEP,
            Verdict::Excess(share) => share,
        };
        let full = queue.is_some_and(|(queue, _)| queue > CROWD_S);
        if full && share < LOSS_KNOWN {
            // The queue overflowed, ours or others': what is over is taken back by the delay.
            self.crowd.window = (self.crowd.window as f64 * CROWD_YIELD) as u64;
            self.scale(CROWD_YIELD);
            self.hold = self.hold.max(1);
            self.settle(now);
        } else if self.hold == 0 || share > LOSS_KNOWN {
            self.retreat(now, 0.95 - share, rate);
        } else {
            // Just after a retreat, loss that did not go is being learnt as the path's own.
            return false;
        }
        true
    }

    /// Loss says that we send too much. Goes below what came through: a policer then drops
    /// nothing, and what is lost all the same is the path's own.
    pub(super) fn retreat(&mut self, now: Instant, by: f64, rate: f64) {
        let window = self.window as f64;
        let base = self.base.get().map_or(0.0, |base| base.as_secs_f64());
        let mut wanted = window * by;
        if rate > 0.0 {
            wanted = wanted.min(rate * base * GENTLE);
            self.ceiling = ((rate * base) as u64, now.checked_add(CEILING));
        }
        self.scale(wanted.max(window * RETREAT_MIN) / window.max(1.0));
        self.hold = HOLD_ROUNDS;
        self.calm = 0;
        self.settle(now);
    }
}
