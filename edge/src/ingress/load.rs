//! How busy, how quick and how well each upstream is over each egress, as this ingress sees it and as others tell.
//!
//! An upstream is a provider and its name for a model. What is one for all its models is kept of the (provider, egress)
//! pair: whether the provider is reached there, whether its credentials rest, how much is on its way. First-byte times,
//! successes, tokens a second and ejection are of each model there, so that a slow or dead model says nothing of the others;
//! `verdict` has the table of what says what. Who fails five times in a row is ejected, at most half of the egress
//! nodes for a provider or a model unless all of them fail, and then tried with one real request at a time. What this node
//! sees itself counts more than what it is told. Reading takes no lock; a table is copied only when a pair or a model is seen
//! for the first time.

// Of one of them.
mod figures;
mod verdict;

// Of one pair.
mod models;

// Of all.
mod learn;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use vector_proto::control::v1;

use self::{
    figures::{FORGET_SLOWLY, Figures, faded, left, moved},
    models::{Model, Models},
};
pub(super) use self::{
    learn::{Change, Upstream},
    verdict::{Lesson, Scope, Standing},
};
use crate::lookup::HashMap;

/// What of an answer's length counts when equals are compared: the time of its first tokens. Half a second for a model that
/// writes 20 a second, a tenth for one that writes 100.
const TOKENS_COUNTED: f64 = 10.0;

/// Pairs remembered. Beyond it all are forgotten; only providers and egress nodes from snapshots get in.
///
/// 4,096 x about 350 bytes = 1.4 MiB, without their models ([`models::MODELS_MAX`]).
const PAIRS_MAX: usize = 4096;

/// A probe is as old as it is told to be, and as its word was on its way at most.
const PROBE_SLACK: Duration = Duration::from_secs(1);

/// Models told of to control and the operator, 80 bytes each: those in trouble first, then the most used.
const MODELS_TOLD_MAX: usize = 256;

/// A model that succeeds less often is in trouble.
const SUCCESS_TROUBLE_PERMILLE: u32 = 950;

type Pairs = HashMap<Arc<str>, HashMap<Arc<str>, Arc<Pair>>>;

/// All pairs.
#[derive(Debug)]
pub(super) struct Loads {
    pairs: ArcSwap<Pairs>,
    start: Instant,
}

/// One provider by way of one egress.
#[derive(Debug)]
struct Pair {
    /// Their success is that of reaching the provider, and their first byte what failures to do so count as.
    figures: Figures,
    /// Successes of everything that is sent there, for others.
    success_permille: AtomicU32,
    /// Links of the way that is taken; 0 for none.
    links: AtomicU32,
    /// Counts the ways.
    way: AtomicU32,
    models: Models,
}

/// A pair, and a model there if it was seen before.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pair: Arc<Pair>,
    model: Option<Arc<Model>>,
}

/// An attempt that runs; dropped, it no longer counts.
#[derive(Debug)]
pub(super) struct InFlight {
    load: Load,
    /// The one attempt that finds out whether an ejected pair is well again, or an ejected model.
    trials: (bool, bool),
}

impl Default for Pair {
    fn default() -> Self {
        Self {
            figures: Figures::default(),
            success_permille: AtomicU32::new(1_000),
            links: AtomicU32::new(0),
            way: AtomicU32::new(0),
            models: Models::default(),
        }
    }
}

impl Loads {
    pub(super) fn new(start: Instant) -> Self {
        Self {
            pairs: ArcSwap::default(),
            start,
        }
    }

    /// How a model fares there; the pair is made at first sight, the model when something is known of it.
    pub(super) fn of(&self, provider: &Arc<str>, egress: &Arc<str>, model: &str) -> Load {
        let pair = self.pair(provider, egress);
        Load {
            model: pair.models.known(model),
            pair,
        }
    }

