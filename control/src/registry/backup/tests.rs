//! A backup brings back what was there, is refused where it would do harm, and holds no secret in clear.

use std::{path::Path, sync::Arc};

use vector_proto::control::v1::{AccountSpec, CredentialSpec, KeySpec, ProviderSpec};

use super::*;
use crate::{
    coordinate::Embedded,
    registry::{Admission, Terms},
    vault::Vault,
};

const SECRET: &str = "sk-provider-secret-0123456789";
const ORGANISATION: &str = "organisation-token-0123456789";

async fn registry(dir: &Path, name: &str, master: &Path) -> Registry {
    let store = Embedded::open(&dir.join(name)).await.unwrap();
    let vault = Vault::open(master).unwrap();
    Registry::open(Arc::new(store), vault).await.unwrap()
}

/// A provider, its credential, an account and a key of it; answers the key's text.
async fn configure(registry: &Registry) -> String {
    let alter = |draft: &mut crate::registry::Draft| {
        draft.put_provider(ProviderSpec {
            name: "openai".to_owned(),
            kind: "openai".to_owned(),
            base_url: "https://api.openai.com/v1".to_owned(),
            ..ProviderSpec::default()
        });
        draft.put_credential(CredentialSpec {
            name: "main".to_owned(),
            provider: "openai".to_owned(),
            secret: SECRET.to_owned(),
            weight: 1,
            headers: [("x-org".to_owned(), ORGANISATION.to_owned())].into(),
            ..CredentialSpec::default()
        });
        draft.put_account(AccountSpec {
            name: "acme".to_owned(),
            ..AccountSpec::default()
        });
    };
    registry.edit(Terms::plain(&by()), alter).await.unwrap();
    let spec = KeySpec {
        account: "acme".to_owned(),
        ..KeySpec::default()
    };
    registry
        .create_key(&by(), spec, 1)
        .await
        .unwrap()
        .1
        .to_string()
}

fn pairs(entries: Vec<Entry>) -> Vec<(String, Bytes)> {
    entries
        .into_iter()
        .map(|entry| (entry.key, entry.value))
        .collect()
}

async fn is_admitted(registry: &Registry, text: &str) -> bool {
    let key = vector_proto::id::ApiKey::parse(text).unwrap();
    let sum = ring::digest::digest(&SHA256, key.reveal().as_bytes());
    let admission = registry.admit(key.id(), sum.as_ref(), 2).await.unwrap();
    matches!(admission, Admission::Granted(_))
}

#[tokio::test]
async fn what_was_there_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let master = dir.path().join("master.key");
    let old = registry(dir.path(), "old", &master).await;
    let key = configure(&old).await;
    let revision = [&7_u64.to_be_bytes()[..], b"digest"].concat();
    let published = Transaction::new()
        .put(PUBLISHED, revision)
        .put("/invites/x", b"once".to_vec())
        .put("/secrets/ca", b"sealed".to_vec());
    old.store().commit(published).await.unwrap();
    let backup = pairs(old.backup().await.unwrap());
    let own = |key: &str| key.starts_with("/invites/") || OWN.contains(&key);
    assert!(!backup.iter().any(|(key, _)| own(key)));
    let all: Vec<u8> = backup.iter().flat_map(|row| row.1.to_vec()).collect();
    let holds = |text: &str| all.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("x-org") && !holds(ORGANISATION));
    assert!(!holds(SECRET) && !holds(&key[3..]), "nothing is in clear");

    let new = registry(dir.path(), "new", &master).await;
    let ca = Transaction::new().put("/secrets/ca", b"its own".to_vec());
    new.store().commit(ca).await.unwrap();
    assert!(!is_admitted(&new, &key).await);
    let restored = new.restore(&by(), backup.clone(), false).await.unwrap();
    assert_eq!((restored.put, restored.removed), (backup.len(), 0));
    assert_eq!(new.catalog().await.unwrap().generation, 1);
    assert!(
        is_admitted(&new, &key).await,
        "the restored pepper is in force"
    );
    let catalog = new.catalog().await.unwrap();
    let (secret, headers) = new.reveal(&catalog.credentials["main"]).unwrap();
    assert_eq!(secret.as_str(), SECRET);
    assert_eq!(headers["x-org"], ORGANISATION);
    assert!(new.store().get("/secrets/ca").await.unwrap().is_some());
    let entry = new.store().get(PUBLISHED).await.unwrap().unwrap();
    assert!(
        revision_of(&entry.value) > 1_000,
        "no revision is used twice"
    );
}

#[tokio::test]
async fn a_network_is_replaced_only_by_force_and_then_wholly() {
    let dir = tempfile::tempdir().unwrap();
    let master = dir.path().join("master.key");
    let old = registry(dir.path(), "old", &master).await;
    let backup = pairs(old.backup().await.unwrap());
    let key = configure(&old).await;
    let refused = old.restore(&by(), backup.clone(), false).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(_)), "{refused}");
    assert!(is_admitted(&old, &key).await, "nothing was changed");
    let restored = old.restore(&by(), backup, true).await.unwrap();
    assert!(restored.removed >= 5, "{restored:?}");
    assert_eq!(old.catalog().await.unwrap(), Catalog::default());
    assert!(!is_admitted(&old, &key).await);
}

#[tokio::test]
async fn a_backup_of_another_master_key_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let old = registry(dir.path(), "old", &dir.path().join("a.key")).await;
    configure(&old).await;
    let backup = pairs(old.backup().await.unwrap());
    let other = registry(dir.path(), "new", &dir.path().join("b.key")).await;
    let before = other.backup().await.unwrap();
    let refused = other
        .restore(&by(), backup.clone(), true)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("master.key"), "{refused}");
    let mut foreign = backup;
    foreign.push(("/elsewhere".to_owned(), Bytes::new()));
    let refused = old.restore(&by(), foreign, true).await.unwrap_err();
    assert!(refused.to_string().contains("/elsewhere"), "{refused}");
    assert_eq!(other.backup().await.unwrap(), before);
}

#[test]
fn digests_tell_where_a_key_ends() {
    let one = digest([("ab", &b"c"[..])]);
    assert_ne!(one, digest([("a", &b"bc"[..])]));
    assert_ne!(one, digest([]));
    assert_eq!(one, digest([("ab", &b"c"[..])]));
}

#[test]
fn large_restores_are_cut() {
    let put = |n: usize, bytes: usize| Write::Put {
        key: format!("/keys/{n}"),
        value: vec![0; bytes].into(),
        session: None,
    };
    let sizes = |writes: Vec<Write>| parts(writes).iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(sizes(Vec::new()), [0_usize; 0]);
    assert_eq!(
        sizes((0..2_500).map(|n| put(n, 10)).collect()),
        [1_000, 1_000, 500]
    );
    assert_eq!(sizes((0..4).map(|n| put(n, 700_000)).collect()), [1; 4]);
}

fn by() -> Actor {
    Actor::operator("eve", String::new())
}
