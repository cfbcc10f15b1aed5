//! Idempotency keys: which exchange has one, for a day.
//!
//! A key belongs to an account. The first request that brings it gets it, in one durable step; the same request again is
//! told which exchange has it, another one that it conflicts. What was asked is known only by a keyed hash. Rows are
//! bounded per account and in all, and every claim clears away a few that are too old, so nothing needs to sweep.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Error, Ledger, signed, unsigned};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS claims (
    account TEXT NOT NULL, key BLOB NOT NULL, print BLOB NOT NULL, exchange BLOB NOT NULL, egress TEXT NOT NULL,
    made_unix_ms INTEGER NOT NULL, PRIMARY KEY (account, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS claims_by_age ON claims (made_unix_ms);
CREATE INDEX IF NOT EXISTS claims_by_exchange ON claims (exchange);
CREATE TABLE IF NOT EXISTS claim_counts (account TEXT PRIMARY KEY, claims INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS claim_made AFTER INSERT ON claims BEGIN
    INSERT INTO claim_counts VALUES (NEW.account, 1), ('', 1) ON CONFLICT DO UPDATE SET claims = claims + 1;
END;
CREATE TRIGGER IF NOT EXISTS claim_gone AFTER DELETE ON claims BEGIN
    UPDATE claim_counts SET claims = claims - 1 WHERE account IN (OLD.account, '');
    DELETE FROM claim_counts WHERE account = OLD.account AND claims <= 0;
END;
";

/// How long a key stays taken.
const CLAIM_MS: u64 = 24 * 3_600 * 1_000;

/// Keys of one account within [`CLAIM_MS`]: more than one a second, all day.
const ACCOUNT_CLAIMS_MAX: u64 = 100_000;

/// Keys of all accounts. 250 bytes with their indexes: 500 MB on disk at the worst.
const CLAIMS_MAX: u64 = 2_000_000;

/// Old rows that one claim clears away; more than the one it adds, so that old rows vanish.
const SWEPT: i64 = 8;

/// Longest name of an account or an egress.
const TEXT_BYTES_MAX: usize = 512;

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
    /// The exchange that asked.
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
        let write = move |connection: &Connection| decide(connection, &claim);
        Ok(self.writes.run(write, |_| ()).await?)
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
        let write = move |connection: &Connection| {
            let row = params![account, &key[..], &exchange[..], egress];
            let statement = if egress.is_empty() {
                "DELETE FROM claims WHERE account = ?1 AND key = ?2 AND exchange = ?3 AND ?4 = ''"
            } else {
                "UPDATE claims SET egress = ?4 WHERE account = ?1 AND key = ?2 AND exchange = ?3"
            };
            connection.prepare_cached(statement)?.execute(row)?;
            Ok(())
        };
        Ok(self.writes.run(write, |()| ()).await?)
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
        let read = move |connection: &Connection| {
            connection
                .prepare_cached("SELECT egress FROM claims WHERE exchange = ?1 AND account = ?2")?
                .query_row(params![&exchange[..], account], |row| row.get(0))
                .optional()
        };
        Ok(self.reads.run(read, |_| ()).await?)
    }
}

fn decide(connection: &Connection, claim: &Claim) -> rusqlite::Result<Claimed> {
    let oldest = signed(claim.now_unix_ms.saturating_sub(CLAIM_MS));
    let key = &claim.key[..];
    connection
        .prepare_cached(
            "DELETE FROM claims WHERE account = ?1 AND key = ?2 AND made_unix_ms <= ?3",
        )?
        .execute(params![claim.account, key, oldest])?;
    let held = connection
        .prepare_cached(
            "SELECT print, exchange, egress, made_unix_ms FROM claims WHERE account = ?1 AND key = ?2",
        )?
        .query_row(params![claim.account, key], |row| {
            let (print, exchange): ([u8; 32], [u8; 16]) = (row.get(0)?, row.get(1)?);
            let made = unsigned(row.get(3)?);
            Ok(if print == claim.print {
                Claimed::Taken {
                    exchange,
                    egress: row.get(2)?,
                    age_ms: claim.now_unix_ms.saturating_sub(made),
                }
            } else {
                Claimed::Conflict
            })
        })
        .optional()?;
    if let Some(held) = held {
        return Ok(held);
    }
    connection
        .prepare_cached(
            "DELETE FROM claims WHERE (account, key) IN (
                 SELECT account, key FROM claims WHERE made_unix_ms <= ?1 ORDER BY made_unix_ms LIMIT ?2)",
        )?
        .execute(params![oldest, SWEPT])?;
    if count(connection, &claim.account)? >= ACCOUNT_CLAIMS_MAX
        || count(connection, "")? >= CLAIMS_MAX
    {
        return Ok(Claimed::Full);
    }
    connection
        .prepare_cached("INSERT INTO claims VALUES (?1, ?2, ?3, ?4, '', ?5)")?
        .execute(params![
            claim.account,
            key,
            &claim.print[..],
            &claim.exchange[..],
            signed(claim.now_unix_ms)
        ])?;
    Ok(Claimed::Fresh)
}

