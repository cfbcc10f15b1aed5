//! Certificates that count no more although they have not ended: of nodes that were removed, or have enrolled anew.
//!
//! Control tells them with every snapshot, by the time before which they were issued. A node that is not listed is not
//! refused: it may be newer than what this node has heard. Asked at every handshake, also at those that resume a session
//! and therefore verify no certificate, and about the links there are whenever the list changes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{CertificateError, Error, pki_types::CertificateDer};
use vector_proto::control::BACKDATE_S;

use super::{peer::peer, tls::validity};

/// The first second whose certificates count, by node.
pub type Revocations = BTreeMap<Arc<str>, u64>;

/// What was told last.
#[derive(Debug, Default)]
pub(super) struct Revoked(ArcSwap<Revocations>);

impl Revoked {
    /// Answers whether it is another list than before.
    pub(super) fn set(&self, list: &Arc<Revocations>) -> bool {
        *self.0.swap(Arc::clone(list)) != **list
    }

    /// Whether a certificate of this node that begins then counts no more.
    pub(super) fn covers(&self, node: &str, begins: Duration) -> bool {
        let before = self.0.load().get(node).copied();
        before.is_some_and(|before| begins.as_secs() + BACKDATE_S < before)
    }

    /// The same for a leaf that is otherwise good.
    pub(super) fn check(&self, leaf: &CertificateDer<'_>) -> Result<(), Error> {
        if self.0.load().is_empty() {
            return Ok(());
        }
        // One that names no node is judged by whoever asks who it is.
        let named = peer(std::slice::from_ref(leaf)).ok();
        match named.zip(validity(leaf)) {
            Some((peer, (begins, _))) if self.covers(peer.id.as_str(), begins) => {
                Err(CertificateError::Revoked.into())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_of_before_are_refused_and_absence_says_nothing() {
        let revoked = Revoked::default();
        let covers = |node: &str, issued: u64| {
            revoked.covers(node, Duration::from_secs(issued - BACKDATE_S))
        };
        assert!(!covers("n-1", 1_000));
        let list = Arc::new([("n-1".into(), 1_000)].into_iter().collect());
        assert!(revoked.set(&list) && !revoked.set(&list));
        assert!(covers("n-1", 999) && !covers("n-1", 1_000));
        assert!(!covers("n-2", 999), "nobody has said anything of it");
        assert!(revoked.set(&Arc::default()) && !covers("n-1", 999));
    }
}
