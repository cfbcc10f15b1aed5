//! How busy and how quick each (provider, egress) pair is, as this ingress sees it.
//!
//! The time to the first byte is a peak-sensitive moving average: it jumps to a worse sample at once and forgets it over
//! [`FORGET`]. Reading takes no lock; the table is copied only when a pair is seen for the first time.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

/// Time in which a sample loses 63 % of its weight.
const FORGET: Duration = Duration::from_secs(10);

/// What a failure counts as.
pub(super) const FAILURE: Duration = Duration::from_secs(2);

/// Pairs remembered. Beyond it all are forgotten; only providers and egress nodes from snapshots get in.
///
/// 4,096 x about 200 bytes = 0.8 MiB.
const PAIRS_MAX: usize = 4096;

type Pairs = HashMap<Arc<str>, HashMap<Arc<str>, Arc<Load>>>;

/// All pairs.
#[derive(Debug)]
pub(super) struct Loads {
    pairs: ArcSwap<Pairs>,
    start: Instant,
}

/// One pair.
#[derive(Debug, Default)]
pub(super) struct Load {
    first_byte_us: AtomicU64,
    sampled_us: AtomicU64,
    /// Links of the way that was sampled; 0 for none.
    links: AtomicU32,
    outstanding: AtomicU32,
}

/// An attempt that runs; dropped, it no longer counts.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Load>);

impl Loads {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            pairs: ArcSwap::default(),
            start,
        }
    }

    /// The pair's load; made at first sight.
    pub(super) fn of(&self, provider: &Arc<str>, egress: &Arc<str>) -> Arc<Load> {
        if let Some(load) = self
            .pairs
            .load()
            .get(provider)
            .and_then(|row| row.get(egress))
        {
            return Arc::clone(load);
        }
        let fresh = Arc::new(Load::default());
        self.pairs.rcu(|pairs| {
            let full = pairs.values().map(HashMap::len).sum::<usize>() >= PAIRS_MAX;
            let mut pairs = if full {
                Pairs::new()
            } else {
                Pairs::clone(pairs)
            };
            let row = pairs.entry(Arc::clone(provider)).or_default();
            row.entry(Arc::clone(egress))
                .or_insert_with(|| Arc::clone(&fresh));
            pairs
        });
        match self
            .pairs
            .load()
            .get(provider)
            .and_then(|row| row.get(egress))
        {
            Some(load) => Arc::clone(load),
            None => fresh,
        }
    }

    /// This moment, as the loads count time.
    pub(super) fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

impl Load {
    /// Expected cost of one more attempt; lower is better.
    pub(super) fn cost(&self, path_rtt: Duration, weight: u32, now_us: u64) -> f64 {
        let first_byte = self.first_byte_us.load(Ordering::Relaxed) as f64 * self.left(now_us);
        let outstanding = f64::from(self.outstanding.load(Ordering::Relaxed)) + 1.0;
        // A millisecond for everybody, so that a pair without samples is tried but not flooded.
        (path_rtt.as_micros() as f64 + first_byte + 1000.0) * outstanding / f64::from(weight.max(1))
    }

    /// Notes over how many links the egress is reached now, 0 if over none.
    ///
    /// What was measured over another way says nothing of this one: an egress that was lost and is back is tried at once,
    /// instead of being avoided until its failures are forgotten.
    pub(super) fn reached_over(&self, links: u32) {
        if self.links.load(Ordering::Relaxed) != links {
            self.links.store(links, Ordering::Relaxed);
            self.first_byte_us.store(0, Ordering::Relaxed);
        }
    }

    /// Takes in one time to the first byte.
    pub(super) fn sample(&self, first_byte: Duration, now_us: u64) {
        let sample = first_byte.as_micros() as f64;
        let known = self.first_byte_us.load(Ordering::Relaxed) as f64;
        let left = self.left(now_us);
        let next = if sample > known {
            sample
        } else {
            known * left + sample * (1.0 - left)
        };
        self.first_byte_us.store(next as u64, Ordering::Relaxed);
        self.sampled_us.store(now_us, Ordering::Relaxed);
    }

    /// Counts one more attempt until the mark is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> InFlight {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    fn left(&self, now_us: u64) -> f64 {
        let age_us = now_us.saturating_sub(self.sampled_us.load(Ordering::Relaxed));
        (-(age_us as f64) / FORGET.as_micros() as f64).exp()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_egress_that_is_lost_and_back_is_no_longer_avoided() {
        let load = Load::default();
        load.reached_over(1);
        load.sample(FAILURE, 0);
        load.reached_over(1);
        assert!(load.cost(Duration::ZERO, 1, 0) > 1e6);
        load.reached_over(0);
        load.reached_over(1);
        assert!(load.cost(Duration::ZERO, 1, 0) < 1e4);
    }

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten() {
        let load = Load::default();
        load.sample(10 * MS, 0);
        let calm = load.cost(MS, 1, 0);
        load.sample(1000 * MS, 10);
        let peak = load.cost(MS, 1, 10);
        assert!(peak > 10.0 * calm);
        let later = load.cost(MS, 1, 60_000_000);
        assert!(
            later < calm,
            "a minute later {later} should be below {calm}"
        );
    }

    #[test]
    fn outstanding_work_and_weight_count() {
        let load = Arc::new(Load::default());
        let idle = load.cost(MS, 1, 0);
        let mark = load.enter();
        assert!((load.cost(MS, 1, 0) - 2.0 * idle).abs() < 1e-6);
        assert!((load.cost(MS, 2, 0) - idle).abs() < 1e-6);
        drop(mark);
        assert!((load.cost(MS, 1, 0) - idle).abs() < 1e-6);
    }

    #[test]
    fn a_pair_is_one_and_the_same() {
        let loads = Loads::new(Instant::now());
        let (provider, egress) = (Arc::from("p"), Arc::from("e"));
        assert!(Arc::ptr_eq(
            &loads.of(&provider, &egress),
            &loads.of(&provider, &egress)
        ));
        assert!(!Arc::ptr_eq(
            &loads.of(&provider, &egress),
            &loads.of(&egress, &provider)
        ));
    }
}
