//! Who is connected, and what each node says of itself.
//!
//! [`Fleet`] is this replica's memory of its own streams. Which nodes may be used is agreed on by all replicas over the
//! store ([`agreed`]), each saying whom it hears ([`Rolls`]). A node whose stream broke stays on its replica's roll for
//! [`GRACE`]: a reconnect must not move traffic, and nodes notice a dead neighbour by their links long before. Until a
//! replica has been there for [`START_GRACE`] every known node counts as there, so that a restart of control moves
//! nothing either. What one replica changes, the nodes of the others are told by [`Heed`].

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::{ControlEvent, PoolStatus, Register, UpstreamStatus};

use crate::telemetry::Metrics;

mod attached;
pub use attached::Attached;

mod heed;
pub use heed::Heed;

mod keys;
pub use keys::KeysTold;

mod said;
pub use said::Said;

mod roll;
pub use roll::{Agreement, Error, Heard, Roll, Rolls, agreed, rolls};

/// A node stays usable this long after its stream broke.
pub const GRACE: Duration = Duration::from_secs(3);

/// Every known node counts as there until some replica is this old.
pub const START_GRACE: Duration = Duration::from_secs(10);

/// A push waits this long for a stream that does not read; then the stream is closed, and the node
/// hears everything anew when it is back.
const PUSH_WAIT: Duration = Duration::from_secs(1);

/// Events that may wait for one stream, each in a box: room for twice as many is there from the beginning, for each of a thousand
/// nodes. A snapshot goes in pieces, so that a key's change waits for one of them and not for all.
pub const EVENTS_MAX: usize = 16;

/// What a node reported that others route by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Signals {
    /// Of an egress.
    pub pools: Vec<PoolStatus>,
    /// Of an ingress: pairs of provider and egress, whatever the model.
    pub upstreams: Vec<UpstreamStatus>,
    /// Of an ingress: models there.
    pub models: Vec<UpstreamStatus>,
}

impl Signals {
    /// Nobody routes by it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pools.is_empty() && self.upstreams.is_empty() && self.models.is_empty()
    }
}

/// What is known of one node.
#[derive(Clone, Debug, Default)]
pub struct Presence {
    /// Its stream is open.
    pub connected: bool,
    /// Revision in force on it.
    pub revision: u64,
    /// Version of its software.
    pub version: String,
    /// When it last said anything.
    pub last_seen_unix_ms: u64,
    /// What it said last.
    pub said: Option<Said>,
    /// It said that it is going down.
    pub draining: bool,
    /// Why it refused the last snapshot; empty when it did not.
    pub rejection: String,
    /// Which that was.
    pub rejected: u64,
    /// Its clock minus ours when it last said how it is.
    pub clock_skew_ms: Option<i64>,
}

#[derive(Debug)]
struct Member {
    presence: Presence,
    stream: Option<Stream>,
    gone_at: Option<Instant>,
    /// What it said last that others route by, and when.
    said: Option<(Arc<Signals>, Instant)>,
}

#[derive(Clone, Debug)]
struct Stream {
    number: u64,
    ingress: bool,
    /// It says when it has heard of keys.
    hears_keys: bool,
    /// When the node that opened it was enrolled: another enrolment is another node.
    enrolled_unix_ms: u64,
    events: mpsc::Sender<Box<ControlEvent>>,
    end: CancellationToken,
}

/// All nodes. Cheap to share; every lock is held for a few lines and never across a wait.
#[derive(Debug)]
pub struct Fleet {
    members: Mutex<HashMap<String, Member>>,
    changed: watch::Sender<u64>,
    signals: watch::Sender<u64>,
    asked: keys::Asked,
    metrics: Arc<Metrics>,
}

/// Which nodes may be used now.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Usable {
    /// Not only those named here, but every known node: all of control has just started.
    pub all: bool,
    /// Ids of nodes that are connected or were until a moment ago.
    pub ids: BTreeSet<String>,
    /// Ids of nodes that say they are going down.
    pub draining: BTreeSet<String>,
}

