//! The long stream of a node: state goes down, acknowledgements and reports come up.
//!
//! A node that is behind is told the steps to the newest snapshot, or the whole of it in pieces. Everything goes
//! through one short queue. Whichever side ends first ends both. The ledger is asked beside it all: while it is slow or away,
//! a node hears what it must, and tells its objects again later.

mod keep;

use std::{
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{
    mpsc::{self, error::TrySendError},
    watch,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};
use vector_proto::control::v1::{
    ControlEvent, Credentials, Drain, KeysChanged, NodeEvent, Register, Scores,
    Status as NodeStatus, control_event::Event, node_event,
};

pub(super) use self::keep::refused;

use self::keep::Keeper;
use super::{Rooms, node::roots, unix_ms};
use crate::{
    health::{Attached, EVENTS_MAX},
    identity::{Peer, Role, Signing},
    registry::{ChangedKeys, StoredCredential, Trust},
    routing::{Published, Share, Told},
};

/// A node says who it is this soon, or is closed.
const REGISTER_WAIT: Duration = Duration::from_secs(5);

/// The node's stream waits this long for the store to keep which roots it trusts, and is left alone for this long when that
/// fails: everything else that it is told comes behind.
const TRUST_WAIT: Duration = Duration::from_millis(500);
const TRUST_PAUSE: Duration = Duration::from_secs(5);

/// What tonic sends to the node.
pub(super) type Events = Pin<Box<dyn Stream<Item = Result<ControlEvent, Status>> + Send>>;

/// One open stream.
struct Session {
    rooms: Rooms,
    peer: Arc<Peer>,
    attached: Attached,
    events: mpsc::Sender<Box<ControlEvent>>,
    newest: watch::Receiver<Arc<Published>>,
    /// Revision the node has been sent.
    sent: u64,
    /// The node takes what is different, and snapshots as bytes.
    deltas: bool,
    /// It takes a long delta in pieces.
    delta_parts: bool,
    /// Credentials the node has been sent.
    held: Option<Vec<(Arc<StoredCredential>, Share)>>,
    /// `Published::entitlement` that they were looked up by.
    entitlement: Option<u64>,
    steering: watch::Receiver<Arc<Told>>,
    /// Scores the node has been sent; only an ingress gets any.
    told: Arc<Told>,
    /// Objects the node told of.
    keeper: Keeper,
    signing: watch::Receiver<Arc<Signing>>,
    /// What the node said of roots, as far as it is kept.
    trust: Trust,
    /// When keeping it is tried again, after a failure.
    trust_due: Option<Instant>,
}

/// Why a stream ends.
enum End {
    /// The node went away.
    Gone,
    /// Control wants it to.
    Dismissed,
    /// The node broke the rules, or a room failed.
    Fault(Status),
}

impl<E: Into<Status>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Fault(error.into())
    }
}

/// Takes the node's first word and begins to serve it.
pub(super) async fn open(
    rooms: Rooms,
    peer: Arc<Peer>,
    mut inbound: Streaming<NodeEvent>,
) -> Result<Events, Status> {
    let first = tokio::time::timeout(REGISTER_WAIT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("a node must register at once"))??;
    let Some(node_event::Event::Register(register)) = first.and_then(|event| event.event) else {
        return Err(Status::invalid_argument(
            "the first message must be `register`",
        ));
    };
    let enrolled = rooms
        .registry
        .node(peer.id.as_str())
        .await?
        .enrolled_unix_ms;
    rooms
        .registry
        .keep_seen(peer.id.as_str(), register.clone())
        .await?;
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let ingress = peer.roles.contains(&Role::Ingress);
    let attached = rooms.fleet.attach(
        peer.id.as_str(),
        ingress,
        &register,
        enrolled,
        events.clone(),
    );
    // It may have it from another replica, or from before this one's restart.
    attached.applied(register.revision, unix_ms());
    let session = Session {
        newest: rooms.publisher.subscribe(),
        steering: rooms.steering.subscribe(),
        told: Arc::default(),
        sent: register.revision,
        deltas: register.deltas,
        delta_parts: register.delta_parts,
        held: None,
        keeper: Keeper::new(Arc::clone(&rooms.ledger)),
        signing: rooms.authority.changes(),
        trust: Trust::default(),
        trust_due: None,
        entitlement: None,
        peer,
        attached,
        events,
        rooms: rooms.clone(),
    };
    rooms.tasks.spawn(session.run(register, inbound));
    Ok(Box::pin(ReceiverStream::new(queue).map(|event| Ok(*event))))
}

