//! Usage: one row per exchange, for ever, whoever says it how often.

use prost::Message as _;
use rusqlite::{Connection, params};
use vector_proto::{control::v1::UsageRecord, tunnel::v1::Usage};

use super::{BATCH_MAX, Error, Ledger, signed, unsigned};

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

/// Largest record kept.
const RECORD_BYTES_MAX: usize = 8 << 10;

/// Which usage is wanted. Empty texts and zeros: whichever.
#[derive(Clone, Debug, Default)]
pub struct UsageQuery {
    /// Whose.
    pub account: String,
    /// By which key.
    pub key: String,
    /// Ended at or after.
    pub from_unix_ms: u64,
    /// Ended before.
    pub until_unix_ms: u64,
    /// Rows wanted.
    pub rows: usize,
    /// Continue behind this row: its time and exchange.
    pub behind: Option<(u64, Vec<u8>)>,
}

/// Usage, newest first, and the sum of all that is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsagePage {
    /// One page of it.
    pub records: Vec<UsageRecord>,
    /// There are more.
    pub more: bool,
    /// Sum over all pages.
    pub total: Usage,
    /// Rows over all pages.
    pub exchanges: u64,
}

impl Ledger {
    /// Keeps records; one that is there already changes nothing. Returns once they are durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] for absurd records, and then none is kept.
    pub async fn record(&self, records: Vec<UsageRecord>) -> Result<(), Error> {
        if records.len() > BATCH_MAX {
            return Err(Error::Invalid("too many records at once"));
        }
        if records.iter().any(|record| record.exchange.len() != 16) {
            return Err(Error::Invalid("an exchange id is 16 bytes"));
        }
        if records
            .iter()
            .any(|record| record.encoded_len() > RECORD_BYTES_MAX)
        {
            return Err(Error::Invalid("a record is too large"));
        }
        let write = move |connection: &Connection| {
            records
                .iter()
                .try_for_each(|record| insert(connection, record))
        };
        Ok(self.writes.run(write, |()| ()).await?)
    }

    /// Looks usage up.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage(&self, query: UsageQuery) -> Result<UsagePage, Error> {
        Ok(self
            .reads
            .run(move |connection| page(connection, &query), |_| ())
            .await?)
    }
}

fn insert(connection: &Connection, record: &UsageRecord) -> rusqlite::Result<()> {
    let usage = record.usage.unwrap_or_default();
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .execute(params![
            &record.exchange[..],
            signed(record.ended_unix_ms),
            record.account,
            record.key,
            signed(usage.input_tokens),
            signed(usage.cached_input_tokens),
            signed(usage.cache_write_tokens),
            signed(usage.output_tokens),
            signed(usage.reasoning_tokens),
            signed(usage.input_audio_tokens),
            signed(usage.output_audio_tokens),
            signed(usage.input_image_tokens),
            signed(usage.output_image_tokens),
            signed(usage.seconds_milli),
            record.encode_to_vec(),
        ])?;
    Ok(())
}

const WANTED: &str = "(?1 = '' OR account = ?1) AND (?2 = '' OR key = ?2) AND ended_unix_ms >= ?3 AND ended_unix_ms < ?4";

fn page(connection: &Connection, query: &UsageQuery) -> rusqlite::Result<UsagePage> {
    let until = if query.until_unix_ms == 0 {
        i64::MAX
    } else {
        signed(query.until_unix_ms)
    };
    let (from, rows) = (signed(query.from_unix_ms), query.rows);
    let (behind_ms, behind) = match &query.behind {
        Some((ended, exchange)) => (signed(*ended), exchange.clone()),
        None => (i64::MAX, vec![u8::MAX; 17]),
    };
    let mut page = totals(connection, query, from, until)?;
    let mut statement = connection.prepare_cached(&format!(
        "SELECT record FROM usage WHERE {WANTED} AND (ended_unix_ms, exchange) < (?5, ?6)
         ORDER BY ended_unix_ms DESC, exchange DESC LIMIT ?7"
    ))?;
    let limit = i64::try_from(rows).unwrap_or(i64::MAX).saturating_add(1);
    let mut found = statement.query(params![
        query.account,
        query.key,
        from,
        until,
        behind_ms,
        behind,
        limit
    ])?;
    while let Some(row) = found.next()? {
        if page.records.len() == rows {
            page.more = true;
            break;
        }
        let bytes: Vec<u8> = row.get(0)?;
        // Written by ourselves; one that cannot be read is counted in the totals all the same.
        page.records.extend(UsageRecord::decode(&bytes[..]).ok());
    }
    Ok(page)
}

fn totals(
    connection: &Connection,
    query: &UsageQuery,
    from: i64,
    until: i64,
) -> rusqlite::Result<UsagePage> {
    connection
        .prepare_cached(&format!(
            "SELECT COUNT(*), TOTAL(input_tokens), TOTAL(cached_input_tokens), TOTAL(cache_write_tokens),
                    TOTAL(output_tokens), TOTAL(reasoning_tokens), TOTAL(input_audio_tokens), TOTAL(output_audio_tokens),
                    TOTAL(input_image_tokens), TOTAL(output_image_tokens), TOTAL(seconds_milli)
             FROM usage WHERE {WANTED}"
        ))?
        .query_row(params![query.account, query.key, from, until], |row| {
            let exchanges = unsigned(row.get(0)?);
            let sum = |place: usize| -> rusqlite::Result<u64> {
                let sum: f64 = row.get(place)?;
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sums are whole, not negative, and for people")]
                Ok(sum as u64)
            };
            Ok(UsagePage {
                exchanges,
                total: Usage {
                    input_tokens: sum(1)?,
                    cached_input_tokens: sum(2)?,
                    cache_write_tokens: sum(3)?,
                    output_tokens: sum(4)?,
                    reasoning_tokens: sum(5)?,
                    input_audio_tokens: sum(6)?,
                    output_audio_tokens: sum(7)?,
                    input_image_tokens: sum(8)?,
                    output_image_tokens: sum(9)?,
                    seconds_milli: sum(10)?,
                    reported: exchanges > 0,
                },
                ..UsagePage::default()
            })
        })
}