/// Keys that an account holds, counted by the database itself; of all accounts for an empty name.
fn count(connection: &Connection, account: &str) -> rusqlite::Result<u64> {
    let counted = connection
        .prepare_cached("SELECT claims FROM claim_counts WHERE account = ?1")?
        .query_row([account], |row| row.get(0))
        .optional()?;
    Ok(unsigned(counted.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(account: &str, key: u8, print: u8, exchange: u8, now_unix_ms: u64) -> Claim {
        Claim {
            account: account.into(),
            key: [key; 32],
            print: [print; 32],
            exchange: [exchange; 16],
            now_unix_ms,
        }
    }

    fn ledger() -> (tempfile::TempDir, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        (dir, ledger)
    }

    fn taken(exchange: u8, egress: &str, age_ms: u64) -> Claimed {
        Claimed::Taken {
            exchange: [exchange; 16],
            egress: egress.into(),
            age_ms,
        }
    }

    #[tokio::test]
    async fn one_of_many_gets_a_key_and_the_others_learn_which() {
        let (_dir, ledger) = ledger();
        let claims = (1..=50).map(|exchange| ledger.claim(claim("a", 1, 1, exchange, 1_000)));
        let outcomes: Vec<Claimed> = futures_util::future::join_all(claims)
            .await
            .into_iter()
            .map(Result::unwrap)
            .collect();
        let fresh: Vec<usize> = (0..50)
            .filter(|at| outcomes[*at] == Claimed::Fresh)
            .collect();
        assert_eq!(fresh.len(), 1);
        let winner = u8::try_from(fresh[0] + 1).unwrap();
        assert!(
            outcomes
                .iter()
                .all(|outcome| *outcome == Claimed::Fresh || *outcome == taken(winner, "", 0))
        );
    }

    #[tokio::test]
    async fn a_key_is_its_accounts_and_its_requests_alone_and_lasts_a_day() {
        let (_dir, ledger) = ledger();
        let ask = async |claim| ledger.claim(claim).await.unwrap();
        assert_eq!(ask(claim("a", 1, 1, 1, 1_000)).await, Claimed::Fresh);
        assert_eq!(ask(claim("a", 1, 2, 2, 1_500)).await, Claimed::Conflict);
        assert_eq!(ask(claim("b", 1, 2, 3, 1_500)).await, Claimed::Fresh);
        ledger
            .settle("b".into(), [1; 32], [1; 16], "elsewhere".into())
            .await
            .unwrap();
        ledger
            .settle("a".into(), [1; 32], [1; 16], "egress".into())
            .await
            .unwrap();
        assert_eq!(
            ask(claim("a", 1, 1, 4, 2_000)).await,
            taken(1, "egress", 1_000)
        );
        let recall = async |account: &str, exchange| {
            ledger.recall(account.into(), [exchange; 16]).await.unwrap()
        };
        assert_eq!(recall("a", 1).await, Some("egress".into()));
        assert_eq!(recall("b", 1).await, None);
        assert_eq!(recall("b", 3).await, Some(String::new()));
        let next_day = 1_000 + CLAIM_MS;
        assert_eq!(ask(claim("a", 1, 2, 5, next_day)).await, Claimed::Fresh);
    }

    #[tokio::test]
    async fn a_freed_key_is_free_and_nobody_frees_anothers() {
        let (_dir, ledger) = ledger();
        let ask = async |claim| ledger.claim(claim).await.unwrap();
        let free = async |exchange| {
            ledger
                .settle("a".into(), [1; 32], [exchange; 16], String::new())
                .await
                .unwrap();
        };
        assert_eq!(ask(claim("a", 1, 1, 1, 1_000)).await, Claimed::Fresh);
        free(2).await;
        assert_eq!(ask(claim("a", 1, 1, 2, 1_000)).await, taken(1, "", 0));
        free(1).await;
        assert_eq!(ask(claim("a", 1, 9, 3, 1_000)).await, Claimed::Fresh);
    }

    #[tokio::test]
    async fn rows_are_counted_bounded_and_cleared_away() {
        let (_dir, ledger) = ledger();
        let ask = async |claim| ledger.claim(claim).await.unwrap();
        for key in 0..20 {
            assert_eq!(ask(claim("a", key, 1, key, 5)).await, Claimed::Fresh);
        }
        let full = |connection: &Connection| {
            connection.execute(
                "UPDATE claim_counts SET claims = claims + ?1 WHERE account = 'a'",
                [signed(ACCOUNT_CLAIMS_MAX - 20)],
            )
        };
        ledger.writes.run(full, |_| ()).await.unwrap();
        assert_eq!(ask(claim("a", 99, 1, 1, 6)).await, Claimed::Full);
        assert_eq!(ask(claim("b", 99, 1, 1, 6)).await, Claimed::Fresh);
        // Two claims a day later clear away more than they add.
        for key in 0..3 {
            assert_eq!(
                ask(claim("c", key, 1, 1, CLAIM_MS + 5)).await,
                Claimed::Fresh
            );
        }
        let left = |connection: &Connection| count(connection, "");
        assert_eq!(ledger.reads.run(left, |_| ()).await.unwrap(), 1 + 3);
    }
}