impl Session {
    async fn run(mut self, register: Register, mut inbound: Streaming<NodeEvent>) {
        let id = self.peer.id.clone();
        tracing::info!(
            node.id = %id,
            node.epoch = register.epoch,
            node.version = register.version,
            revision = register.revision,
            "node connected"
        );
        // What is needed once is not carried along for as long as the node is there.
        let greeted = Box::pin(self.greet(&register)).await;
        drop(register);
        let end = match greeted {
            Ok(()) => self.serve(&mut inbound).await,
            Err(end) => end,
        };
        match end {
            End::Gone => tracing::info!(node.id = %id, "node went away"),
            End::Dismissed => tracing::info!(node.id = %id, "node's stream ended by control"),
            End::Fault(status) => tracing::warn!(
                node.id = %id,
                code = ?status.code(),
                error = status.message(),
                "node's stream broke"
            ),
        }
    }

    /// What every node hears first.
    async fn greet(&mut self, register: &Register) -> Result<(), End> {
        if self.peer.roles.contains(&Role::Ingress) {
            let after = i64::try_from(register.keys_revision).unwrap_or_default();
            let changed = self.rooms.registry.keys_changed_since(after).await?;
            if changed.all || !changed.ids.is_empty() || after != changed.revision {
                self.send(Event::KeysChanged(keys_changed(changed))).await?;
            }
        }
        self.send_roots().await?;
        let spec = self.rooms.registry.node(self.peer.id.as_str()).await?;
        self.send(Event::Drain(Drain { on: spec.draining })).await?;
        self.send_newest().await?;
        self.send_scores(true).await
    }

