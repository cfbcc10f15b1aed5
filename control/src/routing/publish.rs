//! Keeps the snapshot current, and hands the newest to everybody who wants it.
//!
//! A change that is on its way has two sides: its canaries are told what shall be, everybody else what was ([`Published::of`]).
//! A change of configuration is published at once; nodes that come and go, after a moment in which more may
//! come and go. Every replica does so, from what is in the store and from nothing else ([`Known`]). What is in force is never
//! newer there than what it follows from, and is written only if nobody has written since: so a newer revision never stands
//! for older inputs, revisions never fork, and whoever loses the race goes on from the winner's. The revision stays when
//! nothing changed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::{Credential, Snapshot, control_event::Event};

use self::{
    force::InForce,
    known::{Known, Wake},
    steps::Steps,
};
use super::{
    Compiler, Inputs,
    seal::{Bare, Sealed, whole},
    ways::Ways,
};
use crate::{
    coordinate::{self, Revision, Transaction},
    registry::{self, Catalog, Registry, Rollout, StoredCredential},
    telemetry::Metrics,
};

mod force;

mod known;

mod steps;

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
    /// The snapshot without its paths, which many have in common: see [`Self::whole`].
    pub snapshot: Snapshot,
    ways: Arc<Ways>,
    /// Generation of the configuration that the credentials are of.
    pub generation: u64,
    /// Revision with which this replica first handed that generation out: whoever has it, or a later one, has the generation.
    pub since: u64,
    /// The change that it may be a part of.
    pub rollout: Rollout,
    /// What those are told who are not canaries, while a change is under way.
    pub rest: Option<Arc<Self>>,
    /// Another number whenever an egress may have come to need other credentials.
    pub entitlement: u64,
    /// The snapshot in bytes.
    encoded: Bytes,
    steps: Steps,
    /// Credentials of each provider, sealed.
    credentials: Arc<ByProvider>,
}

/// Shared with the streams of the egress nodes that were told of them.
type ByProvider = BTreeMap<String, Vec<Arc<StoredCredential>>>;

impl Published {
    /// What this node is told.
    #[must_use]
    pub fn of<'a>(self: &'a Arc<Self>, node: &str) -> &'a Arc<Self> {
        match &self.rest {
            Some(rest) if !self.rollout.canaries.iter().any(|id| id == node) => rest,
            _ => self,
        }
    }

    /// The snapshot with its paths.
    #[must_use]
    pub fn whole(&self) -> Snapshot {
        whole(&self.snapshot, &self.ways)
    }

    /// Revision of the snapshot of everybody who is no canary.
    #[must_use]
    pub fn told_rest(&self) -> u64 {
        let rest = self.rest.as_ref();
        rest.map_or(self.snapshot.revision, |rest| rest.snapshot.revision)
    }

    /// What a node is told that has been told of `revision` and takes deltas, one after the other; `in_parts`, a long one in
    /// pieces.
    pub fn news_since(&self, revision: u64, in_parts: bool) -> impl Iterator<Item = Event> {
        self.steps.news_since(revision, in_parts, &self.encoded)
    }

    /// The sealed credentials that an egress needs: of the providers whose row lists it, and no others. With each, how
    /// many share it and which of them this one is.
    pub fn credentials_for(
        &self,
        egress: &str,
    ) -> impl Iterator<Item = (&Arc<StoredCredential>, Share)> {
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
    compiler: Compiler,
    current: watch::Sender<Arc<Published>>,
    generation: watch::Sender<u64>,
    /// Numbers for [`Published::entitlement`] that were given out.
    entitlements: AtomicU64,
}

