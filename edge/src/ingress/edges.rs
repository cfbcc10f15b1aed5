//! `GET /.well-known/vector-edges`: which ingress nodes there are, how far from this one, and how busy.
//!
//! Anybody may ask, without a key: the answer holds what DNS would tell too, and each node's count of running requests.
//! Every other ingress is asked for its own answer every [`ROUND`]: the time to connect is the distance, and one that
//! did not answer [`MISSES_MAX`] times is left out.

use std::{
    collections::HashMap,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::stream::Answer;
use crate::control_plane::{ControlPlane, Routes};

/// Where it is asked for (RFC 8615).
pub(super) const PATH: &str = "/.well-known/vector-edges";

/// How often the others are asked.
const ROUND: Duration = Duration::from_secs(30);

/// After a change of routes, in which more may change.
const SETTLE: Duration = Duration::from_secs(1);

/// For the name and the connection, and then for the answer.
const STEP_WAIT: Duration = Duration::from_secs(3);

/// Asked at once, and told at most.
const AT_ONCE: usize = 8;
const EDGES_MAX: usize = 256;

/// In a row; then a node is not told of until it answers again.
const MISSES_MAX: u32 = 2;

/// Largest answer read.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// What is known of another ingress.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Seen {
    /// Time to connect: a smoothed one.
    distance: Option<Duration>,
    /// Requests that run there.
    load: Option<u64>,
    misses: u32,
}

impl Seen {
    /// With what the newest question brought; nothing: no connection.
    fn after(self, found: Option<(Duration, Option<u64>)>) -> Self {
        let Some((distance, load)) = found else {
            return Self {
                misses: self.misses.saturating_add(1),
                ..self
            };
        };
        Self {
            distance: Some(
                self.distance
                    .map_or(distance, |old| (old * 3 + distance) / 4),
            ),
            load,
            misses: 0,
        }
    }
}

/// By URL.
type All = HashMap<Arc<str>, Seen>;

/// What this ingress knows of the others.
#[derive(Debug)]
pub(super) struct Edges {
    /// This one's URL, by which it finds itself in the routes.
    own: Arc<str>,
    seen: ArcSwap<All>,
}

/// Whether somebody asks for the list.
pub(super) fn is_asked<B>(request: &Request<B>) -> bool {
    request.uri().path() == PATH
}

impl Edges {
    pub(super) fn new(own: &str) -> Self {
        Self {
            own: own.into(),
            seen: ArcSwap::default(),
        }
    }

    /// The list as it is now, with this node's own load.
    pub(super) fn answer(&self, method: &Method, routes: &Routes, load: u64) -> Response<Answer> {
        let mut response = Response::new(Answer::Empty);
        let headers = response.headers_mut();
        let any = HeaderValue::from_static("*");
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
        if !matches!(*method, Method::GET | Method::HEAD) {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            // A bare 4xx is taken for hyper's own by `wire`.
            *response.body_mut() = Answer::whole(Bytes::from_static(b"only GET\n"));
            let allow = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(header::ALLOW, allow);
            return response;
        }
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        let soon = HeaderValue::from_static("max-age=5");
        headers.insert(header::CACHE_CONTROL, soon);
        if *method == Method::GET {
            let body = list(&self.own, routes, &self.seen.load(), load);
            *response.body_mut() = Answer::whole(Bytes::from(body.to_string()));
        }
        response
    }

    /// Asks the others again and again, and new ones soon. Never ends by itself.
    ///
    /// Cancel safety: dropped, what is known stays as it was.
    pub(super) async fn keep(self: Arc<Self>, control: ControlPlane) {
        let mut changed = control.routes_changed();
        let mut tls = None;
        let mut due = Instant::now();
        loop {
            tokio::time::sleep(SETTLE).await;
            let all = others(&self.own, &control.routes());
            let before = self.seen.load_full();
            let is_due = Instant::now() >= due;
            if is_due {
                // Nodes that started together do not ask together.
                due = Instant::now() + ROUND.mul_f64(0.75 + fastrand::f64() / 2.0);
            }
            let asked = all
                .iter()
                .filter(|url| is_due || !before.contains_key(*url))
                .cloned()
                .collect();
            if tls.is_none() && all.iter().any(|url| url.starts_with("https:")) {
                tls = client_config().await;
            }
            let mut found = round(&before, asked, tls.as_ref()).await;
            let known = |url: Arc<str>| {
                let seen = found.remove(&url).or_else(|| before.get(&url).copied())?;
                Some((url, seen))
            };
            self.seen
                .store(Arc::new(all.into_iter().filter_map(known).collect()));
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                // Whoever tells of routes lives as long as this does.
                _ = changed.changed() => {}
            }
        }
    }
}

