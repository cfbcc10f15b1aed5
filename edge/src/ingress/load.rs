//! How busy, how quick and how well each (provider, egress) pair is, as this ingress sees it and as others tell.
//!
//! Averages forget: the time to the first byte is peak-sensitive (Finagle's and linkerd's peak EWMA), successes and tokens a
//! second are plain moving averages. A pair that fails [`FAILURES_MAX`] times in a row is ejected, at most half of a provider's
//! pairs unless all of them fail, and then tried with one real request at a time. What this node sees itself counts more
//! than what it is told. Reading takes no lock; the table is copied only when a pair is seen for the first time.

// Of one pair.
mod verdict;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use vector_proto::control::v1;

pub(super) use self::verdict::Standing;
use self::verdict::Verdict;
use crate::lookup::HashMap;

/// Time in which a sample loses 63 % of its weight.
const FORGET: Duration = Duration::from_secs(10);

/// Time in which what others measured, and an average of successes, lose as much.
const FORGET_SLOWLY: Duration = Duration::from_secs(60);

/// What a failure counts as.
pub(super) const FAILURE: Duration = Duration::from_secs(2);

/// Failures in a row after which a pair is ejected: Envoy's default.
const FAILURES_MAX: u32 = 5;

/// A pair this much worse than the best of its siblings is ejected as well, once it was tried so often.
const SUCCESS_BAD_PERMILLE: u32 = 500;
const SUCCESS_GOOD_PERMILLE: u32 = 900;
const TRIES_MIN: u32 = 20;

/// Pairs remembered. Beyond it all are forgotten; only providers and egress nodes from snapshots get in.
///
/// 4,096 x about 250 bytes = 1 MiB.
const PAIRS_MAX: usize = 4096;

type Pairs = HashMap<Arc<str>, HashMap<Arc<str>, Arc<Load>>>;

/// All pairs.
#[derive(Debug)]
pub(super) struct Loads {
    pairs: ArcSwap<Pairs>,
    start: Instant,
}

/// One pair.
#[derive(Debug)]
pub(super) struct Load {
    first_byte_us: AtomicU64,
    /// Plain average of the answers' times alone: what others are told. A failure may be of this node's own path.
    answered_us: AtomicU64,
    sampled_us: AtomicU64,
    /// Links of the way that was sampled; 0 for none.
    links: AtomicU32,
    outstanding: AtomicU32,
    success_permille: AtomicU32,
    tries: AtomicU32,
    tokens_per_s: AtomicU32,
    verdict: Verdict,
    told: Told,
}

/// What others measured.
#[derive(Debug, Default)]
struct Told {
    at_us: AtomicU64,
    first_byte_us: AtomicU64,
    success_permille: AtomicU32,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            first_byte_us: AtomicU64::new(0),
            answered_us: AtomicU64::new(0),
            sampled_us: AtomicU64::new(0),
            links: AtomicU32::new(0),
            outstanding: AtomicU32::new(0),
            success_permille: AtomicU32::new(1_000),
            tries: AtomicU32::new(0),
            tokens_per_s: AtomicU32::new(0),
            verdict: Verdict::default(),
            told: Told::default(),
        }
    }
}

