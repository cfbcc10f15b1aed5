//! Puts a node together: the road of its start, and of its stop.
//!
//! Start: sockets are bound before anything is served, so a busy port is found first; then identity,
//! control, tunnel, roles. Stop: the node is no longer ready, an ingress takes clients for a moment more, peers and control
//! hear that the node drains, running exchanges end up to a deadline, reports are delivered, links are closed with a word.

mod links;

mod egress_side;

mod status;

use std::{io, sync::Arc, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::{
    control::v1 as control,
    tunnel::{VERSION, v1},
};

use self::{egress_side::EgressSide, links::TunnelCredentials, status::Status};
use crate::{
    admin::Door,
    config::{Config, Heartbeat, Role},
    control_plane::{ControlPlane, Registration, Replicas, enroll, roots},
    egress,
    identity::Identity,
    ingress::{self, Ingress},
    limit::Limiter,
    relay::Relay,
    telemetry::Telemetry,
    tunnel::{
        self, Tunnel,
        network::{Network, Parts, Sockets},
        pulse::Intervals,
    },
};

/// How long a node that stops waits, after it said so, for others to stop sending.
const FAREWELL: Duration = Duration::from_millis(50);

/// Time for reports and traces after everything else has stopped.
const LAST_REPORTS: Duration = Duration::from_secs(4);

/// Why a node cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket, or a signal.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Who the node is.
    #[error(transparent)]
    Identity(#[from] enroll::Error),
    /// Its door for clients.
    #[error(transparent)]
    Ingress(#[from] ingress::Error),
    /// Its roots for providers.
    #[error("egress.tls_roots: {0}")]
    Roots(#[from] egress::provider::TlsError),
    /// Its link to itself.
    #[error("the node cannot link to itself: {0}")]
    Self_(#[from] tunnel::link::Error),
}

/// A node whose parts all run.
struct Node {
    config: Config,
    identity: Identity,
    telemetry: Telemetry,
    control: ControlPlane,
    network: Network,
    egress: Option<EgressSide>,
    ingress: Option<ingress::Handle>,
    status: Arc<Status>,
    /// Clients are no longer taken.
    ingress_drain: CancellationToken,
    /// Ends control's stream, the admin door and the keepers.
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// [`Error`] when it cannot start.
pub async fn run(config: Config, telemetry: Telemetry) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut node = Node::start(config, telemetry).await?;
    tokio::select! {
        () = node.keep() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    node.stop().await;
    Ok(())
}

impl Node {
    async fn start(config: Config, telemetry: Telemetry) -> Result<Self, Error> {
        let door = Door::bind(config.admin.listen).await?;
        let identity = enroll::load_or_enroll(&config.node, &config.control).await?;
        let credentials = Arc::new(TunnelCredentials(identity.clone()));
        let sockets = sockets(&config, &credentials, &identity)?;
        let replicas = replicas(&config, identity.clone());
        let registration = registration(&config, &identity, &sockets);
        let (control, service) = ControlPlane::new(replicas.clone(), registration);
        // What is on disk says it before anybody comes.
        identity.revoke(&control.routes().revoked);

        let tunnel = Tunnel::default();
        links::show(&telemetry, tunnel.tally());
        let egress = EgressSide::new(&config, &identity, &control, &telemetry)?;
        let place = place(&config, &identity, &telemetry);
        let status = Arc::new(Status::new(place, tunnel.clone(), egress.clone()));
        control.set_status_source(status.source());
        let me = hello(&config, &identity);
        let passes = config.has(Role::Relay);
        let relay = passes.then(|| Relay::new(tunnel.clone(), telemetry.clone()));
        let parts = Parts {
            me: me.clone(),
            credentials,
            arrivals: egress.as_ref().map(EgressSide::handler),
            transits: relay.as_ref().map(Relay::handler),
            intervals: intervals(&config),
            own_runtime: config.tunnel.own_runtime,
        };
        let network = Network::start(tunnel.clone(), sockets, parts)?;
        if config.has(Role::Ingress) && config.has(Role::Egress) {
            network.link_to_self(&me).await?;
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(service.run(stop.clone()));
        let (heard, me) = (control.connected(), identity.clone());
        tasks.spawn(roots::follow(me.clone(), control.roots(), stop.clone()));
        tasks.spawn(enroll::keep_fresh(me, replicas, heard, stop.clone()));
        if let Some(egress) = &egress {
            tasks.spawn(egress.clone().follow(control.clone(), stop.clone()));
        }
        let ingress_too = config.has(Role::Ingress);
        let ready = status::readiness(Arc::clone(&status), control.clone(), ingress_too);
        tasks.spawn(door.serve(telemetry.clone(), Arc::clone(&ready), stop.clone()));
        tasks.spawn(status::announce(ready, stop.clone()));
        let telling = status::tell_links(telemetry.clone(), tunnel.clone(), stop.clone());
        tasks.spawn(telling);
        let ingress_drain = CancellationToken::new();
        let ingress = match config.ingress.clone() {
            Some(wanted) => {
                let (limiter, drain) = (Limiter::new(), ingress_drain.clone());
                let (control, telemetry) = (control.clone(), telemetry.clone());
                let start = Ingress::start(wanted, control, tunnel, limiter, telemetry, drain);
                let handle = start.await?;
                status.set_ingress(handle.upstreams());
                Some(handle)
            }
            None => None,
        };
        Ok(Self {
            config,
            identity,
            telemetry,
            control,
            network,
            egress,
            ingress,
            status,
            ingress_drain,
            stop,
            tasks,
        })
    }

    /// Keeps links to the nodes that the routes name, and follows the operator's drain. Never ends by itself.
    async fn keep(&mut self) {
        let mut changed = self.control.routes_changed();
        let mut drained = self.control.drained();
        let mut removed = self.control.removed();
        let roles = self.config.node.roles.clone();
        loop {
            let routes = self.control.routes();
            self.telemetry
                .name_models(routes.models.keys().map(|name| &**name));
            if self.identity.revoke(&routes.revoked) {
                self.network
                    .revoke(routes.revoked.keys().map(|node| &**node));
            }
            let wanted = links::wanted(&routes, &roles, self.network.name());
            self.network.tunnel().know_relays(links::relays(&routes));
            drop(routes);
            self.network.keep(&wanted);
            tokio::select! {
                Ok(()) = changed.changed() => {}
                Ok(_) = removed.wait_for(|removed| *removed) => return self.expelled().await,
                Ok(()) = drained.changed() => {
                    let on = *drained.borrow_and_update();
                    self.status.set_draining(on);
                    if let Some(ingress) = &self.ingress {
                        ingress.set_draining(on);
                    }
                    self.network.drain(on);
                    if let Some(egress) = &self.egress {
                        egress.set_draining(on);
                    }
                }
            }
        }
    }

    /// The node was removed from the network: it serves nobody, and keeps nothing that it was trusted with. It stays up to
    /// say so. Never ends by itself.
    async fn expelled(&mut self) {
        tracing::error!(
            node = self.network.name(),
            "this node was removed from the network: to have it back, invite it anew and start it again with that invite"
        );
        self.status.set_draining(true);
        self.ingress_drain.cancel();
        if let Some(egress) = &self.egress {
            egress.set_draining(true);
        }
        self.network.leave();
        self.control.forget_credentials(&self.config.node.state_dir);
        if let Err(error) = self.identity.removed() {
            tracing::error!(%error, "that it was removed could not be kept on disk");
        }
        std::future::pending().await
    }

    async fn stop(self) {
        let Self {
            config,
            network,
            egress,
            ingress,
            status,
            ingress_drain,
            stop,
            tasks,
            ..
        } = self;
        tracing::info!(drain_ms = config.drain.as_millis() as u64, "draining");
        // Not ready from now on; but who has not seen that yet is still served.
        status.set_draining(true);
        if let (Some(ingress), Some(config)) = (&ingress, &config.ingress) {
            ingress.set_draining(true);
            tokio::time::sleep(config.notice).await;
        }
        network.drain(true);
        tokio::time::sleep(FAREWELL).await;
        ingress_drain.cancel();
        let clients = async {
            if let Some(ingress) = ingress {
                ingress.drained().await;
            }
        };
        let exchanges = async {
            if let Some(egress) = &egress {
                let left = egress.drain(config.drain).await;
                if left > 0 {
                    tracing::warn!(left, "exchanges broke off: the time to drain was over");
                }
            }
        };
        tokio::join!(clients, exchanges);
        stop.cancel();
        tasks.close();
        if tokio::time::timeout(LAST_REPORTS, tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = tasks.len(), "some tasks did not stop in time");
        }
        network.close().await;
        tracing::info!("stopped");
    }
}

/// The way to control, with the certificate of the day.
fn replicas(config: &Config, identity: Identity) -> Replicas {
    Replicas::connect(&config.control.urls, move || {
        identity.control_client_config()
    })
}

/// What the node tells of itself beside its work.
fn place(config: &Config, identity: &Identity, telemetry: &Telemetry) -> status::Place {
    telemetry.watch_disk(config.node.state_dir.clone());
    status::Place {
        identity: identity.clone(),
        state_dir: config.node.state_dir.clone(),
        telemetry: telemetry.clone(),
    }
}

fn intervals(config: &Config) -> Intervals {
    let Heartbeat {
        active,
        standby,
        cold,
    } = config.tunnel.heartbeat;
    Intervals {
        active,
        standby,
        cold,
    }
}

fn hello(config: &Config, identity: &Identity) -> v1::Hello {
    v1::Hello {
        version: VERSION,
        node: identity.node().to_owned(),
        epoch: identity.epoch(),
        roles: config.node.roles.iter().map(ToString::to_string).collect(),
        region: identity.region().to_owned(),
        draining: false,
        request_credit: if config.has(Role::Egress) {
            tunnel::exchange::REQUEST_CREDIT_BYTES
        } else {
            0
        },
        hears_hops: true,
        mends: config.has(Role::Egress),
        takes_ahead: config.has(Role::Egress),
    }
}

/// Binds what the tunnel listens on, with what is known of the line under it.
fn sockets(
    config: &Config,
    credentials: &TunnelCredentials,
    identity: &Identity,
) -> io::Result<Sockets> {
    let tunnel = &config.tunnel;
    let key = identity.reset_key();
    Sockets::bind_over(tunnel.line_mbps, &tunnel.listen, credentials, &key)
}

fn registration(config: &Config, identity: &Identity, sockets: &Sockets) -> Registration {
    let reached = config.has(Role::Relay) || config.has(Role::Egress);
    let bound = || {
        sockets
            .local_addrs()
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    let tunnel_addresses = match (reached, config.tunnel.advertise.is_empty()) {
        (false, _) => Vec::new(),
        (true, true) => bound(),
        (true, false) => config.tunnel.advertise.clone(),
    };
    let register = control::Register {
        epoch: identity.epoch(),
        version: env!("CARGO_PKG_VERSION").into(),
        roles: config.node.roles.iter().map(ToString::to_string).collect(),
        region: identity.region().to_owned(),
        tunnel_addresses,
        client_urls: config
            .ingress
            .iter()
            .map(|ingress| ingress.url.clone())
            .collect(),
        public_addresses: config
            .ingress
            .iter()
            .flat_map(|ingress| &ingress.public_addresses)
            .map(ToString::to_string)
            .collect(),
        ..control::Register::default()
    };
    Registration {
        register,
        state_dir: config.node.state_dir.clone(),
        keys: identity.state_keys(),
        keep_credentials: config
            .egress
            .as_ref()
            .is_some_and(|egress| egress.keep_credentials),
    }
}
