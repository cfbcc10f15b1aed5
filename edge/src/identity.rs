//! Who this node is, and how it proves that to others.
//!
//! A key that never leaves `state_dir`, a short-lived certificate that control issued for it, and
//! the network's roots. TLS settings made from them look certificate and roots up at every handshake,
//! so that a renewed one is used at once, a new root trusted at once, and no link is dropped. Getting certificates is
//! `control_plane::enroll`'s work; nothing here speaks to anybody.

mod grace;

mod peer;

mod revoked;

mod roots;

mod state;

mod tls;

mod trust;

use std::{
    fmt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use ring::hkdf;
use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use tokio::sync::watch;
use vector_proto::{control::v1::EnrollResponse, id::NodeId};
use zeroize::Zeroizing;

pub(crate) use self::grace::GRACE;
pub use self::{
    peer::{NotANode, Peer, peer},
    revoked::Revocations,
    roots::Standing,
    tls::{CONTROL_NAME, Pin, pinned_client},
};

use self::{grace::Grace, revoked::Revoked, roots::Roots, state::State, tls::Held};
use crate::config::Role;

/// Why this node cannot prove who it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file in the state folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file in the state folder holds something else.
    #[error("{path}: {why}; to enrol anew, empty the folder and give the node a new invite")]
    Stored {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What control issued cannot be used.
    #[error("control issued a certificate that cannot be used: {0}")]
    Issued(String),
    /// A key or signing request could not be made.
    #[error("key: {0}")]
    Key(#[from] rcgen::Error),
    /// TLS settings could not be made.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The verifier of peers could not be made.
    #[error("TLS: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// No randomness.
    #[error("the operating system gives no randomness")]
    Random,
}

/// Who this node is. Cheap to clone.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    state: State,
    peer: Peer,
    region: String,
    epoch: u64,
    reset_key: [u8; 64],
    state_keys: StateKeys,
    held: Arc<ArcSwap<Held>>,
    /// The roots or the certificate in use are not on disk yet.
    unkept: AtomicBool,
    grace: Arc<Grace>,
    revoked: Arc<Revoked>,
    roots: Arc<ArcSwap<Roots>>,
    /// Held while roots or the certificate change.
    told: Mutex<Told>,
    standing: ArcSwap<Standing>,
    /// New certificates come from another root than this node's.
    leaving: watch::Sender<bool>,
    tls: tls::Settings,
}

/// What control said of the roots since the start.
#[derive(Default)]
struct Told {
    generation: u64,
    /// Pin of the root that new certificates come from; empty: it did not say.
    signing: String,
}

/// Keys to seal this node's own state with, derived from its private key (HKDF, RFC 5869): the same at every start, and
/// no other node's.
#[derive(Clone)]
pub struct StateKeys(Arc<hkdf::Prk>);

impl StateKeys {
    /// From what is secret of the node.
    #[must_use]
    pub fn of(secret: &[u8]) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"vector-edge state 1");
        Self(Arc::new(salt.extract(secret)))
    }

    /// The key for one purpose; nothing can be told of it from those for others.
    #[must_use]
    pub fn key(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        let purpose = [purpose.as_bytes()];
        let expanded = self.0.expand(&purpose, hkdf::HKDF_SHA256);
        // Fails for a length other than the hash's only, which this is.
        let filled = expanded.and_then(|key_material| key_material.fill(&mut *key));
        debug_assert!(filled.is_ok());
        key
    }
}

impl fmt::Debug for StateKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKeys(..)")
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0.peer.id)
    }
}

/// A key that has no certificate yet.
pub struct Request {
    key: rcgen::KeyPair,
    csr: Vec<u8>,
}

impl Request {
    /// A fresh key, and the request to certify it.
    ///
    /// # Errors
    /// [`Error::Key`], without randomness.
    pub fn fresh() -> Result<Self, Error> {
        Self::of(rcgen::KeyPair::generate()?)
    }

