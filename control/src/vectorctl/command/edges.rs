//! How far each ingress is from here, and which one a client here should use.
//!
//! Which there are is told by control, or by any ingress at `/.well-known/vector-edges`, which needs no token. Each is
//! then asked for that same small answer several times over one connection; the quickest is its distance.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;
use vector_proto::control::v1 as pb;

use super::{Done, Shown};
use crate::{
    Failure, args,
    connect::{Proof, connect},
    sight::{has, is_draining},
    table,
};

/// Where an ingress tells of itself and of the others.
const PATH: &str = "/.well-known/vector-edges";

/// For everything that is asked of one ingress.
const WAIT: Duration = Duration::from_secs(10);

/// Largest answer read.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// Measured at once: more would disturb each other.
const AT_ONCE: usize = 4;

/// One ingress as seen from here.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) url: String,
    pub(crate) region: String,
    pub(crate) load: Option<u64>,
    /// The quickest answer, and the time to the first one with name, connection and TLS in it; or why there is none.
    pub(crate) found: Result<(Duration, Duration), String>,
}

/// Measures every ingress and names the nearest.
pub(super) async fn probe(control: &str, proof: &Proof, asked: args::Probe) -> Done {
    let tls = tls();
    let (urls, times) = match &asked.from {
        Some(url) => (told_by(url, &tls).await?, asked.times),
        None => (told_by_control(control, proof).await?, asked.times),
    };
    if urls.is_empty() {
        return Err(Failure::Refused(
            "there is no ingress that takes clients: vectorctl node list".to_owned(),
        ));
    }
    let mut edges = measured(urls, times.clamp(1, 100), &tls).await;
    edges.sort_by_key(|edge| edge.found.as_ref().map_or(Duration::MAX, |found| found.0));
    let nearest = edges.first().filter(|edge| edge.found.is_ok());
    let rows = edges.iter().map(|edge| {
        let ms = |time: Duration| time.as_micros() as f64 / 1e3;
        let found = edge.found.as_ref();
        json!({
            "url": edge.url, "region": edge.region, "load": edge.load,
            "distance_ms": found.ok().map(|found| ms(found.0)), "first_ms": found.ok().map(|found| ms(found.1)),
            "error": found.err(),
        })
    });
    let value = json!({
        "edges": rows.collect::<Vec<_>>(), "nearest": nearest.map(|edge| edge.url.clone()),
    });
    let mut text = table::edges(&edges);
    match nearest {
        Some(edge) => text += &format!("\n\nNearest: {0}\n  OPENAI_BASE_URL={0}/v1", edge.url),
        None => {
            return Err(Failure::Unreachable(format!(
                "no ingress can be reached from here\n{text}"
            )));
        }
    }
    Ok(Shown::new(value, text))
}

async fn told_by_control(control: &str, proof: &Proof) -> Result<Vec<String>, Failure> {
    let mut client = connect(control, proof).await?;
    let status = client.status(pb::StatusRequest {}).await?.into_inner();
    let open = status
        .nodes
        .iter()
        .filter(|view| view.connected && has(view, "ingress") && !is_draining(view));
    Ok(open
        .filter_map(|view| view.record.as_ref())
        .flat_map(|record| record.client_urls.clone())
        .collect())
}

async fn told_by(url: &str, tls: &Arc<ClientConfig>) -> Result<Vec<String>, Failure> {
    let unreachable = |why: String| Failure::Unreachable(format!("{url}: {why}"));
    let uri: Uri = url.parse().map_err(|_| {
        Failure::Usage(format!(
            "`{url}` is not a URL such as https://eu.example.net"
        ))
    })?;
    let asked = async {
        let mut sender = open(&uri, tls).await?;
        ask(&mut sender, &uri).await
    };
    let told = tokio::time::timeout(WAIT, asked).await;
    let told = told
        .map_err(|_| unreachable("no answer in time".to_owned()))?
        .map_err(unreachable)?;
    let rows = told["edges"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let urls = rows.iter().filter_map(|row| row["url"].as_str());
    Ok(urls.map(str::to_owned).collect())
}

/// Measures all of them, a few at a time.
async fn measured(urls: Vec<String>, times: u32, tls: &Arc<ClientConfig>) -> Vec<Edge> {
    let mut edges = Vec::with_capacity(urls.len());
    let mut asking = JoinSet::new();
    let mut urls = urls.into_iter();
    loop {
        while asking.len() < AT_ONCE
            && let Some(url) = urls.next()
        {
            asking.spawn(measure(url, times, Arc::clone(tls)));
        }
        match asking.join_next().await {
            None => return edges,
            Some(Ok(edge)) => edges.push(edge),
            // One that panicked has nothing to tell.
            Some(Err(_)) => {}
        }
    }
}

async fn measure(url: String, times: u32, tls: Arc<ClientConfig>) -> Edge {
    let mut edge = Edge {
        region: String::new(),
        load: None,
        found: Err("no answer in time".to_owned()),
        url,
    };
    let Ok(uri) = edge.url.parse::<Uri>() else {
        edge.found = Err("is no URL".to_owned());
        return edge;
    };
    let asked = async {
        let began = Instant::now();
        let mut sender = open(&uri, &tls).await?;
        let told = ask(&mut sender, &uri).await?;
        let (first, mut quickest) = (began.elapsed(), Duration::MAX);
        for _ in 0..times {
            let began = Instant::now();
            ask(&mut sender, &uri).await?;
            quickest = quickest.min(began.elapsed());
        }
        Ok((told, (quickest, first)))
    };
    match tokio::time::timeout(WAIT, asked).await {
        Err(_) => {}
        Ok(Err(why)) => edge.found = Err(why),
        Ok(Ok((told, found))) => {
            edge.region = told["region"].as_str().unwrap_or_default().to_owned();
            edge.load = told["load"].as_u64();
            edge.found = Ok(found);
        }
    }
    edge
}

type Sender = SendRequest<Empty<Bytes>>;

/// A connection to an ingress.
async fn open(uri: &Uri, tls: &Arc<ClientConfig>) -> Result<Sender, String> {
    let secure = uri.scheme_str() == Some("https");
    let host = uri.host().ok_or("names no host")?;
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let socket = TcpStream::connect((host.as_str(), port))
        .await
        .map_err(|error| told(&error))?;
    socket.set_nodelay(true).map_err(|error| told(&error))?;
    if !secure {
        return shaken(socket).await;
    }
    let name = ServerName::try_from(host).map_err(|error| told(&error))?;
    let stream = TlsConnector::from(Arc::clone(tls))
        .connect(name, socket)
        .await
        .map_err(|error| told(&error))?;
    shaken(stream).await
}

async fn shaken(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Sender, String> {
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| error.to_string())?;
    // Ends with the connection, which ends with its sender.
    tokio_util::task::TaskTracker::new().spawn(connection);
    Ok(sender)
}

/// One question on an open connection.
async fn ask(sender: &mut Sender, uri: &Uri) -> Result<Value, String> {
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(PATH)
        .header(header::HOST, host)
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    sender.ready().await.map_err(|error| error.to_string())?;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = body.collect().await.map_err(|error| error.to_string())?;
    if !status.is_success() {
        return Err(format!("{status}: is no ingress of ours"));
    }
    serde_json::from_slice(&body.to_bytes()).map_err(|_| "is no ingress of ours".to_owned())
}

/// Trusts what this machine trusts.
fn tls() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(rustls::DEFAULT_VERSIONS);
    // The provider has all of the default versions.
    #[expect(clippy::expect_used, reason = "true of this provider at compile time")]
    let config = config.expect("ring speaks TLS 1.2 and 1.3");
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}
