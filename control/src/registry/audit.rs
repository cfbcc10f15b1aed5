//! Every change, by whom and when, in a chain of hashes.
//!
//! An entry is written in the transaction that makes the change, so there is no change without one. Each holds the hash of the
//! entry before it, and the head (`/audit/head`) is proven by a MAC under control's own secret: who can write to the store but
//! has not the master key can neither alter nor drop an entry unseen. Only taking the whole log away leaves no trace in the
//! store; the log of the process names every new head for that.
//! Kept are the newest [`ENTRIES_MAX`] entries, each of at most [`DETAILS_BYTES_MAX`] of details: 40 MiB at the very worst, 4 as
//! a rule.

use bytes::Bytes;
use prost::Message as _;
use ring::digest::{SHA256, digest};
use vector_proto::control::v1::{AuditEntry, AuditHead, AuditRecord, Change};

use super::{Error, Registry, catalog::decode, key::Pepper};
use crate::{
    coordinate::{self, Revision, Transaction},
    vault,
};

const HEAD: &str = "/audit/head";
const ENTRIES: &str = "/audit/entries/";

/// Entries that are kept.
const ENTRIES_MAX: u64 = 10_000;

/// Details of one entry; what is beyond is told by digest and count only.
const DETAILS_BYTES_MAX: usize = 4 << 10;

/// Changes that one entry names; a plan may have thousands.
const CHANGES_MAX: usize = 64;

/// Writes that the log adds to a transaction: the entry, the head, and the oldest entry's end.
pub(super) const WRITES: usize = 3;

/// Tries while other replicas write their entries.
const TRIES_MAX: u32 = 32;

/// Who makes a change.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Actor {
    /// `operator/NAME`, `node/NAME` or `control`.
    pub name: String,
    /// From where; may be empty.
    pub address: String,
}

impl Actor {
    /// A node, of itself.
    #[must_use]
    pub fn node(id: &str) -> Self {
        Self {
            name: format!("node/{id}"),
            address: String::new(),
        }
    }

    /// An operator.
    #[must_use]
    pub fn operator(name: &str, address: String) -> Self {
        Self {
            name: format!("operator/{name}"),
            address,
        }
    }
}

/// A part of the log, with what proves it.
#[derive(Debug)]
pub struct AuditPage {
    /// Oldest first.
    pub records: Vec<AuditRecord>,
    /// Where the chain ends.
    pub head: AuditHead,
    /// Whether the head's MAC is control's.
    pub proven: bool,
}

/// One thing that was done, for the log.
pub(super) fn change(action: &str, kind: &str, name: &str, details: Vec<String>) -> Change {
    Change {
        action: action.to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        details,
        ..Change::default()
    }
}

