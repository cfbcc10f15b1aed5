//! What exchanges consumed, who made which object at which provider, and who has which idempotency key.
//!
//! One file, two threads: one writes in groups, one reads, so that a long look at usage never keeps
//! an egress waiting. A record is answered for once it is on disk; the same record again changes nothing.

use std::path::Path;

use crate::sqlite::{self, Sqlite};

mod record;
pub use record::{UsagePage, UsageQuery};

mod objects;
pub use objects::Located;

mod claims;
pub use claims::{Claim, Claimed};

/// Records or objects that one call may bring.
pub const BATCH_MAX: usize = 2_000;

/// Why the ledger did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something in the records that cannot be so.
    #[error("{0}")]
    Invalid(&'static str),
    /// The database.
    #[error(transparent)]
    Database(#[from] sqlite::Error),
}

/// See the module. Cheap to share.
#[derive(Debug)]
pub struct Ledger {
    writes: Sqlite,
    reads: Sqlite,
    objects_made: tokio::sync::Notify,
}

impl Ledger {
    /// Opens or makes the file.
    ///
    /// # Errors
    /// When it cannot be opened or is something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let schema = format!("{}{}{}", record::SCHEMA, objects::SCHEMA, claims::SCHEMA);
        Ok(Self {
            writes: Sqlite::open(path, &schema)?,
            reads: Sqlite::open(path, "")?,
            objects_made: tokio::sync::Notify::new(),
        })
    }
}

/// SQLite counts in signed numbers; what does not fit is absurd and kept as the largest there is.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Back again; our columns hold no negative numbers.
fn unsigned(number: i64) -> u64 {
    number.try_into().unwrap_or_default()
}
