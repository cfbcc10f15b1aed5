//! What the configuration was, by generation: the last [`KEPT`] changes can be looked at, compared, and taken back.
//!
//! A change leaves what it replaced under `/history/GENERATION`, in its own transaction: a state is read by going back from
//! what is there now, one change after the other. It is not below `/cfg`, which everybody reads whole. Secrets and headers of
//! credentials are not kept, only that they were changed; so a backup need not hold any of it, and a restore clears it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use vector_proto::control::v1::Change;

use super::{
    Actor, Catalog, Error, Registry, StoredCredential, audit,
    catalog::{PREFIX as CONFIGURED, decode},
    change::Difference,
};
use crate::coordinate::{Entry, Listing, Transaction};

/// Every key of it.
pub(super) const PREFIX: &str = "/history/";

/// Changes that are kept.
const KEPT: u64 = 100;

/// Writes that it adds to a transaction: what the change replaced, and the end of the oldest.
pub(super) const WRITES: usize = 2;

/// What a change replaced.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Stored {
    #[prost(uint64, tag = "1")]
    unix_ms: u64,
    #[prost(string, tag = "2")]
    actor: String,
    #[prost(message, repeated, tag = "3")]
    earlier: Vec<Earlier>,
}

/// What one key of the configuration held before.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Earlier {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    /// Without secrets; absent when it was not there.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) value: Option<Bytes>,
    /// What was changed besides and is not kept, such as "secret: changed".
    #[prost(string, repeated, tag = "3")]
    pub(super) hidden: Vec<String>,
}

/// One change that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Which the configuration had after it.
    pub number: u64,
    /// When.
    pub unix_ms: u64,
    /// By whom, as the audit log names them.
    pub actor: String,
    /// What it did.
    pub changes: Vec<Change>,
}

/// A credential as it is kept: nothing of it is secret.
pub(super) fn without_secrets(stored: &StoredCredential) -> StoredCredential {
    let mut bare = stored.clone();
    bare.sealed = Bytes::new();
    bare.hint.clear();
    bare.spec.headers.clear();
    bare.sealed_headers = Bytes::new();
    bare
}

impl Stored {
    pub(super) fn new(by: &Actor, earlier: Vec<Earlier>, unix_ms: u64) -> Self {
        Self {
            unix_ms,
            actor: by.name.clone(),
            earlier,
        }
    }

    /// Puts it with the change that leads to `generation`.
    pub(super) fn with(&self, transaction: Transaction, generation: u64) -> Transaction {
        let transaction = transaction.put(at(generation), self.encode_to_vec());
        match generation.checked_sub(KEPT) {
            Some(oldest) if oldest > 0 => transaction.delete(at(oldest)),
            _ => transaction,
        }
    }
}

fn at(generation: u64) -> String {
    format!("{PREFIX}{generation:016x}")
}

type Values = BTreeMap<String, Bytes>;

/// One change, with what it touched as it was after and before it.
struct Step {
    unix_ms: u64,
    actor: String,
    newer: Values,
    older: Values,
}

/// The configuration on the way back from what it is.
pub(super) struct Past {
    /// As it is.
    pub(super) now: Catalog,
    /// What follows is of this one.
    generation: u64,
    values: Values,
    /// What was changed on the way and is not kept, by key.
    hidden: BTreeMap<String, Vec<String>>,
}

impl Past {
    fn catalog(&self) -> Result<Catalog, Error> {
        catalog(&self.values)
    }

