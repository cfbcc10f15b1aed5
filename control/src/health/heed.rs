//! Tells the nodes of this replica what was changed at another: keys to forget, drains, and who is out.
//!
//! The replica that makes a change tells its own nodes before it answers the operator; here the others hear of it from
//! the store, in order, some milliseconds later. Nodes hear some things twice, which changes nothing.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::{ControlEvent, Drain, KeysChanged, control_event::Event};

use super::Fleet;
use crate::{
    coordinate::{self, Batch, Revision},
    registry::{self, NodeSpec, Registry},
};

/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(250);

/// One push names at most this many keys; beyond it says "all".
const KEYS_MAX: usize = 1_000;

/// See the module.
#[derive(Debug)]
pub struct Heed {
    registry: Arc<Registry>,
    fleet: Arc<Fleet>,
}

impl Heed {
    /// Nothing is told before [`Heed::run`].
    #[must_use]
    pub fn new(registry: Arc<Registry>, fleet: Arc<Fleet>) -> Self {
        Self { registry, fleet }
    }

    /// Follows the store until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let mut first = true;
        loop {
            let ended = tokio::select! {
                () = cancel.cancelled() => return,
                ended = self.follow(first) => ended,
            };
            first = false;
            match ended {
                // Skipped: everything is told anew.
                Err(registry::Error::Store(coordinate::Error::Compacted)) => {}
                Err(error) => {
                    tracing::warn!(%error, "changes made at other replicas are not followed, will try again");
                    tokio::time::sleep(RETRY).await;
                }
                Ok(()) => {}
            }
        }
    }

    async fn follow(&self, first: bool) -> Result<(), registry::Error> {
        let store = self.registry.store();
        let from = store.list("/nodes/").await?.revision;
        let mut watch = store.watch("/", from).await?;
        if !first {
            self.tell_anew(from).await?;
        }
        loop {
            let batch = watch.next().await.map_err(registry::Error::Store)?;
            self.tell(&batch).await?;
        }
    }

    async fn tell(&self, batch: &Batch) -> Result<(), registry::Error> {
        let mut keys = Vec::new();
        for event in &batch.events {
            if let Some(id) = event.key.strip_prefix("/keys/") {
                keys.push(id.to_owned());
            } else if let Some(account) = event.key.strip_prefix("/cfg/accounts/") {
                let held = self.registry.keys(account).await?;
                keys.extend(held.into_iter().map(|key| key.id));
            } else if let Some(id) = event.key.strip_prefix("/nodes/") {
                let spec = event.value.as_ref().map(NodeSpec::read).transpose()?;
                self.tell_node(id, spec.as_ref()).await;
            }
        }
        if !keys.is_empty() {
            self.forget(keys, batch.revision).await;
        }
        Ok(())
    }

    /// What may have been missed.
    async fn tell_anew(&self, revision: Revision) -> Result<(), registry::Error> {
        for id in self.fleet.attached() {
            match self.registry.node(&id).await {
                Ok(spec) => self.tell_node(&id, Some(&spec)).await,
                Err(registry::Error::Unknown { .. }) => self.tell_node(&id, None).await,
                Err(error) => return Err(error),
            }
        }
        self.forget(vec![String::new(); KEYS_MAX + 1], revision)
            .await;
        Ok(())
    }

    async fn tell_node(&self, id: &str, spec: Option<&NodeSpec>) {
        let Some(spec) = spec else {
            return self.fleet.dismiss(id);
        };
        self.fleet.dismiss_other_than(id, spec.enrolled_unix_ms);
        let drain = Event::Drain(Drain { on: spec.draining });
        let event = ControlEvent { event: Some(drain) };
        // A node without a stream here hears it when it opens one.
        self.fleet.push(id, event).await;
    }

    /// Told up to `revision`: a node says it when it connects again, and hears only what came later.
    async fn forget(&self, mut keys: Vec<String>, revision: Revision) {
        let all = keys.len() > KEYS_MAX;
        if all {
            keys.clear();
        }
        let revision = u64::try_from(revision).unwrap_or_default();
        let changed = KeysChanged {
            keys,
            all,
            revision,
            // Nobody waits here to hear of it.
            asked: 0,
        };
        self.fleet.push_keys(changed).await;
    }
}
