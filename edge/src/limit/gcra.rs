//! The generic cell rate algorithm: a rate as one point in time.
//!
//! `full_at` is when the rate would be unused again. Taking moves it on by what was taken; a
//! minute's worth may come at once, and it may be overdrawn by what is only known afterwards.

use std::time::{Duration, Instant};

/// What may come at once: a minute's worth.
const BURST: Duration = Duration::from_secs(60);

/// Overdraft after which nothing more is counted: an hour of waiting.
const DEBT_MAX: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gcra {
    full_at: Option<Instant>,
}

impl Gcra {
    /// How long until `amount` may be taken; zero when it may be now. `per_minute` 0 is no limit.
    pub(super) fn wait(&self, per_minute: u64, amount: u64, now: Instant) -> Duration {
        if per_minute == 0 {
            return Duration::ZERO;
        }
        // What exceeds a whole minute's worth may go when the rate is unused.
        let needed = worth(amount, per_minute).min(BURST);
        (self.reset(now) + needed).saturating_sub(BURST)
    }

    /// Takes `amount`, whether or not there is room.
    pub(super) fn take(&mut self, per_minute: u64, amount: u64, now: Instant) {
        if per_minute > 0 {
            let debt = self.reset(now) + worth(amount, per_minute);
            self.full_at = Some(now + debt.min(DEBT_MAX));
        }
    }

    /// Gives one back that was taken when [`Self::reset`] then came to `full_at`. What of it has come back by itself since is
    /// not given twice.
    pub(super) fn give_back(&mut self, per_minute: u64, full_at: Instant, now: Instant) {
        if per_minute > 0 {
            let left = full_at.saturating_duration_since(now);
            let back = worth(1, per_minute).min(left);
            self.full_at = self.full_at.and_then(|at| at.checked_sub(back));
        }
    }

    /// What may be taken now at once.
    pub(super) fn remaining(&self, per_minute: u64, now: Instant) -> u64 {
        let room = BURST.saturating_sub(self.reset(now));
        let room = room.as_nanos() * u128::from(per_minute) / BURST.as_nanos();
        u64::try_from(room).unwrap_or(u64::MAX)
    }

    /// How long until it is as if nothing had been taken.
    pub(super) fn reset(&self, now: Instant) -> Duration {
        self.full_at
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

/// How long the rate needs to allow `amount`. Rounded up, so that rounding never gives more.
fn worth(amount: u64, per_minute: u64) -> Duration {
    let nanos = (BURST.as_nanos() * u128::from(amount)).div_ceil(u128::from(per_minute));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(DEBT_MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn never_more_than_burst_plus_rate(per_minute in 1_u64..10_000, gaps in prop::collection::vec(0_u64..2_000, 1..400)) {
            let start = Instant::now();
            let (mut gcra, mut now, mut taken) = (Gcra::default(), start, 0_u64);
            for gap in gaps {
                now += Duration::from_millis(gap);
                if gcra.wait(per_minute, 1, now).is_zero() {
                    gcra.take(per_minute, 1, now);
                    taken += 1;
                }
                let elapsed = (now - start).as_nanos();
                let allowed = u128::from(per_minute) * (BURST.as_nanos() + elapsed) / BURST.as_nanos();
                prop_assert!(u128::from(taken) <= allowed);
            }
        }

        /// Whatever is given back and however late, those that are not never come to more than the rate.
        #[test]
        fn what_is_given_back_makes_no_more_than_burst_plus_rate(
            per_minute in 1_u64..1_000,
            steps in prop::collection::vec((0_u64..2_000, any::<bool>()), 1..400),
        ) {
            let start = Instant::now();
            let (mut gcra, mut now, mut kept, mut last) = (Gcra::default(), start, 0_u64, None);
            for (gap, back) in steps {
                now += Duration::from_millis(gap);
                if let Some(full_at) = last.take().filter(|_| back) {
                    gcra.give_back(per_minute, full_at, now);
                    kept -= 1;
                }
                if gcra.wait(per_minute, 1, now).is_zero() {
                    gcra.take(per_minute, 1, now);
                    last = Some(now + gcra.reset(now));
                    kept += 1;
                }
                let elapsed = (now - start).as_nanos();
                let allowed = u128::from(per_minute) * (BURST.as_nanos() + elapsed) / BURST.as_nanos();
                prop_assert!(u128::from(kept) <= allowed);
            }
        }

        #[test]
        fn after_the_wait_it_may(per_minute in 1_u64..10_000, takes in prop::collection::vec(1_u64..5_000, 0..20), amount in 1_u64..5_000) {
            let now = Instant::now();
            let mut gcra = Gcra::default();
            for take in takes {
                gcra.take(per_minute, take, now);
            }
            let wait = gcra.wait(per_minute, amount, now);
            prop_assert!(gcra.wait(per_minute, amount, now + wait).is_zero());
            if !wait.is_zero() {
                prop_assert!(!gcra.wait(per_minute, amount, now + wait - Duration::from_nanos(1)).is_zero());
            }
        }

        #[test]
        fn what_remains_may_be_taken(per_minute in 1_u64..10_000, first in 0_u64..10_000) {
            let now = Instant::now();
            let mut gcra = Gcra::default();
            gcra.take(per_minute, first, now);
            let remaining = gcra.remaining(per_minute, now);
            prop_assert!(remaining <= per_minute);
            if remaining > 0 {
                prop_assert!(gcra.wait(per_minute, remaining, now).is_zero());
            }
        }
    }
}
