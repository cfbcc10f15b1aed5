//! Real QUIC connections of quinn-proto in virtual time, over one shared [`Link`].
//!
//! Every flow is a client that sends to a server of its own. What flows back (acknowledgements)
//! has a delay but no bottleneck. Nothing sleeps: the clock jumps to the next thing that happens.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, ServerConfig, StreamEvent, StreamId, TransportConfig, VarInt, congestion,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::link::{Line, Link};

/// Windows of our tunnel: see `transport::quic`.
const STREAM_WINDOW_BYTES: u32 = 2_621_440;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// What makes a flow's congestion controller.
pub(crate) type Factory = Arc<dyn congestion::ControllerFactory + Send + Sync>;

/// One sender.
#[derive(Clone)]
pub(crate) struct Flow {
    pub(crate) factory: Factory,
    /// Streams that never run out of data.
    pub(crate) streams: usize,
    /// When it begins.
    pub(crate) start: Duration,
    /// What a stream sends: nothing for without end, or so many bytes at these times.
    pub(crate) bursts: Option<Vec<(Duration, usize)>>,
}

impl Flow {
    pub(crate) fn bulk(factory: &Factory, streams: usize) -> Self {
        Self {
            factory: Arc::clone(factory),
            streams,
            start: Duration::ZERO,
            bursts: None,
        }
    }

    pub(crate) const fn starting(mut self, start: Duration) -> Self {
        self.start = start;
        self
    }
}

/// What is measured from one moment to another.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Megabits a second that each flow's receiver read.
    pub(crate) mbps: Vec<f64>,
    pub(crate) queue_mean_ms: f64,
    pub(crate) queue_p95_ms: f64,
    pub(crate) lost: f64,
    /// Whether a connection died.
    pub(crate) died: bool,
}

struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    timeout: Option<Instant>,
}

struct Running {
    flow: Flow,
    client: End,
    server: End,
    config: ClientConfig,
    started: bool,
    streams: Vec<StreamId>,
    next_burst: usize,
    owed: usize,
    read: u64,
    /// When the last byte so far was read.
    read_at: Instant,
    dirty: bool,
    died: bool,
}

struct Arrival {
    at: Instant,
    order: u64,
    flow: usize,
    to_server: bool,
    data: BytesMut,
}

impl PartialEq for Arrival {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Arrival {}
impl PartialOrd for Arrival {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Arrival {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// The line, its flows and the clock.
pub(crate) struct World {
    began: Instant,
    now: Instant,
    rng: fastrand::Rng,
    link: Link,
    flows: Vec<Running>,
    arrivals: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    buffer: Vec<u8>,
}

impl World {
    pub(crate) fn new(seed: u64, line: Line, flows: &[Flow]) -> Self {
        let now = Instant::now();
        let mut rng = fastrand::Rng::with_seed(seed);
        let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let flows = flows
            .iter()
            .map(|flow| Running::new(flow.clone(), &key, now, &mut rng))
            .collect();
        Self {
            began: now,
            now,
            rng,
            link: Link::new(line, now),
            flows,
            arrivals: BinaryHeap::new(),
            order: 0,
            buffer: Vec::with_capacity(2048),
        }
    }

    /// The line becomes another.
    pub(crate) fn change(&mut self, line: Line) {
        self.link.change(self.now, line);
    }

    /// Bytes that a flow's receiver has read, and when the last of them came.
    pub(crate) fn read(&self, flow: usize) -> (u64, Duration) {
        let running = &self.flows[flow];
        (running.read, running.read_at - self.began)
    }

    /// Runs without measuring.
    pub(crate) fn run_until(&mut self, end: Duration) {
        let end = self.began + end;
        while let Some(at) = self.next_event().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.deliver();
            for index in 0..self.flows.len() {
                self.turn(index);
            }
        }
        self.now = end;
    }

