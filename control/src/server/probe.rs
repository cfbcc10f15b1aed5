//! `GET /livez`, `/readyz` and `/metrics`, for those who watch the process. Plain HTTP, nothing secret.

use std::{
    convert::Infallible,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::telemetry::Metrics;

/// Watchers at once.
const CONNECTIONS_MAX: usize = 64;

/// A request's head comes this soon.
const HEAD_WAIT: Duration = Duration::from_secs(5);

/// Time for each step of [`ask_ready`], and the largest answer that is read.
const ASK_WAIT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 4 << 10;

/// What the answers follow from.
struct Probes {
    metrics: Arc<Metrics>,
    ready: CancellationToken,
    drain: CancellationToken,
}

/// Serves until drained.
pub(super) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    ready: CancellationToken,
    drain: CancellationToken,
    tasks: TaskTracker,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let probes = Arc::new(Probes {
        metrics,
        ready,
        drain: drain.clone(),
    });
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let socket = tokio::select! {
            () = drain.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (probes, drain) = (Arc::clone(&probes), drain.clone());
        tasks.spawn(async move {
            let _permit = permit;
            let answer = service_fn(move |request| {
                let response = probes.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WAIT)
                .serve_connection(TokioIo::new(socket), answer);
            // A watcher that breaks off has only itself to tell.
            tokio::select! {
                _ = served => {}
                () = drain.cancelled() => {}
            }
        });
    }
}

impl Probes {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, kind, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/livez") => (StatusCode::OK, "text/plain", "alive\n".to_owned()),
            (&Method::GET, "/readyz")
                if self.ready.is_cancelled() && !self.drain.is_cancelled() =>
            {
                (StatusCode::OK, "text/plain", "ready\n".to_owned())
            }
            (&Method::GET, "/readyz") => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                "not ready\n".to_owned(),
            ),
            (&Method::GET, "/metrics") => (
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                self.metrics.text(),
            ),
            _ => (
                StatusCode::NOT_FOUND,
                "text/plain",
                "GET /livez, /readyz or /metrics\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
        response
    }
}

/// Asks a process that runs whether it is ready, as a container's health check does: plain HTTP, and no more than
/// [`ASK_WAIT`] for each step.
///
/// # Errors
/// When nobody answers, or what it answers instead of "ready".
pub fn ask_ready(mut address: SocketAddr) -> io::Result<()> {
    if address.ip().is_unspecified() {
        // Whoever listens everywhere listens here.
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let mut socket = TcpStream::connect_timeout(&address, ASK_WAIT)?;
    socket.set_read_timeout(Some(ASK_WAIT))?;
    socket.set_write_timeout(Some(ASK_WAIT))?;
    socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    socket.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200 ") {
        return Ok(());
    }
    let said = answer.lines().last().unwrap_or("nothing");
    Err(io::Error::other(format!("{address} says: {said}")))
}
