//! The store of a single machine: SQLite, one thread, no other process.
//!
//! Sessions live as long as this process: what an earlier one left behind is taken away when the file
//! is opened. The last [`HISTORY_COMMITS`] commits are kept for watchers that come back.

use std::{collections::VecDeque, path::Path, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::mpsc;

use super::{
    Answer, Batch, Entry, Error, Event, Listing, Revision, Session, SessionId, Store, Transaction,
    WATCH_COMMITS_MAX, Watch, Write,
};
use crate::sqlite::{self, Sqlite};

/// Commits kept for watchers that come back.
const HISTORY_COMMITS: i64 = 10_000;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS entry (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, changed INTEGER NOT NULL, session INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    revision INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL, session INTEGER NOT NULL);
INSERT OR IGNORE INTO head VALUES (1, 0, 0);
";

/// See the module.
#[derive(Debug)]
pub struct Embedded {
    sqlite: Sqlite,
    watchers: Arc<Mutex<Vec<Watcher>>>,
}

#[derive(Debug)]
struct Watcher {
    prefix: String,
    live: mpsc::Sender<Batch>,
}

impl Embedded {
    /// Opens or makes the file. Only one process may: watchers hear only of commits made here.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a store.
    pub async fn open(path: &Path) -> Result<Self, Error> {
        let sqlite = Sqlite::open(path, SCHEMA)?;
        let store = Self {
            sqlite,
            watchers: Arc::default(),
        };
        store
            .write(|connection| {
                let left: Vec<String> = connection
                    .prepare("SELECT key FROM entry WHERE session IS NOT NULL")?
                    .query_map([], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let writes = left.into_iter().map(|key| Write::Delete { key }).collect();
                apply(connection, writes).map(Ok)
            })
            .await?;
        Ok(store)
    }

    /// Runs a job that may commit, and tells the watchers when it did.
    async fn write<W>(&self, work: W) -> Result<Revision, Error>
    where
        W: FnOnce(&Connection) -> rusqlite::Result<Result<Batch, Error>> + Send + 'static,
    {
        let watchers = Arc::clone(&self.watchers);
        let tell = move |outcome: &Result<Batch, Error>| {
            if let Ok(batch) = outcome {
                watchers.lock().retain(|watcher| watcher.tell(batch));
            }
        };
        let batch = self.sqlite.run(work, tell).await??;
        Ok(batch.revision)
    }
}

impl Watcher {
    /// False when the watcher is gone, or too slow and has to list anew.
    fn tell(&self, batch: &Batch) -> bool {
        let events: Vec<Event> = batch
            .events
            .iter()
            .filter(|event| event.key.starts_with(&self.prefix))
            .cloned()
            .collect();
        if events.is_empty() {
            return !self.live.is_closed();
        }
        let revision = batch.revision;
        self.live.try_send(Batch { revision, events }).is_ok()
    }
}

impl Store for Embedded {
    fn get(&self, key: &str) -> Answer<'_, Option<Entry>> {
        let key = key.to_owned();
        Box::pin(async move {
            let read = move |connection: &Connection| {
                connection
                    .prepare_cached("SELECT key, value, changed FROM entry WHERE key = ?1")?
                    .query_row([&key], entry)
                    .optional()
            };
            Ok(self.sqlite.run(read, |_| ()).await?)
        })
    }

    fn list(&self, prefix: &str) -> Answer<'_, Listing> {
        let (from, to) = range(prefix);
        Box::pin(async move {
            let read = move |connection: &Connection| {
                let entries = connection
                    .prepare_cached("SELECT key, value, changed FROM entry WHERE key >= ?1 AND key < ?2 ORDER BY key")?
                    .query_map([&from, &to], entry)?
                    .collect::<rusqlite::Result<_>>()?;
                let revision = head(connection)?;
                Ok(Listing { entries, revision })
            };
            Ok(self.sqlite.run(read, |_| ()).await?)
        })
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, Revision> {
        Box::pin(async move {
            transaction.check()?;
            self.write(move |connection| {
                for compare in &transaction.compares {
                    let changed: Option<Revision> = connection
                        .prepare_cached("SELECT changed FROM entry WHERE key = ?1")?
                        .query_row([&compare.key], |row| row.get(0))
                        .optional()?;
                    if changed.unwrap_or(0) != compare.changed {
                        return Ok(Err(Error::Conflict(compare.key.clone())));
                    }
                }
                for write in &transaction.writes {
                    if let Write::Put {
                        session: Some(session),
                        ..
                    } = write
                        && !session_lives(connection, *session)?
                    {
                        return Ok(Err(Error::SessionEnded));
                    }
                }
                apply(connection, transaction.writes).map(Ok)
            })
            .await
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Answer<'_, Watch> {
        let prefix = prefix.to_owned();
        let watchers = Arc::clone(&self.watchers);
        Box::pin(async move {
            let (live, receiver) = mpsc::channel(WATCH_COMMITS_MAX);
            let begin = move |connection: &Connection| {
                let Some(backlog) = backlog(connection, &prefix, after)? else {
                    return Ok(None);
                };
                // A commit of this very group may be both in the backlog and told live: `Watch` drops the second.
                watchers.lock().push(Watcher { prefix, live });
                Ok(Some(backlog))
            };
            let backlog = self.sqlite.run(begin, |_| ()).await?;
            backlog
                .map(|backlog| Watch::new(backlog, after, receiver))
                .ok_or(Error::Compacted)
        })
    }

    fn session(&self) -> Answer<'_, Session> {
        Box::pin(async move {
            let begin = |connection: &Connection| {
                connection.query_row(
                    "UPDATE head SET session = session + 1 RETURNING session",
                    [],
                    |row| row.get(0),
                )
            };
            let id = self.sqlite.run(begin, |_| ()).await?;
            let key = session_key(id);
            let mark = Write::Put {
                key,
                value: Bytes::new(),
                session: Some(id),
            };
            self.write(move |connection| apply(connection, vec![mark]).map(Ok))
                .await?;
            Ok(Session { id })
        })
    }

    fn end(&self, session: Session) -> Answer<'_, ()> {
        Box::pin(async move {
            self.write(move |connection| {
                let keys: Vec<String> = connection
                    .prepare_cached("SELECT key FROM entry WHERE session = ?1")?
                    .query_map([session.id], |row| row.get(0))?
                    .collect::<rusqlite::Result<_>>()?;
                let writes = keys.into_iter().map(|key| Write::Delete { key }).collect();
                apply(connection, writes).map(Ok)
            })
            .await?;
            Ok(())
        })
    }
}

impl From<sqlite::Error> for Error {
    fn from(error: sqlite::Error) -> Self {
        Self::Unavailable(error.to_string())
    }
}

fn session_key(id: SessionId) -> String {
    format!("/sessions/{id}")
}

fn session_lives(connection: &Connection, id: SessionId) -> rusqlite::Result<bool> {
    connection
        .prepare_cached("SELECT 1 FROM entry WHERE key = ?1")?
        .exists([session_key(id)])
}

fn head(connection: &Connection) -> rusqlite::Result<Revision> {
    connection.query_row("SELECT revision FROM head", [], |row| row.get(0))
}

fn entry(row: &rusqlite::Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: Bytes::from(row.get::<_, Vec<u8>>(1)?),
        changed: row.get(2)?,
    })
}

