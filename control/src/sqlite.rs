//! A SQLite database with a thread of its own, which commits in groups.
//!
//! Jobs wait in a bounded queue. Those that wait together share one transaction and one fsync; each
//! runs in a savepoint, so that one that fails takes nothing back but its own. An answer is given
//! only once it is durable (WAL, `synchronous = FULL`).
//!
//! SQLite may take a whole transaction back by itself, as when the disk is full. Then all of the group have failed, and
//! none runs outside a transaction: its savepoint would be one, and durable before anybody is told.

use std::path::Path;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

/// Jobs that may wait. A job holds at most one request's records, 4 MiB, and callers wait, not fail.
const JOBS_MAX: usize = 256;

/// Jobs that share one commit.
const GROUP_MAX: usize = 128;

/// Why a job gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite said no.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// What the job belongs to could not be made durable.
    #[error("database: the commit failed, nothing was kept")]
    NotCommitted,
    /// The thread is gone.
    #[error("database: closed")]
    Closed,
}

/// Tells the caller how the whole group ended.
type Settle = Box<dyn FnOnce(bool) + Send>;
/// Without a connection it fails.
type Job = Box<dyn FnOnce(Option<&Connection>) -> Settle + Send>;

/// Cheap to clone. The thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Sqlite {
    jobs: mpsc::Sender<Job>,
}

impl Sqlite {
    /// Opens or makes the file and brings it to `schema`, which must be safe to run again.
    ///
    /// # Errors
    /// When the file cannot be opened, is not a database, or the thread cannot start.
    pub fn open(path: &Path, schema: &str) -> Result<Self, Error> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "cache_size", -2_000)?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.execute_batch(schema)?;
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        std::thread::Builder::new()
            .name("sqlite".to_owned())
            .spawn(move || serve(&connection, queue))
            .map_err(|_| Error::Closed)?;
        Ok(Self { jobs })
    }

    /// Runs `work` on the thread and answers once what it wrote is durable.
    ///
    /// `kept` then runs on the thread, in the order of commits, before anybody hears the answer.
    ///
    /// Cancel safety: dropped before the job is queued, nothing happens; later, the job still runs whole.
    ///
    /// # Errors
    /// What `work` answers, or the failure to commit it.
    pub async fn run<T, W, K>(&self, work: W, kept: K) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        K: FnOnce(&T) + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let done = connection.map(|connection| in_savepoint(connection, work));
            Box::new(move |committed| {
                let result = match done {
                    Some(Ok(value)) if committed => {
                        kept(&value);
                        Ok(value)
                    }
                    Some(Ok(_)) | None => Err(Error::NotCommitted),
                    Some(Err(error)) => Err(error.into()),
                };
                // A caller that went away does not want to know.
                let _ = answer.send(result);
            })
        });
        self.jobs.send(job).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

fn in_savepoint<T>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.execute_batch("SAVEPOINT job")?;
    let done = work(connection).and_then(|value| {
        connection.execute_batch("RELEASE job")?;
        Ok(value)
    });
    if done.is_err()
        && !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK TO job; RELEASE job")
    {
        tracing::error!(%error, "a job cannot be taken back alone");
        roll_back(connection);
    }
    done
}

/// Takes the transaction back, if there is one.
fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        // The next group cannot begin then, fails, and tries this again.
        tracing::error!(%error, "rollback failed");
    }
}

fn serve(connection: &Connection, mut queue: mpsc::Receiver<Job>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while let Some(first) = queue.blocking_recv() {
        let began = connection.execute_batch("BEGIN");
        let mut next = Some(first);
        while let Some(job) = next {
            group.push(job(began.is_ok().then_some(connection)));
            let goes_on = began.is_ok() && !connection.is_autocommit() && group.len() < GROUP_MAX;
            next = if goes_on { queue.try_recv().ok() } else { None };
        }
        // Where SQLite has taken the group back, there is nothing to commit, and this says so.
        let committed = began.and_then(|()| connection.execute_batch("COMMIT"));
        if let Err(error) = &committed {
            tracing::error!(%error, jobs = group.len(), "commit failed");
            roll_back(connection);
        }
        for settle in group.drain(..) {
            settle(committed.is_ok());
        }
    }
}

#[cfg(test)]
impl Sqlite {
    /// As if the disk had room for so many more pages; without a number, for all there may be.
    pub(crate) async fn leave_room(&self, pages: Option<i64>) {
        let limit = move |connection: &Connection| {
            let taken: i64 = connection.query_row("PRAGMA page_count", [], |row| row.get(0))?;
            let limit = pages.map_or(i64::from(u32::MAX - 1), |pages| taken + pages);
            let pragma = format!("PRAGMA max_page_count = {limit}");
            connection.query_row(&pragma, [], |_| Ok(()))
        };
        self.run(limit, |()| ()).await.unwrap();
    }