/// URLs of the other ingress nodes.
fn others(own: &str, routes: &Routes) -> Vec<Arc<str>> {
    let urls = routes.nodes.values().filter(|node| node.ingress);
    urls.flat_map(|node| &node.client_urls)
        .filter(|url| &***url != own)
        .take(EDGES_MAX)
        .cloned()
        .collect()
}

/// The nearest first. Pure.
fn list(own: &str, routes: &Routes, seen: &All, load: u64) -> Value {
    let mut rows = Vec::new();
    let there = routes
        .nodes
        .values()
        .filter(|node| node.ingress && !node.draining);
    for node in there {
        for url in &node.client_urls {
            let is_own = **url == *own;
            let known = seen.get(url).copied().unwrap_or_default();
            if is_own {
                rows.push((Some(Duration::ZERO), url, &node.region, Some(load)));
            } else if known.misses < MISSES_MAX {
                rows.push((known.distance, url, &node.region, known.load));
            }
        }
    }
    // What was not measured yet stands behind what was.
    rows.sort_by_key(|row| (row.0.unwrap_or(Duration::MAX), Arc::clone(row.1)));
    let edges = rows.into_iter().take(EDGES_MAX).map(|row| {
        let ms = row.0.map(|distance| distance.as_micros() as f64 / 1e3);
        json!({ "url": **row.1, "region": **row.2, "load": row.3, "distance_ms": ms })
    });
    let edges: Vec<Value> = edges.collect();
    json!({ "region": *routes.region, "load": load, "edges": edges })
}

/// Asks all of them once, some at a time.
async fn round(before: &All, urls: Vec<Arc<str>>, tls: Option<&Arc<ClientConfig>>) -> All {
    let mut after = All::with_capacity(urls.len());
    let mut asking = JoinSet::new();
    let mut urls = urls.into_iter();
    loop {
        while asking.len() < AT_ONCE
            && let Some(url) = urls.next()
        {
            let tls = tls.cloned();
            asking.spawn(async move {
                let found = ask(&url, tls).await;
                (url, found)
            });
        }
        match asking.join_next().await {
            None => return after,
            Some(Ok((url, found))) => {
                let seen = before.get(&url).copied().unwrap_or_default();
                after.insert(url, seen.after(found));
            }
            // One that panicked is as good as not asked.
            Some(Err(_)) => {}
        }
    }
}

/// Time to connect, and the load if it is told. Nothing: nobody is there.
async fn ask(url: &str, tls: Option<Arc<ClientConfig>>) -> Option<(Duration, Option<u64>)> {
    let uri: Uri = url.parse().ok()?;
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host()?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let step = |time| tokio::time::timeout(STEP_WAIT, time);
    // The name's own time is no distance.
    let found = step(lookup_host((host.as_str(), port))).await;
    let address = found.ok()?.ok()?.next()?;
    let began = Instant::now();
    let connected = tokio::time::timeout(STEP_WAIT, TcpStream::connect(address)).await;
    let socket = connected.ok()?.ok()?;
    let distance = began.elapsed();
    let told = async {
        if !secure {
            return load(socket, &uri).await;
        }
        let name = ServerName::try_from(host).ok()?;
        let tls = TlsConnector::from(tls?);
        load(tls.connect(name, socket).await.ok()?, &uri).await
    };
    let told = tokio::time::timeout(STEP_WAIT, told).await;
    Some((distance, told.ok().flatten()))
}

/// What another ingress says of its own load.
async fn load(io: impl AsyncRead + AsyncWrite + Send + Unpin, uri: &Uri) -> Option<u64> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .ok()?;
    let request = Request::get(PATH)
        .header(header::HOST, uri.authority()?.as_str())
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .ok()?;
    let answered = async {
        let response = sender.send_request(request).await.ok()?;
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        let body = body.collect().await.ok()?.to_bytes();
        let told: Value = serde_json::from_slice(&body).ok()?;
        told["load"].as_u64()
    };
    let mut answered = pin!(answered);
    tokio::select! {
        told = &mut answered => told,
        // It drives the answer; when it ends, the answer's last piece is there.
        _ = connection => answered.await,
    }
}

/// TLS that trusts what this machine trusts. Without it, distances are measured all the same.
async fn client_config() -> Option<Arc<ClientConfig>> {
    let load = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(load.await.ok()?.certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?;
    let config = config.with_root_certificates(roots);
    Some(Arc::new(config.with_no_client_auth()))
}

#[cfg(test)]
mod tests;