    fn pair(&self, provider: &Arc<str>, egress: &Arc<str>) -> Arc<Pair> {
        if let Some(pair) = self
            .pairs
            .load()
            .get(provider)
            .and_then(|row| row.get(egress))
        {
            return Arc::clone(pair);
        }
        let fresh = Arc::new(Pair::default());
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
            Some(pair) => Arc::clone(pair),
            None => fresh,
        }
    }

    /// This moment, as the loads count time.
    pub(super) fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }

    /// Believes what control says.
    pub(super) fn hear(&self, scores: &v1::Scores, now: Instant) {
        let now_us = self.at(now);
        if scores.whole {
            let nothing = v1::UpstreamScore::default();
            for pair in self.pairs.load().values().flat_map(HashMap::values) {
                pair.figures.told(&nothing, 0, now_us);
                for model in pair.models.all().values() {
                    model.figures.told(&nothing, 0, now_us);
                }
            }
        }
        let pair = |row: &v1::UpstreamScore| {
            self.pair(&row.provider.as_str().into(), &row.egress.as_str().into())
        };
        for row in &scores.upstreams {
            // Who does not tell it apart means everything that was sent there.
            let reached = match row.reached_permille {
                0 => row.success_permille,
                reached => reached,
            };
            let pair = pair(row);
            pair.figures.told(row, reached, now_us);
            let Some(ago_ms) = row.probed_ms_ago else {
                continue;
            };
            // Its way here took a while.
            let ago_us = ago_ms
                .saturating_mul(1_000)
                .saturating_add(PROBE_SLACK.as_micros() as u64);
            if pair
                .figures
                .verdict
                .found_well(now_us.saturating_sub(ago_us))
            {
                pair.figures.forget_times();
                tracing::info!(
                    provider = row.provider,
                    egress = row.egress,
                    "upstream is in use again: a probe found it well"
                );
            }
        }
        for row in &scores.models {
            let models = &pair(row).models;
            let normal = (row.ejected_ms, row.success_permille, row.first_byte_us) == (0, 0, 0);
            let model = if normal {
                models.known(&row.model)
            } else {
                models.entry(&row.model, now_us)
            };
            if let Some(model) = model {
                model.figures.told(row, row.success_permille, now_us);
            }
        }
    }

    /// The pairs that were tried lately or are ejected, and then the models, for control and the operator.
    pub(super) fn status(&self, now: Instant) -> Vec<v1::UpstreamStatus> {
        let now_us = self.at(now);
        let pairs = self.pairs.load();
        let (mut rows, mut models) = (Vec::new(), Vec::new());
        for (provider, row) in pairs.iter() {
            for (egress, pair) in row {
                if !pair.figures.is_quiet(now_us) {
                    rows.push(v1::UpstreamStatus {
                        provider: provider.to_string(),
                        egress: egress.to_string(),
                        ..pair.status(now_us)
                    });
                }
                for (name, model) in pair.models.all().iter() {
                    if !name.is_empty() && !model.figures.is_quiet(now_us) {
                        models.push((provider, egress, Arc::clone(name), Arc::clone(model)));
                    }
                }
            }
        }
        if models.len() > MODELS_TOLD_MAX {
            models.sort_by_cached_key(|(.., model)| {
                let figures = &model.figures;
                let well = figures.verdict.ejected_us(now_us) == 0
                    && figures.success(now_us) >= SUCCESS_TROUBLE_PERMILLE;
                (well, std::cmp::Reverse(figures.tries()))
            });
            models.truncate(MODELS_TOLD_MAX);
        }
        rows.extend(
            models
                .iter()
                .map(|(provider, egress, name, model)| v1::UpstreamStatus {
                    provider: provider.to_string(),
                    egress: egress.to_string(),
                    model: name.to_string(),
                    ..model.figures.status(now_us)
                }),
        );
        rows.sort_unstable_by(|one, other| {
            (
                !one.model.is_empty(),
                &one.provider,
                &one.egress,
                &one.model,
            )
                .cmp(&(
                    !other.model.is_empty(),
                    &other.provider,
                    &other.egress,
                    &other.model,
                ))
        });
        rows
    }
}

impl Pair {
    /// Takes in whether anything at all went well.
    fn all(&self, good: bool, now_us: u64) {
        let next = moved(self.success(now_us), good);
        self.success_permille.store(next, Ordering::Relaxed);
    }

