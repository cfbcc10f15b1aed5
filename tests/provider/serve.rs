//! Accepts connections and hands their requests to the road.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge on one port, plain HTTP; `TCP_NODELAY` everywhere. The accept
//! loop only accepts; each connection is a task of one tracker. A signal ends the process at once: nothing
//! here is worth a drain.

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::desk::Desk;
use crate::road;

/// Streams one HTTP/2 connection may run at once; a benchmark's thousand share few connections.
const STREAMS_MAX: u32 = 4_096;

/// HTTP/2 receive windows: large enough that an upload is not paced by them on loopback.
const WINDOW_BYTES: u32 = 1 << 20;

/// How long the accept loop rests when the system has no socket left to give.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Listens on `listen`, says `ready`, and serves until the process is told to end.
pub(crate) async fn serve(listen: SocketAddr, desk: Arc<Desk>) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let mut out = std::io::stdout();
    writeln!(out, "ready http://{}", listener.local_addr()?)?;
    out.flush()?;
    let tasks = TaskTracker::new();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = tokio::signal::ctrl_c() => return Ok(()),
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => {
                    tasks.spawn(connection(socket, Arc::clone(&desk), tasks.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_REST).await,
            },
        }
    }
}

/// Serves one connection to its end. How it ended is the client's affair; the counters know.
async fn connection(socket: TcpStream, desk: Arc<Desk>, tasks: TaskTracker) {
    if socket.set_nodelay(true).is_err() {
        return;
    }
    let _open = desk.stats.connection();
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
