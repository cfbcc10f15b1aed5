//! The long streams to two replicas of control: register, take what control pushes, report what changed.
//!
//! Every report goes over both, and the newer of what comes over them is taken, so that the death of a replica leaves no
//! gap. Objects go over one of them, and again over the other when that breaks.

use std::{
    collections::VecDeque,
    future::pending,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{MutexGuard, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use vector_proto::control::v1::{
    self, Applied, ControlEvent, NodeEvent, ObjectsMade, Rejected, control_event,
    node_client::NodeClient, node_event::Event,
};

use super::{
    ControlPlane, Registration, STREAMS,
    seats::{Offer, Seats, order},
    snapshot,
    tell::report_status,
};

/// Pause before a stream is opened again: doubles, with jitter. The longest is part of how long a control that comes back
/// after an outage waits for its nodes.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A first stream that is not at the common replica looks for it again after this, with jitter.
const RETURN: Duration = Duration::from_secs(30);

/// Time for control to take the registration.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Events on their way to control.
const EVENTS_MAX: usize = 64;

/// Objects of one message. Control takes no more than 2,000 at once.
const OBJECTS_MAX: usize = 256;

/// Objects told lately, which are told again when the stream breaks: nobody acknowledges them one by one.
const TOLD_MAX: usize = 4096;
const TOLD_FOR: Duration = Duration::from_secs(30);

/// Keeps the streams until `stop`.
pub(super) async fn run(
    control: &ControlPlane,
    registration: Registration,
    objects: mpsc::Receiver<v1::Object>,
    stop: CancellationToken,
) {
    let told = VecDeque::new();
    let node = Node {
        control,
        registration,
        outbox: tokio::sync::Mutex::new(Outbox { objects, told }),
        seats: Mutex::default(),
        in_force: tokio::sync::Mutex::default(),
    };
    let streams = STREAMS.min(control.0.replicas.channels().len());
    let streams = (0..streams).map(|number| node.keep(number, &stop));
    futures_util::future::join_all(streams).await;
}

/// What the streams share.
struct Node<'a> {
    control: &'a ControlPlane,
    registration: Registration,
    /// Held by the stream that delivers.
    outbox: tokio::sync::Mutex<Outbox>,
    seats: Mutex<Seats>,
    /// Digest of the snapshot that control has put in force. Held while another one is.
    in_force: tokio::sync::Mutex<Bytes>,
}

struct Outbox {
    objects: mpsc::Receiver<v1::Object>,
    told: VecDeque<(Instant, v1::Object)>,
}

type Events = mpsc::Sender<NodeEvent>;

impl Node<'_> {
    /// Keeps one stream until `stop`.
    async fn keep(&self, stream: usize, stop: &CancellationToken) {
        let replicas = &self.control.0.replicas;
        let count = replicas.channels().len();
        let order = order(stream, count, self.spread());
        let (mut from, mut failures, mut pause) = (0, 0_usize, BACKOFF_MIN);
        while !stop.is_cancelled() {
            let (replica, place) = self.seats.lock().take(stream, &order, from);
            let opened = stop
                .run_until_cancelled(tokio::time::timeout(OPEN_TIMEOUT, self.open(replica)))
                .await;
            let error = match opened {
                None => break,
                Some(Ok(Ok((events, incoming)))) => {
                    (failures, pause) = (0, BACKOFF_MIN);
                    let lost = stream == 0 && place > 0 && count > STREAMS;
                    self.begin(stream, replica);
                    let ended = tokio::select! {
                        ended = self.hold(stream, &events, incoming, stop) => Some(ended),
                        () = look_again(lost) => None,
                    };
                    self.end(stream);
                    let Some(ended) = ended else {
                        from = 0;
                        continue;
                    };
                    ended
                }
                Some(Ok(Err(status))) => status.message().to_owned(),
                Some(Err(_)) => "no answer in time".to_owned(),
            };
            if stop.is_cancelled() {
                break;
            }
            replicas.leave(replica);
            from = place + 1;
            failures += 1;
            if failures % 10 == 1 {
                let at = &replicas.channels()[replica].0;
                tracing::warn!(
                    control = at,
                    error,
                    failures,
                    "a replica of control is not connected; serving from what is known"
                );
            }
            // The other stream has one of them: this one has tried the rest.
            if failures.is_multiple_of(count.saturating_sub(1).max(1)) {
                let _ = stop
                    .run_until_cancelled(tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())))
                    .await;
                pause = (pause * 2).min(BACKOFF_MAX);
            }
        }
    }

    /// A number that is this node's own and always the same.
    fn spread(&self) -> usize {
        let register = &self.registration.register;
        let name = (
            &register.region,
            &register.tunnel_addresses,
            &register.client_urls,
        );
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(name);
        usize::try_from(hash >> 32).unwrap_or_default()
    }

    fn begin(&self, stream: usize, replica: usize) {
        let inner = &self.control.0;
        self.seats.lock().open(stream);
        inner.scores.opened(stream);
        inner.connected.send_replace(true);
        let at = &inner.replicas.channels()[replica].0;
        tracing::info!(control = at, "control connected");
    }

    fn end(&self, stream: usize) {
        let inner = &self.control.0;
        let mut seats = self.seats.lock();
        seats.close(stream);
        inner.connected.send_replace(seats.any_open());
        drop(seats);
        inner.scores.ended(stream, Instant::now());
    }

    async fn open(
        &self,
        replica: usize,
    ) -> Result<(Events, Streaming<ControlEvent>), tonic::Status> {
        let (events, outgoing) = mpsc::channel(EVENTS_MAX);
        let inner = &self.control.0;
        let register = v1::Register {
            revision: inner.routes.load().revision,
            keys_revision: inner.admission.revision(),
            ..self.registration.register.clone()
        };
        // Cannot fail: the channel is new and its receiver is here.
        let _ = events.try_send(event(Event::Register(register)));
        let channel = inner.replicas.channels()[replica].1.clone();
        let mut client =
            NodeClient::new(channel).max_decoding_message_size(snapshot::SNAPSHOT_BYTES_MAX);
        let stream = client.sync(ReceiverStream::new(outgoing)).await?;
        Ok((events, stream.into_inner()))
    }

    /// Serves one stream until it ends; says why it did.
    async fn hold(
        &self,
        number: usize,
        events: &Events,
        mut stream: Streaming<ControlEvent>,
        stop: &CancellationToken,
    ) -> String {
        let control = self.control;
        let mut outbox: Option<MutexGuard<'_, Outbox>> = None;
        let mut made = Vec::new();
        let mut reporting = std::pin::pin!(report_status(control, events));
        loop {
            let delivering = async {
                match &mut outbox {
                    None => Some(self.outbox.lock().await),
                    Some(outbox) => {
                        if outbox.objects.recv_many(&mut made, OBJECTS_MAX).await == 0 {
                            pending::<()>().await;
                        }
                        None
                    }
                }
            };
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
                        if let Some(answer) = self.take(number, message).await && events.send(event(answer)).await.is_err() {
                            return "stream closed".into();
                        }
                    }
                    Ok(None) => return "control closed the stream".into(),
                    Err(status) => return status.message().to_owned(),
                },
                turn = delivering => {
                    let objects = match turn {
                        Some(mut mine) => {
                            let again = mine.again();
                            outbox = Some(mine);
                            again
                        }
                        None => std::mem::take(&mut made),
                    };
                    if let Some(outbox) = &mut outbox && !outbox.tell(objects, events).await {
                        return "stream closed".into();
                    }
                }
                () = &mut reporting => return "stream closed".into(),
            }
        }
    }

    async fn take(&self, stream: usize, message: ControlEvent) -> Option<Event> {
        let inner = &self.control.0;
        match message.event? {
            control_event::Event::Snapshot(snapshot) => {
                Some(self.put_in_force(stream, snapshot).await)
            }
            control_event::Event::Credentials(credentials) => {
                let offer = Offer {
                    generation: credentials.generation,
                    revision: credentials.revision,
                };
                // One after the other, so that the newer ones are the last on disk too.
                let _turn = self.in_force.lock().await;
                if !self.seats.lock().credentials(stream, offer) {
                    tracing::info!(revision = offer.revision, "older credentials set aside");
                    return None;
                }
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
                inner.scores.take(stream, scores, Instant::now());
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

    async fn put_in_force(&self, stream: usize, snapshot: v1::Snapshot) -> Event {
        let inner = &self.control.0;
        let (revision, region) = (snapshot.revision, &self.registration.register.region);
        let mut in_force = self.in_force.lock().await;
        let offer = Offer {
            generation: 0,
            revision,
        };
        let newest = self.seats.lock().snapshot(stream, offer);
        if !newest || *in_force == snapshot.digest {
            // The other replica was quicker.
            let revision = inner.routes.load().revision;
            return Event::Applied(Applied { revision });
        }
        match snapshot::check(&snapshot, region) {
            Ok(routes) => {
                inner.routes.store(routes.into());
                in_force.clone_from(&snapshot.digest);
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

impl Outbox {
    /// What was told over a stream that broke, and may not have been heard.
    fn again(&mut self) -> Vec<v1::Object> {
        let now = Instant::now();
        self.told
            .retain(|(at, _)| now.saturating_duration_since(*at) < TOLD_FOR);
        self.told.drain(..).map(|(_, object)| object).collect()
    }

    async fn tell(&mut self, objects: Vec<v1::Object>, events: &Events) -> bool {
        let now = Instant::now();
        for object in &objects {
            if self.told.len() == TOLD_MAX {
                self.told.pop_front();
            }
            self.told.push_back((now, object.clone()));
        }
        for part in objects.chunks(OBJECTS_MAX) {
            let objects = part.to_vec();
            let made = Event::ObjectsMade(ObjectsMade { objects });
            if events.send(event(made)).await.is_err() {
                return false;
            }
        }
        true
    }
}

/// Returns when a stream that is not where it belongs should look for its place.
async fn look_again(lost: bool) {
    if !lost {
        pending::<()>().await;
    }
    tokio::time::sleep(RETURN.mul_f64(0.5 + fastrand::f64())).await;
}

pub(super) const fn event(event: Event) -> NodeEvent {
    NodeEvent { event: Some(event) }
}
