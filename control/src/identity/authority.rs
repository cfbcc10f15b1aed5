//! Makes and keeps the root, and signs leaves with its intermediate.
//!
//! The root's key lies in `ca/root.key` with mode 0600, and sealed in the store where several replicas share one; it is
//! never sent to anybody else. A root from before there were intermediates (its `pathLenConstraint` is 0) signs leaves
//! itself. Leaves begin five minutes in the past, so that a node whose clock is slow can use one at once.

use std::{fs, io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{
        CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
        pem::PemObject as _,
    },
    sign::CertifiedKey,
};
use tokio::sync::watch;
use vector_proto::{control::BACKDATE_S, id::NodeId};
use zeroize::Zeroizing;

use super::{
    certificate::{Facts, belongs_to, is_signed_by},
    intermediate::Intermediate,
    peer::Peer,
};
use crate::vault;

/// The name in control's own certificate that operators and nodes check, whatever address they dial.
pub const CONTROL_NAME: &str = "vector-control";

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Life of the root: 10 years.
const ROOT_LIFE: Duration = Duration::from_secs(3_653 * 24 * 3_600);

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

/// Holds the root, and the intermediate that signs in its place.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    facts: Facts,
    trust_domain: String,
    /// Changes when another one signs.
    intermediate: watch::Sender<Option<Arc<Intermediate>>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("pin", &self.facts.pin)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the root from `folder`; makes one when there is none.
    ///
    /// # Errors
    /// When the files cannot be read or made, or do not belong together.
    pub fn open(folder: &Path, trust_domain: &str, now: Duration) -> Result<Self, Error> {
        fs::create_dir_all(folder)?;
        let (key_path, root_path) = (folder.join("root.key"), folder.join("root.pem"));
        if !root_path.exists() {
            let key = KeyPair::generate()?;
            let root = root_params(trust_domain, now)?.self_signed(&key)?;
            // The certificate is what says that the root is there: it is written last.
            if key_path.exists() {
                fs::remove_file(&key_path)?;
            }
            vault::write_private(&key_path, key.serialize_pem().as_bytes())?;
            vault::write_new(&root_path, root.pem().as_bytes(), 0o644)?;
        }
        let key = KeyPair::from_pem(&fs::read_to_string(&key_path)?)
            .map_err(|error| Error::Stored(format!("root.key: {error}")))?;
        let root = CertificateDer::from_pem_file(&root_path)
            .map_err(|error| Error::Stored(format!("root.pem: {error}")))?;
        Self::of(key, root, trust_domain)
    }

    /// The authority that another replica has made ([`Authority::export`]).
    ///
    /// # Errors
    /// When key and root are none, or do not belong together.
    pub fn import(key: &[u8], root: &[u8], trust_domain: &str) -> Result<Self, Error> {
        let key = KeyPair::try_from(key)
            .map_err(|error| Error::Stored(format!("the root's key: {error}")))?;
        Self::of(key, root.to_vec().into(), trust_domain)
    }

    fn of(key: KeyPair, root: CertificateDer<'static>, trust_domain: &str) -> Result<Self, Error> {
        let facts =
            Facts::read(&root).ok_or_else(|| Error::Stored("root.pem: no certificate".into()))?;
        if !belongs_to(&key, &facts) {
            return Err(Error::Stored(
                "the root's key is not the one of the root".into(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&root, key)
            .map_err(|error| Error::Stored(format!("root.pem: {error}")))?;
        Ok(Self {
            issuer,
            root,
            facts,
            trust_domain: trust_domain.to_owned(),
            intermediate: watch::Sender::new(None),
        })
    }

    /// The root's key and the root in DER, to be sealed for the other replicas of control and for nobody else.
    #[must_use]
    pub fn export(&self) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
        (
            Zeroizing::new(self.issuer.key().serialize_der()),
            self.root.to_vec(),
        )
    }

    /// The root, for those who verify.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Lower hex SHA-256 of the root's public key.
    #[must_use]
    pub fn pin(&self) -> &str {
        &self.facts.pin
    }

    /// What people are told of the root.
    #[must_use]
    pub fn root_facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether the root signs intermediates, and they the leaves.
    #[must_use]
    pub fn has_intermediates(&self) -> bool {
        self.facts.path_len != Some(0)
    }

    /// A new intermediate. It signs nothing before it is taken up.
    ///
    /// # Errors
    /// [`Error::NoIntermediate`] for a root that may sign none.
    pub fn new_intermediate(&self, now: Duration) -> Result<Intermediate, Error> {
        if !self.has_intermediates() {
            return Err(Error::NoIntermediate);
        }
        let key = KeyPair::generate()?;
        let mut params = intermediate_params(&self.trust_domain)?;
        date(&mut params, Intermediate::LIFE, now, self.facts.ends);
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Intermediate::of(key, certificate)
    }

    /// Whether an intermediate is this root's.
    #[must_use]
    pub fn has_signed(&self, intermediate: &Intermediate) -> bool {
        is_signed_by(intermediate.certificate(), &self.root)
    }

    /// Leaves are signed by this one from now on; those of the one before stay good.
    pub fn take_up(&self, next: Intermediate) {
        self.intermediate.send_if_modified(|current| {
            let is_other = current
                .as_ref()
                .is_none_or(|current| current.facts().pin != next.facts().pin);
            if is_other {
                *current = Some(Arc::new(next));
            }
            is_other
        });
    }

    /// The one that signs leaves; `None` where the root does.
    #[must_use]
    pub fn intermediate(&self) -> Option<Arc<Intermediate>> {
        self.intermediate.borrow().clone()
    }

    /// Tells when another intermediate was taken up.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Intermediate>>> {
        self.intermediate.subscribe()
    }

    /// No leaf lives beyond this, since 1970: its issuer ends.
    #[must_use]
    pub fn signs_until(&self) -> Duration {
        self.intermediate
            .borrow()
            .as_ref()
            .map_or(self.facts.ends, |signing| signing.facts().ends)
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
        self.leaf(params, (NODE_LIFE, now), &request.public_key)
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
        self.leaf(params, (life, now), &request.public_key)
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
        let mut chain = self.leaf(params, (CONTROL_LIFE, now), &key)?;
        // Who knows no more than the pin finds the root here.
        chain.push(self.root.clone());
        let der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signer = any_supported_type(&der).map_err(|error| Error::Stored(error.to_string()))?;
        Ok(Arc::new(CertifiedKey::new(chain, signer)))
    }

    /// A leaf, and what is between it and the root.
    fn leaf(
        &self,
        mut params: CertificateParams,
        (life, now): (Duration, Duration),
        key: &impl PublicKeyData,
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        let Some(signing) = self.intermediate() else {
            date(&mut params, life, now, self.facts.ends);
            let leaf = params.signed_by(key, &self.issuer)?;
            return Ok(vec![leaf.der().clone()]);
        };
        date(&mut params, life, now, signing.facts().ends);
        let leaf = params.signed_by(key, signing.issuer())?;
        Ok(vec![leaf.der().clone(), signing.certificate().clone()])
    }
}

fn request(csr: &[u8]) -> Result<CertificateSigningRequestParams, Error> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(csr))
        .map_err(|error| Error::Request(error.to_string()))
}

fn root_params(trust_domain: &str, now: Duration) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Vector Engine root of {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    date(&mut params, ROOT_LIFE, now, Duration::MAX);
    Ok(params)
}

fn intermediate_params(trust_domain: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Vector Engine intermediate of {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial()?);
    Ok(params)
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

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = vault::random::<16>()?;
    // Positive and never short, as X.509 wants it.
    bytes[0] = (bytes[0] & 0x7F) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Lives for `life`, but never beyond its issuer's end.
fn date(params: &mut CertificateParams, life: Duration, now: Duration, issuer_ends: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + (now + life).min(issuer_ends);
}
