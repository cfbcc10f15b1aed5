//! The warm connections to one provider.
//!
//! HTTP/2 connections are shared, a new one is made when all are full; HTTP/1.1 connections carry one exchange at a time and
//! wait in a bounded pool in between, last used first. What a provider speaks is known from its first TLS
//! handshake. A few connections are kept open even when nobody calls, so that the first request finds one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use http::{HeaderValue, Uri, uri::Authority};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use super::{
    Row, Setup,
    dial::{self, Dial},
    h1::H1,
    h2::{H2, Lease},
    stream::Stream,
};

/// Connections to a provider that names no limit. 4,096 x 16 KiB of buffers = 64 MiB a provider.
pub const CONNECTIONS_MAX: usize = 4096;

/// HTTP/2 connections to one provider: 16 x 100 exchanges at once; beyond, exchanges wait inside of them.
const SHARED_MAX: usize = 16;

/// HTTP/1.1 connections that wait for work. More are closed after their exchange.
const IDLE_MAX: usize = 512;

/// Idle time after which a connection is closed: less than any provider's own.
const IDLE: Duration = Duration::from_secs(45);

/// HTTP/1.1 connections that are kept even when idle.
const WARM: usize = 2;

const UNKNOWN: u8 = 0;
const H1_ONLY: u8 = 1;
const H2_TOO: u8 = 2;

/// A connection on loan to one exchange.
#[derive(Debug)]
pub(super) enum Wire {
    H1 {
        connection: Box<H1>,
        _slot: OwnedSemaphorePermit,
    },
    H2(Lease),
}

/// A provider's base URL that cannot be called.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not the base URL of a provider")]
pub struct BadUrl(String);

/// One provider's address and connections.
#[derive(Debug)]
pub struct Origin {
    base: Uri,
    authority: Authority,
    host: HeaderValue,
    /// Path of the base URL, without a slash at its end.
    prefix: Box<str>,
    dial: Dial,
    websocket_dial: Dial,
    speaks: AtomicU8,
    #[expect(
        clippy::vec_box,
        reason = "a connection is large, and moves in and out with every exchange"
    )]
    idle: Mutex<Vec<Box<H1>>>,
    shared: ArcSwap<Vec<Arc<H2>>>,
    slots: Arc<Semaphore>,
    connections_max: usize,
    dialing: tokio::sync::Mutex<()>,
    /// The last attempt to keep a connection warm failed; said once.
    cold: AtomicBool,
    tasks: TaskTracker,
    counters: super::Counters,
    made: Instant,
    /// When it last answered, in microseconds since.
    heard_us: AtomicU64,
}

