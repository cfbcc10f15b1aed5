//! Idempotency keys in PostgreSQL: whoever inserts the row has the key, at whichever replica.
//!
//! A claim is one statement when the key is free, two when it is held. Counts are kept in parts, so the bounds are
//! exact only as far as keys, which are hashes, spread evenly.

use std::sync::atomic::Ordering;

use deadpool_postgres::Object as Pooled;
use tokio_postgres::Row;

use super::{CALL_TIME_MAX, Fault, Postgres, text};
use crate::ledger::{
    Error,
    claims::{CLAIM_MS, Claim, Claimed, Held, Settlement},
    signed, unsigned,
};

/// Rows that count the keys of one account, and of all.
const PARTS: u8 = 16;

/// Times that a claim looks again at a row that changed while it looked.
const LOOKS_MAX: usize = 8;

/// One claim in so many sweeps, and takes more away than were added since.
const SWEEP_EVERY: u32 = 32;
const SWEPT: i64 = 256;

/// Inserts and counts; no row comes back when the key is held.
const INSERT: &str = "
WITH fresh AS (
    INSERT INTO claims VALUES ($1, $2, $3, $4, '', $5, $6) ON CONFLICT (account, key) DO NOTHING RETURNING part
), counted AS (
    INSERT INTO claim_counts AS c
    SELECT counting.account, fresh.part, 1 FROM (VALUES (1, $1::text), (2, '')) AS counting (turn, account), fresh
    ORDER BY counting.turn
    ON CONFLICT (account, part) DO UPDATE SET claims = c.claims + 1
    RETURNING c.account, c.claims
)
SELECT account, claims FROM counted";

const HELD: &str =
    "SELECT print, exchange, egress, made_unix_ms FROM claims WHERE account = $1 AND key = $2";

/// Takes over a row that is too old; the count stays.
const REPLACE: &str = "
UPDATE claims SET print = $3, exchange = $4, egress = '', made_unix_ms = $5
WHERE account = $1 AND key = $2 AND made_unix_ms <= $6";

const FREE: &str = "
WITH gone AS (DELETE FROM claims WHERE account = $1 AND key = $2 AND exchange = $3 RETURNING part)
UPDATE claim_counts c SET claims = c.claims - 1 FROM gone WHERE c.account IN ($1, '') AND c.part = gone.part";

const SETTLE: &str =
    "UPDATE claims SET egress = $4 WHERE account = $1 AND key = $2 AND exchange = $3";

/// Rows that another replica sweeps at the moment are left to it.
const SWEEP: &str = "
WITH old AS (
    SELECT account, key FROM claims WHERE made_unix_ms <= $1 ORDER BY made_unix_ms LIMIT $2 FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM claims USING old WHERE claims.account = old.account AND claims.key = old.key
    RETURNING claims.account, claims.part
), sums AS (
    SELECT account, part, count(*) AS rows FROM gone GROUP BY account, part
    UNION ALL SELECT '', part, count(*) FROM gone GROUP BY part
)
UPDATE claim_counts c SET claims = c.claims - sums.rows FROM sums WHERE c.account = sums.account AND c.part = sums.part";

