//! Calls providers. The only room of the network where a provider's key is ever held.
//!
//! The road of an exchange, in this order: `receive` (may it run here), `dedupe` (at most once), then for each call
//! `credential` (with which key), `translate` (as which request), `provider` (over a warm connection), and for the answer
//! `meter` on the way back to the ingress. `attempt` strings the calls together, `answer` the way back.
//!
//! Absences: nothing here retries what a provider may have begun, follows a redirect, parses a body, or logs a
//! key, a prompt or an answer. A journal that makes outcomes durable comes with money.

// The road.
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

// What the road is timed by.
mod watch;

use std::{
    fmt,
    future::pending,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;
use vector_proto::{
    control::v1 as control, dialect::operation, id::ExchangeId, refusal::Code, tunnel::v1,
};

use self::{
    answer::{Ending, micros},
    dedupe::Dedupe,
    kept::{Kept, Place},
    outlet::Outlet,
    provider::{Metrics, Providers, Row, TlsError, Upload},
    receive::{Exchange, receive, untouched},
    watch::Watch,
};
use crate::{
    config::Role,
    lookup::HashMap,
    telemetry::{self, Telemetry},
    tunnel::{Arrival, ArrivalHandler, Cancelled, RequestBody},
};

/// Where an egress tells what happened. Neither call may block.
pub trait Reports: fmt::Debug + Send + Sync {
    /// An exchange has ended, and consumed this.
    fn record(&self, record: control::UsageRecord);

    /// An object was made that later calls may name.
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
    operations: HashMap<&'static str, &'static operation::Operation>,
    reports: Arc<dyn Reports>,
    telemetry: Telemetry,
    /// Exchanges that run.
    taken: Arc<AtomicUsize>,
    draining: AtomicBool,
    /// The list of providers is another.
    changed: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The egress role. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Egress(Arc<Room>);

/// What came of a request.
enum Outcome {
    Ended(Ending),
    Refused(String),
}

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
        let kept = Kept::new(identity.answers, identity.answers_bytes_max);
        let gauges = credential::Gauges::default();
        gauges.register(telemetry);
        Ok(Self(Arc::new(Room {
            node: identity.node,
            epoch: identity.epoch,
            dedupe: Arc::default(),
            kept: Arc::new(kept),
            keys: credential::Pool::new(Instant::now()),
            gauges,
            providers: Providers::new(tls_roots, metrics, tasks.clone())?,
            operations: operation::all().iter().map(|row| (row.name, row)).collect(),
            reports,
            telemetry: telemetry.clone(),
            taken: Arc::default(),
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

    /// What the tunnel calls with every exchange that arrives.
    pub fn handler(&self) -> ArrivalHandler {
        let room = Arc::clone(&self.0);
        Arc::new(move |arrival| Box::pin(serve(Arc::clone(&room), arrival)))
    }

    /// The state of every key.
    pub fn status(&self) -> Vec<control::CredentialStatus> {
        self.0.keys.status(Instant::now())
    }

    /// How the keys of each provider stand together.
    pub fn pools(&self) -> Vec<control::PoolStatus> {
        self.0.keys.pools(Instant::now())
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
        self.0.taken.load(Ordering::Relaxed)
    }

    /// Takes new exchanges, or refuses them because the node is drained.
    pub fn set_draining(&self, draining: bool) {
        self.0.draining.store(draining, Ordering::Relaxed);
    }

    /// Takes no more exchanges and waits until those that run have ended, at most for `grace`. Returns how many are left.
    pub async fn drain(&self, grace: Duration) -> usize {
        self.set_draining(true);
        self.0.stop.cancel();
        let ended = async {
            while self.exchanges() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // How many are left is said by the number itself.
        let _ = tokio::time::timeout(grace, ended).await;
        self.exchanges()
    }
}

/// Carries one exchange from its arrival to the end of its answer.
async fn serve(room: Arc<Room>, mut arrival: Arrival) {
    if arrival.open.replay.is_some() || arrival.open.adopt.is_some() {
        // Rare: it must not count in the size of every exchange.
        return Box::pin(replay::serve(room, arrival)).await;
    }
    let mut exchange = match receive(&room, &mut arrival, Instant::now()) {
        Ok(exchange) => exchange,
        Err(refused) => return arrival.refuse(*refused).await,
    };
    let keep = arrival.open.keep.take();
    let place = match begin(&room, &exchange, keep.is_some()) {
        Ok(place) => place,
        Err(full) => {
            exchange.running.refused();
            let refused = untouched(Code::Overloaded, full.to_string(), true);
            return arrival.refuse(refused).await;
        }
    };
    let Ok((body, answer)) = arrival.accept().await else {
        // Nobody heard that it was accepted, and nothing was executed.
        return exchange.running.refused();
    };
    let cancelled = answer.canceller();
    let reading = place.as_ref().and_then(|place| place.recording().read());
    let (outlet, followed) = match (&place, reading) {
        (Some(place), Some(reading)) => {
            let first = replay::give(reading, answer, replay::Copy::First);
            room.tasks.spawn(first);
            (Outlet::Kept(Arc::clone(place.recording())), None)
        }
        _ => (Outlet::Tunnel(answer), Some(cancelled)),
    };
    let begun = AtomicBool::new(false);
    let outcome = {
        let span = room
            .telemetry
            .span(Role::Egress, exchange.id, &exchange.head.traceparent);
        let id = exchange.id;
        let run = pin!(run(&room, &mut exchange, body, outlet, &begun).instrument(span));
        tokio::select! {
            biased;
            outcome = run => outcome,
            () = unwanted(&room, id, followed, &begun) => Outcome::Ended(Ending::Cancelled),
        }
    };
    if let Some(recording) = room.kept.adopted(exchange.id) {
        // Adopted too late, or given up: who waits for it is told. What has ended stays as it is.
        recording.end(kept::End::Lost);
    }
    match outcome {
        Outcome::Refused(code) => room.refused(&mut exchange, &code),
        Outcome::Ended(ending) => room.ended(&exchange, ending),
    }
    if let (Some(place), Some(keep)) = (place, keep) {
        place.put_away(Duration::from_millis(keep.kept_ms)).await;
    }
}

/// A recording for an exchange that is to be kept.
fn begin(room: &Room, exchange: &Exchange, wanted: bool) -> Result<Option<Place>, kept::Full> {
    // A conversation over a WebSocket has two sides: there is no answer to give again.
    if !wanted || exchange.head.websocket {
        return Ok(None);
    }
    let now = Instant::now();
    let place = room.kept.begin(exchange.id, &exchange.head.account, now)?;
    Ok(Some(place))
}

/// Resolves once nobody wants the answer any more. A kept one is always wanted, an adopted one for a while.
async fn unwanted(room: &Room, id: ExchangeId, followed: Option<Cancelled>, begun: &AtomicBool) {
    let Some(cancelled) = followed else {
        return pending().await;
    };
    cancelled.cancelled().await;
    if !begun.load(Ordering::Relaxed)
        && let Some(recording) = room.kept.adopted(id)
    {
        recording.given_up().await;
    }
}

/// Everything between acceptance and the answer's end.
///
/// `begun` is set once the answer goes to the ingress that asked, and can no longer be kept.
async fn run(
    room: &Room,
    exchange: &mut Exchange,
    body: RequestBody,
    outlet: Outlet,
    begun: &AtomicBool,
) -> Outcome {
    let mut watch = Watch::new(exchange.deadline, Instant::now());
    let answer = match outlet {
        Outlet::Tunnel(answer) if exchange.head.websocket => {
            let carried =
                Box::pin(websocket::carry(room, exchange, body, answer, &mut watch)).await;
            return match carried {
                Ok(ending) => Outcome::Ended(ending),
                Err((refused, answer)) => say_no(*refused, Outlet::Tunnel(answer)).await,
            };
        }
        outlet => outlet,
    };
    let (length, splice) = (exchange.head.body_bytes, translate::splice(&exchange.head));
    let taken = Upload::take(body, length, splice);
    match Box::pin(watch.within(taken, || 0)).await {
        Ok(Ok(upload)) => exchange.upload = upload,
        Ok(Err(_)) => return Outcome::Ended(Ending::Cancelled),
        Err(expired) => {
            let refused = attempt::Fault::of_time(expired, false).refusal(false, 0);
            return say_no(refused, answer).await;
        }
    }
    // Boxed, they are gone while the answer streams.
    let attempted = Box::pin(attempt::attempt(room, exchange, &mut watch)).await;
    let answer = answer.unless_adopted(&room.kept, exchange.id, &exchange.head.account);
    begun.store(matches!(answer, Outlet::Tunnel(_)), Ordering::Relaxed);
    match attempted {
        Err(refused) => say_no(refused, answer).await,
        Ok(answered) => {
            let ending = answer::pass_on(room, exchange, answered, answer, &mut watch).await;
            Outcome::Ended(ending)
        }
    }
}

async fn say_no(refused: v1::Refused, answer: Outlet) -> Outcome {
    let code = refused.code.clone();
    answer.refuse(refused).await;
    Outcome::Refused(code)
}

impl Room {
    /// Tells at once of an object that later calls may name.
    fn object_made(&self, exchange: &Exchange, id: &str) {
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
        });
    }

    /// An attempt without an answer consumed nothing: it is told, not recorded, and another one may run.
    fn refused(&self, exchange: &mut Exchange, code: &str) {
        exchange.running.refused();
        self.tell(exchange, telemetry::Outcome::Refused, code, None);
    }

    /// The one line and the one record of an exchange.
    fn ended(&self, exchange: &Exchange, ending: Ending) {
        let (outcome, reason) = match ending {
            Ending::Whole => (telemetry::Outcome::Whole, ""),
            Ending::Broken(why) => (telemetry::Outcome::Broken, why),
            Ending::Cancelled => (telemetry::Outcome::Cancelled, ""),
        };
        let (meter, usage) = (&exchange.meter, exchange.meter.usage());
        self.tell(exchange, outcome, reason, usage.as_ref());
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

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
