//! What headers hold is nowhere in the store, is where it is needed, and is put again without being known.

use super::*;
use crate::{
    coordinate::Transaction,
    registry::{
        Draft, Outcome, Terms,
        fixture::{SECRET, by, provider, registry},
    },
};

const VALUE: &str = "organisation-token-0123456789";

fn spec(value: &str) -> CredentialSpec {
    CredentialSpec {
        name: "main".to_owned(),
        provider: "openai".to_owned(),
        secret: SECRET.to_owned(),
        weight: 1,
        headers: [("x-org".to_owned(), value.to_owned())].into(),
        ..CredentialSpec::default()
    }
}

async fn put(registry: &Registry, spec: &CredentialSpec) -> Result<Outcome, Error> {
    let alter = |draft: &mut Draft| {
        draft.put_provider(provider("openai"));
        draft.put_provider(provider("other"));
        draft.put_credential(spec.clone());
    };
    registry.edit(Terms::plain(&by()), alter).await
}

/// What is told of a credential's update.
async fn details(registry: &Registry, spec: &CredentialSpec) -> Vec<String> {
    let outcome = put(registry, spec).await.unwrap();
    let changes = outcome.changes.into_iter();
    changes.flat_map(|change| change.details).collect()
}

/// How often a text is found in all that the store holds.
async fn found(registry: &Registry, text: &str) -> usize {
    let all = registry.store.list("/").await.unwrap().entries;
    all.iter().filter(|entry| holds(&entry.value, text)).count()
}

fn holds(value: &[u8], text: &str) -> bool {
    value
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

async fn stored(registry: &Registry) -> StoredCredential {
    registry.catalog().await.unwrap().credentials["main"].clone()
}

async fn value(registry: &Registry) -> String {
    let (_, headers) = registry.reveal(&stored(registry).await).unwrap();
    headers["x-org"].clone()
}

#[tokio::test]
async fn values_are_sealed_and_the_same_plan_is_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path()).await;
    put(&registry, &spec(VALUE)).await.unwrap();
    assert_eq!(found(&registry, VALUE).await, 0);
    assert!(found(&registry, "x-org").await > 0, "the name is in clear");
    assert_eq!(value(&registry).await, VALUE);
    assert_eq!(details(&registry, &spec(VALUE)).await, [""; 0]);

    // What is shown, put back.
    let mut shown = stored(&registry).await.shown();
    assert_eq!(shown.headers["x-org"], "");
    assert_eq!(details(&registry, &shown).await, [""; 0]);
    shown.weight = 2;
    assert_eq!(details(&registry, &shown).await, ["weight: 1 -> 2"]);
    assert_eq!(value(&registry).await, VALUE, "and it was kept");

    let other = CredentialSpec {
        weight: 2,
        ..spec("another-value")
    };
    assert_eq!(details(&registry, &other).await, ["headers: changed"]);
    assert_eq!(value(&registry).await, "another-value");
    let mut two = other.clone();
    two.headers.insert("x-more".to_owned(), VALUE.to_owned());
    let told = details(&registry, &two).await;
    assert_eq!(told, ["headers: x-org -> x-more x-org", "headers: changed"]);
    two.headers.clear();
    put(&registry, &two).await.unwrap();
    assert_eq!(stored(&registry).await.sealed_headers, Bytes::new());
    assert_eq!(found(&registry, VALUE).await, 0, "nor in what is past");
}

#[tokio::test]
async fn a_value_is_missing_where_none_is_stored_for_the_provider() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path()).await;
    put(&registry, &spec(VALUE)).await.unwrap();
    let refused = async |spec: CredentialSpec| {
        let error = put(&registry, &spec).await.unwrap_err().to_string();
        assert!(!error.contains(VALUE), "{error}");
        error
    };
    let field = "credentials[main].headers.x-org: ";
    let moved = CredentialSpec {
        provider: "other".to_owned(),
        ..spec("")
    };
    assert!(refused(moved).await.contains(field));
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    assert!(
        refused(spec(&long))
            .await
            .contains("longer than 4096 bytes")
    );
    assert!(refused(spec("two\nlines")).await.starts_with(field));
    let mut new = spec(VALUE);
    new.headers.insert("x-new".to_owned(), String::new());
    assert!(refused(new).await.contains("headers.x-new: has no value"));
}

#[tokio::test]
async fn a_value_is_opened_under_its_own_name_only() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path()).await;
    put(&registry, &spec(VALUE)).await.unwrap();
    let mut swapped = stored(&registry).await;
    std::mem::swap(&mut swapped.sealed, &mut swapped.sealed_headers);
    assert!(registry.reveal(&swapped).is_err());
    let mut moved = stored(&registry).await;
    moved.spec.name = "spare".to_owned();
    assert!(registry.reveal_headers(&moved).is_err());
}

#[tokio::test]
async fn what_lies_in_clear_from_before_is_read_and_sealed_by_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(dir.path()).await;
    put(&registry, &spec(VALUE)).await.unwrap();
    let mut before = stored(&registry).await;
    before.spec.headers = spec(VALUE).headers;
    before.sealed_headers = Bytes::new();
    let write = Transaction::new().put("/cfg/credentials/main", before.encode_to_vec());
    registry.store.commit(write).await.unwrap();
    assert_eq!(found(&registry, VALUE).await, 1, "as it was");
    assert_eq!(registry.sealed_under().await.unwrap().clear, 1);

    assert_eq!(value(&registry).await, VALUE);
    assert_eq!(stored(&registry).await.shown().headers["x-org"], "");
    assert_eq!(details(&registry, &spec(VALUE)).await, [""; 0]);
    let backup = registry.backup().await.unwrap();
    let all: Vec<u8> = backup
        .iter()
        .flat_map(|entry| entry.value.to_vec())
        .collect();
    assert!(!holds(&all, VALUE), "a backup has nothing in clear");
    let done = registry.rewrap(&by()).await.unwrap();
    assert_eq!((done.rewrapped, done.secrets), (1, 3));
    assert_eq!(found(&registry, VALUE).await, 0);
    assert_eq!(value(&registry).await, VALUE);
    let after = registry.sealed_under().await.unwrap();
    assert_eq!((after.clear, after.keys[0].secrets), (0, 3));
    assert_eq!(registry.rewrap(&by()).await.unwrap().rewrapped, 0);
}
