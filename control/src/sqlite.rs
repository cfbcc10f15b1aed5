//! A SQLite database with a thread of its own, which commits in groups.
//!
//! Jobs wait in a bounded queue. Those that wait together share one transaction and one fsync; each
//! runs in a savepoint, so that one that fails takes nothing back but its own. An answer is given
//! only once it is durable (WAL, `synchronous = FULL`).

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
type Job = Box<dyn FnOnce(&Connection) -> Settle + Send>;

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
            let done = in_savepoint(connection, work);
            Box::new(move |committed| {
                let result = match done {
                    Ok(value) if committed => {
                        kept(&value);
                        Ok(value)
                    }
                    Ok(_) => Err(Error::NotCommitted),
                    Err(error) => Err(error.into()),
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
    match work(connection) {
        Ok(value) => connection.execute_batch("RELEASE job").map(|()| value),
        Err(error) => {
            connection.execute_batch("ROLLBACK TO job; RELEASE job")?;
            Err(error)
        }
    }
}

fn serve(connection: &Connection, mut queue: mpsc::Receiver<Job>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while let Some(first) = queue.blocking_recv() {
        let began = connection.execute_batch("BEGIN");
        group.push(first(connection));
        while group.len() < GROUP_MAX {
            match queue.try_recv() {
                Ok(job) => group.push(job(connection)),
                Err(_) => break,
            }
        }
        let committed = began.and_then(|()| connection.execute_batch("COMMIT"));
        if let Err(error) = &committed {
            tracing::error!(%error, jobs = group.len(), "commit failed");
            // When there is nothing to roll back, that is just as well.
            let _ = connection.execute_batch("ROLLBACK");
        }
        for settle in group.drain(..) {
            settle(committed.is_ok());
        }
    }
}
