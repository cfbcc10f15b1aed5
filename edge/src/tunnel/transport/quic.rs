//! QUIC through quinn, with the settings that long, lossy paths and many small exchanges need.
//!
//! Each number says what it costs when it is wrong. The congestion controller is our own
//! (`congestion`); it is set in one place, [`transport_config`].

pub mod probe;

mod reader;

mod stream;

use std::{
    fmt, io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use quinn::{ConnectionError, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

pub use self::stream::{Receiver, Sender};
use self::{
    reader::{Ground, Reader},
    stream::halves,
};
use super::{Error, congestion};
use crate::tunnel::{budget::GROWN_BYTES_MAX, exchange::REQUEST_CREDIT_BYTES};

/// What both ends offer in TLS; another version of the frames is another name.
pub const ALPN: &[u8] = b"vector/1";

/// Window of one stream. Above about 2.7 MB a slow-start overshoot leaves more gaps than quinn
/// tolerates, and it kills the connection.
const STREAM_WINDOW_BYTES: u32 = 2_621_440;

/// Window of one connection beside what its streams may send at once. An exchange's own credit holds its sender; were this
/// used up first, one stalled reader after the other would stop everybody on the connection.
const CONNECTION_WINDOW_BYTES: u64 = GROWN_BYTES_MAX + (16 << 20);

/// Bytes of one connection that may be on their way.
const SEND_WINDOW_BYTES: u64 = 16 << 20;

/// Streams a peer may have open at first. They are allocated ahead: 1,024 cost 0.4 MiB a connection.
const STREAMS: u32 = 1024;

/// Streams a peer may have open at last.
pub(in crate::tunnel) const STREAMS_MAX: u32 = 16 * STREAMS;

/// First congestion window. With the customary 12 KB a prompt of 64 KB takes two more round trips.
const INITIAL_WINDOW_BYTES: u64 = 512 << 10;

/// Kernel buffers. With the default 208 KiB, bursts of many connections are dropped.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Silence after which a connection is lost. The detector notices within tens of milliseconds; this
/// is for what no detector watches.
const IDLE: Duration = Duration::from_secs(10);

/// How often a silent connection says that it lives: four tries within [`IDLE`].
const KEEP_ALIVE: Duration = Duration::from_millis(2_300);

/// Closes a connection whose peer was removed. Every other close has 0.
const REVOKED: u32 = 1;

/// Repair symbols of one connection that wait, each way: those of two large prompts on a bad path. The oldest give way.
const DATAGRAMS_BYTES: usize = 256 << 10;

/// Handshakes of strangers that may wait. What is above is ignored and comes again.
const INCOMING_MAX: usize = 1024;

/// One UDP socket, and every connection over it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    endpoint: quinn::Endpoint,
    /// For who probes; all others get what the endpoint has by default.
    probe_server: Arc<quinn::ServerConfig>,
    congestion: Arc<congestion::Config>,
    reader: Arc<Reader>,
    local: SocketAddr,
    /// Bound to every IPv6 address, and to those of IPv4 as well.
    both_families: bool,
}

/// A handshake that is not yet done.
#[derive(Debug)]
pub struct Incoming {
    incoming: quinn::Incoming,
    probe_server: Option<Arc<quinn::ServerConfig>>,
    reader: Arc<Reader>,
    local: SocketAddr,
}

/// A connection over the network.
#[derive(Clone)]
pub struct Connection {
    connection: quinn::Connection,
    /// How many streams the peer may have open.
    streams: Arc<AtomicU32>,
    reader: Arc<Reader>,
    local: SocketAddr,
    /// Bytes a second that get through to the peer. Known of what is dialled.
    delivery: Option<Arc<AtomicU64>>,
}

impl Endpoint {
    /// Binds a socket and serves and dials over it.
    ///
    /// `reset_key` must outlive the process: with it a peer learns within one round trip that this
    /// node lost its connections in a restart.
    ///
    /// # Errors
    /// When the socket cannot be bound, or the TLS configuration lacks what QUIC needs.
    pub fn bind(
        address: SocketAddr,
        server: Arc<rustls::ServerConfig>,
        reset_key: &[u8; 64],
    ) -> io::Result<Self> {
        Self::bind_over(None, address, false, server, reset_key)
    }

    /// [`Endpoint::bind`] for a socket whose connections share a leased line, and that leaves its port to IPv4 if `only_v6`.
    ///
    /// # Errors
    /// As for [`Endpoint::bind`].
    pub fn bind_over(
        line: Option<Arc<congestion::Line>>,
        address: SocketAddr,
        only_v6: bool,
        server: Arc<rustls::ServerConfig>,
        reset_key: &[u8; 64],
    ) -> io::Result<Self> {
        let congestion = Arc::new(congestion::Config::new(INITIAL_WINDOW_BYTES, line));
        let (socket, both_families) = bind_socket(address, only_v6)?;
        let local = socket.local_addr()?;
        let probe_server = Arc::new(probe::server_config(&server)?);
        let crypto =
            quinn::crypto::rustls::QuicServerConfig::try_from(server).map_err(io::Error::other)?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(Arc::new(transport_config(&congestion)))
            .migration(false)
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size(64 << 10)
            .incoming_buffer_size_total(16 << 20);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key);
        let config = quinn::EndpointConfig::new(Arc::new(key));
        let reader = Reader::new();
        let ground = Arc::new(Ground(Arc::clone(&reader)));
        let endpoint = quinn::Endpoint::new(config, Some(server), socket, ground)?;
        Ok(Self {
            endpoint,
            probe_server,
            congestion,
            reader,
            local,
            both_families,
        })
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Whether it can send there, as far as the families of addresses go.
    pub(in crate::tunnel) const fn reaches(&self, address: SocketAddr) -> bool {
        self.both_families || self.local.is_ipv4() == address.is_ipv4()
    }

    /// Dials a peer. `name` is what its certificate must say.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn dial(
        &self,
        address: SocketAddr,
        name: &str,
        client: Arc<rustls::ClientConfig>,
    ) -> Result<Connection, Error> {
        let lost = |error: &dyn fmt::Display| Error::ConnectionLost(error.to_string());
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client)
            .map_err(|error| lost(&error))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let delivery = Arc::new(AtomicU64::new(0));
        let congestion = Arc::new(self.congestion.telling(Arc::clone(&delivery)));
        config.transport_config(Arc::new(transport_config(&congestion)));
        let connecting = self
            .endpoint
            .connect_with(config, address, name)
            .map_err(|error| lost(&error))?;
        match connecting.await {
            Ok(connection) => Ok(Connection {
                delivery: Some(delivery),
                ..Connection::new(connection, Arc::clone(&self.reader), self.local)
            }),
            Err(error) => Err(connection_lost(error)),
        }
    }

    /// The next stranger's handshake; `None` when the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        let incoming = self.endpoint.accept().await?;
        let probes = probe::is_marked(incoming.orig_dst_cid());
        Some(Incoming {
            incoming,
            probe_server: probes.then(|| Arc::clone(&self.probe_server)),
            reader: Arc::clone(&self.reader),
            local: self.local,
        })
    }

    /// Closes every connection, saying why, and waits until the peers were told.
    pub async fn close(&self, reason: &'static str) {
        self.endpoint.close(VarInt::from_u32(0), reason.as_bytes());
        self.endpoint.wait_idle().await;
    }
}