    async fn serve(&mut self, inbound: &mut Streaming<NodeEvent>) -> End {
        let (ended, drain) = (self.attached.end().clone(), self.rooms.drain.clone());
        let events = self.events.clone();
        // Waited for as one, and not anew at each word.
        let mut over = pin!(async move {
            tokio::select! {
                () = ended.cancelled() => End::Dismissed,
                () = drain.cancelled() => End::Dismissed,
                () = events.closed() => End::Gone,
            }
        });
        let is_ingress = self.peer.roles.contains(&Role::Ingress);
        loop {
            let step = tokio::select! {
                end = &mut over => return end,
                changed = self.newest.changed() => match changed {
                    Ok(()) => self.send_newest().await,
                    Err(_) => return End::Dismissed,
                },
                changed = self.steering.changed(), if is_ingress => match changed {
                    Ok(()) => self.send_scores(false).await,
                    Err(_) => return End::Dismissed,
                },
                // Never fails: the authority is held here.
                _ = self.signing.changed() => self.send_roots().await,
                answer = self.keeper.answer() => self.send(Event::ObjectsAnswered(answer)).await,
                message = inbound.message() => match message {
                    Ok(Some(event)) => self.heard(event).await,
                    Ok(None) => return End::Gone,
                    Err(status) if is_disconnect(&status) => return End::Gone,
                    Err(status) => return End::Fault(status),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Whom to trust, where that was ever changed.
    async fn send_roots(&mut self) -> Result<(), End> {
        let signing = Arc::clone(&self.signing.borrow_and_update());
        if signing.generation == 0 {
            return Ok(());
        }
        self.send(Event::Roots(roots(&signing))).await
    }

    /// Keeps what the node trusts, for whoever decides about the next step of a rotation.
    async fn keep_trust(&mut self, status: &NodeStatus) {
        let now = Instant::now();
        // The first pieces of a status say nothing of it.
        if status.more
            || self.trust_due.is_some_and(|due| now < due)
            || self.rooms.authority.signing().rotation().is_none()
            || (self.trust.roots == status.trusted_roots
                && self.trust.proven_by == status.proven_by)
        {
            return;
        }
        let trust = Trust {
            roots: status.trusted_roots.clone(),
            proven_by: status.proven_by.clone(),
        };
        let id = self.peer.id.as_str();
        let kept = self.rooms.registry.keep_trust(id, &trust);
        let why = match tokio::time::timeout(TRUST_WAIT, kept).await {
            Ok(Ok(())) => {
                (self.trust, self.trust_due) = (trust, None);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("the store does not answer within {TRUST_WAIT:?}"),
        };
        tracing::warn!(
            node.id = id,
            why,
            "which roots the node trusts is not kept yet"
        );
        self.trust_due = Some(now + TRUST_PAUSE);
    }

    /// Credentials first: nobody is sent to an egress before it can serve.
    async fn send_newest(&mut self) -> Result<(), End> {
        let newest = Arc::clone(self.newest.borrow_and_update().of(self.peer.id.as_str()));
        let revision = newest.snapshot.revision;
        if revision == 0 || !self.may_tell(revision).await? {
            return Ok(());
        }
        if self.peer.roles.contains(&Role::Egress) {
            Box::pin(self.send_credentials(&newest)).await?;
        }
        if self.sent != revision {
            if self.deltas {
                for news in newest.news_since(self.sent, self.delta_parts) {
                    self.send(news).await?;
                }
            } else {
                self.send(Event::Snapshot(newest.whole())).await?;
            }
            self.sent = revision;
        }
        Ok(())
    }

    /// The credentials that the node is to have, unless it has them.
    async fn send_credentials(&mut self, newest: &Published) -> Result<(), End> {
        if self.entitlement == Some(newest.entitlement) {
            return Ok(());
        }
        let wanted: Vec<(Arc<StoredCredential>, Share)> = newest
            .credentials_for(self.peer.id.as_str())
            .map(|(stored, share)| (Arc::clone(stored), share))
            .collect();
        if self.held.as_ref() != Some(&wanted) {
            let mut credentials = Vec::with_capacity(wanted.len());
            for (stored, share) in &wanted {
                match Published::opened(&self.rooms.registry, stored, *share) {
                    Ok(credential) => credentials.push(credential),
                    // The others are good all the same.
                    Err(error) => {
                        tracing::error!(credential = stored.spec.name, %error, "a credential cannot be opened")
                    }
                }
            }
            self.send(Event::Credentials(Credentials {
                revision: newest.snapshot.revision,
                credentials,
                generation: newest.generation,
            }))
            .await?;
        }
        self.held = Some(wanted);
        self.entitlement = Some(newest.entitlement);
        Ok(())
    }

    /// Whether a node that has a newer revision may be given this one: it is in force, as after a restore, and not what a
    /// replica without its store still remembers.
    async fn may_tell(&mut self, revision: u64) -> Result<bool, End> {
        if self.sent <= revision {
            return Ok(true);
        }
        match self.rooms.publisher.is_in_force(revision).await {
            Ok(is) => Ok(is),
            Err(crate::registry::Error::Store(error)) => {
                tracing::warn!(node.id = %self.peer.id, %error, "the node knows a newer revision; it keeps that");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What is different in the scores since the node heard of them; `whole`: it begins anew.
    async fn send_scores(&mut self, whole: bool) -> Result<(), End> {
        if !self.peer.roles.contains(&Role::Ingress) {
            return Ok(());
        }
        let newest = self.steering.borrow_and_update().clone();
        let now = Instant::now();
        let rows = if whole {
            newest.whole(now)
        } else {
            newest.since(&self.told, now)
        };
        self.told = newest;
        if rows.is_empty() && !whole {
            return Ok(());
        }
        let (upstreams, models) = rows.into_iter().partition(|row| row.model.is_empty());
        let scores = Scores {
            whole,
            upstreams,
            models,
        };
        self.send(Event::Scores(scores)).await
    }

    async fn send(&mut self, event: Event) -> Result<(), End> {
        let event = Box::new(ControlEvent { event: Some(event) });
        let event = match self.events.try_send(event) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(End::Gone),
            Err(TrySendError::Full(event)) => event,
        };
        tokio::select! {
            sent = self.events.send(event) => sent.map_err(|_| End::Gone),
            () = self.attached.end().cancelled() => Err(End::Dismissed),
            () = self.rooms.drain.cancelled() => Err(End::Dismissed),
        }
    }

    async fn heard(&mut self, event: NodeEvent) -> Result<(), End> {
        let now = unix_ms();
        match event.event {
            Some(node_event::Event::Applied(applied)) => {
                self.attached.applied(applied.revision, now)
            }
            Some(node_event::Event::Rejected(rejected)) => {
                tracing::error!(
                    node.id = %self.peer.id,
                    revision = rejected.revision,
                    kept = rejected.kept,
                    reason = rejected.reason,
                    "node refused a snapshot"
                );
                let (refused, kept) = (rejected.revision, rejected.kept);
                self.attached.rejected(refused, kept, rejected.reason, now);
            }
            Some(node_event::Event::Status(status)) => {
                self.keep_trust(&status).await;
                self.attached.status(status, now);
            }
            Some(node_event::Event::ObjectsMade(made)) => self.keeper.take(made),
            Some(node_event::Event::KeysHeard(heard)) => self.attached.heard_keys(heard.asked),
            Some(node_event::Event::WholeWanted(wanted)) => {
                tracing::info!(node.id = %self.peer.id, has = wanted.revision, "the node wants the whole snapshot");
                self.sent = 0;
                self.send_newest().await?;
            }
            Some(node_event::Event::Register(_)) => {
                return Err(Status::invalid_argument("`register` comes once").into());
            }
            // A newer node's word: nothing of ours depends on it.
            None => {}
        }
        Ok(())
    }
}

pub(super) fn keys_changed(changed: ChangedKeys) -> KeysChanged {
    KeysChanged {
        keys: changed.ids,
        all: changed.all,
        revision: u64::try_from(changed.revision).unwrap_or_default(),
        asked: 0,
    }
}

/// A connection that broke is how nodes go away when they are killed.
fn is_disconnect(status: &Status) -> bool {
    matches!(
        status.code(),
        tonic::Code::Unknown | tonic::Code::Cancelled | tonic::Code::Unavailable
    )
}