/// An attempt that runs; dropped, it no longer counts.
#[derive(Debug)]
pub(super) struct InFlight {
    load: Arc<Load>,
    /// The one attempt that finds out whether an ejected pair is well again.
    trial: bool,
}

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
                Pairs::default()
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

    /// Takes in a fault of a pair, whose provider is reached by way of `egress`. True if the pair is ejected now.
    pub(super) fn failed(
        &self,
        load: &Load,
        provider: &Arc<str>,
        egress: &[Arc<str>],
        now_us: u64,
    ) -> bool {
        load.outcome(false, now_us);
        let failures = load.verdict.failed();
        let retried = load.verdict.is_on_trial(now_us);
        let worse = || {
            load.tries.load(Ordering::Relaxed) >= TRIES_MIN
                && load.success(now_us) < SUCCESS_BAD_PERMILLE
        };
        if !retried && failures < FAILURES_MAX && !worse() {
            return false;
        }
        let siblings: Vec<_> = egress
            .iter()
            .map(|egress| self.of(provider, egress))
            .collect();
        let others = || {
            siblings
                .iter()
                .filter(|other| !std::ptr::eq(&***other, load))
        };
        let good = others().any(|other| other.success(now_us) >= SUCCESS_GOOD_PERMILLE);
        if !retried && failures < FAILURES_MAX && !good {
            return false;
        }
        let ejected = others()
            .filter(|other| other.verdict.is_ejected(now_us))
            .count();
        let all_fail = others().all(|other| other.verdict.failures() >= FAILURES_MAX);
        if (ejected + 1) * 2 > siblings.len().max(2) && !all_fail {
            return false;
        }
        load.first_byte_us.store(0, Ordering::Relaxed);
        load.verdict.eject(now_us)
    }

    /// Believes what control says.
    pub(super) fn hear(&self, scores: &v1::Scores, now: Instant) {
        let now_us = self.at(now);
        if scores.whole {
            for load in self.pairs.load().values().flat_map(HashMap::values) {
                load.told(&v1::UpstreamScore::default(), now_us);
            }
        }
        for row in &scores.upstreams {
            let (provider, egress) = (row.provider.as_str().into(), row.egress.as_str().into());
            self.of(&provider, &egress).told(row, now_us);
        }
    }

    /// The pairs that were tried lately or are ejected, for control and the operator.
    pub(super) fn status(&self, now: Instant) -> Vec<v1::UpstreamStatus> {
        let now_us = self.at(now);
        let lately_us = now_us.saturating_sub(FORGET_SLOWLY.as_micros() as u64);
        let pairs = self.pairs.load();
        let mut rows = Vec::new();
        for (provider, row) in pairs.iter() {
            for (egress, load) in row {
                let sampled_us = load.sampled_us.load(Ordering::Relaxed);
                let ejected_us = load.verdict.ejected_us(now_us);
                let quiet = sampled_us == 0 || sampled_us < lately_us;
                if quiet && ejected_us == 0 {
                    continue;
                }
                rows.push(v1::UpstreamStatus {
                    provider: provider.to_string(),
                    egress: egress.to_string(),
                    success_permille: load.success(now_us),
                    first_byte_us: load.answered_us.load(Ordering::Relaxed),
                    tokens_per_s: load.tokens_per_s.load(Ordering::Relaxed),
                    in_flight: load.outstanding.load(Ordering::Relaxed),
                    ejected_ms: ejected_us.div_ceil(1_000),
                });
            }
        }
        rows.sort_unstable_by(|one, other| {
            (&one.provider, &one.egress).cmp(&(&other.provider, &other.egress))
        });
        rows
    }
}

impl Load {
    /// Expected cost of one more attempt; lower is better.
    pub(super) fn cost(&self, path_rtt: Duration, weight: u32, now_us: u64) -> f64 {
        let age_us = now_us.saturating_sub(self.sampled_us.load(Ordering::Relaxed));
        let mine = self.first_byte_us.load(Ordering::Relaxed) as f64 * left(age_us, FORGET);
        let told_us = now_us.saturating_sub(self.told.at_us.load(Ordering::Relaxed));
        let told = self.told.first_byte_us.load(Ordering::Relaxed) as f64;
        // What others measured stands in for what this node has forgotten or never knew.
        let told = told * left(told_us, FORGET_SLOWLY) * (1.0 - left(age_us, FORGET));
        let outstanding = f64::from(self.outstanding.load(Ordering::Relaxed)) + 1.0;
        let success = f64::from(self.success(now_us).max(100)) / 1_000.0;
        // A millisecond for everybody, so that a pair without samples is tried but not flooded.
        (path_rtt.as_micros() as f64 + mine.max(told) + 1000.0) * outstanding
            / (f64::from(weight.max(1)) * success)
    }

