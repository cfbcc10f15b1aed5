//! How many attempts may be added to those that clients asked for, so that a failing network is not hit twice as hard.
//!
//! A token bucket of this ingress: every request earns a fifth of an attempt, and ten a second come for nothing, so that a
//! quiet network may always try again (Finagle's retry budget). Lock-free; time is an argument.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a request earns, in thousandths of an attempt.
const EARNED: u64 = 200;

/// What comes for nothing, in thousandths of an attempt a second.
const FREE_A_SECOND: u64 = 10_000;

/// What one attempt costs.
const COST: u64 = 1_000;

/// What may be saved up: ten seconds of what is free.
const SAVED_MAX: u64 = 10 * FREE_A_SECOND;

/// The bucket.
#[derive(Debug)]
pub(super) struct Budget {
    saved: AtomicU64,
    looked_us: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            saved: AtomicU64::new(SAVED_MAX),
            looked_us: AtomicU64::new(0),
        }
    }
}

impl Budget {
    /// A request came.
    pub(super) fn earn(&self) {
        self.add(EARNED);
    }

    /// Takes one more attempt, if it can be paid.
    pub(super) fn spend(&self, now_us: u64) -> bool {
        let looked = self.looked_us.load(Ordering::Relaxed);
        let free = now_us.saturating_sub(looked).saturating_mul(FREE_A_SECOND) / 1_000_000;
        if free > 0
            && self
                .looked_us
                .compare_exchange(looked, now_us, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.add(free);
        }
        let pay = |saved: u64| saved.checked_sub(COST);
        self.saved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay)
            .is_ok()
    }

    fn add(&self, amount: u64) {
        if self.saved.load(Ordering::Relaxed) >= SAVED_MAX {
            return;
        }
        let add = |saved: u64| Some(saved.saturating_add(amount).min(SAVED_MAX));
        // The closure always returns a value, so the update cannot fail.
        let _ = self
            .saved
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_of_the_requests_and_ten_a_second() {
        let budget = Budget::default();
        while budget.spend(0) {}
        let mut spent = 0;
        for _ in 0..1_000 {
            budget.earn();
            spent += u32::from(budget.spend(0));
        }
        assert_eq!(spent, 200);
        let mut free = 0;
        for second in 1..=5 {
            while budget.spend(second * 1_000_000) {
                free += 1;
            }
        }
        assert_eq!(free, 50);
        budget.earn();
        let mut saved = 0;
        while budget.spend(3_600_000_000) {
            saved += 1;
        }
        assert_eq!(saved, 100);
    }
}
