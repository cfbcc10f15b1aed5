//! A change on its way to all nodes: who has it first, what the others still have, and the way back.
//!
//! One small record, [`AT`], says it all, so that every replica tells every node the same; it is read with the configuration, in
//! one moment. It is written together with the change that it stages, and every step compares the revision at which it was last
//! written: whoever is first moves it, the others see that it has moved. Back, any replica may move it; on to everybody, only the
//! one that leads, which is compared too. What the change replaces is in it, sealed as it was,
//! until it ends. Accounts are not staged, and a credential that is switched off is switched off for everybody at once.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::Message;

use super::{
    Actor, Catalog, Error, Outcome, Registry, audit,
    catalog::{GENERATION, Kind},
    change::Difference,
    edit::now_unix_ms,
    history,
};
use crate::coordinate::{Leadership, Transaction, Write};

/// Beside the configuration, as its generation is: one listing holds all three.
pub(super) const AT: &str = "/cfg-rollout";

/// Below this, each replica says which canaries it has heard to have a change in force.
const HEARD: &str = "/rollout/heard/";

/// How far a change has come.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, prost::Enumeration)]
#[repr(i32)]
pub enum Stage {
    /// No change was ever staged.
    Never = 0,
    /// Canaries have it, the others have what was before.
    Canary = 1,
    /// Everybody has it.
    Done = 2,
    /// Nobody has it any more.
    RolledBack = 3,
}

/// See the module.
#[derive(Clone, PartialEq, Message)]
pub struct Rollout {
    /// How far it is.
    #[prost(enumeration = "Stage", tag = "1")]
    pub stage: i32,
    /// Generation that everybody has.
    #[prost(uint64, tag = "2")]
    pub from: u64,
    /// Generation that the canaries have.
    #[prost(uint64, tag = "3")]
    pub to: u64,
    /// Ids of the nodes that have it first.
    #[prost(string, repeated, tag = "4")]
    pub canaries: Vec<String>,
    /// When it began, or was extended by another change.
    #[prost(uint64, tag = "5")]
    pub began_unix_ms: u64,
    /// Not for everybody before this.
    #[prost(uint64, tag = "6")]
    pub deadline_unix_ms: u64,
    /// Not for everybody before an operator says so.
    #[prost(bool, tag = "7")]
    pub paused: bool,
    /// Why it was rolled back.
    #[prost(string, tag = "8")]
    pub reason: String,
    /// What everybody else has instead, as long as it is under way.
    #[prost(message, repeated, tag = "9")]
    earlier: Vec<Was>,
    /// Time between the canaries and the rest.
    #[prost(uint64, tag = "10")]
    pause_ms: u64,
}

/// What a key of the configuration held, secrets and all; absent when it was not there.
#[derive(Clone, PartialEq, Message)]
struct Was {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", optional, tag = "2")]
    value: Option<Bytes>,
}

/// The canaries that one replica has heard to have put a change in force.
#[derive(Clone, PartialEq, Message)]
struct Heard {
    /// Generation of the change.
    #[prost(uint64, tag = "1")]
    to: u64,
    /// Their ids.
    #[prost(string, repeated, tag = "2")]
    canaries: Vec<String>,
}

impl Rollout {
    /// Whether canaries have something that the others have not.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.stage() == Stage::Canary
    }

    /// One that is under way, for tests of what is done about it.
    #[cfg(test)]
    pub fn with_canaries(canaries: &[&str], deadline_unix_ms: u64) -> Self {
        Self {
            stage: Stage::Canary.into(),
            canaries: canaries.iter().map(|&id| id.to_owned()).collect(),
            deadline_unix_ms,
            ..Self::default()
        }
    }

    /// With the change to `generation`: begun by it, or extended if one is under way.
    fn extended(mut self, change: &Staged<'_>, (from, to): (u64, u64)) -> Self {
        let now = now_unix_ms();
        if !self.is_under_way() {
            self = Self {
                from,
                canaries: change.staging.canaries.to_vec(),
                ..Self::default()
            };
        }
        for was in &change.replaced {
            if !self.earlier.iter().any(|earlier| earlier.key == was.key) {
                self.earlier.push(was.clone());
            }
        }
        self.set_stage(Stage::Canary);
        self.to = to;
        self.began_unix_ms = now;
        self.pause_ms = change.staging.pause_ms;
        self.deadline_unix_ms = now + self.pause_ms;
        self
    }

    fn ended(&self, stage: Stage, reason: &str) -> Self {
        Self {
            stage: stage.into(),
            earlier: Vec::new(),
            paused: false,
            reason: reason.to_owned(),
            ..self.clone()
        }
    }
}

/// How a change is to be staged.
#[derive(Clone, Copy, Debug)]
pub struct Staging<'a> {
    /// Ids of the nodes that have it first; none: everybody has it at once, unless a change is under way already.
    pub canaries: &'a [String],
    /// Time between the canaries and the rest.
    pub pause_ms: u64,
}

/// A change that is staged, with what it replaces.
pub(super) struct Staged<'a> {
    staging: Staging<'a>,
    replaced: Vec<Was>,
}

