//! The long stream to control: registers, takes what control pushes, reports what changed.

use std::{
    collections::VecDeque,
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use vector_proto::control::v1::{
    self, Applied, ControlEvent, NodeEvent, ObjectsMade, Rejected, control_event, node_event::Event,
};

use super::{ControlPlane, Registration, snapshot};

/// Pause before the stream is opened again: doubles, with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Time for control to take the registration.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports: at most this often, and at least that often.
const STATUS_EVERY_MIN: Duration = Duration::from_millis(250);
const STATUS_EVERY_MAX: Duration = Duration::from_secs(10);

/// What others route by: told this soon, so that several changes at once make one report; and so many times beyond the
/// usual pace, which come back one at a turn.
const URGENT_EVERY: Duration = Duration::from_millis(2);
const URGENT_MAX: u32 = 8;

/// Moments this close are told as one.
const SAME_MOMENT_MS: u64 = 100;

/// Events on their way to control.
const EVENTS_MAX: usize = 64;

/// Objects told lately, which are told again when the stream breaks: nobody acknowledges them one by one.
const TOLD_MAX: usize = 4096;
const TOLD_FOR: Duration = Duration::from_secs(30);

/// Keeps the stream until `stop`.
pub(super) async fn run(
    control: &ControlPlane,
    registration: Registration,
    objects: mpsc::Receiver<v1::Object>,
    stop: CancellationToken,
) {
    let mut session = Session {
        control,
        registration,
        objects,
        told: VecDeque::new(),
    };
    let mut pause = BACKOFF_MIN;
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        let opened = stop
            .run_until_cancelled(tokio::time::timeout(OPEN_TIMEOUT, session.open()))
            .await;
        let error = match opened {
            None => break,
            Some(Ok(Ok((events, stream)))) => {
                (pause, failures) = (BACKOFF_MIN, 0);
                control.0.connected.send_replace(true);
                tracing::info!("control connected");
                let ended = session.hold(&events, stream, &stop).await;
                control.0.connected.send_replace(false);
                ended
            }
            Some(Ok(Err(status))) => status.message().to_owned(),
            Some(Err(_)) => "no answer in time".to_owned(),
        };
        if stop.is_cancelled() {
            break;
        }
        failures += 1;
        if failures % 10 == 1 {
            tracing::warn!(
                error,
                failures,
                "control is not connected; serving from what is known"
            );
        }
        let _ = stop
            .run_until_cancelled(tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())))
            .await;
        pause = (pause * 2).min(BACKOFF_MAX);
    }
}

struct Session<'a> {
    control: &'a ControlPlane,
    registration: Registration,
    objects: mpsc::Receiver<v1::Object>,
    told: VecDeque<(Instant, v1::Object)>,
}

type Events = mpsc::Sender<NodeEvent>;

