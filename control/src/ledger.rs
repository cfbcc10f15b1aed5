//! What exchanges consumed, who made which object at which provider, and who has which idempotency key.
//!
//! Two kinds of books behind one door, held to one contract: a SQLite file of this process alone, or a PostgreSQL
//! database that any number of replicas share. A record is answered for once it is durable; the same record again
//! changes nothing, so that a call whose answer was lost may be made again, also at another replica.

use std::path::Path;

use vector_proto::{control::v1::Object, control::v1::UsageRecord};

use crate::{config, sqlite};

mod record;
pub use record::{UsagePage, UsageQuery};

mod objects;
pub use objects::Located;

mod claims;
pub use claims::{Claim, Claimed};

mod embedded;

mod postgres;

#[cfg(test)]
mod contract;

/// Records or objects that one call may bring.
pub const BATCH_MAX: usize = 2_000;

/// Why the ledger did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something in the records that cannot be so.
    #[error("{0}")]
    Invalid(&'static str),
    /// The SQLite file.
    #[error(transparent)]
    Database(#[from] sqlite::Error),
    /// PostgreSQL cannot be reached or did not answer in time. What was asked may be done or not: ask again.
    #[error("the ledger's database is away: {0}")]
    Unavailable(String),
    /// PostgreSQL says no, and will say it again.
    #[error("the ledger's database refuses: {0}")]
    Refused(String),
    /// The settings do not lead to a database that can be used.
    #[error("[ledger] {0}")]
    Settings(String),
}

/// One item of a batch that the ledger will never take; the others are kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// Where it stands in the batch.
    pub at: usize,
    /// What cannot be so.
    pub why: &'static str,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    books: Books,
    objects_made: tokio::sync::Notify,
}

/// Where the rows are.
#[derive(Debug)]
enum Books {
    Embedded(embedded::Embedded),
    Postgres(Box<postgres::Postgres>),
}

impl Ledger {
    /// Opens or makes a file of this process alone.
    ///
    /// # Errors
    /// When it cannot be opened or is something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let books = embedded::Embedded::open(path, claims::Bounds::default())?;
        Ok(Self::with(Books::Embedded(books)))
    }

    /// Uses a PostgreSQL database, which need not be up: calls fail until it is.
    ///
    /// # Errors
    /// [`Error::Settings`] when it answers that it will never do, or a file of the settings cannot be used.
    pub async fn connect(settings: &config::Postgres) -> Result<Self, Error> {
        let books = postgres::Postgres::open(settings, claims::Bounds::default()).await?;
        Ok(Self::with(Books::Postgres(Box::new(books))))
    }

    fn with(books: Books) -> Self {
        Self {
            books,
            objects_made: tokio::sync::Notify::new(),
        }
    }
}

impl Books {
    async fn record(&self, records: Vec<UsageRecord>) -> Result<(), Error> {
        match self {
            Self::Embedded(books) => books.record(records).await,
            Self::Postgres(books) => books.record(&records).await,
        }
    }

    async fn usage(&self, query: UsageQuery) -> Result<UsagePage, Error> {
        match self {
            Self::Embedded(books) => books.usage(query).await,
            Self::Postgres(books) => books.usage(&query).await,
        }
    }

    async fn keep_objects(&self, objects: Vec<Object>) -> Result<(), Error> {
        match self {
            Self::Embedded(books) => books.keep_objects(objects).await,
            Self::Postgres(books) => books.keep_objects(&objects).await,
        }
    }

    async fn find(&self, account: &str, id: &str) -> Result<Option<Object>, Error> {
        match self {
            Self::Embedded(books) => books.find(account, id).await,
            Self::Postgres(books) => books.find(account, id).await,
        }
    }

    async fn made_by_anyone(&self, id: &str) -> Result<bool, Error> {
        match self {
            Self::Embedded(books) => books.made_by_anyone(id).await,
            Self::Postgres(books) => books.made_by_anyone(id).await,
        }
    }

    async fn claim(&self, claim: Claim) -> Result<Claimed, Error> {
        match self {
            Self::Embedded(books) => books.claim(claim).await,
            Self::Postgres(books) => books.claim(&claim).await,
        }
    }

    async fn settle(&self, settlement: claims::Settlement) -> Result<(), Error> {
        match self {
            Self::Embedded(books) => books.settle(settlement).await,
            Self::Postgres(books) => books.settle(&settlement).await,
        }
    }

    async fn recall(&self, account: String, exchange: [u8; 16]) -> Result<Option<String>, Error> {
        match self {
            Self::Embedded(books) => books.recall(account, exchange).await,
            Self::Postgres(books) => books.recall(&account, exchange).await,
        }
    }
}

/// Parts what is absurd from a batch.
fn sift<T>(items: Vec<T>, absurd: impl Fn(&T) -> Option<&'static str>) -> (Vec<T>, Vec<Refused>) {
    let mut refused = Vec::new();
    let good = items.into_iter().enumerate().filter_map(|(at, item)| {
        let why = absurd(&item);
        refused.extend(why.map(|why| Refused { at, why }));
        why.is_none().then_some(item)
    });
    (good.collect(), refused)
}

/// Databases count in signed numbers; what does not fit is absurd and kept as the largest there is.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Back again; our columns hold no negative numbers.
fn unsigned(number: i64) -> u64 {
    number.try_into().unwrap_or_default()
}