impl<'a> Staged<'a> {
    /// `None` when everybody has the change at once.
    pub(super) fn new(staging: Staging<'a>, old: &Catalog, writes: &[Write]) -> Option<Self> {
        if staging.canaries.is_empty() && !old.rollout.is_under_way() {
            return None;
        }
        let routed = writes.iter().filter(|write| !is_account(write.key()));
        let replaced: Vec<Was> = routed
            .map(|write| Was {
                key: write.key().to_owned(),
                value: old.value(write.key()),
            })
            .collect();
        (!replaced.is_empty()).then_some(Self { staging, replaced })
    }

    /// The record that goes with the change to the generation after `old`'s.
    pub(super) fn record(&self, old: &Catalog) -> Rollout {
        let generations = (old.generation, old.generation + 1);
        old.rollout.clone().extended(self, generations)
    }
}

fn is_account(key: &str) -> bool {
    key.starts_with(&Kind::Account.key(""))
}

impl Catalog {
    /// What the nodes that are not canaries have, while a change is under way.
    ///
    /// # Errors
    /// When what is stored cannot be read.
    pub fn rest(&self) -> Result<Option<Self>, Error> {
        if !self.rollout.is_under_way() {
            return Ok(None);
        }
        let mut rest = self.clone();
        for Was { key, value } in &self.rollout.earlier {
            rest.set(key, value.as_ref())?;
        }
        for (name, stored) in &mut rest.credentials {
            // Out of use is out of use, wherever it is.
            let now = self.credentials.get(name);
            stored.spec.disabled |= now.is_some_and(|now| now.spec.disabled);
        }
        Ok(Some(rest))
    }
}

impl Registry {
    /// Tells the other replicas which canaries this one, `who`, has heard to have generation `to` in force.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tell_heard(&self, who: &str, to: u64, canaries: Vec<String>) -> Result<(), Error> {
        let heard = Heard { to, canaries };
        let put = Transaction::new().put(format!("{HEARD}{who}"), heard.encode_to_vec());
        self.store.commit(put).await?;
        Ok(())
    }

    /// The canaries that any replica has heard to have generation `to` in force.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn heard(&self, to: u64) -> Result<BTreeSet<String>, Error> {
        let told = self.store.list(HEARD).await?.entries.into_iter();
        // What a newer version writes in another way is not ours to judge.
        let told = told.filter_map(|entry| Heard::decode(entry.value).ok());
        let of_it = told.filter(|heard| heard.to == to);
        Ok(of_it.flat_map(|heard| heard.canaries).collect())
    }

    /// Everybody has it from now on, which only the one that leads rollouts may say.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it was moved, or another replica leads.
    pub async fn finish(&self, seen: &Catalog, leads: &Leadership) -> Result<(), Error> {
        let ended = seen.rollout.ended(Stage::Done, "");
        let mut put = Transaction::new()
            .when(AT, seen.rollout_changed)
            .put(AT, ended.encode_to_vec());
        put.compares.push(leads.fence());
        self.store.commit(put).await?;
        Ok(())
    }

    /// Holds a change with its canaries until it is resumed.
    ///
    /// # Errors
    /// [`Error::Refused`] when none is under way; [`Error::Conflict`] when it has moved meanwhile.
    pub async fn pause(&self, by: &Actor, paused: bool) -> Result<Rollout, Error> {
        let catalog = self.catalog().await?;
        let mut rollout = catalog.rollout.clone();
        if !rollout.is_under_way() {
            return Err(Error::Refused("no change is under way".to_owned()));
        }
        if rollout.paused == paused {
            return Ok(rollout);
        }
        rollout.paused = paused;
        rollout.deadline_unix_ms = now_unix_ms() + rollout.pause_ms;
        let put = Transaction::new()
            .when(AT, catalog.rollout_changed)
            .put(AT, rollout.encode_to_vec());
        let word = if paused { "pause" } else { "resume" };
        let what = audit::change(word, "rollout", &name(&rollout), Vec::new());
        self.commit(by, &[what], put).await?;
        Ok(rollout)
    }

    /// Takes a change back from its canaries: what everybody else has is the configuration again, as a generation of its own.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it has moved, or the configuration was changed meanwhile.
    pub async fn roll_back(
        &self,
        by: &Actor,
        seen: &Catalog,
        reason: &str,
    ) -> Result<Outcome, Error> {
        let Some(rest) = seen.rest()? else {
            return Err(Error::Refused("no change is under way".to_owned()));
        };
        let difference = Difference::between(seen, &rest);
        let generation = seen.generation + 1;
        let ended = seen.rollout.ended(Stage::RolledBack, reason);
        let mut transaction = Transaction::new()
            .when(GENERATION, seen.generation_changed)
            .when(AT, seen.rollout_changed)
            .put(GENERATION, generation.to_be_bytes().to_vec())
            .put(AT, ended.encode_to_vec());
        transaction.writes.extend(difference.writes);
        let replaced = history::Stored::new(by, difference.earlier, now_unix_ms());
        let transaction = replaced.with(transaction, generation);
        let why = vec![format!("reason: {reason}")];
        let mut what = vec![audit::change(
            "roll back",
            "rollout",
            &name(&seen.rollout),
            why,
        )];
        what.extend(difference.changes.iter().cloned());
        self.commit(by, &what, transaction).await?;
        Ok(Outcome {
            changes: difference.changes,
            generation,
            losses: Vec::new(),
        })
    }
}

/// What the log calls it.
fn name(rollout: &Rollout) -> String {
    format!("{} to {}", rollout.from, rollout.to)
}

#[cfg(test)]
mod tests;
