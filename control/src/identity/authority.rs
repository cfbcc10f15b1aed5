//! Signs leaves with the root's intermediate, and says which roots are trusted: two of them while one takes the other's place.
//!
//! Leaves begin five minutes in the past, so that a node whose clock is slow can use one at once. While the root is rotated,
//! control's own leaf and those of operators come from the new one already: whoever trusts only the old one finds a way to it,
//! over the cross-signed intermediate, and what operators are given stays good when the old one goes.

use std::{io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use tokio::sync::watch;
use vector_proto::{control::BACKDATE_S, id::NodeId};

use super::{certificate::is_signed_by, intermediate::Intermediate, peer::Peer, root::Root};
use crate::vault;

/// The name in control's own certificate that operators and nodes check, whatever address they dial.
pub const CONTROL_NAME: &str = "vector-control";

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Life of a node's certificate.
const NODE_LIFE: Duration = DAY;

/// Life of control's own certificate; a new one is made every day.
const CONTROL_LIFE: Duration = Duration::from_secs(30 * 24 * 3_600);

/// Certificates begin this long ago.
pub(super) const BACKDATE: Duration = Duration::from_secs(BACKDATE_S);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The CA's files.
    #[error("CA: {0}")]
    File(#[from] io::Error),
    /// The CA's files hold something else.
    #[error("CA: {0}")]
    Stored(String),
    /// The signing request is not one, or its signature is wrong.
    #[error("not a good signing request: {0}")]
    Request(String),
    /// This root may sign no intermediate.
    #[error(
        "this network's root signs leaves itself: it is from before there were intermediates, and may sign none"
    )]
    NoIntermediate,
    /// Making the certificate failed.
    #[error("certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// No randomness for a serial number.
    #[error(transparent)]
    Random(#[from] vault::Error),
}

/// Holds what signs and what is trusted.
pub struct Authority {
    trust_domain: String,
    /// Changes when another one signs, or another root is trusted.
    signing: watch::Sender<Arc<Signing>>,
}

/// What signs and what is trusted at one moment.
#[derive(Clone, Debug)]
pub struct Signing {
    /// Which roots nodes are to trust is told with this: what has a larger one is newer. 0: the root was never rotated.
    pub generation: i64,
    root: Arc<Root>,
    intermediate: Option<Arc<Intermediate>>,
    rotation: Option<Arc<Rotation>>,
}

/// A root on its way to the place of the one that there is. Both are trusted.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// The new root.
    pub root: Arc<Root>,
    /// What signs in its place; the old root has signed it too.
    pub intermediate: Arc<Intermediate>,
    /// Leaves of nodes come from the new root.
    pub switched: bool,
}

impl Signing {
    /// The roots, the one that stays last.
    pub fn roots(&self) -> impl Iterator<Item = &Arc<Root>> {
        let next = self.rotation.as_ref().map(|rotation| &rotation.root);
        [&self.root].into_iter().chain(next)
    }

    /// The root that everything comes from in the end: the new one while there are two.
    #[must_use]
    pub fn lasting(&self) -> &Arc<Root> {
        let next = self.rotation.as_ref().map(|rotation| &rotation.root);
        next.unwrap_or(&self.root)
    }

    /// The root that leaves of nodes come from.
    #[must_use]
    pub fn of_nodes(&self) -> &Arc<Root> {
        match &self.rotation {
            Some(rotation) if rotation.switched => &rotation.root,
            _ => &self.root,
        }
    }

    /// The root that is, or was until it is replaced.
    #[must_use]
    pub fn root(&self) -> &Arc<Root> {
        &self.root
    }

    /// The one that signs in the place of [`Signing::root`]; `None` where that signs itself.
    #[must_use]
    pub fn intermediate(&self) -> Option<&Arc<Intermediate>> {
        self.intermediate.as_ref()
    }

    /// What takes its place, if something does.
    #[must_use]
    pub fn rotation(&self) -> Option<&Arc<Rotation>> {
        self.rotation.as_ref()
    }

    /// What signs for those who shall still be known when there is but one root again.
    fn lasting_signer(&self) -> Signer<'_> {
        match &self.rotation {
            Some(rotation) => Signer::Intermediate(&rotation.intermediate),
            None => self.signer(),
        }
    }

    fn signer_of_nodes(&self) -> Signer<'_> {
        match &self.rotation {
            Some(rotation) if rotation.switched => Signer::Intermediate(&rotation.intermediate),
            _ => self.signer(),
        }
    }

    fn signer(&self) -> Signer<'_> {
        match &self.intermediate {
            Some(intermediate) => Signer::Intermediate(intermediate),
            None => Signer::Root(&self.root),
        }
    }
}

