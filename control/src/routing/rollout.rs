//! Moves a staged change on: to everybody when its canaries fare well, or back when they do not.
//!
//! Any replica may take it back: that compares where the record stood, so only the first one counts. On to everybody, one
//! replica carries it, elected for this change and compared in the transaction that says so ([`Candidate`]). A canary speaks for
//! itself to the replicas that hear it, and they tell the others, so that all judge by the same. What speaks against a change: a
//! canary refuses what it was told, has not put it in force in time, has gone away since, an upstream that a canary has part in
//! fails, and the same provider does not fail as much elsewhere, or a canary loses a credential that others keep.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::UpstreamStatus;

use super::{Published, Publisher};
use crate::{
    coordinate::{Candidate, Leadership, Revision},
    health::{self, Fleet, Presence, Said, Signals, Usable},
    registry::{Actor, Error, NodeSpec, Registry, Rollout, Seen},
    telemetry::Metrics,
};

mod credentials;

use self::credentials::Standing;

/// A look at the canaries while a change is under way.
const LOOK: Duration = Duration::from_millis(100);

/// What a replica is elected for.
const PURPOSE: &str = "rollout";

/// Whoever leads and has not carried the change on for so long leaves that to another.
const TERM_MAX: Duration = Duration::from_secs(2);

/// Beyond the pause, a canary has so long to put a snapshot in force.
const LATE_MS: u64 = 5_000;

/// An upstream fails that has lost so much of its success, in thousandths, since the change began, and so much more than the
/// same provider has where no canary is. Nodes move that number by a sixteenth for each answer, so this takes six failures in a
/// row at least, and few requests that fail now and then never reach it.
const FALL_PERMILLE: u32 = 300;

/// Longest part of a node's reason that is kept.
const REASON_CHARS_MAX: usize = 300;