impl Registry {
    /// Commits `what`, done by `by`, together with its entry in the log.
    ///
    /// # Errors
    /// [`Error::Conflict`] when a key that `transaction` compares was changed.
    pub(super) async fn commit(
        &self,
        by: &Actor,
        what: &[Change],
        transaction: Transaction,
    ) -> Result<Revision, Error> {
        // One at a time in this process; other replicas are told apart by the head.
        let _turn = self.auditing.lock().await;
        let mut tries = 0;
        loop {
            let (head, changed, broken) = self.head().await?;
            let entry = AuditEntry {
                seq: head.seq + 1,
                unix_ms: unix_ms(),
                actor: by.name.clone(),
                address: by.address.clone(),
                changes: short(what),
                previous: head.hash.clone(),
                broken,
            };
            let record = record_of(&entry);
            let next = self.proven_head(entry.seq, record.hash.clone());
            let at = |seq: u64| format!("{ENTRIES}{seq:016x}");
            let mut all = transaction
                .clone()
                .when(HEAD, changed)
                .put(at(entry.seq), record.encode_to_vec())
                .put(HEAD, next.encode_to_vec());
            if entry.seq > ENTRIES_MAX {
                all = all.delete(at(entry.seq - ENTRIES_MAX));
            }
            tries += 1;
            match self.store.commit(all).await {
                Ok(revision) => {
                    tracing::info!(
                        audit.seq = entry.seq,
                        audit.head = vault::hex(&record.hash),
                        actor = by.name,
                        "change kept"
                    );
                    return Ok(revision);
                }
                // It is compared last: everything else was as it should be.
                Err(coordinate::Error::Conflict(key)) if key == HEAD && tries < TRIES_MAX => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The head, when it was changed, and whether somebody else than control changed it.
    async fn head(&self) -> Result<(AuditHead, Revision, bool), Error> {
        if let Some(entry) = self.store.get(HEAD).await? {
            let head = AuditHead::decode(entry.value).unwrap_or_default();
            let broken = !self.proves(&head);
            return Ok((head, entry.changed, broken));
        }
        // Either the first change of all, or somebody took the head away.
        let listing = self.store.list(ENTRIES).await?;
        let Some(last) = listing.entries.last() else {
            return Ok((AuditHead::default(), 0, false));
        };
        let record: AuditRecord = decode(&last.value).unwrap_or_default();
        let seq = last.key.get(ENTRIES.len()..).unwrap_or_default();
        let head = AuditHead {
            seq: u64::from_str_radix(seq, 16).unwrap_or_default(),
            hash: record.hash,
            ..AuditHead::default()
        };
        Ok((head, 0, true))
    }

    fn proven_head(&self, seq: u64, hash: Bytes) -> AuditHead {
        AuditHead {
            mac: self.pepper().mac(&proof(seq, &hash)),
            seq,
            hash,
            oldest_seq: seq.saturating_sub(ENTRIES_MAX) + 1,
        }
    }

    fn proves(&self, head: &AuditHead) -> bool {
        self.pepper().knows(&proof(head.seq, &head.hash), &head.mac)
    }

    /// Proves the head anew under the pepper that a restore has brought, if it was proven under the one before.
    pub(super) async fn prove_anew(&self, before: &Pepper) -> Result<(), Error> {
        let Some(entry) = self.store.get(HEAD).await? else {
            return Ok(());
        };
        let head = AuditHead::decode(entry.value).unwrap_or_default();
        if before.knows(&proof(head.seq, &head.hash), &head.mac) {
            let next = self.proven_head(head.seq, head.hash);
            let put = Transaction::new()
                .when(HEAD, entry.changed)
                .put(HEAD, next.encode_to_vec());
            self.store.commit(put).await?;
        }
        Ok(())
    }

    /// A part of the log: what comes after `after`, or the newest.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn audit(&self, after: u64, rows: usize, newest: bool) -> Result<AuditPage, Error> {
        let listing = self.store.list("/audit/").await?;
        let mut head = None;
        let mut records: Vec<AuditRecord> = Vec::new();
        let first = format!("{ENTRIES}{after:016x}");
        for entry in listing.entries {
            if entry.key == HEAD {
                head = Some(AuditHead::decode(entry.value).unwrap_or_default());
            } else if newest || entry.key > first {
                // What cannot be read stands there as a gap.
                records.push(AuditRecord::decode(entry.value).unwrap_or_default());
            }
        }
        if newest {
            records.drain(..records.len().saturating_sub(rows));
        }
        records.truncate(rows);
        let proven = head
            .as_ref()
            .map_or(records.is_empty(), |head| self.proves(head));
        Ok(AuditPage {
            records,
            head: head.unwrap_or_default(),
            proven,
        })
    }
}

/// What the head's MAC is made of. No key's MAC is made of as many bytes.
fn proof(seq: u64, hash: &[u8]) -> Vec<u8> {
    [b"audit head ".as_slice(), &seq.to_be_bytes(), hash].concat()
}

fn record_of(entry: &AuditEntry) -> AuditRecord {
    let entry: Bytes = entry.encode_to_vec().into();
    AuditRecord {
        hash: hash(&entry),
        entry,
    }
}

/// SHA-256.
pub(super) fn hash(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(digest(&SHA256, bytes).as_ref())
}

/// What fits in an entry.
fn short(what: &[Change]) -> Vec<Change> {
    let mut room = DETAILS_BYTES_MAX;
    let mut told: Vec<Change> = Vec::new();
    for change in what.iter().take(CHANGES_MAX) {
        let mut change = change.clone();
        change.details.retain(|line| {
            let fits = line.len() <= room;
            room = room.saturating_sub(line.len());
            fits
        });
        told.push(change);
    }
    if let Some(rest) = what.get(CHANGES_MAX..).filter(|rest| !rest.is_empty()) {
        let all: Vec<u8> = rest
            .iter()
            .flat_map(|change| change.encode_to_vec())
            .collect();
        let text = format!("{} more changes", rest.len());
        let mut more = change("change", "rest", &text, Vec::new());
        more.after = hash(&all);
        told.push(more);
    }
    told
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
