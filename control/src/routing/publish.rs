//! Keeps the snapshot current, and hands the newest to everybody who wants it.
//!
//! A change of configuration is published at once; nodes that come and go, after a moment in which more may
//! come and go. Every replica does so, from what is in the store and from nothing else. What is in force is read before
//! what it follows from, and written only if nobody has written since: so a newer revision never stands for older inputs,
//! revisions never fork, and whoever loses the race reads again. The revision stays when nothing changed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::{Credential, Snapshot};

use super::{Inputs, compile, seal};
use crate::{
    coordinate::{self, Batch, Revision, Transaction, Watch},
    health,
    registry::{self, Catalog, Registry, StoredCredential},
    telemetry::Metrics,
};

/// Nodes that come or go within this time make one snapshot.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(250);

/// Largest snapshot handed out: nodes take 64 MiB in one message, and it has a frame.
const SNAPSHOT_BYTES_MAX: usize = 63 << 20;

/// Holds revision and digest of the snapshot in force.
const PUBLISHED: &str = "/routing/published";

/// What every node is told.
#[derive(Debug, Default)]
pub struct Published {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Generation of the configuration that the credentials are of.
    pub generation: u64,
    /// Credentials of each provider, sealed.
    credentials: BTreeMap<String, Vec<StoredCredential>>,
}

impl Published {
    /// The sealed credentials that an egress needs: of the providers whose row lists it, and no others. With each, how
    /// many share it and which of them this one is.
    pub fn credentials_for(
        &self,
        egress: &str,
    ) -> impl Iterator<Item = (&StoredCredential, Share)> {
        self.snapshot
            .providers
            .iter()
            .filter_map(move |provider| {
                let holder = provider.egress.iter().position(|id| id == egress)?;
                let share = Share {
                    holders: u32::try_from(provider.egress.len()).unwrap_or(u32::MAX),
                    holder: u32::try_from(holder).unwrap_or(u32::MAX),
                };
                let stored = self.credentials.get(&provider.name)?;
                Some(stored.iter().map(move |stored| (stored, share)))
            })
            .flatten()
    }
}

/// Which of how many egress nodes has a credential: each keeps to its part of the limits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Share {
    /// All of them.
    pub holders: u32,
    /// This one, from 0.
    pub holder: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Publisher {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    current: watch::Sender<Arc<Published>>,
    generation: watch::Sender<u64>,
}

/// What the next snapshot must differ from.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct InForce {
    revision: u64,
    content: Vec<u8>,
    changed: Revision,
}

impl InForce {
    fn read(value: &Bytes, changed: Revision) -> Self {
        match value.split_at_checked(8) {
            Some((revision, content)) => Self {
                revision: revision
                    .try_into()
                    .map(u64::from_be_bytes)
                    .unwrap_or_default(),
                content: content.to_vec(),
                changed,
            },
            None => Self {
                changed,
                ..Self::default()
            },
        }
    }

    fn value(&self) -> Vec<u8> {
        let mut value = self.revision.to_be_bytes().to_vec();
        value.extend_from_slice(&self.content);
        value
    }
}

/// Why the loop woke up.
enum Wake {
    Now,
    Soon,
    Relist,
    Nothing,
}

