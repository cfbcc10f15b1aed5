//! The models of one pair, each with figures of its own; in bounded number, since clients choose names where a model `*`
//! passes them on.
//!
//! A model is known by what the provider calls it; what names none is one of its own, without a name. One that was never
//! answered for is not remembered, so that made-up names push nothing out.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use arc_swap::ArcSwap;

use super::figures::Figures;
use crate::lookup::HashMap;

/// Models remembered of one pair: the one that was heard of longest ago makes room, one that is not ejected first.
///
/// 64 x about 250 bytes x the 4,096 pairs = 64 MiB at the very worst. A network of 200 egress nodes and ten providers with 20
/// models each has 2,000 pairs and 40,000 models: 10 MiB.
pub(super) const MODELS_MAX: usize = 64;

/// Longest name that is remembered: as much as a body may name.
const NAME_BYTES_MAX: usize = 256;

/// One model at a pair.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) figures: Figures,
    /// Over which of the pair's ways it was sampled last (`Pair::way`).
    pub(super) way: AtomicU32,
}

type Known = HashMap<Arc<str>, Arc<Model>>;

/// All of one pair. Reading takes no lock; the table is copied when a model is seen for the first time.
#[derive(Debug, Default)]
pub(super) struct Models(ArcSwap<Known>);

impl Models {
    /// A model that was seen before.
    pub(super) fn known(&self, name: &str) -> Option<Arc<Model>> {
        self.0.load().get(name).map(Arc::clone)
    }

    /// A model; made at first sight. `None`: nobody remembers such a name.
    pub(super) fn entry(&self, name: &str, now_us: u64) -> Option<Arc<Model>> {
        if let Some(known) = self.known(name) {
            return Some(known);
        }
        if name.len() > NAME_BYTES_MAX {
            return None;
        }
        let (name, fresh) = (Arc::<str>::from(name), Arc::new(Model::default()));
        self.0.rcu(|known| {
            let mut known = Known::clone(known);
            if known.len() >= MODELS_MAX && !known.contains_key(&name) {
                make_room(&mut known, now_us);
            }
            let entry = known.entry(Arc::clone(&name));
            entry.or_insert_with(|| Arc::clone(&fresh));
            known
        });
        Some(self.known(&name).unwrap_or(fresh))
    }

    /// All of them, as they are now.
    pub(super) fn all(&self) -> Arc<Known> {
        self.0.load_full()
    }

    /// How many fail now, and have since the pair last answered for any of them.
    pub(super) fn failing_since(&self, answered_us: u64, failures: u32) -> usize {
        let known = self.0.load();
        let failing = known.values().filter(|model| {
            let verdict = &model.figures.verdict;
            verdict.failures() >= failures && verdict.failed_us() > answered_us
        });
        failing.count()
    }
}

fn make_room(known: &mut Known, now_us: u64) {
    let worth = |model: &Model| {
        let figures = &model.figures;
        (figures.verdict.is_ejected(now_us), figures.heard_us())
    };
    let least = known.iter().min_by_key(|(_, model)| worth(model));
    if let Some(name) = least.map(|(name, _)| Arc::clone(name)) {
        known.remove(&name);
    }
}

impl Model {
    /// What was sampled over the way that the pair is reached by now.
    pub(super) fn measured(&self, way: u32, now_us: u64) -> f64 {
        if self.way.load(Ordering::Relaxed) == way {
            self.figures.measured(now_us)
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_number_is_bounded_and_who_is_in_trouble_stays() {
        let models = Models::default();
        let dead = models.entry("dead", 1).unwrap();
        dead.figures.sample(Duration::ZERO, 1);
        assert!(dead.figures.verdict.eject(1));
        for at in 2..1_000 {
            let model = models.entry(&format!("m{at}"), at).unwrap();
            model.figures.sample(Duration::ZERO, at);
        }
        let known = models.all();
        assert_eq!(known.len(), MODELS_MAX);
        assert!(known.contains_key("dead"));
        assert!(known.contains_key("m999") && !known.contains_key("m2"));
        assert!(models.entry(&"x".repeat(300), 1_000).is_none());
        assert!(Arc::ptr_eq(&models.entry("dead", 1_000).unwrap(), &dead));
    }
}
