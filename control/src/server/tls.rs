//! TLS as control speaks it: its own certificate, always fresh, and client certificates of this network.
//!
//! A client certificate is not asked of everybody, since enrolment comes before it and operators have
//! tokens; but one that is shown must be good, or have ended while there was nobody to renew it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    RootCertStore, ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::lenient::Lenient;
use super::Error;
use crate::{
    api::unix_now,
    identity::{Authority, Signing},
};

mod lenient;

#[derive(Clone, Debug)]
pub(super) struct Tls {
    authority: Arc<Authority>,
    names: Arc<[String]>,
    current: Arc<ArcSwap<Current>>,
}

/// The settings in use, and what they were made of.
#[derive(Debug)]
struct Current {
    signing: Arc<Signing>,
    config: Arc<ServerConfig>,
}

/// The certificate of these settings.
#[derive(Debug)]
struct Own(Arc<CertifiedKey>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

impl Current {
    /// Settings with a new certificate, and the roots of now.
    fn new(authority: &Authority, names: &[String]) -> Result<Self, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let signing = authority.signing();
        let mut roots = RootCertStore::empty();
        for root in signing.roots() {
            roots
                .add(root.certificate().clone())
                .map_err(|error| wrong(&error))?;
        }
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| wrong(&error))?;
        let leaf = authority.control_leaf(names, unix_now())?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&error))?
            .with_client_cert_verifier(Arc::new(Lenient(clients)))
            .with_cert_resolver(Arc::new(Own(leaf)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        // Nothing is resumed: a session shows the certificate that it began with, and who has renewed an ended one would be
        // taken for who has not.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self {
            signing,
            config: Arc::new(config),
        })
    }
}

impl Tls {
    pub(super) fn new(authority: Arc<Authority>, names: &[String]) -> Result<Self, Error> {
        let current = Current::new(&authority, names)?;
        Ok(Self {
            authority,
            names: names.into(),
            current: Arc::new(ArcSwap::from_pointee(current)),
        })
    }

    /// For one connection: with a new certificate when another one signs since the last, or another root is trusted.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        if !Arc::ptr_eq(&self.current.load().signing, &self.authority.signing()) {
            self.make_anew();
        }
        TlsAcceptor::from(Arc::clone(&self.current.load().config))
    }

    /// A failure keeps the certificate in use, which lives far longer than until the next try.
    fn make_anew(&self) {
        match Current::new(&self.authority, &self.names) {
            Ok(current) => self.current.store(Arc::new(current)),
            Err(error) => tracing::error!(%error, "control's certificate could not be renewed"),
        }
    }

    /// Makes a new certificate every so often.
    pub(super) async fn renew(self, every: Duration, drain: CancellationToken) {
        let mut turns = tokio::time::interval(every);
        turns.tick().await;
        loop {
            tokio::select! {
                () = drain.cancelled() => return,
                _ = turns.tick() => self.make_anew(),
            }
        }
    }
}
