//! Averages that forget: of one model at a pair, or of the pair itself.
//!
//! The time to the first byte is peak-sensitive (Finagle's and linkerd's peak EWMA), successes and tokens a second are plain
//! moving averages. What others measured stands in for what this node has forgotten or never knew. All in atomics: a race
//! costs one sample.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use vector_proto::control::v1;

use super::verdict::Verdict;

/// Time in which a sample loses 63 % of its weight.
const FORGET: Duration = Duration::from_secs(10);

/// What one that is avoided is taken to be slower at first; nothing is left of it after [`AVOIDED`]. A sample of that length would
/// keep a quick one out for a minute after what was wrong is over, long after any failure could be told from it.
const AVOIDED_COST: Duration = Duration::from_secs(2);
const AVOIDED: Duration = Duration::from_secs(5);

/// Time in which what others measured, and an average of successes, lose as much.
pub(super) const FORGET_SLOWLY: Duration = Duration::from_secs(60);

/// What is measured, told and decided.
#[derive(Debug)]
pub(super) struct Figures {
    /// What the next try is to be expected to take, as far as this node knows.
    peak_us: AtomicU64,
    /// Plain average of the answers' times alone: what others are told. A failure may be of this node's own path.
    answered_us: AtomicU64,
    sampled_us: AtomicU64,
    /// 0: never.
    avoided_until_us: AtomicU64,
    outstanding: AtomicU32,
    success_permille: AtomicU32,
    tries: AtomicU32,
    tokens_per_s: AtomicU32,
    pub(super) verdict: Verdict,
    told: Told,
}

/// What others measured.
#[derive(Debug, Default)]
struct Told {
    at_us: AtomicU64,
    first_byte_us: AtomicU64,
    success_permille: AtomicU32,
    tokens_per_s: AtomicU32,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            peak_us: AtomicU64::new(0),
            answered_us: AtomicU64::new(0),
            sampled_us: AtomicU64::new(0),
            avoided_until_us: AtomicU64::new(0),
            outstanding: AtomicU32::new(0),
            success_permille: AtomicU32::new(1_000),
            tries: AtomicU32::new(0),
            tokens_per_s: AtomicU32::new(0),
            verdict: Verdict::default(),
            told: Told::default(),
        }
    }
}

impl Figures {
    /// Expected time to the first byte as this node measured it, in microseconds, and more while it is avoided.
    pub(super) fn measured(&self, now_us: u64) -> f64 {
        let until_us = self.avoided_until_us.load(Ordering::Relaxed);
        let left_us = until_us.saturating_sub(now_us) as f64;
        let avoided = left_us * AVOIDED_COST.div_duration_f64(AVOIDED);
        self.peak_us.load(Ordering::Relaxed) as f64 * self.fresh(now_us) + avoided
    }

    /// Others are taken for some seconds, unless they are much slower.
    pub(super) fn avoid(&self, now_us: u64) {
        let until_us = now_us.saturating_add(AVOIDED.as_micros() as u64);
        self.avoided_until_us.store(until_us, Ordering::Relaxed);
    }

    /// The same as others measured it. `None`: they said nothing of it.
    pub(super) fn told_first_byte(&self, now_us: u64) -> Option<f64> {
        let told = self.told.first_byte_us.load(Ordering::Relaxed);
        (told > 0).then(|| told as f64 * self.told_left(now_us))
    }

    /// How much this node's own samples still say, from 1 down to 0.
    pub(super) fn fresh(&self, now_us: u64) -> f64 {
        left(now_us, self.sampled_us(), FORGET)
    }

    fn told_left(&self, now_us: u64) -> f64 {
        left(
            now_us,
            self.told.at_us.load(Ordering::Relaxed),
            FORGET_SLOWLY,
        )
    }

    /// Successes of 1,000 tries: as this node saw lately, or else as others did.
    pub(super) fn success(&self, now_us: u64) -> u32 {
        let told = match self.told.success_permille.load(Ordering::Relaxed) {
            0 => 1_000,
            told => faded(told, self.told_left(now_us) * (1.0 - self.fresh(now_us))),
        };
        let mine = self.success_permille.load(Ordering::Relaxed);
        faded(mine, left(now_us, self.sampled_us(), FORGET_SLOWLY)).min(told)
    }