impl Publisher {
    /// Nothing is published before [`Publisher::run`].
    #[must_use]
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self {
            registry,
            metrics,
            compiler: Compiler::default(),
            current: watch::Sender::default(),
            generation: watch::Sender::default(),
            entitlements: AtomicU64::default(),
        }
    }

    /// What snapshots are compiled by: others who compile have the use of what it keeps.
    #[must_use]
    pub const fn compiler(&self) -> &Compiler {
        &self.compiler
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
        Ok(self.in_force().await?.is(revision))
    }

    /// Publishes once, then on every change, until the store fails or history has to be skipped.
    async fn follow(&self) -> Result<(), registry::Error> {
        let (mut known, mut watch) = Known::read(&self.registry).await?;
        self.publish(&mut known).await?;
        let mut soon: Option<Instant> = None;
        loop {
            let wake = tokio::select! {
                batch = watch.next() => match batch {
                    Ok(batch) => known.take(&batch)?,
                    Err(coordinate::Error::Compacted) => return Ok(()),
                    Err(error) => return Err(error.into()),
                },
                () = at(soon) => Wake::Now,
            };
            match wake {
                Wake::Nothing => {}
                Wake::Soon => soon = soon.or_else(|| Some(Instant::now() + DEBOUNCE)),
                Wake::Now => {
                    soon = None;
                    self.publish(&mut known).await?;
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
    /// published. Whoever was slower than another does nothing: the watch tells what that one has put, and what it knew.
    async fn publish(&self, known: &mut Known) -> Result<(), registry::Error> {
        let began = Instant::now();
        let usable = known.agreement.usable();
        let catalog = &known.view.catalog;
        let compiled = |catalog: &Catalog| {
            let inputs = Inputs {
                catalog,
                nodes: &known.view.nodes,
                usable: &usable,
                revoked: &known.view.revoked,
            };
            self.compiler.compile(inputs).encode()
        };
        let rest = catalog.rest()?;
        let bare = compiled(catalog);
        let bare_rest = rest.as_ref().map(compiled);
        if bare.encoded.len() > SNAPSHOT_BYTES_MAX && self.current().snapshot.revision > 0 {
            // No change leads here: so many nodes have come. The last one that they can take stays.
            tracing::error!(
                bytes = bare.encoded.len(),
                "the snapshot is larger than nodes take and is not handed out"
            );
            return Ok(());
        }
        let in_force = &known.in_force;
        let next = in_force.next(bare.content(), bare_rest.as_ref().map(Bare::content));
        if let Some(next) = next {
            match self.put(in_force.changed, next).await {
                Ok(now) => known.in_force = now,
                Err(coordinate::Error::Conflict(_)) => {
                    tracing::debug!("another replica was faster");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        let now = &known.in_force;
        let rest = rest.as_ref().zip(bare_rest).zip(now.rest.as_ref());
        let rest = rest.map(|((catalog, bare), side)| (bare.seal(side.revision), catalog));
        self.hand_out((bare.seal(now.all.revision), &known.view.catalog), rest);
        self.metrics
            .publish_seconds
            .observe(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Puts what is next in force, unless somebody else has put anything.
    async fn put(&self, before: Revision, next: InForce) -> Result<InForce, coordinate::Error> {
        let put = Transaction::new()
            .when(PUBLISHED, before)
            .put(PUBLISHED, next.value());
        let changed = self.registry.store().commit(put).await?;
        Ok(InForce { changed, ..next })
    }

    /// Gives the snapshot to every stream, unless they have it.
    fn hand_out(&self, all: (Sealed, &Catalog), rest: Option<(Sealed, &Catalog)>) {
        let current = self.current();
        let mut next = self.after(&current, all);
        let before = current.rest.as_deref().unwrap_or(&current);
        next.rest = rest.map(|rest| self.after(before, rest).into());
        let generation = next.generation;
        if !next.is_same(&current) {
            let (revision, snapshot) = (next.snapshot.revision, &next.snapshot);
            self.metrics.snapshot_revision.set(revision);
            self.metrics
                .snapshot_bytes
                .set(i64::try_from(next.encoded.len()).unwrap_or(i64::MAX));
            tracing::info!(
                revision,
                nodes = snapshot.nodes.len(),
                models = snapshot.models.len(),
                paths = next.ways.paths.len(),
                canaries_only = next.rest.is_some(),
                "snapshot published"
            );
            self.current.send_replace(Arc::new(next));
        }
        self.generation.send_replace(generation);
    }

    /// One side of what is published, which follows on `before`.
    fn after(&self, before: &Published, (sealed, catalog): (Sealed, &Catalog)) -> Published {
        let credentials = by_provider(catalog);
        let same_credentials = *before.credentials == credentials;
        let same_rows = before.snapshot.providers == sealed.snapshot.providers;
        let entitlement = if same_credentials && same_rows {
            before.entitlement
        } else {
            self.entitlements.fetch_add(1, Ordering::Relaxed) + 1
        };
        // The digest covers the revision.
        let steps = if before.snapshot.digest == sealed.snapshot.digest {
            before.steps.clone()
        } else {
            before.steps.then((&before.snapshot, &before.ways), &sealed)
        };
        let since = if before.generation == catalog.generation && before.since > 0 {
            before.since
        } else {
            sealed.snapshot.revision
        };
        Published {
            snapshot: sealed.snapshot,
            ways: sealed.ways,
            encoded: sealed.encoded,
            steps,
            generation: catalog.generation,
            since,
            entitlement,
            credentials: if same_credentials {
                Arc::clone(&before.credentials)
            } else {
                credentials.into()
            },
            rollout: catalog.rollout.clone(),
            rest: None,
        }
    }
}

impl Published {
    fn is_same(&self, other: &Self) -> bool {
        let rest = match (&self.rest, &other.rest) {
            (None, None) => true,
            (Some(one), Some(other)) => one.is_same(other),
            _ => false,
        };
        // The digest covers the revision.
        rest && self.snapshot.digest == other.snapshot.digest
            && self.credentials == other.credentials
            && self.rollout == other.rollout
    }
}

fn by_provider(catalog: &Catalog) -> ByProvider {
    let mut credentials = ByProvider::new();
    for stored in catalog.credentials.values() {
        let provider = credentials.entry(stored.spec.provider.clone()).or_default();
        provider.push(Arc::new(stored.clone()));
    }
    credentials
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// A credential as an egress gets it. One that is switched off goes without its secret and headers.
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
        let (mut secret, headers) = if spec.disabled {
            Default::default()
        } else {
            registry.reveal(stored)?
        };
        Ok(Credential {
            name: spec.name.clone(),
            provider: spec.provider.clone(),
            // Moved: this message is the only one that is not wiped, since gRPC takes it away.
            secret: std::mem::take(&mut *secret),
            disabled: spec.disabled,
            requests_per_minute: spec.requests_per_minute,
            tokens_per_minute: spec.tokens_per_minute,
            concurrency: spec.concurrency,
            weight: spec.weight,
            headers,
            holders: share.holders,
            holder: share.holder,
        })
    }
}
