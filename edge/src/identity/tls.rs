//! TLS settings: always 1.3, always both sides proven, the certificate looked up at each handshake.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use ring::digest::{SHA256, digest};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use x509_parser::prelude::FromDer as _;

use super::{
    Error, Peer,
    grace::{Grace, Lenient},
    peer,
    revoked::Revoked,
    roots::{Live, Roots},
};

/// The name in control's certificate, whatever its address. No node can get it.
pub const CONTROL_NAME: &str = "vector-control";

/// gRPC's protocol.
const H2: &[u8] = b"h2";

/// Sessions that one set of settings remembers for resumption.
const SESSIONS_MAX: usize = 64;

/// A certificate in use, with its key.
pub(super) struct Held {
    key: Arc<CertifiedKey>,
    /// Since 1970.
    pub(super) begins: Duration,
    /// Since 1970.
    pub(super) ends: Duration,
}

impl Held {
    #[cfg(test)]
    pub(super) fn leaf(&self) -> CertificateDer<'static> {
        self.key.cert[0].clone()
    }

    /// Leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// From a PKCS#8 key and a chain, leaf first.
    pub(super) fn new(key: &[u8], chain: Vec<CertificateDer<'static>>) -> Result<Self, Error> {
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec()));
        let signer = provider::sign::any_supported_type(&der)?;
        let (begins, ends) = chain
            .first()
            .and_then(|leaf| validity(leaf))
            .ok_or_else(|| Error::Issued("it cannot be read".into()))?;
        let key = CertifiedKey::new(chain, signer);
        key.keys_match()?;
        Ok(Self {
            key: Arc::new(key),
            begins,
            ends,
        })
    }
}

pub(super) fn validity(leaf: &[u8]) -> Option<(Duration, Duration)> {
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(leaf).ok()?;
    let since = |at: x509_parser::time::ASN1Time| {
        Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or(0))
    };
    let validity = leaf.validity();
    Some((since(validity.not_before), since(validity.not_after)))
}

/// Gives the certificate of the moment.
struct Current(Arc<ArcSwap<Held>>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

/// Settings of which each user gets a copy with its own protocol name.
pub(super) struct Settings {
    client: ClientConfig,
    control: Arc<ClientConfig>,
    server: ServerConfig,
}

impl Settings {
    pub(super) fn new(
        roots: &Arc<ArcSwap<Roots>>,
        held: &Arc<ArcSwap<Held>>,
        (grace, revoked): (&Arc<Grace>, &Arc<Revoked>),
    ) -> Result<Self, Error> {
        let crypto = Arc::new(provider::default_provider());
        let judge = Arc::new(Live(Arc::clone(roots)));
        let servers = Lenient {
            judge: Arc::clone(&judge),
            grace: Arc::clone(grace),
            revoked: Arc::clone(revoked),
        };
        let current = Arc::new(Current(Arc::clone(held)));
        let client = ClientConfig::builder_with_provider(Arc::clone(&crypto))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(servers))
            .with_client_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesClientCert>);
        let verifier = ControlVerifier {
            trust: Trust::Roots(Arc::clone(roots)),
            crypto: Arc::clone(&crypto),
        };
        let mut control = ClientConfig::builder_with_provider(Arc::clone(&crypto))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesClientCert>);
        control.alpn_protocols = vec![H2.to_vec()];
        let nodes = Lenient {
            judge,
            grace: Arc::clone(grace),
            revoked: Arc::clone(revoked),
        };
        let server = ServerConfig::builder_with_provider(crypto)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(nodes))
            .with_cert_resolver(current);
        Ok(Self {
            client,
            control: Arc::new(control),
            server,
        })
    }

    pub(super) fn client(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        // Copies would otherwise share what they remember, whatever they speak.
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Arc::new(config)
    }

    pub(super) fn control(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.control)
    }

    pub(super) fn server(&self, alpn: &[u8]) -> Arc<ServerConfig> {
        let mut config = self.server.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }
}