impl Session<'_> {
    async fn open(&self) -> Result<(Events, Streaming<ControlEvent>), tonic::Status> {
        let (events, outgoing) = mpsc::channel(EVENTS_MAX);
        let inner = &self.control.0;
        let register = v1::Register {
            revision: inner.routes.load().revision,
            keys_revision: inner.admission.revision(),
            ..self.registration.register.clone()
        };
        // Cannot fail: the channel is new and its receiver is here.
        let _ = events.try_send(event(Event::Register(register)));
        let mut client = inner
            .client
            .clone()
            .max_decoding_message_size(snapshot::SNAPSHOT_BYTES_MAX);
        let stream = client.sync(ReceiverStream::new(outgoing)).await?;
        Ok((events, stream.into_inner()))
    }

    /// Serves one stream until it ends; says why it did.
    async fn hold(
        &mut self,
        events: &Events,
        mut stream: Streaming<ControlEvent>,
        stop: &CancellationToken,
    ) -> String {
        let now = Instant::now();
        self.told
            .retain(|(at, _)| now.saturating_duration_since(*at) < TOLD_FOR);
        let again: Vec<v1::Object> = self.told.iter().map(|(_, object)| object.clone()).collect();
        if !again.is_empty()
            && events
                .send(event(Event::ObjectsMade(ObjectsMade { objects: again })))
                .await
                .is_err()
        {
            return "stream closed".into();
        }
        let mut made = Vec::new();
        let control = self.control;
        let mut reporting = std::pin::pin!(report_status(control, events));
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    // The last report says that the node drains.
                    if let Some(source) = control.0.status.get() {
                        let _ = events.try_send(event(Event::Status(source())));
                    }
                    return "stopping".into();
                }
                message = stream.message() => match message {
                    Ok(Some(message)) => {
                        if let Some(answer) = self.take(message).await && events.send(event(answer)).await.is_err() {
                            return "stream closed".into();
                        }
                    }
                    Ok(None) => return "control closed the stream".into(),
                    Err(status) => return status.message().to_owned(),
                },
                count = self.objects.recv_many(&mut made, 256) => {
                    if count == 0 { pending::<()>().await }
                    if !self.tell(&mut made, events).await {
                        return "stream closed".into();
                    }
                }
                () = &mut reporting => return "stream closed".into(),
            }
        }
    }

    async fn tell(&mut self, made: &mut Vec<v1::Object>, events: &Events) -> bool {
        let now = Instant::now();
        for object in made.iter() {
            if self.told.len() == TOLD_MAX {
                self.told.pop_front();
            }
            self.told.push_back((now, object.clone()));
        }
        let objects = std::mem::take(made);
        events
            .send(event(Event::ObjectsMade(ObjectsMade { objects })))
            .await
            .is_ok()
    }

    async fn take(&self, message: ControlEvent) -> Option<Event> {
        let inner = &self.control.0;
        match message.event? {
            control_event::Event::Snapshot(snapshot) => Some(self.put_in_force(snapshot).await),
            control_event::Event::Credentials(credentials) => {
                tracing::info!(
                    credentials = credentials.credentials.len(),
                    "credentials received"
                );
                let credentials = Arc::new(credentials);
                inner.credentials.send_replace(Arc::clone(&credentials));
                self.put_away(credentials).await;
                None
            }
            control_event::Event::KeysChanged(changed) => {
                inner.admission.changed(&changed);
                tracing::info!(keys = changed.keys.len(), all = changed.all, "keys changed");
                let (keys, admission) = (Arc::clone(&inner.keys), Arc::clone(&inner.admission));
                // It tells the log itself what went wrong.
                let _ =
                    tokio::task::spawn_blocking(move || keys.changed(&changed, &admission)).await;
                None
            }
            control_event::Event::Scores(scores) => {
                inner.scores.take(scores);
                None
            }
            control_event::Event::Drain(drain) => {
                inner.drained.send_replace(drain.on);
                tracing::info!(on = drain.on, "drain");
                None
            }
        }
    }

    /// For a start without control.
    async fn put_away(&self, credentials: Arc<v1::Credentials>) {
        let (control, dir) = (self.control.clone(), self.registration.state_dir.clone());
        let kept = tokio::task::spawn_blocking(move || {
            let safe = control.0.safe.as_ref();
            safe.map_or(Ok(()), |safe| safe.put(&dir, &credentials))
        });
        if let Ok(Err(error)) = kept.await {
            tracing::error!(%error, "credentials could not be kept on disk; a restart without control would use older ones");
        }
    }

    async fn put_in_force(&self, snapshot: v1::Snapshot) -> Event {
        let inner = &self.control.0;
        let (revision, region) = (snapshot.revision, &self.registration.register.region);
        match snapshot::check(&snapshot, region) {
            Ok(routes) => {
                inner.routes.store(routes.into());
                inner.revision.send_replace(revision);
                tracing::info!(revision, "routes in force");
                let dir = self.registration.state_dir.clone();
                let saved =
                    tokio::task::spawn_blocking(move || snapshot::save(&dir, &snapshot)).await;
                if let Ok(Err(error)) = saved {
                    tracing::error!(%error, revision, "the snapshot could not be kept on disk; a restart without control would route by an older one");
                }
                Event::Applied(Applied { revision })
            }
            Err(rejection) => {
                let kept = inner.routes.load().revision;
                tracing::error!(revision, kept, %rejection, "routes rejected");
                Event::Rejected(Rejected {
                    revision,
                    reason: rejection.to_string(),
                    kept,
                })
            }
        }
    }
}

