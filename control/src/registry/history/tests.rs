//! A state is read back as it was, secrets are nowhere in what is kept, and undoing never does what nobody could repair.

use std::path::Path;

use vector_proto::control::v1::{AccountSpec, CredentialSpec, ModelSpec, Upstream};

use super::*;
use crate::registry::{
    Draft, Judgement, Outcome, Terms,
    fixture::{SECRET, by, provider, registry},
};

async fn edit(registry: &Registry, alter: impl Fn(&mut Draft) + Send + Sync) -> Outcome {
    registry.edit(Terms::plain(&by()), alter).await.unwrap()
}

fn credential(name: &str, weight: u32) -> CredentialSpec {
    CredentialSpec {
        name: name.to_owned(),
        provider: name.to_owned(),
        weight,
        ..CredentialSpec::default()
    }
}

fn model(name: &str, owned_by: &str) -> ModelSpec {
    ModelSpec {
        name: name.to_owned(),
        owned_by: owned_by.to_owned(),
        upstreams: vec![Upstream {
            provider: "main".to_owned(),
            weight: 1,
            ..Upstream::default()
        }],
        ..ModelSpec::default()
    }
}

fn account(disabled: bool) -> AccountSpec {
    AccountSpec {
        name: "acme".to_owned(),
        disabled,
        ..AccountSpec::default()
    }
}

/// Generation 1.
async fn founded(dir: &Path) -> Registry {
    let registry = registry(dir).await;
    let outcome = edit(&registry, |draft| {
        draft.put_provider(provider("main"));
        let mut spec = credential("main", 1);
        SECRET.clone_into(&mut spec.secret);
        spec.headers = [("x-org".to_owned(), "org-canary".to_owned())].into();
        draft.put_credential(spec);
        draft.put_model(model("m", "one"));
        draft.put_account(account(false));
    })
    .await;
    assert_eq!(outcome.generation, 1);
    registry
}

fn told(changes: &[Change]) -> Vec<String> {
    let line = |change: &Change| {
        let details = change.details.join("; ");
        format!(
            "{} {} {}: {details}",
            change.action, change.kind, change.name
        )
    };
    changes.iter().map(line).collect()
}

#[tokio::test]
async fn every_change_is_told_and_two_states_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    edit(&registry, |draft| draft.put_model(model("m", "two"))).await;
    edit(&registry, |draft| {
        let mut spec = credential("main", 1);
        spec.secret = "sk-another-canary".to_owned();
        draft.put_credential(spec);
    })
    .await;
    edit(&registry, |draft| draft.remove_model("m")).await;

    let (all, now) = registry.history(usize::MAX).await.unwrap();
    assert_eq!(now, 4);
    let numbers: Vec<u64> = all.iter().map(|row| row.number).collect();
    assert_eq!(numbers, [4, 3, 2, 1]);
    assert!(
        all.iter()
            .all(|row| row.actor == "operator/eve" && row.unix_ms > 0)
    );
    assert_eq!(told(&all[0].changes), ["remove model m: "]);
    let secret = "update credential main: secret: changed; headers: changed";
    assert_eq!(told(&all[1].changes), [secret]);
    assert_eq!(
        told(&all[2].changes),
        ["update model m: owned_by: one -> two"]
    );
    assert_eq!(all[3].changes.len(), 4);
    assert_eq!(registry.history(2).await.unwrap().0, all[..2]);

    let between = async |from, to| told(&registry.between(from, to).await.unwrap());
    assert_eq!(
        between(1, 2).await,
        ["update model m: owned_by: one -> two"]
    );
    assert_eq!(
        between(2, 1).await,
        ["update model m: owned_by: two -> one"]
    );
    assert_eq!(between(1, 4).await, ["remove model m: ", secret]);
    assert_eq!(between(3, 3).await, [""; 0]);
    assert_eq!(between(0, 4).await.len(), 3, "there was nothing at first");
    let later = registry.between(1, 5).await.unwrap_err();
    assert!(later.to_string().contains("the newest is 4"), "{later}");

    for entry in registry.store.list(PREFIX).await.unwrap().entries {
        let holds = |text: &str| {
            entry
                .value
                .windows(text.len())
                .any(|part| part == text.as_bytes())
        };
        assert!(!holds("canary") && !holds(SECRET), "{}", entry.key);
    }
}

