//! TLS as control speaks it: its own certificate, always fresh, and client certificates of this network.
//!
//! A client certificate is not asked of everybody, since enrolment comes before it and operators have
//! tokens; but one that is shown must be good, or have ended while there was nobody to renew it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::lenient::Lenient;
use super::Error;
use crate::{api::unix_now, identity::Authority};

mod lenient;

#[derive(Clone, Debug)]
pub(super) struct Tls {
    authority: Arc<Authority>,
    certificate: Arc<Current>,
    config: Arc<ServerConfig>,
}

/// The certificate in use.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Tls {
    pub(super) fn new(authority: Arc<Authority>, names: &[String]) -> Result<Self, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(authority.root().clone())
            .map_err(|error| wrong(&error))?;
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| wrong(&error))?;
        let leaf = authority.control_leaf(names, unix_now())?;
        let certificate = Arc::new(Current(ArcSwap::new(leaf)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?
            .with_client_cert_verifier(Arc::new(Lenient(clients)))
            .with_cert_resolver(Arc::<Current>::clone(&certificate));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            authority,
            certificate,
            config: Arc::new(config),
        })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Makes a new certificate every so often, and when another intermediate signs. A failure keeps the one in use, which lives far longer.
    pub(super) async fn renew(self, names: Vec<String>, every: Duration, drain: CancellationToken) {
        let mut turns = tokio::time::interval(every);
        turns.tick().await;
        let mut signing = self.authority.changes();
        loop {
            tokio::select! {
                () = drain.cancelled() => return,
                _ = turns.tick() => {}
                // Never fails: the authority is held here.
                _ = signing.changed() => {}
            }
            match self.authority.control_leaf(&names, unix_now()) {
                Ok(leaf) => self.certificate.0.store(leaf),
                Err(error) => tracing::error!(%error, "control's certificate could not be renewed"),
            }
        }
    }
}
