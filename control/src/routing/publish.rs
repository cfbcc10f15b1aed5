//! Keeps the snapshot current, and hands the newest to everybody who wants it.
//!
//! A change of configuration is published at once; nodes that come and go, after a moment in which more may
//! come and go. The revision is kept in the store, so it grows over restarts, and stays when nothing changed.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::{Credential, Snapshot};

use super::{Inputs, compile, seal};
use crate::{
    coordinate::{self, Batch, Revision, Transaction, Watch},
    health::Fleet,
    registry::{self, Catalog, Registry, StoredCredential},
    telemetry::Metrics,
};

/// Nodes that come or go within this time make one snapshot.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// After a failure of the store.
const RETRY: Duration = Duration::from_secs(1);

/// Holds revision and digest of the snapshot in force.
const PUBLISHED: &str = "/routing/published";

/// What every node is told.
#[derive(Debug, Default)]
pub struct Published {
    /// The snapshot.
    pub snapshot: Snapshot,
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
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    current: watch::Sender<Arc<Published>>,
    generation: watch::Sender<u64>,
}

/// What the next snapshot must differ from.
struct InForce {
    revision: u64,
    content: Vec<u8>,
    changed: Revision,
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
    pub fn new(registry: Arc<Registry>, fleet: Arc<Fleet>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            fleet,
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

    /// Publishes once, then on every change, until the store fails or history has to be skipped.
    async fn follow(&self) -> Result<(), registry::Error> {
        let store = self.registry.store();
        // Whatever happens after this revision is heard of; whatever happened before is read below.
        let from = store.list(PUBLISHED).await?.revision;
        let mut watch = store.watch("/", from).await?;
        let mut fleet = self.fleet.changes();
        let mut in_force = self.in_force().await?;
        let mut until = self.publish(&mut in_force).await?;
        let mut soon: Option<Instant> = None;
        loop {
            let wait = [soon, until].into_iter().flatten().min();
            let wake = tokio::select! {
                batch = next(&mut watch) => batch?,
                _ = fleet.changed() => Wake::Soon,
                () = at(wait) => Wake::Now,
            };
            match wake {
                Wake::Nothing => {}
                Wake::Relist => return Ok(()),
                Wake::Soon => soon = soon.or_else(|| Some(Instant::now() + DEBOUNCE)),
                Wake::Now => {
                    soon = None;
                    until = self.publish(&mut in_force).await?;
                }
            }
        }
    }

    async fn in_force(&self) -> Result<InForce, registry::Error> {
        let entry = self.registry.store().get(PUBLISHED).await?;
        Ok(match entry {
            Some(entry) if entry.value.len() > 8 => {
                let (revision, content) = entry.value.split_at(8);
                InForce {
                    revision: revision
                        .try_into()
                        .map(u64::from_be_bytes)
                        .unwrap_or_default(),
                    content: content.to_vec(),
                    changed: entry.changed,
                }
            }
            _ => InForce {
                revision: 0,
                content: Vec::new(),
                changed: 0,
            },
        })
    }

    /// Compiles, and publishes when anything is different. Answers when to look again unasked.
    async fn publish(&self, in_force: &mut InForce) -> Result<Option<Instant>, registry::Error> {
        let began = Instant::now();
        let catalog = self.registry.catalog().await?;
        let nodes = self.registry.nodes().await?;
        let usable = self.fleet.usable(began);
        let bare = compile(Inputs {
            catalog: &catalog,
            nodes: &nodes,
            usable: &usable,
        });
        let content = seal(bare.clone(), 0).digest.to_vec();
        let first = self.current.borrow().snapshot.revision == 0;
        if content != in_force.content {
            let revision = in_force.revision + 1;
            let mut value = revision.to_be_bytes().to_vec();
            value.extend_from_slice(&content);
            let put = Transaction::new()
                .when(PUBLISHED, in_force.changed)
                .put(PUBLISHED, value);
            let changed = self.registry.store().commit(put).await?;
            *in_force = InForce {
                revision,
                content,
                changed,
            };
        }
        let credentials = by_provider(&catalog);
        let same = !first
            && self.current.borrow().snapshot.revision == in_force.revision
            && self.current.borrow().credentials == credentials;
        if !same {
            let snapshot = seal(bare, in_force.revision);
            self.metrics.snapshot_revision.set(in_force.revision);
            self.metrics
                .snapshot_bytes
                .set(i64::try_from(snapshot.encoded_len()).unwrap_or(i64::MAX));
            tracing::info!(
                revision = in_force.revision,
                nodes = snapshot.nodes.len(),
                models = snapshot.models.len(),
                paths = snapshot.paths.len(),
                "snapshot published"
            );
            self.current.send_replace(Arc::new(Published {
                snapshot,
                credentials,
            }));
        }
        self.generation.send_replace(catalog.generation);
        self.metrics
            .publish_seconds
            .observe(began.elapsed().as_secs_f64());
        Ok(usable.until)
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

async fn next(watch: &mut Watch) -> Result<Wake, coordinate::Error> {
    match watch.next().await {
        Ok(batch) => Ok(wake_of(&batch)),
        Err(coordinate::Error::Compacted) => Ok(Wake::Relist),
        Err(error) => Err(error),
    }
}

fn wake_of(batch: &Batch) -> Wake {
    let any = |prefix: &str| {
        batch
            .events
            .iter()
            .any(|event| event.key.starts_with(prefix))
    };
    if any("/cfg") || any("/nodes/") {
        Wake::Now
    } else if any("/seen/") {
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
