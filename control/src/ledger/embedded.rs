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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::ledger::{
        Books, Ledger,
        contract::{BOUNDS, all, record},
    };

    #[tokio::test]
    async fn usage_that_a_full_disk_refuses_is_counted_once_when_it_is_brought_again() {
        let dir = tempfile::tempdir().unwrap();
        let books = Embedded::open(&dir.path().join("ledger.sqlite"), BOUNDS).unwrap();
        let writes = books.writes.clone();
        let ledger = Ledger::with(Books::Embedded(books));
        ledger.record(vec![record(1, "a", 1)]).await.unwrap();
        writes.leave_room(Some(1)).await;
        let batch = |first: u8| (first..first + 100).map(|at| record(at, "a", 10)).collect();
        let (go, held) = mpsc::channel();
        let (_, one, two, ()) = tokio::join!(
            writes.hold(held),
            ledger.record(batch(1)),
            ledger.record(batch(101)),
            async { drop(go) },
        );
        assert!(one.is_err() && two.is_err(), "{one:?} {two:?}");
        assert_eq!(ledger.usage(all("a")).await.unwrap().exchanges, 1);

        writes.leave_room(None).await;
        for _ in 0..2 {
            for first in [1, 101] {
                assert!(ledger.record(batch(first)).await.unwrap().is_empty());
            }
        }
        assert_eq!(ledger.usage(all("a")).await.unwrap().exchanges, 200);
    }
}
