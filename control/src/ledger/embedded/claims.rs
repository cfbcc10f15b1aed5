//! Idempotency keys in SQLite: one writer, so a claim reads and writes without a race.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::Embedded;
use crate::ledger::{
    Error,
    claims::{Bounds, CLAIM_MS, Claim, Claimed, Held, Settlement},
    signed, unsigned,
};

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

/// Old rows that one claim clears away; more than the one it adds, so that old rows vanish.
const SWEPT: i64 = 8;

impl Embedded {
    pub(in crate::ledger) async fn claim(&self, claim: Claim) -> Result<Claimed, Error> {
        let bounds = self.bounds;
        let write = move |connection: &Connection| decide(connection, &claim, bounds);
        Ok(self.writes.run(write, |_| ()).await?)
    }

    pub(in crate::ledger) async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        let write = move |connection: &Connection| {
            let Settlement {
                account,
                key,
                exchange,
                egress,
            } = &settlement;
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

    pub(in crate::ledger) async fn recall(
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

fn decide(connection: &Connection, claim: &Claim, bounds: Bounds) -> rusqlite::Result<Claimed> {
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
            Ok(Held {
                print: row.get(0)?,
                exchange: row.get(1)?,
                egress: row.get(2)?,
                made_unix_ms: unsigned(row.get(3)?),
            })
        })
        .optional()?;
    if let Some(held) = held {
        return Ok(claim.judge(held));
    }
    connection
        .prepare_cached(
            "DELETE FROM claims WHERE (account, key) IN (
                 SELECT account, key FROM claims WHERE made_unix_ms <= ?1 ORDER BY made_unix_ms LIMIT ?2)",
        )?
        .execute(params![oldest, SWEPT])?;
    if count(connection, &claim.account)? >= bounds.account || count(connection, "")? >= bounds.all
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
