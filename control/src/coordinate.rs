//! The one small store that holds what all of control agrees on.
//!
//! Keys are paths, values are bytes, and one revision counts all commits. The words are etcd's, so that
//! an etcd backend is a translation: a transaction compares the revisions at which keys were last
//! changed and writes several keys at once; a watch tells every commit after a revision, in order; a
//! session is a lease whose keys go when it ends. Not for per-request data and not for health samples.
//! Nothing may trust a single read or a lock for safety: only what a transaction compares is certain.

use std::{collections::VecDeque, future::Future, pin::Pin};

use bytes::Bytes;
use tokio::sync::mpsc;

mod embedded;
pub use embedded::Embedded;

mod etcd;
pub use etcd::{Etcd, Settings as EtcdSettings};

mod elect;
pub use elect::{Candidate, Leadership, elect};

#[cfg(test)]
mod contract;

#[cfg(test)]
mod gate;
#[cfg(test)]
pub(crate) use gate::Gate;

/// Counts commits, as etcd does. 0 is before the first, and what a key that is not there has.
pub type Revision = i64;

/// Writes one transaction may have. etcd must run with `--max-txn-ops` of at least twice this.
pub const WRITES_MAX: usize = 4_096;

/// Largest value. etcd's own limit for a request is 1.5 MiB.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Commits that may wait for one watcher before it has to list anew: batches of one commit each.
pub const WATCH_COMMITS_MAX: usize = 1_024;

/// A future of the store's answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Why the store did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A compared key was changed by somebody else. Nothing was written; read again and decide again.
    #[error("changed by somebody else: {0}")]
    Conflict(String),
    /// The commits after the asked revision are no longer kept. List, and watch from there.
    #[error("the history asked for is no longer kept")]
    Compacted,
    /// The transaction breaks a limit or names a key twice.
    #[error("refused by the store: {0}")]
    Refused(&'static str),
    /// The session has ended.
    #[error("the session has ended")]
    SessionEnded,
    /// The store cannot be reached or failed. The outcome of a commit is then not known.
    #[error("the store failed: {0}")]
    Unavailable(String),
}

/// One key with its value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Path of the key.
    pub key: String,
    /// What it holds.
    pub value: Bytes,
    /// Revision of the commit that wrote it.
    pub changed: Revision,
}

/// All keys below a prefix, as they were at one revision.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listing {
    /// Sorted by key.
    pub entries: Vec<Entry>,
    /// Watch after this one to miss nothing.
    pub revision: Revision,
}

/// What must still be so for a transaction to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Compare {
    /// Path of the key.
    pub key: String,
    /// Revision at which it was last changed; 0: it is not there.
    pub changed: Revision,
}

/// One step of a transaction. A key may be written once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Path of the key.
        key: String,
        /// What it shall hold.
        value: Bytes,
        /// The key goes when this session ends.
        session: Option<SessionId>,
    },
    /// Takes a key away; it need not be there.
    Delete {
        /// Path of the key.
        key: String,
    },
}

impl Write {
    /// Path of the key.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Compares and writes, all or nothing.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Transaction {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// All are done, in one revision.
    pub writes: Vec<Write>,
}

impl Transaction {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only when `key` was last changed at `changed` (0: is not there).
    #[must_use]
    pub fn when(mut self, key: impl Into<String>, changed: Revision) -> Self {
        self.compares.push(Compare {
            key: key.into(),
            changed,
        });
        self
    }

    /// Sets `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write::Put {
            key: key.into(),
            value: value.into(),
            session: None,
        });
        self
    }

    /// Takes `key` away.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Checks the limits that every backend has.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.writes.len() > WRITES_MAX {
            return Err(Error::Refused("too many writes in one transaction"));
        }
        let mut keys = std::collections::HashSet::new();
        for write in &self.writes {
            if !keys.insert(write.key()) {
                return Err(Error::Refused("a key is written twice"));
            }
            if matches!(write, Write::Put { value, .. } if value.len() > VALUE_BYTES_MAX) {
                return Err(Error::Refused("a value is too large"));
            }
        }
        Ok(())
    }
}

/// Names a session.
pub type SessionId = i64;

/// A lease on life: keys put with it go when it is ended, or when its holder is gone for its time to live.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Session {
    /// Put this with a key.
    pub id: SessionId,
}

/// What one commit did below a prefix.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Batch {
    /// Revision of the commit.
    pub revision: Revision,
    /// In order of keys.
    pub events: Vec<Event>,
}

/// What happened to a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Path of the key.
    pub key: String,
    /// `None`: it is gone.
    pub value: Option<Bytes>,
}

/// Tells commits in order.
#[derive(Debug)]
pub struct Watch {
    backlog: VecDeque<Batch>,
    after: Revision,
    live: mpsc::Receiver<Batch>,
}

impl Watch {
    pub(crate) fn new(
        backlog: VecDeque<Batch>,
        after: Revision,
        live: mpsc::Receiver<Batch>,
    ) -> Self {
        Self {
            backlog,
            after,
            live,
        }
    }

    /// The next commit below the prefix.
    ///
    /// Cancel safety: dropped while it waits, nothing is lost.
    ///
    /// # Errors
    /// [`Error::Compacted`] when this watcher was too slow or the store went away: list, then watch anew.
    pub async fn next(&mut self) -> Result<Batch, Error> {
        loop {
            let batch = match self.backlog.pop_front() {
                Some(batch) => batch,
                None => self.live.recv().await.ok_or(Error::Compacted)?,
            };
            if batch.revision > self.after {
                self.after = batch.revision;
                return Ok(batch);
            }
        }
    }
}

/// What every backend does. [`elect()`] is built on it and needs no backend of its own.
pub trait Store: Send + Sync + 'static {
    /// One key, as it is now.
    fn get(&self, key: &str) -> Answer<'_, Option<Entry>>;

    /// All keys that begin with `prefix`.
    fn list(&self, prefix: &str) -> Answer<'_, Listing>;

    /// Does all writes when all compares hold; [`Error::Conflict`] and nothing otherwise.
    fn commit(&self, transaction: Transaction) -> Answer<'_, Revision>;

    /// Every commit after `after` that touched a key that begins with `prefix`.
    fn watch(&self, prefix: &str, after: Revision) -> Answer<'_, Watch>;

    /// Begins a session, kept alive by the backend until it is ended.
    fn session(&self) -> Answer<'_, Session>;

    /// Ends a session: its keys go in one commit.
    fn end(&self, session: Session) -> Answer<'_, ()>;
}
