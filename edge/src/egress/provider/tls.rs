//! How TLS to providers is set up: which roots are trusted, which protocols are offered.

use std::{io, path::Path, sync::Arc};

use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject};

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of extra roots.
    #[error("egress.tls_roots: {0}: {1}")]
    Roots(String, String),
    /// The cryptography library.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A configuration that trusts the system's roots and those in `extra`, and resumes sessions.
///
/// # Errors
/// [`Error`] when `extra` cannot be read.
pub(super) fn client(extra: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    for error in &native.errors {
        tracing::warn!(%error, "a trusted root of the system could not be read");
    }
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = extra {
        let fault = |error: &dyn std::fmt::Display| {
            Error::Roots(path.display().to_string(), error.to_string())
        };
        let read = CertificateDer::pem_file_iter(path).map_err(|error| fault(&error))?;
        for certificate in read {
            let certificate = certificate.map_err(|error| fault(&error))?;
            roots.add(certificate).map_err(|error| fault(&error))?;
        }
    }
    if roots.is_empty() {
        // A node with providers on loopback alone needs no root, so this is no reason to refuse to start.
        tracing::warn!("no trusted root was found; providers behind TLS cannot be reached");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The same, for WebSockets: only HTTP/1.1 is offered.
pub(super) fn for_websockets(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let mut config = ClientConfig::clone(config);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::other(error)
    }
}
