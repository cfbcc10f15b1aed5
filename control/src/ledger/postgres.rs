//! The books in a PostgreSQL database that every replica of control shares.
//!
//! Nothing is kept in memory between calls, so any replica may serve any call. Every write is one statement, done
//! whole or not at all, and may be done again: an attempt that failed on the way is repeated until the call's time is
//! over. Connections come from a pool; one whose attempt did not end well is thrown away.

use std::{
    future::Future,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use deadpool_postgres::{Object as Pooled, Pool};
use tokio::{sync::Semaphore, time::Instant};

use self::fault::Fault;
use super::{Error, claims::Bounds};
use crate::config;

mod claims;

#[cfg(test)]
pub(super) mod cluster;

mod connect;

mod fault;

mod objects;

mod schema;

mod tls;

mod usage;

/// Connections of one control. PostgreSQL's default is 100 for all.
const CONNECTIONS_MAX: usize = 16;

/// Long looks at usage at one time; the other connections stay free for what nodes wait for.
const LONG_READS_MAX: usize = 4;

/// Time for one call with all its attempts: an egress gives its usage 5 s, an ingress its questions 2 s.
const CALL_TIME_MAX: Duration = Duration::from_secs(4);

/// Time for a look at usage, which may go over many rows.
const READ_TIME_MAX: Duration = Duration::from_secs(30);

/// Time for the first word with the database; after that, control starts without it.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);

/// Pause before an attempt is made again: doubles, with jitter.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(super) struct Postgres {
    pool: Pool,
    schema: String,
    bounds: Bounds,
    long_reads: Semaphore,
    /// The tables are there.
    migrated: AtomicBool,
    /// The last call failed: said once, not at every call.
    away: AtomicBool,
    /// Counts claims between two sweeps.
    claims: AtomicU32,
}

impl Postgres {
    pub(super) async fn open(settings: &config::Postgres, bounds: Bounds) -> Result<Self, Error> {
        let books = Self {
            pool: connect::pool(settings)?,
            schema: settings.schema.clone(),
            bounds,
            long_reads: Semaphore::new(LONG_READS_MAX),
            migrated: AtomicBool::new(false),
            away: AtomicBool::new(false),
            claims: AtomicU32::new(0),
        };
        let greeting = tokio::time::timeout(GREETING_TIME_MAX, async {
            books.connection().await.map(Connection::back)
        });
        match greeting.await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) if fault.is_for_ever() => {
                return Err(Error::Settings(fault.to_string()));
            }
            Ok(Err(fault)) => books.lost(&fault.to_string()),
            Err(_) => books.lost("no answer in time"),
        }
        Ok(books)
    }

    /// A connection to a database whose tables are there.
    async fn connection(&self) -> Result<Connection, Fault> {
        let mut connection = Connection(Some(self.pool.get().await?));
        if !self.migrated.load(Ordering::Acquire) {
            schema::migrate(connection.client()?, &self.schema).await?;
            self.migrated.store(true, Ordering::Release);
        }
        Ok(connection)
    }

    /// What a call may take.
    fn tries(&self, time: Duration) -> Tries<'_> {
        Tries {
            books: self,
            until: Instant::now() + time,
            pause: PAUSE_MIN,
            last: None,
        }
    }

    fn lost(&self, why: &str) {
        if !self.away.swap(true, Ordering::AcqRel) {
            tracing::error!(why, "the ledger's database is away");
        }
    }

    fn found(&self) {
        if self.away.load(Ordering::Acquire) && self.away.swap(false, Ordering::AcqRel) {
            tracing::info!("the ledger's database is back");
        }
    }
}

/// A connection that goes back to the pool only when it is told to: one that is dropped in the middle of something is closed.
struct Connection(Option<Pooled>);

impl Connection {
    fn client(&mut self) -> Result<&mut Pooled, Fault> {
        self.0.as_mut().ok_or(Fault::Gone)
    }

    fn back(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(pooled) = self.0.take() {
            drop(Pooled::take(pooled));
        }
    }
}

/// The attempts of one call.
struct Tries<'a> {
    books: &'a Postgres,
    until: Instant,
    pause: Duration,
    last: Option<String>,
}

impl Tries<'_> {
    /// Makes one attempt. `None`: it failed in a way that passes, and after a pause there is time for another.
    async fn attempt<T>(
        &mut self,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Option<Result<T, Error>> {
        let fault = match tokio::time::timeout_at(self.until, work).await {
            Ok(Ok(value)) => {
                self.books.found();
                return Some(Ok(value));
            }
            Ok(Err(fault)) => fault,
            Err(_) => return Some(Err(self.over())),
        };
        if !fault.passes() {
            tracing::error!(error = %fault, "the ledger's database refuses");
            return Some(Err(Error::Refused(fault.to_string())));
        }
        self.last = Some(fault.to_string());
        let pause = self.pause.mul_f64(0.5 + fastrand::f64());
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        if Instant::now() + pause >= self.until {
            return Some(Err(self.over()));
        }
        tokio::time::sleep(pause).await;
        None
    }

    fn over(&mut self) -> Error {
        let why = self.last.take();
        let why = why.unwrap_or_else(|| "no answer in time".to_owned());
        self.books.lost(&why);
        Error::Unavailable(why)
    }
}

/// PostgreSQL's texts hold no NUL, ours may: a client's name for a model, a provider's for an object.
fn text(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}").into()
    } else {
        text.into()
    }
}