/// Reports the node's state when it changed, and now and then when it did not. Ends when the stream does.
///
/// What others route by is told within [`URGENT_EVERY`], as long as that does not happen all the time; everything
/// else at the next turn.
async fn report_status(control: &ControlPlane, events: &Events) {
    let mut last: Option<(Instant, v1::Status)> = None;
    let mut ticks = tokio::time::interval(STATUS_EVERY_MIN);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut spare = URGENT_MAX;
    loop {
        let urgent = async {
            if spare == 0 {
                pending::<()>().await;
            }
            control.0.urgent.notified().await;
        };
        tokio::select! {
            biased;
            _ = ticks.tick() => spare = URGENT_MAX.min(spare + 1),
            () = urgent => {
                spare -= 1;
                tokio::time::sleep(URGENT_EVERY).await;
            }
        }
        let Some(source) = control.0.status.get() else {
            continue;
        };
        let status = source();
        let due = last.as_ref().is_none_or(|(at, said)| {
            let age = at.elapsed();
            age >= STATUS_EVERY_MAX || differs(said, &status, age)
        });
        if due {
            if events
                .send(event(Event::Status(status.clone())))
                .await
                .is_err()
            {
                return;
            }
            last = Some((Instant::now(), status));
        }
    }
}

/// Whether the difference is worth telling at once: counters and round trips alone are not. `age`: how long ago `a` was told.
fn differs(a: &v1::Status, b: &v1::Status, age: Duration) -> bool {
    let shape = |status: &v1::Status| {
        let links: Vec<_> = status
            .links
            .iter()
            .map(|link| (link.peer.clone(), link.address.clone(), link.state))
            .collect();
        let credentials: Vec<_> = status
            .credentials
            .iter()
            .map(|one| (one.credential.clone(), one.state))
            .collect();
        (status.draining, links, credentials)
    };
    shape(a) != shape(b) || pools_differ(a, b, age) || upstreams_differ(a, b, age)
}

/// Whether two times to come, the first told `age` ago, are another moment.
fn moved(before_ms: u64, now_ms: u64, age: Duration) -> bool {
    let expected = before_ms.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    (expected == 0) != (now_ms == 0) || expected.abs_diff(now_ms) > SAME_MOMENT_MS
}

fn pools_differ(a: &v1::Status, b: &v1::Status, age: Duration) -> bool {
    a.pools.len() != b.pools.len()
        || a.pools.iter().zip(&b.pools).any(|(one, other)| {
            one.provider != other.provider
                || (one.keys, one.ready) != (other.keys, other.ready)
                || moved(one.rests_ms, other.rests_ms, age)
        })
}

fn upstreams_differ(a: &v1::Status, b: &v1::Status, age: Duration) -> bool {
    // A fifth more or less of anything; the least difference that counts keeps small numbers quiet.
    let apart =
        |one: u64, other: u64, least: u64| one.abs_diff(other) > least.max(one.max(other) / 5);
    a.upstreams.len() != b.upstreams.len()
        || a.upstreams.iter().zip(&b.upstreams).any(|(one, other)| {
            (&one.provider, &one.egress) != (&other.provider, &other.egress)
                || moved(one.ejected_ms, other.ejected_ms, age)
                || apart(one.first_byte_us, other.first_byte_us, 20_000)
                || apart(
                    one.success_permille.into(),
                    other.success_permille.into(),
                    50,
                )
        })
}

const fn event(event: Event) -> NodeEvent {
    NodeEvent { event: Some(event) }
}
