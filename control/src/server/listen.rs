//! Accepts connections, shakes hands in tasks of their own, and hands them to gRPC with their peer's name.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::Connected;

use super::tls::Tls;
use crate::{
    api::{Certified, Connection, unix_now},
    identity::{Peer, ended_of_leaf, issued_of_leaf},
    telemetry::Metrics,
};

/// Connections open at once: two of each of 1,000 nodes, operators, and room to spare.
const CONNECTIONS_MAX: usize = 4_096;

/// A stranger has this long to shake hands.
const HANDSHAKE_WAIT: Duration = Duration::from_secs(5);

/// After a failure to accept, such as no free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A node whose certificate has ended has this long to have it renewed, over a connection that is closed then: the next one
/// shows the new certificate.
const RENEWAL_WAIT: Duration = Duration::from_secs(5);

/// Connections that may wait for gRPC to take them.
const WAITING_MAX: usize = 64;

/// What a handshake needs.
#[derive(Clone)]
pub(super) struct Listening {
    tls: Tls,
    metrics: Arc<Metrics>,
    trust_domain: Arc<str>,
    permits: Arc<Semaphore>,
}

impl Listening {
    pub(super) fn new(tls: Tls, metrics: Arc<Metrics>, trust_domain: &str) -> Self {
        Self {
            tls,
            metrics,
            trust_domain: trust_domain.into(),
            permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        }
    }

    /// Accepts until stopped.
    pub(super) fn run(
        self,
        listener: TcpListener,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> ReceiverStream<io::Result<Secured>> {
        let (ready, incoming) = mpsc::channel(WAITING_MAX);
        let handshakes = tasks.clone();
        tasks.spawn(async move {
            loop {
                let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else {
                    return;
                };
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((socket, address)) => {
                        let shake = self.clone().shake(socket, address, permit, ready.clone());
                        handshakes.spawn(shake);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        ReceiverStream::new(incoming)
    }

    async fn shake(
        self,
        socket: TcpStream,
        address: SocketAddr,
        permit: OwnedSemaphorePermit,
        ready: mpsc::Sender<io::Result<Secured>>,
    ) {
        // Without it, small answers wait for the peer's delayed acknowledgement.
        let _ = socket.set_nodelay(true);
        let shaken = tokio::time::timeout(HANDSHAKE_WAIT, self.tls.acceptor().accept(socket)).await;
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return self.failed(address, &error.to_string()),
            Err(_) => return self.failed(address, "took too long"),
        };
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first());
        let (mut peer, mut operator) = (None, None);
        if let Some(leaf) = leaf {
            peer = Peer::of_leaf(leaf, &self.trust_domain).map(Arc::new);
            operator = Certified::of_leaf(leaf, &self.trust_domain).map(Arc::new);
            if peer.is_none() && operator.is_none() {
                let why = "the certificate names no node and no operator of this network";
                return self.failed(address, why);
            }
        }
        self.metrics.connections.inc();
        let issued = leaf.and_then(|leaf| issued_of_leaf(leaf));
        let ended = leaf.and_then(|leaf| ended_of_leaf(leaf, unix_now()));
        let secured = Secured {
            stream,
            over: ended.map(|_| Box::pin(tokio::time::sleep(RENEWAL_WAIT))),
            connection: Connection {
                address,
                issued: issued.unwrap_or_default(),
                ended,
                peer,
                operator,
            },
            metrics: self.metrics,
            _permit: permit,
        };
        // gRPC is gone only when control drains.
        let _ = ready.send(Ok(secured)).await;
    }

    fn failed(&self, address: SocketAddr, why: &str) {
        self.metrics.handshakes_failed.inc();
        tracing::debug!(client.address = %address, why, "handshake failed");
    }
}

/// A connection whose handshake is done.
pub(super) struct Secured {
    stream: TlsStream<TcpStream>,
    connection: Connection,
    /// Ready when the connection has been there for long enough.
    over: Option<Pin<Box<Sleep>>>,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Secured {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl Connected for Secured {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(over) = &mut self.over
            && over.as_mut().poll(cx).is_ready()
        {
            // As if the client had hung up.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
