//! The operator's door of a node: `/livez`, `/readyz` and `/metrics`, on loopback unless configured otherwise.
//!
//! Nothing can be changed here, and nothing secret is shown.

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

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
            Err(reason) => plain(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("not ready: {reason}\n"),
            ),
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

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
