//! Puts the rooms together behind their doors, and takes them down in order.
//!
//! [`Server::bind`] opens all that can fail (files, certificates, sockets) before anything is served;
//! [`Server::serve`] serves until told to drain, ends every stream, and waits for the rest.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::control::v1::{admin_server::AdminServer, node_server::NodeServer};
use zeroize::Zeroizing;

use crate::{
    api::{self, Rooms},
    config::Config,
    coordinate::{self, Embedded, Etcd, EtcdSettings, Store},
    dns::{self, Dns},
    health::{self, Fleet, Heed, Rolls},
    identity,
    ledger::{self, Ledger},
    registry::{self, Registry},
    routing::{Mover, Publisher, Steering},
    telemetry::Metrics,
    vault,
};

mod founding;

mod listen;
mod probe;
pub use probe::ask_ready;

mod signing;

mod tls;

/// How long calls may still run after the word to drain.
const DRAIN_WAIT: Duration = Duration::from_secs(10);

/// Keep-alives go this often to a silent peer, and wait this long: a dead node is known in four seconds.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// A call has its answer, or the beginning of its stream, within this; `grpc-timeout` of a client may say less.
const CALL_WAIT: Duration = Duration::from_secs(30);

/// Calls one connection may have open.
const CALLS_MAX: u32 = 256;

/// Largest head of a call.
const HEAD_BYTES_MAX: u32 = 16 << 10;

/// Control makes itself a new certificate this often.
const CERTIFICATE_TURN: Duration = Duration::from_secs(12 * 3_600);

/// Why control cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Another process works on the same data.
    #[error("{0}: another vector-control works on this data")]
    Locked(PathBuf),
    /// A replica of a network that has a master key, without it.
    #[error(
        "{0} is not there, but this network has a master key already: copy it there from another replica (data_dir/master.key), \
         or say where it is as control.master_key_file"
    )]
    NoMasterKey(PathBuf),
    /// A replica with the master key of another network.
    #[error(
        "{0} is not the master key of the network that this etcd holds: every replica needs the same; copy it from another \
         replica, or give this one another etcd.root"
    )]
    OtherMasterKey(PathBuf),
    /// A folder that belongs to another network.
    #[error(
        "{0} holds the CA of another network than this etcd: give this replica an empty control.data_dir, or another etcd.root"
    )]
    OtherAuthority(PathBuf),
    /// Names end differently.
    #[error("control.trust_domain is `{ours}` here, but this network's is `{theirs}`")]
    OtherDomain {
        /// The network's.
        theirs: String,
        /// This replica's.
        ours: String,
    },
    /// It may not join the other replicas.
    #[error(transparent)]
    Health(#[from] health::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] coordinate::Error),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The master key.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// What is registered.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The CA.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(String),
    /// The zone.
    #[error(transparent)]
    Dns(#[from] dns::Error),
    /// gRPC.
    #[error("gRPC: {0}")]
    Grpc(String),
}

/// The cluster that the settings name, or a file on this machine.
async fn open_store(config: &Config) -> Result<Arc<dyn Store>, Error> {
    let Some(etcd) = &config.etcd else {
        let file = config.data_dir.join("control.sqlite");
        return Ok(Arc::new(Embedded::open(&file).await?));
    };
    let read = |path: &PathBuf| {
        fs::read_to_string(path).map_err(|source| Error::File {
            path: path.clone(),
            source,
        })
    };
    let user = match &etcd.user {
        Some((name, file)) => {
            let text = Zeroizing::new(read(file)?);
            Some((name.clone(), Zeroizing::new(text.trim().to_owned())))
        }
        None => None,
    };
    let mut tls = tonic::transport::ClientTlsConfig::new().with_native_roots();
    if let Some(ca) = &etcd.ca_file {
        tls = tonic::transport::ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(read(ca)?));
    }
    if let Some((certificate, key)) = &etcd.certificate {
        let key = Zeroizing::new(read(key)?);
        let identity = tonic::transport::Identity::from_pem(read(certificate)?, &*key);
        tls = tls.identity(identity);
    }
    let https = etcd
        .endpoints
        .iter()
        .any(|endpoint| endpoint.starts_with("https://"));
    let settings = EtcdSettings {
        endpoints: etcd.endpoints.clone(),
        root: etcd.root.clone(),
        user,
        tls: https.then_some(tls),
    };
    Ok(Arc::new(Etcd::open(settings).await?))
}

/// What a replica has once it is one of them.
struct Joined {
    authority: Arc<identity::Authority>,
    tls: tls::Tls,
    registry: Arc<Registry>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    rolls: Rolls,
}

