//! What control says of upstreams, on its way to the role that routes by it.
//!
//! Two replicas may say it, each from the nodes that it hears: what counts is both together. Whatever one of them knows to
//! rest, rests; numbers are the mean of those who have one. What a replica said is forgotten when its stream ends, unless
//! no other is left: nobody routes worse for the loss of control.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Instant};

use parking_lot::Mutex;
use vector_proto::control::v1::{self, UpstreamScore};

use super::STREAMS;

/// Takes what control says; called in the order in which it is said, and must not block.
pub type ScoresSink = Arc<dyn Fn(v1::Scores) + Send + Sync>;

/// Rows of one replica. A network has fewer; more are dropped, and say themselves again soon.
const ROWS_MAX: usize = 50_000;

/// Provider, egress, and the model there; empty for the pair.
type Key = (String, String, String);

#[derive(Default)]
pub(super) struct Scores(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    sink: Option<ScoresSink>,
    said: [Said; STREAMS],
}

/// What one replica said.
#[derive(Default)]
struct Said {
    open: bool,
    rows: BTreeMap<Key, (UpstreamScore, Instant)>,
}

impl Scores {
    /// A stream has begun.
    pub(super) fn opened(&self, stream: usize) {
        let mut inner = self.0.lock();
        if !inner.said.iter().any(|said| said.open) {
            // Of before: whoever is there now says everything anew.
            for (_, said) in inner.others(stream) {
                said.rows.clear();
            }
        }
        inner.said[stream].open = true;
    }

    /// A stream has ended.
    pub(super) fn ended(&self, stream: usize, now: Instant) {
        let mut inner = self.0.lock();
        inner.said[stream].open = false;
        if inner.said.iter().any(|said| said.open) {
            let rows = std::mem::take(&mut inner.said[stream].rows);
            inner.tell(false, rows.into_keys().collect(), now);
        }
    }

    pub(super) fn take(&self, stream: usize, said: v1::Scores, now: Instant) {
        let mut inner = self.0.lock();
        let mut keys = Vec::with_capacity(said.upstreams.len() + said.models.len());
        if said.whole {
            keys.extend(std::mem::take(&mut inner.said[stream].rows).into_keys());
        }
        let rows = &mut inner.said[stream].rows;
        for row in said.upstreams.into_iter().chain(said.models) {
            let key = (row.provider.clone(), row.egress.clone(), row.model.clone());
            if is_normal(&row) {
                rows.remove(&key);
            } else if rows.len() < ROWS_MAX || rows.contains_key(&key) {
                rows.insert(key.clone(), (row, now));
            }
            keys.push(key);
        }
        let alone = inner.others(stream).all(|(_, other)| !other.open);
        inner.tell(said.whole && alone, keys, now);
    }

    pub(super) fn pour_into(&self, sink: ScoresSink, now: Instant) {
        let mut inner = self.0.lock();
        inner.sink = Some(sink);
        let keys = inner.said.iter().flat_map(|said| said.rows.keys());
        let keys = keys.cloned().collect();
        inner.tell(true, keys, now);
    }
}

impl Inner {
    fn others(&mut self, stream: usize) -> impl Iterator<Item = (usize, &mut Said)> {
        let said = self.said.iter_mut().enumerate();
        said.filter(move |(other, _)| *other != stream)
    }

    fn tell(&self, whole: bool, mut keys: Vec<Key>, now: Instant) {
        let Some(sink) = &self.sink else { return };
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() && !whole {
            return;
        }
        let rows = keys.into_iter().map(|key| self.together(key, now));
        let (upstreams, models) = rows.partition(|row| row.model.is_empty());
        sink(v1::Scores {
            whole,
            upstreams,
            models,
        });
    }

    fn together(&self, key: Key, now: Instant) -> UpstreamScore {
        let mut row = UpstreamScore::default();
        let [mut success, mut reached, mut first_byte, mut tokens] =
            [(); 4].map(|()| Mean::default());
        for (said, at) in self.said.iter().filter_map(|said| said.rows.get(&key)) {
            let age = now.saturating_duration_since(*at).as_millis();
            let age = u64::try_from(age).unwrap_or(u64::MAX);
            row.rests_ms = row.rests_ms.max(said.rests_ms.saturating_sub(age));
            row.ejected_ms = row.ejected_ms.max(said.ejected_ms.saturating_sub(age));
            success.add(said.success_permille.into());
            reached.add(said.reached_permille.into());
            first_byte.add(said.first_byte_us);
            tokens.add(said.tokens_per_s.into());
            let ago = said.probed_ms_ago.map(|ago| ago.saturating_add(age));
            row.probed_ms_ago = match (row.probed_ms_ago, ago) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
        }
        row.success_permille = u32::try_from(success.mean()).unwrap_or(1_000);
        row.reached_permille = u32::try_from(reached.mean()).unwrap_or(1_000);
        row.first_byte_us = first_byte.mean();
        row.tokens_per_s = u32::try_from(tokens.mean()).unwrap_or(0);
        (row.provider, row.egress, row.model) = key;
        row
    }
}

