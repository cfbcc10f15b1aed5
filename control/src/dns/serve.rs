//! Takes queries over UDP and TCP, and bounds what strangers may ask of this process.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    answer::{Asked, Zone},
    rate::{Allowed, Rates},
    table::Table,
};
use crate::telemetry::{self, Metrics};

/// Longest query: one name, one OPT record, and room for options that we do not know.
const QUERY_BYTES_MAX: usize = 4_096;

/// TCP connections of each address that queries are taken at.
const CONNECTIONS_MAX: usize = 256;

/// A connection is closed that says nothing for this long (RFC 7766, section 6.2.3), or does not take its answer.
const IDLE: Duration = Duration::from_secs(10);

/// After a failure to accept or to receive.
const PAUSE: Duration = Duration::from_millis(50);

/// Everything that an answer needs.
#[derive(Clone, Debug)]
pub(super) struct Answering {
    pub(super) zone: Arc<Zone>,
    /// None before the store was read.
    pub(super) table: watch::Receiver<Option<Arc<Table>>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) turn: Arc<AtomicUsize>,
}

impl Answering {
    fn answer(&self, query: &[u8], from: SocketAddr, tcp: bool) -> Vec<u8> {
        let table = self.table.borrow().clone().unwrap_or_default();
        let asked = Asked {
            query,
            from: from.ip().to_canonical(),
            tcp,
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
        };
        let (outcome, answer) = self.zone.answer(&table, asked);
        self.count(outcome.as_str());
        answer
    }

    /// Queries wait until it is known what there is: resolvers would keep that there is nothing.
    async fn is_ready(&mut self, cancel: &CancellationToken) -> bool {
        tokio::select! {
            () = cancel.cancelled() => false,
            read = self.table.wait_for(Option::is_some) => read.is_ok(),
        }
    }

    fn count(&self, outcome: &str) {
        let outcome = telemetry::Outcome {
            outcome: outcome.to_owned(),
        };
        self.metrics.dns_queries.get_or_create(&outcome).inc();
    }

    /// Answers datagrams until cancelled.
    pub(super) async fn datagrams(mut self, socket: UdpSocket, cancel: CancellationToken) {
        if !self.is_ready(&cancel).await {
            return;
        }
        let mut rates = Rates::new(Instant::now());
        let mut query = vec![0; QUERY_BYTES_MAX];
        loop {
            let received = tokio::select! {
                () = cancel.cancelled() => return,
                received = socket.recv_from(&mut query) => received,
            };
            // An ICMP error of an earlier answer comes up here, too.
            let Ok((length, from)) = received else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let query = &query[..length];
            let answer = match rates.take(from.ip().to_canonical(), Instant::now()) {
                Allowed::Answer => self.answer(query, from, false),
                Allowed::Cut => {
                    self.count("limited");
                    Zone::cut(query)
                }
                Allowed::Nothing => {
                    self.count("limited");
                    continue;
                }
            };
            if !answer.is_empty() {
                // Who cannot be reached asks again.
                let _ = socket.send_to(&answer, from).await;
            }
        }
    }

    /// Answers connections until cancelled.
    pub(super) async fn connections(
        mut self,
        listener: TcpListener,
        tasks: TaskTracker,
        cancel: CancellationToken,
    ) {
        if !self.is_ready(&cancel).await {
            return;
        }
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, from)) = accepted else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let (one, cancel) = (self.clone(), cancel.clone());
            tasks.spawn(async move {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    // However it ends, the other side sees it.
                    _ = one.connection(stream, from) => {}
                }
                drop(permit);
            });
        }
    }

    /// One query after the other, each behind its length.
    async fn connection(&self, mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let query = timely(async {
                let length = usize::from(stream.read_u16().await?);
                let mut query = vec![0; length.min(QUERY_BYTES_MAX)];
                stream.read_exact(&mut query).await?;
                Ok((length <= QUERY_BYTES_MAX).then_some(query))
            });
            let Some(query) = query.await? else {
                return Ok(());
            };
            let answer = self.answer(&query, from, true);
            if answer.is_empty() {
                return Ok(());
            }
            let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
            let framed = [&length.to_be_bytes()[..], &answer].concat();
            timely(stream.write_all(&framed)).await?;
        }
    }
}

async fn timely<T>(of: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let done = tokio::time::timeout(IDLE, of).await;
    done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
