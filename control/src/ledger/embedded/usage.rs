//! Usage in SQLite: inserted once, summed by the database.

use prost::Message as _;
use rusqlite::{Connection, params};
use vector_proto::{control::v1::UsageRecord, tunnel::v1::Usage};

use super::Embedded;
use crate::ledger::{
    Error, UsagePage, UsageQuery,
    record::{self, TOKENS},
    signed, unsigned,
};

/// The columns are what is asked by; `record` is the whole.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS usage (
    exchange BLOB PRIMARY KEY, ended_unix_ms INTEGER NOT NULL, account TEXT NOT NULL, key TEXT NOT NULL,
    input_tokens INTEGER NOT NULL, cached_input_tokens INTEGER NOT NULL, cache_write_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, input_audio_tokens INTEGER NOT NULL,
    output_audio_tokens INTEGER NOT NULL, input_image_tokens INTEGER NOT NULL, output_image_tokens INTEGER NOT NULL,
    seconds_milli INTEGER NOT NULL, record BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS usage_by_account ON usage (account, ended_unix_ms);
CREATE INDEX IF NOT EXISTS usage_by_time ON usage (ended_unix_ms);
";

impl Embedded {
    pub(in crate::ledger) async fn record(&self, records: Vec<UsageRecord>) -> Result<(), Error> {
        let write = move |connection: &Connection| {
            records
                .iter()
                .try_for_each(|record| insert(connection, record))
        };
        Ok(self.writes.run(write, |()| ()).await?)
    }

    pub(in crate::ledger) async fn usage(&self, query: UsageQuery) -> Result<UsagePage, Error> {
        Ok(self
            .reads
            .run(move |connection| page(connection, &query), |_| ())
            .await?)
    }
}

fn insert(connection: &Connection, record: &UsageRecord) -> rusqlite::Result<()> {
    let [
        input,
        cached,
        written,
        output,
        reasoning,
        audio_in,
        audio_out,
        image_in,
        image_out,
        seconds,
    ] = record::tokens(record);
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            &record.exchange[..],
            signed(record.ended_unix_ms),
            record.account,
            record.key,
            input,
            cached,
            written,
            output,
            reasoning,
            audio_in,
            audio_out,
            image_in,
            image_out,
            seconds,
            record.encode_to_vec(),
        ])?;
    Ok(())
}

const WANTED: &str = "(?1 = '' OR account = ?1) AND (?2 = '' OR key = ?2) AND ended_unix_ms >= ?3 AND ended_unix_ms < ?4";

fn page(connection: &Connection, query: &UsageQuery) -> rusqlite::Result<UsagePage> {
    let totals = totals(connection, query)?;
    let (from, until, (behind_ms, behind)) = query.bounds();
    let rows: rusqlite::Result<Vec<Vec<u8>>> = connection
        .prepare_cached(&format!(
            "SELECT record FROM usage WHERE {WANTED} AND (ended_unix_ms, exchange) < (?5, ?6)
             ORDER BY ended_unix_ms DESC, exchange DESC LIMIT ?7"
        ))?
        .query_map(
            params![
                query.account,
                query.key,
                from,
                until,
                behind_ms,
                behind,
                query.limit()
            ],
            |row| row.get(0),
        )?
        .collect();
    Ok(UsagePage::of(query, &rows?, totals))
}

fn totals(connection: &Connection, query: &UsageQuery) -> rusqlite::Result<(u64, Usage)> {
    let (from, until, _) = query.bounds();
    connection
        .prepare_cached(&format!(
            "SELECT COUNT(*), TOTAL(input_tokens), TOTAL(cached_input_tokens), TOTAL(cache_write_tokens),
                    TOTAL(output_tokens), TOTAL(reasoning_tokens), TOTAL(input_audio_tokens), TOTAL(output_audio_tokens),
                    TOTAL(input_image_tokens), TOTAL(output_image_tokens), TOTAL(seconds_milli)
             FROM usage WHERE {WANTED}"
        ))?
        .query_row(params![query.account, query.key, from, until], |row| {
            let mut sums = [0; TOKENS];
            for (place, sum) in sums.iter_mut().enumerate() {
                let read: f64 = row.get(place + 1)?;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sums are whole, not negative, and for people")]
                let whole = read as u64;
                *sum = whole;
            }
            Ok(record::total(unsigned(row.get(0)?), sums))
        })
}
