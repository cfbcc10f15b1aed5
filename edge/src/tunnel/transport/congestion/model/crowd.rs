//! Others at the queue: senders that fill it, and the path that only became longer.
//!
//! Both look like a queue that stays while we retreat. Senders that fill it move it; a longer path
//! does not move at all.

use std::time::{Duration, Instant};

use super::{Model, Phase, WINDOW_MAX_BYTES, target};
use crate::tunnel::transport::congestion::loss::Verdict;

/// A queue above this, for so many rounds while we retreat, is made by others.
pub(super) const CROWD_S: f64 = 0.025;
const CROWD_ROUNDS: u32 = 8;

/// By how much the round trip of a path that has become longer varies while we retreat.
const STILL_S: f64 = 0.001;

/// Rounds of those that pass before what we retreat by can show.
const CROWD_SETTLES: u32 = 3;

/// What is left after loss in a crowd.
pub(super) const CROWD_YIELD: f64 = 0.75;

/// Rounds in a row with others' queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Crowd {
    pub(super) rounds: u32,
    pub(super) window: u64,
    pub(super) floor: u64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Model {
    /// Whether the queue is found to be others' or the path another, and what was to be done is.
    pub(super) fn crowded(&mut self, now: Instant, queue: f64, rtt: f64) -> bool {
        let crowd = &mut self.crowd;
        if queue < CROWD_S {
            crowd.rounds = 0;
            return false;
        }
        if crowd.rounds == 0 {
            *crowd = Crowd {
                rounds: 0,
                window: self.window,
                floor: 0,
                least: rtt,
                most: rtt,
            };
        }
        crowd.rounds += 1;
        if crowd.rounds <= CROWD_SETTLES {
            // A round in which the path or the window changed holds both, the old and the new.
            (crowd.least, crowd.most) = (rtt, rtt);
        }
        crowd.least = crowd.least.min(rtt);
        crowd.most = crowd.most.max(rtt);
        if crowd.rounds < CROWD_ROUNDS {
            return false;
        }
        let crowd = std::mem::take(crowd);
        let still = crowd.most - crowd.least < STILL_S + queue / 64.0;
        let window = self.window.max(crowd.window);
        if still && self.window < crowd.window - crowd.window / 4 {
            let base = self.base.get().map_or(rtt, |base| base.as_secs_f64());
            self.base
                .replace(now, Duration::from_secs_f64(crowd.least.max(0.0)));
            self.window = window;
            self.scale((crowd.least / base).clamp(1.0, 4.0));
        } else {
            self.window = window;
            self.phase = Phase::Crowd;
        }
        true
    }

    /// Among senders that fill the queue: grows gently, yields when the queue overflows.
    pub(super) fn hold_place(&mut self, now: Instant, queue: Option<(f64, f64)>, loss: Verdict) {
        let Some((queue, rtt)) = queue else {
            return;
        };
        let overflow = loss != Verdict::Usual;
        if overflow || queue < target(self.window as f64 / rtt) {
            if overflow {
                self.scale(CROWD_YIELD);
            }
            self.phase = Phase::Cruise;
            self.hold = 1;
            self.settle(now);
            return;
        }
        let packets = self.window as f64 / self.mtu as f64;
        let more = self.mtu as f64 * (packets.sqrt() / 4.0).max(1.0);
        self.window = self
            .window
            .saturating_add(more as u64)
            .min(WINDOW_MAX_BYTES);
    }
}