    /// Tokens a second of one answer; 0 when nobody knows.
    pub(super) fn tokens_per_s(&self) -> u32 {
        match self.tokens_per_s.load(Ordering::Relaxed) {
            0 => self.told.tokens_per_s.load(Ordering::Relaxed),
            mine => mine,
        }
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    pub(super) fn tries(&self) -> u32 {
        self.tries.load(Ordering::Relaxed)
    }

    /// When it was tried last; 0 for never.
    pub(super) fn sampled_us(&self) -> u64 {
        self.sampled_us.load(Ordering::Relaxed)
    }

    /// When anybody said anything of it last.
    pub(super) fn heard_us(&self) -> u64 {
        self.sampled_us()
            .max(self.told.at_us.load(Ordering::Relaxed))
    }

    /// Takes in one time to the first byte, or what a failure counts as.
    pub(super) fn sample(&self, first_byte: Duration, now_us: u64) {
        let sample = first_byte.as_micros() as f64;
        let known = self.peak_us.load(Ordering::Relaxed) as f64;
        let left = self.fresh(now_us);
        let next = if sample > known {
            sample
        } else {
            known * left + sample * (1.0 - left)
        };
        self.peak_us.store(next as u64, Ordering::Relaxed);
        self.sampled_us.store(now_us, Ordering::Relaxed);
    }

    /// What was measured says nothing any more.
    pub(super) fn forget_times(&self) {
        self.peak_us.store(0, Ordering::Relaxed);
        self.avoided_until_us.store(0, Ordering::Relaxed);
    }

    /// Takes in the time of an answer, for others.
    pub(super) fn answered(&self, first_byte: Duration) {
        let known = self.answered_us.load(Ordering::Relaxed);
        let one = u64::try_from(first_byte.as_micros()).unwrap_or(u64::MAX);
        let next = match known {
            0 => one,
            known => known.saturating_mul(7).saturating_add(one) / 8,
        };
        self.answered_us.store(next, Ordering::Relaxed);
    }

    /// Takes in whether a try went well.
    pub(super) fn outcome(&self, good: bool, now_us: u64) {
        let next = moved(self.success(now_us), good);
        self.success_permille.store(next, Ordering::Relaxed);
        let tries = self.tries.load(Ordering::Relaxed);
        self.tries.store(tries.saturating_add(1), Ordering::Relaxed);
    }

    /// Takes in how fast an answer was written.
    pub(super) fn wrote(&self, tokens_per_s: f64) {
        let next = match self.tokens_per_s.load(Ordering::Relaxed) {
            0 => tokens_per_s,
            before => f64::from(before).mul_add(0.875, tokens_per_s * 0.125),
        };
        self.tokens_per_s.store(next as u32, Ordering::Relaxed);
    }

    /// Believes what control says; `success_permille` apart, since a pair's is of another kind.
    pub(super) fn told(&self, row: &v1::UpstreamScore, success_permille: u32, now_us: u64) {
        let told = &self.told;
        told.at_us.store(now_us, Ordering::Relaxed);
        told.first_byte_us
            .store(row.first_byte_us, Ordering::Relaxed);
        told.success_permille
            .store(success_permille, Ordering::Relaxed);
        told.tokens_per_s.store(row.tokens_per_s, Ordering::Relaxed);
        self.verdict.told(row.rests_ms, row.ejected_ms, now_us);
    }

    /// One more attempt runs. True if it is the one that finds out whether an ejected one is well again.
    pub(super) fn enter(&self, now_us: u64) -> bool {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        self.verdict.begin_trial(now_us)
    }

    /// It is over.
    pub(super) fn leave(&self, trial: bool) {
        self.outstanding.fetch_sub(1, Ordering::Relaxed);
        if trial {
            self.verdict.end_trial();
        }
    }

    /// Nobody tried it lately, and nobody is kept from it.
    pub(super) fn is_quiet(&self, now_us: u64) -> bool {
        let lately_us = now_us.saturating_sub(FORGET_SLOWLY.as_micros() as u64);
        let sampled_us = self.sampled_us();
        (sampled_us == 0 || sampled_us < lately_us) && self.verdict.ejected_us(now_us) == 0
    }

    /// For control and the operator, without its names.
    pub(super) fn status(&self, now_us: u64) -> v1::UpstreamStatus {
        v1::UpstreamStatus {
            success_permille: self.success(now_us),
            first_byte_us: self.answered_us.load(Ordering::Relaxed),
            tokens_per_s: self.tokens_per_s.load(Ordering::Relaxed),
            in_flight: self.outstanding(),
            ejected_ms: self.verdict.ejected_us(now_us).div_ceil(1_000),
            ..v1::UpstreamStatus::default()
        }
    }
}

/// An average of successes after one more try.
pub(super) fn moved(known_permille: u32, good: bool) -> u32 {
    (known_permille * 15 + if good { 1_000 } else { 0 }) / 16
}

/// An average of successes of which so much is still believed.
pub(super) fn faded(permille: u32, left: f64) -> u32 {
    (1_000.0 - (1_000.0 - f64::from(permille)) * left) as u32
}

/// What is left of a sample's weight.
pub(super) fn left(now_us: u64, sampled_us: u64, forget: Duration) -> f64 {
    let age_us = now_us.saturating_sub(sampled_us);
    (-(age_us as f64) / forget.as_micros() as f64).exp()
}