/// That key, chain and roots belong together, now. Says whom the certificate names.
pub(super) fn check_issued(
    key: &[u8],
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
) -> Result<Peer, Error> {
    let issued = |error: rustls::Error| Error::Issued(error.to_string());
    Held::new(key, chain.to_vec()).map_err(|error| Error::Issued(error.to_string()))?;
    let (leaf, between) = chain
        .split_first()
        .ok_or_else(|| Error::Issued("it is empty".into()))?;
    let parsed = ParsedCertificate::try_from(leaf).map_err(issued)?;
    let algorithms = provider::default_provider().signature_verification_algorithms;
    let roots = store(roots)?;
    let (now, all) = (UnixTime::now(), algorithms.all);
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, between, now, all)
        .map_err(issued)?;
    peer(chain).map_err(|error| Error::Issued(error.to_string()))
}

/// Whether a certificate comes from this root, whenever it is or was good.
pub(super) fn comes_from(chain: &[CertificateDer<'_>], root: &CertificateDer<'static>) -> bool {
    let Some((leaf, between)) = chain.split_first() else {
        return false;
    };
    let (Ok(parsed), Some((_, ends)), Ok(roots)) = (
        ParsedCertificate::try_from(leaf),
        validity(leaf),
        store(std::slice::from_ref(root)),
    ) else {
        return false;
    };
    let all = provider::default_provider()
        .signature_verification_algorithms
        .all;
    // Nothing above it ends earlier.
    let at = UnixTime::since_unix_epoch(ends.saturating_sub(Duration::from_secs(1)));
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, between, at, all).is_ok()
}

pub(super) fn store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone())?;
    }
    Ok(store)
}

/// Lower hex SHA-256 of the public key of the network's root: how an invite names its network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// Reads 64 hexadecimal digits.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        let mut pin = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (at, byte) in pin.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(pin))
    }

    fn is_of(&self, root: &[u8]) -> bool {
        x509_parser::certificate::X509Certificate::from_der(root)
            .is_ok_and(|(_, root)| digest(&SHA256, root.public_key().raw).as_ref() == self.0)
    }
}

/// Settings for the one call before there are roots: control must send its root, and the root must
/// have this pin. It sends two while one takes the other's place. `strange` becomes true when only others were shown.
///
/// # Errors
/// [`Error::Tls`], never in practice.
pub fn pinned_client(pin: Pin, strange: Arc<AtomicBool>) -> Result<Arc<ClientConfig>, Error> {
    let crypto = Arc::new(provider::default_provider());
    let verifier = ControlVerifier {
        trust: Trust::Pin(pin, strange),
        crypto: Arc::clone(&crypto),
    };
    let mut config = ClientConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![H2.to_vec()];
    Ok(Arc::new(config))
}

/// What a certificate of control must come from.
enum Trust {
    Roots(Arc<ArcSwap<Roots>>),
    Pin(Pin, Arc<AtomicBool>),
}

/// Accepts a server that a trusted root calls [`CONTROL_NAME`], at whatever address it was dialled.
struct ControlVerifier {
    trust: Trust,
    crypto: Arc<CryptoProvider>,
}

impl fmt::Debug for ControlVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ControlVerifier")
    }
}

impl ServerCertVerifier for ControlVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let all = self.crypto.signature_verification_algorithms.all;
        let parsed = ParsedCertificate::try_from(leaf)?;
        match &self.trust {
            Trust::Roots(roots) => {
                let roots = roots.load();
                verify_server_cert_signed_by_trust_anchor(&parsed, roots.store(), above, now, all)?;
            }
            Trust::Pin(pin, strange) => {
                let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
                let Some(root) = above.iter().find(|root| pin.is_of(root)) else {
                    strange.store(true, Ordering::Relaxed);
                    return Err(unknown);
                };
                let mut roots = RootCertStore::empty();
                roots.add(root.clone().into_owned())?;
                verify_server_cert_signed_by_trust_anchor(&parsed, &roots, above, now, all)?;
            }
        }
        let name = ServerName::try_from(CONTROL_NAME)
            .map_err(|_| rustls::Error::General("control's name is no name".into()))?;
        verify_server_name(&parsed, &name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
