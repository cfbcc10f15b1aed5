//! Takes connections and streams from other nodes.
//!
//! The accept loop only accepts: handshakes, HELLO and preambles are read in tasks, each with a
//! deadline. A certificate decides who a peer is; a peer that may not send exchanges is cut off.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::{
    id::ExchangeId,
    refusal::Code,
    tunnel::{
        codec::{self, Kind},
        v1,
    },
};

use super::{
    Arrival, ArrivalHandler, Credentials, TransitHandler,
    half::read_preamble,
    link::{self, Link, Shared, Target},
    pulse::{self, Pulses},
    transport::{
        Connection, Receiver, Sender,
        quic::{self, Endpoint, Incoming, probe::Probe},
    },
};

/// Time for a handshake and HELLO.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Handshakes in flight above which strangers must first show their address.
const HANDSHAKES_UNPROVEN_MAX: usize = 64;

/// Time for a stream's first frame.
const PREAMBLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Peers that may be linked to this node at once.
const LINKS_MAX: usize = 16_384;

/// An exchange for another node, on its way through this relay.
pub struct Transit {
    /// Which exchange.
    pub exchange: ExchangeId,
    /// What is asked, to be passed on as it is.
    pub open: v1::Open,
    /// The link it came over.
    pub link: Arc<Link>,
    /// Towards the ingress.
    pub send: Sender,
    /// From the ingress.
    pub receive: Receiver,
    /// What came behind the preamble.
    pub rest: Bytes,
}

impl fmt::Debug for Transit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transit({} from {})", self.exchange, self.link.peer)
    }
}

/// Takes what other nodes send.
pub struct Acceptor {
    credentials: Arc<dyn Credentials>,
    me: v1::Hello,
    arrivals: Option<ArrivalHandler>,
    transits: Option<TransitHandler>,
    tasks: TaskTracker,
    links: parking_lot::Mutex<Vec<Arc<Link>>>,
    handshakes: AtomicUsize,
    draining: AtomicBool,
    pulses: OnceLock<Pulses>,
}

/// Who came.
enum Guest {
    /// A peer that wants a link.
    Link(link::Ready),
    /// A peer that watches a link it has.
    Probe(Arc<Link>, Probe),
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Acceptor({})", self.me.node)
    }
}

impl Acceptor {
    /// An acceptor for a node that is an egress if it has `arrivals`, and a relay if it has `transits`.
    #[must_use]
    pub fn new(
        credentials: Arc<dyn Credentials>,
        me: v1::Hello,
        arrivals: Option<ArrivalHandler>,
        transits: Option<TransitHandler>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            credentials,
            me,
            arrivals,
            transits,
            tasks,
            links: parking_lot::Mutex::default(),
            handshakes: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            pulses: OnceLock::new(),
        })
    }

    /// Accepts connections on an endpoint until it is closed.
    pub async fn run(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let crowded = self.handshakes.load(Ordering::Relaxed) > HANDSHAKES_UNPROVEN_MAX;
            if crowded && !incoming.validated() {
                incoming.retry();
                continue;
            }
            self.tasks.spawn(Arc::clone(&self).welcome(incoming));
        }
    }

    /// Answers heartbeats. Without, probes are refused.
    pub fn probed_by(&self, pulses: Pulses) {
        // A node has one set of detectors.
        let _ = self.pulses.set(pulses);
    }

    /// This node's id.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.me.node
    }

    /// Tells every peer to open no new exchanges here, now and when it links later; or that they may again.
    pub fn drain(&self, on: bool) {
        self.draining.store(on, Ordering::Relaxed);
        self.links
            .lock()
            .iter()
            .for_each(|link| link.announce_drain(on));
    }

    /// State of the links that others dialled: how many are up.
    #[must_use]
    pub fn links_up(&self) -> usize {
        self.links.lock().len()
    }

    /// Serves a connection within the process, as if a peer of that name had dialled.
    ///
    /// # Errors
    /// When the other end does not greet as a node.
    pub async fn adopt(
        self: &Arc<Self>,
        connection: Connection,
        peer: Arc<str>,
    ) -> Result<(), link::Error> {
        let ready = Link::accepted(connection, &self.me, peer, "memory".into()).await?;
        self.tasks.spawn(Arc::clone(self).serve(ready));
        Ok(())
    }

    async fn welcome(self: Arc<Self>, incoming: Incoming) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
        let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.greet(incoming)).await;
        self.handshakes.fetch_sub(1, Ordering::Relaxed);
        match greeted {
            Ok(Some(Guest::Link(ready))) => self.serve(ready).await,
            Ok(Some(Guest::Probe(link, probe))) => {
                if let Some(pulses) = self.pulses.get() {
                    pulses.answer(link, probe).await;
                }
            }
            Ok(None) | Err(_) => {}
        }
    }

    async fn greet(&self, incoming: Incoming) -> Option<Guest> {
        let is_probe = incoming.is_probe();
        let connection = match incoming.complete().await {
            Ok(connection) => connection,
            Err(error) => {
                // A stranger or a scanner; worth a line only to whoever looks for one.
                tracing::debug!(%error, "handshake failed");
                return None;
            }
        };
        let address: Arc<str> = connection.remote_address().to_string().into();
        let peer = self.credentials.peer(&connection.peer_certificates());
        let Some(peer) = peer.filter(|peer| {
            peer.roles
                .iter()
                .any(|role| role == "ingress" || role == "relay")
        }) else {
            tracing::warn!(%address, "connection refused: certificate of no ingress or relay");
            Connection::Quic(connection).close("not an ingress or relay of this network");
            return None;
        };
        if is_probe {
            return self.probe_of(&peer.node, connection).await;
        }
        let connection = Connection::Quic(connection);
        if self.links.lock().len() >= LINKS_MAX {
            tracing::warn!(%address, peer = %peer.node, "connection refused: too many links");
            connection.close("too many links");
            return None;
        }
        match Link::accepted(connection, &self.me, peer.node, address).await {
            Ok(ready) => Some(Guest::Link(ready)),
            Err(error) => {
                tracing::warn!(%error, "link refused");
                None
            }
        }
    }

    /// Only a peer's own links are watched by its probes.
    async fn probe_of(&self, peer: &str, connection: quic::Connection) -> Option<Guest> {
        let probe = connection.into_probe();
        let links = || {
            let links = self.links.lock();
            let of_peer = links.iter().filter(|link| *link.peer == *peer);
            of_peer.cloned().collect()
        };
        let Some(link) = pulse::link_of(&probe, links).await else {
            tracing::debug!(peer, "probe refused: of no link that is here");
            probe.close("of no link that is here");
            return None;
        };
        Some(Guest::Probe(link, probe))
    }

    async fn serve(self: Arc<Self>, ready: link::Ready) {
        let link = Arc::clone(&ready.link);
        self.links.lock().push(Arc::clone(&link));
        if self.draining.load(Ordering::Relaxed) {
            link.announce_drain(true);
        }
        tracing::info!(peer = %link.peer, address = %link.address, "link accepted");
        tokio::select! {
            () = ready.serve() => {}
            () = self.streams(&link) => link.close("stream limit"),
        }
        self.links.lock().retain(|other| !Arc::ptr_eq(other, &link));
        tracing::info!(peer = %link.peer, address = %link.address, "link ended");
    }

    /// Takes streams until the connection is gone; its control stream ends then, too.
    async fn streams(self: &Arc<Self>, link: &Arc<Link>) {
        while let Ok((send, receive)) = link.accept_stream().await {
            let stream = Stream {
                acceptor: Arc::clone(self),
                link: Arc::clone(link),
                send,
                receive,
            };
            self.tasks.spawn(stream.serve());
        }
        link.closed().await;
    }
}

