//! What control says of upstreams, on its way to the role that routes by it.
//!
//! Nothing is kept here once somebody listens. Before that, what was said is gathered, so that the order in which a node's
//! parts start does not matter.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use vector_proto::control::v1;

/// Takes what control says; called in the order in which it is said, and must not block.
pub type ScoresSink = Arc<dyn Fn(v1::Scores) + Send + Sync>;

/// Rows that wait for a listener. A network has fewer; more are dropped, and say themselves again soon.
const EARLY_MAX: usize = 50_000;

#[derive(Default)]
pub(super) struct Scores(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    sink: Option<ScoresSink>,
    early: v1::Scores,
}

impl Scores {
    pub(super) fn take(&self, said: v1::Scores) {
        let mut inner = self.0.lock();
        if let Some(sink) = &inner.sink {
            return sink(said);
        }
        if said.whole {
            inner.early = said;
        } else if inner.early.upstreams.len() + said.upstreams.len() <= EARLY_MAX {
            inner.early.upstreams.extend(said.upstreams);
        }
    }

    pub(super) fn pour_into(&self, sink: ScoresSink) {
        let mut inner = self.0.lock();
        sink(std::mem::take(&mut inner.early));
        inner.sink = Some(sink);
    }
}

impl fmt::Debug for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scores").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(whole: bool, names: &[&str]) -> v1::Scores {
        let row = |name: &&str| v1::UpstreamScore {
            provider: (*name).to_owned(),
            ..v1::UpstreamScore::default()
        };
        v1::Scores {
            whole,
            upstreams: names.iter().map(row).collect(),
        }
    }

    #[test]
    fn what_was_said_early_is_heard_first() {
        let scores = Scores::default();
        scores.take(said(false, &["old"]));
        scores.take(said(true, &["a"]));
        scores.take(said(false, &["b"]));
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let into = Arc::clone(&heard);
        scores.pour_into(Arc::new(move |scores| {
            into.lock()
                .extend(scores.upstreams.into_iter().map(|row| row.provider));
        }));
        scores.take(said(false, &["c"]));
        assert_eq!(*heard.lock(), ["a", "b", "c"]);
    }
}
