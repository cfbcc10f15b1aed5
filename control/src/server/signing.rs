//! Signs with what all replicas share, whoever replaced it, trusts the roots that they trust, and replaces the intermediate in
//! time.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{
    api::unix_now,
    identity::{Authority, Facts},
    registry::{self, Registry, SIGNING},
    telemetry::{Metrics, Signer},
};

use super::founding::keep_root;

/// After a failure of the store.
const RETRY: Duration = Duration::from_secs(1);

/// Whether it grows old is looked at this often.
const LOOK: Duration = Duration::from_secs(3_600);

/// What signs, and where it is written down.
pub(super) struct Signing {
    pub(super) registry: Arc<Registry>,
    pub(super) authority: Arc<Authority>,
    /// The CA in files, if there are any.
    pub(super) folder: PathBuf,
}

/// Until cancelled.
pub(super) async fn follow(signing: Signing, metrics: Arc<Metrics>, drain: CancellationToken) {
    loop {
        let ended = tokio::select! {
            () = drain.cancelled() => return,
            ended = heed(&signing, &metrics) => ended,
        };
        // A watch that missed something ends like any failure: what is stored then is read anew.
        if let Err(error) = ended {
            tracing::warn!(%error, "what signs is not followed, will try again");
        }
        tokio::select! {
            () = drain.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn heed(signing: &Signing, metrics: &Metrics) -> Result<(), registry::Error> {
    let Signing {
        registry,
        authority,
        folder,
    } = signing;
    let store = registry.store();
    let from = store.list(SIGNING).await?.revision;
    let mut watch = store.watch(SIGNING, from).await?;
    loop {
        registry.take_up_signing(authority, unix_now()).await?;
        tell(metrics, authority);
        write_down(folder, authority);
        if let Ok(put) = tokio::time::timeout(LOOK, watch.next()).await {
            put?;
        }
    }
}

/// Has the root in files, too, wherever it is in files at all.
pub(super) fn write_down(folder: &Path, authority: &Authority) {
    if let Err(error) = keep_root(folder, authority.signing().root()) {
        let folder = folder.display();
        tracing::error!(%error, %folder, "the new root is in the store, but not in this folder");
    }
}

fn tell(metrics: &Metrics, authority: &Authority) {
    let ends = |certificate, facts: &Facts| {
        let ends = metrics.ca_ends.get_or_create(&Signer { certificate });
        ends.set(facts.ends.as_secs());
    };
    let signing = authority.signing();
    ends("root", signing.lasting().facts());
    let intermediate = match signing.rotation() {
        Some(rotation) => Some(&rotation.intermediate),
        None => signing.intermediate(),
    };
    if let Some(intermediate) = intermediate {
        ends("intermediate", intermediate.facts());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        coordinate::{Embedded, Store},
        registry::Actor,
        vault::Vault,
    };

    /// What one replica has of the shared store.
    async fn replica(store: &Arc<dyn Store>, dir: &Path) -> (Arc<Registry>, Arc<Authority>) {
        let vault = Vault::open(&dir.join("master.key")).unwrap();
        let registry = Registry::open(Arc::clone(store), vault).await.unwrap();
        let authority = Authority::open(&dir.join("ca"), "vector.local", unix_now()).unwrap();
        registry
            .take_up_intermediate(&authority, unix_now())
            .await
            .unwrap();
        (Arc::new(registry), Arc::new(authority))
    }

    fn signing(authority: &Authority) -> Facts {
        authority.signing().intermediate().unwrap().facts().clone()
    }

    #[tokio::test]
    async fn replicas_sign_with_one_and_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let (one, ours) = replica(&store, dir.path()).await;
        let (two, theirs) = replica(&store, dir.path()).await;
        let first = signing(&ours);
        assert_eq!(first, signing(&theirs));

        let mut heard = theirs.changes();
        let by = Actor::operator("eve", String::new());
        let metrics = Arc::new(Metrics::default());
        let replica = Signing {
            registry: Arc::clone(&two),
            authority: Arc::clone(&theirs),
            folder: dir.path().join("none"),
        };
        let following = follow(replica, Arc::clone(&metrics), CancellationToken::new());
        let rotated = tokio::select! {
            () = following => None,
            rotated = async {
                let rotated = one.rotate_intermediate(&ours, &by, unix_now()).await.unwrap();
                heard.changed().await.unwrap();
                Some(rotated)
            } => rotated,
        };
        let rotated = rotated.unwrap();
        assert_ne!(rotated, first);
        assert_eq!(rotated, signing(&ours));
        assert_eq!(rotated, signing(&theirs));
        let told = metrics.text();
        assert!(told.contains("vector_control_ca_ends_seconds{certificate=\"intermediate\"}"));

        // With a third of its life left it is replaced, whoever looks; and by one of them only.
        let late = first.ends.saturating_sub(Duration::from_secs(100 * 86_400));
        let both = [(&one, &ours), (&two, &theirs)];
        let took = both.map(|(registry, authority)| registry.take_up_intermediate(authority, late));
        for took in futures_util::future::join_all(took).await {
            took.unwrap();
        }
        assert_ne!(signing(&ours), rotated);
        assert_eq!(signing(&ours), signing(&theirs));
    }

    #[tokio::test]
    async fn one_of_another_root_signs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(&dir.path().join("store")).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let (_, ours) = replica(&store, dir.path()).await;
        std::fs::remove_dir_all(dir.path().join("ca")).unwrap();
        let (_, theirs) = replica(&store, dir.path()).await;
        assert_ne!(signing(&ours), signing(&theirs));
        assert!(theirs.has_signed(theirs.signing().intermediate().unwrap()));
        assert!(!theirs.has_signed(ours.signing().intermediate().unwrap()));
    }
}