/// The keys that begin with `prefix` are those from it up to the next text of the same length.
fn range(prefix: &str) -> (String, String) {
    let mut to = prefix.to_owned();
    // Keys are UTF-8 and end long before the last character there is.
    to.push(char::MAX);
    (prefix.to_owned(), to)
}

/// Does the writes as one commit. Without a write that changes anything there is no new revision.
fn apply(connection: &Connection, mut writes: Vec<Write>) -> rusqlite::Result<Batch> {
    writes.sort_by(|a, b| a.key().cmp(b.key()));
    let revision = head(connection)? + 1;
    let mut events = Vec::with_capacity(writes.len());
    for write in writes {
        let (key, value) = match write {
            Write::Put {
                key,
                value,
                session,
            } => {
                connection
                    .prepare_cached("INSERT OR REPLACE INTO entry (key, value, changed, session) VALUES (?1, ?2, ?3, ?4)")?
                    .execute(params![key, &value[..], revision, session])?;
                (key, Some(value))
            }
            Write::Delete { key } => {
                let gone = connection
                    .prepare_cached("DELETE FROM entry WHERE key = ?1")?
                    .execute([&key])?;
                if gone == 0 {
                    continue;
                }
                (key, None)
            }
        };
        connection
            .prepare_cached("INSERT INTO history (revision, key, value) VALUES (?1, ?2, ?3)")?
            .execute(params![revision, key, value.as_deref()])?;
        events.push(Event { key, value });
    }
    if events.is_empty() {
        let revision = revision - 1;
        return Ok(Batch { revision, events });
    }
    connection
        .prepare_cached("UPDATE head SET revision = ?1")?
        .execute([revision])?;
    connection
        .prepare_cached("DELETE FROM history WHERE revision <= ?1")?
        .execute([revision.saturating_sub(HISTORY_COMMITS)])?;
    Ok(Batch { revision, events })
}

