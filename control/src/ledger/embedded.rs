//! The books in one SQLite file, for one control.
//!
//! Two threads: one writes in groups, one reads, so that a long look at usage never keeps an egress waiting.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use vector_proto::control::v1::Object;

use super::{Error, claims::Bounds, signed, unsigned};
use crate::sqlite::Sqlite;

mod claims;

mod usage;

const OBJECTS: &str = "
CREATE TABLE IF NOT EXISTS objects (
    account TEXT NOT NULL, id TEXT NOT NULL, provider TEXT NOT NULL, credential TEXT NOT NULL,
    operation TEXT NOT NULL, model TEXT NOT NULL, made_unix_ms INTEGER NOT NULL,
    PRIMARY KEY (account, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS objects_by_id ON objects (id);
";

#[derive(Debug)]
pub(super) struct Embedded {
    writes: Sqlite,
    reads: Sqlite,
    bounds: Bounds,
}

impl Embedded {
    pub(super) fn open(path: &Path, bounds: Bounds) -> Result<Self, Error> {
        let schema = format!("{}{OBJECTS}{}", usage::SCHEMA, claims::SCHEMA);
        Ok(Self {
            writes: Sqlite::open(path, &schema)?,
            reads: Sqlite::open(path, "")?,
            bounds,
        })
    }

    pub(super) async fn keep_objects(&self, objects: Vec<Object>) -> Result<(), Error> {
        let write = move |connection: &Connection| {
            let mut insert = connection.prepare_cached(
                "INSERT OR REPLACE INTO objects (account, id, provider, credential, operation, model, made_unix_ms)
                 SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7
                 WHERE NOT (?8 AND EXISTS (SELECT 1 FROM objects WHERE id = ?2))",
            )?;
            for object in &objects {
                insert.execute(params![
                    object.account,
                    object.id,
                    object.provider,
                    object.credential,
                    object.operation,
                    object.model,
                    signed(object.made_unix_ms),
                    object.told,
                ])?;
            }
            Ok(())
        };
        Ok(self.writes.run(write, |()| ()).await?)
    }

    pub(super) async fn made_by_anyone(&self, id: &str) -> Result<bool, Error> {
        let id = id.to_owned();
        let read = move |connection: &Connection| {
            connection
                .prepare_cached("SELECT 1 FROM objects WHERE id = ?1 LIMIT 1")?
                .exists([id])
        };
        Ok(self.reads.run(read, |_| ()).await?)
    }

    pub(super) async fn find(&self, account: &str, id: &str) -> Result<Option<Object>, Error> {
        let (account, id) = (account.to_owned(), id.to_owned());
        let read = move |connection: &Connection| {
            connection
                .prepare_cached(
                    "SELECT id, account, provider, credential, operation, model, made_unix_ms
                     FROM objects WHERE account = ?1 AND id = ?2",
                )?
                .query_row([account, id], object)
                .optional()
        };
        Ok(self.reads.run(read, |_| ()).await?)
    }
}

fn object(row: &Row<'_>) -> rusqlite::Result<Object> {
    Ok(Object {
        id: row.get(0)?,
        account: row.get(1)?,
        provider: row.get(2)?,
        credential: row.get(3)?,
        operation: row.get(4)?,
        model: row.get(5)?,
        made_unix_ms: unsigned(row.get(6)?),
        told: false,
    })
}
