//! The intermediate that signs leaves: one for all replicas, sealed in the store, and replaced while much of its life is left.

use std::time::Duration;

use prost::Message;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Actor, Error, Registry, audit};
use crate::{
    coordinate::{Revision, Transaction},
    identity::{Authority, Facts, Intermediate},
};

/// Where it lies.
pub(super) const AT: &str = "/secrets/intermediate";

/// Who replaces one that grows old.
const CONTROL: &str = "control";

/// As it is sealed.
#[derive(Clone, PartialEq, Message)]
struct Kept {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    certificate: Vec<u8>,
}

impl Registry {
    /// Signs with the intermediate that the store holds from now on. Makes it when there is none, another when it is old or
    /// of another root; a root that may have none goes on signing itself.
    ///
    /// # Errors
    /// When the store fails, or what it holds cannot be read.
    pub async fn take_up_intermediate(
        &self,
        authority: &Authority,
        now: Duration,
    ) -> Result<(), Error> {
        if !authority.signing().root().has_intermediates() {
            return Ok(());
        }
        let (kept, changed) = self.intermediate().await?;
        let Some(kept) = kept.filter(|kept| authority.has_signed(kept)) else {
            return self.sign_anew(authority, changed, now).await;
        };
        let old = kept.is_old(now);
        authority.take_up(kept);
        if old {
            return self.sign_anew(authority, changed, now).await;
        }
        Ok(())
    }

    /// A new intermediate signs from now on, at the other replicas as soon as they hear of it. Leaves of the one before stay
    /// good until they end.
    ///
    /// # Errors
    /// [`Error::Refused`] where the root may have none, or is being replaced itself; [`Error::Conflict`] when somebody else was
    /// first.
    pub async fn rotate_intermediate(
        &self,
        authority: &Authority,
        by: &Actor,
        now: Duration,
    ) -> Result<Facts, Error> {
        if authority.signing().rotation().is_some() {
            return Err(Error::Refused(
                "the root is being replaced, and brings an intermediate of its own: finish or abort that first".to_owned(),
            ));
        }
        let (_, changed) = self.intermediate().await?;
        self.rotate(authority, changed, by, now).await
    }

    /// Replaces the one that was put at `seen`, and no other.
    async fn rotate(
        &self,
        authority: &Authority,
        seen: Revision,
        by: &Actor,
        now: Duration,
    ) -> Result<Facts, Error> {
        let details = |facts: &Facts| vec![format!("pin: {}", facts.pin)];
        let (next, put) = self.replacement(authority, seen, now)?;
        let what = audit::change("rotate", "intermediate", "", details(next.facts()));
        self.commit(by, &[what], put).await?;
        let facts = next.facts().clone();
        authority.take_up(next);
        Ok(facts)
    }

    /// By control itself. Whoever was first has made one that serves as well.
    async fn sign_anew(
        &self,
        authority: &Authority,
        seen: Revision,
        now: Duration,
    ) -> Result<(), Error> {
        let made = if seen == 0 {
            let (next, put) = self.replacement(authority, seen, now)?;
            let put = self.store.commit(put).await;
            put.map(|_| authority.take_up(next)).map_err(Error::from)
        } else {
            let by = Actor {
                name: CONTROL.to_owned(),
                address: String::new(),
            };
            let rotated = self.rotate(authority, seen, &by, now).await;
            rotated.map(|facts| tracing::info!(pin = facts.pin, "a new intermediate signs"))
        };
        let Err(Error::Conflict(_)) = made else {
            return made;
        };
        let (kept, _) = self.intermediate().await?;
        if let Some(kept) = kept.filter(|kept| authority.has_signed(kept)) {
            authority.take_up(kept);
        }
        Ok(())
    }

    /// A new one, and what puts it in the place of the one that was put at `changed`.
    fn replacement(
        &self,
        authority: &Authority,
        changed: Revision,
        now: Duration,
    ) -> Result<(Intermediate, Transaction), Error> {
        let next = authority
            .new_intermediate(now)
            .map_err(|error| Error::Refused(error.to_string()))?;
        let put = Transaction::new()
            .when(AT, changed)
            .put(AT, self.sealed_intermediate(&next)?);
        Ok((next, put))
    }

    /// An intermediate as it lies in the store.
    pub(super) fn sealed_intermediate(&self, next: &Intermediate) -> Result<Vec<u8>, Error> {
        let (key, certificate) = next.export();
        let mut kept = Kept {
            key: key.to_vec(),
            certificate,
        };
        let clear = Zeroizing::new(kept.encode_to_vec());
        kept.key.zeroize();
        Ok(self.vault.seal(AT, &clear)?)
    }

    /// The stored one, and when it was put; 0: never.
    pub(super) async fn intermediate(&self) -> Result<(Option<Intermediate>, Revision), Error> {
        let Some(entry) = self.store.get(AT).await? else {
            return Ok((None, 0));
        };
        let damaged = || Error::Damaged(AT.to_owned());
        let clear = self.vault.open_sealed(AT, &entry.value)?;
        let kept = Kept::decode(&clear[..]).map_err(|_| damaged())?;
        let key = Zeroizing::new(kept.key);
        let kept = Intermediate::import(&key, &kept.certificate).map_err(|_| damaged())?;
        Ok((Some(kept), entry.changed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        coordinate::{Embedded, Store},
        vault::Vault,
    };

    #[tokio::test]
    async fn what_grew_old_is_replaced_once_however_late_one_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store")).await.unwrap());
        let vault = Vault::open(&dir.path().join("master.key")).unwrap();
        let registry = Registry::open(store, vault).await.unwrap();
        let now = Duration::from_secs(1_800_000_000);
        let replica = || Authority::open(&dir.path().join("ca"), "vector.local", now).unwrap();
        let (ours, theirs) = (replica(), replica());
        registry.take_up_intermediate(&ours, now).await.unwrap();
        let (_, seen) = registry.intermediate().await.unwrap();

        registry.sign_anew(&theirs, seen, now).await.unwrap();
        // This one read the same old intermediate, and comes second.
        registry.sign_anew(&ours, seen, now).await.unwrap();
        let pin = |authority: &Authority| {
            authority
                .signing()
                .intermediate()
                .unwrap()
                .facts()
                .pin
                .clone()
        };
        assert_eq!(pin(&ours), pin(&theirs));
    }
}
