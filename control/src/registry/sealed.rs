//! Which master key each secret needs, and the way from an old one to a new one.
//!
//! Wrapping anew goes in parts, each one transaction with its entry in the audit log. A part that is done stays done, so
//! that whoever is cut short begins again and finds less to do. The configuration's generation is written with its own
//! number, so that a change which was read before it is not made over it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use super::{
    Actor, Catalog, Error, Registry, StoredCredential, audit,
    catalog::{GENERATION, Kind, PREFIX as CONFIGURED},
    key::PEPPER_KEY,
};
use crate::{
    coordinate::{Revision, Transaction},
    vault::KeyId,
};

/// The CA that replicas share.
const CA: &str = "/secrets/ca";

/// Secrets that one transaction wraps anew: 16 KiB each at the very worst, and a third of etcd's limit.
const PART: usize = 32;

/// Tries while others change the configuration.
const TRIES_MAX: u32 = 32;

/// How many secrets need one master key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealedUnder {
    /// The key's name; empty when no key at hand opens them and they do not say it.
    pub key: String,
    /// It is sealed with now.
    pub current: bool,
    /// This control has it.
    pub held: bool,
    /// Secrets that need it.
    pub secrets: u64,
    /// Those of them that have no data key of their own yet.
    pub direct: u64,
}

/// What a rotation did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rewrapped {
    /// The key that everything is under now.
    pub key: String,
    /// Secrets that were wrapped anew.
    pub rewrapped: u64,
    /// Secrets in all.
    pub secrets: u64,
    /// Names of secrets that no key at hand opens.
    pub closed: Vec<String>,
}

/// A secret where it lies.
struct Sealed {
    /// Where in the store.
    at: String,
    /// What it was sealed for.
    name: String,
    text: Bytes,
    kind: Holder,
}

enum Holder {
    Credential(Box<StoredCredential>),
    /// It is all there is at its place, and was written at this revision.
    Alone(Revision),
}

impl Registry {
    /// Every master key that is at hand or needed, the current one first.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sealed_under(&self) -> Result<Vec<SealedUnder>, Error> {
        let mut needed: BTreeMap<Option<KeyId>, (u64, u64)> = BTreeMap::new();
        let held: Vec<KeyId> = self.vault.keys().collect();
        for id in &held {
            needed.insert(Some(*id), (0, 0));
        }
        let (secrets, _) = self.sealed().await?;
        for secret in &secrets {
            let wrapping = self.vault.wrapping(&secret.name, &secret.text);
            let count = needed.entry(wrapping.key).or_default();
            count.0 += 1;
            count.1 += u64::from(!wrapping.envelope);
        }
        let row = |(key, (secrets, direct)): (Option<KeyId>, (u64, u64))| SealedUnder {
            key: key.map(|id| id.to_string()).unwrap_or_default(),
            current: key.is_some() && key == held.first().copied(),
            held: key.is_some_and(|id| held.contains(&id)),
            secrets,
            direct,
        };
        let mut rows: Vec<SealedUnder> = needed.into_iter().map(row).collect();
        rows.sort_by_key(|row| (!row.current, !row.held));
        Ok(rows)
    }

    /// Wraps everything anew that is not under the current master key. Doing it twice does nothing the second time.
    ///
    /// # Errors
    /// When the store fails, or others never stop changing the configuration.
    pub async fn rewrap(&self, by: &Actor) -> Result<Rewrapped, Error> {
        let mut done = Rewrapped {
            key: self
                .vault
                .keys()
                .next()
                .map_or(String::new(), |id| id.to_string()),
            ..Rewrapped::default()
        };
        let mut tries = 0;
        loop {
            let (secrets, catalog) = self.sealed().await?;
            if catalog.rollout.is_under_way() {
                // What it would go back to is sealed, too, and nobody else looks after that.
                return Err(Error::Refused(
                    "a change is on its way to the nodes: wait for it, or undo it".to_owned(),
                ));
            }
            done.secrets = secrets.len() as u64;
            done.closed.clear();
            let mut part = Vec::new();
            for secret in secrets {
                match self.vault.rewrap(&secret.name, &secret.text) {
                    Ok(None) => {}
                    Ok(Some(text)) => part.push((secret, Bytes::from(text))),
                    Err(_) => done.closed.push(secret.name),
                }
            }
            part.truncate(PART);
            if part.is_empty() {
                return Ok(done);
            }
            let count = part.len() as u64;
            let details = vec![format!("secrets: {count}"), format!("key: {}", done.key)];
            let what = [audit::change("rotate", "secrets", "", details)];
            tries += 1;
            match self.commit(by, &what, transaction(part, &catalog)).await {
                Ok(_) => {
                    done.rewrapped += count;
                    tries = 0;
                }
                Err(Error::Conflict(_)) if tries < TRIES_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Every secret of the store, and the configuration it was read with.
    async fn sealed(&self) -> Result<(Vec<Sealed>, Catalog), Error> {
        let mut all = Vec::new();
        for key in [PEPPER_KEY, CA] {
            if let Some(entry) = self.store.get(key).await? {
                all.push(Sealed {
                    at: key.to_owned(),
                    name: key.to_owned(),
                    text: entry.value,
                    kind: Holder::Alone(entry.changed),
                });
            }
        }
        let catalog = Catalog::read(&self.store.list(CONFIGURED).await?)?;
        let credentials = catalog.credentials.iter().map(|(name, stored)| Sealed {
            at: Kind::Credential.key(name),
            name: StoredCredential::sealed_for(&stored.spec),
            text: stored.sealed.clone(),
            kind: Holder::Credential(Box::new(stored.clone())),
        });
        all.extend(credentials);
        Ok((all, catalog))
    }
}

fn transaction(part: Vec<(Sealed, Bytes)>, catalog: &Catalog) -> Transaction {
    let mut writes = Transaction::new();
    let mut configured = false;
    for (secret, text) in part {
        writes = match secret.kind {
            Holder::Alone(changed) => writes.when(secret.at.clone(), changed).put(secret.at, text),
            Holder::Credential(mut stored) => {
                configured = true;
                stored.sealed = text;
                writes.put(secret.at, stored.encode_to_vec())
            }
        };
    }
    if configured {
        writes = writes
            .when(GENERATION, catalog.generation_changed)
            .put(GENERATION, catalog.generation.to_be_bytes().to_vec());
    }
    writes
}

#[cfg(test)]
mod tests;