    /// One change back.
    async fn back(&mut self, registry: &Registry) -> Result<Step, Error> {
        let gone = || {
            let generation = self.generation;
            Error::Refused(format!(
                "what was before generation {generation} is not kept; the oldest that is known is {generation} itself"
            ))
        };
        let entry = registry.store.get(&at(self.generation)).await?;
        let stored: Stored = decode(&entry.ok_or_else(gone)?.value)?;
        let mut step = Step {
            unix_ms: stored.unix_ms,
            actor: stored.actor,
            newer: Values::new(),
            older: Values::new(),
        };
        for Earlier { key, value, hidden } in stored.earlier {
            let newer = match value {
                Some(value) => {
                    step.older.insert(key.clone(), value.clone());
                    self.values.insert(key.clone(), value)
                }
                None => self.values.remove(&key),
            };
            if let Some(newer) = newer {
                step.newer.insert(key.clone(), newer);
            }
            let lines = self.hidden.entry(key).or_default();
            for line in hidden {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        self.generation -= 1;
        Ok(step)
    }

    /// Back to a generation.
    async fn back_to(&mut self, registry: &Registry, generation: u64) -> Result<(), Error> {
        if generation > self.generation {
            return Err(Error::Refused(format!(
                "there is no generation {generation} yet: the newest is {}",
                self.generation
            )));
        }
        while self.generation > generation {
            self.back(registry).await?;
        }
        Ok(())
    }
}

impl Registry {
    pub(super) async fn past(&self) -> Result<Past, Error> {
        let listing = self.store.list(CONFIGURED).await?;
        let now = Catalog::read(&listing)?;
        let mut values: Values = listing
            .entries
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect();
        for (key, value) in &mut values {
            if key.starts_with("/cfg/credentials/") {
                *value = without_secrets(&decode(value)?).encode_to_vec().into();
            }
        }
        Ok(Past {
            generation: now.generation,
            now,
            values,
            hidden: BTreeMap::new(),
        })
    }

    /// The newest changes that are kept, newest first, and the generation now.
    ///
    /// # Errors
    /// When the store fails or holds what cannot be read.
    pub async fn history(&self, rows: usize) -> Result<(Vec<Generation>, u64), Error> {
        let mut past = self.past().await?;
        let now = past.generation;
        let mut generations = Vec::new();
        while past.generation > 0 && generations.len() < rows {
            let number = past.generation;
            past.hidden.clear();
            let step = match past.back(self).await {
                Ok(step) => step,
                Err(Error::Refused(_)) => break,
                Err(error) => return Err(error),
            };
            let (newer, older) = (catalog(&step.newer)?, catalog(&step.older)?);
            generations.push(Generation {
                number,
                unix_ms: step.unix_ms,
                actor: step.actor,
                changes: told(&newer, &older, &past.hidden),
            });
        }
        Ok((generations, now))
    }

    /// What is different between two generations.
    ///
    /// # Errors
    /// [`Error::Refused`] when one of them is not kept any more, or not there yet.
    pub async fn between(&self, from: u64, to: u64) -> Result<Vec<Change>, Error> {
        let mut past = self.past().await?;
        past.back_to(self, from.max(to)).await?;
        let newer = past.catalog()?;
        past.hidden.clear();
        past.back_to(self, from.min(to)).await?;
        let older = past.catalog()?;
        Ok(if from <= to {
            told(&newer, &older, &past.hidden)
        } else {
            told(&older, &newer, &past.hidden)
        })
    }

    /// What the configuration was: the one before the last change, or that of a generation. With it, which credentials were
    /// given other secrets or headers since.
    pub(super) async fn was(
        &self,
        past: &mut Past,
        generation: Option<u64>,
    ) -> Result<(Catalog, Vec<String>), Error> {
        let before = past.generation.saturating_sub(1);
        past.back_to(self, generation.unwrap_or(before)).await?;
        let changed = past.hidden.iter().filter(|(_, lines)| !lines.is_empty());
        let names = changed.filter_map(|(key, _)| key.strip_prefix("/cfg/credentials/"));
        Ok((past.catalog()?, names.map(str::to_owned).collect()))
    }
}

fn catalog(values: &Values) -> Result<Catalog, Error> {
    let entries = values.iter().map(|(key, value)| Entry {
        key: key.clone(),
        value: value.clone(),
        changed: 0,
    });
    Catalog::read(&Listing {
        entries: entries.collect(),
        revision: 0,
    })
}

/// What leads from `older` to `newer`, for people.
fn told(newer: &Catalog, older: &Catalog, hidden: &BTreeMap<String, Vec<String>>) -> Vec<Change> {
    let mut changes = Difference::between(older, newer).changes;
    for change in &mut changes {
        // Hashes of what is kept say nothing about what is stored.
        change.before = Bytes::new();
        change.after = Bytes::new();
    }
    for (key, lines) in hidden.iter().filter(|(_, lines)| !lines.is_empty()) {
        let name = key.strip_prefix("/cfg/credentials/").unwrap_or_default();
        if !(older.credentials.contains_key(name) && newer.credentials.contains_key(name)) {
            continue;
        }
        let it = |change: &&mut Change| change.kind == "credential" && change.name == name;
        match changes.iter_mut().find(it) {
            Some(change) => change.details.extend(lines.iter().cloned()),
            None => changes.push(audit::change("update", "credential", name, lines.clone())),
        }
    }
    changes
}

#[cfg(test)]
mod tests;