    /// Of everything that is sent there.
    fn success(&self, now_us: u64) -> u32 {
        let mine = self.success_permille.load(Ordering::Relaxed);
        faded(mine, left(now_us, self.figures.sampled_us(), FORGET_SLOWLY))
    }

    fn status(&self, now_us: u64) -> v1::UpstreamStatus {
        let status = self.figures.status(now_us);
        v1::UpstreamStatus {
            success_permille: self.success(now_us),
            reached_permille: status.success_permille.max(1),
            ..status
        }
    }
}

impl Load {
    /// Expected cost of one more attempt; lower is better.
    pub(super) fn cost(&self, path_rtt: Duration, weight: u32, now_us: u64) -> f64 {
        let pair = &self.pair.figures;
        let outstanding = f64::from(pair.outstanding()) + 1.0;
        let success = f64::from(self.success(now_us).max(100)) / 1_000.0;
        let first_byte = self.first_byte(now_us).max(pair.measured(now_us));
        let model = self
            .model
            .as_ref()
            .map(|model| model.figures.tokens_per_s());
        let writing = match model.unwrap_or_default() {
            0 => 0.0,
            tokens => TOKENS_COUNTED * 1e6 / f64::from(tokens),
        };
        // A millisecond for everybody, so that a pair without samples is tried but not flooded.
        (path_rtt.as_micros() as f64 + first_byte + writing + 1000.0) * outstanding
            / (f64::from(weight.max(1)) * success)
    }

    /// Expected time to the model's first byte, in microseconds.
    fn first_byte(&self, now_us: u64) -> f64 {
        let pair = &self.pair;
        // Others' word of all models is better than nothing.
        let told = |figures: &Figures| figures.told_first_byte(now_us);
        let Some(model) = &self.model else {
            return told(&pair.figures).unwrap_or(0.0);
        };
        let mine = model.measured(pair.way.load(Ordering::Relaxed), now_us);
        let told = told(&model.figures).or_else(|| told(&pair.figures));
        // What others measured stands in for what this node has forgotten or never knew.
        mine.max(told.unwrap_or(0.0) * (1.0 - model.figures.fresh(now_us)))
    }

    /// Successes of 1,000 tries.
    fn success(&self, now_us: u64) -> u32 {
        let reached = self.pair.figures.success(now_us);
        match &self.model {
            Some(model) => model.figures.success(now_us).min(reached),
            None => reached,
        }
    }

    /// Whether it may be used now.
    pub(super) fn standing(&self, now_us: u64) -> Standing {
        let pair = self.pair.figures.verdict.standing(now_us);
        match &self.model {
            Some(model) => model.figures.verdict.standing(now_us).max(pair),
            None => pair,
        }
    }

    /// Notes over how many links the egress is reached now, 0 if over none.
    ///
    /// What was measured over another way says nothing of this one: an egress that was lost and is back is tried at once,
    /// instead of being avoided until its failures are forgotten.
    pub(super) fn reached_over(&self, links: u32) {
        let pair = &self.pair;
        if pair.links.load(Ordering::Relaxed) != links {
            pair.links.store(links, Ordering::Relaxed);
            pair.way.fetch_add(1, Ordering::Relaxed);
            pair.figures.forget_times();
        }
    }

    /// Counts one more attempt until the mark is dropped.
    pub(super) fn enter(&self, now_us: u64) -> InFlight {
        let model = self.model.as_ref();
        InFlight {
            trials: (
                self.pair.figures.enter(now_us),
                model.is_some_and(|model| model.figures.enter(now_us)),
            ),
            load: self.clone(),
        }
    }
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
        self.load.pair.figures.wrote(sample);
        if let Some(model) = &self.load.model {
            model.figures.wrote(sample);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let (pair, model) = self.trials;
        self.load.pair.figures.leave(pair);
        if let Some(it) = &self.load.model {
            it.figures.leave(model);
        }
    }
}

#[cfg(test)]
mod tests;
