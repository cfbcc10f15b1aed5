//! The tables, and how they came to be: numbered steps, each done once by whichever replica comes first.
//!
//! A control that finds a number it does not know refuses: a newer one has changed what it could not understand.

use std::time::{SystemTime, UNIX_EPOCH};

use deadpool_postgres::Object as Pooled;

use super::fault::Fault;

/// Held while tables are made: 8 letters of ours as a number.
const LOCK: i64 = i64::from_be_bytes(*b"vecledgr");

/// Which step has been done.
const VERSIONS: &str =
    "CREATE TABLE schema_version (version integer PRIMARY KEY, applied_unix_ms bigint NOT NULL)";

/// Never changed once released; what is new comes behind.
///
/// `claim_counts` has several rows for each account and for all (account ''), by the first byte of the key: claims of
/// one account, each a durable commit, would otherwise wait for each other.
const STEPS: &[&str] = &["
CREATE TABLE usage (
    exchange bytea PRIMARY KEY, ended_unix_ms bigint NOT NULL, account text NOT NULL, key text NOT NULL,
    input_tokens bigint NOT NULL, cached_input_tokens bigint NOT NULL, cache_write_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL, reasoning_tokens bigint NOT NULL, input_audio_tokens bigint NOT NULL,
    output_audio_tokens bigint NOT NULL, input_image_tokens bigint NOT NULL, output_image_tokens bigint NOT NULL,
    seconds_milli bigint NOT NULL, record bytea NOT NULL
);
CREATE INDEX usage_by_account ON usage (account, ended_unix_ms);
CREATE INDEX usage_by_time ON usage (ended_unix_ms, exchange);
CREATE TABLE objects (
    account text NOT NULL, id text NOT NULL, provider text NOT NULL, credential text NOT NULL,
    operation text NOT NULL, model text NOT NULL, made_unix_ms bigint NOT NULL, PRIMARY KEY (account, id)
);
CREATE INDEX objects_by_id ON objects (id);
CREATE TABLE claims (
    account text NOT NULL, key bytea NOT NULL, print bytea NOT NULL, exchange bytea NOT NULL, egress text NOT NULL,
    made_unix_ms bigint NOT NULL, part smallint NOT NULL, PRIMARY KEY (account, key)
);
CREATE INDEX claims_by_age ON claims (made_unix_ms);
CREATE INDEX claims_by_exchange ON claims (exchange);
CREATE TABLE claim_counts (
    account text NOT NULL, part smallint NOT NULL, claims bigint NOT NULL, PRIMARY KEY (account, part)
);
"];

/// Brings the schema to the newest version.
pub(super) async fn migrate(client: &mut Pooled, schema: &str) -> Result<(), Fault> {
    let transaction = client.transaction().await?;
    transaction
        .execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK])
        .await?;
    let table = format!("{schema}.schema_version");
    let there: bool = transaction
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&table])
        .await?
        .try_get(0)?;
    let mut version = 0;
    if there {
        let row = transaction
            .query_one("SELECT coalesce(max(version), 0) FROM schema_version", &[])
            .await?;
        version = row.try_get(0)?;
    } else {
        // The name was checked with the settings: letters, digits and `_`. It may have been made for us.
        let made: bool = transaction
            .query_one("SELECT to_regnamespace($1) IS NOT NULL", &[&schema])
            .await?
            .try_get(0)?;
        if !made {
            transaction
                .batch_execute(&format!("CREATE SCHEMA {schema}"))
                .await?;
        }
        transaction.batch_execute(VERSIONS).await?;
    }
    let known = i32::try_from(STEPS.len()).unwrap_or(i32::MAX);
    if version > known {
        return Err(Fault::Newer {
            found: version,
            known,
        });
    }
    for (at, step) in (1..).zip(STEPS) {
        if at <= version {
            continue;
        }
        transaction.batch_execute(step).await?;
        transaction
            .execute(
                "INSERT INTO schema_version VALUES ($1, $2)",
                &[&at, &now_unix_ms()],
            )
            .await?;
        tracing::info!(version = at, schema, "the ledger's tables are made");
    }
    transaction.commit().await?;
    Ok(())
}

fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX)
}
