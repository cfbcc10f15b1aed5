//! Keeps links to every peer that this node should reach: dialled early, dialled again when lost.

mod busy;

mod pairs;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::tunnel::v1;

use self::busy::{Busy, Seat};
use super::{
    Credentials, Tunnel,
    heartbeat::Detector,
    link::{self, Link},
    pulse::{Door, Pulses},
    transport::{self, Connection, quic::Endpoint},
};

/// First pause after a failed dial. Doubles, with jitter, up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// Longest pause between two dials of one address.
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// Longest pause where either side lets the other's certificate count no more: only news can change that.
const REVOKED_PAUSE: Duration = Duration::from_secs(60);

/// Time for one dial, handshake and HELLO included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the exchanges on a link that is no longer wanted may go on.
const RETIRE_TIMEOUT: Duration = Duration::from_secs(600);

/// A peer's address to keep a link to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Wanted {
    /// The node there.
    pub peer: Arc<str>,
    /// `host:port`.
    pub address: Arc<str>,
}

/// Keeps links to the peers that it is told of.
#[derive(Debug)]
pub struct Dialer {
    tunnel: Tunnel,
    sockets: Vec<Endpoint>,
    credentials: Arc<dyn Credentials>,
    me: v1::Hello,
    pulses: Pulses,
    tasks: TaskTracker,
    /// By the number of the socket, too.
    running: HashMap<(Wanted, usize), CancellationToken>,
    /// Counts what was wanted.
    news: watch::Sender<u64>,
}

