//! Makes what nodes report into what every ingress hears: who rests, who is ejected, how quick each upstream is.
//!
//! Apart from snapshots, since it is stale after seconds: not kept, without a revision, and pushed within
//! [`DEBOUNCE`] of a report, or a little later where many nodes report. Compiling and comparing are pure; only [`Steering::run`] waits.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::UpstreamScore;

use crate::health::{Fleet, Signals};

/// Reports within this time make one push.
const DEBOUNCE: Duration = Duration::from_millis(10);

/// After the reports were looked through, so many times as long passes before they are again, and never longer than that: with
/// a thousand nodes a look takes some milliseconds, and a hundred reports come each second.
const REST_TIMES: u32 = 10;
const REST_MAX: Duration = Duration::from_millis(200);

/// Moments this close are one, and so are numbers.
const SAME_MOMENT: Duration = Duration::from_millis(100);
const SAME_PERMILLE: u32 = 50;
const SAME_US: u64 = 20_000;

/// What is known of one provider by way of one egress.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Row {
    /// Every credential rests until then.
    rests_until: Option<Instant>,
    /// Some ingress has it ejected until then.
    ejected_until: Option<Instant>,
    /// Over all ingress nodes; 0 when nobody knows.
    success_permille: u32,
    /// Likewise.
    first_byte_us: u64,
}

/// By provider and egress.
type Table = BTreeMap<(String, String), Row>;

/// What ingress nodes go by. All of them hear the same, so what is new is found once and not for each: with 200 egress nodes
/// of ten providers the table has 2,000 rows, and as many ingress nodes as can be have it in common.
#[derive(Debug, Default)]
pub struct Told {
    /// Counts.
    number: u64,
    table: Table,
    /// What is different in it since the one before.
    news: Vec<UpstreamScore>,
}

impl Told {
    /// What a node is told next that goes by `before`.
    #[must_use]
    pub fn since(&self, before: &Self, now: Instant) -> Vec<UpstreamScore> {
        match self.number - before.number.min(self.number) {
            0 => Vec::new(),
            1 => self.news.clone(),
            _ => between(&before.table, &self.table, now),
        }
    }

    /// What a node is told that knows nothing.
    #[must_use]
    pub fn whole(&self, now: Instant) -> Vec<UpstreamScore> {
        between(&Table::new(), &self.table, now)
    }

    /// The next one, if that is worth a word.
    fn next(&self, table: &Table, now: Instant) -> Option<Self> {
        let news = difference(&self.table, table, now);
        (!news.is_empty()).then(|| Self {
            number: self.number + 1,
            table: told(&self.table, table, now),
            news,
        })
    }
}

/// Every row in which two tables that nodes go by are not the same: they hold only what was worth a word.
fn between(before: &Table, after: &Table, now: Instant) -> Vec<UpstreamScore> {
    let nothing = Row::default();
    let changed = after
        .iter()
        .filter(|(key, row)| before.get(*key).unwrap_or(&nothing) != *row);
    let gone = before.iter().filter(|(key, _)| !after.contains_key(*key));
    let gone = gone.map(|(key, _)| (key, &nothing));
    changed
        .chain(gone)
        .map(|(key, row)| score(key, row, now))
        .collect()
}

/// What follows from all reports, each with its node and the time at which it came.
fn table<'a>(
    reports: impl IntoIterator<Item = (&'a str, &'a Signals, Instant)>,
    now: Instant,
) -> Table {
    let mut table = Table::new();
    let mut sums: BTreeMap<(String, String), (u64, u64, u64)> = BTreeMap::new();
    let until = |at: Instant, ms: u64| {
        let until = at + Duration::from_millis(ms);
        (ms > 0 && until > now).then_some(until)
    };
    for (node, signals, at) in reports {
        for pool in &signals.pools {
            let rests_until = until(at, pool.rests_ms);
            if rests_until.is_some() {
                let key = (pool.provider.clone(), node.to_owned());
                table.entry(key).or_default().rests_until = rests_until;
            }
        }
        for status in &signals.upstreams {
            let key = (status.provider.clone(), status.egress.clone());
            let sum = sums.entry(key.clone()).or_default();
            sum.0 += 1;
            sum.1 += u64::from(status.success_permille);
            sum.2 = sum.2.saturating_add(status.first_byte_us);
            let row = table.entry(key).or_default();
            row.ejected_until = row.ejected_until.max(until(at, status.ejected_ms));
        }
    }
    for (key, (count, success, first_byte)) in sums {
        let row = table.entry(key).or_default();
        row.success_permille = u32::try_from(success / count).unwrap_or(1_000);
        row.first_byte_us = first_byte / count;
    }
    table
}

