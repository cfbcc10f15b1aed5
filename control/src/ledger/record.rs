//! Usage: one row per exchange, for ever, whoever says it how often.

use prost::Message as _;
use vector_proto::{control::v1::UsageRecord, tunnel::v1::Usage};

use super::{BATCH_MAX, Error, Ledger, Refused, sift, signed};

/// Largest record kept.
const RECORD_BYTES_MAX: usize = 8 << 10;

/// Numbers of a row, beside its time: those of [`tokens`].
pub(super) const TOKENS: usize = 10;

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
    /// Keeps records; one that is there already changes nothing. Returns once they are durable, with those that are absurd
    /// and not kept.
    ///
    /// # Errors
    /// [`Error::Invalid`] for too many at once; otherwise when the database fails, and then none is known to be kept.
    pub async fn record(&self, records: Vec<UsageRecord>) -> Result<Vec<Refused>, Error> {
        if records.len() > BATCH_MAX {
            return Err(Error::Invalid("too many records at once"));
        }
        let (good, refused) = sift(records, absurd);
        if !good.is_empty() {
            self.books.record(good).await?;
        }
        Ok(refused)
    }

    /// Looks usage up.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage(&self, query: UsageQuery) -> Result<UsagePage, Error> {
        self.books.usage(query).await
    }
}

impl UsageQuery {
    /// From, until (exclusive), and the row that the page begins behind, as databases compare them.
    pub(super) fn bounds(&self) -> (i64, i64, (i64, Vec<u8>)) {
        let until = match self.until_unix_ms {
            0 => i64::MAX,
            until => signed(until),
        };
        let behind = match &self.behind {
            Some((ended, exchange)) => (signed(*ended), exchange.clone()),
            None => (i64::MAX, vec![u8::MAX; 17]),
        };
        (signed(self.from_unix_ms), until, behind)
    }

    /// Rows to read: one more than wanted tells whether there are more.
    pub(super) fn limit(&self) -> i64 {
        i64::try_from(self.rows)
            .unwrap_or(i64::MAX)
            .saturating_add(1)
    }
}

impl UsagePage {
    /// A page of rows as they were read, up to [`UsageQuery::limit`] of them.
    pub(super) fn of(
        query: &UsageQuery,
        rows: &[Vec<u8>],
        (exchanges, total): (u64, Usage),
    ) -> Self {
        let wanted = &rows[..rows.len().min(query.rows)];
        // Written by ourselves; one that cannot be read is counted in the totals all the same.
        let records = wanted
            .iter()
            .filter_map(|bytes| UsageRecord::decode(&bytes[..]).ok());
        Self {
            records: records.collect(),
            more: rows.len() > query.rows,
            total,
            exchanges,
        }
    }
}

fn absurd(record: &UsageRecord) -> Option<&'static str> {
    if record.exchange.len() != 16 {
        Some("an exchange id is 16 bytes")
    } else if record.encoded_len() > RECORD_BYTES_MAX {
        Some("the record is too large")
    } else {
        None
    }
}

/// What a row counts, in the order of its columns.
pub(super) fn tokens(record: &UsageRecord) -> [i64; TOKENS] {
    let usage = record.usage.unwrap_or_default();
    [
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.cache_write_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.input_audio_tokens,
        usage.output_audio_tokens,
        usage.input_image_tokens,
        usage.output_image_tokens,
        usage.seconds_milli,
    ]
    .map(signed)
}

/// Sums of those columns as one usage.
pub(super) fn total(exchanges: u64, sums: [u64; TOKENS]) -> (u64, Usage) {
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
    ] = sums;
    let total = Usage {
        input_tokens: input,
        cached_input_tokens: cached,
        cache_write_tokens: written,
        output_tokens: output,
        reasoning_tokens: reasoning,
        input_audio_tokens: audio_in,
        output_audio_tokens: audio_out,
        input_image_tokens: image_in,
        output_image_tokens: image_out,
        seconds_milli: seconds,
        reported: exchanges > 0,
    };
    (exchanges, total)
}