impl Fleet {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            members: Mutex::default(),
            changed: watch::Sender::new(0),
            signals: watch::Sender::new(0),
            asked: keys::Asked::default(),
            metrics,
        }
    }

    /// Told whenever [`Fleet::heard`] may be different.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A node opened its stream. An older stream of the same node is ended.
    pub fn attach(
        self: &Arc<Self>,
        id: &str,
        ingress: bool,
        register: &Register,
        enrolled_unix_ms: u64,
        events: mpsc::Sender<Box<ControlEvent>>,
    ) -> Attached {
        let end = CancellationToken::new();
        let mut members = self.members.lock();
        let member = members.entry(id.to_owned()).or_insert_with(|| Member {
            presence: Presence::default(),
            stream: None,
            gone_at: None,
            said: None,
        });
        let number = member.stream.as_ref().map_or(0, |stream| stream.number) + 1;
        if let Some(older) = member.stream.take() {
            older.end.cancel();
        } else {
            self.metrics.nodes_connected.inc();
        }
        member.stream = Some(Stream {
            number,
            ingress,
            hears_keys: register.hears_keys,
            enrolled_unix_ms,
            events,
            end: end.clone(),
        });
        member.gone_at = None;
        member.presence.connected = true;
        register.version.clone_into(&mut member.presence.version);
        // What it said before its restart is not so any more.
        member.presence.said = None;
        member.presence.draining = false;
        member.presence.clock_skew_ms = None;
        member.said = None;
        drop(members);
        self.tell();
        Attached {
            fleet: Arc::clone(self),
            id: id.to_owned(),
            number,
            end,
            ahead: Mutex::default(),
        }
    }

    /// Told whenever [`Fleet::reports`] may be different.
    #[must_use]
    pub fn signals(&self) -> watch::Receiver<u64> {
        self.signals.subscribe()
    }

    /// What every node that is there said last, and when; without those that said nothing that others route by.
    #[must_use]
    pub fn reports(&self, now: Instant) -> Vec<(String, Arc<Signals>, Instant)> {
        let members = self.members.lock();
        let there = members.iter().filter(|(_, member)| {
            member.stream.is_some() || member.gone_at.is_some_and(|gone| gone + GRACE > now)
        });
        there
            .filter_map(|(id, member)| {
                let (said, at) = member.said.as_ref()?;
                (!said.is_empty()).then(|| (id.clone(), Arc::clone(said), *at))
            })
            .collect()
    }

    /// Whom this replica hears or heard until a moment ago, by id, and when that ends for one of them by itself.
    #[must_use]
    pub fn heard(&self, now: Instant) -> (Vec<Heard>, Option<Instant>) {
        let mut nodes = Vec::new();
        let mut next: Option<Instant> = None;
        for (id, member) in self.members.lock().iter() {
            let until = member.gone_at.map(|gone| gone + GRACE);
            if member.stream.is_none() && until.is_none_or(|until| until <= now) {
                continue;
            }
            nodes.push(Heard {
                id: id.clone(),
                draining: member.presence.draining,
            });
            next = [next, until].into_iter().flatten().min();
        }
        nodes.sort_by(|one, other| one.id.cmp(&other.id));
        (nodes, next)
    }

    /// What is known of a node.
    #[must_use]
    pub fn presence(&self, id: &str) -> Presence {
        let members = self.members.lock();
        members
            .get(id)
            .map(|member| member.presence.clone())
            .unwrap_or_default()
    }

    /// What the wanted nodes whose streams are open here said last, by id.
    #[must_use]
    pub fn said(&self, wanted: impl Fn(&str) -> bool) -> Vec<(String, Said)> {
        let members = self.members.lock();
        let there = members.iter().filter(|(_, member)| member.stream.is_some());
        there
            .filter(|(id, _)| wanted(id))
            .filter_map(|(id, member)| Some((id.clone(), member.presence.said.clone()?)))
            .collect()
    }

    /// Ends a node's stream, if it has one.
    pub fn dismiss(&self, id: &str) {
        if let Some(stream) = self
            .members
            .lock()
            .get(id)
            .and_then(|member| member.stream.as_ref())
        {
            stream.end.cancel();
        }
    }

    /// Ends the stream of a node that was enrolled at another time: whoever holds the old key is not it any more.
    pub fn dismiss_other_than(&self, id: &str, enrolled_unix_ms: u64) {
        let members = self.members.lock();
        let stream = members.get(id).and_then(|member| member.stream.as_ref());
        if let Some(stream) = stream.filter(|stream| stream.enrolled_unix_ms != enrolled_unix_ms) {
            stream.end.cancel();
        }
    }

    /// Ids of the nodes whose streams are open here.
    #[must_use]
    pub fn attached(&self) -> Vec<String> {
        let members = self.members.lock();
        let open = members.iter().filter(|(_, member)| member.stream.is_some());
        open.map(|(id, _)| id.clone()).collect()
    }

    /// Tells one node something. Returns once its stream has it; false when it has no stream.
    pub async fn push(&self, id: &str, event: ControlEvent) -> bool {
        let stream = self
            .members
            .lock()
            .get(id)
            .and_then(|member| member.stream.clone());
        match stream {
            Some(stream) => stream.push(event).await,
            None => false,
        }
    }

    fn tell(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Stream {
    async fn push(&self, event: ControlEvent) -> bool {
        let sent = tokio::time::timeout(PUSH_WAIT, self.events.send(Box::new(event))).await;
        let sent = matches!(sent, Ok(Ok(())));
        if !sent {
            self.end.cancel();
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1::Status;

    use super::*;

    #[test]
    fn a_node_is_heard_of_for_a_while_and_comes_back() {
        let fleet = Arc::new(Fleet::new(Arc::default()));
        let (events, _queue) = mpsc::channel(1);
        let names = |now| -> Vec<String> {
            let (nodes, _) = fleet.heard(now);
            nodes.into_iter().map(|node| node.id).collect()
        };
        assert_eq!(fleet.heard(Instant::now()), (Vec::new(), None));

        let register = Register::default();
        let first = fleet.attach("a", true, &register, 7, events.clone());
        let second = fleet.attach("a", true, &register, 8, events);
        assert!(first.end().is_cancelled(), "a newer stream ends the older");
        drop(first);
        assert!(
            fleet.presence("a").connected,
            "the older one's end is not the node's"
        );
        let draining = Status {
            draining: true,
            ..Status::default()
        };
        second.status(draining, 1);
        assert!(fleet.heard(Instant::now()).0[0].draining);
        assert_eq!(fleet.presence("a").clock_skew_ms, None, "it tells no time");
        let slow = Status {
            draining: true,
            unix_ms: 7_000,
            ..Status::default()
        };
        second.status(slow, 10_000);
        assert_eq!(fleet.presence("a").clock_skew_ms, Some(-3_000));

        fleet.dismiss_other_than("a", 8);
        assert!(!second.end().is_cancelled(), "the same enrolment");
        fleet.dismiss_other_than("a", 9);
        assert!(
            second.end().is_cancelled(),
            "its key is not the node's any more"
        );
        drop(second);
        let gone = Instant::now();
        assert_eq!(names(gone), ["a"], "gone a moment ago");
        assert!(
            fleet
                .heard(gone)
                .1
                .is_some_and(|until| until <= gone + GRACE)
        );
        assert!(names(gone + GRACE).is_empty(), "gone");
    }
}