    /// Successes of 1,000 tries: as this node saw lately, or else as others did.
    fn success(&self, now_us: u64) -> u32 {
        let age_us = now_us.saturating_sub(self.sampled_us.load(Ordering::Relaxed));
        let told_us = now_us.saturating_sub(self.told.at_us.load(Ordering::Relaxed));
        let faded = |permille: u32, left: f64| 1_000.0 - (1_000.0 - f64::from(permille)) * left;
        let mine = faded(
            self.success_permille.load(Ordering::Relaxed),
            left(age_us, FORGET_SLOWLY),
        );
        let told = match self.told.success_permille.load(Ordering::Relaxed) {
            0 => 1_000.0,
            told => faded(
                told,
                left(told_us, FORGET_SLOWLY) * (1.0 - left(age_us, FORGET)),
            ),
        };
        mine.min(told) as u32
    }

    /// Whether it may be used now.
    pub(super) fn standing(&self, now_us: u64) -> Standing {
        self.verdict.standing(now_us)
    }

    /// All credentials rest there, as the egress itself said to this node.
    pub(super) fn rests(&self, rest: Duration, now_us: u64) {
        self.verdict.rests(rest, now_us);
    }

    fn told(&self, row: &v1::UpstreamScore, now_us: u64) {
        self.told.at_us.store(now_us, Ordering::Relaxed);
        self.told
            .first_byte_us
            .store(row.first_byte_us, Ordering::Relaxed);
        self.told
            .success_permille
            .store(row.success_permille, Ordering::Relaxed);
        self.verdict.told(row.rests_ms, row.ejected_ms, now_us);
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
        let age_us = now_us.saturating_sub(self.sampled_us.load(Ordering::Relaxed));
        let left = left(age_us, FORGET);
        let next = if sample > known {
            sample
        } else {
            known * left + sample * (1.0 - left)
        };
        self.first_byte_us.store(next as u64, Ordering::Relaxed);
        self.sampled_us.store(now_us, Ordering::Relaxed);
    }

    /// Takes in an answer that began. True if the pair was ejected and no longer is.
    pub(super) fn answered(&self, first_byte: Duration, now_us: u64) -> bool {
        self.sample(first_byte, now_us);
        let (known, one) = (
            self.answered_us.load(Ordering::Relaxed),
            first_byte.as_micros() as u64,
        );
        let next = if known == 0 {
            one
        } else {
            (known * 7 + one) / 8
        };
        self.answered_us.store(next, Ordering::Relaxed);
        self.outcome(true, now_us);
        self.verdict.succeeded(now_us)
    }

    fn outcome(&self, good: bool, now_us: u64) {
        let known = self.success(now_us);
        let sample = if good { 1_000 } else { 0 };
        self.success_permille
            .store((known * 15 + sample) / 16, Ordering::Relaxed);
        let tries = self.tries.load(Ordering::Relaxed);
        self.tries.store(tries.saturating_add(1), Ordering::Relaxed);
    }

    /// Counts one more attempt until the mark is dropped.
    pub(super) fn enter(self: &Arc<Self>, now_us: u64) -> InFlight {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        InFlight {
            trial: self.verdict.begin_trial(now_us),
            load: Arc::clone(self),
        }
    }
}

/// What is left of a sample's weight at an age.
fn left(age_us: u64, forget: Duration) -> f64 {
    (-(age_us as f64) / forget.as_micros() as f64).exp()
}

