//! Makes what nodes report into what every ingress hears: who rests, who is ejected, how quick each upstream is, by pair of
//! provider and egress, and by model where one does not fare as its pair does.
//!
//! Apart from snapshots, since it is stale after seconds: not kept, without a revision, and pushed within
//! [`DEBOUNCE`] of a report, or a little later where many nodes report. Compiling and comparing are pure; only [`Steering::run`] waits.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::{PoolStatus, UpstreamScore, UpstreamStatus};

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
const SAME_TOKENS: u32 = 5;

/// Models told of. Of a pair's models those that fare as it does are not: a node goes by the pair, and by what it sees itself.
///
/// 4,096 x 90 bytes = 370 KiB for a node that knows nothing; the table is one for all nodes.
const MODELS_MAX: usize = 4_096;

/// Probes that fail in a row, until a provider counts as one that is hardly ever reached there.
const PROBES_FAILED: u32 = 2;
const UNREACHED_PERMILLE: u32 = 100;

/// A model that takes twice as long as its pair, or half as long, fares otherwise, if that is so much.
const OTHERWISE_US: u64 = 100_000;

/// What is known of one provider by way of one egress, or of one model there.
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
    tokens_per_s: u32,
    /// Of a pair: success of reaching the provider.
    reached_permille: u32,
    /// Of a pair in trouble: when its egress reached the provider by a probe.
    probed: Option<Instant>,
}

/// Provider, egress, and the model there; empty for the pair.
type Key = (String, String, String);

/// The same, of what is not kept.
type Name<'a> = (&'a str, &'a str, &'a str);

type Table = BTreeMap<Key, Row>;

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

/// What many nodes say of one thing.
#[derive(Default)]
struct Sum {
    count: u64,
    success: u64,
    first_byte: u64,
    reached: u64,
    /// Those that know it, and what they say.
    tokens: (u64, u64),
    ejected_until: Option<Instant>,
}

impl Sum {
    fn add(&mut self, status: &UpstreamStatus, ejected_until: Option<Instant>) {
        // Who does not tell it apart means everything that was sent there.
        let reached = match status.reached_permille {
            0 => status.success_permille,
            reached => reached,
        };
        self.count += 1;
        self.success += u64::from(status.success_permille);
        self.first_byte = self.first_byte.saturating_add(status.first_byte_us);
        self.reached += u64::from(reached);
        self.tokens.0 += u64::from(status.tokens_per_s > 0);
        self.tokens.1 += u64::from(status.tokens_per_s);
        self.ejected_until = self.ejected_until.max(ejected_until);
    }

    fn row(&self) -> Row {
        let mean = |sum: u64, count: u64| sum.checked_div(count).unwrap_or(0);
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Row {
            rests_until: None,
            ejected_until: self.ejected_until,
            success_permille: narrow(mean(self.success, self.count)),
            first_byte_us: mean(self.first_byte, self.count),
            tokens_per_s: narrow(mean(self.tokens.1, self.tokens.0)),
            reached_permille: narrow(mean(self.reached, self.count)),
            probed: None,
        }
    }
}

/// What follows from all reports, each with its node and the time at which it came.
fn table<'a>(
    reports: impl IntoIterator<Item = (&'a str, &'a Signals, Instant)>,
    now: Instant,
) -> Table {
    let mut rests: HashMap<Name<'_>, Instant> = HashMap::new();
    let mut probes: HashMap<Name<'_>, (&PoolStatus, Instant)> = HashMap::new();
    let mut sums: HashMap<Name<'_>, Sum> = HashMap::new();
    let until = |at: Instant, ms: u64| {
        let until = at + Duration::from_millis(ms);
        (ms > 0 && until > now).then_some(until)
    };
    for (node, signals, at) in reports {
        for pool in &signals.pools {
            let name = (pool.provider.as_str(), node, "");
            if let Some(rests_until) = until(at, pool.rests_ms) {
                rests.insert(name, rests_until);
            }
            if pool.probes_failed > 0 || pool.probed_ms_ago.is_some() {
                probes.insert(name, (pool, at));
            }
        }
        let (pairs, models) = (signals.upstreams.iter(), signals.models.iter());
        let models = models.filter(|status| !status.model.is_empty());
        for (status, is_model) in pairs
            .map(|it| (it, false))
            .chain(models.map(|it| (it, true)))
        {
            let model = if is_model { status.model.as_str() } else { "" };
            let name = (status.provider.as_str(), status.egress.as_str(), model);
            let sum = sums.entry(name).or_default();
            sum.add(status, until(at, status.ejected_ms));
        }
    }
    let owned = |(provider, egress, model): Name<'_>| {
        (provider.to_owned(), egress.to_owned(), model.to_owned())
    };
    let mut rows: Table = worth_a_word(&sums)
        .map(|(name, row)| (owned(name), row))
        .collect();
    for (name, rests_until) in rests {
        rows.entry(owned(name)).or_default().rests_until = Some(rests_until);
    }
    for (name, (pool, at)) in probes {
        if pool.probes_failed >= PROBES_FAILED {
            rows.entry(owned(name)).or_default().reached_permille = UNREACHED_PERMILLE;
        } else if let (0, Some(ago_ms)) = (pool.probes_failed, pool.probed_ms_ago)
            && let Some(row) = rows.get_mut(&owned(name)).filter(|row| row.is_in_trouble())
        {
            row.probed = at.checked_sub(Duration::from_millis(ago_ms));
        }
    }
    rows
}

