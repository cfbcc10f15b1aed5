//! What a credential's limits a minute leave for now.
//!
//! A limit of N a minute is kept for every minute that begins anywhere: what was taken in each of the last 60 seconds and
//! the running one is remembered, so that a burst at the end of one minute cannot meet another at the begin of the next.
//! What a provider says of its own bucket (`learned`) counts besides, whichever is stricter. Time is an argument, in
//! microseconds of any clock that never goes back.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::learned::Level;

const SECOND_US: u64 = 1_000_000;
const MINUTE_US: u64 = 60 * SECOND_US;

/// A minute's seconds and the one that has begun.
const SLOTS: usize = 61;

/// What is left of one kind of unit: requests, or tokens.
#[derive(Debug, Default)]
pub(super) struct Headroom {
    /// Whether the provider ever spoke of its bucket. Without that and without a limit of ours, no lock is taken.
    heard: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    slots: [u64; SLOTS],
    /// The second that the newest slot stands for.
    second: u64,
    total: u64,
    bucket: Bucket,
}

/// The provider's bucket: refills evenly, and is full at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    holds: u64,
    /// Time in which one unit comes back.
    unit_ns: u64,
    full_at_us: u64,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            slots: [0; SLOTS],
            second: 0,
            total: 0,
            bucket: Bucket::default(),
        }
    }
}

impl Headroom {
    /// Microseconds until `units` more may be taken under `limit` a minute; a limit of 0 is none.
    ///
    /// More units than the limit count as the limit: such a call has to wait for an idle minute, not for ever.
    pub(super) fn wait_us(&self, limit: u64, units: u64, now_us: u64) -> u64 {
        let heard = self.heard.load(Ordering::Relaxed);
        if limit == 0 && !heard {
            return 0;
        }
        let mut inner = self.inner.lock();
        let bucket = inner.bucket.wait_us(units, now_us);
        if limit == 0 {
            return bucket;
        }
        inner.go_on(now_us);
        inner.wait_us(limit, units, now_us).max(bucket)
    }

    /// Takes `units`, whether they are there or not.
    pub(super) fn take(&self, limit: u64, units: u64, now_us: u64) {
        if (limit == 0 && !self.heard.load(Ordering::Relaxed)) || units == 0 {
            return;
        }
        let mut inner = self.inner.lock();
        inner.bucket.take(units, now_us);
        if limit != 0 {
            inner.go_on(now_us);
            inner.add(units, now_us);
        }
    }

    /// What was taken as `before` at `taken_us` turned out to be `after`.
    pub(super) fn correct(&self, limit: u64, before: u64, after: u64, at: (u64, u64)) {
        let (taken_us, now_us) = at;
        if after > before {
            return self.take(limit, after - before, now_us);
        }
        if limit == 0 && !self.heard.load(Ordering::Relaxed) {
            return;
        }
        let back = before - after;
        let mut inner = self.inner.lock();
        inner.bucket.give_back(back);
        inner.go_on(now_us);
        inner.remove(back, taken_us);
    }

    /// Believes what the provider says of its bucket. `unseen` calls are on their way, of which it may not know yet.
    pub(super) fn hear(&self, level: Level, unseen: u64, now_us: u64) {
        let Some(bucket) = Bucket::of(level, unseen, now_us) else {
            return;
        };
        self.heard.store(true, Ordering::Relaxed);
        self.inner.lock().bucket = bucket;
    }
}

impl Inner {
    /// Forgets what is older than a minute.
    fn go_on(&mut self, now_us: u64) {
        let now = now_us / SECOND_US;
        if now <= self.second {
            return;
        }
        let gone = (now - self.second).min(SLOTS as u64);
        for step in 1..=gone {
            let slot = &mut self.slots[place(now - gone + step)];
            self.total -= *slot;
            *slot = 0;
        }
        self.second = now;
    }

    fn add(&mut self, units: u64, now_us: u64) {
        let units = units.min(u64::MAX / SLOTS as u64 / 1_000);
        let slot = &mut self.slots[place((now_us / SECOND_US).max(self.second))];
        *slot = slot.saturating_add(units);
        self.total = self.total.saturating_add(units);
    }

    fn remove(&mut self, units: u64, taken_us: u64) {
        let second = taken_us / SECOND_US;
        if second + SLOTS as u64 <= self.second {
            return;
        }
        let slot = &mut self.slots[place(second)];
        let units = units.min(*slot);
        *slot -= units;
        self.total -= units;
    }

    fn wait_us(&self, limit: u64, units: u64, now_us: u64) -> u64 {
        let wanted = self.total.saturating_add(units.min(limit));
        let Some(mut excess) = wanted.checked_sub(limit).filter(|excess| *excess > 0) else {
            return 0;
        };
        let oldest = (self.second + 1).saturating_sub(SLOTS as u64);
        for second in oldest..=self.second {
            let slot = self.slots[place(second)];
            if slot >= excess {
                return ((second + SLOTS as u64) * SECOND_US).saturating_sub(now_us);
            }
            excess -= slot;
        }
        MINUTE_US
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the remainder of a division by 61"
)]
const fn place(second: u64) -> usize {
    (second % SLOTS as u64) as usize
}