impl Incoming {
    /// Whether the stranger has shown that it receives at its address.
    #[must_use]
    pub fn validated(&self) -> bool {
        self.incoming.remote_address_validated()
    }

    /// Whether the stranger wants to send heartbeats, and nothing else.
    #[must_use]
    pub const fn is_probe(&self) -> bool {
        self.probe_server.is_some()
    }

    /// Asks the stranger to show it.
    pub fn retry(self) {
        // Fails only where it was validated already, and then the stranger simply tries again.
        let _ = self.incoming.retry();
    }

    /// Turns the stranger away.
    pub fn refuse(self) {
        self.incoming.refuse();
    }

    /// Completes the handshake.
    ///
    /// # Errors
    /// When it fails, for instance as the certificate is not of this network.
    pub async fn complete(self) -> Result<Connection, Error> {
        let connecting = match self.probe_server {
            Some(config) => self.incoming.accept_with(config),
            None => self.incoming.accept(),
        };
        let connecting = connecting.map_err(connection_lost)?;
        match connecting.await {
            Ok(connection) => Ok(Connection::new(connection, self.reader, self.local)),
            Err(error) => Err(connection_lost(error)),
        }
    }
}

impl Connection {
    fn new(connection: quinn::Connection, reader: Arc<Reader>, local: SocketAddr) -> Self {
        Self {
            connection,
            streams: Arc::new(AtomicU32::new(STREAMS)),
            reader,
            local,
            delivery: None,
        }
    }

