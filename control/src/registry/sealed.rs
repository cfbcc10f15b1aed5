//! Which master key each secret needs, and the way from an old one to a new one; headers of credentials that still lie in
//! clear are sealed on it.
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
    rotation, signing,
};
use crate::{
    coordinate::{Revision, Transaction},
    vault::KeyId,
};

/// The CA that replicas share, and that of a network whose root was replaced.
pub const CA: &str = "/secrets/ca";

/// Records that one transaction writes anew, and their bytes: a third of etcd's limit. One is 100 KiB at the very worst, with
/// 16 KiB of a secret and sixteen headers.
const PART: usize = 32;
const PART_BYTES: usize = 512 << 10;

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

/// How the secrets of the store lie there.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SecretsStatus {
    /// Every master key that is at hand or needed, the current one first.
    pub keys: Vec<SealedUnder>,
    /// Credentials whose headers lie in clear, from before they were sealed.
    pub clear: u64,
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

/// A record of the store with sealed texts in it.
enum Record {
    Credential(Box<StoredCredential>),
    /// One text is all there is at its place, and was written at this revision.
    Alone {
        at: &'static str,
        changed: Revision,
        text: Bytes,
    },
}

impl Record {
    /// Each sealed text, with what it was sealed for.
    fn texts(&mut self) -> Vec<(String, &mut Bytes)> {
        match self {
            Self::Credential(stored) => stored.sealed_texts(),
            Self::Alone { at, text, .. } => vec![((*at).to_owned(), text)],
        }
    }

    fn has_clear_headers(&self) -> bool {
        matches!(self, Self::Credential(stored) if stored.has_clear_headers())
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Credential(stored) => stored.encoded_len(),
            Self::Alone { text, .. } => text.len(),
        }
    }
}

impl StoredCredential {
    /// Each sealed text, with what it was sealed for.
    pub(super) fn sealed_texts(&mut self) -> Vec<(String, &mut Bytes)> {
        let mut texts = vec![(Self::sealed_for(&self.spec), &mut self.sealed)];
        if !self.sealed_headers.is_empty() {
            let name = Self::headers_sealed_for(&self.spec);
            texts.push((name, &mut self.sealed_headers));
        }
        texts
    }
}

impl Registry {
    /// Which master keys are needed, and what still lies in clear.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn sealed_under(&self) -> Result<SecretsStatus, Error> {
        let mut needed: BTreeMap<Option<KeyId>, (u64, u64)> = BTreeMap::new();
        let held: Vec<KeyId> = self.vault.keys().collect();
        for id in &held {
            needed.insert(Some(*id), (0, 0));
        }
        let (mut records, _) = self.sealed().await?;
        for (name, text) in records.iter_mut().flat_map(Record::texts) {
            let wrapping = self.vault.wrapping(&name, text);
            let count = needed.entry(wrapping.key).or_default();
            count.0 += 1;
            count.1 += u64::from(!wrapping.envelope);
        }
        let clear = records.iter().filter(|record| record.has_clear_headers());
        let clear = clear.count() as u64;
        let row = |(key, (secrets, direct)): (Option<KeyId>, (u64, u64))| SealedUnder {
            key: key.map(|id| id.to_string()).unwrap_or_default(),
            current: key.is_some() && key == held.first().copied(),
            held: key.is_some_and(|id| held.contains(&id)),
            secrets,
            direct,
        };
        let mut rows: Vec<SealedUnder> = needed.into_iter().map(row).collect();
        rows.sort_by_key(|row| (!row.current, !row.held));
        Ok(SecretsStatus { keys: rows, clear })
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
            let (records, catalog) = self.sealed().await?;
            if catalog.rollout.is_under_way() {
                // What it would go back to is sealed, too, and nobody else looks after that.
                return Err(Error::Refused(
                    "a change is on its way to the nodes: wait for it, or undo it".to_owned(),
                ));
            }
            done.secrets = 0;
            done.closed.clear();
            let mut part = Part::default();
            for mut record in records {
                let (all, anew) = self.rewrapped(&mut record, &mut done.closed)?;
                done.secrets += all;
                if anew > 0 {
                    part.take(record, anew);
                }
            }
            if part.records.is_empty() {
                return Ok(done);
            }
            let count = part.secrets;
            let details = vec![format!("secrets: {count}"), format!("key: {}", done.key)];
            let what = [audit::change("rotate", "secrets", "", details)];
            tries += 1;
            match self
                .commit(by, &what, transaction(part.records, &catalog))
                .await
            {
                Ok(_) => {
                    done.rewrapped += count;
                    tries = 0;
                }
                Err(Error::Conflict(_)) if tries < TRIES_MAX => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Puts each sealed text of a record under the current key, and seals headers that lie in clear. Answers how many secrets
    /// there are in it, and how many were sealed or wrapped anew.
    fn rewrapped(
        &self,
        record: &mut Record,
        closed: &mut Vec<String>,
    ) -> Result<(u64, u64), Error> {
        let (mut all, mut anew) = (0, 0);
        for (name, text) in record.texts() {
            all += 1;
            match self.vault.rewrap(&name, text) {
                Ok(None) => {}
                Ok(Some(wrapped)) => {
                    *text = wrapped.into();
                    anew += 1;
                }
                Err(_) => closed.push(name),
            }
        }
        if let Record::Credential(stored) = record
            && self.seal_clear_headers(stored)?
        {
            return Ok((all + 1, anew + 1));
        }
        Ok((all, anew))
    }

    /// Every record with secrets, and the configuration it was read with.
    async fn sealed(&self) -> Result<(Vec<Record>, Catalog), Error> {
        let mut all = Vec::new();
        for at in [PEPPER_KEY, CA, signing::AT, rotation::AT] {
            if let Some(entry) = self.store.get(at).await? {
                all.push(Record::Alone {
                    at,
                    changed: entry.changed,
                    text: entry.value,
                });
            }
        }
        let catalog = Catalog::read(&self.store.list(CONFIGURED).await?)?;
        let credentials = catalog.credentials.values().cloned();
        all.extend(credentials.map(|stored| Record::Credential(Box::new(stored))));
        Ok((all, catalog))
    }
}

/// What one transaction writes.
#[derive(Default)]
struct Part {
    records: Vec<Record>,
    bytes: usize,
    secrets: u64,
    full: bool,
}

impl Part {
    /// Takes a record while there is room; none is so large that it has no room alone.
    fn take(&mut self, record: Record, secrets: u64) {
        self.bytes += record.bytes();
        self.full |= self.records.len() >= PART || self.bytes > PART_BYTES;
        if self.records.is_empty() || !self.full {
            self.secrets += secrets;
            self.records.push(record);
        }
    }
}

fn transaction(part: Vec<Record>, catalog: &Catalog) -> Transaction {
    let mut writes = Transaction::new();
    let mut configured = false;
    for record in part {
        writes = match record {
            Record::Alone { at, changed, text } => writes.when(at, changed).put(at, text),
            Record::Credential(stored) => {
                configured = true;
                writes.put(
                    Kind::Credential.key(&stored.spec.name),
                    stored.encode_to_vec(),
                )
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