impl Bucket {
    fn of(level: Level, unseen: u64, now_us: u64) -> Option<Self> {
        let Level {
            limit,
            remaining,
            reset,
        } = level;
        if limit == 0 {
            return None;
        }
        let reset_us = u64::try_from(reset.as_micros())
            .unwrap_or(u64::MAX)
            .min(3_600 * SECOND_US);
        let used = limit.saturating_sub(remaining);
        let unit_ns = match (used, reset_us) {
            (0, _) | (_, 0) => MINUTE_US.saturating_mul(1_000) / limit,
            (used, reset_us) => reset_us.saturating_mul(1_000) / used,
        };
        let unseen_us = unseen.saturating_mul(unit_ns) / 1_000;
        Some(Self {
            holds: limit,
            unit_ns,
            full_at_us: now_us.saturating_add(reset_us).saturating_add(unseen_us),
        })
    }

    fn wait_us(&self, units: u64, now_us: u64) -> u64 {
        let full_at = self.full_at_us.max(now_us);
        full_at
            .saturating_add(self.cost_us(units))
            .saturating_sub(now_us.saturating_add(self.cost_us(self.holds)))
    }

    fn take(&mut self, units: u64, now_us: u64) {
        self.full_at_us = self
            .full_at_us
            .max(now_us)
            .saturating_add(self.cost_us(units));
    }

    fn give_back(&mut self, units: u64) {
        self.full_at_us = self.full_at_us.saturating_sub(self.cost_us(units));
    }

    const fn cost_us(&self, units: u64) -> u64 {
        let units = if units < self.holds {
            units
        } else {
            self.holds
        };
        units.saturating_mul(self.unit_ns) / 1_000
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_minute_anywhere_sees_more_than_the_limit() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let limit = random.u64(1..200);
            let headroom = Headroom::default();
            let (mut now, mut taken) = (0, Vec::new());
            for _ in 0..3_000 {
                now += random.u64(0..400_000);
                let units = random.u64(1..=limit.div_ceil(4));
                if headroom.wait_us(limit, units, now) == 0 {
                    headroom.take(limit, units, now);
                    taken.push((now, units));
                }
            }
            for (at, &(begin, _)) in taken.iter().enumerate() {
                let within = taken[at..]
                    .iter()
                    .take_while(|(when, _)| *when < begin + MINUTE_US);
                let sum: u64 = within.map(|(_, units)| units).sum();
                assert!(sum <= limit, "seed {seed}: {sum} of {limit} from {begin}");
            }
            let minutes = now / MINUTE_US;
            let sum: u64 = taken.iter().map(|(_, units)| units).sum();
            assert!(
                sum * 10 >= minutes * limit * 6,
                "seed {seed}: {sum} of {limit} in {minutes} minutes"
            );
        }
    }

    #[test]
    fn after_the_wait_there_is_room() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let limit = random.u64(1..50);
            let headroom = Headroom::default();
            let mut now = 0;
            for _ in 0..200 {
                now += random.u64(0..2_000_000);
                let units = random.u64(1..80);
                let wait = headroom.wait_us(limit, units, now);
                assert_eq!(headroom.wait_us(limit, units, now + wait), 0, "seed {seed}");
                now += wait;
                headroom.take(limit, units, now);
            }
        }
    }

    #[test]
    fn an_estimate_is_put_right() {
        let headroom = Headroom::default();
        headroom.take(100, 90, 1);
        assert!(headroom.wait_us(100, 20, 2) > 0);
        headroom.correct(100, 90, 30, (1, 3));
        assert_eq!(headroom.wait_us(100, 70, 4), 0);
        headroom.correct(100, 30, 95, (1, 5));
        assert!(headroom.wait_us(100, 6, 6) > 0);
        // So late that what was taken is forgotten.
        headroom.correct(100, 95, 0, (1, 200 * SECOND_US));
        assert_eq!(headroom.wait_us(100, 100, 200 * SECOND_US), 0);
    }

    #[test]
    fn the_providers_word_counts_where_no_limit_is_set() {
        let headroom = Headroom::default();
        assert_eq!(headroom.wait_us(0, 1, 0), 0);
        let level = Level {
            limit: 60,
            remaining: 1,
            reset: Duration::from_secs(59),
        };
        headroom.hear(level, 0, 0);
        assert_eq!(headroom.wait_us(0, 1, 0), 0);
        headroom.take(0, 1, 0);
        assert_eq!(headroom.wait_us(0, 1, 0), SECOND_US);
        assert_eq!(headroom.wait_us(0, 1, SECOND_US), 0);
        headroom.hear(level, 5, 0);
        assert_eq!(headroom.wait_us(0, 1, 0), 5 * SECOND_US);
    }
}
