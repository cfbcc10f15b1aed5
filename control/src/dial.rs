//! How an operator reaches control: TLS that trusts one pinned root and nothing else.
//!
//! Control sends its leaf and its root, or two roots while one takes the other's place. One must have the pin that stands in the
//! token; the leaf must come from it and carry control's fixed name, so the address that is dialled does not matter and a
//! node's certificate is not enough.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use ring::digest::{SHA256, digest};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::FromDer as _;

/// Control's name in its certificate; `identity` puts it there.
const NAME: &str = "vector-control";

/// Time to connect, the handshake included.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Time for a call.
const CALL_WAIT: Duration = Duration::from_secs(10);

/// A silent connection is asked this often whether it lives, and has this long to say so.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Why control cannot be dialled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is not one.
    #[error("`{0}` is not a URL such as https://127.0.0.1:7000")]
    Url(String),
    /// The pin is not one.
    #[error("the token ends in no pin: it must look like vadm_SECRET.PIN")]
    Pin,
    /// Nothing answers there, or it hangs up.
    #[error("cannot connect to {url}: {why}")]
    Connect {
        /// What was dialled.
        url: String,
        /// The causes, outermost first.
        why: String,
    },
    /// What answers is not the control that the token is for.
    #[error(
        "what answers at {url} is not the control plane that this token is for (its certificate does not match the token's pin)"
    )]
    WrongPin {
        /// What was dialled.
        url: String,
    },
    /// TLS itself.
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
}

/// A client's own certificate and key, when it has one.
pub type ClientCertificate = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Connects to control at `url`, whose root must have `pin` (64 letters of hex).
///
/// # Errors
/// [`Error`], which says what to do about it.
pub async fn dial(
    url: &str,
    pin: &str,
    certificate: Option<ClientCertificate>,
) -> Result<Channel, Error> {
    let uri: Uri = url.parse().map_err(|_| Error::Url(url.to_owned()))?;
    if uri.scheme_str() != Some("https") || uri.host().is_none() {
        return Err(Error::Url(url.to_owned()));
    }
    if pin.len() != 64 || !pin.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Error::Pin);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Pinned {
        pin: pin.to_owned(),
        provider: Arc::clone(&provider),
    });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = Connector(TlsConnector::from(Arc::new(config)));
    // Our connector makes the TLS; to tonic the connection is a plain one.
    let plain = format!(
        "http://{}",
        uri.authority().map_or("", |authority| authority.as_str())
    );
    Endpoint::from_shared(plain)
        .map_err(|_| Error::Url(url.to_owned()))?
        .connect_timeout(CONNECT_WAIT)
        .timeout(CALL_WAIT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .connect_with_connector(connector)
        .await
        .map_err(|error| explain(url, &error))
}

fn explain(url: &str, error: &tonic::transport::Error) -> Error {
    let mut causes = Vec::new();
    let mut next: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if text.contains("ApplicationVerificationFailure") {
            return Error::WrongPin {
                url: url.to_owned(),
            };
        }
        if !causes.contains(&text) {
            causes.push(text);
        }
        next = cause.source();
    }
    if causes.is_empty() {
        causes.push(error.to_string());
    }
    Error::Connect {
        url: url.to_owned(),
        why: causes.join(": "),
    }
}

/// Connects TCP, then TLS.
#[derive(Clone)]
struct Connector(TlsConnector);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.0.clone();
        Box::pin(async move {
            let host = uri
                .host()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned();
            let socket = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
            socket.set_nodelay(true)?;
            let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
            Ok(TokioIo::new(tls.connect(name, socket).await?))
        })
    }
}

/// Lower hex SHA-256 of a certificate's public key, or `None` when it is no certificate.
#[must_use]
pub fn pin_of(certificate: &[u8]) -> Option<String> {
    use fmt::Write as _;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(certificate).ok()?;
    let mut hex = String::with_capacity(64);
    for byte in digest(&SHA256, parsed.public_key().raw).as_ref() {
        // Writing to a `String` cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    Some(hex)
}

/// Trusts the root with the pin.
struct Pinned {
    pin: String,
    provider: Arc<CryptoProvider>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl Pinned {
    fn has_pin(&self, certificate: &CertificateDer<'_>) -> bool {
        pin_of(certificate).is_some_and(|pin| pin == self.pin)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let wrong =
            || TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let root = intermediates
            .iter()
            .find(|root| self.has_pin(root))
            .ok_or_else(wrong)?;
        let mut roots = RootCertStore::empty();
        roots.add(root.clone().into_owned()).map_err(|_| wrong())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|_| wrong())?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
