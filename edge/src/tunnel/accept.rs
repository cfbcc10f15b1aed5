//! Takes connections and streams from other nodes.
//!
//! The accept loop only accepts: handshakes, HELLO and preambles are read in tasks, each with a
//! deadline. A certificate decides who a peer is; a peer that may not send exchanges is cut off.

mod room;

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
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
    Arrival, ArrivalHandler, Credentials, Peer, TransitHandler, Tunnel,
    end::{End, Origin, Side},
    inbound::{self, Inbound, Preamble, Transit},
    link::{self, Link},
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

/// Relays that are remembered of one exchange.
const VIA_MAX: usize = 8;

/// Takes what other nodes send.
pub struct Acceptor {
    tunnel: Tunnel,
    credentials: Arc<dyn Credentials>,
    me: v1::Hello,
    arrivals: Option<ArrivalHandler>,
    transits: Option<TransitHandler>,
    tasks: TaskTracker,
    links: parking_lot::Mutex<Vec<Arc<Link>>>,
    handshakes: AtomicUsize,
    draining: AtomicBool,
    /// Nobody is taken any more.
    shut: AtomicBool,
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
        tunnel: Tunnel,
        credentials: Arc<dyn Credentials>,
        me: v1::Hello,
        arrivals: Option<ArrivalHandler>,
        transits: Option<TransitHandler>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        if let Some(transits) = &transits {
            tunnel.pass_on(transits);
        }
        Arc::new(Self {
            tunnel,
            credentials,
            me,
            arrivals,
            transits,
            tasks,
            links: parking_lot::Mutex::default(),
            handshakes: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            pulses: OnceLock::new(),
        })
    }

    /// Accepts connections on an endpoint until it is closed.
    pub async fn run(self: Arc<Self>, endpoint: Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            if self.shut.load(Ordering::Relaxed) {
                incoming.refuse();
                continue;
            }
            let crowded = self.handshakes.load(Ordering::Relaxed) > HANDSHAKES_UNPROVEN_MAX;
            if crowded && !incoming.validated() {
                incoming.retry();
                continue;
            }
            let pulses = self.pulses.get().filter(|_| incoming.is_probe());
            let welcome = Arc::clone(&self).welcome(incoming);
            match pulses {
                Some(pulses) => pulses.spawn(&self.tasks, welcome),
                None => self.tasks.spawn(welcome),
            };
        }
    }

    /// Takes no connection any more. Those there are stay.
    pub(super) fn shut(&self) {
        self.shut.store(true, Ordering::Relaxed);
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
        let peer = Peer {
            node: peer,
            roles: vec!["ingress".into(), "relay".into()],
        };
        let (tunnel, address) = (&self.tunnel, "memory".into());
        let ready = Link::accepted(tunnel, connection, &self.me, peer, address).await?;
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
        let Some(peer) = self.credentials.peer(&connection.peer_certificates()) else {
            tracing::warn!(%address, "connection refused: certificate of no node, or of one that was removed");
            connection.revoke();
            return None;
        };
        let sends = |role: &String| role == "ingress" || role == "relay";
        if !peer.roles.iter().any(sends) {
            tracing::warn!(%address, peer = %peer.node, "connection refused: certificate of no ingress or relay");
            Connection::Quic(connection).close("not an ingress or relay of this network");
            return None;
        }
        if is_probe {
            return self.probe_of(&peer.node, connection).await;
        }
        let connection = Connection::Quic(connection);
        if let Err(reason) = self.has_room(&peer.node, &address) {
            connection.close(reason);
            return None;
        }
        match Link::accepted(&self.tunnel, connection, &self.me, peer, address).await {
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
        if let Err(reason) = self.seat(&link) {
            return link.close(reason);
        }
        self.tunnel.add_accepted(&link);
        // It may have been revoked since it was greeted, and nobody else has seen it until now.
        let _closed = link.close_if_revoked(&*self.credentials);
        if self.draining.load(Ordering::Relaxed) {
            link.announce_drain(true);
        }
        tracing::info!(peer = %link.peer, address = %link.address, "link accepted");
        tokio::select! {
            () = ready.serve() => {}
            () = self.streams(&link) => link.close("stream limit"),
        }
        self.links.lock().retain(|other| !Arc::ptr_eq(other, &link));
        self.tunnel.remove_accepted(&link);
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

/// Whether the same OPEN came before, over another path.
fn is_another_path(end: &End, open: &v1::Open) -> bool {
    end.attempt == open.attempt && open.attach_seq > 0
}

/// Whether it is a later attempt, after one that has ended, or that is given up for it as nothing was asked by it.
fn is_later(end: &Arc<End>, open: &v1::Open) -> bool {
    end.attempt < open.attempt && (end.sending.lock().ended || end.give_up())
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
        let inbound = match inbound::begin(&mut self.receive).await {
            Some(Ok(inbound)) => inbound,
            Some(Err(error)) => {
                tracing::warn!(peer = %self.link.peer, error, "stream refused");
                let message = "the stream does not begin with an OPEN";
                return self.refuse(Code::Protocol, message).await;
            }
            None => return,
        };
        let me = &self.acceptor.me.node;
        match &inbound.preamble {
            Preamble::Open(open) if open.egress == *me => {
                // Boxed and gone while the exchange runs.
                if let Some(run) = Box::pin(self.open(inbound)).await {
                    run.await;
                }
            }
            Preamble::Attach(attach) if attach.egress == *me => {
                let Self {
                    link,
                    send,
                    receive,
                    ..
                } = self;
                let (attach, rest) = (attach.clone(), inbound.rest);
                let tunnel = link.tunnel.clone();
                tunnel.attached(&link, attach, (send, receive), rest).await;
            }
            Preamble::Open(_) | Preamble::Attach(_) => self.pass(inbound).await,
        }
    }

    async fn pass(self, inbound: Inbound) {
        let Some(handler) = self.acceptor.transits.clone() else {
            let message = "this node is neither that egress nor a relay";
            return self.refuse(Code::Protocol, message).await;
        };
        let Inbound {
            exchange,
            preamble,
            rest,
        } = inbound;
        let Self {
            link,
            send,
            receive,
            ..
        } = self;
        let transit = Transit {
            exchange,
            preamble,
            link,
            send,
            receive,
            rest,
        };
        handler(transit).await;
    }

    /// What executes the exchange that an OPEN begins; None if it is refused, or runs already.
    async fn open(self, inbound: Inbound) -> Option<BoxFuture<'static, ()>> {
        let Inbound {
            exchange,
            preamble: Preamble::Open(open),
            rest,
        } = inbound
        else {
            return None;
        };
        let Some(handler) = self.acceptor.arrivals.clone() else {
            self.refuse(Code::Protocol, "this node is no egress").await;
            return None;
        };
        let origin: Arc<str> = match open.ingress.as_str() {
            "" => Arc::clone(&self.link.peer),
            ingress if self.link.is_relay() => ingress.into(),
            _ => {
                let message = "only a relay passes on what others open";
                self.refuse(Code::Protocol, message).await;
                return None;
            }
        };
        if self.link.was_cancelled(exchange, open.attempt) {
            return None;
        }
        let known = self.link.tunnel.end(Side::Egress, exchange);
        let running = match known {
            None => self.enter(exchange, &open, &origin, None),
            // Its refusal is on its way, or was lost with it; the ingress is further than that.
            Some(end) if end.far == origin && is_later(&end, &open) => {
                self.enter(exchange, &open, &origin, Some(&end))
            }
            Some(end) => Err(end),
        };
        match running {
            Ok(end) => return Some(self.arrive(*open, end, rest, &handler)),
            Err(end) if end.far == origin && is_another_path(&end, &open) => {
                self.again(&end, &open, rest).await;
            }
            Err(_) => {
                let message = "the exchange runs already";
                self.refuse(Code::Protocol, message).await;
            }
        }
        None
    }

    /// Makes the exchange known in place of `known`. The same OPEN may come over two paths at once: one of them enters, the
    /// other finds what the first has entered.
    fn enter(
        &self,
        exchange: ExchangeId,
        open: &v1::Open,
        origin: &Arc<str>,
        known: Option<&Arc<End>>,
    ) -> Result<Arc<End>, Arc<End>> {
        let origin = Origin {
            exchange,
            side: Side::Egress,
            far: Arc::clone(origin),
            attempt: open.attempt,
            epoch: self.acceptor.me.epoch,
            via: open.via.iter().take(VIA_MAX).cloned().collect(),
            redundant: open.redundant,
            repeatable: open.repeatable,
            repaired: open.repaired,
            ahead: open.ahead,
            stop: Some(CancellationToken::new()),
        };
        let end = End::new(&self.link.tunnel, &self.link, origin);
        end.sending.lock().outgoing.allow(open.response_credit);
        let arrivals = self.link.tunnel.arrivals();
        arrivals.enter_unless(&end, known)?;
        Ok(end)
    }

    /// The exchange is known: this is another path to it.
    async fn again(self, end: &Arc<End>, open: &v1::Open, rest: Bytes) {
        if open.egress_epoch != 0 && open.egress_epoch != self.acceptor.me.epoch {
            let message = "the egress was restarted after the exchange began";
            return self.refuse(Code::PathBroken, message).await;
        }
        let Self {
            link,
            send,
            receive,
            ..
        } = self;
        let (tunnel, number) = (link.tunnel.clone(), open.attach_seq);
        let streams = (send, receive);
        tunnel.reopened(end, &link, number, streams, rest).await;
    }

    fn arrive(
        self,
        open: v1::Open,
        end: Arc<End>,
        rest: Bytes,
        handler: &ArrivalHandler,
    ) -> BoxFuture<'static, ()> {
        let Self {
            link,
            send,
            receive,
            ..
        } = self;
        handler(Arrival {
            exchange: end.exchange,
            from: Arc::clone(&link.peer),
            open,
            end,
            link,
            send,
            receive,
            rest,
        })
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