impl Dialer {
    /// A dialer that keeps nothing yet, and dials from these sockets; there is one at least. Its tasks run on `tasks`.
    #[must_use]
    pub fn new(
        tunnel: Tunnel,
        sockets: Vec<Endpoint>,
        credentials: Arc<dyn Credentials>,
        me: v1::Hello,
        pulses: Pulses,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            tunnel,
            sockets,
            credentials,
            me,
            pulses,
            tasks,
            running: HashMap::new(),
            news: watch::Sender::default(),
        }
    }

    /// Dials what is new in `wanted`, and lets go of what is no longer in it.
    pub fn keep(&mut self, wanted: &[Wanted]) {
        let pairs = self.pairs(wanted);
        self.running.retain(|known, stop| {
            let stays = pairs.contains(known);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for new in pairs {
            if !self.running.contains_key(&new) {
                let stop = CancellationToken::new();
                self.running.insert(new.clone(), stop.clone());
                self.tasks.spawn(self.keeper(new, stop).keep());
            }
        }
        self.news.send_modify(|count| *count += 1);
    }

    /// From which socket each address is dialled.
    fn pairs(&self, wanted: &[Wanted]) -> HashSet<(Wanted, usize)> {
        let mut peers: BTreeMap<&str, Vec<&Wanted>> = BTreeMap::new();
        for one in wanted {
            peers.entry(&one.peer).or_default().push(one);
        }
        let all = || 0..self.sockets.len();
        let mut chosen = HashSet::new();
        for (peer, addresses) in peers {
            let turn = peer.bytes().map(usize::from).sum();
            let reached: Vec<Vec<usize>> = addresses
                .iter()
                .map(|one| match one.address.parse() {
                    Ok(literal) => all()
                        .filter(|&socket| self.sockets[socket].reaches(literal))
                        .collect(),
                    // A name may stand for either family, today or tomorrow.
                    Err(_) => all().collect(),
                })
                .collect();
            let running = |(address, socket): (usize, usize)| {
                let pair = (Wanted::clone(addresses[address]), socket);
                self.running.contains_key(&pair)
            };
            let mut pairs = pairs::choose(&reached, self.sockets.len(), turn, running);
            // What no socket reaches is tried all the same: whoever tries says so.
            pairs.extend(
                (0..reached.len())
                    .filter(|&at| reached[at].is_empty())
                    .map(|at| (at, 0)),
            );
            let named = |(address, socket): (usize, usize)| (addresses[address].clone(), socket);
            chosen.extend(pairs.into_iter().map(named));
        }
        chosen
    }

    /// The socket that was chosen comes first; the others are for names that have no address of its family.
    fn keeper(&self, (wanted, socket): (Wanted, usize), stop: CancellationToken) -> Keeper {
        let (before, from) = self.sockets.split_at(socket);
        let sockets = [from, before].concat();
        Keeper {
            tunnel: self.tunnel.clone(),
            sockets,
            credentials: Arc::clone(&self.credentials),
            me: self.me.clone(),
            pulses: self.pulses.clone(),
            tasks: self.tasks.clone(),
            wanted,
            stop,
            news: self.news.subscribe(),
            memory: None,
        }
    }
}

impl Drop for Dialer {
    fn drop(&mut self) {
        self.running.values().for_each(CancellationToken::cancel);
    }
}

/// Keeps one link.
struct Keeper {
    tunnel: Tunnel,
    /// Preferred first.
    sockets: Vec<Endpoint>,
    credentials: Arc<dyn Credentials>,
    me: v1::Hello,
    pulses: Pulses,
    tasks: TaskTracker,
    wanted: Wanted,
    stop: CancellationToken,
    /// Tells when the peer may have another certificate.
    news: watch::Receiver<u64>,
    /// What the links before this one knew of the path.
    memory: Option<Detector>,
}

#[derive(Debug, thiserror::Error)]
enum DialError {
    #[error("cannot resolve: {0}")]
    Resolve(#[from] std::io::Error),
    #[error("no address")]
    NoAddress,
    #[error(transparent)]
    Transport(#[from] transport::Error),
    #[error(transparent)]
    Link(#[from] link::Error),
    #[error("not done within {DIAL_TIMEOUT:?}")]
    Late,
    #[error("its certificate is of no egress or relay of this network")]
    Role,
}

impl DialError {
    const fn is_revoked(&self) -> bool {
        matches!(
            self,
            Self::Transport(transport::Error::Revoked)
                | Self::Link(link::Error::Transport(transport::Error::Revoked))
        )
    }
}

impl Keeper {
    async fn keep(mut self) {
        let mut pause = BACKOFF_MIN;
        let mut failures = 0_u32;
        loop {
            self.news.mark_unchanged();
            let mut revoked = false;
            let dialled = tokio::select! {
                () = self.stop.cancelled() => return,
                dialled = tokio::time::timeout(DIAL_TIMEOUT, self.dial()) => dialled.unwrap_or(Err(DialError::Late)),
            };
            match dialled {
                Ok((ready, socket)) => {
                    (pause, failures) = (BACKOFF_MIN, 0);
                    if self.hold(ready, socket).await.is_break() {
                        return;
                    }
                }
                Err(error) => {
                    revoked = error.is_revoked();
                    failures += 1;
                    // The first failure and every tenth: an address that stays dead is not news.
                    if failures % 10 == 1 {
                        tracing::warn!(peer = %self.wanted.peer, address = %self.wanted.address, failures, %error, "link dial failed");
                    }
                }
            }
            let jittered = pause.mul_f64(0.5 + fastrand::f64());
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(jittered) => pause = (pause * 2).min(BACKOFF_MAX),
            }
            if revoked {
                tokio::select! {
                    () = self.stop.cancelled() => return,
                    () = tokio::time::sleep(REVOKED_PAUSE.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
                    Ok(()) = self.news.changed() => {}
                }
            }
        }
    }

    async fn dial(&self) -> Result<(link::Ready, Endpoint), DialError> {
        let (socket, address) = self.resolve().await?;
        let name = self.credentials.server_name(&self.wanted.peer);
        let connection = socket
            .dial(address, &name, self.credentials.client())
            .await?;
        let peer = self.credentials.peer(&connection.peer_certificates());
        let Some(peer) = peer else {
            // The session before was resumed, and with it no certificate verified.
            connection.revoke();
            return Err(transport::Error::Revoked.into());
        };
        let called = |role: &String| role == "egress" || role == "relay";
        if peer.node != self.wanted.peer || !peer.roles.iter().any(called) {
            return Err(DialError::Role);
        }
        let ready = Link::dialled(
            &self.tunnel,
            Connection::Quic(connection),
            &self.me,
            peer,
            Arc::clone(&self.wanted.address),
        );
        Ok((ready.await?, socket.clone()))
    }

    async fn resolve(&self) -> Result<(&Endpoint, SocketAddr), DialError> {
        let found = tokio::net::lookup_host(&*self.wanted.address).await?;
        let found: Vec<SocketAddr> = found.collect();
        let from = |socket| {
            let mut reached = found.iter().filter(|to| Endpoint::reaches(socket, **to));
            reached.next().map(|to| (socket, *to))
        };
        let mut ways = self.sockets.iter().filter_map(from);
        ways.next().ok_or(DialError::NoAddress)
    }

    /// Sets a detector on a link. It ends with the link's connection.
    fn watch(
        &mut self,
        link: &Arc<Link>,
        socket: Endpoint,
    ) -> Option<tokio::task::JoinHandle<Detector>> {
        let data = link.over_quic()?;
        let door = Door {
            endpoint: socket,
            address: data.remote_address(),
            name: self.credentials.server_name(&self.wanted.peer),
            credentials: Arc::clone(&self.credentials),
        };
        let pulse = self.pulses.watch(link, self.memory.take());
        let keeping = pulse.keep(door, data.tag());
        Some(self.pulses.spawn(&self.tasks, keeping))
    }

    /// Holds a link until it is lost (go on) or no longer wanted (break).
    async fn hold(&mut self, ready: link::Ready, socket: Endpoint) -> std::ops::ControlFlow<()> {
        let link = Arc::clone(&ready.link);
        let watching = self.watch(&link, socket);
        self.tunnel.add(&link);
        // It may have been revoked while it was greeted, and nobody else has seen it until now.
        let _closed = link.close_if_revoked(&*self.credentials);
        tracing::info!(peer = %link.peer, address = %link.address, rtt_us = link.rtt().as_micros() as u64, "link up");
        let mut serving = std::pin::pin!(ready.serve());
        let flow = tokio::select! {
            () = &mut serving => std::ops::ControlFlow::Continue(()),
            () = self.stop.cancelled() => std::ops::ControlFlow::Break(()),
            never = self.widen(&link) => match never {},
        };
        self.tunnel.remove(&link);
        if flow.is_continue() {
            tracing::warn!(peer = %link.peer, address = %link.address, "link down");
            if let Some(watching) = watching {
                self.memory = watching.await.ok();
            }
            return flow;
        }
        retire(&link, serving).await;
        flow
    }

    /// Dials more connections while those there are have much to do. They end with the first: its path may be dead, and if
    /// it is not, others come.
    async fn widen(&self, first: &Arc<Link>) -> Infallible {
        let busy = Busy::new(first);
        let stop = self.stop.child_token();
        let _ends = stop.clone().drop_guard();
        loop {
            busy.crowded(first).await;
            if let Some(seat) = busy.seat() {
                let keeper = self.another(stop.clone());
                self.tasks.spawn(keeper.help(seat));
            }
        }
    }

    fn another(&self, stop: CancellationToken) -> Self {
        Self {
            tunnel: self.tunnel.clone(),
            sockets: self.sockets.clone(),
            credentials: Arc::clone(&self.credentials),
            me: self.me.clone(),
            pulses: self.pulses.clone(),
            tasks: self.tasks.clone(),
            wanted: self.wanted.clone(),
            stop,
            news: self.news.clone(),
            memory: None,
        }
    }

    /// Keeps one connection beside the first until it is lost or no longer needed. Whoever is crowded then asks again.
    async fn help(mut self, seat: Seat) {
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, self.dial());
        let Some(Ok(Ok((ready, socket)))) = self.stop.run_until_cancelled(dialled).await else {
            // The seat is asked for again when it is given up.
            let pause = tokio::time::sleep(BACKOFF_MAX);
            self.stop.run_until_cancelled(pause).await;
            return;
        };
        let ready = ready.numbered(seat.number as u32);
        let link = Arc::clone(&ready.link);
        // Its detector ends with it; there is no next one that would remember.
        let _watching = self.watch(&link, socket);
        self.tunnel.add(&link);
        let _closed = link.close_if_revoked(&*self.credentials);
        seat.take(&link);
        tracing::info!(peer = %link.peer, address = %link.address, connection = seat.number, "busy link widened");
        let mut serving = std::pin::pin!(ready.serve());
        let lost = tokio::select! {
            () = &mut serving => true,
            () = self.stop.cancelled() => false,
            () = seat.unneeded(&link) => false,
        };
        seat.leave(&link);
        self.tunnel.remove(&link);
        if !lost {
            retire(&link, serving).await;
        }
    }
}

/// Lets what runs on a link that is no longer wanted end in peace, and closes it.
async fn retire(link: &Link, mut serving: Pin<&mut impl Future<Output = ()>>) {
    let idle = async {
        while link.vitals().exchanges() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = &mut serving => return,
        _ = tokio::time::timeout(RETIRE_TIMEOUT, idle) => {}
    }
    link.close("no longer wanted");
    // What is left hears of it on the way out.
    serving.await;
}