/// The rows in which `after` says something else than `before`, as an ingress hears them at `now`.
fn difference(before: &Table, after: &Table, now: Instant) -> Vec<UpstreamScore> {
    let nothing = Row::default();
    let changed = after.iter().filter(|(key, row)| {
        let known = before.get(*key).copied().unwrap_or_default();
        !is_same(&known, row, now)
    });
    let gone = before
        .iter()
        .filter(|(key, row)| !after.contains_key(*key) && !is_same(row, &Row::default(), now))
        .map(|(key, _)| (key, &nothing));
    changed
        .chain(gone)
        .map(|(key, row)| score(key, row, now))
        .collect()
}

/// What a node goes by once it was told the difference: a row that was not worth a word stays what it was, so that many
/// small steps are told when they have added up.
fn told(before: &Table, after: &Table, now: Instant) -> Table {
    let known = |key, row: &Row| {
        let known = before.get(key).copied().unwrap_or_default();
        if is_same(&known, row, now) {
            known
        } else {
            *row
        }
    };
    after
        .iter()
        .map(|(key, row)| (key.clone(), known(key, row)))
        .collect()
}

fn is_same(one: &Row, other: &Row, now: Instant) -> bool {
    let moment = |one: Option<Instant>, other: Option<Instant>| {
        let to_come = |at: Option<Instant>| at.filter(|at| *at > now);
        match (to_come(one), to_come(other)) {
            (None, None) => true,
            (Some(one), Some(other)) => {
                let apart = one
                    .saturating_duration_since(other)
                    .max(other.saturating_duration_since(one));
                apart <= SAME_MOMENT
            }
            _ => false,
        }
    };
    let quick = one.first_byte_us.abs_diff(other.first_byte_us);
    let largest = one.first_byte_us.max(other.first_byte_us);
    moment(one.rests_until, other.rests_until)
        && moment(one.ejected_until, other.ejected_until)
        && one.success_permille.abs_diff(other.success_permille) <= SAME_PERMILLE
        && quick <= SAME_US.max(largest / 5)
}

fn score(key: &(String, String), row: &Row, now: Instant) -> UpstreamScore {
    let left = |until: Option<Instant>| {
        let left = until.map(|until| until.saturating_duration_since(now));
        let us = left.unwrap_or_default().as_micros();
        u64::try_from(us.div_ceil(1_000)).unwrap_or(u64::MAX)
    };
    UpstreamScore {
        provider: key.0.clone(),
        egress: key.1.clone(),
        rests_ms: left(row.rests_until),
        ejected_ms: left(row.ejected_until),
        success_permille: row.success_permille,
        first_byte_us: row.first_byte_us,
    }
}

/// Keeps what is told newest.
#[derive(Debug)]
pub struct Steering {
    fleet: Arc<Fleet>,
    current: watch::Sender<Arc<Told>>,
}

impl Steering {
    /// Nothing is known before [`Steering::run`].
    #[must_use]
    pub fn new(fleet: Arc<Fleet>) -> Self {
        Self {
            fleet,
            current: watch::Sender::default(),
        }
    }

