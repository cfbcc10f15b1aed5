//! Calls providers. The only room of the network where a provider's key is ever held.
//!
//! The road of an exchange, in this order: `receive` (may it run here), `dedupe` (at most once), then for each call
//! `credential` (with which key), `translate` (as which request), `provider` (over a warm connection), and for the answer
//! `meter` on the way back to the ingress. `attempt` strings the calls together, `answer` the way back.
//!
//! What an exchange consumed is handed to the journal before the end of its answer leaves.
//!
//! Absences: nothing here retries what a provider may have begun, follows a redirect, parses a body, or logs a
//! key, a prompt or an answer.

// The road.
mod carry;

mod ahead;

pub mod receive;

pub mod dedupe;

pub mod attempt;

pub mod credential;

pub mod translate;

pub mod provider;

pub mod outlet;

pub mod answer;

pub mod meter;

pub mod websocket;

// Answers that are given again.
pub mod kept;

pub mod replay;

// What happens beside the road.
mod balances;

mod probes;

// What the road is timed by.
mod watch;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::{control::v1 as control, dialect::operation, tunnel::v1};

use self::{
    answer::{Ending, micros},
    dedupe::Dedupe,
    kept::Kept,
    probes::Probes,
    provider::{Metrics, Providers, Row, TlsError},
    receive::{Exchange, Seats},
};
use crate::{
    config::Role,
    identity::StateKeys,
    lookup::HashMap,
    telemetry::{self, Telemetry},
    tunnel::ArrivalHandler,
};

/// Where an egress tells what happened. Neither call may block.
pub trait Reports: fmt::Debug + Send + Sync {
    /// An exchange has ended, and consumed this.
    fn record(&self, record: control::UsageRecord);

    /// There is an object that later calls may name.
    fn object_made(&self, object: control::Object);
}

/// Who this egress is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node's name.
    pub node: Arc<str>,
    /// Its incarnation.
    pub epoch: u64,
    /// Folder of the answers that outlive their clients.
    pub answers: PathBuf,
    /// Bytes of them on disk.
    pub answers_bytes_max: u64,
    /// What they are sealed with.
    pub keys: StateKeys,
}

/// Everything that exchanges share.
#[derive(Debug)]
pub struct Room {
    node: Arc<str>,
    epoch: u64,
    dedupe: Arc<Dedupe>,
    kept: Arc<Kept>,
    keys: credential::Pool,
    gauges: credential::Gauges,
    providers: Providers,
    probes: Probes,
    operations: HashMap<&'static str, &'static operation::Operation>,
    reports: Arc<dyn Reports>,
    telemetry: Telemetry,
    /// The exchanges that run, by who sent them.
    seats: Arc<Seats>,
    /// The places for bodies that wait for what is asked.
    waits: Arc<Semaphore>,
    given: replay::Given,
    draining: AtomicBool,
    /// The list of providers is another.
    changed: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The egress role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Egress(Arc<Room>);

impl Egress {
    /// An egress without providers and keys yet. `tls_roots` are trusted besides the system's.
    ///
    /// # Errors
    /// [`TlsError`] when the roots cannot be read.
    pub fn new(
        identity: Identity,
        tls_roots: Option<&std::path::Path>,
        telemetry: &Telemetry,
        reports: Arc<dyn Reports>,
    ) -> Result<Self, TlsError> {
        let tasks = TaskTracker::new();
        let metrics = Metrics::default();
        metrics.register(telemetry);
        let kept = Kept::new(identity.answers, identity.answers_bytes_max, &identity.keys);
        let gauges = credential::Gauges::default();
        gauges.register(telemetry);
        let seats = Arc::new(Seats::default());
        seats.register(telemetry);
        Ok(Self(Arc::new(Room {
            node: identity.node,
            epoch: identity.epoch,
            dedupe: Arc::default(),
            kept: Arc::new(kept),
            keys: credential::Pool::new(Instant::now()),
            gauges,
            providers: Providers::new(tls_roots, metrics, tasks.clone())?,
            probes: Probes::default(),
            operations: operation::all().iter().map(|row| (row.name, row)).collect(),
            reports,
            telemetry: telemetry.clone(),
            seats,
            waits: Arc::new(Semaphore::new(ahead::WAITING_MAX)),
            given: replay::Given::default(),
            draining: AtomicBool::new(false),
            changed: Notify::new(),
            tasks,
            stop: CancellationToken::new(),
        })))
    }

    /// The node that this egress is.
    pub fn node(&self) -> &str {
        &self.0.node
    }

    /// Replaces the list of providers that may be called; [`Self::tend`] connects to new ones at once.
    pub fn take_providers(&self, rows: &[Row]) {
        self.0.providers.replace(rows);
        self.0.changed.notify_one();
    }

    /// Replaces the keys.
    pub fn take_credentials(&self, sent: &control::Credentials) {
        self.0.keys.replace(sent);
    }

    /// Looks after names, connections and kept answers until [`Self::drain`]; the first look opens connections.
    pub async fn tend(&self) {
        tokio::join!(self.tend_providers(), self.0.kept.tend(&self.0.stop));
    }

    async fn tend_providers(&self) {
        let mut tick = tokio::time::interval(provider::TEND_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.0.stop.cancelled() => return,
                () = self.0.changed.notified() => {}
                _ = tick.tick() => {}
            }
            tokio::select! {
                () = self.0.stop.cancelled() => return,
                () = self.0.providers.tend() => {}
            }
        }
    }

    /// Asks for balances until [`Self::drain`].
    pub async fn ask_for_balances(&self) {
        let mut due = balances::Due::default();
        let mut tick = tokio::time::interval(balances::LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let asking = async {
            loop {
                tick.tick().await;
                balances::look(&self.0, &mut due).await;
                self.0.gauges.tell(&self.status());
            }
        };
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = asking => {}
        }
    }

