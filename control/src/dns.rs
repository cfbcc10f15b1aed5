//! The nearest ingress by name: an authority for one zone that answers each client with addresses near it.
//!
//! Where a client is, a static map says ([`map`]); the client is known by its subnet, if its resolver tells that (RFC 7871),
//! and by its resolver otherwise. Which addresses there are, the registry and the rolls of all replicas say ([`table`]), so
//! every replica answers the same. Nothing else is answered: no recursion, no transfer, no DNSSEC.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
};

use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{answer::Zone, serve::Answering};
use crate::{config, registry::Registry, telemetry::Metrics};

mod answer;
mod follow;
mod map;
mod rate;
mod serve;
mod table;

/// Why the zone cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The map is none.
    #[error("{path} (dns.regions_file): {why}")]
    Map {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A name is none.
    #[error("`{0}` is not a domain name")]
    Name(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} (dns.listen): {source}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// The zone with its sockets open, not answering yet.
#[derive(Debug)]
pub struct Dns {
    zone: Arc<Zone>,
    private: bool,
    sockets: Vec<(UdpSocket, TcpListener)>,
}

impl Dns {
    /// Reads the map and opens all sockets.
    ///
    /// # Errors
    /// The first thing that is not there or not right.
    pub async fn bind(settings: &config::Dns) -> Result<Self, Error> {
        let zone = Zone::new(settings)?;
        let mut sockets = Vec::new();
        for &address in &settings.listen {
            let failed = |source| Error::Listen { address, source };
            let datagrams = UdpSocket::bind(address).await.map_err(failed)?;
            // The same port, also when any was asked for.
            let bound = datagrams.local_addr().map_err(failed)?;
            let connections = TcpListener::bind(bound).await.map_err(failed)?;
            sockets.push((datagrams, connections));
        }
        Ok(Self {
            zone: Arc::new(zone),
            private: settings.private_addresses,
            sockets,
        })
    }

    /// Where queries are taken.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let bound = self.sockets.iter();
        bound
            .filter_map(|(socket, _)| socket.local_addr().ok())
            .collect()
    }

    /// Answers until `cancel`, in tasks of its own.
    pub fn serve(
        self,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
        tasks: &TaskTracker,
        cancel: &CancellationToken,
    ) {
        tracing::info!(addresses = ?self.addresses(), "zone served");
        let (table, told) = watch::channel(None);
        tasks.spawn(follow::follow(
            registry,
            self.private,
            table,
            cancel.clone(),
        ));
        let answering = Answering {
            zone: self.zone,
            table: told,
            metrics,
            turn: Arc::new(AtomicUsize::new(0)),
        };
        for (datagrams, connections) in self.sockets {
            tasks.spawn(answering.clone().datagrams(datagrams, cancel.clone()));
            let more = tasks.clone();
            tasks.spawn(
                answering
                    .clone()
                    .connections(connections, more, cancel.clone()),
            );
        }
    }
}
