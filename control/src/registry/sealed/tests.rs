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

/// Their secrets, and the headers of every other one.
const SEALED: usize = CREDENTIALS + CREDENTIALS.div_ceil(2);

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

/// One in two has some.
fn headers_of(at: usize) -> BTreeMap<String, String> {
    let header = ("x-org".to_owned(), format!("organisation-{at:04}"));
    at.is_multiple_of(2).then_some(header).into_iter().collect()
}

fn put(draft: &mut Draft, at: usize) {
    draft.put_credential(CredentialSpec {
        name: format!("c{at}"),
        provider: "openai".to_owned(),
        secret: secret(at),
        headers: headers_of(at),
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
        let (revealed, headers) = registry.reveal(stored).unwrap();
        assert_eq!(
            (revealed.to_string(), headers),
            (secret(at), headers_of(at))
        );
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
    let total = SEALED as u64 + 1;
    let counts = |status: SecretsStatus| -> Vec<(bool, u64)> {
        let rows = status.keys.iter();
        rows.map(|row| (row.current, row.secrets)).collect()
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
    let (mut part, catalog) = both.sealed().await.unwrap();
    part.truncate(PART);
    let mut closed = Vec::new();
    let mut done = 0;
    for record in &mut part {
        let (all, anew) = both.rewrapped(record, &mut closed).unwrap();
        assert_eq!(all, anew);
        done += anew;
    }
    let one = transaction(part, &catalog);
    both.commit(&by(), &[], one.clone()).await.unwrap();
    // The same part again, from what was read before it: somebody else was here.
    let again = both.commit(&by(), &[], one).await;
    assert!(matches!(again, Err(Error::Conflict(_))), "{again:?}");
    all_open(&both).await;
    let left = both.rewrap(&by()).await.unwrap();
    assert_eq!(left.rewrapped, SEALED as u64 + 1 - done);
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
            headers: [("x-org".to_owned(), "another".to_owned())].into(),
            weight: 1,
            ..CredentialSpec::default()
        });
    };
    second.edit(Terms::plain(&by()), alter).await.unwrap();
    drop(second);
    let third = registry(dir.path(), "03", &["01"]).await.unwrap();
    let done = third.rewrap(&by()).await.unwrap();
    // All but the secret and the headers of c0, and the pepper besides.
    assert_eq!(done.rewrapped, (SEALED + 1 - 2) as u64);
    assert_eq!(done.closed, ["openai/c0", "openai/c0/headers"]);
    let foreign = third.sealed_under().await.unwrap();
    assert!(
        foreign
            .keys
            .iter()
            .any(|row| !row.held && row.secrets == 2 && !row.key.is_empty())
    );
}
