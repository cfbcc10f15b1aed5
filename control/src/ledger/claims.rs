//! Idempotency keys: which exchange has one, for a day.
//!
//! A key belongs to an account. The first request that brings it gets it, in one durable step; the same request again is
//! told which exchange has it, another one that it conflicts. What was asked is known only by a keyed hash. Rows are
//! bounded per account and in all, and claims clear away what is too old, so nothing needs to sweep.

use super::{Error, Ledger};

/// How long a key stays taken.
pub(super) const CLAIM_MS: u64 = 24 * 3_600 * 1_000;

/// Keys of one account within [`CLAIM_MS`]: more than one a second, all day.
const ACCOUNT_CLAIMS_MAX: u64 = 100_000;

/// Keys of all accounts. 250 bytes with their indexes: 500 MB on disk at the worst.
const CLAIMS_MAX: u64 = 2_000_000;

/// Longest name of an account or an egress.
const TEXT_BYTES_MAX: usize = 512;

/// How many keys there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Of one account.
    pub(super) account: u64,
    /// Of all.
    pub(super) all: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            account: ACCOUNT_CLAIMS_MAX,
            all: CLAIMS_MAX,
        }
    }
}

/// What a claim asks.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Whose key.
    pub account: String,
    /// Hash of the key.
    pub key: [u8; 32],
    /// Keyed hash of the request.
    pub print: [u8; 32],
    /// Who is to have it.
    pub exchange: [u8; 16],
    /// Now.
    pub now_unix_ms: u64,
}

/// Who has a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Claimed {
    /// The exchange that asked, perhaps since it asked before.
    Fresh,
    /// An exchange of the same request.
    Taken {
        /// Which.
        exchange: [u8; 16],
        /// Where it runs or ran; empty while that is not known.
        egress: String,
        /// For how long it has had the key.
        age_ms: u64,
    },
    /// An exchange of another request.
    Conflict,
    /// Nobody: the account, or the network, holds as many keys as it may.
    Full,
}

/// Where a claim's exchange was taken.
#[derive(Clone, Debug)]
pub(super) struct Settlement {
    pub(super) account: String,
    pub(super) key: [u8; 32],
    pub(super) exchange: [u8; 16],
    /// Empty: nowhere, and the key is free.
    pub(super) egress: String,
}

impl Ledger {
    /// Gives a key to an exchange, or says who has it. Returns once it is durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] for absurd claims.
    pub async fn claim(&self, claim: Claim) -> Result<Claimed, Error> {
        if claim.account.is_empty() || claim.account.len() > TEXT_BYTES_MAX {
            return Err(Error::Invalid(
                "a claim without an account, or an absurd one",
            ));
        }
        self.books.claim(claim).await
    }

    /// Says where an exchange was taken; an empty `egress` frees its key. Another exchange's key is not touched.
    ///
    /// # Errors
    /// [`Error::Invalid`] for absurd names.
    pub async fn settle(
        &self,
        account: String,
        key: [u8; 32],
        exchange: [u8; 16],
        egress: String,
    ) -> Result<(), Error> {
        if account.len().max(egress.len()) > TEXT_BYTES_MAX {
            return Err(Error::Invalid("an absurd name"));
        }
        let settlement = Settlement {
            account,
            key,
            exchange,
            egress,
        };
        self.books.settle(settlement).await
    }

    /// Where an account's exchange was taken, if it holds a key; empty while that is not known.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn recall(
        &self,
        account: String,
        exchange: [u8; 16],
    ) -> Result<Option<String>, Error> {
        self.books.recall(account, exchange).await
    }
}

impl Claim {
    /// Who has the key, by the row that is there and not too old.
    pub(super) fn judge(&self, held: Held) -> Claimed {
        if held.print != self.print {
            Claimed::Conflict
        } else if held.exchange == self.exchange {
            Claimed::Fresh
        } else {
            Claimed::Taken {
                exchange: held.exchange,
                egress: held.egress,
                age_ms: self.now_unix_ms.saturating_sub(held.made_unix_ms),
            }
        }
    }
}

/// A row.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) print: [u8; 32],
    pub(super) exchange: [u8; 16],
    pub(super) egress: String,
    pub(super) made_unix_ms: u64,
}