impl Row {
    fn is_in_trouble(&self) -> bool {
        let unreached = self.reached_permille > 0 && self.reached_permille < 1_000 - SAME_PERMILLE;
        self.ejected_until.is_some() || unreached
    }
}

/// Every pair, and those of the models that do not fare as their pair does: in bounded number, who is in trouble first.
fn worth_a_word<'a>(
    sums: &HashMap<Name<'a>, Sum>,
) -> impl Iterator<Item = (Name<'a>, Row)> + use<'a> {
    let (mut rows, mut models) = (Vec::new(), Vec::new());
    for (name, sum) in sums {
        let row = sum.row();
        if name.2.is_empty() {
            rows.push((*name, row));
            continue;
        }
        let pair = sums.get(&(name.0, name.1, ""));
        let pair = pair.map(Sum::row).unwrap_or_default();
        let fails = row.ejected_until.is_some() || row.success_permille < 1_000 - SAME_PERMILLE;
        if fails || is_otherwise(&row, &pair) {
            models.push((!fails, *name, row));
        }
    }
    models.sort_unstable_by_key(|(fine, name, _)| (*fine, *name));
    models.truncate(MODELS_MAX);
    rows.extend(models.into_iter().map(|(_, name, row)| (name, row)));
    rows.into_iter()
}

/// Whether a model takes notably longer or shorter than its pair.
fn is_otherwise(row: &Row, pair: &Row) -> bool {
    let (one, other) = (row.first_byte_us, pair.first_byte_us);
    let apart = one.abs_diff(other) > OTHERWISE_US.max(one.max(other) / 2);
    let (one, other) = (row.tokens_per_s, pair.tokens_per_s);
    apart || one.abs_diff(other) > SAME_TOKENS.max(one.max(other) / 2)
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
    let apart = |one: Instant, other: Instant| {
        let apart = one.saturating_duration_since(other);
        apart.max(other.saturating_duration_since(one)) > SAME_MOMENT
    };
    let moment = |one: Option<Instant>, other: Option<Instant>| {
        let to_come = |at: Option<Instant>| at.filter(|at| *at > now);
        match (to_come(one), to_come(other)) {
            (None, None) => true,
            (Some(one), Some(other)) => !apart(one, other),
            _ => false,
        }
    };
    let probed = match (one.probed, other.probed) {
        (Some(one), Some(other)) => !apart(one, other),
        // That there is nothing more to say of it need not be said.
        (_, other) => other.is_none(),
    };
    let quick = one.first_byte_us.abs_diff(other.first_byte_us);
    let largest = one.first_byte_us.max(other.first_byte_us);
    probed
        && moment(one.rests_until, other.rests_until)
        && moment(one.ejected_until, other.ejected_until)
        && one.success_permille.abs_diff(other.success_permille) <= SAME_PERMILLE
        && one.reached_permille.abs_diff(other.reached_permille) <= SAME_PERMILLE
        && one.tokens_per_s.abs_diff(other.tokens_per_s)
            <= SAME_TOKENS.max(one.tokens_per_s.max(other.tokens_per_s) / 5)
        && quick <= SAME_US.max(largest / 5)
}

fn score(key: &Key, row: &Row, now: Instant) -> UpstreamScore {
    let left = |until: Option<Instant>| {
        let left = until.map(|until| until.saturating_duration_since(now));
        let us = left.unwrap_or_default().as_micros();
        u64::try_from(us.div_ceil(1_000)).unwrap_or(u64::MAX)
    };
    UpstreamScore {
        provider: key.0.clone(),
        egress: key.1.clone(),
        model: key.2.clone(),
        rests_ms: left(row.rests_until),
        ejected_ms: left(row.ejected_until),
        success_permille: row.success_permille,
        first_byte_us: row.first_byte_us,
        tokens_per_s: row.tokens_per_s,
        reached_permille: row.reached_permille,
        probed_ms_ago: row.probed.map(|at| {
            let ago = now.saturating_duration_since(at).as_millis();
            u64::try_from(ago).unwrap_or(u64::MAX)
        }),
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

    fn model(model: &str, first_byte_us: u64, success_permille: u32) -> UpstreamStatus {
        UpstreamStatus {
            provider: "p".to_owned(),
            egress: "e".to_owned(),
            model: model.to_owned(),
            success_permille,
            first_byte_us,
            tokens_per_s: 50,
            ..UpstreamStatus::default()
        }
    }

    #[test]
    fn a_model_is_told_of_where_it_does_not_fare_as_its_pair() {
        let now = Instant::now();
        let mut said = ingress(0, 950, 500_000);
        said.upstreams[0].tokens_per_s = 60;
        said.upstreams[0].reached_permille = 1_000;
        said.models = vec![
            model("as-the-pair", 400_000, 990),
            model("dead", 500_000, 300),
            model("slow", 4_000_000, 1_000),
            model("quick", 90_000, 1_000),
        ];
        said.models[1].ejected_ms = 9_000;
        let table = table([("i", &said, now)], now);
        let rows = difference(&Table::new(), &table, now);
        let told = |row: &UpstreamScore| (row.model.clone(), row.ejected_ms, row.success_permille);
        assert_eq!(
            rows.iter().map(told).collect::<Vec<_>>(),
            [
                (String::new(), 0, 950),
                ("dead".to_owned(), 9_000, 300),
                ("quick".to_owned(), 0, 1_000),
                ("slow".to_owned(), 0, 1_000),
            ]
        );
        let pair = &rows[0];
        assert_eq!((pair.tokens_per_s, pair.reached_permille), (60, 1_000));
        // As nodes tell it that know neither models nor what it is to be reached.
        let before = ingress(0, 950, 500_000);
        let of_before = super::table([("i", &before, now)], now);
        let rows = difference(&table, &of_before, now);
        let dead = rows.iter().find(|row| row.model == "dead").unwrap();
        assert_eq!(
            (dead.ejected_ms, dead.success_permille),
            (0, 0),
            "taken back"
        );
    }

    #[test]
    fn models_are_told_of_in_bounded_number_who_fails_first() {
        let now = Instant::now();
        let said: Vec<Signals> = (0..40)
            .map(|node| Signals {
                models: (0..200)
                    .map(|at| model(&format!("m{node}-{at}"), 4_000_000, 1_000))
                    .chain([model(&format!("z{node}"), 500_000, 100)])
                    .collect(),
                ..Signals::default()
            })
            .collect();
        let table = table(said.iter().map(|said| ("i", said, now)), now);
        assert_eq!(table.len(), MODELS_MAX);
        let failing = table.keys().filter(|key| key.2.starts_with('z'));
        assert_eq!(failing.count(), said.len());
    }

    #[test]
    fn an_egress_that_probes_says_what_is_gone_and_what_is_back() {
        let now = Instant::now();
        let probed = |failed, ago| {
            let mut said = egress("p", 0);
            said.pools[0].probes_failed = failed;
            said.pools[0].probed_ms_ago = ago;
            said
        };
        let quiet = table([("e", &probed(1, Some(900)), now)], now);
        assert!(quiet.is_empty(), "one is none");
        let gone = table([("e", &probed(2, Some(1_900)), now)], now);
        let rows = difference(&quiet, &gone, now);
        let said = |row: &UpstreamScore| (row.reached_permille, row.probed_ms_ago);
        assert_eq!(said(&rows[0]), (UNREACHED_PERMILLE, None));
        let back = probed(0, Some(300));
        let well = table([("e", &back, now)], now);
        assert_eq!(said(&difference(&gone, &well, now)[0]), (0, None));
        // Where somebody has left it out, each probe that works is worth a word.
        let out = ingress(9_000, 900, 0);
        let before = table([("e", &back, now), ("i", &out, now)], now);
        let rows = difference(&well, &before, now);
        assert_eq!(
            (rows[0].ejected_ms, said(&rows[0])),
            (9_000, (900, Some(300)))
        );
        let later = now + Duration::from_secs(1);
        let again = table([("e", &back, later), ("i", &out, now)], later);
        let rows = difference(&before, &again, later);
        assert_eq!(said(&rows[0]), (900, Some(300)));
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
