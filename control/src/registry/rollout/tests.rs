//! What canaries have and the others have not yet, and what is never staged.

use std::path::Path;

use vector_proto::control::v1::{AccountSpec, CredentialSpec, ModelSpec, ProviderSpec, Upstream};

use super::*;
use crate::{
    coordinate::{Session, elect},
    registry::{
        Draft, Terms,
        fixture::{SECRET, by, registry},
    },
};

/// A change that two canaries have for an hour.
async fn staged(registry: &Registry, alter: impl Fn(&mut Draft) + Send + Sync) {
    let by = by();
    let canaries = ["e-1".to_owned(), "i-1".to_owned()];
    let terms = Terms {
        staging: Staging {
            canaries: &canaries,
            pause_ms: 3_600_000,
        },
        ..Terms::plain(&by)
    };
    registry.edit(terms, alter).await.unwrap();
}

/// A replica that carries rollouts on, and its session.
async fn elected(registry: &Registry) -> (Session, Leadership) {
    let store = registry.store.as_ref();
    let session = store.session().await.unwrap();
    let leads = elect(store, "rollout", session, "of a test").await;
    (session, leads.unwrap())
}

fn credential(name: &str, secret: &str) -> CredentialSpec {
    CredentialSpec {
        name: name.to_owned(),
        provider: "main".to_owned(),
        secret: secret.to_owned(),
        ..CredentialSpec::default()
    }
}

fn model(name: &str) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        upstreams: vec![Upstream {
            provider: "main".to_owned(),
            ..Upstream::default()
        }],
        ..ModelSpec::default()
    }
}

/// Generation 1, which everybody has.
async fn founded(dir: &Path) -> Registry {
    let registry = registry(dir).await;
    let alter = |draft: &mut Draft| {
        draft.put_provider(ProviderSpec {
            name: "main".to_owned(),
            kind: "openai".to_owned(),
            base_url: "https://api.example.com/v1".to_owned(),
            ..ProviderSpec::default()
        });
        draft.put_credential(credential("one", SECRET));
        draft.put_credential(credential("two", SECRET));
        draft.put_model(model("m"));
        draft.put_account(AccountSpec {
            name: "acme".to_owned(),
            ..AccountSpec::default()
        });
    };
    registry.edit(Terms::plain(&by()), alter).await.unwrap();
    registry
}

#[tokio::test]
async fn the_rest_keeps_what_was_until_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    let before = registry.catalog().await.unwrap();
    assert_eq!(before.rest().unwrap(), None);
    staged(&registry, |draft| {
        draft.put_credential(credential("one", "sk-another-secret-0123456"));
        draft.remove_credential("two");
        draft.remove_model("m");
        draft.put_model(model("n"));
    })
    .await;
    // While it is under way another joins it, staged or not.
    let more = |draft: &mut Draft| {
        draft.put_model(model("o"));
        draft.remove_model("n");
    };
    registry.edit(Terms::plain(&by()), more).await.unwrap();
    let now = registry.catalog().await.unwrap();
    assert_eq!((now.rollout.from, now.rollout.to), (1, 3));
    assert_eq!(now.models.keys().collect::<Vec<_>>(), ["o"]);
    let rest = now.rest().unwrap().unwrap();
    assert_eq!(rest.models, before.models);
    assert_eq!(rest.credentials, before.credentials, "secrets and all");

    registry.roll_back(&by(), &now, "of a test").await.unwrap();
    let back = registry.catalog().await.unwrap();
    assert_eq!(
        (back.generation, back.rollout.stage()),
        (4, Stage::RolledBack)
    );
    assert_eq!(
        (&back.models, &back.credentials),
        (&before.models, &before.credentials)
    );
    assert_eq!(back.rest().unwrap(), None);
    let kept = registry.store.get(AT).await.unwrap().unwrap().value;
    assert!(kept.len() < 200, "what it replaced is not kept any longer");
    let late = registry.finish(&now, &elected(&registry).await.1).await;
    let late = late.unwrap_err();
    assert!(matches!(late, Error::Conflict(_)), "{late}");
    let again = registry.roll_back(&by(), &now, "twice").await.unwrap_err();
    assert!(matches!(again, Error::Conflict(_)), "{again}");
    let (history, _) = registry.history(1).await.unwrap();
    assert_eq!(history[0].number, 4);
    assert!(registry.pause(&by(), true).await.is_err());
}

