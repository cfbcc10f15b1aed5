//! What a credential's limits a minute leave for now.
//!
//! A limit of N a minute is a bucket that holds N and refills evenly. Requests are taken before they are sent;
//! tokens are known only afterwards, so a bucket of tokens may be overdrawn once and then has to recover. Lock-free;
//! time is an argument, in microseconds of any clock that never goes back.

use std::sync::atomic::{AtomicU64, Ordering};

const MINUTE_US: u64 = 60_000_000;

/// A bucket, kept as the time at which it will be full again.
#[derive(Debug)]
pub(super) struct Bucket {
    a_minute: u64,
    full_at_us: AtomicU64,
}

impl Bucket {
    /// A full bucket; a limit of 0 is none.
    pub(super) const fn new(a_minute: u64) -> Self {
        Self {
            a_minute,
            full_at_us: AtomicU64::new(0),
        }
    }

    /// Microseconds until `units` more may be taken.
    pub(super) fn wait_us(&self, units: u64, now_us: u64) -> u64 {
        if self.a_minute == 0 {
            return 0;
        }
        let full_at = self.full_at_us.load(Ordering::Relaxed).max(now_us);
        (full_at + self.cost_us(units)).saturating_sub(now_us + MINUTE_US)
    }

    /// Takes `units`, whether they are there or not.
    pub(super) fn take(&self, units: u64, now_us: u64) {
        if self.a_minute == 0 || units == 0 {
            return;
        }
        let cost = self.cost_us(units);
        // The closure always returns a value, so the update cannot fail.
        let _ = self
            .full_at_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                Some(full_at.max(now_us).saturating_add(cost))
            });
    }

    /// Refill time of `units`; at most that of a full bucket, so that one huge call rests it for a minute, not for days.
    fn cost_us(&self, units: u64) -> u64 {
        (units.min(self.a_minute) * MINUTE_US).div_ceil(self.a_minute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_goes_at_once_and_comes_back_evenly() {
        let bucket = Bucket::new(60);
        let now = 5_000_000;
        for _ in 0..60 {
            assert_eq!(bucket.wait_us(1, now), 0);
            bucket.take(1, now);
        }
        assert_eq!(bucket.wait_us(1, now), 1_000_000);
        assert_eq!(bucket.wait_us(1, now + 1_000_000), 0);
        assert_eq!(bucket.wait_us(30, now), 30_000_000);
    }

    #[test]
    fn no_limit_never_waits_and_an_overdraft_recovers() {
        let free = Bucket::new(0);
        free.take(1 << 40, 1);
        assert_eq!(free.wait_us(1 << 40, 1), 0);
        let tokens = Bucket::new(1_000);
        tokens.take(500, 1);
        tokens.take(1_000_000, 1);
        assert!(tokens.wait_us(1, 1) > 0);
        assert_eq!(tokens.wait_us(1, 1 + 2 * MINUTE_US), 0);
    }
}