impl Postgres {
    pub(in crate::ledger) async fn claim(&self, claim: &Claim) -> Result<Claimed, Error> {
        let mut tries = self.tries(CALL_TIME_MAX);
        loop {
            let work = async {
                let mut connection = self.connection().await?;
                let claimed = self.decide(connection.client()?, claim).await?;
                connection.back();
                Ok(claimed)
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }

    pub(in crate::ledger) async fn settle(&self, settlement: &Settlement) -> Result<(), Error> {
        let account = text(&settlement.account);
        let egress = text(&settlement.egress);
        let (key, exchange) = (&settlement.key[..], &settlement.exchange[..]);
        let mut tries = self.tries(CALL_TIME_MAX);
        loop {
            let work = async {
                let mut connection = self.connection().await?;
                let client = connection.client()?;
                if settlement.egress.is_empty() {
                    free(client, &account, key, exchange).await?;
                } else {
                    let statement = client.prepare_cached(SETTLE).await?;
                    client
                        .execute(&statement, &[&account, &key, &exchange, &egress])
                        .await?;
                }
                connection.back();
                Ok(())
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }

    pub(in crate::ledger) async fn recall(
        &self,
        account: &str,
        exchange: [u8; 16],
    ) -> Result<Option<String>, Error> {
        let (account, exchange) = (text(account), &exchange[..]);
        let mut tries = self.tries(CALL_TIME_MAX);
        loop {
            let work = async {
                let mut connection = self.connection().await?;
                let client = connection.client()?;
                let statement = client
                    .prepare_cached(
                        "SELECT egress FROM claims WHERE exchange = $1 AND account = $2 LIMIT 1",
                    )
                    .await?;
                let row = client.query_opt(&statement, &[&exchange, &account]).await?;
                connection.back();
                Ok(row.map(|row| row.try_get(0)).transpose()?)
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }

    async fn decide(&self, client: &Pooled, claim: &Claim) -> Result<Claimed, Fault> {
        let account = text(&claim.account);
        let oldest = signed(claim.now_unix_ms.saturating_sub(CLAIM_MS));
        let mut swept = false;
        for _ in 0..LOOKS_MAX {
            match self.insert(client, &account, claim).await? {
                Inserted::Fresh => {
                    if self.claims.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1
                    {
                        sweep(client, oldest).await;
                    }
                    return Ok(Claimed::Fresh);
                }
                Inserted::Beyond => {
                    free(client, &account, &claim.key, &claim.exchange).await?;
                    if swept || sweep(client, oldest).await == 0 {
                        return Ok(Claimed::Full);
                    }
                    swept = true;
                    continue;
                }
                Inserted::Held => {}
            }
            let (key, print, exchange) = (&claim.key[..], &claim.print[..], &claim.exchange[..]);
            let statement = client.prepare_cached(HELD).await?;
            let held = client.query_opt(&statement, &[&account, &key]).await?;
            let Some(held) = held.as_ref().map(row).transpose()? else {
                continue;
            };
            if signed(held.made_unix_ms) > oldest {
                return Ok(claim.judge(held));
            }
            let statement = client.prepare_cached(REPLACE).await?;
            let now = signed(claim.now_unix_ms);
            let replaced = client
                .execute(
                    &statement,
                    &[&account, &key, &print, &exchange, &now, &oldest],
                )
                .await?;
            if replaced == 1 {
                return Ok(Claimed::Fresh);
            }
        }
        Err(Fault::Contended)
    }

    async fn insert(
        &self,
        client: &Pooled,
        account: &str,
        claim: &Claim,
    ) -> Result<Inserted, Fault> {
        let (key, print, exchange) = (&claim.key[..], &claim.print[..], &claim.exchange[..]);
        let now = signed(claim.now_unix_ms);
        let part = i16::from(claim.key[0] % PARTS);
        let statement = client.prepare_cached(INSERT).await?;
        let counts = client
            .query(
                &statement,
                &[&account, &key, &print, &exchange, &now, &part],
            )
            .await?;
        if counts.is_empty() {
            return Ok(Inserted::Held);
        }
        for count in counts {
            let (of, claims): (&str, i64) = (count.try_get(0)?, count.try_get(1)?);
            let bound = if of.is_empty() {
                self.bounds.all
            } else {
                self.bounds.account
            };
            if unsigned(claims) > bound.div_ceil(u64::from(PARTS)) {
                return Ok(Inserted::Beyond);
            }
        }
        Ok(Inserted::Fresh)
    }
}

/// What became of a row.
enum Inserted {
    Fresh,
    /// It is there, and one too many.
    Beyond,
    /// Another is there.
    Held,
}

async fn free(client: &Pooled, account: &str, key: &[u8], exchange: &[u8]) -> Result<(), Fault> {
    let statement = client.prepare_cached(FREE).await?;
    client
        .execute(&statement, &[&account, &key, &exchange])
        .await?;
    Ok(())
}

/// Clears old rows away; says how many counts that changed. What goes wrong is left to the next sweep.
async fn sweep(client: &Pooled, oldest: i64) -> u64 {
    let swept = async {
        let statement = client.prepare_cached(SWEEP).await?;
        client.execute(&statement, &[&oldest, &SWEPT]).await
    };
    swept.await.unwrap_or_else(|error| {
        tracing::debug!(%error, "old claims were not swept");
        0
    })
}

fn row(row: &Row) -> Result<Held, Fault> {
    let sized = |bytes: &[u8], what| <[u8; 32]>::try_from(bytes).map_err(|_| Fault::Damaged(what));
    let exchange: &[u8] = row.try_get(1)?;
    Ok(Held {
        print: sized(row.try_get(0)?, "claims.print")?,
        exchange: exchange
            .try_into()
            .map_err(|_| Fault::Damaged("claims.exchange"))?,
        egress: row.try_get(2)?,
        made_unix_ms: unsigned(row.try_get(3)?),
    })
}
