//! The connection that carries heartbeats: beside the data, over the same socket.
//!
//! Bulk data never delays it, and routers that choose a way by addresses and ports choose the same
//! one for both. What comes late is worthless here, so buffers are tiny and nothing holds a
//! heartbeat back: there is no congestion control for 8 KB a second.

use std::{
    any::Any,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::{
    ConnectionError, ConnectionId, VarInt,
    congestion::{Controller, ControllerFactory},
};

use super::{Connection, Endpoint, Error, Reader, connection_lost};

/// What both ends of a probe connection offer in TLS.
pub const ALPN: &[u8] = b"vector-probe/1";

/// Begins the connection id that a prober first sends to, so that the acceptor can choose settings
/// before it has read anything else. That it is one, only [`ALPN`] shows.
const MARK: [u8; 8] = *b"vecprobe";

/// Silence after which the connection is lost. The detector is done long before.
const IDLE: Duration = Duration::from_secs(10);

/// About a dozen heartbeats: older ones that could not be sent are of no use.
const SEND_BUFFER_BYTES: usize = 512;

/// Heartbeats that may wait while this process is busy.
const RECEIVE_BUFFER_BYTES: usize = 4 << 10;

/// In flight at most: two minutes of heartbeats at 10 ms that nobody acknowledges.
const WINDOW_BYTES: u64 = 1 << 20;

/// Says which link a probe belongs to.
pub type Tag = [u8; 16];

/// A probe connection.
#[derive(Clone)]
pub struct Probe(quinn::Connection, Arc<Reader>);

impl Endpoint {
    /// Dials a peer for a probe, over the same socket as everything else.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn probe(
        &self,
        address: SocketAddr,
        name: &str,
        client: &rustls::ClientConfig,
    ) -> Result<Probe, Error> {
        let lost = |error: &dyn fmt::Display| Error::ConnectionLost(error.to_string());
        let mut client = client.clone();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(client)
            .map_err(|error| lost(&error))?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config
            .transport_config(Arc::new(transport_config()))
            .initial_dst_cid_provider(Arc::new(marked));
        let connecting = self
            .endpoint
            .connect_with(config, address, name)
            .map_err(|error| lost(&error))?;
        match connecting.await {
            Ok(connection) => Ok(Probe(connection, Arc::clone(&self.reader))),
            Err(error) => Err(connection_lost(error)),
        }
    }
}

impl Connection {
    /// The same connection, for heartbeats.
    #[must_use]
    pub fn into_probe(self) -> Probe {
        Probe(self.connection, self.reader)
    }

    /// What both ends of this connection know, and nobody else: a probe says it to show which link it is for.
    #[must_use]
    pub fn tag(&self) -> Tag {
        let mut tag = Tag::default();
        // Fails only for lengths that TLS does not make.
        let _ = self
            .connection
            .export_keying_material(&mut tag, b"vector probe", b"");
        tag
    }
}

impl Probe {
    /// Says which link it is for.
    ///
    /// # Errors
    /// [`Error`] when the connection is gone.
    pub async fn tell(&self, tag: &Tag) -> Result<(), Error> {
        let mut stream = self.0.open_uni().await.map_err(connection_lost)?;
        let wrote = stream.write_all(tag).await;
        wrote.map_err(|error| Error::ConnectionLost(error.to_string()))?;
        // Fails only on a stream that is finished or reset already.
        let _ = stream.finish();
        Ok(())
    }

    /// What link the peer says it is for.
    ///
    /// # Errors
    /// [`Error`] when the connection is gone, or the peer says something else.
    pub async fn told(&self) -> Result<Tag, Error> {
        let mut tag = Tag::default();
        let mut stream = self.0.accept_uni().await.map_err(connection_lost)?;
        let read = stream.read_exact(&mut tag).await;
        read.map_err(|error| Error::ConnectionLost(error.to_string()))?;
        Ok(tag)
    }

    /// Sends a heartbeat, at once or never.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`].
    pub fn send(&self, beat: &[u8]) -> Result<(), Error> {
        self.0
            .send_datagram(Bytes::copy_from_slice(beat))
            .map_err(|error| Error::ConnectionLost(error.to_string()))
    }

    /// The next heartbeat.
    ///
    /// Cancel safety: dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`].
    pub async fn read(&self) -> Result<Bytes, Error> {
        self.0.read_datagram().await.map_err(connection_lost)
    }

    /// Takes from the socket what nobody has had time to take. Heartbeats among it can be read a turn of this task later.
    pub fn read_now(&self) {
        self.1.read_now();
    }

    /// Whether the peer no longer knew the connection: it is another process now.
    #[must_use]
    pub fn was_reset(&self) -> bool {
        matches!(self.0.close_reason(), Some(ConnectionError::Reset))
    }

    /// Closes it.
    pub fn close(&self, reason: &'static str) {
        self.0.close(VarInt::from_u32(0), reason.as_bytes());
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "probe({})", self.0.remote_address())
    }
}

/// Whether a connection id is a prober's.
pub(super) fn is_marked(id: ConnectionId) -> bool {
    id.starts_with(&MARK)
}

/// The mark and 96 random bits.
fn marked() -> ConnectionId {
    let mut id = [0; 20];
    let (mark, random) = id.split_at_mut(MARK.len());
    mark.copy_from_slice(&MARK);
    fastrand::fill(random);
    ConnectionId::new(&id)
}

pub(super) fn server_config(server: &rustls::ServerConfig) -> std::io::Result<quinn::ServerConfig> {
    let mut server = server.clone();
    server.alpn_protocols = vec![ALPN.to_vec()];
    let crypto =
        quinn::crypto::rustls::QuicServerConfig::try_from(server).map_err(std::io::Error::other)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport_config()))
        .migration(false);
    Ok(config)
}

fn transport_config() -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config
        .max_concurrent_bidi_streams(0_u32.into())
        .max_concurrent_uni_streams(1_u32.into())
        .receive_window(1024_u32.into())
        .initial_rtt(Duration::from_millis(100))
        .mtu_discovery_config(None)
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES))
        .datagram_send_buffer_size(SEND_BUFFER_BYTES)
        .congestion_controller_factory(Arc::new(Unhindered));
    if let Ok(idle) = IDLE.try_into() {
        config.max_idle_timeout(Some(idle));
    }
    config
}

/// A window that stays as it is.
#[derive(Clone, Copy, Debug)]
struct Unhindered;

impl ControllerFactory for Unhindered {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(*self)
    }
}

impl Controller for Unhindered {
    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, _: u64) {}

    fn on_mtu_update(&mut self, _: u16) {}

    fn window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