    /// The key that a former start had certified and did not get to keep the answer for; else a fresh one, which is on disk
    /// when this returns. An invite is good for one request, so it must not be lost once control has seen it.
    ///
    /// # Errors
    /// [`Error::File`] when the disk refuses it: control is not to be asked then.
    pub fn kept(state_dir: &Path) -> Result<Self, Error> {
        let state = State::open(state_dir)?;
        if let Some((key, csr)) = state.asked()? {
            return Ok(Self { key, csr });
        }
        let fresh = Self::fresh()?;
        state.write_asked(&fresh.key, &fresh.csr)?;
        Ok(fresh)
    }

    fn of(key: rcgen::KeyPair) -> Result<Self, Error> {
        // Names in a request are ignored: control knows who this is.
        let request = rcgen::CertificateParams::default().serialize_request(&key)?;
        let csr = request.der().to_vec();
        Ok(Self { key, csr })
    }

    /// PKCS#10, DER.
    #[must_use]
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Request(..)")
    }
}

impl Identity {
    /// Reads what a former start left in `state_dir`, and begins a new epoch. `None` before the
    /// first enrolment.
    ///
    /// # Errors
    /// [`Error`], naming the file that cannot be used.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, Error> {
        let state = State::open(state_dir)?;
        let Some(kept) = state.read()? else {
            return Ok(None);
        };
        let stored = |why: String| Error::Stored {
            path: state.certificate(),
            why,
        };
        let leaf = kept
            .chain
            .first()
            .ok_or_else(|| stored("it is empty".into()))?;
        let peer = peer(std::slice::from_ref(leaf)).map_err(|error| stored(error.to_string()))?;
        let held = Held::new(&kept.key, kept.chain).map_err(|error| stored(error.to_string()))?;
        let roots = Roots::new(kept.roots).map_err(|error| stored(error.to_string()))?;
        let standing = ArcSwap::from_pointee(roots.standing(held.chain()));
        let roots = Arc::new(ArcSwap::from_pointee(roots));
        let held = Arc::new(ArcSwap::from_pointee(held));
        let grace = Arc::new(Grace::default());
        let revoked = Arc::new(Revoked::default());
        let tls = tls::Settings::new(&roots, &held, (&grace, &revoked))?;
        let epoch = state.next_epoch(unix_ms(SystemTime::now()));
        let reset_key = state.reset_key()?;
        let state_keys = StateKeys::of(&kept.key);
        Ok(Some(Self(Arc::new(Inner {
            state,
            peer,
            region: kept.region,
            epoch,
            reset_key,
            state_keys,
            held,
            unkept: AtomicBool::new(false),
            grace,
            revoked,
            roots,
            told: Mutex::default(),
            standing,
            leaving: watch::Sender::new(false),
            tls,
        }))))
    }

    /// Keeps what control issued for a first key, so that [`Identity::load`] finds it.
    ///
    /// # Errors
    /// [`Error::Issued`] when key, certificate and roots do not belong together.
    pub fn enrolled(
        state_dir: &Path,
        request: &Request,
        issued: &EnrollResponse,
    ) -> Result<(), Error> {
        let (chain, roots) = (ders(&issued.certificate_chain), ders(&issued.roots));
        let peer = tls::check_issued(&request.key.serialize_der(), &chain, &roots)?;
        if peer.id.as_str() != issued.node {
            return Err(Error::Issued(format!(
                "it names {}, not {}",
                peer.id, issued.node
            )));
        }
        State::open(state_dir)?.write(&request.key.serialize_pem(), &chain, &roots, &issued.region)
    }

    /// A request to renew the certificate. The key stays, so that one file is all that changes.
    ///
    /// # Errors
    /// [`Error::Stored`] when the key cannot be read again.
    pub fn renewal(&self) -> Result<Request, Error> {
        Request::of(self.0.state.key()?)
    }

    /// Uses a renewed certificate from the next handshake on, and keeps it as soon as the disk takes it
    /// ([`Identity::keep`]).
    ///
    /// # Errors
    /// [`Error::Issued`] when it is not for this node and key; the old one stays in use.
    pub fn renewed(&self, request: &Request, issued: &EnrollResponse) -> Result<(), Error> {
        let (chain, roots) = (ders(&issued.certificate_chain), ders(&issued.roots));
        let key = request.key.serialize_der();
        let peer = tls::check_issued(&key, &chain, &roots)?;
        if peer.id != self.0.peer.id {
            return Err(Error::Issued(format!(
                "it names {}, not {}",
                peer.id, self.0.peer.id
            )));
        }
        let held = Held::new(&key, chain)?;
        let mut told = self.0.told.lock();
        if issued.roots_generation >= told.generation {
            self.take_roots(roots)?;
            told.generation = issued.roots_generation;
        }
        self.0.held.store(Arc::new(held));
        self.0.unkept.store(true, Ordering::Relaxed);
        self.weigh(&told);
        drop(told);
        self.keep();
        Ok(())
    }

    /// Its name.
    #[must_use]
    pub fn node(&self) -> &str {
        self.0.peer.id.as_str()
    }

    /// Its name, as a name.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        &self.0.peer.id
    }

    /// Where it stands, by its invite.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.0.region
    }

    /// What it may do, by its certificate.
    #[must_use]
    pub fn roles(&self) -> &[Role] {
        &self.0.peer.roles
    }

    /// What every name of this network ends in.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.0.peer.trust_domain
    }

    /// Incarnation of this process: larger than that of every start before it.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Key of QUIC's stateless resets: the same after a restart, so that peers notice it at once.
    #[must_use]
    pub fn reset_key(&self) -> [u8; 64] {
        self.0.reset_key
    }

    /// What the node's own state is sealed with.
    #[must_use]
    pub fn state_keys(&self) -> StateKeys {
        self.0.state_keys.clone()
    }

    /// When the certificate begins and ends, since 1970.
    #[must_use]
    pub fn validity(&self) -> (Duration, Duration) {
        let held = self.0.held.load();
        (held.begins, held.ends)
    }

    /// Says whether control is heard: while it is not, and a little longer, others' certificates count beyond their end.
    pub fn control_heard(&self, connected: bool, now: Duration) {
        self.0.grace.heard(connected, now);
    }

    /// For dialling other nodes of this network, by [`Identity::server_name`].
    #[must_use]
    pub fn client_config(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        self.0.tls.client(alpn)
    }

    /// For dialling control, wherever it is: its certificate must name [`CONTROL_NAME`].
    #[must_use]
    pub fn control_client_config(&self) -> Arc<ClientConfig> {
        self.0.tls.control()
    }

    /// For accepting other nodes of this network: everyone must show a certificate.
    #[must_use]
    pub fn server_config(&self, alpn: &[u8]) -> Arc<ServerConfig> {
        self.0.tls.server(alpn)
    }

    /// The name that a node's certificate carries.
    #[must_use]
    pub fn server_name(&self, node: &str) -> String {
        format!("{node}.node.{}", self.trust_domain())
    }

    /// Who a verified chain names, if it is a node of this network that was not removed.
    #[must_use]
    pub fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer> {
        let (begins, _) = tls::validity(chain.first()?)?;
        let ours = |peer: &Peer| peer.trust_domain == self.trust_domain();
        let revoked = |peer: &Peer| self.0.revoked.covers(peer.id.as_str(), begins);
        peer(chain).ok().filter(|peer| ours(peer) && !revoked(peer))
    }

    /// Whose certificates count no more, from the next handshake on. Answers whether that is news; the links that there
    /// are, the tunnel closes.
    pub fn revoke(&self, list: &Arc<Revocations>) -> bool {
        self.0.revoked.set(list)
    }

    /// Whether this node itself was removed, or replaced by another of its name, as a former start was told.
    #[must_use]
    pub fn was_removed(&self) -> bool {
        self.0.state.is_removed()
    }

    /// Remembers that this node was removed: it starts again only with a new invite.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn removed(&self) -> Result<(), Error> {
        self.0.state.mark_removed()
    }
}

fn ders(list: &[bytes::Bytes]) -> Vec<CertificateDer<'static>> {
    list.iter()
        .map(|der| CertificateDer::from(der.to_vec()))
        .collect()
}

fn unix_ms(now: SystemTime) -> u64 {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
