//! One warm connection to a peer, and the exchanges on it.
//!
//! The first stream of a connection is its control stream: HELLO each way, then batches of ACK,
//! CREDIT, CANCEL and GONE about any exchange. Every further stream is an attachment. The link
//! knows its exchanges only by id: it hands a word about one to whoever registered it, or, on a
//! relay, to the link on the other side.

mod control;

mod shared;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        VERSION,
        codec::{self, Decoder, Entry, GoneReason, Kind},
        v1,
    },
};

use self::control::Control;
pub use self::control::Ready;
pub(super) use self::shared::{Shared, Target, poll_room};
use super::{
    LostReason,
    transport::{self, Connection, Receiver, Sender},
    vitals::{Condition, Vitals},
};

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
}

/// One warm connection to a peer.
pub struct Link {
    /// Who is at the other end.
    pub peer: Arc<str>,
    /// Incarnation of the peer.
    pub epoch: u64,
    /// Where the peer is, for people.
    pub address: Arc<str>,
    connection: Connection,
    vitals: Arc<Vitals>,
    exchanges: Mutex<HashMap<ExchangeId, Target>>,
    early_cancels: Mutex<VecDeque<ExchangeId>>,
    outbox: Outbox,
    outstanding: AtomicU32,
    /// The peer takes no new exchanges.
    draining: AtomicBool,
    /// This node takes no new exchanges.
    leaving: AtomicBool,
    /// The connection is gone. Asked with every request, so the answer is one load; `down` is to wait for.
    is_down: AtomicBool,
    down: CancellationToken,
}

#[derive(Debug, Default)]
struct Outbox {
    entries: Mutex<Vec<Entry>>,
    some: Notify,
    urgent: Notify,
}

impl Link {
    /// Sets a link up on a connection this node dialled.
    ///
    /// Cancel safety: dropping the future drops the streams, and the caller drops the connection.
    ///
    /// # Errors
    /// [`Error`] when the peer does not answer as a node of this network.
    pub async fn dialled(
        connection: Connection,
        me: &v1::Hello,
        peer: Arc<str>,
        address: Arc<str>,
    ) -> Result<Ready, Error> {
        let (send, receive) = connection.open().await?;
        Self::greet(connection, send, receive, me, (peer, address)).await
    }