#[tokio::test]
async fn a_hundred_changes_are_kept_and_a_restore_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    for n in 0..KEPT + 1 {
        edit(&registry, |draft| {
            draft.put_model(model("m", &n.to_string()))
        })
        .await;
    }
    let (all, now) = registry.history(usize::MAX).await.unwrap();
    assert_eq!((all.len(), now), (100, 102));
    assert_eq!(all[99].number, 3);
    registry.between(2, 102).await.unwrap();
    let gone = registry.between(1, 102).await.unwrap_err();
    assert!(gone.to_string().contains("generation 2"), "{gone}");

    let backup = registry.backup().await.unwrap();
    assert!(!backup.iter().any(|entry| entry.key.starts_with(PREFIX)));
    let backup = backup.into_iter().map(|entry| (entry.key, entry.value));
    edit(&registry, |draft| draft.remove_model("m")).await;
    registry
        .restore(&by(), backup.collect(), true)
        .await
        .unwrap();
    let (all, now) = registry.history(usize::MAX).await.unwrap();
    assert_eq!((all.len(), now), (0, 102), "it was another's way here");
}

#[tokio::test]
async fn undoing_sets_values_back_and_says_what_it_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    let before = registry.catalog().await.unwrap();
    edit(&registry, |draft| {
        let mut changed = provider("main");
        changed.base_url = "https://elsewhere.example.com".to_owned();
        draft.put_provider(changed);
        draft.remove_model("m");
        draft.put_provider(provider("new"));
        let mut new = credential("new", 1);
        SECRET.clone_into(&mut new.secret);
        draft.put_credential(new);
        let mut spec = credential("main", 9);
        spec.disabled = true;
        draft.put_credential(spec);
        draft.put_account(account(true));
    })
    .await;
    let changed = registry.catalog().await.unwrap();
    let (outcome, left) = registry.undo(Terms::plain(&by()), None).await.unwrap();
    assert_eq!(outcome.generation, 3);
    let now = registry.catalog().await.unwrap();
    assert_eq!(now.models, before.models, "with the time it was made");
    assert_eq!(now.providers["main"], before.providers["main"]);
    let main = &now.credentials["main"];
    assert_eq!((main.spec.weight, main.spec.disabled), (1, true));
    assert_eq!(registry.reveal(main).unwrap().0.as_str(), SECRET);
    assert_eq!(now.credentials["new"], changed.credentials["new"]);
    assert!(now.accounts["acme"].disabled && now.providers.contains_key("new"));
    let words = [
        "credential main: stays switched off",
        "credential new: was added since",
        "provider new: stays",
        "account acme: stays switched off",
        "credential main: its secret and headers stay",
    ];
    assert_eq!(left.len(), words.len(), "{left:?}");
    for word in words {
        assert!(
            left.iter().any(|line| line.starts_with(word)),
            "{word}: {left:?}"
        );
    }
    // What was undone is a change like any other, and is undone in turn.
    registry.undo(Terms::plain(&by()), Some(2)).await.unwrap();
    let again = registry.catalog().await.unwrap();
    assert!(again.models.is_empty() && again.generation == 4);
}

#[tokio::test]
async fn undoing_brings_no_credential_back_and_is_bound_by_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let registry = founded(dir.path()).await;
    edit(&registry, |draft| draft.put_model(model("n", ""))).await;
    edit(&registry, |draft| draft.remove_credential("main")).await;
    let by = by();
    let lossy = Terms {
        judge: &|old, new| {
            let fewer = new.models.len() < old.models.len();
            let loss = super::super::Fault {
                field: "models".to_owned(),
                why: "go".to_owned(),
            };
            Judgement {
                losses: if fewer { vec![loss] } else { Vec::new() },
                ..Judgement::default()
            }
        },
        ..Terms::plain(&by)
    };
    let (outcome, left) = registry.undo(lossy, None).await.unwrap();
    assert_eq!((outcome.changes.len(), outcome.generation), (0, 3));
    assert!(
        left[0].starts_with("credential main: stays away"),
        "{left:?}"
    );
    let refused = registry.undo(lossy, Some(1)).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid(_)), "{refused}");
    let stale = Terms { base: 2, ..lossy };
    let conflict = registry.undo(stale, Some(1)).await.unwrap_err();
    assert!(matches!(conflict, Error::Conflict(_)), "{conflict}");
    let dry = Terms {
        dry_run: true,
        ..lossy
    };
    let (outcome, _) = registry.undo(dry, Some(1)).await.unwrap();
    assert_eq!((outcome.changes.len(), outcome.losses.len()), (1, 1));
    let forced = Terms {
        force: true,
        ..lossy
    };
    registry.undo(forced, Some(1)).await.unwrap();
    assert_eq!(registry.catalog().await.unwrap().models.len(), 1);
}
