//! Accepts connections and hands their requests to the road.
//!
//! HTTP/1.1 and HTTP/2 (by ALPN, or with prior knowledge on plain HTTP) on one port; `TCP_NODELAY` everywhere. The
//! accept loop only accepts; each connection, handshake included, is a task of one tracker. A signal ends the process
//! at once: nothing here is worth a drain.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::desk::Desk;
use crate::road;

/// Streams one HTTP/2 connection may run at once; a benchmark's thousand share few connections.
const STREAMS_MAX: u32 = 4_096;

/// HTTP/2 receive windows: large enough that an upload is not paced by them on loopback.
const WINDOW_BYTES: u32 = 1 << 20;

/// How long the accept loop rests when the system has no socket left to give.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// A client that takes longer for its handshake is none.
const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Where it listens, and how it speaks there.
pub(crate) struct Door {
    pub(crate) listen: SocketAddr,
    /// Plain HTTP without it.
    pub(crate) tls: Option<TlsAcceptor>,
    /// The system's where none is named.
    pub(crate) congestion: Option<String>,
}

/// What HTTPS needs, from files in PEM.
pub(crate) fn acceptor(cert: &Path, key: &Path) -> std::io::Result<TlsAcceptor> {
    let wrong = |path: &Path, error: &dyn std::fmt::Display| {
        std::io::Error::other(format!("{}: {error}", path.display()))
    };
    let chain = CertificateDer::pem_file_iter(cert).map_err(|error| wrong(cert, &error))?;
    let chain: Result<Vec<_>, _> = chain.collect();
    let chain = chain.map_err(|error| wrong(cert, &error))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(cert, &error))?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| wrong(cert, &error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Listens, says `ready`, and serves until the process is told to end.
pub(crate) async fn serve(door: Door, desk: Arc<Desk>) -> std::io::Result<()> {
    let listener = TcpListener::bind(door.listen).await?;
    if let Some(congestion) = &door.congestion {
        // What is accepted has it too.
        rustix::net::sockopt::set_tcp_congestion(&listener, congestion)?;
    }
    let scheme = if door.tls.is_some() { "https" } else { "http" };
    let mut out = std::io::stdout();
    writeln!(out, "ready {scheme}://{}", listener.local_addr()?)?;
    out.flush()?;
    let tasks = TaskTracker::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    tasks.spawn(connection(socket, door.tls.clone(), Arc::clone(&desk), tasks.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_REST).await,
            },
        }
    }
}

/// Serves one connection to its end. How it ended is the client's affair; the counters know.
async fn connection(
    socket: TcpStream,
    tls: Option<TlsAcceptor>,
    desk: Arc<Desk>,
    tasks: TaskTracker,
) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let _open = desk.stats.connection();
    let Some(tls) = tls else {
        return speak(socket, desk, tasks).await;
    };
    if let Ok(Ok(socket)) = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(socket)).await {
        speak(socket, desk, tasks).await;
    }
}

async fn speak<S>(socket: S, desk: Arc<Desk>, tasks: TaskTracker)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .header_read_timeout(None)
        .max_buf_size(64 << 10);
    builder
        .http2()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(4 * WINDOW_BYTES);
    let service = service_fn(|request| {
        let desk = Arc::clone(&desk);
        let tasks = tasks.clone();
        async move { Ok::<_, Infallible>(road::serve(desk, tasks, request).await) }
    });
    drop(
        builder
            .serve_connection_with_upgrades(TokioIo::new(socket), service)
            .await,
    );
}