/// The commits after `after` that touched `prefix`; `None` when not all of them are kept.
fn backlog(
    connection: &Connection,
    prefix: &str,
    after: Revision,
) -> rusqlite::Result<Option<VecDeque<Batch>>> {
    let oldest_whole = head(connection)?.saturating_sub(HISTORY_COMMITS);
    if after < oldest_whole {
        return Ok(None);
    }
    let mut batches: VecDeque<Batch> = VecDeque::new();
    let mut statement = connection.prepare_cached(
        "SELECT revision, key, value FROM history WHERE revision > ?1 ORDER BY revision, key",
    )?;
    let mut rows = statement.query([after])?;
    while let Some(row) = rows.next()? {
        let (revision, key): (Revision, String) = (row.get(0)?, row.get(1)?);
        if !key.starts_with(prefix) {
            continue;
        }
        let value = row.get::<_, Option<Vec<u8>>>(2)?.map(Bytes::from);
        let event = Event { key, value };
        match batches.back_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push_back(Batch {
                revision,
                events: vec![event],
            }),
        }
    }
    Ok(Some(batches))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::coordinate::VALUE_BYTES_MAX;

    fn put(key: &str, bytes: usize) -> Transaction {
        Transaction::new().put(key, vec![0; bytes])
    }

    #[tokio::test]
    async fn a_full_disk_fails_commits_and_tells_nobody_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).await.unwrap();
        let before = store.commit(put("/before", 1)).await.unwrap();
        let mut watch = store.watch("/", before).await.unwrap();
        store.sqlite.leave_room(Some(4)).await;
        let (go, held) = mpsc::channel();
        let (_, small, large, behind, ()) = tokio::join!(
            store.sqlite.hold(held),
            store.commit(put("/small", 1)),
            store.commit(put("/large", VALUE_BYTES_MAX)),
            store.commit(put("/behind", 1)),
            async { drop(go) },
        );
        for failed in [small, large] {
            assert!(matches!(failed, Err(Error::Unavailable(_))), "{failed:?}");
        }
        // Nobody hears of what has failed, and nobody sees it; what was put is both heard and seen.
        let put_to_use: Vec<(&str, Revision)> = [("/before", before)]
            .into_iter()
            .chain(behind.ok().map(|revision| ("/behind", revision)))
            .collect();
        let listed = store.list("/").await.unwrap();
        let there = listed.entries.iter();
        let mut there: Vec<_> = there.map(|entry| (&*entry.key, entry.changed)).collect();
        there.sort_by_key(|(_, changed)| *changed);
        assert_eq!(there, put_to_use);
        assert_eq!(Some(listed.revision), put_to_use.last().map(|last| last.1));

        store.sqlite.leave_room(None).await;
        let after = store.commit(put("/after", 1)).await.unwrap();
        for (key, revision) in put_to_use.into_iter().skip(1).chain([("/after", after)]) {
            let told = watch.next().await.unwrap();
            assert_eq!((told.revision, &*told.events[0].key), (revision, key));
            assert_eq!(told.events.len(), 1);
        }
    }
}
