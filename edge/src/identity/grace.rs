//! Certificates that ended while control was away.
//!
//! Nodes renew at a third of a certificate's life, so one that has ended means that control was gone for the other two.
//! Then nobody has a better one, and refusing it would end the network with its control. So a peer's certificate counts
//! for [`GRACE`] after its end, as long as this node does not hear control itself, and [`SETTLE`] longer, in which
//! everybody who belongs to the network renews. Control takes ended ones too, from nodes that it still knows and for
//! their renewal alone, and only control can give a new one. One that was revoked ([`super::revoked`]) counts in no case.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{revoked::Revoked, tls::validity};

/// How long a certificate counts after its end, without control.
pub(crate) const GRACE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// How long it counts after control is back: three times what a renewal waits at the most.
const SETTLE: Duration = Duration::from_secs(900);

/// Stands for "control is not heard".
const AWAY: u64 = u64::MAX;

/// Since when control is heard, in seconds since 1970.
#[derive(Debug)]
pub(super) struct Grace(AtomicU64);

impl Default for Grace {
    fn default() -> Self {
        Self(AtomicU64::new(AWAY))
    }
}

impl Grace {
    pub(super) fn heard(&self, connected: bool, now: Duration) {
        if !connected {
            self.0.store(AWAY, Ordering::Relaxed);
            return;
        }
        // Kept, if it is heard already.
        let since = now.as_secs();
        let _ = self
            .0
            .compare_exchange(AWAY, since, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn covers(&self, ends: Duration, now: Duration) -> bool {
        let heard = self.0.load(Ordering::Relaxed);
        let settled = heard != AWAY && now.as_secs() >= heard.saturating_add(SETTLE.as_secs());
        !settled && now <= ends + GRACE
    }

    /// The moment at which an ended certificate is judged instead of now: the last one of its life.
    fn instead(&self, fault: &Error, leaf: &[u8], now: UnixTime) -> Option<UnixTime> {
        let ended = matches!(
            fault,
            Error::InvalidCertificate(
                CertificateError::Expired | CertificateError::ExpiredContext { .. }
            )
        );
        let (_, ends) = validity(leaf).filter(|_| ended)?;
        let now = Duration::from_secs(now.as_secs());
        self.covers(ends, now)
            .then(|| UnixTime::since_unix_epoch(ends.saturating_sub(Duration::from_secs(1))))
    }
}

/// Judges as `judge` does, but by [`Grace`], and refuses what was [`Revoked`].
pub(super) struct Lenient<V: ?Sized> {
    pub(super) judge: Arc<V>,
    pub(super) grace: Arc<Grace>,
    pub(super) revoked: Arc<Revoked>,
}

impl<V: ?Sized> fmt::Debug for Lenient<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lenient")
    }
}

impl<V: ServerCertVerifier + ?Sized> ServerCertVerifier for Lenient<V> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged = |now| self.judge.verify_server_cert(leaf, above, name, ocsp, now);
        let judged = judged(now).or_else(|fault| match self.grace.instead(&fault, leaf, now) {
            Some(then) => judged(then),
            None => Err(fault),
        })?;
        self.revoked.check(leaf).map(|()| judged)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

impl<V: ClientCertVerifier + ?Sized> ClientCertVerifier for Lenient<V> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.judge.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judged = |now| self.judge.verify_client_cert(leaf, above, now);
        let judged = judged(now).or_else(|fault| match self.grace.instead(&fault, leaf, now) {
            Some(then) => judged(then),
            None => Err(fault),
        })?;
        self.revoked.check(leaf).map(|()| judged)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.judge.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}
