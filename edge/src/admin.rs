//! The operator's door of a node: `/livez`, `/readyz` and `/metrics`, on loopback unless configured otherwise.
//!
//! Nothing can be changed here, and nothing secret is shown.

use std::{
    convert::Infallible,
    fmt,
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::telemetry::Telemetry;

/// Scrapers and probes at once; more wait.
const CONNECTIONS_MAX: usize = 64;

/// Time for a request's head, and for an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause after a failed accept, which is mostly a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time for each step of [`ask_ready`], and the largest answer that is read.
const ASK_WAIT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 4 << 10;

/// Why a node is not ready that would be, were it not drained: balancers leave it out, and nothing is wrong with it.
/// `deploy/local/up` knows the word.
pub const DRAINING: &str = "draining";

/// Says why the node is not ready, if it is not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The bound door.
pub struct Door {
    listener: TcpListener,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Door")
    }
}

impl Door {
    /// Binds it.
    ///
    /// # Errors
    /// When the address cannot be bound; the text names it.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("admin.listen {address}: {error}"))
        };
        listener.map(|listener| Self { listener }).map_err(named)
    }

    /// Serves until `stop`.
    pub async fn serve(self, telemetry: Telemetry, readiness: Readiness, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while let Some(Ok(place)) = stop
            .run_until_cancelled(Arc::clone(&places).acquire_owned())
            .await
        {
            let socket = match stop.run_until_cancelled(self.listener.accept()).await {
                None => break,
                Some(Ok((socket, _))) => socket,
                Some(Err(error)) => {
                    tracing::warn!(%error, "accept failed on the admin listener");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (telemetry, readiness) = (telemetry.clone(), Arc::clone(&readiness));
            tasks.spawn(async move {
                let service = service_fn(move |request| {
                    let response = answer(&request, &telemetry, &readiness);
                    async move { Ok::<_, Infallible>(response) }
                });
                let mut server = http1::Builder::new();
                server
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT);
                // A probe that hangs up is its own affair.
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
                drop(place);
            });
        }
    }
}

fn answer(
    request: &Request<Incoming>,
    telemetry: &Telemetry,
    readiness: &Readiness,
) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    match request.uri().path() {
        "/livez" => plain(StatusCode::OK, "ok\n".into()),
        "/readyz" => match readiness() {
            Ok(()) => plain(StatusCode::OK, "ready\n".into()),
            Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, not_ready(&reason)),
        },
        "/metrics" => {
            let mut response = plain(StatusCode::OK, telemetry.metrics());
            let kind = http::HeaderValue::from_static(
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            );
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        _ => plain(
            StatusCode::NOT_FOUND,
            "there are /livez, /readyz and /metrics\n".into(),
        ),
    }
}

fn not_ready(reason: &str) -> String {
    format!("not ready: {reason}\n")
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Asks a process that runs whether it is ready, as a container's health check does: plain HTTP, and no more than
/// [`ASK_WAIT`] for each step. One that drains is well: nobody shall restart it for that.
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
    let said = answer.lines().last().unwrap_or("nothing");
    if answer.starts_with("HTTP/1.1 200 ") || said == not_ready(DRAINING).trim_end() {
        return Ok(());
    }
    Err(io::Error::other(format!("{address} says: {said}")))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn asking_tells_ready_from_not_ready_and_from_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ask = |answer: &'static str| {
            std::thread::scope(|scope| {
                let asked = scope.spawn(|| ask_ready(address));
                let (mut socket, _) = listener.accept().unwrap();
                let mut request = [0; 512];
                let count = socket.read(&mut request).unwrap();
                assert!(request[..count].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                socket.write_all(answer.as_bytes()).unwrap();
                drop(socket);
                asked.join().unwrap()
            })
        };
        ask("HTTP/1.1 200 OK\r\n\r\nready\n").unwrap();
        let error = ask("HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: no routes\n");
        assert!(error.unwrap_err().to_string().contains("no routes"));
        ask("HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready: draining\n").unwrap();
        drop(listener);
        ask_ready(address).unwrap_err();
    }
}
