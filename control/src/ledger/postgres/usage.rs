//! Usage in PostgreSQL: a batch is one statement, whatever its size.

use deadpool_postgres::Object as Pooled;
use prost::Message as _;
use tokio_postgres::IsolationLevel;
use vector_proto::{control::v1::UsageRecord, tunnel::v1::Usage};

use super::{CALL_TIME_MAX, Fault, Postgres, READ_TIME_MAX, text};
use crate::ledger::{
    Error, UsagePage, UsageQuery,
    record::{self, TOKENS},
    signed, unsigned,
};

/// Columns as arrays: one prepared statement for batches of any size.
const INSERT: &str = "
INSERT INTO usage
SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
    $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bytea[])
ON CONFLICT (exchange) DO NOTHING";

/// Sums are numerics, which have no bound; ours end at 2⁶³.
const TOTALS: &str = "
SELECT count(*),
    least(coalesce(sum(input_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(cached_input_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(cache_write_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(output_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(reasoning_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(input_audio_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(output_audio_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(input_image_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(output_image_tokens), 0), 9223372036854775807)::bigint,
    least(coalesce(sum(seconds_milli), 0), 9223372036854775807)::bigint
FROM usage
WHERE ($1::text = '' OR account = $1) AND ($2::text = '' OR key = $2) AND ended_unix_ms >= $3 AND ended_unix_ms < $4";

const PAGE: &str = "
SELECT record FROM usage
WHERE ($1::text = '' OR account = $1) AND ($2::text = '' OR key = $2) AND ended_unix_ms >= $3 AND ended_unix_ms < $4
    AND (ended_unix_ms, exchange) < ($5, $6)
ORDER BY ended_unix_ms DESC, exchange DESC LIMIT $7";

impl Postgres {
    pub(in crate::ledger) async fn record(&self, records: &[UsageRecord]) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        let columns = Columns::of(records);
        let mut tries = self.tries(CALL_TIME_MAX);
        loop {
            let work = async {
                let mut connection = self.connection().await?;
                columns.insert(connection.client()?).await?;
                connection.back();
                Ok(())
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }

    pub(in crate::ledger) async fn usage(&self, query: &UsageQuery) -> Result<UsagePage, Error> {
        let mut tries = self.tries(READ_TIME_MAX);
        loop {
            let work = async {
                let _permit = self.long_reads.acquire().await.map_err(|_| Fault::Gone)?;
                let mut connection = self.connection().await?;
                let page = page(connection.client()?, query).await?;
                connection.back();
                Ok(page)
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }
}

/// A batch, turned on its side.
struct Columns<'a> {
    exchange: Vec<&'a [u8]>,
    ended: Vec<i64>,
    account: Vec<std::borrow::Cow<'a, str>>,
    key: Vec<std::borrow::Cow<'a, str>>,
    tokens: [Vec<i64>; TOKENS],
    record: Vec<Vec<u8>>,
}

impl<'a> Columns<'a> {
    fn of(records: &'a [UsageRecord]) -> Self {
        // In one order everywhere: two batches with the same rows wait for each other, and never both ways.
        let mut records: Vec<&UsageRecord> = records.iter().collect();
        records.sort_unstable_by(|a, b| a.exchange.cmp(&b.exchange));
        let mut tokens: [Vec<i64>; TOKENS] = Default::default();
        for record in &records {
            for (column, number) in tokens.iter_mut().zip(record::tokens(record)) {
                column.push(number);
            }
        }
        Self {
            exchange: records.iter().map(|record| &record.exchange[..]).collect(),
            ended: records
                .iter()
                .map(|record| signed(record.ended_unix_ms))
                .collect(),
            account: records.iter().map(|record| text(&record.account)).collect(),
            key: records.iter().map(|record| text(&record.key)).collect(),
            tokens,
            record: records
                .iter()
                .map(|record| record.encode_to_vec())
                .collect(),
        }
    }

    async fn insert(&self, client: &Pooled) -> Result<(), Fault> {
        let statement = client.prepare_cached(INSERT).await?;
        let [t0, t1, t2, t3, t4, t5, t6, t7, t8, t9] = &self.tokens;
        let (ended, record) = (&self.ended, &self.record);
        client
            .execute(
                &statement,
                &[
                    &self.exchange,
                    ended,
                    &self.account,
                    &self.key,
                    t0,
                    t1,
                    t2,
                    t3,
                    t4,
                    t5,
                    t6,
                    t7,
                    t8,
                    t9,
                    record,
                ],
            )
            .await?;
        Ok(())
    }
}

/// Totals and rows of one moment.
async fn page(client: &mut Pooled, query: &UsageQuery) -> Result<UsagePage, Fault> {
    let (from, until, (behind_ms, behind)) = query.bounds();
    let (account, key) = (text(&query.account), text(&query.key));
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    // Which index serves depends on what is asked, so that one plan for all would be a bad one.
    transaction
        .batch_execute(&format!(
            "SET LOCAL statement_timeout = {}; SET LOCAL plan_cache_mode = force_custom_plan",
            READ_TIME_MAX.as_millis()
        ))
        .await?;
    let statement = transaction.prepare_cached(TOTALS).await?;
    let row = transaction
        .query_one(&statement, &[&account, &key, &from, &until])
        .await?;
    let totals = totals(&row)?;
    let statement = transaction.prepare_cached(PAGE).await?;
    let limit = query.limit();
    let rows = transaction
        .query(
            &statement,
            &[&account, &key, &from, &until, &behind_ms, &behind, &limit],
        )
        .await?;
    transaction.commit().await?;
    let rows: Result<Vec<Vec<u8>>, _> = rows.iter().map(|row| row.try_get(0)).collect();
    Ok(UsagePage::of(query, &rows?, totals))
}

fn totals(row: &tokio_postgres::Row) -> Result<(u64, Usage), Fault> {
    let mut sums = [0; TOKENS];
    for (place, sum) in sums.iter_mut().enumerate() {
        *sum = unsigned(row.try_get(place + 1)?);
    }
    Ok(record::total(unsigned(row.try_get(0)?), sums))
}
