//! Roots that change while the node runs, and what of them and of the certificate is on disk.
//!
//! What control tells is in use first and written then, so that a disk that refuses ends nothing.

use std::sync::{Arc, atomic::Ordering};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;
use vector_proto::control::v1::Roots as ToldRoots;

use super::{Error, Identity, Standing, Told, ders, roots::Roots};

impl Identity {
    /// Writes the roots and the certificate in use to the disk, unless they are there. False when the disk refuses: to be
    /// tried again.
    pub fn keep(&self) -> bool {
        if !self.0.unkept.load(Ordering::Relaxed) {
            return true;
        }
        // Whoever changes them meanwhile writes after us.
        let _told = self.0.told.lock();
        // The roots first, so that what is on disk fits together whenever the process dies.
        let written = self
            .0
            .state
            .write_roots(self.0.roots.load().certificates())
            .and_then(|()| self.0.state.write_chain(self.0.held.load().chain()));
        if let Err(error) = &written {
            tracing::error!(%error, "renewed roots or certificate are in use, but not on disk: a restart would use those before");
        }
        self.0.unkept.store(written.is_err(), Ordering::Relaxed);
        written.is_ok()
    }

    /// Trusts the roots that control tells, and no others, from the next handshake on. Answers whether they are others than
    /// before. Blocks for two files.
    ///
    /// # Errors
    /// [`Error::Issued`] when they are no roots: those of before stay.
    pub fn trust(&self, told: &ToldRoots) -> Result<bool, Error> {
        let mut known = self.0.told.lock();
        if told.generation < known.generation {
            return Ok(false);
        }
        let changed = self.take_roots(ders(&told.roots))?;
        known.generation = told.generation;
        told.signing.clone_into(&mut known.signing);
        self.weigh(&known);
        drop(known);
        self.keep();
        Ok(changed)
    }

    pub(super) fn take_roots(&self, roots: Vec<CertificateDer<'static>>) -> Result<bool, Error> {
        let changed = !self.0.roots.load().are(&roots);
        if changed {
            let next = Roots::new(roots)?;
            self.0.roots.store(Arc::new(next));
            self.0.unkept.store(true, Ordering::Relaxed);
        }
        Ok(changed)
    }

    /// After roots or the certificate have changed.
    pub(super) fn weigh(&self, told: &Told) {
        let standing = self.0.roots.load().standing(self.0.held.load().chain());
        let signing = &told.signing;
        let leaving = standing.roots.contains(signing) && !standing.proven_by.contains(signing);
        self.0.standing.store(Arc::new(standing));
        self.0.leaving.send_replace(leaving);
    }

    /// Which roots it trusts, and which its own certificate comes from.
    #[must_use]
    pub fn standing(&self) -> Arc<Standing> {
        self.0.standing.load_full()
    }

    /// Whether its certificate comes from a root that is about to go.
    #[must_use]
    pub fn leaving(&self) -> watch::Receiver<bool> {
        self.0.leaving.subscribe()
    }
}
