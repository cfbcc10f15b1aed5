//! Which provider and credential made an object: calls that name it later go there.
//!
//! Objects belong to accounts: what another account made is not found. A call may come before word of
//! the object does, from another node; so a look-up waits a moment for one that is not there yet.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Row, params};
use vector_proto::control::v1::Object;

use super::{BATCH_MAX, Error, Ledger, signed, unsigned};

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS objects (
    account TEXT NOT NULL, id TEXT NOT NULL, provider TEXT NOT NULL, credential TEXT NOT NULL,
    operation TEXT NOT NULL, model TEXT NOT NULL, made_unix_ms INTEGER NOT NULL,
    PRIMARY KEY (account, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS objects_by_id ON objects (id);
";

/// How long a look-up waits for an object that is just being made.
const LOCATE_WAIT: Duration = Duration::from_millis(500);

/// Longest id of an object, and longest name of anything about it.
const TEXT_BYTES_MAX: usize = 512;

/// What is known of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Located {
    /// The account made it.
    Own(Object),
    /// Another account made it, and nobody else is told more.
    Foreign,
    /// Nobody was seen to make it.
    Unknown,
}

impl Ledger {
    /// Keeps objects. The last word about one wins. Returns once it is durable.
    ///
    /// # Errors
    /// [`Error::Invalid`] for absurd objects.
    pub async fn keep_objects(&self, objects: Vec<Object>) -> Result<(), Error> {
        if objects.len() > BATCH_MAX {
            return Err(Error::Invalid("too many objects at once"));
        }
        let absurd = |object: &Object| {
            let texts = [
                &object.id,
                &object.account,
                &object.provider,
                &object.credential,
                &object.operation,
                &object.model,
            ];
            object.id.is_empty() || texts.iter().any(|text| text.len() > TEXT_BYTES_MAX)
        };
        if objects.iter().any(absurd) {
            return Err(Error::Invalid(
                "an object without an id, or with absurd names",
            ));
        }
        let write = move |connection: &Connection| {
            let mut insert = connection.prepare_cached(
                "INSERT OR REPLACE INTO objects (account, id, provider, credential, operation, model, made_unix_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
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
                ])?;
            }
            Ok(())
        };
        self.writes.run(write, |()| ()).await?;
        self.objects_made.notify_waiters();
        Ok(())
    }

    /// The object, once it is known, for which it waits half a second.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn locate(&self, account: &str, id: &str) -> Result<Located, Error> {
        let search = async {
            loop {
                // Listening begins before looking, so that nothing falls in between.
                let made = self.objects_made.notified();
                tokio::pin!(made);
                made.as_mut().enable();
                if let Some(object) = self.find(account, id).await? {
                    return Ok(Located::Own(object));
                }
                made.await;
            }
        };
        match tokio::time::timeout(LOCATE_WAIT, search).await {
            Ok(located) => located,
            Err(_) if self.made_by_anyone(id).await? => Ok(Located::Foreign),
            Err(_) => Ok(Located::Unknown),
        }
    }

    async fn made_by_anyone(&self, id: &str) -> Result<bool, Error> {
        let id = id.to_owned();
        let read = move |connection: &Connection| {
            connection
                .prepare_cached("SELECT 1 FROM objects WHERE id = ?1 LIMIT 1")?
                .exists([id])
        };
        Ok(self.reads.run(read, |_| ()).await?)
    }

    async fn find(&self, account: &str, id: &str) -> Result<Option<Object>, Error> {
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
    })
}
