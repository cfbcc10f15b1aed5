//! Backups over the wire: whole or not at all, and only for the operator.

use super::*;

async fn take(admin: &Admin) -> Vec<pb::BackupPart> {
    let asked = pb::BackupRequest {};
    let mut stream = admin
        .call(asked, |mut c, r| async move { c.backup(r).await })
        .await
        .unwrap();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        parts.push(part);
    }
    parts
}

async fn put(
    admin: &Admin,
    parts: &[pb::BackupPart],
    force: bool,
) -> Result<pb::RestoreResponse, Status> {
    let parts: Vec<_> = parts
        .iter()
        .map(|part| pb::RestorePart {
            part: Some(part.clone()),
            force,
        })
        .collect();
    admin
        .call(tokio_stream::iter(parts), |mut c, r| async move {
            c.restore(r).await
        })
        .await
}

/// A control on an empty store, with the old one's authority and master key.
async fn heir(old: &Control) -> Control {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("ca")).unwrap();
    let of = |name: &str| (old.dir.path().join(name), dir.path().join(name));
    let (from, to) = of("master.key");
    std::fs::copy(from, to).unwrap();
    for file in std::fs::read_dir(old.dir.path().join("ca")).unwrap() {
        let name = file.unwrap().file_name();
        let (from, to) = of(&format!("ca/{}", name.to_str().unwrap()));
        std::fs::copy(from, to).unwrap();
    }
    Control::start_in(dir).await
}

#[tokio::test]
async fn a_backup_makes_a_new_control_the_old_one() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(plan(), false).await.unwrap();
    let key = admin.create_key().await.key.unwrap();
    let identity = control.enroll("ingress", "ingress-1").await;
    let parts = take(&admin).await;
    assert!(parts.last().unwrap().end.is_some());

    let heir = heir(&control).await;
    let new = heir.admin().await;
    let restored = put(&new, &parts, false).await.unwrap();
    assert!(restored.put > 5, "{restored:?}");
    let again = admin.apply(plan(), false).await.unwrap();
    let same = new.apply(plan(), false).await.unwrap();
    assert_eq!((same.changes, same.revision), (vec![], again.revision));
    let asked = pb::ListKeysRequest::default();
    let keys = new
        .call(asked, |mut c, r| async move { c.list_keys(r).await })
        .await
        .unwrap();
    assert_eq!(keys.keys[0].id, key.id);
    // The node's certificate is good there too.
    let node = heir.node(&identity).await;
    let unknown = node.clone().admit(pb::AdmitRequest::default()).await;
    assert_eq!(unknown.unwrap().into_inner().policy, None);

    let refused = put(&new, &parts, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    put(&new, &parts, true).await.unwrap();
}

#[tokio::test]
async fn a_backup_that_is_not_whole_changes_nothing() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(plan(), false).await.unwrap();
    let parts = take(&admin).await;
    let heir = heir(&control).await;
    let new = heir.admin().await;

    let mut cut = parts.clone();
    cut.last_mut().unwrap().end = None;
    let mut damaged = parts.clone();
    damaged[0].entries[0].value = vec![1, 2, 3].into();
    let mut foreign = parts.clone();
    foreign
        .last_mut()
        .unwrap()
        .end
        .as_mut()
        .unwrap()
        .trust_domain = "elsewhere.local".to_owned();
    let mut other_root = parts.clone();
    other_root.last_mut().unwrap().end.as_mut().unwrap().pin = "00".repeat(32);
    for (bad, code) in [
        (other_root, Code::FailedPrecondition),
        (cut, Code::InvalidArgument),
        (damaged, Code::InvalidArgument),
        (foreign, Code::FailedPrecondition),
    ] {
        assert_eq!(put(&new, &bad, true).await.unwrap_err().code(), code);
    }
    let stranger = heir.admin_with("vadm_nobody").await;
    let refused = put(&stranger, &parts, true).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let left = new
        .call(pb::ListRequest::default(), |mut c, r| async move {
            c.list_providers(r).await
        })
        .await
        .unwrap();
    assert_eq!(left.providers, [], "nothing was changed");
}
