//! The tunnel of one node, started and stopped as a whole: sockets, acceptor, dialer.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use vector_proto::tunnel::v1;

use super::{
    ArrivalHandler, Credentials, Peer, TransitHandler, Tunnel,
    accept::Acceptor,
    dial::{Dialer, Wanted},
    link::{self, Link},
    pulse::{Intervals, PulseThread, Pulses},
    transport::{Connection, congestion::Line, memory, quic::Endpoint},
};

/// Time for answers that are written to be acknowledged, before their links are closed.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Sockets that are bound but not yet served, so that a busy port is found before anything starts.
#[derive(Debug)]
pub struct Sockets(Vec<Endpoint>);

impl Sockets {
    /// Binds every address.
    ///
    /// # Errors
    /// The first address that cannot be bound, named.
    pub fn bind(
        listen: &[SocketAddr],
        credentials: &dyn Credentials,
        reset_key: &[u8; 64],
    ) -> io::Result<Self> {
        Self::bind_over(None, listen, credentials, reset_key)
    }

    /// [`Sockets::bind`] where all of them share a leased line of so many megabits a second.
    ///
    /// # Errors
    /// As for [`Sockets::bind`].
    pub fn bind_over(
        line_mbps: Option<u32>,
        listen: &[SocketAddr],
        credentials: &dyn Credentials,
        reset_key: &[u8; 64],
    ) -> io::Result<Self> {
        let line = line_mbps.map(Line::new);
        let bind = |&address: &SocketAddr| {
            let server = credentials.server();
            // The port is another socket's in the other family.
            let only_v6 = address.port() != 0
                && listen
                    .iter()
                    .any(|other| other.is_ipv4() && other.port() == address.port());
            let bound = Endpoint::bind_over(line.clone(), address, only_v6, server, reset_key);
            bound.map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("tunnel.listen {address} (udp): {error}"),
                )
            })
        };
        listen.iter().map(bind).collect::<io::Result<_>>().map(Self)
    }

    /// Where they are bound.
    #[must_use]
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.0
            .iter()
            .filter_map(|endpoint| endpoint.local_addr().ok())
            .collect()
    }
}

/// What a node's tunnel consists of.
pub struct Parts {
    /// Who this node is.
    pub me: v1::Hello,
    /// How it proves that.
    pub credentials: Arc<dyn Credentials>,
    /// Present on an egress.
    pub arrivals: Option<ArrivalHandler>,
    /// Present on a relay.
    pub transits: Option<TransitHandler>,
    /// How often links are probed.
    pub intervals: Intervals,
    /// Whether that is done on a thread of its own.
    pub own_runtime: bool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts({})", self.me.node)
    }
}

/// The running tunnel of one node.
#[derive(Debug)]
pub struct Network {
    tunnel: Tunnel,
    acceptor: Arc<Acceptor>,
    dialer: Dialer,
    endpoints: Vec<Endpoint>,
    credentials: Arc<dyn Credentials>,
    tasks: TaskTracker,
    pulse_thread: Option<PulseThread>,
    /// Ends what looks after the exchanges.
    _looking: DropGuard,
}

impl Network {
    /// Serves the sockets; links are kept in `tunnel`, which the roles already hold.
    ///
    /// # Errors
    /// When there is no socket at all, or no thread.
    pub fn start(tunnel: Tunnel, sockets: Sockets, parts: Parts) -> io::Result<Self> {
        let Parts {
            me,
            credentials,
            arrivals,
            transits,
            intervals,
            own_runtime,
        } = parts;
        let endpoints = sockets.0;
        let tasks = TaskTracker::new();
        if endpoints.is_empty() {
            return Err(io::Error::other("tunnel.listen is empty"));
        }
        let pulse_thread = own_runtime.then(PulseThread::start).transpose()?;
        let mut pulses = Pulses::new(me.epoch, intervals);
        if let Some(thread) = &pulse_thread {
            pulses = pulses.on(thread);
        }
        let acceptor = Acceptor::new(
            tunnel.clone(),
            Arc::clone(&credentials),
            me.clone(),
            arrivals,
            transits,
            tasks.clone(),
        );
        acceptor.probed_by(pulses.clone());
        for endpoint in &endpoints {
            tasks.spawn(Arc::clone(&acceptor).run(endpoint.clone()));
        }
        let looking = CancellationToken::new();
        tasks.spawn(tunnel.clone().look_after(looking.clone()));
        if tunnel.transits().is_some() {
            tasks.spawn(tunnel.clone().tell_onward(looking.clone()));
        }
        let dialer = Dialer::new(
            tunnel.clone(),
            endpoints.clone(),
            Arc::clone(&credentials),
            me,
            pulses,
            tasks.clone(),
        );
        Ok(Self {
            tunnel,
            acceptor,
            dialer,
            endpoints,
            credentials,
            tasks,
            pulse_thread,
            _looking: looking.drop_guard(),
        })
    }

    /// Links this node to itself, so that its ingress reaches its egress without a network.
    ///
    /// # Errors
    /// Never in practice: both ends are this process.
    pub async fn link_to_self(&self, me: &v1::Hello) -> Result<(), link::Error> {
        let name: Arc<str> = me.node.as_str().into();
        let (here, there) = memory::pair();
        let (ready, adopted) = tokio::join!(
            Link::dialled(
                &self.tunnel,
                Connection::Memory(here),
                me,
                Peer::within(Arc::clone(&name)),
                "self".into()
            ),
            self.acceptor.adopt(Connection::Memory(there), name),
        );
        adopted?;
        let ready = ready?;
        self.tunnel.add(&ready.link);
        self.tasks.spawn(ready.serve());
        Ok(())
    }

    /// Dials what is new in `wanted`, and lets go of what is no longer in it.
    pub fn keep(&mut self, wanted: &[Wanted]) {
        self.dialer.keep(wanted);
    }

    /// Closes the links with these nodes whose certificates count no more. Answers how many there were.
    pub fn revoke<'a>(&self, nodes: impl Iterator<Item = &'a str>) -> usize {
        self.tunnel.revoke(&*self.credentials, nodes)
    }

    /// Closes every link, dials nobody any more and takes nobody: this node was removed itself.
    pub fn leave(&mut self) {
        self.dialer.keep(&[]);
        self.acceptor.shut();
        self.tunnel.leave();
    }

    /// Links that other nodes hold to this one.
    #[must_use]
    pub fn accepted_links(&self) -> usize {
        self.acceptor.links_up()
    }

    /// This node's id.
    #[must_use]
    pub fn name(&self) -> &str {
        self.acceptor.name()
    }

    /// Tells every peer to open no new exchanges here, or that they may again.
    pub fn drain(&self, on: bool) {
        self.acceptor.drain(on);
    }

    /// The handle of its links and exchanges.
    #[must_use]
    pub const fn tunnel(&self) -> &Tunnel {
        &self.tunnel
    }

    /// Closes every link, saying so. Answers that are whole may still arrive; what runs breaks off.
    pub async fn close(self) {
        self.tunnel.settled(LAST_ANSWERS).await;
        drop(self.dialer);
        for endpoint in &self.endpoints {
            endpoint.close("node is going down").await;
        }
        if let Some(thread) = self.pulse_thread {
            thread.stop().await;
        }
    }
}