    /// Runs until then and says what went through.
    pub(crate) fn measure_until(&mut self, end: Duration) -> Measured {
        self.link.forget();
        let before: Vec<u64> = self.flows.iter().map(|flow| flow.read).collect();
        let from = self.now;
        self.run_until(end);
        let seconds = (self.now - from).as_secs_f64();
        let rate =
            |(flow, before): (&Running, &u64)| (flow.read - before) as f64 * 8.0 / 1e6 / seconds;
        let mbps = self.flows.iter().zip(&before).map(rate).collect();
        let (queue_mean_ms, queue_p95_ms, lost) = self.link.measured();
        Measured {
            mbps,
            queue_mean_ms,
            queue_p95_ms,
            lost,
            died: self.flows.iter().any(|flow| flow.died),
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let arrival = self.arrivals.peek().map(|arrival| arrival.0.at);
        let flows = self.flows.iter().filter_map(|flow| flow.next(self.began));
        arrival.into_iter().chain(flows).min()
    }

    fn deliver(&mut self) {
        while let Some(Reverse(arrival)) = self
            .arrivals
            .peek()
            .is_some_and(|next| next.0.at <= self.now)
            .then(|| self.arrivals.pop())
            .flatten()
        {
            let flow = &mut self.flows[arrival.flow];
            flow.dirty = true;
            let end = if arrival.to_server {
                &mut flow.server
            } else {
                &mut flow.client
            };
            end.handle(self.now, arrival.data);
        }
    }

    /// Lets one flow act on what happened, and carries what it sends.
    fn turn(&mut self, index: usize) {
        let now = self.now;
        let flow = &mut self.flows[index];
        flow.wake(now, self.began);
        if !std::mem::take(&mut flow.dirty) {
            return;
        }
        flow.read_all(now);
        flow.write_all(now, self.began);
        let half = self.link.line().rtt / 2;
        for to_server in [true, false] {
            let end = if to_server {
                &mut flow.client
            } else {
                &mut flow.server
            };
            loop {
                self.buffer.clear();
                let Some(size) = end.transmit(now, &mut self.buffer) else {
                    break;
                };
                let at = if to_server {
                    self.link.carry(now, size, &mut self.rng)
                } else {
                    Some(now + half)
                };
                let Some(at) = at else { continue };
                self.order += 1;
                self.arrivals.push(Reverse(Arrival {
                    at,
                    order: self.order,
                    flow: index,
                    to_server,
                    data: BytesMut::from(&self.buffer[..size]),
                }));
            }
            end.settle();
        }
    }
}

impl Running {
    fn new(
        flow: Flow,
        key: &rcgen::CertifiedKey<rcgen::KeyPair>,
        now: Instant,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let secret =
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.signing_key.serialize_der()));
        let chain = vec![CertificateDer::from(key.cert.der().to_vec())];
        let versions: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
        let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain.clone(), secret)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(chain[0].clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = QuicServerConfig::try_from(server).unwrap();
        let mut server = ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(Arc::new(transport(&flow.factory)));
        let client = QuicClientConfig::try_from(client).unwrap();
        let mut config = ClientConfig::new(Arc::new(client));
        config.transport_config(Arc::new(transport(&flow.factory)));
        let mut end = |server| {
            let seed = std::array::from_fn(|_| rng.u8(..));
            let config = Arc::new(EndpointConfig::default());
            End {
                endpoint: Endpoint::new(config, server, false, Some(seed)),
                connection: None,
                timeout: None,
            }
        };
        Self {
            client: end(None),
            server: end(Some(Arc::new(server))),
            flow,
            config,
            started: false,
            streams: Vec::new(),
            next_burst: 0,
            owed: 0,
            read: 0,
            read_at: now,
            dirty: false,
            died: false,
        }
    }

    fn next(&self, began: Instant) -> Option<Instant> {
        if !self.started {
            return Some(began + self.flow.start);
        }
        let bursts = self.flow.bursts.as_ref();
        let burst = bursts.and_then(|bursts| bursts.get(self.next_burst));
        let burst = burst.map(|(at, _)| began + *at);
        let ends = [self.client.timeout, self.server.timeout, burst];
        ends.into_iter().flatten().min()
    }