    /// Sets a link up on a connection that `peer` dialled.
    ///
    /// # Errors
    /// As [`Self::dialled`].
    pub async fn accepted(
        connection: Connection,
        me: &v1::Hello,
        peer: Arc<str>,
        address: Arc<str>,
    ) -> Result<Ready, Error> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, connection.accept()).await;
        let (send, receive) = first.map_err(|_| Error::Silent)??;
        Self::greet(connection, send, receive, me, (peer, address)).await
    }

    async fn greet(
        connection: Connection,
        mut send: Sender,
        receive: Receiver,
        me: &v1::Hello,
        (peer, address): (Arc<str>, Arc<str>),
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
        if *hello.node != *peer {
            return Err(Error::Imposter {
                said: hello.node,
                certified: peer.to_string(),
            });
        }
        let link = Arc::new(Self {
            peer,
            epoch: hello.epoch,
            address,
            connection,
            vitals: Arc::default(),
            exchanges: Mutex::default(),
            early_cancels: Mutex::default(),
            outbox: Outbox::default(),
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

    /// Lets words about `exchange` pass from either link to the other, until the guard is dropped.
    #[must_use]
    pub fn splice(up: &Arc<Self>, down: &Arc<Self>, exchange: ExchangeId) -> Splice {
        down.register(exchange, Target::There(Arc::downgrade(up)));
        if !up.register(exchange, Target::There(Arc::downgrade(down))) {
            // Cancelled before it came: say so behind the OPEN that is about to leave.
            down.say(Entry::Cancel {
                exchange,
                reason: GoneReason::ClientGone as u64,
            });
        }
        Splice {
            up: Arc::clone(up),
            down: Arc::clone(down),
            exchange,
        }
    }

    pub(crate) async fn open_stream(&self) -> Result<(Sender, Receiver), transport::Error> {
        self.connection.open().await
    }

    pub(super) async fn accept_stream(&self) -> Result<(Sender, Receiver), transport::Error> {
        self.connection.accept().await
    }

    /// Registers who hears of an exchange. `false` when its cancellation came before it.
    pub(super) fn register(&self, exchange: ExchangeId, target: Target) -> bool {
        let mut early = self.early_cancels.lock();
        if let Some(at) = early.iter().position(|cancelled| *cancelled == exchange) {
            early.remove(at);
            return false;
        }
        drop(early);
        if self.exchanges.lock().insert(exchange, target).is_none() {
            self.vitals.began();
        }
        true
    }

    pub(super) fn forget(&self, exchange: ExchangeId) {
        if self.exchanges.lock().remove(&exchange).is_some() {
            self.vitals.ended(1);
        }
    }

    pub(super) fn count(&self, opened: bool) {
        if opened {
            self.outstanding.fetch_add(1, Ordering::Relaxed);
        } else {
            self.outstanding.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Says something about an exchange: acknowledgements soon, everything else at once.
    pub(super) fn say(&self, entry: Entry) {
        let urgent = !matches!(entry, Entry::Ack { .. });
        self.outbox.entries.lock().push(entry);
        if urgent {
            self.outbox.urgent.notify_one()
        } else {
            self.outbox.some.notify_one()
        }
    }

    /// The egress has written its whole answer: forgotten when it is acknowledged.
    pub(super) fn finished(&self, shared: &Shared) {
        shared.finished.store(true, Ordering::Release);
        if shared.outgoing.lock().held_bytes() == 0 {
            self.forget(shared.exchange);
        }
    }

    fn hear(&self, entry: Entry) {
        let exchange = entry.exchange();
        let shared = match self.exchanges.lock().get(&exchange) {
            Some(Target::Here(shared)) => Arc::clone(shared),
            Some(Target::There(link)) => {
                if let Some(link) = link.upgrade() {
                    link.say(entry);
                }
                return;
            }
            None => {
                self.hear_of_unknown(entry);
                return;
            }
        };
        match entry {
            Entry::Ack { offset, .. } => self.acked(&shared, offset),
            Entry::Credit { offset, .. } => {
                shared.outgoing.lock().allow(offset);
                shared.writer.wake();
            }
            Entry::Cancel { .. } => {
                self.forget(exchange);
                shared.seal(&LostReason::Cancelled);
            }
            Entry::Gone { .. } => {
                self.forget(exchange);
                shared.seal(&LostReason::Gone);
            }
            // A peer that can resume says so in HELLO's version; this one has nothing to resume.
            Entry::Resume { .. } => self.say(Entry::Gone {
                exchange,
                reason: GoneReason::Unknown as u64,
            }),
        }
    }

    fn acked(&self, shared: &Shared, offset: u64) {
        let held = {
            let mut outgoing = shared.outgoing.lock();
            if let Err(violation) = outgoing.ack(offset) {
                drop(outgoing);
                tracing::warn!(peer = %self.peer, exchange = %shared.exchange, %violation, "peer breaks the tunnel's rules");
                shared.seal(&LostReason::Gone);
                return;
            }
            outgoing.held_bytes()
        };
        shared.writer.wake();
        if held == 0 && shared.finished.load(Ordering::Acquire) {
            self.forget(shared.exchange);
        }
    }

    fn hear_of_unknown(&self, entry: Entry) {
        match entry {
            Entry::Cancel { exchange, .. } => {
                let mut early = self.early_cancels.lock();
                if early.len() == EARLY_CANCELS_MAX {
                    early.pop_front();
                }
                early.push_back(exchange);
            }
            Entry::Resume { exchange, .. } => self.say(Entry::Gone {
                exchange,
                reason: GoneReason::Unknown as u64,
            }),
            // Late words about an exchange that has ended.
            Entry::Ack { .. } | Entry::Credit { .. } | Entry::Gone { .. } => {}
        }
    }

    /// Ends every exchange on it. Exchanges that go on over another link come with resume.
    fn fail(&self) {
        self.is_down.store(true, Ordering::Release);
        self.down.cancel();
        let exchanges = std::mem::take(&mut *self.exchanges.lock());
        self.vitals.ended(exchanges.len() as u32);
        for (exchange, target) in exchanges {
            match target {
                Target::Here(shared) => shared.seal(&LostReason::LinkDown),
                Target::There(link) => {
                    if let Some(link) = link.upgrade() {
                        link.forget(exchange);
                        link.say(Entry::Gone {
                            exchange,
                            reason: GoneReason::HopDown as u64,
                        });
                    }
                }
            }
        }
    }
}

/// Two links that pass on each other's words about one exchange.
#[derive(Debug)]
pub struct Splice {
    up: Arc<Link>,
    down: Arc<Link>,
    exchange: ExchangeId,
}

impl Drop for Splice {
    fn drop(&mut self) {
        self.up.forget(self.exchange);
        self.down.forget(self.exchange);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} at {})", self.peer, self.address)
    }
}