/// What puts its name under a leaf.
enum Signer<'a> {
    Root(&'a Root),
    Intermediate(&'a Intermediate),
}

impl Signer<'_> {
    fn ends(&self) -> Duration {
        match self {
            Self::Root(root) => root.facts().ends,
            Self::Intermediate(signing) => signing.facts().ends,
        }
    }

    /// A leaf, and what is between it and the roots.
    fn leaf(
        &self,
        mut params: CertificateParams,
        (life, now): (Duration, Duration),
        key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        date(&mut params, life, now, self.ends());
        let (leaf, above) = match self {
            Self::Root(root) => (params.signed_by(key, root.issuer())?, &[][..]),
            Self::Intermediate(signing) => {
                (params.signed_by(key, signing.issuer())?, signing.shown())
            }
        };
        Ok([&[leaf.der().clone()], above].concat())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("pin", &self.pin())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the root from `folder`; makes one when there is none.
    ///
    /// # Errors
    /// When the files cannot be read or made, or do not belong together.
    pub fn open(folder: &Path, trust_domain: &str, now: Duration) -> Result<Self, Error> {
        Ok(Self::of(
            Root::open(folder, trust_domain, now)?,
            trust_domain,
        ))
    }

    /// The authority over a root.
    #[must_use]
    pub fn of(root: Root, trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            signing: watch::Sender::new(Arc::new(Signing {
                generation: 0,
                root: Arc::new(root),
                intermediate: None,
                rotation: None,
            })),
        }
    }

    /// What signs and what is trusted now.
    #[must_use]
    pub fn signing(&self) -> Arc<Signing> {
        Arc::clone(&self.signing.borrow())
    }

    /// Tells when that is another.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Signing>> {
        self.signing.subscribe()
    }

    /// Lower hex SHA-256 of the root's public key; of the one that is to go, until it is gone.
    #[must_use]
    pub fn pin(&self) -> String {
        self.signing.borrow().root.facts().pin.clone()
    }

    /// That of the root that stays: what is given out now is to be good beyond a rotation.
    #[must_use]
    pub fn lasting_pin(&self) -> String {
        self.signing.borrow().lasting().facts().pin.clone()
    }

    /// A new intermediate. It signs nothing before it is taken up.
    ///
    /// # Errors
    /// [`Error::NoIntermediate`] for a root that may sign none.
    pub fn new_intermediate(&self, now: Duration) -> Result<Intermediate, Error> {
        self.signing()
            .root
            .new_intermediate(&self.trust_domain, now)
    }

    /// A new root to take the place of the one that there is, with an intermediate that both have signed. Nothing comes of it
    /// before it is taken up.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn new_rotation(&self, now: Duration) -> Result<Rotation, Error> {
        let root = Root::make(&self.trust_domain, now)?;
        let intermediate = root.new_intermediate(&self.trust_domain, now)?;
        let cross = self
            .signing()
            .root
            .cross_sign(&intermediate, &self.trust_domain, now)?;
        Ok(Rotation {
            root: Arc::new(root),
            intermediate: Arc::new(intermediate.crossed(cross)),
            switched: false,
        })
    }

    /// Whether an intermediate is the root's.
    #[must_use]
    pub fn has_signed(&self, intermediate: &Intermediate) -> bool {
        is_signed_by(
            intermediate.certificate(),
            self.signing.borrow().root.certificate(),
        )
    }

    /// Leaves are signed by this one from now on; those of the one before stay good.
    pub fn take_up(&self, next: Intermediate) {
        self.signing.send_if_modified(|signing| {
            let before = signing.intermediate.as_ref();
            let is_other = before.is_none_or(|before| before.facts().pin != next.facts().pin);
            if is_other {
                Arc::make_mut(signing).intermediate = Some(Arc::new(next));
            }
            is_other
        });
    }

    /// Of a step that is made now: nodes take what is newer than what they know, and may know it from a store that is gone.
    #[must_use]
    pub fn next_generation(&self, now: Duration) -> i64 {
        let now_ms = i64::try_from(now.as_millis()).unwrap_or(i64::MAX);
        now_ms.max(self.signing.borrow().generation.saturating_add(1))
    }

    /// This is on its way to the root's place from now on, or nothing is. What is older than what is known changes nothing.
    pub fn take_up_rotation(&self, generation: i64, rotation: Option<Rotation>) {
        self.signing.send_if_modified(|signing| {
            let is_news = generation > signing.generation;
            if is_news {
                let signing = Arc::make_mut(signing);
                signing.generation = generation;
                signing.rotation = rotation.map(Arc::new);
            }
            is_news
        });
    }

    /// This is the root from now on, and this what is on its way to its place. What is older than what is known changes nothing.
    pub fn succeed(
        &self,
        generation: i64,
        root: Root,
        intermediate: Option<Intermediate>,
        rotation: Option<Rotation>,
    ) {
        self.signing.send_if_modified(|signing| {
            let is_news = generation > signing.generation;
            if is_news {
                *signing = Arc::new(Signing {
                    generation,
                    root: Arc::new(root),
                    intermediate: intermediate.map(Arc::new),
                    rotation: rotation.map(Arc::new),
                });
            }
            is_news
        });
    }

    /// No leaf of an operator lives beyond this, since 1970: its issuer ends.
    #[must_use]
    pub fn signs_until(&self) -> Duration {
        self.signing.borrow().lasting_signer().ends()
    }

    /// What every name of this network ends in.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Whether this is a signing request, so that nothing is used up for one that is not.
    ///
    /// # Errors
    /// [`Error::Request`] when it is not.
    pub fn check_request(&self, csr: &[u8]) -> Result<(), Error> {
        request(csr).map(drop)
    }

    /// A leaf for a node, for the public key of its signing request, with what is between it and the root.
    ///
    /// # Errors
    /// [`Error::Request`] when the request is not one.
    pub fn node_leaf(
        &self,
        csr: &[u8],
        peer: &Peer,
        now: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let request = request(csr)?;
        let roles: Vec<&str> = peer.roles.iter().map(|role| role.as_str()).collect();
        let uri = format!(
            "spiffe://{}/node/{}/{}",
            self.trust_domain,
            roles.join("+"),
            peer.id
        );
        let dns = format!("{}.node.{}", peer.id, self.trust_domain);
        let mut params = leaf_params(peer.id.as_str())?;
        params.subject_alt_names = vec![
            SanType::URI(uri.try_into()?),
            SanType::DnsName(dns.try_into()?),
        ];
        let signing = self.signing();
        signing
            .signer_of_nodes()
            .leaf(params, (NODE_LIFE, now), &request.public_key)
    }

    /// A leaf for an operator, for the public key of its signing request, with what is between it and the root: to show
    /// to control, and for nothing else.
    ///
    /// # Errors
    /// [`Error::Request`] when the request is not one.
    pub fn operator_leaf(
        &self,
        csr: &[u8],
        name: &NodeId,
        life: Duration,
        now: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let request = request(csr)?;
        let uri = format!("spiffe://{}/operator/{name}", self.trust_domain);
        let mut params = leaf_params(name.as_str())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
        let signing = self.signing();
        signing
            .lasting_signer()
            .leaf(params, (life, now), &request.public_key)
    }

    /// Control's own certificate and key, under `names` and [`CONTROL_NAME`].
    ///
    /// # Errors
    /// When a name is neither a host's name nor an address.
    pub fn control_leaf(
        &self,
        names: &[String],
        now: Duration,
    ) -> Result<Arc<CertifiedKey>, Error> {
        let key = KeyPair::generate()?;
        let mut params = leaf_params(CONTROL_NAME)?;
        params.subject_alt_names = vec![
            SanType::URI(format!("spiffe://{}/control", self.trust_domain).try_into()?),
            SanType::DnsName(CONTROL_NAME.try_into()?),
        ];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        let signing = self.signing();
        let mut chain = signing
            .lasting_signer()
            .leaf(params, (CONTROL_LIFE, now), &key)?;
        // Who knows no more than the pin finds the root here. The one that is to go comes last: builds from before two were
        // trusted look nowhere else.
        let mut roots: Vec<_> = signing
            .roots()
            .map(|root| root.certificate().clone())
            .collect();
        roots.reverse();
        chain.append(&mut roots);
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = any_supported_type(&der).map_err(|error| Error::Stored(error.to_string()))?;
        Ok(Arc::new(CertifiedKey::new(chain, signer)))
    }
}

fn request(csr: &[u8]) -> Result<CertificateSigningRequestParams, Error> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|error| Error::Request(error.to_string()))
}

fn leaf_params(name: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    Ok(params)
}

pub(super) fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

pub(super) fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = vault::random::<16>()?;
    // Positive and never short, as X.509 wants it.
    bytes[0] = (bytes[0] & 0x7F) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Lives for `life`, but never beyond its issuer's end.
pub(super) fn date(
    params: &mut CertificateParams,
    life: Duration,
    now: Duration,
    issuer_ends: Duration,
) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + (now + life).min(issuer_ends);
}