impl Joined {
    /// Takes up what the replicas share, or makes it if this is the first.
    async fn to(
        config: &Config,
        store: Arc<dyn Store>,
        who: (String, String),
        (started, turn): (Instant, &founding::Turn),
    ) -> Result<Self, Error> {
        let (vault, authority) = founding::open(config, store.as_ref(), api::unix_now()).await?;
        let authority = Arc::new(authority);
        let registry = Arc::new(Registry::open(Arc::clone(&store), vault).await?);
        registry
            .take_up_signing(&authority, api::unix_now())
            .await?;
        signing::write_down(&founding::folder(config), &authority);
        let tls = tls::Tls::new(Arc::clone(&authority), &config.names)?;
        if registry
            .open_operator(&config.admin_token_file, &authority.pin())
            .await?
        {
            tracing::info!(file = %config.admin_token_file.display(), "operator's token made");
        }
        let metrics = Arc::new(Metrics::default());
        let fleet = Arc::new(Fleet::new(Arc::clone(&metrics)));
        let heard = Arc::clone(&fleet);
        let rolls = Rolls::join(store, heard, who, (started, turn.fence())).await?;
        Ok(Self {
            authority,
            tls,
            registry,
            fleet,
            metrics,
            rolls,
        })
    }
}

/// Control with its sockets open, not serving yet.
#[derive(Debug)]
pub struct Server {
    rooms: Rooms,
    tls: tls::Tls,
    /// The CA in files.
    ca: PathBuf,
    grpc: TcpListener,
    probes: TcpListener,
    dns: Option<Dns>,
    rolls: Rolls,
    // Held open: the lock goes with it.
    _lock: fs::File,
}

impl Server {
    /// Opens everything.
    ///
    /// # Errors
    /// The first thing that is not there or not right.
    pub async fn bind(config: &Config) -> Result<Self, Error> {
        let data = &config.data_dir;
        let file = |path: PathBuf| move |source| Error::File { path, source };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(data)
            .map_err(file(data.clone()))?;
        let lock_path = data.join("lock");
        let lock = fs::File::create(&lock_path).map_err(file(lock_path))?;
        lock.try_lock().map_err(|_| Error::Locked(data.clone()))?;

        let store = open_store(config).await?;
        let ledger = Arc::new(match &config.ledger {
            Some(postgres) => Ledger::connect(postgres).await?,
            None => Ledger::open(&data.join("ledger.sqlite"))?,
        });
        let grpc = listen_on(config.listen).await?;
        let started = Instant::now();
        let who = (replica_name(config, &grpc), ledger_name(config)?);
        let turn = founding::Turn::wait(&store, &who.0).await?;
        let joined = Joined::to(config, store, who, (started, &turn)).await;
        turn.over().await;
        let Joined {
            authority,
            tls,
            registry,
            fleet,
            metrics,
            rolls,
        } = joined?;
        let publisher = Publisher::new(Arc::clone(&registry), Arc::clone(&metrics));
        let rooms = Rooms {
            ledger,
            publisher: Arc::new(publisher),
            steering: Arc::new(Steering::new(Arc::clone(&fleet))),
            authority,
            registry,
            fleet,
            staging: api::Staged {
                pause_ms: config.rollout_pause_ms,
                canaries_percent: config.rollout_canaries_percent,
            },
            metrics,
            started,
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
        };
        Ok(Self {
            rooms,
            tls,
            ca: founding::folder(config),
            grpc,
            probes: listen_on(config.admin_listen).await?,
            dns: match &config.dns {
                Some(settings) => Some(Dns::bind(settings).await?),
                None => None,
            },
            rolls,
            _lock: lock,
        })
    }

