//! Makes and keeps a root, which signs intermediates and is what everybody trusts.
//!
//! Its key lies in `ca/root.key` with mode 0600, and sealed in the store where several replicas share one; it is never sent to
//! anybody else. A root from before there were intermediates (its `pathLenConstraint` is 0) signs leaves itself.

use std::{fmt, fs, io, path::Path, time::Duration};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::{
    authority::{Error, date, named, serial},
    certificate::{Facts, belongs_to, pem},
    intermediate::Intermediate,
};
use crate::vault;

/// Its life: 10 years.
const LIFE: Duration = Duration::from_secs(3_653 * 24 * 3_600);

const KEY: &str = "root.key";
const CERTIFICATE: &str = "root.pem";

/// See the module.
pub struct Root {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    facts: Facts,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", self.facts.pin)
    }
}

impl Root {
    /// Reads the root from `folder`; makes one when there is none.
    pub(super) fn open(folder: &Path, trust_domain: &str, now: Duration) -> Result<Self, Error> {
        if Self::pin_in(folder)?.is_none() {
            Self::make(trust_domain, now)?.put_in(folder)?;
        }
        let key = KeyPair::from_pem(&fs::read_to_string(folder.join(KEY))?)
            .map_err(|error| Error::Stored(format!("root.key: {error}")))?;
        Self::of(key, read(folder)?)
    }

    /// A new one, which is in no file yet.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn make(trust_domain: &str, now: Duration) -> Result<Self, Error> {
        let (key, root) = new(trust_domain, now)?;
        let root = root.der().clone();
        Self::of(key, root)
    }

    /// One that was made before ([`Root::export`]).
    ///
    /// # Errors
    /// When key and root are none, or do not belong together.
    pub fn import(key: &[u8], root: &[u8]) -> Result<Self, Error> {
        let key = KeyPair::try_from(key)
            .map_err(|error| Error::Stored(format!("the root's key: {error}")))?;
        Self::of(key, root.to_vec().into())
    }

    fn of(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, Error> {
        let facts = Facts::read(&certificate)
            .ok_or_else(|| Error::Stored("root.pem: no certificate".into()))?;
        if !belongs_to(&key, &facts) {
            return Err(Error::Stored(
                "the root's key is not the one of the root".into(),
            ));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| Error::Stored(format!("root.pem: {error}")))?;
        Ok(Self {
            issuer,
            certificate,
            facts,
        })
    }

    /// The pin of the root that lies in `folder`, if one does.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn pin_in(folder: &Path) -> Result<Option<String>, Error> {
        if !folder.join(CERTIFICATE).exists() {
            return Ok(None);
        }
        let facts = Facts::read(&read(folder)?);
        let facts = facts.ok_or_else(|| Error::Stored("root.pem: no certificate".into()))?;
        Ok(Some(facts.pin))
    }

    /// Writes itself down in `folder`, where no root lies.
    ///
    /// # Errors
    /// When it cannot be written, or one lies there.
    pub fn put_in(&self, folder: &Path) -> Result<(), Error> {
        fs::create_dir_all(folder)?;
        let (key_path, root_path) = (folder.join(KEY), folder.join(CERTIFICATE));
        // The certificate is what says that the root is there: it is written last.
        if !root_path.exists() && key_path.exists() {
            fs::remove_file(&key_path)?;
        }
        let key = Zeroizing::new(self.issuer.key().serialize_pem());
        vault::write_private(&key_path, key.as_bytes())?;
        vault::write_new(&root_path, pem(&self.certificate).as_bytes(), 0o644)?;
        Ok(())
    }

    /// Puts itself in the place of the root that lies in `folder`. Cut short, the certificate there is the one of before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replace_in(&self, folder: &Path) -> Result<(), Error> {
        let key = Zeroizing::new(self.issuer.key().serialize_pem());
        let pem = pem(&self.certificate);
        for (name, text) in [(KEY, key.as_bytes()), (CERTIFICATE, pem.as_bytes())] {
            let beside = folder.join(format!("{name}.new"));
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
            vault::write_private(&beside, text)?;
            fs::rename(&beside, folder.join(name))?;
        }
        fs::File::open(folder)?.sync_all()?;
        Ok(())
    }

    /// The root's key and the root in DER, to be sealed for the replicas of control and for nobody else.
    #[must_use]
    pub fn export(&self) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
        (
            Zeroizing::new(self.issuer.key().serialize_der()),
            self.certificate.to_vec(),
        )
    }

    /// The root, for those who verify.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What people are told of it.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether it signs intermediates, and they the leaves.
    #[must_use]
    pub fn has_intermediates(&self) -> bool {
        self.facts.path_len != Some(0)
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// A new intermediate below it.
    pub(super) fn new_intermediate(
        &self,
        trust_domain: &str,
        now: Duration,
    ) -> Result<Intermediate, Error> {
        if !self.has_intermediates() {
            return Err(Error::NoIntermediate);
        }
        let key = KeyPair::generate()?;
        let mut params = intermediate_params(trust_domain)?;
        date(&mut params, Intermediate::LIFE, now, self.facts.ends);
        let certificate = params.signed_by(&key, &self.issuer)?.der().clone();
        Intermediate::of(key, certificate)
    }

    /// Another root's intermediate, signed by this one too, for those who trust no other. rustls takes it from a root of
    /// `pathLenConstraint` 0 as well, since to it a trusted root is a name and a key.
    pub(super) fn cross_sign(
        &self,
        other: &Intermediate,
        trust_domain: &str,
        now: Duration,
    ) -> Result<CertificateDer<'static>, Error> {
        let mut params = intermediate_params(trust_domain)?;
        let ends = self.facts.ends.min(other.facts().ends);
        date(&mut params, Intermediate::LIFE, now, ends);
        let crossed = params.signed_by(other.issuer().key(), &self.issuer)?;
        Ok(crossed.der().clone())
    }
}

fn read(folder: &Path) -> Result<CertificateDer<'static>, Error> {
    CertificateDer::from_pem_file(folder.join(CERTIFICATE))
        .map_err(|error| Error::Stored(format!("root.pem: {error}")))
}

fn new(trust_domain: &str, now: Duration) -> Result<(KeyPair, rcgen::Certificate), Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Vector Engine root of {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    date(&mut params, LIFE, now, Duration::MAX);
    let key = KeyPair::generate()?;
    let root = params.self_signed(&key)?;
    Ok((key, root))
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
