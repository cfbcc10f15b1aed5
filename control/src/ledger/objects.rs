//! Which provider and credential made an object: calls that name it later go there.
//!
//! Objects belong to accounts: what another account made is not found. A call may come before word of
//! the object does, from another node or to another replica; so a look-up waits a moment for one that is not there yet.

use std::time::Duration;

use vector_proto::control::v1::Object;

use super::{BATCH_MAX, Error, Ledger, Refused, sift};

/// How long a look-up waits for an object that is just being made.
const LOCATE_WAIT: Duration = Duration::from_millis(500);

/// How soon it looks again for what another replica may have heard of; doubles.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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
    /// Keeps objects. The last word about one wins, but what an answer only told of is kept just where nothing is known of
    /// its id: what an account made is never another's. Returns once they are durable, with those that are absurd and not kept.
    ///
    /// # Errors
    /// [`Error::Invalid`] for too many at once; otherwise when the database fails, and then none is known to be kept.
    pub async fn keep_objects(&self, objects: Vec<Object>) -> Result<Vec<Refused>, Error> {
        if objects.len() > BATCH_MAX {
            return Err(Error::Invalid("too many objects at once"));
        }
        let (good, refused) = sift(objects, absurd);
        if !good.is_empty() {
            self.books.keep_objects(good).await?;
            self.objects_made.notify_waiters();
        }
        Ok(refused)
    }

    /// The object, once it is known, for which it waits half a second.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn locate(&self, account: &str, id: &str) -> Result<Located, Error> {
        let search = async {
            let mut pause = LOOK_AGAIN;
            loop {
                // Listening begins before looking, so that nothing falls in between.
                let made = self.objects_made.notified();
                tokio::pin!(made);
                made.as_mut().enable();
                if let Some(object) = self.books.find(account, id).await? {
                    return Ok(Located::Own(object));
                }
                // Over time, another replica's word has come.
                let _ = tokio::time::timeout(pause, made).await;
                pause *= 2;
            }
        };
        match tokio::time::timeout(LOCATE_WAIT, search).await {
            Ok(located) => located,
            Err(_) if self.books.made_by_anyone(id).await? => Ok(Located::Foreign),
            Err(_) => Ok(Located::Unknown),
        }
    }
}

fn absurd(object: &Object) -> Option<&'static str> {
    let texts = [
        &object.id,
        &object.account,
        &object.provider,
        &object.credential,
        &object.operation,
        &object.model,
    ];
    if object.id.is_empty() {
        Some("an object without an id")
    } else if texts.iter().any(|text| text.len() > TEXT_BYTES_MAX) {
        Some("an object with absurd names")
    } else {
        None
    }
}
