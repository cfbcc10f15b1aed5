//! The door for clients: accepts connections, and serves HTTP/1.1 and HTTP/2 on them within limits.
//!
//! It opens once there is a link to an egress. The loop only accepts; handshake and connection have a task of their own.
//! Draining stops the loop, lets every connection finish what runs on it, one that has just come its first request, and
//! ends what is left when the time is over. HTTP/1.1 is watched by `wire`, HTTP/2 by `idle` and `stall`.

mod opening;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::{Future, pending},
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Error, Ingress, acme,
    certificate::Source,
    idle::Streams,
    stall::{Paced, Pulse, Watched},
    wire::{Busy, IDLE, Patience, Version, Wire},
};

/// Part of all connections that one address may have: 1/4.
const PER_ADDRESS: usize = 4;

/// Headers of one request.
const HEADERS_MAX: usize = 100;

/// Bytes of one request's head. hyper's read buffer is at least as large.
///
/// 16,384 connections x 32 KiB = 512 MiB at the worst, of heads that are never finished.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// What hyper reads of a connection at once.
const READ_BYTES_MAX: usize = 64 << 10;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;

/// What an HTTP/2 client may send unasked, for one stream and for all of a connection.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// Answers held per HTTP/2 stream that its client does not take yet.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Streams that an HTTP/2 client may open and reset before it is taken for an attacker.
const RESETS_MAX: usize = 20;

/// How long an HTTP/2 connection without any sign of life is kept.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How long a client that has just come may take for its first byte when the door is closed behind it.
const FIRST_WORDS: Duration = Duration::from_secs(1);

/// How long a client's machine may be silent below HTTP.
const VANISHED: Duration = Duration::from_secs(60);

/// Rest after an accept that failed, so that running out of descriptors does not eat a core.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// The listening side. Runs once.
pub(super) struct Door {
    ingress: Arc<Ingress>,
    certificate: Option<Source>,
    tls: Option<TlsAcceptor>,
    guests: Arc<Guests>,
}

/// Who is connected.
#[derive(Debug)]
struct Guests {
    max: usize,
    seats: Mutex<Seats>,
}

#[derive(Debug, Default)]
struct Seats {
    taken: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place. Dropped, it is free again.
#[derive(Debug)]
struct Seat {
    guests: Arc<Guests>,
    address: IpAddr,
}

impl Guests {
    fn sit(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        let mut seats = self.seats.lock();
        let per_address = (self.max / PER_ADDRESS).max(1);
        let known = seats.by_address.get(&address).copied().unwrap_or(0);
        // A gateway in front of us, or a test, comes from loopback and stands for many.
        let full = seats.taken >= self.max || (known >= per_address && !address.is_loopback());
        if full {
            return None;
        }
        seats.taken += 1;
        seats.by_address.insert(address, known + 1);
        Some(Seat {
            guests: Arc::clone(self),
            address,
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.guests.seats.lock();
        seats.taken = seats.taken.saturating_sub(1);
        match seats.by_address.get_mut(&self.address) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                seats.by_address.remove(&self.address);
            }
        }
    }
}

impl Door {
    pub(super) fn new(ingress: Arc<Ingress>, certificate: Option<Source>) -> Result<Self, Error> {
        let tls = certificate
            .as_ref()
            .map(Source::tls)
            .transpose()?
            .map(TlsAcceptor::from);
        let guests = Arc::new(Guests {
            max: ingress.config.connections_max,
            seats: Mutex::default(),
        });
        Ok(Self {
            ingress,
            certificate,
            tls,
            guests,
        })
    }

