//! What control tells this node, and what this node tells control.
//!
//! Two halves: [`ControlPlane`] is what the roles hold, cheap to clone, answering from memory wherever it can;
//! [`Service`] keeps long streams to two replicas of control and runs until the node stops.
//! A node that has once heard from control serves without it, also when it starts anew: the last good snapshots, the
//! keys it has admitted and, sealed, the credentials it may use are on disk, and usage is journalled until control has it.

// How this node gets to be known.
pub mod enroll;

pub mod roots;

// What control tells.
pub mod snapshot;

pub mod routes;

mod scores;

mod credentials;
pub use credentials::Held;

mod seats;

mod sync;

// What is asked when a request needs it.
mod admit;

mod keys;

mod objects;

mod claims;

// What this node tells.
mod tell;

mod report;

mod usage;

mod channel;

mod replicas;

// What survives a restart stands on this.
mod disk;

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use futures_util::future::try_join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use vector_proto::{
    control::v1::{self, node_client::NodeClient},
    id::ApiKey,
    refusal::{Code, Refusal},
};

use crate::{identity::StateKeys, telemetry::Telemetry};

pub use self::{
    channel::connect,
    replicas::Replicas,
    routes::{ModelRow, NodeRow, PathRow, ProviderRow, Routes, UpstreamRow, Ways},
    scores::ScoresSink,
};

/// Replicas of control that a node keeps streams to: one may die, and the other has told everything.
const STREAMS: usize = 2;

/// Time for one question to control while a client waits.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Questions about the objects of one request that are asked at once.
const LOCATES_MAX: usize = 64;

/// Reads the node's state for a report.
pub type StatusSource = Arc<dyn Fn() -> v1::Status + Send + Sync>;

/// What the roles hold. Cheap to clone.
#[derive(Clone)]
pub struct ControlPlane(Arc<Inner>);

struct Inner {
    client: NodeClient<Replicas>,
    replicas: Replicas,
    routes: ArcSwap<Routes>,
    revision: watch::Sender<u64>,
    credentials: watch::Sender<Arc<Held>>,
    drained: watch::Sender<bool>,
    connected: watch::Sender<bool>,
    /// Control has said that this node was removed.
    removed: watch::Sender<bool>,
    /// What control said last of the roots.
    roots: watch::Sender<Option<Arc<v1::Roots>>>,
    admission: Arc<admit::Admission>,
    keys: Arc<keys::Keys>,
    /// Where credentials are kept between starts, unless they are not.
    safe: Option<credentials::Safe>,
    objects: objects::Objects,
    reports: report::Reports,
    usage: Arc<usage::Journal>,
    status: OnceLock<StatusSource>,
    /// Counts what others should hear of at once.
    urgent: watch::Sender<u64>,
    scores: scores::Scores,
}

/// Who this node is, as it registers.
#[derive(Clone, Debug)]
pub struct Registration {
    /// Everything but the revisions, which the stream fills in.
    pub register: v1::Register,
    /// Where everything is kept that a start without control needs.
    pub state_dir: PathBuf,
    /// What that is sealed with.
    pub keys: StateKeys,
    /// Whether credentials are kept there too.
    pub keep_credentials: bool,
}

/// Keeps the stream to control. Runs beside everything else.
#[derive(Debug)]
pub struct Service {
    control: ControlPlane,
    registration: Registration,
    outbox: report::Outbox,
    keys_behind: keys::Behind,
}

impl ControlPlane {
    /// A control plane over channels that need not be up. Routes by what is on disk until control says more.
    #[must_use]
    pub fn new(replicas: impl Into<Replicas>, registration: Registration) -> (Self, Service) {
        let replicas = replicas.into();
        let dir = &registration.state_dir;
        let (reports, outbox) = report::queues(dir);
        let routes = snapshot::load(dir, &registration.register.region);
        let admission = Arc::new(admit::Admission::default());
        let (keys, keys_behind) = keys::Keys::load(dir.clone(), &registration.keys, &admission);
        let safe = registration
            .keep_credentials
            .then(|| credentials::Safe::new(&registration.keys));
        let safe = safe.flatten();
        let held = match &safe {
            Some(safe) => safe.take(dir),
            None => {
                credentials::remove(dir);
                None
            }
        };
        let control = Self(Arc::new(Inner {
            client: NodeClient::new(replicas.clone()),
            replicas,
            revision: watch::Sender::new(routes.revision),
            routes: ArcSwap::from_pointee(routes),
            credentials: watch::Sender::new(Arc::new(Held::new(held.unwrap_or_default()))),
            drained: watch::Sender::new(false),
            connected: watch::Sender::new(false),
            removed: watch::Sender::new(false),
            roots: watch::Sender::new(None),
            admission,
            keys: Arc::new(keys),
            safe,
            objects: objects::Objects::default(),
            reports,
            usage: Arc::new(usage::Journal::open(dir.join("usage"))),
            status: OnceLock::new(),
            urgent: watch::Sender::default(),
            scores: scores::Scores::default(),
        }));
        let service = Service {
            control: control.clone(),
            registration,
            outbox,
            keys_behind,
        };
        (control, service)
    }

