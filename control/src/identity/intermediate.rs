//! What signs leaves in the root's place, for a year at most.
//!
//! It is replaced while much of its life is left, and everybody shows it with the own leaf, so whoever trusts the root
//! needs to be told nothing.

use std::{fmt, time::Duration};

use rcgen::{Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{
    authority::Error,
    certificate::{Facts, belongs_to},
};

const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Signs leaves.
pub struct Intermediate {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, and behind it the one that another root has signed for the same key, if one has.
    shown: Vec<CertificateDer<'static>>,
    facts: Facts,
}

impl fmt::Debug for Intermediate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Intermediate({})", self.facts.pin)
    }
}

impl Intermediate {
    /// A year.
    pub(super) const LIFE: Duration = Duration::from_secs(365 * DAY.as_secs());

    /// With less than this left, control replaces it by itself. An operator's certificate of 90 days fits always.
    const REPLACED_BEFORE: Duration = Duration::from_secs(120 * DAY.as_secs());

    /// One that was made before ([`Intermediate::export`]).
    ///
    /// # Errors
    /// [`Error::Stored`] when key and certificate are none, or do not belong together.
    pub fn import(key: &[u8], certificate: &[u8]) -> Result<Self, Error> {
        let key = KeyPair::try_from(key)
            .map_err(|error| Error::Stored(format!("the intermediate's key: {error}")))?;
        Self::of(key, certificate.to_vec().into())
    }

    pub(super) fn of(key: KeyPair, certificate: CertificateDer<'static>) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Stored(format!("the intermediate: {why}"));
        let facts = Facts::read(&certificate).ok_or_else(|| wrong("no certificate"))?;
        if !belongs_to(&key, &facts) {
            return Err(wrong("its key is another one"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| wrong(&error.to_string()))?;
        Ok(Self {
            issuer,
            shown: vec![certificate],
            facts,
        })
    }

    /// The same, shown with what another root has signed for it.
    #[must_use]
    pub fn crossed(mut self, cross: CertificateDer<'static>) -> Self {
        self.shown.truncate(1);
        self.shown.push(cross);
        self
    }

    /// What another root has signed for it.
    #[must_use]
    pub fn cross(&self) -> Option<&CertificateDer<'static>> {
        self.shown.get(1)
    }

    /// Its key and itself in DER, to be sealed for the replicas of control and for nobody else.
    #[must_use]
    pub fn export(&self) -> (Zeroizing<Vec<u8>>, Vec<u8>) {
        (
            Zeroizing::new(self.issuer.key().serialize_der()),
            self.certificate().to_vec(),
        )
    }

    /// What people are told of it.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether it is time for another one.
    #[must_use]
    pub fn is_old(&self, now: Duration) -> bool {
        self.facts.ends < now + Self::REPLACED_BEFORE
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        // There is always one.
        &self.shown[0]
    }

    /// What goes with each leaf.
    pub(super) fn shown(&self) -> &[CertificateDer<'static>] {
        &self.shown
    }
}
