//! One leader at a time for a purpose, and the proof of it that others can compare.
//!
//! Leading is holding a key under a session. That alone proves nothing: a leader may be paused and
//! overtaken. So whatever only a leader may write compares its [`Leadership`] in the same transaction.
//!
//! Control has one such purpose: replicas start one after the other. What they do side by side needs no leader: rollouts,
//! the ends of old entries, a new intermediate are each done by whichever replica is first, and that it was is what the
//! transaction compares: the revision of the record that is moved.

use super::{Answer, Compare, Error, Revision, Session, Store, Transaction, Write};

/// The right to lead until somebody else does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leadership {
    key: String,
    /// Grows with every leader.
    pub term: Revision,
}

impl Leadership {
    /// Put this into every transaction that only the leader may do.
    #[must_use]
    pub fn fence(&self) -> Compare {
        Compare {
            key: self.key.clone(),
            changed: self.term,
        }
    }
}

/// Waits until this session leads for `purpose`.
///
/// Cancel safety: dropped while it waits, it never leads; dropped at the very end, the session may
/// hold the key until it ends.
pub fn elect<'a>(
    store: &'a dyn Store,
    purpose: &str,
    session: Session,
    who: &str,
) -> Answer<'a, Leadership> {
    let key = format!("/elect/{purpose}");
    let value = bytes::Bytes::copy_from_slice(who.as_bytes());
    Box::pin(async move {
        loop {
            let mut take = Transaction::new().when(key.clone(), 0);
            take.writes.push(Write::Put {
                key: key.clone(),
                value: value.clone(),
                session: Some(session.id),
            });
            match store.commit(take).await {
                Ok(term) => return Ok(Leadership { key, term }),
                Err(Error::Conflict(_)) => gone(store, &key).await?,
                Err(error) => return Err(error),
            }
        }
    })
}

/// Waits until the key is not there.
async fn gone(store: &dyn Store, key: &str) -> Result<(), Error> {
    let listing = store.list(key).await?;
    if !listing.entries.iter().any(|entry| entry.key == key) {
        return Ok(());
    }
    let mut watch = store.watch(key, listing.revision).await?;
    loop {
        let batch = match watch.next().await {
            Ok(batch) => batch,
            Err(Error::Compacted) => return Ok(()),
            Err(error) => return Err(error),
        };
        if batch
            .events
            .iter()
            .any(|event| event.key == key && event.value.is_none())
        {
            return Ok(());
        }
    }
}
