//! How an authority is spoken to: HTTPS, one connection for each request, since there are a dozen in two months.

use std::{
    fs,
    future::Future,
    path::Path,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, HttpClient};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::Error;

/// For one request and its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// The way to it. Cheap to clone.
#[derive(Clone)]
pub(in crate::ingress) struct Authority {
    tls: TlsConnector,
    /// Seconds that the last refusal asked for; 0: none.
    rest: Arc<AtomicU64>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Trusts the roots in `ca`, or without it the system's.
    ///
    /// # Errors
    /// [`Error`] when there is no root to trust.
    pub(in crate::ingress) fn new(ca: Option<&Path>) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        if let Some(path) = ca {
            let content = |why: String| Error::Content {
                path: path.to_owned(),
                why,
            };
            let text = fs::read(path).map_err(|source| Error::File {
                path: path.to_owned(),
                source,
            })?;
            for root in CertificateDer::pem_slice_iter(&text) {
                let root = root.map_err(|error| content(error.to_string()))?;
                roots
                    .add(root)
                    .map_err(|error| content(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(content("no certificate in it".into()));
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: Arc::new(tls).into(),
            rest: Arc::default(),
        })
    }

    /// The rest that the last refusal asked for, once.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.rest.swap(0, Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    pub(in crate::ingress) async fn ask(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, Fault> {
        let answer = tokio::time::timeout(PATIENCE, Box::pin(self.exchange(request)));
        let answer = answer.await.map_err(|_| "it did not answer in time")??;
        if answer.status().is_client_error() || answer.status().is_server_error() {
            let asked = answer.headers().get(header::RETRY_AFTER);
            let asked = asked.and_then(|asked| seconds(asked, SystemTime::now()));
            self.rest.store(asked.unwrap_or(0), Ordering::Relaxed);
        }
        Ok(answer)
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Fault> {
        let (mut parts, body) = request.into_parts();
        let authority = parts.uri.authority().ok_or("a URL without a host")?.clone();
        if parts.uri.scheme_str() != Some("https") {
            return Err("a URL that is not https".into());
        }
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())?;
        let socket = TcpStream::connect((bare, authority.port_u16().unwrap_or(443))).await?;
        let stream = self.tls.connect(name, socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = path.parse::<Uri>()?;
        let host = HeaderValue::from_str(authority.as_str())?;
        parts.headers.insert(header::HOST, host);
        let request = Request::from_parts(parts, Full::new(body));
        let exchange = async {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?;
            Ok(Response::from_parts(parts, body.to_bytes()))
        };
        let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
        tokio::select! {
            answer = &mut exchange => answer,
            // What has come until then is still to be read.
            _ended = &mut connection => exchange.await,
        }
    }
}

impl HttpClient for Authority {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let me = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = Request::from_parts(parts, body.to_bytes());
            let answer = me.ask(request).await.map_err(instant_acme::Error::Other)?;
            Ok(BytesResponse::from(answer.map(Full::new)))
        })
    }
}

/// `Retry-After` in seconds (RFC 9110, 10.2.3).
fn seconds(value: &HeaderValue, now: SystemTime) -> Option<u64> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(seconds);
    }
    let then = httpdate::parse_http_date(text).ok()?;
    Some(then.duration_since(now).ok()?.as_secs())
}