    /// Holds the thread until the sender is gone: what is asked meanwhile shares one commit with it.
    pub(crate) async fn hold(&self, until: std::sync::mpsc::Receiver<()>) -> Result<(), Error> {
        let wait = move |_: &Connection| {
            let _gone = until.recv();
            Ok(())
        };
        self.run(wait, |()| ()).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, mpsc};

    use parking_lot::Mutex;

    use super::*;

    const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, more BLOB)";

    /// Puts a row, and says that it was kept.
    async fn put(
        sqlite: &Sqlite,
        kept: &Arc<Mutex<Vec<i64>>>,
        (id, bytes): (i64, i64),
    ) -> Result<(), Error> {
        let kept = Arc::clone(kept);
        let insert = move |connection: &Connection| {
            connection
                .execute("INSERT INTO rows VALUES (?1, zeroblob(?2))", (id, bytes))
                .map(drop)
        };
        sqlite.run(insert, move |()| kept.lock().push(id)).await
    }

    async fn rows(sqlite: &Sqlite) -> Vec<i64> {
        let read = |connection: &Connection| {
            connection
                .prepare("SELECT id FROM rows ORDER BY id")?
                .query_map([], |row| row.get(0))?
                .collect()
        };
        sqlite.run(read, |_| ()).await.unwrap()
    }

    #[tokio::test]
    async fn what_sqlite_has_taken_back_has_failed_and_nothing_runs_outside_a_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::open(&dir.path().join("file"), SCHEMA).unwrap();
        let kept = Arc::default();
        put(&sqlite, &kept, (1, 0)).await.unwrap();
        sqlite.leave_room(Some(4)).await;
        let (go, held) = mpsc::channel();
        let (_, small, large, behind, behind_too, ()) = tokio::join!(
            sqlite.hold(held),
            put(&sqlite, &kept, (2, 0)),
            put(&sqlite, &kept, (3, 1 << 20)),
            put(&sqlite, &kept, (4, 0)),
            put(&sqlite, &kept, (5, 1 << 20)),
            async { drop(go) },
        );
        assert!(matches!(small, Err(Error::NotCommitted)), "{small:?}");
        assert!(matches!(large, Err(Error::Sqlite(_))), "{large:?}");
        assert!(behind_too.is_err());
        // What was said of each is what there is.
        let there = if behind.is_ok() { vec![1, 4] } else { vec![1] };
        assert_eq!(rows(&sqlite).await, there);
        assert_eq!(*kept.lock(), there);
        sqlite.leave_room(None).await;
        put(&sqlite, &kept, (6, 1 << 20)).await.unwrap();
        assert_eq!(rows(&sqlite).await, [&there[..], &[6]].concat());
    }

    #[tokio::test]
    async fn a_job_that_ends_the_transaction_of_its_group_fails_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::open(&dir.path().join("file"), SCHEMA).unwrap();
        let kept = Arc::default();
        let (go, held) = mpsc::channel();
        let meddle = |connection: &Connection| connection.execute_batch("ROLLBACK; BEGIN");
        let (_, before, meddled, behind, ()) = tokio::join!(
            sqlite.hold(held),
            put(&sqlite, &kept, (1, 0)),
            sqlite.run(meddle, |()| ()),
            put(&sqlite, &kept, (2, 0)),
            async { drop(go) },
        );
        assert!(matches!(before, Err(Error::NotCommitted)), "{before:?}");
        assert!(meddled.is_err() && behind.is_ok(), "{behind:?}");
        assert_eq!(rows(&sqlite).await, [2]);
        assert_eq!(*kept.lock(), [2]);
    }

    #[tokio::test]
    async fn a_job_that_fails_takes_nothing_back_but_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let sqlite = Sqlite::open(&dir.path().join("file"), SCHEMA).unwrap();
        let kept = Arc::default();
        let (go, held) = mpsc::channel();
        let (_, one, again, two, ()) = tokio::join!(
            sqlite.hold(held),
            put(&sqlite, &kept, (1, 0)),
            put(&sqlite, &kept, (1, 0)),
            put(&sqlite, &kept, (2, 0)),
            async { drop(go) },
        );
        assert!(one.is_ok() && again.is_err() && two.is_ok(), "{again:?}");
        assert_eq!(rows(&sqlite).await, [1, 2]);
        assert_eq!(*kept.lock(), [1, 2]);
    }
}