    /// What this node routes by. Costs an atomic load.
    #[must_use]
    pub fn routes(&self) -> Guard<Arc<Routes>> {
        self.0.routes.load()
    }

    /// Tells when the routes change; the value is their revision.
    #[must_use]
    pub fn routes_changed(&self) -> watch::Receiver<u64> {
        self.0.revision.subscribe()
    }

    /// Whether a stream to control is up.
    #[must_use]
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.0.connected.subscribe()
    }

    /// Whether control has said that this node was removed from the network, or replaced by another of its name.
    #[must_use]
    pub fn removed(&self) -> watch::Receiver<bool> {
        self.0.removed.subscribe()
    }

    /// Whom control says to trust; nothing where that was never changed.
    #[must_use]
    pub fn roots(&self) -> watch::Receiver<Option<Arc<v1::Roots>>> {
        self.0.roots.subscribe()
    }

    /// Forgets the credentials of providers, also those on disk. Blocks for one file.
    pub fn forget_credentials(&self, state_dir: &Path) {
        let none = Held::new(v1::Credentials::default());
        self.0.credentials.send_replace(Arc::new(none));
        credentials::remove(state_dir);
    }

    /// The policy of a key that was admitted before. Asks nobody.
    #[must_use]
    pub fn cached_policy(&self, digest: &[u8; 32]) -> Option<Arc<v1::KeyPolicy>> {
        self.0.admission.cached(digest)
    }

    /// The policy of a key, asking control about one that is new here.
    ///
    /// Cancel safety: the question goes on for others who wait for the same key.
    ///
    /// # Errors
    /// Why the key may not be used, or that control cannot be asked.
    pub async fn admit(
        &self,
        key: ApiKey<'_>,
        digest: [u8; 32],
    ) -> Result<Arc<v1::KeyPolicy>, Refusal> {
        let now = Instant::now();
        if let Some(answer) = self.0.admission.known(&digest, now) {
            return answer;
        }
        let request = v1::AdmitRequest {
            key: key.id().to_owned(),
            digest: digest.to_vec().into(),
        };
        let mut client = self.0.client.clone();
        let ask = async move {
            let answer = tokio::time::timeout(ASK_TIMEOUT, client.admit(request)).await;
            match answer {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => Err(unreachable(status.message())),
                Err(_) => Err(unreachable("no answer in time")),
            }
        };
        admit::Admission::ask(self.0.clone(), digest, ask).await
    }

    /// Which provider and credential made an object of this account, if anyone knows.
    ///
    /// # Errors
    /// That another account made it, or that control cannot be asked.
    pub async fn locate(
        &self,
        account: &str,
        object: &str,
    ) -> Result<Option<Arc<v1::Object>>, Refusal> {
        if let Some(known) = self.0.objects.get(account, object) {
            return Ok(Some(known));
        }
        let request = v1::LocateRequest {
            account: account.to_owned(),
            object: object.to_owned(),
        };
        let mut client = self.0.client.clone();
        let answer = match tokio::time::timeout(ASK_TIMEOUT, client.locate(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(unreachable(status.message())),
            Err(_) => return Err(unreachable("no answer in time")),
        };
        if answer.foreign {
            let message = format!("No such object: {object}");
            return Err(Refusal::new(Code::ObjectUnknown, message));
        }
        let found = answer.object.filter(|_| answer.found);
        Ok(found.map(|object| self.0.objects.remember(object)))
    }

    /// Those of the objects that a call names in its body, in their order, which this account made. What nobody made is left
    /// out: the names of fields do not tell for certain that their values are ids.
    ///
    /// # Errors
    /// That another account made one, or that control cannot be asked.
    pub async fn locate_named(
        &self,
        account: &str,
        ids: &[Box<str>],
    ) -> Result<Vec<Arc<v1::Object>>, Refusal> {
        let mut seen = HashSet::new();
        let ids: Vec<&str> = ids
            .iter()
            .map(|id| &**id)
            .filter(|id| seen.insert(*id))
            .collect();
        let mut made = Vec::new();
        for some in ids.chunks(LOCATES_MAX) {
            let located = some.iter().map(|id| self.locate_one(account, id));
            made.extend(try_join_all(located).await?.into_iter().flatten());
        }
        Ok(made)
    }

    async fn locate_one(
        &self,
        account: &str,
        id: &str,
    ) -> Result<Option<Arc<v1::Object>>, Refusal> {
        let objects = &self.0.objects;
        if objects.is_unknown(account, id, Instant::now()) {
            return Ok(None);
        }
        let found = self.locate(account, id).await?;
        if found.is_none() {
            objects.unknown(account, id, Instant::now());
        }
        Ok(found)
    }

    /// Remembers an object that an answer named, so that calls about it need not ask.
    pub fn remember_object(&self, object: v1::Object) {
        self.0.objects.remember(object);
    }

    /// Tells control of an object, at once. Whose one is that an answer only told of, control decides: it is asked.
    pub fn object_made(&self, object: v1::Object) {
        if !object.told {
            self.0.objects.remember(object.clone());
        }
        self.0.reports.object(object);
    }

    /// Whether control has every object that a former start left untold.
    #[must_use]
    pub fn has_told_objects(&self) -> bool {
        self.0.reports.is_caught_up()
    }

    /// Hands over what an exchange consumed: written before this returns, and brought to control at least once.
    pub fn record(&self, record: v1::UsageRecord) {
        self.0.usage.append(record, Instant::now());
    }

    /// The provider credentials this node may use; egress only.
    #[must_use]
    pub fn credentials(&self) -> watch::Receiver<Arc<Held>> {
        self.0.credentials.subscribe()
    }

    /// Whether an operator drains this node.
    #[must_use]
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.0.drained.subscribe()
    }

    /// Says how the node's state is read for reports. The first word counts.
    pub fn set_status_source(&self, source: StatusSource) {
        let _ = self.0.status.set(source);
    }

    /// Has the node's state reported now instead of at the next turn: others route by it.
    pub fn report_soon(&self) {
        self.0.urgent.send_modify(|count| *count += 1);
    }

    /// Gives what control says of upstreams to `sink`, beginning with what was said so far. The last sink counts.
    pub fn set_scores_sink(&self, sink: ScoresSink) {
        self.0.scores.pour_into(sink, Instant::now());
    }

    /// Counts in metrics what waits for control, and what was lost.
    pub fn show(&self, telemetry: &Telemetry) {
        let counts = &self.0.usage.counts;
        let objects = &self.0.reports.counts;
        telemetry.register(
            "usage_journal_bytes",
            "Usage on disk that control does not have yet",
            counts.bytes.clone(),
        );
        telemetry.register(
            "usage_in_memory",
            "Usage records that the disk does not take and control does not have yet",
            counts.in_memory.clone(),
        );
        for (name, help, counter) in [
            (
                "usage_dropped",
                "Usage records lost, as disk and memory were full",
                &counts.dropped,
            ),
            (
                "usage_refused",
                "Usage records that control would never take",
                &counts.refused,
            ),
            (
                "usage_disk_faults",
                "Writes of usage that the disk refused",
                &counts.disk_faults,
            ),
            (
                "objects_dropped",
                "Objects that control was not told of, as too many waited",
                &objects.dropped,
            ),
            (
                "objects_refused",
                "Objects that control would never take",
                &objects.refused,
            ),
            (
                "objects_told_again",
                "Batches of objects told more than once, as a stream broke or control could not keep them",
                &objects.again,
            ),
        ] {
            telemetry.register(name, help, counter.clone());
        }
    }
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControlPlane(revision {})", self.routes().revision)
    }
}

impl Service {
    /// Keeps the stream to control and delivers reports until `stop`; then delivers what is left, for a moment.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            control,
            registration,
            outbox,
            keys_behind,
        } = self;
        let epoch = registration.register.epoch;
        let (client, usage) = (control.0.client.clone(), Arc::clone(&control.0.usage));
        let (keys, admission) = (
            Arc::clone(&control.0.keys),
            Arc::clone(&control.0.admission),
        );
        let serving = async {
            tokio::join!(
                sync::run(&control, registration, outbox, stop.clone()),
                usage::deliver::run(client, epoch, usage, stop),
            )
        };
        tokio::select! {
            _ = serving => {}
            // Never ends before: this holds the other end of its queue.
            () = keys.write_behind(keys_behind, admission) => {}
        }
    }
}

fn unreachable(why: &str) -> Refusal {
    tracing::warn!(why, "control could not be asked");
    Refusal::new(
        Code::ControlUnreachable,
        "the network's control plane cannot be asked about this at the moment",
    )
    .after_ms(1_000)
}
