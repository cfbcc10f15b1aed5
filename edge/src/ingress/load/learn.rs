//! What an attempt teaches: averages move, and who fails is ejected.
//!
//! `verdict` says of whom it speaks; here is what follows.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{Figures, InFlight, Lesson, Load, Loads, Model, Pair, Scope};
use crate::control_plane::ProviderRow;

/// What a failure counts as.
const FAILURE: Duration = Duration::from_secs(2);

/// Failures in a row after which a pair or a model is ejected: Envoy's default.
pub(super) const FAILURES_MAX: u32 = 5;

/// Models of a pair that fail so, and nothing else answers: then the pair fails.
const MODELS_FAILING: usize = 2;

/// One this much worse than the best of its siblings is ejected as well, once it was tried so often.
const SUCCESS_BAD_PERMILLE: u32 = 500;
const SUCCESS_GOOD_PERMILLE: u32 = 900;
const TRIES_MIN: u32 = 20;

/// What was tried.
#[derive(Clone, Copy, Debug)]
pub(in crate::ingress) struct Upstream<'a> {
    pub(in crate::ingress) provider: &'a ProviderRow,
    /// What the provider calls the model; empty for what names none.
    pub(in crate::ingress) model: &'a str,
}

/// What is otherwise since an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::ingress) enum Change {
    Ejected(Scope),
    /// It was ejected and is well.
    InUse(Scope),
}

impl Loads {
    /// Takes in how an attempt went.
    pub(in crate::ingress) fn learn(
        &self,
        tried: &mut InFlight,
        upstream: Upstream<'_>,
        lesson: Lesson,
        now_us: u64,
    ) -> Option<Change> {
        let pair = Arc::clone(&tried.load.pair);
        match lesson {
            Lesson::Nothing => None,
            Lesson::Rests(rest) => {
                pair.figures.verdict.rests(rest, now_us);
                None
            }
            Lesson::Answered { first_byte, good } => {
                if good {
                    tried.meets(upstream.model, now_us);
                }
                tried.load.answered(first_byte, now_us)
            }
            Lesson::Avoid(Scope::Pair) => {
                pair.figures.avoid(now_us);
                None
            }
            Lesson::Avoid(Scope::Model) => {
                tried.meets(upstream.model, now_us);
                if let Some(model) = &tried.load.model {
                    model.avoid(&pair, now_us);
                }
                None
            }
            Lesson::Fault(Scope::Pair) => self.pair_failed(&pair, upstream, now_us),
            Lesson::Fault(Scope::Model) => {
                tried.meets(upstream.model, now_us);
                self.model_failed(&tried.load, upstream, now_us)
            }
        }
    }

    fn pair_failed(&self, pair: &Pair, upstream: Upstream<'_>, now_us: u64) -> Option<Change> {
        pair.all(false, now_us);
        pair.figures.sample(FAILURE, now_us);
        pair.figures.outcome(false, now_us);
        pair.figures.verdict.failed(now_us);
        self.judge_pair(pair, upstream, now_us)
    }

    fn judge_pair(&self, pair: &Pair, upstream: Upstream<'_>, now_us: u64) -> Option<Change> {
        let siblings: Vec<_> = self.siblings(upstream.provider).collect();
        let siblings = siblings.iter().map(|pair| Some(&pair.figures));
        eject(&pair.figures, siblings, now_us).then_some(Change::Ejected(Scope::Pair))
    }

    fn model_failed(&self, load: &Load, upstream: Upstream<'_>, now_us: u64) -> Option<Change> {
        let (pair, model) = (&load.pair, load.model.as_ref()?);
        pair.all(false, now_us);
        // It was reached.
        pair.figures.outcome(true, now_us);
        pair.figures.sample(Duration::ZERO, now_us);
        model.sample(FAILURE, pair, now_us);
        model.figures.outcome(false, now_us);
        model.figures.verdict.failed(now_us);
        let siblings: Vec<_> = self
            .siblings(upstream.provider)
            .map(|pair| pair.models.known(upstream.model))
            .collect();
        let siblings = siblings
            .iter()
            .map(|model| model.as_ref().map(|model| &model.figures));
        let ejected = eject(&model.figures, siblings, now_us);
        let answered_us = pair.figures.verdict.succeeded_us();
        if pair.models.failing_since(answered_us, FAILURES_MAX) >= MODELS_FAILING {
            pair.figures.verdict.fails(FAILURES_MAX, now_us);
            if let Some(change) = self.judge_pair(pair, upstream, now_us) {
                return Some(change);
            }
        }
        ejected.then_some(Change::Ejected(Scope::Model))
    }

