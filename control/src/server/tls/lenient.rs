//! Certificates of nodes that ended while control was away.
//!
//! A node renews at a third of its certificate's life; when control was gone for longer than the rest, every node comes
//! back with one that has ended, and must be able to renew it. So it opens a connection for [`GRACE`]
//! after its end, which is good for that one call (`api::caller`), and for a few seconds (`server::listen`). An operator's ends
//! when it ends.

use std::{sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use crate::identity::names_a_node;

/// As long as nodes believe each other without control.
const GRACE: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Judges as the other does, but an ended certificate by the last moment of its life.
#[derive(Debug)]
pub(super) struct Lenient(pub(super) Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judged = self.0.verify_client_cert(leaf, above, now);
        let Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) = judged
        else {
            return judged;
        };
        match last_moment(leaf).filter(|_| names_a_node(leaf)) {
            Some(last) if Duration::from_secs(now.as_secs()) <= last + GRACE => self
                .0
                .verify_client_cert(leaf, above, UnixTime::since_unix_epoch(last)),
            _ => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

fn last_moment(leaf: &[u8]) -> Option<Duration> {
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let ends = u64::try_from(leaf.validity().not_after.timestamp()).ok()?;
    Some(Duration::from_secs(ends.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use rustls::{RootCertStore, server::WebPkiClientVerifier};

    use super::*;
    use crate::identity::{Authority, Peer, Role};

    #[test]
    fn a_node_may_renew_for_a_week_after_its_certificate_ended() {
        let dir = tempfile::tempdir().unwrap();
        let now = Duration::from_secs(1_800_000_000);
        let verifier = |name: &str| {
            let authority = Authority::open(&dir.path().join(name), "vector.local", now).unwrap();
            let mut roots = RootCertStore::empty();
            let root = authority.signing().root().certificate().clone();
            roots.add(root).unwrap();
            let crypto = Arc::new(rustls::crypto::ring::default_provider());
            let judge = WebPkiClientVerifier::builder_with_provider(roots.into(), crypto);
            (authority, Lenient(judge.build().unwrap()))
        };
        let ((authority, ours), (_, others)) = (verifier("a"), verifier("b"));
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default();
        let request = request.serialize_request(&key).unwrap();
        let peer = Peer {
            id: "egress-1".parse().unwrap(),
            roles: vec![Role::Egress],
        };
        let chain = authority.node_leaf(request.der(), &peer, now).unwrap();
        let ends = last_moment(&chain[0]).unwrap();
        let judged = |by: &Lenient, at: Duration| {
            let at = UnixTime::since_unix_epoch(at);
            by.verify_client_cert(&chain[0], &chain[1..], at).is_ok()
        };
        let hour = Duration::from_secs(3_600);
        assert!(judged(&ours, now) && judged(&ours, ends + hour));
        assert!(judged(&ours, ends + GRACE - hour) && !judged(&ours, ends + GRACE + hour));
        assert!(!judged(&ours, now - hour), "not begun");
        assert!(!judged(&others, now) && !judged(&others, ends + hour));

        let name = "otto".parse().unwrap();
        let leaf = authority.operator_leaf(request.der(), &name, hour, now);
        let chain = leaf.unwrap();
        let ends = last_moment(&chain[0]).unwrap();
        let judged = |at: Duration| {
            let at = UnixTime::since_unix_epoch(at);
            ours.verify_client_cert(&chain[0], &chain[1..], at).is_ok()
        };
        assert!(judged(ends) && !judged(ends + Duration::from_secs(2)));
    }
}