/// One attachment that a peer opened.
struct Stream {
    acceptor: Arc<Acceptor>,
    link: Arc<Link>,
    send: Sender,
    receive: Receiver,
}

impl Stream {
    async fn serve(mut self) {
        let Ok(read) =
            tokio::time::timeout(PREAMBLE_TIMEOUT, read_preamble(&mut self.receive)).await
        else {
            return;
        };
        let opened = read
            .map_err(|error| error.to_string())
            .and_then(|(kind, payload, rest)| {
                let (exchange, open) =
                    read_open(kind, payload).map_err(|error| error.to_string())?;
                Ok((exchange, open, rest))
            });
        let (exchange, open, rest) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(peer = %self.link.peer, error, "stream refused");
                self.refuse(Code::Protocol, "the stream does not begin with an OPEN")
                    .await;
                return;
            }
        };
        let me = &self.acceptor.me.node;
        if open.egress == *me {
            match self.acceptor.arrivals.clone() {
                Some(handler) => self.arrive(exchange, open, rest, handler).await,
                None => self.refuse(Code::Protocol, "this node is no egress").await,
            }
        } else {
            match self.acceptor.transits.clone() {
                Some(handler) => {
                    let Self {
                        link,
                        send,
                        receive,
                        ..
                    } = self;
                    handler(Transit {
                        exchange,
                        open,
                        link,
                        send,
                        receive,
                        rest,
                    })
                    .await;
                }
                None => {
                    self.refuse(
                        Code::Protocol,
                        "this node is neither that egress nor a relay",
                    )
                    .await
                }
            }
        }
    }

    async fn arrive(
        self,
        exchange: ExchangeId,
        open: v1::Open,
        rest: Bytes,
        handler: ArrivalHandler,
    ) {
        let Self {
            link,
            send,
            receive,
            ..
        } = self;
        let shared = Shared::new(exchange, Some(CancellationToken::new()));
        shared.outgoing.lock().allow(open.response_credit);
        if !link.register(exchange, Target::Here(Arc::clone(&shared))) {
            // Cancelled before it came.
            return;
        }
        let from = Arc::clone(&link.peer);
        handler(Arrival {
            exchange,
            from,
            open,
            shared,
            link,
            send,
            receive,
            rest,
        })
        .await;
    }

    async fn refuse(mut self, code: Code, message: &str) {
        let refused = v1::Refused {
            code: code.to_string(),
            message: message.into(),
            untouched: true,
            ..v1::Refused::default()
        };
        // If it cannot be said, the peer is gone.
        let _ = self
            .send
            .write(&mut [codec::message(Kind::Refused, &refused)])
            .await;
        self.send.finish();
    }
}

fn read_open(kind: Kind, payload: Bytes) -> Result<(ExchangeId, v1::Open), codec::Error> {
    if kind != Kind::Open {
        return Err(codec::Error::OutOfPlace(kind));
    }
    let open = v1::Open::decode(payload).map_err(|_| codec::Error::Malformed(kind))?;
    let exchange =
        ExchangeId::try_from(&open.exchange[..]).map_err(|_| codec::Error::Malformed(kind))?;
    Ok((exchange, open))
}