    /// The pairs of a provider.
    fn siblings(&self, provider: &ProviderRow) -> impl Iterator<Item = Arc<Pair>> {
        let egress = provider.egress.iter();
        egress.map(|egress| self.pair(&provider.name, egress))
    }
}

/// Ejects one of several that fails: at most half of them, unless all fail, so that never all are left out for the faults of
/// some. `None`: one that was never tried. True if it is ejected now.
fn eject<'a>(
    one: &Figures,
    siblings: impl ExactSizeIterator<Item = Option<&'a Figures>> + Clone,
    now_us: u64,
) -> bool {
    let failures = one.verdict.failures();
    let certain = one.verdict.is_on_trial(now_us) || failures >= FAILURES_MAX;
    let worse = one.tries() >= TRIES_MIN && one.success(now_us) < SUCCESS_BAD_PERMILLE;
    if !certain && !worse {
        return false;
    }
    let count = siblings.len();
    let others = || {
        let is_one = |other: &Option<&Figures>| other.is_some_and(|other| std::ptr::eq(other, one));
        siblings.clone().filter(move |other| !is_one(other))
    };
    let success = |other: Option<&Figures>| other.map_or(1_000, |other| other.success(now_us));
    if !certain && !others().any(|other| success(other) >= SUCCESS_GOOD_PERMILLE) {
        return false;
    }
    let is_ejected =
        |other: Option<&Figures>| other.is_some_and(|it| it.verdict.is_ejected(now_us));
    let ejected = others().filter(|other| is_ejected(*other)).count();
    let fails = |other: Option<&Figures>| {
        other.is_some_and(|other| other.verdict.failures() >= FAILURES_MAX)
    };
    if (ejected + 1) * 2 > count.max(2) && !others().all(fails) {
        return false;
    }
    one.forget_times();
    one.verdict.eject(now_us)
}

impl Model {
    fn sample(&self, first_byte: Duration, pair: &Pair, now_us: u64) {
        self.follow(pair);
        self.figures.sample(first_byte, now_us);
    }

    fn avoid(&self, pair: &Pair, now_us: u64) {
        self.follow(pair);
        self.figures.avoid(now_us);
    }

    /// What is noted from now on is of the way that the pair is reached by.
    fn follow(&self, pair: &Pair) {
        let way = pair.way.load(Ordering::Relaxed);
        if self.way.swap(way, Ordering::Relaxed) != way {
            self.figures.forget_times();
        }
    }
}

impl Load {
    /// Takes in an answer that began.
    fn answered(&self, first_byte: Duration, now_us: u64) -> Option<Change> {
        let pair = &self.pair;
        pair.all(true, now_us);
        pair.figures.sample(Duration::ZERO, now_us);
        pair.figures.answered(first_byte);
        pair.figures.outcome(true, now_us);
        let mut change = None;
        if let Some(model) = &self.model {
            model.sample(first_byte, pair, now_us);
            model.figures.answered(first_byte);
            model.figures.outcome(true, now_us);
            if model.figures.verdict.succeeded(now_us) {
                change = Some(Change::InUse(Scope::Model));
            }
        }
        if pair.figures.verdict.succeeded(now_us) {
            change = Some(Change::InUse(Scope::Pair));
        }
        change
    }
}

impl InFlight {
    /// Something is known of the model from now on.
    fn meets(&mut self, model: &str, now_us: u64) {
        if self.load.model.is_none() {
            self.load.model = self.load.pair.models.entry(model, now_us);
            let model = self.load.model.as_ref();
            self.trials.1 = model.is_some_and(|model| model.figures.enter(now_us));
        }
    }
}