impl InFlight {
    /// An event stream has ended: so many tokens came in so long a time behind its first byte.
    pub(super) fn streamed(&self, tokens: u64, took: Duration) {
        // Shorter ones say more of the network, or of a provider that sends all at once, than of the model.
        const TOKENS_MIN: u64 = 16;
        const TOOK_MIN: Duration = Duration::from_millis(100);
        if tokens < TOKENS_MIN || took < TOOK_MIN {
            return;
        }
        let sample = (tokens as f64 / took.as_secs_f64()).min(1e6);
        let known = &self.load.tokens_per_s;
        let next = match known.load(Ordering::Relaxed) {
            0 => sample,
            before => f64::from(before).mul_add(0.875, sample * 0.125),
        };
        known.store(next as u32, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.outstanding.fetch_sub(1, Ordering::Relaxed);
        if self.trial {
            self.load.verdict.end_trial();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND_US: u64 = 1_000_000;

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
        let mark = load.enter(0);
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

    fn pairs(count: usize) -> (Loads, Arc<str>, Vec<Arc<str>>) {
        let names = (0..count).map(|at| Arc::from(format!("e{at}"))).collect();
        (Loads::new(Instant::now()), Arc::from("p"), names)
    }

    fn fail(loads: &Loads, at: usize, egress: &[Arc<str>], now_us: u64) -> bool {
        let provider = Arc::from("p");
        let load = loads.of(&provider, &egress[at]);
        let mut ejected = false;
        for _ in 0..FAILURES_MAX {
            ejected |= loads.failed(&load, &provider, egress, now_us);
        }
        ejected
    }

    #[test]
    fn half_of_a_provider_may_be_ejected_unless_all_of_it_fails() {
        let (loads, provider, egress) = pairs(4);
        assert!(fail(&loads, 0, &egress, 1));
        assert!(fail(&loads, 1, &egress, 1));
        assert!(!fail(&loads, 2, &egress, 1), "the third of four");
        assert_eq!(loads.of(&provider, &egress[2]).standing(1), Standing::Good);
        assert!(fail(&loads, 3, &egress, 1), "nothing of it works");
        assert_eq!(
            loads.of(&provider, &egress[0]).standing(1),
            Standing::Ejected
        );
    }

    #[test]
    fn a_pair_that_fails_most_of_the_time_is_ejected_where_another_does_not() {
        let (loads, provider, egress) = pairs(2);
        let load = loads.of(&provider, &egress[0]);
        let mut ejected = false;
        for turn in 0..60_u64 {
            if turn % 4 == 0 {
                load.answered(MS, turn + 1);
            } else {
                ejected |= loads.failed(&load, &provider, &egress, turn + 1);
            }
        }
        assert!(ejected);
        let (alone, provider, egress) = pairs(1);
        let load = alone.of(&provider, &egress[0]);
        for turn in 0..60 {
            if turn % 4 == 0 {
                load.answered(MS, turn);
            } else {
                assert!(!alone.failed(&load, &provider, &egress, turn));
            }
        }
    }

    #[test]
    fn a_pair_that_fails_its_trial_is_ejected_again() {
        let (loads, provider, egress) = pairs(2);
        assert!(fail(&loads, 0, &egress, 1));
        let load = loads.of(&provider, &egress[0]);
        // Late answers of before the ejection: the failures are no longer in a row.
        load.answered(MS, 2);
        let later_us = 31 * SECOND_US;
        let trial = load.enter(later_us);
        assert!(loads.failed(&load, &provider, &egress, later_us));
        drop(trial);
        assert_eq!(load.standing(later_us + 1), Standing::Ejected);
    }

    #[test]
    fn what_others_measured_stands_in_until_it_is_old_or_known_here() {
        let (loads, provider, egress) = pairs(1);
        let load = loads.of(&provider, &egress[0]);
        let at = loads.start + Duration::from_secs(100);
        let now_us = loads.at(at);
        let before = load.cost(MS, 1, now_us);
        let row = v1::UpstreamScore {
            provider: provider.to_string(),
            egress: egress[0].to_string(),
            success_permille: 200,
            first_byte_us: 900_000,
            ..v1::UpstreamScore::default()
        };
        let scores = v1::Scores {
            whole: false,
            upstreams: vec![row],
        };
        loads.hear(&scores, at);
        assert!(load.cost(MS, 1, now_us) > 100.0 * before);
        assert!(
            load.cost(MS, 1, now_us + 900 * SECOND_US) < 2.0 * before,
            "stale"
        );
        load.answered(10 * MS, now_us + 1);
        assert!(load.cost(MS, 1, now_us + 2) < 100.0 * before, "known here");
    }

    #[test]
    fn speed_is_learned_from_long_answers() {
        let load = Arc::new(Load::default());
        let mark = load.enter(0);
        let known = || load.tokens_per_s.load(Ordering::Relaxed);
        mark.streamed(3, 1000 * MS);
        assert_eq!(known(), 0, "three tokens");
        mark.streamed(10_000, MS);
        assert_eq!(known(), 0, "all at once");
        mark.streamed(100, 2000 * MS);
        assert_eq!(known(), 50);
    }
}
