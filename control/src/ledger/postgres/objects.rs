//! Objects in PostgreSQL.

use std::collections::HashMap;

use tokio_postgres::Row;
use vector_proto::control::v1::Object;

use super::{CALL_TIME_MAX, Fault, Postgres, text};
use crate::ledger::{Error, signed, unsigned};

/// What was made.
const UPSERT: &str = "
INSERT INTO objects
SELECT account, id, provider, credential, operation, model, made_unix_ms
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[])
    AS given (account, id, provider, credential, operation, model, made_unix_ms)
ON CONFLICT (account, id) DO UPDATE SET provider = EXCLUDED.provider, credential = EXCLUDED.credential,
    operation = EXCLUDED.operation, model = EXCLUDED.model, made_unix_ms = EXCLUDED.made_unix_ms";

/// What was only told of, which gives way to what is known, and to what another replica makes known at this moment.
const KEEP_TOLD: &str = "
INSERT INTO objects
SELECT account, id, provider, credential, operation, model, made_unix_ms
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[])
    AS given (account, id, provider, credential, operation, model, made_unix_ms)
WHERE NOT EXISTS (SELECT 1 FROM objects AS known WHERE known.id = given.id)
ON CONFLICT (account, id) DO NOTHING";

const FIND: &str = "
SELECT id, account, provider, credential, operation, model, made_unix_ms FROM objects WHERE account = $1 AND id = $2";

impl Postgres {
    pub(in crate::ledger) async fn keep_objects(&self, objects: &[Object]) -> Result<(), Error> {
        // One statement may not write a row twice: the last word counts, but what was only told of gives way. In one order
        // everywhere, against deadlocks.
        let mut last: HashMap<(&str, &str), &Object> = HashMap::new();
        for object in objects {
            let known = last.entry((&object.account[..], &object.id[..]));
            let known = known.or_insert(object);
            if !object.told {
                *known = object;
            }
        }
        let (told, made): (Vec<&Object>, Vec<&Object>) =
            last.into_values().partition(|object| object.told);
        self.insert_objects(UPSERT, made).await?;
        self.insert_objects(KEEP_TOLD, told).await
    }

    /// In the statement's own way, all or none of them.
    async fn insert_objects(&self, sql: &str, mut rows: Vec<&Object>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        rows.sort_unstable_by(|a, b| (&a.account, &a.id).cmp(&(&b.account, &b.id)));
        let column = |of: fn(&Object) -> &str| -> Vec<_> {
            rows.iter().map(|object| text(of(object))).collect()
        };
        let (account, id) = (column(|o| &o.account), column(|o| &o.id));
        let (provider, credential) = (column(|o| &o.provider), column(|o| &o.credential));
        let (operation, model) = (column(|o| &o.operation), column(|o| &o.model));
        let made: Vec<i64> = rows.iter().map(|o| signed(o.made_unix_ms)).collect();
        let mut tries = self.tries(CALL_TIME_MAX);
        loop {
            let work = async {
                let mut connection = self.connection().await?;
                let client = connection.client()?;
                let statement = client.prepare_cached(sql).await?;
                client
                    .execute(
                        &statement,
                        &[
                            &account,
                            &id,
                            &provider,
                            &credential,
                            &operation,
                            &model,
                            &made,
                        ],
                    )
                    .await?;
                connection.back();
                Ok(())
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }

    pub(in crate::ledger) async fn find(
        &self,
        account: &str,
        id: &str,
    ) -> Result<Option<Object>, Error> {
        let (account, id) = (text(account), text(id));
        let mut tries = self.tries(CALL_TIME_MAX);
        loop {
            let work = async {
                let mut connection = self.connection().await?;
                let client = connection.client()?;
                let statement = client.prepare_cached(FIND).await?;
                let row = client.query_opt(&statement, &[&account, &id]).await?;
                connection.back();
                row.as_ref().map(object).transpose()
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }

    pub(in crate::ledger) async fn made_by_anyone(&self, id: &str) -> Result<bool, Error> {
        let id = text(id);
        let mut tries = self.tries(CALL_TIME_MAX);
        loop {
            let work = async {
                let mut connection = self.connection().await?;
                let client = connection.client()?;
                let statement = client
                    .prepare_cached("SELECT 1 FROM objects WHERE id = $1 LIMIT 1")
                    .await?;
                let row = client.query_opt(&statement, &[&id]).await?;
                connection.back();
                Ok(row.is_some())
            };
            if let Some(done) = tries.attempt(work).await {
                return done;
            }
        }
    }
}

fn object(row: &Row) -> Result<Object, Fault> {
    Ok(Object {
        id: row.try_get(0)?,
        account: row.try_get(1)?,
        provider: row.try_get(2)?,
        credential: row.try_get(3)?,
        operation: row.try_get(4)?,
        model: row.try_get(5)?,
        made_unix_ms: unsigned(row.try_get(6)?),
        told: false,
    })
}