impl Publisher {
    /// Nothing is published before [`Publisher::run`].
    #[must_use]
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            metrics,
            current: watch::Sender::default(),
            generation: watch::Sender::default(),
        }
    }

    /// The newest snapshot, and word of newer ones.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.current.subscribe()
    }

    /// The newest snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Published> {
        self.current.borrow().clone()
    }

    /// Waits until what was configured by `generation` is published.
    ///
    /// Cancel safety: nothing is changed by it.
    pub async fn published(&self, generation: u64) {
        let mut seen = self.generation.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let _ = seen.wait_for(|&seen| seen >= generation).await;
    }

    /// Publishes until cancelled.
    pub async fn run(&self, cancel: CancellationToken) {
        loop {
            let ended = tokio::select! {
                () = cancel.cancelled() => return,
                ended = self.follow() => ended,
            };
            if let Err(error) = ended {
                tracing::error!(%error, "publishing failed, will try again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Whether this is the revision that all replicas have in force. A node that knows a newer one is told otherwise only by
    /// a replica that can be sure: one that is cut off from the store is not.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn is_in_force(&self, revision: u64) -> Result<bool, registry::Error> {
        Ok(self.in_force().await?.revision == revision)
    }

    /// Publishes once, then on every change, until the store fails or history has to be skipped.
    async fn follow(&self) -> Result<(), registry::Error> {
        let store = self.registry.store();
        // Whatever happens after this revision is heard of; whatever happened before is read below.
        let from = store.list(PUBLISHED).await?.revision;
        let mut watch = store.watch("/", from).await?;
        let mut in_force = self.publish().await?;
        let mut soon: Option<Instant> = None;
        loop {
            let wake = tokio::select! {
                batch = next(&mut watch, &in_force) => batch?,
                () = at(soon) => Wake::Now,
            };
            match wake {
                Wake::Nothing => {}
                Wake::Relist => return Ok(()),
                Wake::Soon => soon = soon.or_else(|| Some(Instant::now() + DEBOUNCE)),
                Wake::Now => {
                    soon = None;
                    in_force = self.publish().await?;
                }
            }
        }
    }

    async fn in_force(&self) -> Result<InForce, registry::Error> {
        let entry = self.registry.store().get(PUBLISHED).await?;
        Ok(entry.map_or_else(InForce::default, |entry| {
            InForce::read(&entry.value, entry.changed)
        }))
    }

    /// Compiles, and publishes when anything is different from what is in force, or takes up what another replica has
    /// published. Answers what is in force now.
    async fn publish(&self) -> Result<InForce, registry::Error> {
        let began = Instant::now();
        loop {
            let in_force = self.in_force().await?;
            let store = self.registry.store();
            let catalog = self.registry.catalog().await?;
            let nodes = self.registry.nodes().await?;
            let usable = health::agreed(store.as_ref()).await?;
            let bare = compile(Inputs {
                catalog: &catalog,
                nodes: &nodes,
                usable: &usable,
            });
            if bare.encoded_len() > SNAPSHOT_BYTES_MAX && self.current().snapshot.revision > 0 {
                // No change leads here: so many nodes have come. The last one that they can take stays.
                tracing::error!(
                    bytes = bare.encoded_len(),
                    "the snapshot is larger than nodes take and is not handed out"
                );
                return Ok(in_force);
            }
            let content = seal(bare.clone(), 0).digest.to_vec();
            let now = if content == in_force.content {
                in_force
            } else {
                match self.put(&in_force, content).await {
                    Ok(now) => now,
                    Err(coordinate::Error::Conflict(_)) => {
                        tracing::debug!("another replica was faster: reading again");
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
            };
            self.hand_out(bare, now.revision, &catalog);
            self.generation.send_replace(catalog.generation);
            self.metrics
                .publish_seconds
                .observe(began.elapsed().as_secs_f64());
            return Ok(now);
        }
    }

    /// Puts the next revision in force, unless somebody else has.
    async fn put(&self, before: &InForce, content: Vec<u8>) -> Result<InForce, coordinate::Error> {
        let next = InForce {
            revision: before.revision + 1,
            content,
            changed: 0,
        };
        let put = Transaction::new()
            .when(PUBLISHED, before.changed)
            .put(PUBLISHED, next.value());
        let changed = self.registry.store().commit(put).await?;
        Ok(InForce { changed, ..next })
    }

    /// Gives the snapshot to every stream, unless they have it.
    fn hand_out(&self, bare: Snapshot, revision: u64, catalog: &Catalog) {
        let (snapshot, credentials) = (seal(bare, revision), by_provider(catalog));
        let current = self.current();
        // The digest covers the revision.
        if current.snapshot.digest == snapshot.digest && current.credentials == credentials {
            return;
        }
        self.metrics.snapshot_revision.set(revision);
        self.metrics
            .snapshot_bytes
            .set(i64::try_from(snapshot.encoded_len()).unwrap_or(i64::MAX));
        tracing::info!(
            revision,
            nodes = snapshot.nodes.len(),
            models = snapshot.models.len(),
            paths = snapshot.paths.len(),
            "snapshot published"
        );
        self.current.send_replace(Arc::new(Published {
            snapshot,
            generation: catalog.generation,
            credentials,
        }));
    }
}

fn by_provider(catalog: &Catalog) -> BTreeMap<String, Vec<StoredCredential>> {
    let mut credentials: BTreeMap<String, Vec<StoredCredential>> = BTreeMap::new();
    for stored in catalog.credentials.values() {
        let provider = credentials.entry(stored.spec.provider.clone()).or_default();
        provider.push(stored.clone());
    }
    credentials
}

async fn next(watch: &mut Watch, in_force: &InForce) -> Result<Wake, coordinate::Error> {
    match watch.next().await {
        Ok(batch) => Ok(wake_of(&batch, in_force)),
        Err(coordinate::Error::Compacted) => Ok(Wake::Relist),
        Err(error) => Err(error),
    }
}

fn wake_of(batch: &Batch, in_force: &InForce) -> Wake {
    let any = |prefix: &str| {
        batch
            .events
            .iter()
            .any(|event| event.key.starts_with(prefix))
    };
    let published = batch.events.iter().find(|event| event.key == PUBLISHED);
    let by_another = published.is_some_and(|event| {
        let told = event.value.as_ref();
        told.is_none_or(|value| InForce::read(value, in_force.changed) != *in_force)
    });
    if any("/cfg") || any("/nodes/") || by_another {
        Wake::Now
    } else if any("/seen/") || any("/roll/") {
        Wake::Soon
    } else {
        Wake::Nothing
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// A credential as an egress gets it. One that is switched off goes without its secret.
impl Published {
    /// Opens a sealed credential for an egress that may have it.
    ///
    /// # Errors
    /// When it was sealed with another master key.
    pub fn opened(
        registry: &Registry,
        stored: &StoredCredential,
        share: Share,
    ) -> Result<Credential, registry::Error> {
        let spec = &stored.spec;
        let secret = if spec.disabled {
            String::new()
        } else {
            registry.reveal(stored)?.to_string()
        };
        Ok(Credential {
            name: spec.name.clone(),
            provider: spec.provider.clone(),
            secret,
            disabled: spec.disabled,
            requests_per_minute: spec.requests_per_minute,
            tokens_per_minute: spec.tokens_per_minute,
            concurrency: spec.concurrency,
            weight: spec.weight,
            headers: spec.headers.clone(),
            holders: share.holders,
            holder: share.holder,
        })
    }
}
