//! What is read from a certificate of the authority itself: its pin, its life, and what may be below it.

use std::time::Duration;

use rcgen::PublicKeyData;
use ring::digest::{SHA256, digest};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::vault;

/// What people are told of a root or an intermediate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// Lower hex SHA-256 of its public key.
    pub pin: String,
    /// Since 1970.
    pub begins: Duration,
    /// Since 1970.
    pub ends: Duration,
    /// So many authorities may be below it; any number when it does not say.
    pub(super) path_len: Option<u32>,
}

impl Facts {
    /// `None` when this is no certificate.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(der).ok()?;
        let since = |at: x509_parser::time::ASN1Time| {
            Duration::from_secs(u64::try_from(at.timestamp()).unwrap_or_default())
        };
        let constraints = parsed.basic_constraints().ok()?;
        Some(Self {
            pin: pin_of(parsed.public_key().raw),
            begins: since(parsed.validity().not_before),
            ends: since(parsed.validity().not_after),
            path_len: constraints.and_then(|found| found.value.path_len_constraint),
        })
    }
}

/// Whether the certificate is the one of this key.
pub(super) fn belongs_to(key: &impl PublicKeyData, facts: &Facts) -> bool {
    pin_of(&key.subject_public_key_info()) == facts.pin
}

/// Whether the certificate was signed with the key of this other one.
pub(super) fn is_signed_by(der: &[u8], issuer: &[u8]) -> bool {
    let read = |der| X509Certificate::from_der(der).ok().map(|(_, read)| read);
    read(der)
        .zip(read(issuer))
        .is_some_and(|(signed, issuer)| signed.verify_signature(Some(issuer.public_key())).is_ok())
}

/// A certificate as PEM.
pub(super) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let letters = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in letters.as_bytes().chunks(64) {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text + "-----END CERTIFICATE-----\n"
}

/// Lower hex SHA-256 of a public key in DER.
fn pin_of(public_key: &[u8]) -> String {
    vault::hex(digest(&SHA256, public_key).as_ref())
}
