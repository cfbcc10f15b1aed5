//! Operators: their roles, what they leave in the log, and two of them at once.

use vector_control::coordinate::{Embedded, Store as _, Transaction};
use vector_proto::control::v1::{AuditEntry, AuditRecord};

use super::*;

async fn add(admin: &Admin, name: &str, role: &str) -> Result<pb::AddedOperator, Status> {
    let asked = pb::AddOperatorRequest {
        name: name.to_owned(),
        role: role.to_owned(),
        ..pb::AddOperatorRequest::default()
    };
    admin
        .call(asked, |mut c, r| async move { c.add_operator(r).await })
        .await
}

async fn remove(admin: &Admin, name: &str) -> Result<pb::Removed, Status> {
    let asked = pb::NameRequest {
        name: name.to_owned(),
    };
    admin
        .call(asked, |mut c, r| async move { c.remove_operator(r).await })
        .await
}

async fn status(admin: &Admin) -> Result<pb::StatusResponse, Status> {
    let asked = pb::StatusRequest {};
    admin
        .call(asked, |mut c, r| async move { c.status(r).await })
        .await
}

async fn audit(admin: &Admin) -> pb::ListAuditResponse {
    let asked = pb::ListAuditRequest::default();
    admin
        .call(asked, |mut c, r| async move { c.list_audit(r).await })
        .await
        .unwrap()
}

fn entry(record: &AuditRecord) -> AuditEntry {
    AuditEntry::decode(record.entry.clone()).unwrap()
}

/// Every entry leads to the next, and the last is the head.
fn is_whole(log: &pb::ListAuditResponse) -> bool {
    let mut before: &[u8] = &[];
    let mut seq = 0;
    for record in &log.records {
        let is = entry(record);
        let hashed = digest(&SHA256, &record.entry).as_ref() == record.hash;
        if !hashed || is.previous != before || is.seq != seq + 1 || is.broken {
            return false;
        }
        (before, seq) = (&record.hash, is.seq);
    }
    let head = log.head.clone().unwrap_or_default();
    log.head_proven && head.seq == seq && head.hash == before
}

#[tokio::test]
async fn roles_bound_what_an_operator_may() {
    let control = Control::start().await;
    let root = control.admin().await;
    let viewer = add(&root, "vera", "viewer").await.unwrap();
    let operator = add(&root, "otto", "operator").await.unwrap();
    let taken = add(&root, "vera", "admin").await.unwrap_err();
    assert_eq!(taken.code(), Code::FailedPrecondition, "{taken}");
    let bad = add(&root, "root", "king").await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let lines = bad.message().lines().count();
    assert_eq!(lines, 2, "all faults at once: {bad}");
    let (vera, otto) = (
        control.admin_with(&viewer.token).await,
        control.admin_with(&operator.token).await,
    );

    status(&vera).await.unwrap();
    let refused = vera.apply(plan(), false).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let why = "`vera` is a viewer, and Apply needs the role operator";
    assert!(refused.message().contains(why), "{refused}");
    otto.apply(plan(), false).await.unwrap();
    let refused = add(&otto, "eve", "admin").await.unwrap_err();
    let why = "nobody makes themselves admin";
    assert_eq!(refused.code(), Code::PermissionDenied, "{why}");
    let invite = pb::InviteNodeRequest::default();
    let refused = otto
        .call(invite, |mut c, r| async move { c.invite_node(r).await })
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    // A secret under another name is nobody's.
    let secret = operator.token.strip_prefix("vadm_otto-").unwrap();
    for wrong in [format!("vadm_vera-{secret}"), format!("vadm_{secret}")] {
        let wrong = control.admin_with(&wrong).await;
        let refused = status(&wrong).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }
    assert!(remove(&root, "otto").await.unwrap().existed);
    assert!(!remove(&root, "otto").await.unwrap().existed);
    let gone = status(&otto).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unauthenticated, "at once");
    let root_stays = remove(&root, "root").await.unwrap_err();
    assert_eq!(root_stays.code(), Code::FailedPrecondition);
    control.stop().await;
}