    /// Accepts until `drain`, then waits for what runs.
    pub(super) async fn run(mut self, listener: TcpListener, drain: CancellationToken) {
        if let Some(certificate) = self.certificate.take() {
            self.ingress.tasks.spawn(certificate.keep(drain.clone()));
        }
        // Whoever comes before that waits a moment, rather than hear that there is no way. Or it does not come about.
        let linked = tokio::time::timeout(opening::FIRST_LINK, self.ingress.linked());
        drain.run_until_cancelled(linked).await;
        loop {
            let accepted = tokio::select! {
                () = drain.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => self.welcome(socket, peer, &drain),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
        // Whoever the kernel has let in meanwhile would be cut off.
        if let Ok(listener) = listener.into_std() {
            while let Ok((socket, peer)) = listener.accept() {
                let told = socket.set_nonblocking(true);
                if let Ok(socket) = told.and_then(|()| TcpStream::from_std(socket)) {
                    self.welcome(socket, peer, &drain);
                }
            }
        }
        let Ingress {
            tasks,
            kill,
            config,
            ..
        } = &*self.ingress;
        finish(tasks, kill, config.drain).await;
    }

    fn welcome(&self, socket: TcpStream, peer: SocketAddr, drain: &CancellationToken) {
        let Some(seat) = self.guests.sit(peer.ip().to_canonical()) else {
            return tracing::debug!("a connection too many");
        };
        let connection = Connection {
            ingress: Arc::clone(&self.ingress),
            peer,
            // Of its own, so that connections do not share a lock.
            drain: drain.child_token(),
            busy: Busy::default(),
        };
        // Boxed, as every stage within is: a future that is moved takes its room twice, and thousands of
        // connections wait for slow answers at once.
        let mut serve = Box::pin(connection.handshake(socket, self.tls.clone()));
        let kill = self.ingress.kill.child_token();
        self.ingress.tasks.spawn(async move {
            tokio::select! {
                () = &mut serve => {}
                () = kill.cancelled() => {}
            }
            drop(seat);
        });
    }
}

/// Waits for what runs, then ends it.
async fn finish(tasks: &TaskTracker, kill: &CancellationToken, time: Duration) {
    tasks.close();
    if tokio::time::timeout(time, tasks.wait()).await.is_err() {
        tracing::warn!(
            left = tasks.len(),
            "the drain ran out of time; what is left is ended"
        );
        kill.cancel();
        tasks.wait().await;
    }
}

/// One client's connection.
struct Connection {
    ingress: Arc<Ingress>,
    peer: SocketAddr,
    drain: CancellationToken,
    busy: Busy,
}

impl Connection {
    async fn handshake(self, socket: TcpStream, tls: Option<TlsAcceptor>) {
        if let Err(error) = tune(&socket) {
            tracing::debug!(%error, "a client's socket");
            return;
        }
        let patience = self.ingress.config.header_read;
        let Some(tls) = tls else {
            return Box::pin(self.greet(socket)).await;
        };
        match Box::pin(tokio::time::timeout(patience, tls.accept(socket))).await {
            Ok(Ok(mut stream)) if stream.get_ref().1.alpn_protocol() == Some(acme::ALPN) => {
                let _gone = stream.shutdown().await;
                tracing::debug!("an authority has seen the proof that it looked for");
            }
            Ok(Ok(stream)) => Box::pin(self.greet(stream)).await,
            Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
            Err(_) => tracing::debug!("TLS handshake took too long"),
        }
    }

    /// Finds out the version and serves it.
    async fn greet<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self, stream: S) {
        let patience = Patience {
            head: self.ingress.config.header_read,
            stall: self.ingress.config.stall,
        };
        let telemetry = self.ingress.telemetry.clone();
        let mut wire = Wire::new(stream, patience, Busy::clone(&self.busy), telemetry);
        let drain = self.drain.clone();
        let silent = async {
            drain.cancelled().await;
            tokio::time::sleep(FIRST_WORDS).await;
        };
        let version = tokio::select! {
            version = tokio::time::timeout(patience.head, wire.version()) => version,
            // Nobody is in the middle of anything yet.
            () = silent => return,
        };
        match version {
            Ok(Ok(Version::Http1)) => Box::pin(self.http1(wire)).await,
            Ok(Ok(Version::Http2)) => Box::pin(self.http2(wire)).await,
            Ok(Err(_)) | Err(_) => {}
        }
    }

    async fn http1<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self, wire: Wire<S>) {
        let Self {
            ingress,
            peer,
            drain,
            busy,
        } = self;
        let mut server = http1::Builder::new();
        server
            .max_headers(HEADERS_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_buf_size(READ_BYTES_MAX)
            .pipeline_flush(false);
        let service = service_fn(|request| {
            let mark = Mark::new(&busy);
            let ingress = &ingress;
            // hyper keeps room for this as long as the connection lives; boxed, it is gone once the answer begins.
            Box::pin(async move {
                let answer = ingress.serve(request, peer.ip()).await;
                Ok::<_, Infallible>(answer.map(|answer| Marked {
                    answer,
                    _mark: mark,
                }))
            })
        });
        let connection = server
            .serve_connection(TokioIo::new(wire), service)
            .with_upgrades();
        let connection = pin!(connection);
        // `wire` watches it to its end.
        let (stop, over) = (drain.cancelled(), pending());
        let ended = serve_until(connection, stop, over, |connection| {
            connection.graceful_shutdown();
        });
        told(ended.await);
    }

    async fn http2<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(self, wire: Wire<S>) {
        let Self {
            ingress,
            peer,
            drain,
            busy: _,
        } = self;
        let stall = ingress.config.stall;
        let mut server = http2::Builder::new(OnTracker {
            tasks: ingress.tasks.clone(),
            kill: ingress.kill.clone(),
            stall,
        });
        server
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .max_pending_accept_reset_streams(RESETS_MAX)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let streams = Streams::new();
        let served = Arc::clone(&streams);
        let service = service_fn(move |request| {
            let (ingress, mark) = (Arc::clone(&ingress), served.open());
            // Boxed, as for HTTP/1.
            Box::pin(async move {
                let answer = ingress.serve(request, peer.ip()).await;
                let pulse = Pulse::of_this_stream();
                Ok::<_, Infallible>(answer.map(|answer| Marked {
                    answer: Paced::new(answer, pulse),
                    _mark: mark,
                }))
            })
        });
        let connection = pin!(server.serve_connection(TokioIo::new(wire), service));
        let stop = async {
            tokio::select! {
                () = drain.cancelled() => {}
                // Pings are answered by machines that nobody uses as well.
                () = streams.idle(IDLE) => {}
            }
        };
        // Answers that are whole on our side, and that the client does not take, are all that is left then.
        let over = async {
            tokio::time::sleep(stall).await;
            streams.idle(stall).await;
        };
        let ended = serve_until(connection, stop, over, |connection| {
            connection.graceful_shutdown();
        });
        told(ended.await);
    }
}

/// Serves a connection to its end; from `stop` on, only what runs on it, and until `over`.
async fn serve_until<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    stop: impl Future<Output = ()>,
    over: impl Future<Output = ()>,
    close: impl FnOnce(Pin<&mut C>),
) -> hyper::Result<()> {
    tokio::select! {
        // First, so that a request that is here already is seen, and answered.
        biased;
        ended = connection.as_mut() => return ended,
        () = stop => {}
    }
    close(connection.as_mut());
    tokio::select! {
        ended = connection => ended,
        () = over => Ok(()),
    }
}

/// Marks its connection as busy until it is dropped with its answer.
#[derive(Debug)]
struct Mark(Busy);

impl Mark {
    fn new(busy: &Busy) -> Self {
        busy.store(true, Ordering::Relaxed);
        Self(Busy::clone(busy))
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// An answer that marks its connection.
#[derive(Debug)]
struct Marked<B, M> {
    answer: B,
    _mark: M,
}

impl<B: Body + Unpin, M: Unpin> Body for Marked<B, M> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    // A peer that forgot it shows 42 ms first-chunk tails.
    socket.set_nodelay(true)?;
    // A client whose machine vanished is noticed, whether or not something is on its way to it.
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(VANISHED)
            .with_interval(VANISHED / 4),
    )?;
    socket.set_tcp_user_timeout(Some(VANISHED))
}

fn told(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// Where hyper's HTTP/2 streams run: on the tracker, so that draining waits for them, and for as long as their clients take
/// something.
#[derive(Clone)]
struct OnTracker {
    tasks: TaskTracker,
    kill: CancellationToken,
    stall: Duration,
}

impl<F: Future + Send + 'static> hyper::rt::Executor<F> for OnTracker {
    fn execute(&self, future: F) {
        let kill = self.kill.clone();
        let mut future = Watched::new(future, self.stall);
        self.tasks.spawn(async move {
            tokio::select! {
                () = &mut future => {}
                () = kill.cancelled() => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use hyper::client::conn;

    use super::*;
    use crate::ingress::stream::Answer;

    #[tokio::test]
    async fn an_http2_connection_that_nobody_uses_is_ended() {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (tasks, streams) = (TaskTracker::new(), Streams::new());
        let executor = OnTracker {
            tasks: tasks.clone(),
            kill: CancellationToken::new(),
            stall: Duration::from_secs(60),
        };
        let (served, used) = (Arc::clone(&streams), streams.open());
        tasks.spawn(async move {
            let service = service_fn(move |_| {
                let mark = served.open();
                async move {
                    let answer = Answer::whole("hello".into());
                    Ok::<_, Infallible>(http::Response::new(Marked {
                        answer,
                        _mark: mark,
                    }))
                }
            });
            let server = http2::Builder::new(executor);
            let connection = pin!(server.serve_connection(TokioIo::new(there), service));
            let idle = streams.idle(Duration::from_millis(1));
            serve_until(connection, idle, pending(), |connection| {
                connection.graceful_shutdown();
            })
            .await
        });
        let executor = hyper_util::rt::TokioExecutor::new();
        let client = conn::http2::handshake(executor, TokioIo::new(here)).await;
        let (mut sender, connection) = client.unwrap();
        let connection = tasks.spawn(connection);
        let ask = || http::Request::new(http_body_util::Empty::<bytes::Bytes>::new());
        for _ in 0..3 {
            sender.ready().await.unwrap();
            let answer = sender.send_request(ask()).await.unwrap();
            http_body_util::BodyExt::collect(answer).await.unwrap();
        }
        // From now on, it is not. It says good-bye, and nobody is cut off.
        drop(used);
        connection.await.unwrap().unwrap();
        assert!(sender.is_closed());
    }

    #[test]
    fn seats_are_given_back_and_one_address_cannot_take_all() {
        let guests = Arc::new(Guests {
            max: 8,
            seats: Mutex::default(),
        });
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let first: Vec<_> = (0..3).map(|_| guests.sit(address(1))).collect();
        assert_eq!(first.iter().flatten().count(), 2);
        let others: Vec<_> = (2..12).map(|last| guests.sit(address(last))).collect();
        assert_eq!(others.iter().flatten().count(), 6);
        drop((first, others));
        assert!(guests.seats.lock().by_address.is_empty());
        assert_eq!(guests.seats.lock().taken, 0);
        let local: Vec<_> = (0..9)
            .map(|_| guests.sit(IpAddr::from([127, 0, 0, 1])))
            .collect();
        assert_eq!(local.iter().flatten().count(), 8);
    }
}
