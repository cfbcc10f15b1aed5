//! How long a path must be clean before it is trusted again: twice as long with each time it failed.

use std::time::{Duration, Instant};

/// What damps, in numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Clean spell after a first failure.
    pub(super) spell_min: Duration,
    /// Longest clean spell that is ever asked for.
    pub(super) spell_max: Duration,
    /// Time without failure that takes one doubling back. Longer than `spell_max`, so that a path
    /// that fails whenever it is back does not get away with it.
    pub(super) decay: Duration,
}

/// After a path was down. A failure a minute keeps a path out for good.
pub(super) const DOWN: Limits = Limits {
    spell_min: Duration::from_secs(2),
    spell_max: Duration::from_secs(60),
    decay: Duration::from_secs(120),
};

/// After a path was suspect and recovered: false alarms are common and must be cheap.
pub(super) const SUSPECT: Limits = Limits {
    spell_min: Duration::from_millis(100),
    spell_max: Duration::from_secs(2),
    decay: Duration::from_secs(10),
};

/// Counts failures, and forgets them with time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Damping {
    limits: Limits,
    failures: u32,
    /// The last failure, or when one was last forgotten.
    since: Instant,
}

impl Damping {
    pub(super) const fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            failures: 0,
            since: now,
        }
    }

    pub(super) fn failed(&mut self, now: Instant) {
        let forgotten = now.saturating_duration_since(self.since).as_millis()
            / self.limits.decay.as_millis().max(1);
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        // Beyond 16 doublings there is no difference.
        self.failures = (self.failures.saturating_sub(forgotten) + 1).min(16);
        self.since = now;
    }

    /// Clean time that the last failure asks for.
    pub(super) fn spell(&self) -> Duration {
        let doublings = self.failures.saturating_sub(1);
        (self.limits.spell_min * (1 << doublings)).min(self.limits.spell_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_double_to_a_limit_and_decay() {
        let mut now = Instant::now();
        let mut damping = Damping::new(DOWN, now);
        let mut fail_after = |seconds: u64| {
            now += Duration::from_secs(seconds);
            damping.failed(now);
            damping.spell().as_secs()
        };
        let spells: Vec<u64> = [5; 8].map(&mut fail_after).into();
        assert_eq!(spells, [2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(fail_after(4 * 120), 32, "eight failures, four forgotten");
        assert_eq!(fail_after(86_400), 2);
    }
}
