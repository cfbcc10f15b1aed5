//! Which roots this node trusts, which can change under settings that are in use, and which its own certificate comes from.
//!
//! There are two while one takes the other's place. Control tells them, and they lie on disk beside the identity.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use ring::digest::{SHA256, digest};
use rustls::{
    DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring as provider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use x509_parser::prelude::FromDer as _;

use super::{Error, tls};

/// Roots that control may tell. There are two at the most.
const ROOTS_MAX: usize = 8;

/// Roots, made ready to judge others by.
pub(super) struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    pins: Vec<String>,
    store: Arc<RootCertStore>,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// What control is told of trust.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Standing {
    /// Pins of the roots that this node trusts.
    pub roots: Vec<String>,
    /// Those of them that its own certificate comes from.
    pub proven_by: Vec<String>,
}

impl Roots {
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        if certificates.is_empty() || certificates.len() > ROOTS_MAX {
            let count = certificates.len();
            return Err(Error::Issued(format!("{count} roots to trust")));
        }
        let pins = certificates.iter().map(|root| pin(root));
        let pins = pins.collect::<Option<_>>();
        let store = Arc::new(tls::store(&certificates)?);
        let crypto = Arc::new(provider::default_provider());
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&store), Arc::clone(&crypto));
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&store), crypto);
        Ok(Self {
            pins: pins.ok_or_else(|| Error::Issued("a root is no certificate".into()))?,
            servers: servers.build()?,
            clients: clients.build()?,
            certificates,
            store,
        })
    }

    pub(super) fn are(&self, certificates: &[CertificateDer<'_>]) -> bool {
        self.certificates == certificates
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    pub(super) fn store(&self) -> &RootCertStore {
        &self.store
    }

    /// How one with this chain stands.
    pub(super) fn standing(&self, chain: &[CertificateDer<'_>]) -> Standing {
        let proven = self.certificates.iter().zip(&self.pins);
        let proven = proven.filter(|(root, _)| tls::comes_from(chain, root));
        Standing {
            roots: self.pins.clone(),
            proven_by: proven.map(|(_, pin)| pin.clone()).collect(),
        }
    }
}

/// Lower hex SHA-256 of the public key.
fn pin(root: &[u8]) -> Option<String> {
    let (_, root) = x509_parser::certificate::X509Certificate::from_der(root).ok()?;
    let hash = digest(&SHA256, root.public_key().raw);
    Some(
        hash.as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

/// Judges by the roots of the moment.
pub(super) struct Live(pub(super) Arc<ArcSwap<Roots>>);

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Live")
    }
}

impl ServerCertVerifier for Live {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let roots = self.0.load();
        roots
            .servers
            .verify_server_cert(leaf, above, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let roots = self.0.load();
        roots.servers.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let roots = self.0.load();
        roots.servers.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Live {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Every root of this network has the same name, and who dials has one certificate.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0.load().clients.verify_client_cert(leaf, above, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let roots = self.0.load();
        roots.clients.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let roots = self.0.load();
        roots.clients.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().clients.supported_verify_schemes()
    }
}