    /// What is told newest, and word of what is newer.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Told>> {
        self.current.subscribe()
    }

    /// Follows the reports until cancelled.
    pub async fn run(&self, cancel: CancellationToken) {
        let mut signals = self.fleet.signals();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = signals.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(DEBOUNCE).await;
            signals.mark_unchanged();
            let now = Instant::now();
            let reports = self.fleet.reports(now);
            let reports = reports.iter();
            let table = table(reports.map(|(id, said, at)| (&**id, &**said, *at)), now);
            let before = self.current.borrow().clone();
            if let Some(next) = before.next(&table, now) {
                self.current.send_replace(Arc::new(next));
            }
            tokio::time::sleep((now.elapsed() * REST_TIMES).min(REST_MAX)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1::{PoolStatus, UpstreamStatus};

    use super::*;

    fn egress(provider: &str, rests_ms: u64) -> Signals {
        Signals {
            pools: vec![PoolStatus {
                provider: provider.to_owned(),
                keys: 1,
                rests_ms,
                ..PoolStatus::default()
            }],
            ..Signals::default()
        }
    }

    fn ingress(ejected_ms: u64, success_permille: u32, first_byte_us: u64) -> Signals {
        Signals {
            upstreams: vec![UpstreamStatus {
                provider: "p".to_owned(),
                egress: "e".to_owned(),
                ejected_ms,
                success_permille,
                first_byte_us,
                ..UpstreamStatus::default()
            }],
            ..Signals::default()
        }
    }

    #[test]
    fn what_one_node_says_is_heard_and_taken_back() {
        let now = Instant::now();
        let (rests, ready) = (egress("p", 5_000), egress("p", 0));
        let before = table([("e", &ready, now)], now);
        let after = table([("e", &rests, now)], now);
        let rows = difference(&before, &after, now);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].rests_ms, rows[0].egress.as_str()), (5_000, "e"));
        assert!(difference(&after, &after, now).is_empty());
        // The same moment, told two seconds later.
        let later = now + Duration::from_secs(2);
        let again = table([("e", &egress("p", 3_050), later)], later);
        assert!(difference(&after, &again, later).is_empty());
        let back = difference(&after, &before, later);
        assert_eq!((back.len(), back[0].rests_ms), (1, 0));
        // Over by itself: nobody has to be told.
        let over = now + Duration::from_secs(6);
        assert!(difference(&after, &before, over).is_empty());
    }

    #[test]
    fn ingress_nodes_are_averaged_and_the_longest_ejection_counts() {
        let now = Instant::now();
        let (one, other) = (ingress(0, 1_000, 100_000), ingress(7_000, 500, 300_000));
        let table = table([("a", &one, now), ("b", &other, now)], now);
        let rows = difference(&Table::new(), &table, now);
        let row = &rows[0];
        assert_eq!(
            (row.ejected_ms, row.success_permille, row.first_byte_us),
            (7_000, 750, 200_000)
        );
    }

    #[test]
    fn small_changes_are_not_told() {
        let now = Instant::now();
        let of = |permille, us| table([("a", &ingress(0, permille, us), now)], now);
        let before = of(990, 500_000);
        assert!(difference(&before, &of(950, 580_000), now).is_empty());
        assert_eq!(difference(&before, &of(900, 500_000), now).len(), 1);
        assert_eq!(difference(&before, &of(990, 700_000), now).len(), 1);
    }

    #[test]
    fn small_steps_are_told_when_they_have_added_up() {
        let now = Instant::now();
        let at = |permille| {
            let said = ingress(0, permille, 0);
            table([("i", &said, now)], now)
        };
        let mut known = Told::default().next(&at(1_000), now).unwrap();
        let mut heard = Vec::new();
        for permille in (900..1_000).rev().step_by(10) {
            if let Some(newest) = known.next(&at(permille), now) {
                heard.extend(newest.since(&known, now));
                known = newest;
            }
        }
        assert!(!heard.is_empty(), "a tenth less is news");
        assert!(heard.len() < 5, "a hundredth is none");
    }

    /// What a node goes by, by egress: success and time to the first byte.
    type Known = BTreeMap<String, (u32, u64)>;

    fn heard(known: &mut Known, rows: Vec<UpstreamScore>) {
        for row in rows {
            known.insert(row.egress, (row.success_permille, row.first_byte_us));
        }
        known.retain(|_, row| *row != (0, 0));
    }

    proptest::proptest! {
        #[test]
        fn whoever_misses_some_ends_where_all_others_are(
            turns in proptest::collection::vec((proptest::collection::vec((0..4_u8, 0..5_u32, 0..4_u64), 0..4), 0..3_u8), 1..20),
        ) {
            let now = Instant::now();
            let (mut newest, mut late) = (Arc::new(Told::default()), Arc::new(Told::default()));
            let (mut always, mut sometimes) = (Known::new(), Known::new());
            for (rows, hears) in turns {
                let said = Signals {
                    upstreams: rows.into_iter().map(|(egress, permille, us)| UpstreamStatus {
                        egress: format!("egress-{egress}"),
                        success_permille: permille * 40,
                        first_byte_us: us * 15_000,
                        ..UpstreamStatus::default()
                    }).collect(),
                    ..Signals::default()
                };
                if let Some(next) = newest.next(&table([("i", &said, now)], now), now) {
                    heard(&mut always, next.since(&newest, now));
                    newest = Arc::new(next);
                }
                if hears == 0 {
                    heard(&mut sometimes, newest.since(&late, now));
                    late = Arc::clone(&newest);
                }
            }
            heard(&mut sometimes, newest.since(&late, now));
            let mut anew = Known::new();
            heard(&mut anew, newest.whole(now));
            for known in [always, sometimes] {
                for (egress, row) in &anew {
                    proptest::prop_assert_eq!(known.get(egress), Some(row));
                }
                // There may be a row still that was not worth a word when it went.
                for (egress, (permille, us)) in known.iter().filter(|(egress, _)| !anew.contains_key(*egress)) {
                    proptest::prop_assert!(*permille <= SAME_PERMILLE && *us <= SAME_US, "{}", egress);
                }
            }
        }
    }
}