    /// The peer's certificate chain, leaf first.
    #[must_use]
    pub fn peer_certificates(&self) -> Vec<rustls::pki_types::CertificateDer<'static>> {
        let identity = self.connection.peer_identity();
        identity
            .and_then(|any| any.downcast().ok())
            .map(|chain| *chain)
            .unwrap_or_default()
    }

    /// The peer's address.
    #[must_use]
    pub fn remote_address(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// Where this node's socket is bound.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.local
    }

    pub(super) async fn open(&self) -> Result<(super::Sender, super::Receiver), Error> {
        let opened = self.connection.open_bi().await;
        opened.map(halves).map_err(connection_lost)
    }

    /// A stream, if the peer takes another one now.
    pub(super) fn open_now(&self) -> Result<(super::Sender, super::Receiver), Error> {
        match self.connection.open_bi().now_or_never() {
            Some(opened) => opened.map(halves).map_err(connection_lost),
            None => Err(Error::Full),
        }
    }

    pub(super) async fn accept(&self) -> Result<(super::Sender, super::Receiver), Error> {
        let accepted = self.connection.accept_bi().await;
        accepted.map(halves).map_err(connection_lost)
    }

    /// Lets the peer open more streams once it uses most of those that it may.
    pub(super) fn make_room(&self, used: u32) {
        let streams = self.streams.load(Ordering::Relaxed);
        if streams >= STREAMS_MAX || used < streams / 4 * 3 {
            return;
        }
        let more = streams * 2;
        let raised =
            self.streams
                .compare_exchange(streams, more, Ordering::Relaxed, Ordering::Relaxed);
        if raised.is_ok() {
            self.connection.set_receive_window(connection_window(more));
            self.connection.set_max_concurrent_bi_streams(more.into());
        }
    }

    pub(super) fn close(&self, reason: &'static str) {
        self.connection
            .close(VarInt::from_u32(0), reason.as_bytes());
    }

    /// Closes it, and lets the peer know that coming back is of no use.
    pub(in crate::tunnel) fn revoke(&self) {
        let why = b"the certificate was revoked";
        self.connection.close(VarInt::from_u32(REVOKED), why);
    }

    pub(super) async fn closed(&self) -> Error {
        connection_lost(self.connection.closed().await)
    }

    pub(super) fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    pub(super) fn delivery(&self) -> u64 {
        let delivery = self.delivery.as_ref();
        delivery.map_or(0, |rate| rate.load(Ordering::Relaxed))
    }

    pub(super) fn packets(&self) -> (u64, u64) {
        let path = self.connection.stats().path;
        (path.sent_packets, path.lost_packets)
    }

    pub(super) fn received(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Largest payload of a datagram that the path takes now.
    pub(in crate::tunnel) fn datagram_bytes_max(&self) -> usize {
        self.connection.max_datagram_size().unwrap_or_default()
    }

    /// Sends something that may get lost.
    pub(in crate::tunnel) fn send_datagram(&self, datagram: Bytes) {
        // It may get lost here as well.
        let _ = self.connection.send_datagram(datagram);
    }

    /// What the peer sent that way; `None` once the connection is gone. Cancel safety: none is lost.
    pub(in crate::tunnel) async fn datagram(&self) -> Option<Bytes> {
        self.connection.read_datagram().await.ok()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "quic({})", self.connection.remote_address())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits `map_err`")]
fn connection_lost(error: ConnectionError) -> Error {
    let revoked = match &error {
        ConnectionError::ApplicationClosed(close) => close.error_code == VarInt::from_u32(REVOKED),
        ConnectionError::ConnectionClosed(close) => close.error_code == alert_revoked(),
        ConnectionError::TransportError(fault) => fault.code == alert_revoked(),
        _ => false,
    };
    if revoked {
        return Error::Revoked;
    }
    Error::ConnectionLost(error.to_string())
}

/// TLS's `certificate_revoked` (RFC 8446, section 6.2), as QUIC carries it.
fn alert_revoked() -> quinn::TransportErrorCode {
    quinn::TransportErrorCode::crypto(44)
}

fn transport_config(congestion: &Arc<congestion::Config>) -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(STREAMS.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(connection_window(STREAMS))
        .send_window(SEND_WINDOW_BYTES)
        .send_fairness(true)
        .initial_rtt(Duration::from_millis(100))
        .initial_mtu(1400)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .datagram_receive_buffer_size(Some(DATAGRAMS_BYTES))
        .datagram_send_buffer_size(DATAGRAMS_BYTES)
        .congestion_controller_factory(Arc::clone(congestion) as _);
    if let Ok(idle) = IDLE.try_into() {
        config.max_idle_timeout(Some(idle));
    }
    config
}

/// Room for the first window of each stream, and for those that are larger.
fn connection_window(streams: u32) -> VarInt {
    let bytes = CONNECTION_WINDOW_BYTES + u64::from(streams) * REQUEST_CREDIT_BYTES;
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

/// A socket, and whether it speaks both families.
fn bind_socket(address: SocketAddr, only_v6: bool) -> io::Result<(UdpSocket, bool)> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // A kernel that allows less gives what it allows; the tunnel then works, with more loss under bursts.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    if only_v6 && address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let both = address.is_ipv6() && address.ip().is_unspecified() && !socket.only_v6()?;
    socket.bind(&address.into())?;
    Ok((socket.into(), both))
}
