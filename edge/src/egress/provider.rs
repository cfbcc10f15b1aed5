//! Calls providers over warm pooled connections.
//!
//! One [`Origin`] per provider of the snapshot: names are resolved and connections opened before any request needs
//! them, and tended every few seconds. Base URLs come from the snapshot alone, every address is judged each time it
//! is dialled, and no redirect is followed.

// One connection.
mod stream;

mod tls;

mod resolve;

mod dial;

mod h1;

mod h2;

// Many of them, and what goes over one.
mod origin;

mod upload;

mod live;

// What is counted.
mod metrics;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::lookup::HashMap;
use arc_swap::ArcSwap;
use futures_util::future::join_all;
use http::Uri;
use tokio_util::task::TaskTracker;

pub use self::{
    dial::Error as DialError,
    live::{Live, Ready, SendError},
    metrics::{Counters, Metrics},
    origin::{BadUrl, CONNECTIONS_MAX, Origin},
    stream::Stream,
    tls::Error as TlsError,
    upload::{Upload, UploadBody},
};

/// How often connections and names are looked after.
pub const TEND_EVERY: Duration = Duration::from_secs(5);

/// A provider as the snapshot has it, with every limit filled in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// Its name.
    pub name: Arc<str>,
    /// Whose API it speaks.
    pub kind: Arc<str>,
    /// Where it is.
    pub base_url: Uri,
    /// It may be on loopback or a private network.
    pub allow_private: bool,
    /// For TCP and TLS.
    pub connect: Duration,
    /// From the request's last byte to the answer's first.
    pub first_byte: Duration,
    /// Longest silence within an answer.
    pub idle: Duration,
    /// Connections at once; 0 for our own limit.
    pub connections_max: usize,
    /// Who tells balances, as control's `Provider` has it.
    pub balance: Box<str>,
    /// Without an answer for so long, it is asked whether it is there.
    pub probe: Option<Duration>,
}

/// A provider and its connections.
#[derive(Debug)]
pub struct Provider {
    /// What the snapshot says.
    pub row: Row,
    /// Its connections.
    pub origin: Arc<Origin>,
}

impl Provider {
    /// Takes a warm connection or makes one; `fresh` asks for one that was never used.
    ///
    /// # Errors
    /// [`DialError`] when there is none within the provider's limit.
    pub async fn checkout(&self, fresh: bool) -> Result<Ready, DialError> {
        let wire = self.origin.checkout(self.row.connect, fresh).await?;
        let origin = Arc::clone(&self.origin);
        Ok(Ready { wire, origin })
    }
}

/// What all providers' connections share.
#[derive(Debug)]
struct Setup {
    tls: Arc<rustls::ClientConfig>,
    websocket_tls: Arc<rustls::ClientConfig>,
    resolver: Arc<resolve::Resolver>,
    tasks: TaskTracker,
    metrics: Metrics,
}

/// Every provider that this egress may call.
#[derive(Debug)]
pub struct Providers {
    setup: Setup,
    rows: ArcSwap<HashMap<Arc<str>, Arc<Provider>>>,
}

impl Providers {
    /// Without any provider yet. `tls_roots` are trusted besides the system's.
    ///
    /// # Errors
    /// [`TlsError`] when the roots cannot be read.
    pub fn new(
        tls_roots: Option<&Path>,
        metrics: Metrics,
        tasks: TaskTracker,
    ) -> Result<Self, TlsError> {
        let tls = tls::client(tls_roots)?;
        Ok(Self {
            setup: Setup {
                websocket_tls: tls::for_websockets(&tls),
                tls,
                resolver: Arc::default(),
                tasks,
                metrics,
            },
            rows: ArcSwap::default(),
        })
    }

    /// The provider of this name.
    pub fn named(&self, name: &str) -> Option<Arc<Provider>> {
        self.rows.load().get(name).cloned()
    }

    /// Every provider.
    pub fn all(&self) -> Vec<Arc<Provider>> {
        self.rows.load().values().cloned().collect()
    }

    /// Replaces the list of providers. Connections to those whose address stays are kept.
    pub fn replace(&self, rows: &[Row]) {
        let before = self.rows.load();
        let mut now = HashMap::default();
        for row in rows {
            let known = before.get(&row.name).filter(|known| {
                *known.origin.base() == row.base_url
                    && known.row.connections_max == row.connections_max
                    && known.row.allow_private == row.allow_private
            });
            let origin = match known {
                Some(known) => Ok(Arc::clone(&known.origin)),
                None => Origin::new(row, &self.setup).map(Arc::new),
            };
            match origin {
                Ok(origin) => {
                    let row = row.clone();
                    let provider = Provider { row, origin };
                    now.insert(Arc::clone(&provider.row.name), Arc::new(provider));
                }
                Err(error) => tracing::warn!(provider = %row.name, %error, "provider is left out"),
            }
        }
        self.rows.store(Arc::new(now));
    }

    /// Looks after names and connections once.
    ///
    /// Cancel safety: whatever was begun is dropped; the next call does it.
    pub async fn tend(&self) {
        let now = Instant::now();
        let rows = self.rows.load_full();
        let connections = rows
            .values()
            .map(|provider| provider.origin.tend(now, provider.row.connect));
        futures_util::future::join(join_all(connections), self.setup.resolver.refresh(now)).await;
    }
}