#[tokio::test]
async fn what_is_switched_off_is_off_for_everybody_and_accounts_are_not_staged() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    staged(&registry, |draft| {
        let account = AccountSpec {
            name: "acme".to_owned(),
            disabled: true,
            ..AccountSpec::default()
        };
        draft.put_account(account);
    })
    .await;
    let now = registry.catalog().await.unwrap();
    assert!(!now.rollout.is_under_way() && now.accounts["acme"].disabled);
    staged(&registry, |draft| {
        let mut off = credential("one", "");
        off.disabled = true;
        off.weight = 9;
        draft.put_credential(off);
    })
    .await;
    let now = registry.catalog().await.unwrap();
    let rest = now.rest().unwrap().unwrap();
    let one = &rest.credentials["one"].spec;
    assert_eq!((one.disabled, one.weight), (true, 0));
    registry.roll_back(&by(), &now, "of a test").await.unwrap();
    let back = registry.catalog().await.unwrap();
    let one = &back.credentials["one"].spec;
    assert_eq!((one.disabled, one.weight), (true, 0));
    assert!(back.accounts["acme"].disabled, "nobody is let in by it");
}

#[tokio::test]
async fn a_pause_holds_and_a_finish_lets_go() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    staged(&registry, |draft| draft.put_model(model("n"))).await;
    assert!(registry.pause(&by(), true).await.unwrap().paused);
    let seen = registry.catalog().await.unwrap();
    assert!(seen.rollout.paused && seen.rollout.is_under_way());
    let rotated = registry.rewrap(&by()).await.unwrap_err();
    assert!(matches!(rotated, Error::Refused(_)), "{rotated}");
    let resumed = registry.pause(&by(), false).await.unwrap();
    assert!(resumed.deadline_unix_ms >= seen.rollout.deadline_unix_ms);
    let overtaken = elected(&registry).await;
    let stale = registry.finish(&seen, &overtaken.1).await.unwrap_err();
    assert!(matches!(stale, Error::Conflict(_)), "{stale}");
    let seen = registry.catalog().await.unwrap();
    registry.store.end(overtaken.0).await.unwrap();
    let late = registry.finish(&seen, &overtaken.1).await.unwrap_err();
    assert!(matches!(late, Error::Conflict(_)), "nobody leads: {late}");
    let leads = elected(&registry).await.1;
    let late = registry.finish(&seen, &overtaken.1).await.unwrap_err();
    assert!(matches!(late, Error::Conflict(_)), "another leads: {late}");
    registry.finish(&seen, &leads).await.unwrap();
    let done = registry.catalog().await.unwrap();
    assert_eq!(done.rollout.stage(), Stage::Done);
    assert_eq!((done.rest().unwrap(), done.generation), (None, 2));
    // The next one begins anew.
    staged(&registry, |draft| draft.remove_model("n")).await;
    let next = registry.catalog().await.unwrap().rollout;
    assert_eq!((next.from, next.to, next.paused), (2, 3, false));
}

#[tokio::test]
async fn what_one_replica_has_heard_the_others_know() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    let told = |of: &[&str]| of.iter().map(|&id| id.to_owned()).collect();
    registry.tell_heard("a", 2, told(&["e-1"])).await.unwrap();
    registry.tell_heard("b", 2, told(&["i-1"])).await.unwrap();
    registry.tell_heard("c", 1, told(&["i-2"])).await.unwrap();
    let heard = registry.heard(2).await.unwrap();
    assert_eq!(heard, ["e-1", "i-1"].map(str::to_owned).into());
    registry.tell_heard("a", 3, told(&["e-1"])).await.unwrap();
    assert_eq!(registry.heard(2).await.unwrap().len(), 1);
}
