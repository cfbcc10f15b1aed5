//! One leader at a time for a purpose, and the proof of it that others can compare.
//!
//! Leading is holding a key under a session. That alone proves nothing: a leader may be paused and
//! overtaken. So whatever only a leader may write compares its [`Leadership`] in the same transaction.
//!
//! Control has two such purposes: replicas start one after the other, and one of them carries a rollout on to everybody
//! ([`Candidate`]). What they do side by side needs no leader: taking a rollout back, a new intermediate are each done by
//! whichever replica is first, and that it was is what the transaction compares: the revision of the record that is moved.
//! Old entries are reaped in the transactions that make new ones.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{Answer, Compare, Entry, Error, Revision, Session, Store, Transaction, Write};

/// After a failure of the store, a candidate stands again.
const RETRY: Duration = Duration::from_millis(250);

/// A session that is on its way when the candidate is stopped has this long to come, so that it can be ended: dropped half
/// way, it may stay with nobody to end it.
const LAST: Duration = Duration::from_secs(1);

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

/// Stands for election from when it is made, and leads until it resigns, is dropped or its session ends; then it stands again.
///
/// That it has led says nothing of now: only what compares its [`Leadership`] does.
#[derive(Debug)]
pub struct Candidate {
    leads: watch::Receiver<Option<Leadership>>,
    stands: TaskTracker,
    _stop: DropGuard,
}

impl Candidate {
    /// Stands for `purpose`, which `who` is known for then.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, purpose: &'static str, who: String) -> Self {
        let stop = CancellationToken::new();
        let (tell, leads) = watch::channel(None);
        let stopped = stop.clone();
        let stands = TaskTracker::new();
        stands.spawn(async move {
            while let Err(error) = stand(store.as_ref(), (purpose, &who), &tell, &stopped).await {
                tracing::debug!(purpose, %error, "not elected yet, will stand again");
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        });
        stands.close();
        Self {
            leads,
            stands,
            _stop: stop.drop_guard(),
        }
    }

    /// What it won, if it has and does not know that it is lost.
    #[must_use]
    pub fn leadership(&self) -> Option<Leadership> {
        self.leads.borrow().clone()
    }

    /// Waits until it has won.
    #[cfg(test)]
    pub(super) async fn won(&self) -> Leadership {
        let mut leads = self.leads.clone();
        let won = leads.wait_for(Option::is_some).await.unwrap();
        won.clone().unwrap()
    }

    /// Waits until it knows that this is lost.
    #[cfg(test)]
    pub(super) async fn lost(&self, won: &Leadership) {
        let mut leads = self.leads.clone();
        let lost = leads.wait_for(|leads| leads.as_ref() != Some(won));
        drop(lost.await.unwrap());
    }

    /// Leaves the place to another, at once. Dropped instead, it does so in the background.
    pub async fn resign(self) {
        let Self { stands, _stop, .. } = self;
        drop(_stop);
        stands.wait().await;
    }
}

/// Until `stop`: waits for its turn, tells that it has come, and gives it back in the end.
///
/// # Errors
/// That the store failed, or that the turn was lost.
async fn stand(
    store: &dyn Store,
    (purpose, who): (&str, &str),
    tell: &watch::Sender<Option<Leadership>>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    if stop.is_cancelled() {
        return Ok(());
    }
    let session = tokio::select! {
        session = store.session() => session?,
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST).await;
        } => return Ok(()),
    };
    let stood = tokio::select! {
        () = stop.cancelled() => Ok(()),
        stood = lead(store, (purpose, who), session, tell) => stood,
    };
    tell.send_replace(None);
    let ended = store.end(session).await;
    stood.and(ended.or_else(|error| {
        // It ends by itself when its time is over.
        tracing::debug!(purpose, %error, "the session was not ended");
        Ok(())
    }))
}

/// Waits for its turn, tells that it has come, and returns when it is lost.
async fn lead(
    store: &dyn Store,
    (purpose, who): (&str, &str),
    session: Session,
    tell: &watch::Sender<Option<Leadership>>,
) -> Result<(), Error> {
    let mine = elect(store, purpose, session, who).await?;
    tell.send_replace(Some(mine.clone()));
    while let Err(error) = lost(store, &mine).await {
        // Whether it is lost cannot be seen now, and nothing can be done with it either.
        tracing::debug!(purpose, %error, "the key of the election is not seen, will look again");
        tokio::time::sleep(RETRY).await;
    }
    tracing::info!(purpose, "the election's key is lost, will stand again");
    Err(Error::SessionEnded)
}

/// Waits until the key is not the one that was won.
async fn lost(store: &dyn Store, mine: &Leadership) -> Result<(), Error> {
    let listing = store.list(&mine.key).await?;
    let is_mine = |entry: &Entry| entry.key == mine.key && entry.changed == mine.term;
    if !listing.entries.iter().any(is_mine) {
        return Ok(());
    }
    let mut watch = store.watch(&mine.key, listing.revision).await?;
    loop {
        let batch = watch.next().await?;
        if batch.events.iter().any(|event| event.key == mine.key) {
            return Ok(());
        }
    }
}
