//! Start-up: the window grows until the path shows a queue, loss or no more speed.
//!
//! The end looks at the last few round trips only, as the queue of a long path grows by tens of
//! milliseconds within the round trip in which it begins. What was sent last is acknowledged
//! after the end; it was sent fastest, so the window is refined from it.

use std::time::{Duration, Instant};

use super::{Model, Phase, WINDOW_MAX_BYTES};
use crate::tunnel::transport::congestion::{loss::Verdict, rate::Sample};

/// Start-up ends when the rate has grown by less than a quarter for three rounds.
const PLATEAU_GROWTH: f64 = 1.25;
const PLATEAU_ROUNDS: u32 = 3;

/// Start-up ends when the queue is an eighth of the round trip, within these limits, throughout
/// so many batches.
const STARTUP_QUEUE_MIN: Duration = Duration::from_millis(4);
const STARTUP_QUEUE_MAX: Duration = Duration::from_millis(12);
const RECENT_BATCHES: u32 = 8;

/// What a path is believed to carry before it was measured: 56 Mbit/s, in bytes a second.
const INITIAL_RATE: f64 = 7e6;

impl Model {
    /// The length of the path is known: what was the window so far is so much a second. A short
    /// path needs less for the same prompt, a long one more.
    pub(super) fn begin(&mut self, rtt: Duration) {
        let wanted = (INITIAL_RATE * rtt.as_secs_f64()) as u64;
        let initial = wanted.clamp(self.initial / 2, self.initial.saturating_mul(2));
        if self.phase == Phase::Startup && self.window == self.initial {
            self.window = initial;
        }
        self.initial = initial;
    }

    pub(super) fn start_up(&mut self, now: Instant, sample: &Sample) {
        if sample.app_limited {
            return;
        }
        let slow = self.window >= self.initial.saturating_mul(2);
        let more = if slow { sample.acked / 2 } else { sample.acked };
        self.window = self.window.saturating_add(more).min(WINDOW_MAX_BYTES);
        let (least, batches) = &mut self.recent;
        *least = sample.rtt.min(*least);
        *batches += 1;
        if *batches < RECENT_BATCHES {
            return;
        }
        let (least, _) = std::mem::replace(&mut self.recent, (Duration::MAX, 0));
        let base = self.base.get().unwrap_or(least);
        let limit = (base / 8).clamp(STARTUP_QUEUE_MIN, STARTUP_QUEUE_MAX);
        if least.saturating_sub(base) > limit {
            self.end_startup(now);
        }
    }

    pub(super) fn end_startup(&mut self, now: Instant) {
        let seen = self.carries(self.top.get());
        if seen > 0 {
            self.window = self.window.min(seen).max(self.least());
        }
        self.phase = Phase::Cruise;
        self.refining = seen > 0;
        self.hold = 2;
        self.calm = 0;
        self.drained_at = now;
        self.drain_rounds = 0;
        self.settle(now);
    }

    /// The fastest part of start-up is acknowledged after its end.
    pub(super) fn refine(&mut self) {
        let seen = self.carries(self.top.get());
        self.window = self.window.max(seen).min(WINDOW_MAX_BYTES);
    }

    pub(super) fn judge_startup(&mut self, now: Instant, verdict: Verdict) {
        let rate = self.top.get();
        if rate >= self.plateau.0 * PLATEAU_GROWTH {
            self.plateau = (rate, 0);
        } else {
            self.plateau.1 += 1;
        }
        let lossy = match verdict {
            Verdict::Usual => false,
            Verdict::Excess(share) => share > 0.1,
            Verdict::Heavy => true,
        };
        if self.plateau.1 >= PLATEAU_ROUNDS || lossy {
            self.end_startup(now);
        }
    }
}