/// Of the numbers that are known.
#[derive(Default)]
struct Mean {
    sum: u64,
    count: u64,
}

impl Mean {
    fn add(&mut self, number: u64) {
        self.sum = self.sum.saturating_add(number);
        self.count += u64::from(number > 0);
    }

    fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }
}

/// Nothing but names: back to normal.
fn is_normal(row: &UpstreamScore) -> bool {
    let times = (row.rests_ms, row.ejected_ms, row.first_byte_us);
    let rates = (row.success_permille, row.reached_permille, row.tokens_per_s);
    times == (0, 0, 0) && rates == (0, 0, 0) && row.probed_ms_ago.is_none()
}

impl fmt::Debug for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scores").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(provider: &str, rests_ms: u64, first_byte_us: u64) -> UpstreamScore {
        UpstreamScore {
            provider: provider.to_owned(),
            rests_ms,
            first_byte_us,
            ..UpstreamScore::default()
        }
    }

    fn said(whole: bool, rows: &[UpstreamScore]) -> v1::Scores {
        v1::Scores {
            whole,
            upstreams: rows.to_vec(),
            ..v1::Scores::default()
        }
    }

    /// What was heard, drained by each look.
    fn listen(scores: &Scores, now: Instant) -> impl Fn() -> Vec<v1::Scores> + use<> {
        let heard: Arc<Mutex<Vec<v1::Scores>>> = Arc::default();
        let into = Arc::clone(&heard);
        scores.pour_into(Arc::new(move |scores| into.lock().push(scores)), now);
        move || std::mem::take(&mut *heard.lock())
    }

    #[test]
    fn what_was_said_early_is_heard_first() {
        let (scores, now) = (Scores::default(), Instant::now());
        scores.opened(0);
        scores.take(0, said(false, &[row("old", 1, 0)]), now);
        scores.take(0, said(true, &[row("a", 1, 0)]), now);
        scores.take(0, said(false, &[row("b", 1, 0)]), now);
        let heard = listen(&scores, now);
        scores.take(0, said(false, &[row("c", 1, 0)]), now);
        let rows = [row("a", 1, 0), row("b", 1, 0)];
        assert_eq!(heard(), [said(true, &rows), said(false, &[row("c", 1, 0)])]);
    }

    #[test]
    fn a_model_is_heard_apart_from_its_pair() {
        let (scores, now) = (Scores::default(), Instant::now());
        let heard = listen(&scores, now);
        let _nothing = heard();
        let model = |ejected_ms, tokens_per_s| UpstreamScore {
            provider: "a".to_owned(),
            model: "m".to_owned(),
            ejected_ms,
            tokens_per_s,
            ..UpstreamScore::default()
        };
        let both = |pair: &[UpstreamScore], models: &[UpstreamScore]| v1::Scores {
            upstreams: pair.to_vec(),
            models: models.to_vec(),
            ..v1::Scores::default()
        };
        scores.opened(0);
        scores.take(0, both(&[row("a", 0, 7)], &[model(9, 40)]), now);
        assert_eq!(heard(), [both(&[row("a", 0, 7)], &[model(9, 40)])]);
        // A replica of before knows the pair alone, and its word of it is none of the model.
        scores.opened(1);
        scores.take(1, both(&[row("a", 0, 0)], &[]), now);
        assert_eq!(heard(), [both(&[row("a", 0, 7)], &[])]);
        scores.take(0, both(&[], &[model(0, 0)]), now);
        assert_eq!(heard(), [both(&[], &[model(0, 0)])]);
    }

    #[test]
    fn two_replicas_are_heard_together_and_one_that_is_gone_is_forgotten() {
        let (scores, now) = (Scores::default(), Instant::now());
        let heard = listen(&scores, now);
        let _nothing = heard();
        scores.opened(0);
        scores.take(0, said(true, &[row("a", 5_000, 100)]), now);
        assert_eq!(heard(), [said(true, &[row("a", 5_000, 100)])]);
        // A second one that knows less does not make the first one's word forgotten.
        scores.opened(1);
        let later = now + Duration::from_secs(1);
        scores.take(1, said(true, &[row("a", 0, 300), row("b", 0, 7)]), later);
        let rows = [row("a", 4_000, 200), row("b", 0, 7)];
        assert_eq!(heard(), [said(false, &rows)]);
        scores.take(0, said(false, &[row("a", 0, 0)]), later);
        assert_eq!(heard(), [said(false, &[row("a", 0, 300)])]);
        scores.ended(1, later);
        let rows = [row("a", 0, 0), row("b", 0, 0)];
        assert_eq!(heard(), [said(false, &rows)]);
        // The last one's word stays until somebody says something else.
        scores.take(0, said(false, &[row("c", 9, 0)]), later);
        scores.ended(0, later);
        scores.opened(1);
        assert_eq!(heard(), [said(false, &[row("c", 9, 0)])]);
        scores.take(1, said(true, &[]), later);
        assert_eq!(heard(), [said(true, &[])]);
    }
}
