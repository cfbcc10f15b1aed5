//! One warm connection to a peer, and the exchanges on it.
//!
//! The first stream of a connection is its control stream: HELLO each way, then batches of ACK,
//! CREDIT, CANCEL, RESUME and GONE about any exchange. Every further stream is an attachment. An
//! exchange belongs to the node and not to the link: a word about one is handed to its end on this
//! node, if whoever says it may, or, on a relay, to the link on the other side.

mod control;

mod outbox;

mod shown;

mod splice;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        VERSION,
        codec::{self, Decoder, Entry, GoneReason, Kind},
        v1,
    },
};

use self::{control::Control, outbox::Outbox};
pub use self::{control::Ready, splice::Splice};
use super::{
    Peer, Tunnel,
    end::Side,
    hedge::Lateness,
    onward::Onward,
    repair::{Early, Losses},
    transport::{self, Connection, Receiver, Sender},
    vitals::{Condition, Vitals},
};
use crate::lookup::HashMap;

/// Cancellations of exchanges whose OPEN is still on its way, by which it is refused when it comes.
const EARLY_CANCELS_MAX: usize = 256;

/// Time for HELLO.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a link could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error(transparent)]
    Transport(#[from] transport::Error),
    /// The peer's first words are not ours.
    #[error("peer speaks another protocol: {0}")]
    Codec(#[from] codec::Error),
    /// The peer's version of the frames differs.
    #[error("peer speaks version {0} of the tunnel, this node {VERSION}")]
    Version(u32),
    /// The peer is not who its certificate says.
    #[error("peer calls itself `{said}`, its certificate says `{certified}`")]
    Imposter {
        /// What HELLO says.
        said: String,
        /// What the certificate says.
        certified: String,
    },
    /// No HELLO in time.
    #[error("no HELLO within {HELLO_TIMEOUT:?}")]
    Silent,
    /// The peer does not read its control stream.
    #[error("peer does not read what it is told")]
    Stuck,
}

/// One warm connection to a peer.
pub struct Link {
    /// Who is at the other end.
    pub peer: Arc<str>,
    /// Incarnation of the peer.
    pub epoch: u64,
    /// What the peer takes, as its HELLO says.
    pub(super) terms: control::Terms,
    /// Where the peer is, for people.
    pub address: Arc<str>,
    /// Which of the connections of its path it is, from 0.
    pub(super) connection_number: u32,
    /// This node.
    pub(super) me: Arc<str>,
    /// Which end of the exchanges that are spoken of here is on this node: who dials, asks.
    pub(super) side: Side,
    /// The peer may speak for others.
    relay: bool,
    /// What packets show of the way to the peer.
    pub(super) losses: Losses,
    pub(super) early_repairs: Early,
    /// The peer calls providers, as it says.
    pub(super) egress: bool,
    pub(super) tunnel: Tunnel,
    connection: Connection,
    vitals: Arc<Vitals>,
    /// Exchanges that only pass through this node: the link on their other side, and over how many streams.
    passing: Mutex<HashMap<ExchangeId, (Weak<Self>, u32)>>,
    early_cancels: Mutex<VecDeque<(ExchangeId, u32)>>,
    outbox: Outbox,
    lateness: Lateness,
    pub(super) onward: Onward,
    outstanding: AtomicU32,
    /// The peer takes no new exchanges.
    draining: AtomicBool,
    /// This node takes no new exchanges.
    leaving: AtomicBool,
    /// The connection is gone. Asked with every request, so the answer is one load; `down` is to wait for.
    is_down: AtomicBool,
    down: CancellationToken,
}

impl Link {
    /// Sets a link up on a connection this node dialled.
    ///
    /// Cancel safety: dropping the future drops the streams, and the caller drops the connection.
    ///
    /// # Errors
    /// [`Error`] when the peer does not answer as a node of this network.
    pub async fn dialled(
        tunnel: &Tunnel,
        connection: Connection,
        me: &v1::Hello,
        peer: Peer,
        address: Arc<str>,
    ) -> Result<Ready, Error> {
        let streams = connection.open().await?;
        let side = (Side::Ingress, tunnel);
        Self::greet(side, connection, streams, me, (peer, address)).await
    }

    /// Sets a link up on a connection that `peer` dialled.
    ///
    /// # Errors
    /// As [`Self::dialled`].
    pub async fn accepted(
        tunnel: &Tunnel,
        connection: Connection,
        me: &v1::Hello,
        peer: Peer,
        address: Arc<str>,
    ) -> Result<Ready, Error> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, connection.accept()).await;
        let streams = first.map_err(|_| Error::Silent)??;
        let side = (Side::Egress, tunnel);
        Self::greet(side, connection, streams, me, (peer, address)).await
    }

    async fn greet(
        (side, tunnel): (Side, &Tunnel),
        connection: Connection,
        (mut send, receive): (Sender, Receiver),
        me: &v1::Hello,
        (peer, address): (Peer, Arc<str>),
    ) -> Result<Ready, Error> {
        send.write(&mut [codec::message(Kind::Hello, me)]).await?;
        let mut control = Control {
            receive,
            decoder: Decoder::default(),
            input: Bytes::new(),
        };
        let hello = tokio::time::timeout(HELLO_TIMEOUT, control.hello())
            .await
            .map_err(|_| Error::Silent)??;
        if hello.version != VERSION {
            return Err(Error::Version(hello.version));
        }
        if *hello.node != *peer.node {
            return Err(Error::Imposter {
                said: hello.node,
                certified: peer.node.to_string(),
            });
        }
        let is_relay = |roles: &[String]| roles.iter().any(|role| role == "relay");
        let link = Arc::new(Self {
            peer: peer.node,
            connection_number: 0,
            me: me.node.as_str().into(),
            side,
            relay: is_relay(&peer.roles) && is_relay(&hello.roles),
            losses: Losses::default(),
            early_repairs: Early::default(),
            egress: hello.roles.iter().any(|role| role == "egress"),
            tunnel: tunnel.clone(),
            epoch: hello.epoch,
            terms: control::Terms::of(&hello),
            address,
            connection,
            vitals: Arc::default(),
            passing: Mutex::default(),
            early_cancels: Mutex::default(),
            outbox: Outbox::default(),
            lateness: Lateness::default(),
            onward: Onward::with(&hello),
            outstanding: AtomicU32::new(0),
            draining: AtomicBool::new(hello.draining),
            leaving: AtomicBool::new(me.draining),
            is_down: AtomicBool::new(false),
            down: CancellationToken::new(),
        });
        Ok(Ready {
            link,
            send,
            control,
        })
    }

    /// Whether new exchanges may go over it. One that is [`Condition::Suspect`] is for when no other is left.
    #[must_use]
    pub fn usable(&self) -> bool {
        !self.draining() && !self.is_down() && self.condition() != Condition::Down
    }

    /// Whether packets get through, as far as both ends know.
    #[must_use]
    pub fn condition(&self) -> Condition {
        self.vitals.condition()
    }

    /// What the detector knows of the path; tells changes of the condition, too.
    #[must_use]
    pub const fn vitals(&self) -> &Arc<Vitals> {
        &self.vitals
    }

    /// Whether the peer asked for no new exchanges.
    #[must_use]
    pub fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Whether the connection is gone.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire)
    }

    /// Exchanges that this node opened over it and that have not ended.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Smoothed round trip.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// The connection, if it goes over the network.
    pub(super) const fn over_quic(&self) -> Option<&transport::quic::Connection> {
        match &self.connection {
            Connection::Quic(connection) => Some(connection),
            Connection::Memory(_) => None,
        }
    }

    /// Datagrams of the network that came for it.
    pub(super) fn received(&self) -> u64 {
        self.connection.received()
    }

    /// Whether this node wants no new exchanges over it.
    pub(super) fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Returns once the connection is gone, even if nobody serves the link.
    pub(super) async fn disconnected(&self) {
        self.connection.closed().await;
    }

    /// Packets sent, and those of them found lost.
    #[must_use]
    pub fn packets(&self) -> (u64, u64) {
        self.connection.packets()
    }

    /// Returns once the connection is gone.
    pub async fn closed(&self) {
        self.down.cancelled().await;
    }

    /// Closes the connection.
    pub fn close(&self, reason: &'static str) {
        self.connection.close(reason);
    }

    /// Tells the peer to open no new exchanges here, or that it may again.
    pub fn announce_drain(&self, on: bool) {
        self.leaving.store(on, Ordering::Relaxed);
        self.outbox.urgent.notify_one();
    }

    /// Whether the peer is a relay, which speaks for others.
    #[must_use]
    pub const fn is_relay(&self) -> bool {
        self.relay
    }

    /// Whether a running exchange may go on over it.
    #[must_use]
    pub fn carries(&self) -> bool {
        !self.is_down() && self.condition() != Condition::Down
    }

    /// How long acceptances take on it.
    pub(super) const fn lateness(&self) -> &Lateness {
        &self.lateness
    }

    /// Whether the peer dialled this link.
    #[must_use]
    pub fn is_accepted(&self) -> bool {
        self.side == Side::Egress
    }

    pub(crate) async fn open_stream(&self) -> Result<(Sender, Receiver), transport::Error> {
        self.connection.open().await
    }

    /// A stream, if the peer takes another one now.
    pub(super) async fn open_stream_now(&self) -> Result<(Sender, Receiver), transport::Error> {
        self.connection.open_now().await
    }

    pub(super) async fn accept_stream(&self) -> Result<(Sender, Receiver), transport::Error> {
        let streams = self.connection.accept().await?;
        self.connection.make_room(self.vitals.exchanges());
        Ok(streams)
    }

    /// Whether the cancellation of this attempt came before it. That of an earlier one says nothing of it.
    pub(super) fn was_cancelled(&self, exchange: ExchangeId, attempt: u32) -> bool {
        let mut early = self.early_cancels.lock();
        let at = early
            .iter()
            .position(|(cancelled, _)| *cancelled == exchange);
        let up_to = at.and_then(|at| early.remove(at));
        up_to.is_some_and(|(_, up_to)| attempt <= up_to)
    }

    pub(super) fn count(&self, opened: bool) {
        if opened {
            self.outstanding.fetch_add(1, Ordering::Relaxed);
        } else {
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Says something about an exchange: acknowledgements soon, everything else at once.
    pub(crate) fn say(&self, entry: Entry) {
        let urgent = !matches!(entry, Entry::Ack { .. });
        if self.outbox.push(entry).is_err() {
            // What it carries goes on elsewhere, where somebody listens.
            tracing::warn!(peer = %self.peer, address = %self.address, "link closed: peer does not read what it is told");
            self.connection.close("control stream is not read");
        }
        if urgent {
            self.outbox.urgent.notify_one()
        } else {
            self.outbox.some.notify_one()
        }
    }

    fn hear(self: &Arc<Self>, entry: Entry) {
        let exchange = entry.exchange();
        if self.passes_on(exchange, entry) {
            return;
        }
        match self.tunnel.end(self.side, exchange) {
            Some(end) if end.knows(&self.peer) => end.hear(entry, self),
            Some(_) => {
                tracing::warn!(%exchange, peer = %self.peer, "peer speaks of somebody else's exchange");
            }
            None => self.hear_of_unknown(entry),
        }
    }

    /// Hands a word to the link on the other side, if the exchange only passes through.
    fn passes_on(&self, exchange: ExchangeId, entry: Entry) -> bool {
        let passing = self.passing.lock();
        let Some((other, _)) = passing.get(&exchange) else {
            return false;
        };
        let other = other.upgrade();
        drop(passing);
        if let Some(other) = other {
            other.say(entry);
        }
        true
    }

    fn hear_of_unknown(&self, entry: Entry) {
        match entry {
            Entry::Cancel { exchange, reason } => {
                let mut early = self.early_cancels.lock();
                if early.len() == EARLY_CANCELS_MAX {
                    early.pop_front();
                }
                early.push_back((exchange, GoneReason::up_to_attempt(reason)));
            }
            Entry::Resume { exchange, .. } => self.say(Entry::Gone {
                exchange,
                reason: GoneReason::Unknown as u64,
            }),
            // Late words about an exchange that has ended.
            Entry::Ack { .. } | Entry::Credit { .. } | Entry::Gone { .. } => {}
        }
    }

    /// What it carried goes on elsewhere, or ends.
    fn fail(self: &Arc<Self>) {
        self.is_down.store(true, Ordering::Release);
        self.down.cancel();
        self.tunnel.link_down(self);
    }

    /// Tells everybody whose exchanges pass through this node over it that they must go another way.
    pub(super) fn tell_hop_down(&self) {
        let passing: Vec<_> = {
            let passing = self.passing.lock();
            let each = passing.iter();
            each.filter_map(|(exchange, (other, _))| Some((*exchange, other.upgrade()?)))
                .collect()
        };
        for (exchange, other) in passing {
            other.say(Entry::Gone {
                exchange,
                reason: GoneReason::HopDown as u64,
            });
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} at {})", self.peer, self.address)
    }
}