#[tokio::test]
async fn an_operator_may_have_a_certificate_instead() {
    let control = Control::start().await;
    let root = control.admin().await;
    let (key, csr) = request();
    let asked = pb::AddOperatorRequest {
        name: "cleo".to_owned(),
        role: "viewer".to_owned(),
        csr: csr.into(),
        ttl_s: 0,
    };
    let call = |asked: pb::AddOperatorRequest| {
        root.call(asked, |mut c, r| async move { c.add_operator(r).await })
    };
    let nonsense = pb::AddOperatorRequest {
        csr: b"nonsense".to_vec().into(),
        ..asked.clone()
    };
    let bad = call(nonsense).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument, "{bad}");
    let added = call(asked.clone()).await.unwrap();
    assert_eq!(added.token, "");
    let chain: Vec<CertificateDer<'static>> = added
        .certificate_chain
        .iter()
        .map(|der| CertificateDer::from(der.to_vec()))
        .collect();
    let own = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let dialled = dial::dial(&control.url, &control.pin, Some((chain, own)));
    let channel = dialled.await.unwrap();
    let mut cleo = AdminClient::new(channel.clone());
    let me = cleo.who_am_i(pb::WhoAmIRequest {}).await;
    let me = me.unwrap().into_inner();
    let shown = [me.name.as_str(), me.role.as_str(), me.by.as_str()];
    assert_eq!(shown, ["cleo", "viewer", "certificate"]);
    let refused = cleo.apply(pb::ApplyRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let mut as_node = NodeClient::new(channel);
    let refused = as_node.admit(pb::AdmitRequest::default()).await;
    let code = refused.unwrap_err().code();
    assert_eq!(code, Code::Unauthenticated, "an operator is no node");

    // Made again under the same name, the old certificate stays worthless.
    remove(&root, "cleo").await.unwrap();
    let refused = cleo.who_am_i(pb::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    call(asked).await.unwrap();
    let refused = cleo.who_am_i(pb::WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    control.stop().await;
}

#[tokio::test]
async fn every_change_is_in_the_log_and_no_secret_is() {
    let control = Control::start().await;
    let root = control.admin().await;
    let otto = add(&root, "otto", "operator").await.unwrap();
    let otto = control.admin_with(&otto.token).await;
    let mut plan = plan();
    let headers = [("x-org".to_owned(), "header-canary".to_owned())];
    plan.credentials[0].headers = headers.into();
    otto.apply(plan.clone(), false).await.unwrap();
    otto.apply(plan, false).await.unwrap();
    let key = otto.create_key().await;
    otto.set_key(&key.key.unwrap().id, true).await;
    otto.apply(pb::Plan::default(), true).await.unwrap();
    control.enroll("egress", "e-1").await;

    let log = audit(&root).await;
    assert!(is_whole(&log));
    let told: Vec<String> = log
        .records
        .iter()
        .map(|record| line(&entry(record)))
        .collect();
    assert_eq!(
        told,
        [
            "operator/root: create operator",
            "operator/otto: create provider, create credential, create model, create account",
            "operator/otto: create key",
            "operator/otto: update key",
            "operator/otto: remove provider, remove credential, remove model",
            "operator/root: create invite",
            "node/e-1: enrol node",
        ],
        "and the same plan twice is one change"
    );
    let bytes: Vec<u8> = log
        .records
        .iter()
        .flat_map(|record| record.entry.to_vec())
        .collect();
    let canaries = ["sk-proj-very-secret-canary", "header-canary", &key.secret];
    for canary in canaries {
        let mut windows = bytes.windows(canary.len());
        assert!(!windows.any(|part| part == canary.as_bytes()), "{canary}");
    }
    control.stop().await;
}

fn line(entry: &AuditEntry) -> String {
    let changes: Vec<String> = entry
        .changes
        .iter()
        .map(|change| format!("{} {}", change.action, change.kind))
        .collect();
    format!("{}: {}", entry.actor, changes.join(", "))
}

/// What `vectorctl` answers one operator, who has a home and a plan file of their own.
async fn ctl(control: &Control, home: &TempDir, words: &[&str]) -> Result<String, String> {
    let said = tokio::process::Command::new(env!("CARGO_BIN_EXE_vectorctl"))
        .args(words)
        .args(["-f", "network.toml"])
        .current_dir(home.path())
        .env("XDG_STATE_HOME", home.path())
        .env("VECTOR_CONTROL", &control.url)
        .env("VECTOR_ADMIN_TOKEN", &control.token)
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if said.status.success() {
        Ok(text(said.stdout))
    } else {
        Err(text(said.stderr))
    }
}

#[tokio::test]
async fn who_applies_what_was_compared_before_another_applied_is_told_to_look_again() {
    let control = Control::start().await;
    let titled = |home: &TempDir, title: &str| {
        let plan = format!("[[account]]\nname = \"acme\"\ntitle = \"{title}\"\n");
        std::fs::write(home.path().join("network.toml"), plan).unwrap();
    };
    let title = async || {
        let asked = pb::ListRequest::default();
        let admin = control.admin().await;
        let listed = admin.call(asked, |mut c, r| async move { c.list_accounts(r).await });
        listed.await.unwrap().accounts.remove(0).title
    };
    let (ann, ben) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    titled(&ann, "first");
    ctl(&control, &ann, &["apply"]).await.unwrap();

    titled(&ann, "by ann");
    titled(&ben, "by ben");
    ctl(&control, &ann, &["diff"]).await.unwrap();
    ctl(&control, &ben, &["diff"]).await.unwrap();
    ctl(&control, &ann, &["apply"]).await.unwrap();
    let refused = ctl(&control, &ben, &["apply"]).await.unwrap_err();
    for part in ["generation 2, expected 1", "vectorctl diff -f network.toml"] {
        assert!(refused.contains(part), "{refused}");
    }
    assert_eq!(title().await, "by ann", "nothing is lost");
    let again = ctl(&control, &ben, &["apply"]).await.unwrap_err();
    assert_eq!(again, refused, "once more is not a look");

    let shown = ctl(&control, &ben, &["diff"]).await.unwrap();
    assert!(shown.contains("by ann"), "{shown}");
    ctl(&control, &ben, &["apply"]).await.unwrap();
    assert_eq!(title().await, "by ben");
    // What was not compared before is compared when it is applied, and who says so does not care.
    ctl(&control, &ann, &["apply"]).await.unwrap();
    ctl(&control, &ben, &["diff"]).await.unwrap();
    titled(&ann, "by ann again");
    ctl(&control, &ann, &["apply"]).await.unwrap();
    let any = ctl(&control, &ben, &["apply", "--base", "0"]).await;
    any.unwrap();
    assert_eq!(title().await, "by ben");
    control.stop().await;
}

async fn apply_account(admin: Admin, account: String, base: u64) -> Result<(), Status> {
    let account = pb::AccountSpec {
        name: account,
        ..pb::AccountSpec::default()
    };
    let asked = pb::ApplyRequest {
        plan: Some(pb::Plan {
            accounts: vec![account],
            ..pb::Plan::default()
        }),
        base_revision: base,
        ..pb::ApplyRequest::default()
    };
    admin
        .call(asked, |mut c, r| async move { c.apply(r).await })
        .await
        .map(drop)
}

#[tokio::test]
async fn of_two_operators_at_once_one_is_told_and_nothing_is_lost() {
    let control = Control::start().await;
    let (one, two) = (control.admin().await, control.admin().await);
    let base = one.apply(plan(), false).await.unwrap().revision;
    let (first, second) = tokio::join!(
        apply_account(one, "first".to_owned(), base),
        apply_account(two, "second".to_owned(), base)
    );
    let told: Vec<Code> = [&first, &second]
        .into_iter()
        .filter_map(|outcome| outcome.as_ref().err().map(Status::code))
        .collect();
    assert_eq!(told, [Code::Aborted], "one, and only one, is told");

    // Those who name no base change different things, and all of it stays.
    let mut tasks = tokio::task::JoinSet::new();
    for turn in 0..4 {
        let admin = control.admin().await;
        tasks.spawn(apply_account(admin, format!("many-{turn}"), 0));
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    let admin = control.admin().await;
    let asked = pb::ListRequest::default();
    let accounts = admin
        .call(asked, |mut c, r| async move { c.list_accounts(r).await })
        .await
        .unwrap()
        .accounts;
    assert_eq!(accounts.len(), 6, "acme, one of two, and four");
    assert!(is_whole(&audit(&admin).await));
    control.stop().await;
}

#[tokio::test]
async fn a_log_that_somebody_altered_does_not_pass() {
    let control = Control::start().await;
    let root = control.admin().await;
    for name in ["a", "b", "c"] {
        add(&root, name, "viewer").await.unwrap();
    }
    assert!(is_whole(&audit(&root).await));
    let dir = control.stop().await;
    forge(&dir).await;

    let control = Control::start_in(dir).await;
    let root = control.admin().await;
    let log = audit(&root).await;
    assert!(!log.head_proven, "the head's proof needs control's secret");
    // What comes after does not cover it up.
    add(&root, "d", "viewer").await.unwrap();
    let log = audit(&root).await;
    assert!(log.head_proven);
    assert!(entry(log.records.last().unwrap()).broken);
    assert!(!is_whole(&log));
    control.stop().await;
}

/// Makes the newest entry and its head anew, both right in themselves, in the store of a control that is down.
async fn forge(dir: &TempDir) {
    let file = dir.path().join("control.sqlite");
    let store = Embedded::open(&file).await.unwrap();
    let at = "/audit/entries/0000000000000003";
    let before = store.get(at).await.unwrap().unwrap();
    let mut other = entry(&AuditRecord::decode(before.value).unwrap());
    other.actor = "operator/somebody-else".to_owned();
    let bytes = other.encode_to_vec();
    let hash: bytes::Bytes = digest(&SHA256, &bytes).as_ref().to_vec().into();
    let record = AuditRecord {
        entry: bytes.into(),
        hash: hash.clone(),
    };
    let head = store.get("/audit/head").await.unwrap().unwrap();
    let mut head = pb::AuditHead::decode(head.value).unwrap();
    head.hash = hash;
    let put = Transaction::new()
        .put(at, record.encode_to_vec())
        .put("/audit/head", head.encode_to_vec());
    store.commit(put).await.unwrap();
}
