//! The long streams to two replicas of control: register, take what control pushes, report what changed.
//!
//! Every report goes over both, and the newer of what comes over them is taken, so that the death of a replica leaves no
//! gap. Objects go over one of them, and again over the other when that breaks. What must be written before it is answered
//! for, snapshots and credentials, is written beside the stream ([`in_force`]), so that a key that was revoked never waits for it.

mod in_force;

use std::{
    future::pending,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{MutexGuard, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use vector_proto::control::{
    REMOVED,
    v1::{
        self, ControlEvent, KeysHeard, NodeEvent, control_event, node_client::NodeClient,
        node_event::Event,
    },
};

use self::in_force::{InForce, Waiting};
use super::{
    ControlPlane, Registration, STREAMS,
    report::Outbox,
    seats::{Seats, order},
    snapshot::{self, News, Put},
    tell::{event, report_status},
};

/// Pause before a stream is opened again: doubles, with jitter. The longest is part of how long a control that comes back
/// after an outage waits for its nodes.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Where control says that the node was removed: it does not change its mind.
const REMOVED_PAUSE: Duration = Duration::from_secs(60);

/// A first stream that is not at the common replica looks for it again after this, with jitter.
const RETURN: Duration = Duration::from_secs(30);

/// Time for control to take the registration.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// Events on their way to control.
const EVENTS_MAX: usize = 64;

/// Keeps the streams until `stop`.
pub(super) async fn run(
    control: &ControlPlane,
    registration: Registration,
    outbox: Outbox,
    stop: CancellationToken,
) {
    let node = Node {
        control,
        registration,
        outbox: tokio::sync::Mutex::new(outbox),
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
    /// The snapshot that control has put in force. Held while another one is.
    in_force: tokio::sync::Mutex<InForce>,
}

type Events = mpsc::Sender<NodeEvent>;

/// How long a stream is kept.
struct Until<'a> {
    stop: &'a CancellationToken,
    /// Ready when it should be at another replica. It ends between two words, never in the middle of what one asks for.
    elsewhere: BoxFuture<'a, ()>,
}

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
                    let until = Until {
                        stop,
                        elsewhere: look_again(lost).boxed(),
                    };
                    let ended = self.hold(stream, &events, incoming, until).await;
                    self.end(stream);
                    let Some(ended) = ended else {
                        from = 0;
                        continue;
                    };
                    ended
                }
                Some(Ok(Err(status))) => {
                    if status.metadata().contains_key(REMOVED) {
                        self.control.0.removed.send_replace(true);
                        pause = REMOVED_PAUSE;
                    }
                    status.message().to_owned()
                }
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
                pause = if pause == REMOVED_PAUSE {
                    BACKOFF_MIN
                } else {
                    (pause * 2).min(BACKOFF_MAX)
                };
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
            deltas: true,
            delta_parts: true,
            hears_keys: true,
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

    /// Serves one stream until it ends; says why it did. Nothing if it is to be left for another replica.
    async fn hold(
        &self,
        number: usize,
        events: &Events,
        stream: Streaming<ControlEvent>,
        until: Until<'_>,
    ) -> Option<String> {
        let mut writing = None;
        let ended = self
            .listen(number, events, stream, &mut writing, until)
            .await;
        if let Some(writing) = writing {
            // Begun, and to be whole before another stream begins the next.
            let _untold: Option<Event> = writing.await;
        }
        ended
    }

    async fn listen<'a>(
        &'a self,
        number: usize,
        events: &Events,
        mut stream: Streaming<ControlEvent>,
        writing: &mut Option<BoxFuture<'a, Option<Event>>>,
        mut until: Until<'_>,
    ) -> Option<String> {
        let control = self.control;
        let mut outbox: Option<MutexGuard<'_, Outbox>> = None;
        let mut waiting = Waiting::default();
        let mut reporting = std::pin::pin!(report_status(control, events));
        loop {
            if writing.is_none() {
                let next = waiting.next();
                *writing = next.map(|event| self.put_to_use(number, event).boxed());
            }
            let written = async {
                match writing.as_mut() {
                    Some(writing) => writing.await,
                    None => pending().await,
                }
            };
            let told = async {
                match &mut outbox {
                    None => Told::Mine(self.outbox.lock().await),
                    Some(outbox) => Told::Objects(outbox.next().await),
                }
            };
            let said = tokio::select! {
                () = &mut until.elsewhere => return None,
                () = until.stop.cancelled() => {
                    // The last report says that the node drains.
                    if let Some(source) = control.0.status.get() {
                        let _ = events.try_send(event(Event::Status(source())));
                    }
                    return Some("stopping".into());
                }
                message = stream.message() => match message {
                    Ok(Some(message)) => {
                        self.heard(number, message, &mut waiting, outbox.as_deref_mut()).await
                    }
                    Ok(None) => return Some("control closed the stream".into()),
                    Err(status) => return Some(status.message().to_owned()),
                },
                answer = written => {
                    *writing = None;
                    answer
                }
                told = told => match told {
                    Told::Mine(mut mine) => {
                        mine.reopened();
                        outbox = Some(mine);
                        None
                    }
                    Told::Objects(made) => Some(Event::ObjectsMade(made)),
                },
                () = &mut reporting => return Some("stream closed".into()),
            };
            if let Some(said) = said
                && events.send(event(said)).await.is_err()
            {
                return Some("stream closed".into());
            }
        }
    }

    /// Takes what control says, and answers what control is to hear of it at once. Nothing here waits for a disk but the change
    /// of a key, which is to be on it before anything that comes after.
    async fn heard(
        &self,
        stream: usize,
        message: ControlEvent,
        waiting: &mut Waiting,
        outbox: Option<&mut Outbox>,
    ) -> Option<Event> {
        let inner = &self.control.0;
        match message.event {
            None => {}
            Some(control_event::Event::Snapshot(snapshot)) => {
                waiting.routes = Some(News::whole(snapshot));
            }
            Some(control_event::Event::SnapshotPart(part)) => match waiting.parts.take(&part) {
                Ok(None) => {}
                Ok(Some(Put::Snapshot(snapshot))) => waiting.routes = Some(News::whole(snapshot)),
                Ok(Some(Put::Delta(delta))) => waiting.routes.get_or_insert_default().then(delta),
                Err(bad) => waiting.routes = Some(News::unreadable(bad.to_string())),
            },
            Some(control_event::Event::SnapshotDelta(encoded)) => {
                match v1::SnapshotDelta::decode(encoded) {
                    Ok(delta) => waiting.routes.get_or_insert_default().then(delta),
                    Err(bad) => waiting.routes = Some(News::unreadable(bad.to_string())),
                }
            }
            Some(control_event::Event::Credentials(credentials)) => {
                waiting.credentials = Some(credentials);
            }
            Some(control_event::Event::ObjectsAnswered(answer)) => {
                if let Some(outbox) = outbox {
                    outbox.answered(&answer, Instant::now());
                }
            }
            Some(control_event::Event::KeysChanged(changed)) => {
                inner.admission.changed(&changed);
                tracing::info!(keys = changed.keys.len(), all = changed.all, "keys changed");
                let asked = changed.asked;
                let (keys, admission) = (Arc::clone(&inner.keys), Arc::clone(&inner.admission));
                // It tells the log itself what went wrong.
                let _ =
                    tokio::task::spawn_blocking(move || keys.changed(&changed, &admission)).await;
                if asked > 0 {
                    return Some(Event::KeysHeard(KeysHeard { asked }));
                }
            }
            Some(control_event::Event::Scores(scores)) => {
                inner.scores.take(stream, scores, Instant::now());
            }
            Some(control_event::Event::Roots(roots)) => {
                // Of what two replicas say, the newer.
                inner.roots.send_if_modified(|known| {
                    let before = known.as_ref().map_or(0, |known| known.generation);
                    let newer = roots.generation >= before;
                    if newer {
                        *known = Some(Arc::new(roots));
                    }
                    newer
                });
            }
            Some(control_event::Event::Drain(drain)) => {
                inner.drained.send_replace(drain.on);
                tracing::info!(on = drain.on, "drain");
            }
        }
        None
    }
}

/// What one turn of a stream brings to tell.
enum Told<'a> {
    /// This stream tells of objects from now on.
    Mine(MutexGuard<'a, Outbox>),
    Objects(v1::ObjectsMade),
}

/// Returns when a stream that is not where it belongs should look for its place.
async fn look_again(lost: bool) {
    if !lost {
        pending::<()>().await;
    }
    tokio::time::sleep(RETURN.mul_f64(0.5 + fastrand::f64())).await;
}

#[cfg(test)]
mod tests;
