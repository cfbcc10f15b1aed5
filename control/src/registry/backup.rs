//! All that the store holds of the network, taken out and put back: sealed as it is, with a digest over it.
//!
//! Left out is what belongs to one moment or to whoever restores: invites, sessions, the CA (which must be the same), its
//! intermediate, the root that is to replace it, and the hash of the operator's token. Secrets stay sealed, so a backup is worth
//! nothing without the master key, and only a control that has that key takes it.

use bytes::Bytes;
use prost::Message as _;
use ring::digest::{Context, SHA256};

use super::{
    Actor, Catalog, Error, Registry, audit,
    catalog::{GENERATION, Kind, PREFIX as CONFIGURED, StoredCredential, decode, number},
    history,
    key::{self, StoredKey},
    node::{NodeSpec, Seen},
    operator, rollout, rotation,
    sealed::CA,
    signing,
};
use crate::coordinate::{Entry, Listing, Transaction, Write};

/// What a backup holds. Whoever keeps something new in the store for good adds it here.
const KEPT: &[&str] = &[
    CONFIGURED,
    "/keys/",
    "/operators/",
    "/nodes/",
    "/revoked/",
    "/seen/",
    "/secrets/",
    PUBLISHED,
];

/// Revision of the snapshot in force, in the first eight bytes.
const PUBLISHED: &str = "/routing/published";

/// Not in a backup: a control that restores one has its own.
const OWN: &[&str] = &[operator::AT, CA, signing::AT, rotation::AT, rollout::AT];

/// After a restore revisions go on this far above the backup's: nodes may have seen newer ones since, and one number must
/// never mean two snapshots.
const REVISION_GAP: u64 = 1_000_000;

/// Stands in for the digest of a snapshot that nobody has compiled yet.
const NO_CONTENT: &[u8] = b"restored";

/// Entries of a backup, and their bytes: far above what 1,000 nodes and 100,000 keys have.
pub const ENTRIES_MAX: usize = 500_000;
pub const BYTES_MAX: usize = 256 << 20;

/// Of one transaction: etcd takes 1.5 MiB in one request.
const COMMIT_BYTES_MAX: usize = 1 << 20;
const COMMIT_WRITES_MAX: usize = 1_000;

/// What a restore did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Restored {
    /// Entries that were put.
    pub put: usize,
    /// Entries that were there and are not in the backup.
    pub removed: usize,
}

/// Tells whether a backup is whole: SHA-256 over every key and value with their lengths, in order.
#[must_use]
pub fn digest<'a>(entries: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> [u8; 32] {
    let mut sum = Context::new(&SHA256);
    for (key, value) in entries {
        for part in [key.as_bytes(), value] {
            sum.update(&(part.len() as u64).to_be_bytes());
            sum.update(part);
        }
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(sum.finish().as_ref());
    bytes
}

fn is_kept(key: &str) -> bool {
    KEPT.iter().any(|prefix| key.starts_with(prefix)) && !OWN.contains(&key)
}

impl Registry {
    /// Everything that is worth keeping, as it is at one moment, by key; headers that still lie in clear are sealed in it.
    ///
    /// # Errors
    /// When the store fails or holds what cannot be read.
    pub async fn backup(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = self.store.list("/").await?.entries;
        entries.retain(|entry| is_kept(&entry.key));
        for entry in &mut entries {
            if entry.key.starts_with(&Kind::Credential.key("")) {
                let mut stored: StoredCredential = decode(&entry.value)?;
                // It may leave this machine, where the record waits for a rotation.
                if self.seal_clear_headers(&mut stored)? {
                    entry.value = stored.encode_to_vec().into();
                }
            }
        }
        Ok(entries)
    }

