//! `GET /livez`, `/readyz` and `/metrics`, for those who watch the process. Plain HTTP, nothing secret.

use std::{convert::Infallible, sync::Arc, time::Duration};

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