    /// Asks providers that want it whether they are there, until [`Self::drain`].
    pub async fn probe(&self) {
        let mut tick = tokio::time::interval(probes::LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let asking = async {
            loop {
                tick.tick().await;
                probes::look(&self.0).await;
            }
        };
        tokio::select! {
            () = self.0.stop.cancelled() => {}
            () = asking => {}
        }
    }

    /// What the tunnel calls with every exchange that arrives.
    pub fn handler(&self) -> ArrivalHandler {
        let room = Arc::clone(&self.0);
        Arc::new(move |arrival| carry::serve(Arc::clone(&room), arrival))
    }

    /// The state of every key.
    pub fn status(&self) -> Vec<control::CredentialStatus> {
        self.0.keys.status(Instant::now())
    }

    /// How the keys of each provider stand together.
    pub fn pools(&self) -> Vec<control::PoolStatus> {
        let now = Instant::now();
        let mut pools = self.0.keys.pools(now);
        for pool in &mut pools {
            self.0.probes.tell(pool, now);
        }
        pools
    }

    /// Waits until a key came into use or went out of it, and shows that.
    ///
    /// Cancel safety: nothing is lost.
    pub async fn news(&self) {
        self.0.keys.news().await;
        self.0.gauges.tell(&self.status());
    }

    /// How many exchanges run.
    pub fn exchanges(&self) -> usize {
        self.0.seats.taken()
    }

    /// Takes new exchanges, or refuses them because the node is drained.
    pub fn set_draining(&self, draining: bool) {
        self.0.draining.store(draining, Ordering::Relaxed);
    }

    /// Takes no more exchanges and waits until those that run, and kept answers that are read, have ended, at most for `grace`.
    /// Returns how many exchanges are left.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.set_draining(true);
        self.0.stop.cancel();
        let ended = async {
            while self.exchanges() > 0 || self.0.given.any() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // How many are left is said by the number itself.
        let _ = tokio::time::timeout(grace, ended).await;
        self.exchanges()
    }
}

impl Room {
    /// Tells at once of an object that later calls may name.
    /// `told`: not made by the call, but told of in its answer.
    fn object_made(&self, exchange: &Exchange, id: &str, told: bool) {
        self.reports.object_made(control::Object {
            id: id.to_owned(),
            account: exchange.head.account.clone(),
            provider: exchange.head.provider.clone(),
            credential: exchange
                .credential
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
            operation: exchange.head.operation.clone(),
            model: exchange.head.model.clone(),
            made_unix_ms: unix_ms(),
            told,
        });
    }

    /// An attempt without an answer consumed nothing: it is told, not recorded, and another one may run.
    fn refused(&self, exchange: &mut Exchange, code: &str) {
        exchange.running.refused();
        self.tell(exchange, telemetry::Outcome::Refused, code, None);
    }

    /// The one line of an exchange, and its record unless that was written before its last bytes left.
    fn ended(&self, exchange: &mut Exchange, ending: Ending) {
        self.record(exchange, ending);
        let (outcome, reason) = outcome_of(ending);
        let usage = exchange.meter.usage();
        self.tell(exchange, outcome, reason, usage.as_ref());
    }

    /// The one record of an exchange: before the end of its answer leaves, so that nobody has a whole answer that is not
    /// accounted for. A client that goes away while the end is on its way has consumed the same.
    fn record(&self, exchange: &mut Exchange, ending: Ending) {
        if std::mem::replace(&mut exchange.recorded, true) {
            return;
        }
        let (outcome, _) = outcome_of(ending);
        let (meter, usage) = (&exchange.meter, exchange.meter.usage());
        let head = &exchange.head;
        self.reports.record(control::UsageRecord {
            exchange: exchange.id.to_bytes().to_vec().into(),
            account: head.account.clone(),
            key: head.key.clone(),
            operation: head.operation.clone(),
            model: head.model.clone(),
            provider: head.provider.clone(),
            upstream_model: head.upstream_model.clone(),
            credential: exchange
                .credential
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
            egress: self.node.to_string(),
            ended_unix_ms: unix_ms(),
            status: u32::from(exchange.status),
            usage,
            request_bytes: exchange.upload.sent_bytes(),
            response_bytes: meter.response_bytes,
            first_byte_us: micros(meter.first_byte().unwrap_or_default()),
            duration_us: micros(meter.elapsed(Instant::now())),
            outcome: outcome.as_str().to_owned(),
        });
    }

    fn tell(
        &self,
        exchange: &Exchange,
        outcome: telemetry::Outcome,
        reason: &str,
        usage: Option<&v1::Usage>,
    ) {
        let head = &exchange.head;
        self.telemetry.exchange_ended(&telemetry::Exchange {
            role: Role::Egress,
            exchange: exchange.id,
            key: &head.key,
            account: &head.account,
            model: &head.model,
            operation: &head.operation,
            egress: &self.node,
            upstream: &head.provider,
            credential: exchange.credential.as_deref().unwrap_or_default(),
            attempts: exchange.tries,
            status: exchange.status,
            request_bytes: exchange.upload.sent_bytes(),
            response_bytes: exchange.meter.response_bytes,
            first_byte: exchange.meter.first_byte(),
            duration: exchange.meter.elapsed(Instant::now()),
            outcome,
            reason,
            usage,
        });
    }
}

const fn outcome_of(ending: Ending) -> (telemetry::Outcome, &'static str) {
    match ending {
        Ending::Whole => (telemetry::Outcome::Whole, ""),
        Ending::Broken(why) => (telemetry::Outcome::Broken, why),
        Ending::Cancelled => (telemetry::Outcome::Cancelled, ""),
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
