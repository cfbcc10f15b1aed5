//! Watches that outlive the member they began at.
//!
//! A watch goes on at the next member from the last revision it has told. It ends, and its reader lists anew, only
//! when etcd has compacted what came in between, when that is more than one message holds, or when the reader is too slow.

use std::time::Duration;

use etcd_client::{
    Client, Error as EtcdError, EventType, WatchOptions, WatchResponse, WatchStream,
};
use tokio::sync::mpsc;

use super::{Inner, WATCH_BYTES_MAX, member::is_too_large};
use crate::coordinate::{Batch, Error, Event, Revision};

/// How often a silent watch asks its member for a sign of life, and how long that may take.
const SILENCE: Duration = Duration::from_secs(2);

/// Pause after all members failed, or after a stream that broke at once.
const PAUSE: Duration = Duration::from_millis(100);

/// One watch of one reader.
pub(super) struct Follower {
    pub(super) inner: std::sync::Arc<Inner>,
    /// With the root in front.
    pub(super) prefix: String,
    /// Told up to here.
    pub(super) after: Revision,
    pub(super) live: mpsc::Sender<Batch>,
}

/// Why a stream of events ended.
enum Ended {
    /// Somewhere else it may go on.
    Broken,
    /// For the reader as well.
    ForGood,
}

impl Follower {
    /// Follows until the reader is gone, too slow, or what it has not seen is compacted.
    pub(super) async fn run(mut self, mut stream: WatchStream) {
        let stop = self.inner.stop.clone();
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                () = self.live.closed() => return,
                ended = Self::pass_on(&self.live, &mut self.after, &self.inner.root, &mut stream) => ended,
            };
            if matches!(ended, Ended::ForGood) {
                return;
            }
            stream = loop {
                let opened = tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.live.closed() => return,
                    opened = self.open() => opened,
                };
                match opened {
                    Ok(stream) => break stream,
                    Err(Error::Compacted) => return,
                    Err(error) => {
                        tracing::warn!(%error, prefix = self.prefix, "watch is interrupted");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            };
        }
    }

    /// Opens the stream behind what was told.
    pub(super) async fn open(&self) -> Result<WatchStream, Error> {
        let from = self.after + 1;
        self.inner
            .members
            .call(|client| open(client, self.prefix.clone(), from))
            .await
    }

    async fn pass_on(
        live: &mpsc::Sender<Batch>,
        after: &mut Revision,
        root: &str,
        stream: &mut WatchStream,
    ) -> Ended {
        let mut asked = false;
        loop {
            match tokio::time::timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(response))) => {
                    asked = false;
                    if response.canceled() {
                        let compacted = response.compact_revision() > 0;
                        return if compacted {
                            Ended::ForGood
                        } else {
                            Ended::Broken
                        };
                    }
                    for batch in batches(root, &response) {
                        *after = batch.revision;
                        if live.try_send(batch).is_err() {
                            return Ended::ForGood;
                        }
                    }
                }
                // From the same revision on it would be as large again.
                Ok(Err(error)) if is_too_large(&error) => return Ended::ForGood,
                Ok(Ok(None) | Err(_)) => return Ended::Broken,
                Err(_) if asked || stream.request_progress().await.is_err() => {
                    return Ended::Broken;
                }
                Err(_) => asked = true,
            }
        }
    }
}

async fn open(client: Client, prefix: String, from: Revision) -> Result<WatchStream, EtcdError> {
    let options = WatchOptions::new().with_prefix().with_start_revision(from);
    let client = client.watch_client();
    let mut client = client.max_decoding_message_size(WATCH_BYTES_MAX);
    let mut stream = client.watch(prefix, Some(options)).await?;
    // The first answer says that the watch stands.
    match stream.message().await? {
        Some(first) if first.created() && !first.canceled() => Ok(stream),
        Some(first) => Err(EtcdError::WatchError(first.cancel_reason().to_owned())),
        None => Err(EtcdError::WatchError("the stream ended".to_owned())),
    }
}

/// The commits of one response: etcd never parts the events of one revision.
fn batches(root: &str, response: &WatchResponse) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for event in response.events() {
        let Some(kv) = event.kv() else { continue };
        let key = String::from_utf8_lossy(kv.key());
        let told = Event {
            key: key.strip_prefix(root).unwrap_or(&key).to_owned(),
            value: match event.event_type() {
                EventType::Put => Some(kv.value().to_vec().into()),
                EventType::Delete => None,
            },
        };
        match batches.last_mut() {
            Some(batch) if batch.revision == kv.mod_revision() => batch.events.push(told),
            _ => batches.push(Batch {
                revision: kv.mod_revision(),
                events: vec![told],
            }),
        }
    }
    for batch in &mut batches {
        batch.events.sort_by(|one, other| one.key.cmp(&other.key));
    }
    batches
}