    /// Puts a backup in the place of everything that a backup holds. Without `force`, only where nothing is configured.
    ///
    /// A large backup takes several transactions, the configuration last; one that was cut short is repeated.
    ///
    /// # Errors
    /// [`Error::Refused`] when something is configured already, or the secrets are sealed by another master key;
    /// [`Error::Damaged`] when an entry cannot be read.
    pub async fn restore(
        &self,
        by: &Actor,
        entries: Vec<(String, Bytes)>,
        force: bool,
    ) -> Result<Restored, Error> {
        self.check_backup(&entries)?;
        let now = self.store.list("/").await?.entries;
        if !force && let Some(entry) = now.iter().find(|entry| is_in_the_way(&entry.key)) {
            return Err(Error::Refused(format!(
                "this control holds a network already (such as `{}`): to replace it, force it",
                entry.key
            )));
        }
        let put = entries.len();
        let details = vec![format!("entries: {put}"), format!("force: {force}")];
        let what = audit::change("restore", "backup", "", details);
        self.commit(by, &[what], Transaction::new()).await?;
        let pepper = self.pepper();
        let mut writes = writes(entries, &now);
        let removed = writes.len() - put;
        // Nobody acts on half of a configuration.
        writes.sort_by_key(|write| {
            (
                write.key().starts_with(CONFIGURED),
                write.key() == GENERATION,
            )
        });
        for part in parts(writes) {
            let commit = Transaction {
                writes: part,
                ..Transaction::new()
            };
            self.store.commit(commit).await?;
        }
        self.take_pepper().await?;
        self.prove_anew(&pepper).await?;
        Ok(Restored { put, removed })
    }

    /// Whether every entry can be read here, and every secret opened.
    fn check_backup(&self, entries: &[(String, Bytes)]) -> Result<(), Error> {
        let mut listing = Listing {
            entries: Vec::new(),
            revision: 0,
        };
        for (key, value) in entries {
            if !is_kept(key) {
                return Err(Error::Refused(format!("`{key}` belongs in no backup")));
            }
            if key.starts_with("/keys/") {
                drop(decode::<StoredKey>(value)?);
            } else if key.starts_with("/nodes/") {
                drop(decode::<NodeSpec>(value)?);
            } else if key.starts_with("/seen/") {
                drop(decode::<Seen>(value)?);
            } else if key == key::PEPPER_KEY {
                self.opens(key, value)?;
            }
            listing.entries.push(Entry {
                key: key.clone(),
                value: value.clone(),
                changed: 1,
            });
        }
        let catalog = Catalog::read(&listing)?;
        for mut stored in catalog.credentials.into_values() {
            for (name, sealed) in stored.sealed_texts() {
                self.opens(&name, sealed)?;
            }
        }
        Ok(())
    }

    fn opens(&self, name: &str, sealed: &[u8]) -> Result<(), Error> {
        match self.vault.open_sealed(name, sealed) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::Refused(
                "the backup's secrets are sealed by another master key: put the master.key of the control it was taken from \
                 into control.data_dir, start, and restore again"
                    .to_owned(),
            )),
        }
    }
}

/// What makes a store one that holds a network.
fn is_in_the_way(key: &str) -> bool {
    ["/cfg/", "/keys/", "/nodes/"]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

/// What brings the store from `now` to the backup.
fn writes(entries: Vec<(String, Bytes)>, now: &[Entry]) -> Vec<Write> {
    let named: std::collections::HashSet<String> =
        entries.iter().map(|(key, _)| key.clone()).collect();
    let revision_now = now
        .iter()
        .find(|entry| entry.key == PUBLISHED)
        .map_or(0, |entry| revision_of(&entry.value));
    let gone = now
        .iter()
        .filter(|entry| {
            // What led to the configuration that is replaced does not lead to the other.
            let past = entry.key.starts_with(history::PREFIX) || entry.key == rollout::AT;
            past || (is_kept(&entry.key) && !named.contains(&entry.key))
        })
        .map(|entry| Write::Delete {
            key: entry.key.clone(),
        });
    let put = entries.into_iter().map(|(key, value)| {
        let value = if key == PUBLISHED {
            let revision = revision_of(&value).max(revision_now) + REVISION_GAP;
            [&revision.to_be_bytes()[..], NO_CONTENT].concat().into()
        } else {
            value
        };
        Write::Put {
            key,
            value,
            session: None,
        }
    });
    gone.chain(put).collect()
}

fn revision_of(published: &[u8]) -> u64 {
    published.get(..8).map(number).unwrap_or_default()
}

/// Cuts writes into what one transaction takes each.
fn parts(writes: Vec<Write>) -> Vec<Vec<Write>> {
    let mut parts: Vec<Vec<Write>> = Vec::new();
    let mut bytes = 0;
    for write in writes {
        let size = match &write {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Delete { key } => key.len(),
        };
        bytes += size;
        match parts.last_mut() {
            Some(part) if bytes <= COMMIT_BYTES_MAX && part.len() < COMMIT_WRITES_MAX => {
                part.push(write);
            }
            _ => {
                bytes = size;
                parts.push(vec![write]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests;