/// Nodes that have a change first: of those that can be used, so many of a hundred of each role, at least one. None when
/// nobody would be left to wait for them.
#[must_use]
pub fn canaries(nodes: &[(NodeSpec, Option<Seen>)], usable: &Usable, percent: u32) -> Vec<String> {
    let there: Vec<&NodeSpec> = nodes
        .iter()
        .map(|(node, _)| node)
        .filter(|node| usable.ids.contains(&node.id))
        .collect();
    let routes = |node: &NodeSpec| node.roles.iter().any(|role| role != "relay");
    let mut chosen: Vec<String> = Vec::new();
    for role in ["ingress", "egress"] {
        let of = |node: &&&NodeSpec| node.roles.iter().any(|has| has == role);
        let able: Vec<&&NodeSpec> = there.iter().filter(of).collect();
        let wanted = (able.len() * percent as usize).div_ceil(100);
        let ready = able
            .iter()
            .filter(|node| !usable.draining.contains(&node.id));
        for node in ready.take(wanted) {
            if !chosen.contains(&node.id) {
                chosen.push(node.id.clone());
            }
        }
    }
    let waits = |node: &&NodeSpec| routes(node) && !chosen.contains(&node.id);
    if there.iter().any(waits) {
        chosen
    } else {
        Vec::new()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Mover {
    registry: Arc<Registry>,
    publisher: Arc<Publisher>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    who: String,
}

/// What is to be done about a change now.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Verdict {
    Wait,
    Finish,
    RollBack(String),
}

/// Success of each (node, provider, egress), in thousandths.
type Successes = BTreeMap<(String, String, String), u32>;

/// A change that is under way, as this replica has seen it.
#[derive(Debug)]
struct Watched {
    /// Which change: when it began.
    unix_ms: u64,
    /// How it was then, as far as this replica hears: of a canary's credentials, when they were first heard of.
    successes: Successes,
    credentials: BTreeMap<String, Standing>,
    /// The canaries that the other replicas were told of.
    told: BTreeSet<String>,
    /// Stands for carrying it on.
    candidate: Option<Candidate>,
    /// Which term it leads in, and since when.
    term: Option<(Revision, Instant)>,
    /// Does not stand before.
    rests: Option<Instant>,
}

impl Mover {
    /// Nothing moves before [`Mover::run`]. `who`: what this replica is known by.
    #[must_use]
    pub fn new(
        registry: Arc<Registry>,
        publisher: Arc<Publisher>,
        fleet: Arc<Fleet>,
        metrics: Arc<Metrics>,
        who: String,
    ) -> Self {
        Self {
            registry,
            publisher,
            fleet,
            metrics,
            who,
        }
    }

    /// Looks after changes until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut newest = self.publisher.subscribe();
        let mut watched: Option<Watched> = None;
        loop {
            let published = newest.borrow_and_update().clone();
            if published.rest.is_none() {
                leave(watched.take()).await;
                tokio::select! {
                    () = cancel.cancelled() => return,
                    changed = newest.changed() => if changed.is_err() { return },
                }
                continue;
            }
            let mark = published.rollout.began_unix_ms;
            if watched
                .as_ref()
                .is_some_and(|before| before.unix_ms != mark)
            {
                leave(watched.take()).await;
            }
            let change = watched.get_or_insert_with(|| self.begin(&published.rollout));
            if let Err(error) = self.look(&published, change).await {
                if matches!(error, Error::Conflict(_)) {
                    // It may have been overtaken.
                    change.candidate = None;
                }
                tracing::debug!(%error, "the rollout was not moved");
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        leave(watched).await;
    }

    fn begin(&self, rollout: &Rollout) -> Watched {
        Watched {
            unix_ms: rollout.began_unix_ms,
            successes: successes(&self.fleet.reports(Instant::now())),
            credentials: standings(self.fleet.said(|id| is_canary(rollout, id))),
            told: BTreeSet::new(),
            candidate: None,
            term: None,
            rests: None,
        }
    }

    /// What has become worse for canaries, and for nobody else, since the change began.
    fn fallen(&self, rollout: &Rollout, began: &mut Watched) -> Option<String> {
        let now = successes(&self.fleet.reports(Instant::now()));
        let credentials = standings(self.fleet.said(|id| is_canary(rollout, id)));
        for (id, standing) in &credentials {
            if !began.credentials.contains_key(id) {
                began.credentials.insert(id.clone(), standing.clone());
            }
        }
        fallen(rollout, &began.successes, &now).or_else(|| {
            let others = || standings(self.fleet.said(|id| !is_canary(rollout, id)));
            credentials::lost(&began.credentials, &credentials, others)
        })
    }

    async fn look(&self, published: &Published, change: &mut Watched) -> Result<(), Error> {
        let rollout = &published.rollout;
        let heard: Vec<(&str, Presence)> = rollout
            .canaries
            .iter()
            .map(|id| (id.as_str(), self.fleet.presence(id)))
            .filter(|(_, presence)| presence.connected)
            .collect();
        let fell = self.fallen(rollout, change);
        let against = against(published.told_rest(), &heard).or(fell);
        let verdict = match against {
            Some(reason) => Verdict::RollBack(reason),
            None => {
                self.tell(published, &heard, change).await?;
                self.verdict(rollout).await?
            }
        };
        match verdict {
            Verdict::Wait => {
                // It may be held since, or this clock went back: others may see it otherwise.
                change.candidate = None;
                Ok(())
            }
            Verdict::Finish => {
                let Some(leads) = self.leads(change) else {
                    return Ok(());
                };
                let seen = self.registry.catalog().await?;
                if seen.rollout == *rollout {
                    self.registry.finish(&seen, &leads).await?;
                    let (from, to) = (rollout.from, rollout.to);
                    tracing::info!(from, to, "all nodes have the change");
                }
                Ok(())
            }
            Verdict::RollBack(reason) => self.roll_back(rollout, &reason).await,
        }
    }

    /// Tells the other replicas which canaries have the change in force, if that is news.
    async fn tell(
        &self,
        published: &Published,
        heard: &[(&str, Presence)],
        change: &mut Watched,
    ) -> Result<(), Error> {
        let in_force = heard
            .iter()
            .filter(|(_, presence)| presence.revision >= published.since);
        let in_force = in_force.map(|(id, _)| (*id).to_owned());
        let now: BTreeSet<String> = in_force.chain(change.told.iter().cloned()).collect();
        if now.len() > change.told.len() {
            let (to, canaries) = (published.rollout.to, now.iter().cloned().collect());
            self.registry.tell_heard(&self.who, to, canaries).await?;
            change.told = now;
        }
        Ok(())
    }

    /// What follows from all that any replica has heard.
    async fn verdict(&self, rollout: &Rollout) -> Result<Verdict, Error> {
        let unix_ms = unix_ms();
        if rollout.paused || unix_ms < rollout.deadline_unix_ms {
            return Ok(Verdict::Wait);
        }
        let mut usable = health::agreed(self.registry.store().as_ref()).await?.ids;
        usable.extend(self.fleet.attached());
        let in_force = self.registry.heard(rollout.to).await?;
        Ok(verdict(rollout, &usable, &in_force, unix_ms))
    }

    /// The right to carry the change on, once this replica has it. One that does not use it in time, since it does not see what
    /// others see, rests for as long.
    fn leads(&self, change: &mut Watched) -> Option<Leadership> {
        let now = Instant::now();
        if change.rests.is_some_and(|until| now < until) {
            return None;
        }
        let candidate = change.candidate.get_or_insert_with(|| {
            let store = Arc::clone(self.registry.store());
            Candidate::new(store, PURPOSE, self.who.clone())
        });
        let leads = candidate.leadership()?;
        let of_it = change.term.filter(|(term, _)| *term == leads.term);
        let (_, since) = *change.term.insert(of_it.unwrap_or((leads.term, now)));
        if now.duration_since(since) < TERM_MAX {
            return Some(leads);
        }
        change.candidate = None;
        change.rests = Some(now + TERM_MAX);
        None
    }

    async fn roll_back(&self, rollout: &Rollout, reason: &str) -> Result<(), Error> {
        let seen = self.registry.catalog().await?;
        if seen.rollout != *rollout {
            return Ok(());
        }
        let by = Actor {
            name: "control".to_owned(),
            address: String::new(),
        };
        self.registry.roll_back(&by, &seen, reason).await?;
        self.metrics.changes_rolled_back.inc();
        let (from, to) = (rollout.from, rollout.to);
        tracing::error!(from, to, reason, "the change was rolled back");
        Ok(())
    }
}

/// Leaves the place of a leader to others, at once.
async fn leave(watched: Option<Watched>) {
    if let Some(candidate) = watched.and_then(|watched| watched.candidate) {
        candidate.resign().await;
    }
}

fn is_canary(rollout: &Rollout, id: &str) -> bool {
    rollout.canaries.iter().any(|canary| canary == id)
}

/// The canary that refuses what it was told. `told_rest`: the revision that everybody else has. Pure.
fn against(told_rest: u64, heard: &[(&str, Presence)]) -> Option<String> {
    let refused = heard
        .iter()
        .find(|(_, presence)| !presence.rejection.is_empty() && presence.rejected > told_rest);
    refused.map(|(id, presence)| {
        let reason: String = presence.rejection.chars().take(REASON_CHARS_MAX).collect();
        format!("node {id} refused it: {reason}")
    })
}

/// What is to be done about a change that nothing speaks against. `usable`: who is there, for any replica; `in_force`: whom any
/// has heard to have it. Pure.
fn verdict(
    rollout: &Rollout,
    usable: &BTreeSet<String>,
    in_force: &BTreeSet<String>,
    now_unix_ms: u64,
) -> Verdict {
    if rollout.paused || now_unix_ms < rollout.deadline_unix_ms {
        return Verdict::Wait;
    }
    let mut canaries = rollout.canaries.iter();
    if let Some(id) = canaries.clone().find(|id| !usable.contains(*id)) {
        return Verdict::RollBack(format!("node {id} has gone since it was told"));
    }
    match canaries.find(|id| !in_force.contains(*id)) {
        None => Verdict::Finish,
        Some(_) if now_unix_ms < rollout.deadline_unix_ms + LATE_MS => Verdict::Wait,
        Some(id) => Verdict::RollBack(format!("node {id} has not put it in force")),
    }
}

fn standings(said: Vec<(String, Said)>) -> BTreeMap<String, Standing> {
    let said = said.into_iter();
    said.map(|(id, said)| (id, Standing::of(said.credentials())))
        .collect()
}

fn successes(reports: &[(String, Arc<Signals>, Instant)]) -> Successes {
    let rows = |(id, said, _): &(String, Arc<Signals>, Instant)| -> Vec<_> {
        let row = |row: &UpstreamStatus| {
            // A model that fails is ejected alone.
            let upstream = match row.model.as_str() {
                "" => row.provider.clone(),
                model => format!("{}{OF_MODEL}{model}", row.provider),
            };
            let pair = (id.clone(), upstream, row.egress.clone());
            // One that is out of use for its failures is as bad as can be.
            let success = if row.ejected_ms > 0 {
                0
            } else {
                row.success_permille
            };
            (pair, success)
        };
        said.upstreams.iter().chain(&said.models).map(row).collect()
    };
    reports.iter().flat_map(rows).collect()
}

/// Stands between a provider and its model, and in no provider's name.
const OF_MODEL: &str = " ";

/// The upstream of a canary that fails since the change, and not elsewhere. Pure.
///
/// A model that nobody asked for before says nothing: clients choose names, and one that there is not fails anywhere. Its
/// failures count among its provider's all the same.
fn fallen(rollout: &Rollout, before: &Successes, now: &Successes) -> Option<String> {
    let is_canary = |id: &String| is_canary(rollout, id);
    let mut elsewhere: BTreeMap<&str, u32> = BTreeMap::new();
    let mut worst: Option<(u32, &(String, String, String))> = None;
    for (pair, success) in now {
        let (node, provider, egress) = pair;
        let known = match before.get(pair) {
            Some(known) => *known,
            None if provider.contains(OF_MODEL) => continue,
            None => 1_000,
        };
        let fall = known.saturating_sub(*success);
        if is_canary(node) || is_canary(egress) {
            worst = worst.max(Some((fall, pair)));
        } else {
            let known = elsewhere.entry(provider).or_default();
            *known = fall.max(*known);
        }
    }
    let (fall, (node, provider, egress)) = worst?;
    let other = elsewhere.get(provider.as_str()).copied().unwrap_or(0);
    (fall >= other + FALL_PERMILLE).then(|| {
        format!(
            "{provider} by way of {egress} fails since, as {node} sees it: {} of 100 more than before",
            fall / 10
        )
    })
}

fn unix_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout() -> Rollout {
        Rollout::with_canaries(&["i-1", "e-1"], 10_000)
    }

    fn ids(of: &[&str]) -> BTreeSet<String> {
        of.iter().map(|&id| id.to_owned()).collect()
    }

    #[test]
    fn canaries_are_waited_for_and_then_everybody_has_it() {
        let there = ids(&["i-1", "e-1"]);
        let told = |in_force: &[&str], now| verdict(&rollout(), &there, &ids(in_force), now);
        assert_eq!(told(&["i-1", "e-1"], 9_999), Verdict::Wait);
        assert_eq!(told(&["i-1", "e-1"], 10_000), Verdict::Finish);
        assert_eq!(told(&["i-1"], 14_999), Verdict::Wait, "not in force yet");
        let late = "node e-1 has not put it in force".to_owned();
        assert_eq!(told(&["i-1"], 15_000), Verdict::RollBack(late));
        let all = there.clone();
        let gone = "node i-1 has gone since it was told".to_owned();
        let left = verdict(&rollout(), &ids(&["e-1"]), &all, u64::MAX);
        assert_eq!(left, Verdict::RollBack(gone));
        let mut paused = rollout();
        paused.paused = true;
        let held = verdict(&paused, &there, &all, u64::MAX);
        assert_eq!(held, Verdict::Wait);
    }

    #[test]
    fn a_refusal_counts_at_once_and_an_old_one_does_not() {
        let mut node = Presence {
            connected: true,
            revision: 7,
            rejected: 7,
            rejection: "no".to_owned(),
            ..Presence::default()
        };
        assert_eq!(against(7, &[("e-1", node.clone())]), None);
        node.rejected = 8;
        let reason = Some("node e-1 refused it: no".to_owned());
        assert_eq!(against(7, &[("e-1", node)]), reason);
    }

    fn pairs(rows: &[(&str, &str, u32)]) -> Successes {
        let row = |(node, egress, success): &(&str, &str, u32)| {
            let pair = ((*node).to_owned(), "p".to_owned(), (*egress).to_owned());
            (pair, *success)
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn errors_of_canaries_count_when_others_have_none() {
        let before = pairs(&[("i-1", "e-2", 1_000), ("i-2", "e-2", 1_000)]);
        let fell = |rows| fallen(&rollout(), &before, &pairs(rows)).is_some();
        assert!(!fell(&[("i-1", "e-2", 701), ("i-2", "e-2", 1_000)]));
        assert!(fell(&[("i-1", "e-2", 700), ("i-2", "e-2", 1_000)]));
        assert!(fell(&[("i-2", "e-1", 300)]), "an egress that is a canary");
        assert!(!fell(&[("i-2", "e-2", 0)]), "no canary has part in it");
        let everywhere = [("i-1", "e-2", 500), ("i-2", "e-2", 600)];
        assert!(!fell(&everywhere), "the provider fails, not the change");
        let before = pairs(&[("i-1", "e-2", 200)]);
        assert_eq!(fallen(&rollout(), &before, &before), None);
    }

    #[test]
    fn a_model_that_nobody_asked_for_before_says_nothing() {
        let of = |upstream: &str, success| {
            let pair = ("i-1".to_owned(), upstream.to_owned(), "e-2".to_owned());
            Successes::from([(pair, success)])
        };
        let known = of("p m", 1_000);
        let fell = |now: Successes| fallen(&rollout(), &known, &now).is_some();
        assert!(fell(of("p m", 0)));
        assert!(!fell(of("p made-up", 0)));
        assert!(fell(of("p", 0)), "all of a provider's");
    }

    #[test]
    fn canaries_are_few_of_each_role_and_never_all() {
        let node = |id: String, role: &str| {
            let spec = NodeSpec {
                id,
                roles: vec![role.to_owned()],
                ..NodeSpec::default()
            };
            (spec, None)
        };
        let nodes = |ingress: usize, egress: usize| -> Vec<(NodeSpec, Option<Seen>)> {
            let all = (0..ingress).map(|n| node(format!("i-{n:02}"), "ingress"));
            all.chain((0..egress).map(|n| node(format!("e-{n:02}"), "egress")))
                .collect()
        };
        let usable = |nodes: &[(NodeSpec, Option<Seen>)]| Usable {
            ids: nodes.iter().map(|(node, _)| node.id.clone()).collect(),
            ..Usable::default()
        };
        let chosen = |ingress, egress| {
            let nodes = nodes(ingress, egress);
            canaries(&nodes, &usable(&nodes), 10)
        };
        assert_eq!(chosen(2, 2), ["i-00", "e-00"]);
        assert_eq!(chosen(30, 11).len(), 3 + 2);
        assert_eq!(chosen(1, 1), [""; 0], "nobody would wait");
        assert_eq!(chosen(1, 3), ["i-00", "e-00"]);
        assert_eq!(chosen(0, 0), [""; 0]);
        let nodes = nodes(2, 2);
        let mut usable = usable(&nodes);
        usable.ids.remove("e-00");
        usable.draining.insert("i-00".to_owned());
        assert_eq!(canaries(&nodes, &usable, 10), ["i-01", "e-01"]);
    }
}