    /// Where gRPC is served: tells the port when 0 was asked for.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Where probes and metrics are served.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn probe_address(&self) -> std::io::Result<SocketAddr> {
        self.probes.local_addr()
    }

    /// Where queries for the zone are taken; empty when none is served.
    #[must_use]
    pub fn dns_addresses(&self) -> Vec<SocketAddr> {
        self.dns.as_ref().map_or_else(Vec::new, Dns::addresses)
    }

    /// The root's pin, as it stands in tokens.
    #[must_use]
    pub fn pin(&self) -> String {
        self.rooms.authority.pin()
    }

    /// Serves until `stop` is cancelled, then drains.
    ///
    /// # Errors
    /// When gRPC cannot be served.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), Error> {
        let Self {
            rooms,
            tls,
            ca,
            grpc,
            probes,
            dns,
            rolls,
            _lock,
        } = self;
        let (tasks, drain) = (rooms.tasks.clone(), rooms.drain.clone());
        if let Some(dns) = dns {
            let (registry, metrics) = (Arc::clone(&rooms.registry), Arc::clone(&rooms.metrics));
            dns.serve(registry, metrics, &tasks, &drain);
        }
        follow(&rooms, ca, rolls.replica());
        tasks.spawn(rolls.run(drain.clone()));
        tasks.spawn(tls.clone().renew(CERTIFICATE_TURN, drain.clone()));
        let ready = CancellationToken::new();
        let probing = probe::serve(
            probes,
            Arc::clone(&rooms.metrics),
            ready.clone(),
            drain.clone(),
            tasks.clone(),
        );
        tasks.spawn(probing);

        // Nobody may hear of an older state than the one on disk.
        let mut newest = rooms.publisher.subscribe();
        tokio::select! {
            _ = newest.wait_for(|published| published.snapshot.revision > 0) => {}
            () = stop.cancelled() => {}
        }
        let listening = listen::Listening::new(
            tls,
            Arc::clone(&rooms.metrics),
            rooms.authority.trust_domain(),
        );
        let incoming = listening.run(grpc, &tasks, stop.clone());
        let serving = grpc_over(incoming, rooms, stop.clone()).await?;
        tracing::info!("ready");
        ready.cancel();
        tokio::pin!(serving);
        let served = tokio::select! {
            biased;
            () = stop.cancelled() => {
                tracing::info!("draining");
                drain.cancel();
                tokio::time::timeout(DRAIN_WAIT, serving).await.unwrap_or(Ok(()))
            }
            served = &mut serving => served,
        };
        drain.cancel();
        tasks.close();
        if tokio::time::timeout(DRAIN_WAIT, tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = tasks.len(), "drain ran out of time");
        }
        tracing::info!("stopped");
        served.map_err(|error| Error::Grpc(error.to_string()))
    }
}

/// Begins all that follows the store and the nodes, until the rooms drain.
fn follow(rooms: &Rooms, ca: PathBuf, replica: &str) {
    let (tasks, drain) = (&rooms.tasks, &rooms.drain);
    let (publisher, publishing) = (Arc::clone(&rooms.publisher), drain.clone());
    tasks.spawn(async move { publisher.run(publishing).await });
    let mover = Mover::new(
        Arc::clone(&rooms.registry),
        Arc::clone(&rooms.publisher),
        Arc::clone(&rooms.fleet),
        Arc::clone(&rooms.metrics),
        replica.to_owned(),
    );
    tasks.spawn(mover.run(drain.clone()));
    let (steering, steered) = (Arc::clone(&rooms.steering), drain.clone());
    tasks.spawn(async move { steering.run(steered).await });
    let signing = signing::Signing {
        registry: Arc::clone(&rooms.registry),
        authority: Arc::clone(&rooms.authority),
        folder: ca,
    };
    let metrics = Arc::clone(&rooms.metrics);
    tasks.spawn(signing::follow(signing, metrics, drain.clone()));
    let heed = Heed::new(Arc::clone(&rooms.registry), Arc::clone(&rooms.fleet));
    tasks.spawn(heed.run(drain.clone()));
}

/// What people and other replicas know this one by.
fn replica_name(config: &Config, grpc: &TcpListener) -> String {
    let name = config.names.first().map_or("control", String::as_str);
    let port = grpc.local_addr().map_or(0, |address| address.port());
    format!("{name}:{port}")
}

/// Which ledger this replica writes to. A database is known by its name and schema, since the way there may be another
/// for each replica; a file is nobody else's, and known by an id that lies beside it.
fn ledger_name(config: &Config) -> Result<String, Error> {
    if let Some(postgres) = &config.ledger {
        let path = postgres.url.split(['?', '#']).next().unwrap_or_default();
        let database = path.rsplit('/').next().unwrap_or_default();
        return Ok(format!("PostgreSQL, {database}.{}", postgres.schema));
    }
    let path = config.data_dir.join("ledger.id");
    let file = |source| Error::File {
        path: path.clone(),
        source,
    };
    if !path.exists() {
        let id = uuid::Uuid::now_v7().to_string();
        vault::write_new(&path, id.as_bytes(), 0o644).map_err(file)?;
    }
    let id = fs::read_to_string(&path).map_err(file)?;
    Ok(format!("ledger.sqlite of {}", id.trim()))
}

/// Every service over these connections, until `stop`; then what is open may end.
async fn grpc_over(
    incoming: ReceiverStream<std::io::Result<listen::Secured>>,
    rooms: Rooms,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NodeServer<()>>().await;
    health.set_serving::<AdminServer<()>>().await;
    let failed = |error: tonic_reflection::server::Error| Error::Grpc(error.to_string());
    let router = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .timeout(CALL_WAIT)
        .max_concurrent_streams(CALLS_MAX)
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .add_service(health_service)
        .add_service(described().build_v1().map_err(failed)?)
        .add_service(described().build_v1alpha().map_err(failed)?)
        .add_service(api::node_service(rooms.clone()))
        .add_service(api::admin_service(rooms));
    Ok(router.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()))
}

async fn listen_on(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error::Listen { address, source })
}

/// What reflection tells: `grpcurl` of any age can list and call.
fn described() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(vector_proto::control::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
