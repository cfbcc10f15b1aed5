//! Connections over TLS 1.3, each a new one without anything kept of earlier ones: what a cold client pays.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::ask::Target;
use crate::line::Line;
use crate::wire::Fault;

/// A connection to a target over TLS.
pub(crate) type SecureLine = Line<TlsStream<TcpStream>>;

/// A target that is spoken to over TLS.
pub(crate) struct Secure {
    pub(crate) target: Target,
    name: ServerName<'static>,
    tls: TlsConnector,
    congestion: Option<String>,
}

impl Secure {
    /// `trust` is the certificate in PEM; `congestion` the TCP congestion control of this side.
    pub(crate) fn new(
        target: Target,
        trust: &Path,
        congestion: Option<String>,
    ) -> anyhow::Result<Self> {
        let shown = || trust.display().to_string();
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(trust).with_context(shown)? {
            roots.add(certificate.with_context(shown)?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        let name = ServerName::try_from(target.name().to_owned())?;
        Ok(Self {
            target,
            name,
            tls: TlsConnector::from(Arc::new(config)),
            congestion,
        })
    }

    /// Cancel safety: dropped half-way, the connection is closed.
    pub(crate) async fn open(&self) -> Result<SecureLine, Fault> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        if let Some(congestion) = &self.congestion {
            rustix::net::sockopt::set_tcp_congestion(&socket, congestion)
                .map_err(std::io::Error::from)?;
        }
        let socket = socket.connect(self.target.address).await?;
        socket.set_nodelay(true)?;
        let socket = self.tls.connect(self.name.clone(), socket).await?;
        Ok(Line::over(socket))
    }
}