    fn wake(&mut self, now: Instant, began: Instant) {
        if !self.started {
            if began + self.flow.start <= now {
                self.started = true;
                let to = address(4433);
                let made = self
                    .client
                    .endpoint
                    .connect(now, self.config.clone(), to, "localhost");
                self.client.connection = Some(made.unwrap());
                self.dirty = true;
            }
            return;
        }
        for end in [&mut self.client, &mut self.server] {
            if end.timeout.is_some_and(|at| at <= now)
                && let Some((_, connection)) = &mut end.connection
            {
                connection.handle_timeout(now);
                self.dirty = true;
            }
        }
        let due = |bursts: &Vec<(Duration, usize)>, next: usize| {
            bursts.get(next).is_some_and(|(at, _)| began + *at <= now)
        };
        if let Some(bursts) = &self.flow.bursts
            && due(bursts, self.next_burst)
        {
            self.dirty = true;
        }
    }

    fn read_all(&mut self, now: Instant) {
        let Some((_, connection)) = &mut self.server.connection else {
            return;
        };
        while let Some(event) = connection.poll() {
            match event {
                Event::Stream(StreamEvent::Opened { dir }) => {
                    while let Some(id) = connection.streams().accept(dir) {
                        self.read += drain(connection, id);
                        self.read_at = now;
                    }
                }
                Event::Stream(StreamEvent::Readable { id }) => {
                    self.read += drain(connection, id);
                    self.read_at = now;
                }
                Event::ConnectionLost { .. } => self.died = true,
                _ => {}
            }
        }
    }

    fn write_all(&mut self, now: Instant, began: Instant) {
        let Some((_, connection)) = &mut self.client.connection else {
            return;
        };
        let mut write = false;
        while let Some(event) = connection.poll() {
            match event {
                Event::Connected => {
                    let open = |_| connection.streams().open(Dir::Bi).unwrap();
                    self.streams = (0..self.flow.streams).map(open).collect();
                    write = true;
                }
                Event::Stream(StreamEvent::Writable { .. }) => write = true,
                Event::ConnectionLost { .. } => self.died = true,
                _ => {}
            }
        }
        if let Some(bursts) = &self.flow.bursts {
            while let Some((at, bytes)) = bursts.get(self.next_burst)
                && began + *at <= now
            {
                self.owed += bytes;
                self.next_burst += 1;
            }
            let Some(&id) = self.streams.first() else {
                return;
            };
            while self.owed > 0 {
                let chunk = &[0; 65536][..self.owed.min(65536)];
                let Ok(written) = connection.send_stream(id).write(chunk) else {
                    break;
                };
                self.owed -= written;
            }
        } else if write {
            for &id in &self.streams {
                let mut chunks = [const { Bytes::from_static(&[7; 65536]) }; 1];
                while connection.send_stream(id).write_chunks(&mut chunks).is_ok() {
                    chunks = [const { Bytes::from_static(&[7; 65536]) }; 1];
                }
            }
        }
    }
}

fn drain(connection: &mut Connection, id: StreamId) -> u64 {
    let mut stream = connection.recv_stream(id);
    let Ok(mut chunks) = stream.read(true) else {
        return 0;
    };
    let mut read = 0;
    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
        read += chunk.bytes.len() as u64;
    }
    let _ = chunks.finalize();
    read
}

impl End {
    fn handle(&mut self, now: Instant, data: BytesMut) {
        let mut reply = Vec::new();
        let event = self
            .endpoint
            .handle(now, address(4433), None, None, data, &mut reply);
        match event {
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.connection = self.endpoint.accept(incoming, now, &mut reply, None).ok();
            }
            Some(DatagramEvent::ConnectionEvent(_, event)) => {
                if let Some((_, connection)) = &mut self.connection {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::Response(_)) | None => {}
        }
    }

    fn transmit(&mut self, now: Instant, buffer: &mut Vec<u8>) -> Option<usize> {
        let (_, connection) = self.connection.as_mut()?;
        connection
            .poll_transmit(now, 1, buffer)
            .map(|sent| sent.size)
    }

    fn settle(&mut self) {
        let Some((handle, connection)) = &mut self.connection else {
            return;
        };
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = self.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        self.timeout = connection.poll_timeout();
    }
}

fn transport(factory: &Factory) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(64_u32.into())
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .send_fairness(true)
        .initial_rtt(Duration::from_millis(100))
        .initial_mtu(1400)
        .congestion_controller_factory(Arc::clone(factory) as _);
    config
}

const fn address(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}
