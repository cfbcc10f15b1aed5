//! A rotation reaches every secret, and nothing is lost on the way.

use std::{path::Path, sync::Arc};

use vector_proto::control::v1::{CredentialSpec, ProviderSpec};

use super::*;
use crate::{
    coordinate::Embedded,
    registry::{Draft, Terms},
    vault::{MasterKey, Vault},
};

/// More than one transaction wraps anew.
const CREDENTIALS: usize = PART + 5;

fn key(text: &str) -> MasterKey {
    MasterKey::parse(&text.repeat(32)).unwrap()
}

async fn registry(dir: &Path, current: &str, others: &[&str]) -> Result<Registry, Error> {
    let store = Embedded::open(&dir.join("store")).await.unwrap();
    let others = others.iter().map(|text| key(text)).collect();
    Registry::open(Arc::new(store), Vault::new(key(current), others)).await
}

fn by() -> Actor {
    Actor::operator("root", String::new())
}

fn secret(at: usize) -> String {
    format!("sk-provider-secret-{at:04}")
}

fn put(draft: &mut Draft, at: usize) {
    draft.put_credential(CredentialSpec {
        name: format!("c{at}"),
        provider: "openai".to_owned(),
        secret: secret(at),
        weight: 1,
        ..CredentialSpec::default()
    });
}

async fn configure(registry: &Registry) {
    let alter = |draft: &mut Draft| {
        draft.put_provider(ProviderSpec {
            name: "openai".to_owned(),
            kind: "openai".to_owned(),
            base_url: "https://api.openai.com/v1".to_owned(),
            ..ProviderSpec::default()
        });
        (0..CREDENTIALS).for_each(|at| put(draft, at));
    };
    registry.edit(Terms::plain(&by()), alter).await.unwrap();
}

async fn all_open(registry: &Registry) {
    let catalog = registry.catalog().await.unwrap();
    assert_eq!(catalog.credentials.len(), CREDENTIALS);
    for at in 0..CREDENTIALS {
        let stored = &catalog.credentials[&format!("c{at}")];
        assert_eq!(*registry.reveal(stored).unwrap(), secret(at));
    }
}

#[tokio::test]
async fn after_a_rotation_the_old_key_is_not_needed() {
    let dir = tempfile::tempdir().unwrap();
    let old = registry(dir.path(), "01", &[]).await.unwrap();
    configure(&old).await;
    let generation = old.catalog().await.unwrap().generation;
    drop(old);

    let both = registry(dir.path(), "02", &["01"]).await.unwrap();
    all_open(&both).await;
    let total = CREDENTIALS as u64 + 1;
    let counts = |rows: Vec<SealedUnder>| -> Vec<(bool, u64)> {
        rows.iter().map(|row| (row.current, row.secrets)).collect()
    };
    let before = both.sealed_under().await.unwrap();
    assert_eq!(counts(before), [(true, 0), (false, total)]);
    let done = both.rewrap(&by()).await.unwrap();
    assert_eq!((done.rewrapped, done.secrets), (total, total));
    let after = both.sealed_under().await.unwrap();
    assert_eq!(counts(after), [(true, total), (false, 0)]);
    assert_eq!(
        both.rewrap(&by()).await.unwrap().rewrapped,
        0,
        "twice is once"
    );
    assert_eq!(both.catalog().await.unwrap().generation, generation);
    drop(both);

    let new = registry(dir.path(), "02", &[]).await.unwrap();
    all_open(&new).await;
    drop(new);
    assert!(registry(dir.path(), "01", &[]).await.is_err());
}

#[tokio::test]
async fn a_rotation_that_was_cut_short_is_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let old = registry(dir.path(), "01", &[]).await.unwrap();
    configure(&old).await;
    drop(old);
    let both = registry(dir.path(), "02", &["01"]).await.unwrap();
    // What one part of it would have done, and then no more.
    let (secrets, catalog) = both.sealed().await.unwrap();
    let part: Vec<(Sealed, Bytes)> = secrets
        .into_iter()
        .take(PART)
        .map(|secret| {
            let text = both.vault.rewrap(&secret.name, &secret.text).unwrap();
            (secret, text.unwrap().into())
        })
        .collect();
    let one = transaction(part, &catalog);
    both.commit(&by(), &[], one.clone()).await.unwrap();
    // The same part again, from what was read before it: somebody else was here.
    let again = both.commit(&by(), &[], one).await;
    assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
    all_open(&both).await;
    let left = both.rewrap(&by()).await.unwrap();
    assert_eq!(left.rewrapped, (CREDENTIALS + 1 - PART) as u64);
    all_open(&both).await;
}

#[tokio::test]
async fn what_no_key_opens_is_named_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let first = registry(dir.path(), "01", &[]).await.unwrap();
    configure(&first).await;
    drop(first);
    let second = registry(dir.path(), "02", &["01"]).await.unwrap();
    let alter = |draft: &mut Draft| {
        draft.put_credential(CredentialSpec {
            name: "c0".to_owned(),
            provider: "openai".to_owned(),
            secret: "sk-another".to_owned(),
            weight: 1,
            ..CredentialSpec::default()
        });
    };
    second.edit(Terms::plain(&by()), alter).await.unwrap();
    drop(second);
    let third = registry(dir.path(), "03", &["01"]).await.unwrap();
    let done = third.rewrap(&by()).await.unwrap();
    assert_eq!(done.rewrapped, CREDENTIALS as u64);
    assert_eq!(done.closed, ["openai/c0"]);
    let foreign = third.sealed_under().await.unwrap();
    assert!(
        foreign
            .iter()
            .any(|row| !row.held && row.secrets == 1 && !row.key.is_empty())
    );
}