impl Origin {
    /// Sets up the pool of a base URL; nothing is dialled yet.
    pub(super) fn new(row: &Row, setup: &Setup) -> Result<Self, BadUrl> {
        let (base, most) = (&row.base_url, row.connections_max);
        let bad = || BadUrl(base.to_string());
        let authority = base.authority().ok_or_else(bad)?.clone();
        let (secure, port) = match base.scheme_str() {
            Some("https") => (true, 443),
            Some("http") => (false, 80),
            _ => return Err(bad()),
        };
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        let server = secure
            .then(|| ServerName::try_from(host.to_owned()))
            .transpose()
            .map_err(|_| bad())?;
        let dial = |tls: &Arc<rustls::ClientConfig>| Dial {
            host: host.into(),
            port: authority.port_u16().unwrap_or(port),
            tls: server.clone().map(|server| (Arc::clone(tls), server)),
            allow_private: row.allow_private,
            resolver: Arc::clone(&setup.resolver),
        };
        let connections_max = if most == 0 { CONNECTIONS_MAX } else { most };
        // A key in the authority (user:password@) is never sent on.
        let plain = authority
            .as_str()
            .rsplit('@')
            .next()
            .unwrap_or_default()
            .to_owned();
        Ok(Self {
            base: base.clone(),
            host: HeaderValue::try_from(&plain).map_err(|_| bad())?,
            prefix: base.path().trim_end_matches('/').into(),
            dial: dial(&setup.tls),
            websocket_dial: dial(&setup.websocket_tls),
            authority: plain.parse().map_err(|_| bad())?,
            speaks: AtomicU8::new(if secure { UNKNOWN } else { H1_ONLY }),
            idle: Mutex::default(),
            shared: ArcSwap::default(),
            slots: Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS))),
            connections_max,
            dialing: tokio::sync::Mutex::default(),
            cold: AtomicBool::new(false),
            tasks: setup.tasks.clone(),
            counters: setup.metrics.of(&row.name),
            made: Instant::now(),
            heard_us: AtomicU64::new(0),
        })
    }

    /// The base URL that this pool was made for.
    pub(super) fn base(&self) -> &Uri {
        &self.base
    }

    /// Host and port, as requests name them.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The value of the `Host` header.
    pub fn host(&self) -> &HeaderValue {
        &self.host
    }

    /// Path of the base URL, without a slash at its end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What is counted about this provider.
    pub fn counters(&self) -> &super::Counters {
        &self.counters
    }

    /// It answered with a head of this status: but for a 5xx, it is there.
    pub fn heard(&self, status: u16) {
        if status < 500 {
            let us = u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.heard_us.store(us, Ordering::Relaxed);
        }
    }

    /// How long it has not been heard, or there was nothing to hear.
    pub(in crate::egress) fn silent_for(&self, now: Instant) -> Duration {
        let heard = Duration::from_micros(self.heard_us.load(Ordering::Relaxed));
        now.saturating_duration_since(self.made + heard)
    }

    /// A connection of its own for a WebSocket.
    pub async fn websocket(&self, limit: Duration) -> Result<Stream, dial::Error> {
        self.counters.opened.inc();
        self.websocket_dial.connect(limit).await
    }

    /// Takes a warm connection, or makes one within `limit`; `fresh` asks for one that was never used.
    pub(super) async fn checkout(&self, limit: Duration, fresh: bool) -> Result<Wire, dial::Error> {
        if self.speaks.load(Ordering::Relaxed) == H2_TOO {
            return self.lease(limit).await;
        }
        let slot = self.slot(limit).await?;
        if !fresh && let Some(connection) = self.waiting() {
            self.counters.reused.inc();
            return Ok(Wire::H1 {
                connection,
                _slot: slot,
            });
        }
        if self.speaks.load(Ordering::Relaxed) == UNKNOWN {
            let _turn = self.turn(limit).await?;
            if self.speaks.load(Ordering::Relaxed) == H2_TOO
                && let Some(shared) = self.roomiest(false)
            {
                self.counters.reused.inc();
                return Ok(Wire::H2(shared.lease()));
            }
            return self.open(limit, slot).await;
        }
        self.open(limit, slot).await
    }

    /// Puts a connection back that is ready for another exchange.
    pub(super) fn give_back(&self, mut connection: Box<H1>) {
        connection.reused = true;
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
    }

    /// Closes what has been idle too long or was closed by the provider, and makes sure that a few are left.
    pub(super) async fn tend(&self, now: Instant, limit: Duration) {
        self.idle.lock().retain_mut(|connection| {
            now.saturating_duration_since(connection.idle_since) < IDLE && connection.is_alive()
        });
        let before = self.shared.load();
        if before.iter().any(|shared| !shared.is_open()) {
            self.drop_closed();
        }
        let wanted = match self.speaks.load(Ordering::Relaxed) {
            H2_TOO => usize::from(self.shared.load().is_empty()),
            H1_ONLY => WARM.saturating_sub(self.idle.lock().len()),
            _ => 1,
        };
        for _ in 0..wanted {
            match self.warm(limit).await {
                Ok(()) => self.cold.store(false, Ordering::Relaxed),
                Err(error) => {
                    if !self.cold.swap(true, Ordering::Relaxed) {
                        tracing::warn!(provider = %self.authority, %error, "no connection could be kept warm");
                    }
                    return;
                }
            }
        }
    }

    async fn warm(&self, limit: Duration) -> Result<(), dial::Error> {
        let _turn = self.turn(limit).await?;
        let slot = self.slot(limit).await?;
        if let Wire::H1 { connection, .. } = self.open(limit, slot).await? {
            let mut idle = self.idle.lock();
            if idle.len() < IDLE_MAX {
                idle.push(connection);
            }
        }
        Ok(())
    }

    fn waiting(&self) -> Option<Box<H1>> {
        loop {
            let mut connection = self.idle.lock().pop()?;
            if connection.is_alive() {
                return Some(connection);
            }
        }
    }

    async fn slot(&self, limit: Duration) -> Result<OwnedSemaphorePermit, dial::Error> {
        if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
            return Ok(slot);
        }
        let full = dial::Error::Full(self.connections_max);
        match tokio::time::timeout(limit, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            _ => Err(full),
        }
    }

    /// Waits until nobody else dials, so that a crowd of first requests makes one connection and not a crowd.
    async fn turn(&self, limit: Duration) -> Result<tokio::sync::MutexGuard<'_, ()>, dial::Error> {
        tokio::time::timeout(limit, self.dialing.lock())
            .await
            .map_err(|_| dial::Error::TimedOut(limit))
    }

    async fn lease(&self, limit: Duration) -> Result<Wire, dial::Error> {
        if let Some(shared) = self.roomiest(true) {
            self.counters.reused.inc();
            return Ok(Wire::H2(shared.lease()));
        }
        let _turn = self.turn(limit).await?;
        let shared = self.roomiest(true);
        let full = self.shared.load().len() >= SHARED_MAX.min(self.connections_max);
        let shared = if full {
            shared.or_else(|| self.roomiest(false))
        } else {
            shared
        };
        match shared {
            Some(shared) => {
                self.counters.reused.inc();
                Ok(Wire::H2(shared.lease()))
            }
            None => {
                let slot = self.slot(limit).await?;
                self.open(limit, slot).await
            }
        }
    }

    /// The shared connection with the fewest exchanges; with `now`, only one where another starts at once.
    fn roomiest(&self, now: bool) -> Option<Arc<H2>> {
        self.shared
            .load()
            .iter()
            .filter(|shared| shared.is_open() && (!now || shared.has_room()))
            .min_by_key(|shared| shared.in_flight())
            .cloned()
    }

    async fn open(&self, limit: Duration, slot: OwnedSemaphorePermit) -> Result<Wire, dial::Error> {
        let stream = self.dial.connect(limit).await?;
        self.counters.opened.inc();
        if !stream.speaks_h2() {
            self.speaks.store(H1_ONLY, Ordering::Relaxed);
            let connection = H1::begin(stream).await?;
            return Ok(Wire::H1 {
                connection,
                _slot: slot,
            });
        }
        let shared = H2::begin(stream, &self.tasks).await?;
        let lease = shared.lease();
        self.shared.rcu(|list| {
            let open = list.iter().filter(|shared| shared.is_open()).cloned();
            open.chain([Arc::clone(&shared)]).collect::<Vec<_>>()
        });
        self.speaks.store(H2_TOO, Ordering::Relaxed);
        Ok(Wire::H2(lease))
    }

    fn drop_closed(&self) {
        self.shared.rcu(|list| {
            let open = list.iter().filter(|shared| shared.is_open());
            open.cloned().collect::<Vec<_>>()
        });
    }
}
