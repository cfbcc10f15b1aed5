//! A change reaches canaries first, and everybody or nobody after them.

use super::{
    replicas::{Etcd, pair_with},
    *,
};

/// Long enough that nothing moves on by itself in a test.
const HELD: &str = "rollout_pause_ms = 3600000";

/// Node `…-1` of each role is the canary: two of each.
struct Fleet {
    canary: Stream,
    other: Stream,
    _egress: [Stream; 2],
}

impl Fleet {
    /// The canaries connect to the one, the others to the other; both may be the same.
    async fn connect(one: &Control, other: &Control) -> Self {
        let open = async |control: &Control, role: &str, id: &str| {
            let identity = one.enroll(role, id).await;
            Stream::open(&mut control.node(&identity).await, 0).await
        };
        Self {
            _egress: [
                open(one, "egress", "e-1").await,
                open(other, "egress", "e-2").await,
            ],
            canary: open(one, "ingress", "i-1").await,
            other: open(other, "ingress", "i-2").await,
        }
    }
}

async fn start(own: &str) -> Control {
    let dir = TempDir::new().unwrap();
    let token = dir.path().join("admin.token");
    let started = Control::try_start_with(dir, own, "", &token).await;
    started.unwrap()
}

/// The plan, and one more model.
fn another(name: &str) -> pb::Plan {
    let mut plan = plan();
    let mut model = plan.models[0].clone();
    name.clone_into(&mut model.name);
    plan.models.push(model);
    plan
}

fn has(snapshot: &pb::Snapshot, model: &str) -> bool {
    snapshot.models.iter().any(|row| row.name == model)
}

async fn shown(admin: &Admin) -> pb::Rollout {
    let asked = pb::ShowRolloutRequest {};
    admin
        .call(asked, |mut c, r| async move { c.show_rollout(r).await })
        .await
        .unwrap()
}

async fn pause(admin: &Admin, on: bool) -> Result<pb::Rollout, Status> {
    let asked = pb::PauseRolloutRequest { on };
    admin
        .call(asked, |mut c, r| async move { c.pause_rollout(r).await })
        .await
}

async fn undo(admin: &Admin) -> pb::UndoResponse {
    let asked = pb::UndoRequest::default();
    admin
        .call(asked, |mut c, r| async move { c.undo(r).await })
        .await
        .unwrap()
}

/// What a node hears until it is told to drain: every snapshot on the way.
async fn heard_until_drained(admin: &Admin, stream: &mut Stream, node: &str) -> Vec<pb::Snapshot> {
    let asked = pb::DrainNodeRequest {
        node: node.to_owned(),
        on: true,
    };
    admin
        .call(asked, |mut c, r| async move { c.drain_node(r).await })
        .await
        .unwrap();
    let mut heard = Vec::new();
    let marked = |snapshot: &pb::Snapshot| {
        let row = snapshot.nodes.iter().find(|row| row.id == node);
        row.is_some_and(|row| row.draining)
    };
    stream
        .until(|event| match event {
            Event::Snapshot(snapshot) => {
                heard.push(snapshot);
                heard.last().filter(|last| marked(last)).map(|_| ())
            }
            _ => None,
        })
        .await;
    heard
}

#[tokio::test]
async fn canaries_have_it_first_and_an_undo_takes_it_from_them() {
    let control = start(HELD).await;
    let admin = control.admin().await;
    let mut fleet = Fleet::connect(&control, &control).await;
    admin.apply(another("m"), false).await.unwrap();
    let told = fleet.canary.snapshot(|snapshot| has(snapshot, "m")).await;
    let rollout = shown(&admin).await;
    assert_eq!((rollout.from, rollout.to), (0, 1));
    assert_eq!(
        (rollout.stage.as_str(), rollout.canaries.join(" ").as_str()),
        ("canaries", "i-1 e-1")
    );
    // A node that changes is told to all; the change still is not.
    let heard = heard_until_drained(&admin, &mut fleet.other, "i-2").await;
    assert!(heard.iter().all(|snapshot| !has(snapshot, "m")));
    let second = fleet
        .canary
        .snapshot(|snapshot| snapshot.revision > told.revision)
        .await;
    assert!(has(&second, "m"), "canaries keep it");

    assert_eq!(pause(&admin, true).await.unwrap().stage, "paused");
    let undone = undo(&admin).await;
    assert_eq!(undone.revision, 2);
    assert!(undone.changes.iter().any(|row| row.action == "remove"));
    let third = fleet.canary.snapshot(|snapshot| !has(snapshot, "m")).await;
    assert!(third.revision > second.revision, "by a new number");
    let rollout = shown(&admin).await;
    assert_eq!(rollout.stage, "rolled back");
    assert_eq!(rollout.reason, "taken back by operator/root");
    let over = pause(&admin, true).await.unwrap_err();
    assert_eq!(over.code(), Code::FailedPrecondition, "{over}");
    control.stop().await;
}

#[tokio::test]
async fn everybody_has_it_once_canaries_have_put_it_in_force() {
    let control = start("rollout_pause_ms = 20").await;
    let admin = control.admin().await;
    let mut fleet = Fleet::connect(&control, &control).await;
    admin.apply(another("m"), false).await.unwrap();
    for stream in [&mut fleet.canary, &mut fleet._egress[0]] {
        let revision = stream
            .snapshot(|snapshot| has(snapshot, "m"))
            .await
            .revision;
        let applied = node_event::Event::Applied(pb::Applied { revision });
        Stream::send(&stream.up, applied).await;
    }
    fleet.other.snapshot(|snapshot| has(snapshot, "m")).await;
    assert_eq!(shown(&admin).await.stage, "done");
    control.stop().await;
}

/// Applies changes until one of them goes to canaries first: the nodes of another replica are known once it has told of them.
/// Gives the change's model.
async fn staged(admin: &Admin) -> String {
    let mut tries = 0;
    loop {
        let model = format!("m-{tries}");
        admin.apply(another(&model), false).await.unwrap();
        let rollout = shown(admin).await;
        if rollout.stage == "canaries" {
            return model;
        }
        tries += 1;
        assert!(tries < 1_000, "{rollout:?}");
    }
}

#[tokio::test]
async fn canaries_count_whichever_replica_hears_them() {
    let etcd = Etcd::start();
    let (one, other) = pair_with(&etcd, "rollout_pause_ms = 1").await;
    let admin = one.admin().await;
    let open = async |control: &Control, role: &str, id: &str| {
        let identity = one.enroll(role, id).await;
        Stream::open(&mut control.node(&identity).await, 0).await
    };
    let mut canaries = [
        open(&one, "ingress", "i-1").await,
        open(&other, "egress", "e-1").await,
    ];
    let mut rest = [
        open(&one, "egress", "e-2").await,
        open(&other, "ingress", "i-2").await,
    ];
    let model = staged(&admin).await;
    let mut told = Vec::new();
    for canary in &mut canaries {
        told.push(canary.snapshot(|snapshot| has(snapshot, &model)).await);
    }
    let applied = async |at: usize| {
        let revision = told[at].revision;
        let applied = node_event::Event::Applied(pb::Applied { revision });
        Stream::send(&canaries[at].up, applied).await;
    };
    // The one replica has heard all that it can hear, and the pause is over.
    applied(0).await;
    let heard = heard_until_drained(&admin, &mut rest[1], "i-2").await;
    assert!(heard.iter().all(|snapshot| !has(snapshot, &model)));
    applied(1).await;
    for stream in &mut rest {
        stream.snapshot(|snapshot| has(snapshot, &model)).await;
    }
    assert_eq!(shown(&admin).await.stage, "done");
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_refusal_rolls_back_at_every_replica() {
    let etcd = Etcd::start();
    let (one, other) = pair_with(&etcd, HELD).await;
    let admin = one.admin().await;
    let mut fleet = Fleet::connect(&one, &other).await;
    let name = staged(&admin).await;
    let told = fleet.canary.snapshot(|snapshot| has(snapshot, &name)).await;
    let before = shown(&admin).await;
    let rejected = pb::Rejected {
        revision: told.revision,
        reason: "it is poison".to_owned(),
        kept: told.revision - 1,
    };
    let rejected = node_event::Event::Rejected(rejected);
    Stream::send(&fleet.canary.up, rejected).await;
    let back = fleet
        .canary
        .snapshot(|snapshot| !has(snapshot, &name))
        .await;
    assert!(back.revision > told.revision);
    let there = other.admin_with(&admin.token).await;
    let rollout = shown(&there).await;
    assert_eq!(rollout.stage, "rolled back");
    assert_eq!(rollout.reason, "node i-1 refused it: it is poison");
    assert_eq!((rollout.from, rollout.to), (before.from, before.to));
    let heard = heard_until_drained(&there, &mut fleet.other, "i-2").await;
    assert!(heard.iter().all(|snapshot| !has(snapshot, &name)));
    let asked = pb::ListAuditRequest {
        page_size: 3,
        newest: true,
        ..pb::ListAuditRequest::default()
    };
    let log = admin
        .call(asked, |mut c, r| async move { c.list_audit(r).await })
        .await
        .unwrap();
    let entries = log.records.iter();
    let mut entries = entries.map(|row| pb::AuditEntry::decode(row.entry.clone()).unwrap());
    let entry = entries
        .find(|entry| entry.actor == "control")
        .expect("control has undone it");
    assert_eq!(entry.changes[0].action, "roll back");
    assert!(entry.changes[0].details[0].contains("it is poison"));
    one.stop().await;
    other.stop().await;
}

/// A node says how it fares, and control has heard it.
async fn say(control: &Control, (stream, node): (&Stream, &str), status: pb::Status) {
    Stream::send(&stream.up, node_event::Event::Status(status.clone())).await;
    let admin = control.admin().await;
    let heard = async {
        loop {
            let asked = pb::ListRequest::default();
            let listed = admin.call(asked, |mut c, r| async move { c.list_nodes(r).await });
            let nodes = listed.await.unwrap().nodes;
            let of = |view: &&pb::NodeView| view.record.as_ref().is_some_and(|row| row.id == node);
            if nodes.iter().find(of).unwrap().status.as_ref() == Some(&status) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, heard)
        .await
        .expect("the node is heard");
}

/// Waits until the canary is told to go back, and gives the reason.
async fn taken_back(admin: &Admin, fleet: &mut Fleet, model: &str) -> String {
    fleet
        .canary
        .snapshot(|snapshot| !has(snapshot, model))
        .await;
    let rollout = shown(admin).await;
    assert_eq!(rollout.stage, "rolled back");
    let heard = heard_until_drained(admin, &mut fleet.other, "i-2").await;
    assert!(heard.iter().all(|snapshot| !has(snapshot, model)));
    rollout.reason
}

fn answers(success_permille: u32) -> pb::Status {
    let row = pb::UpstreamStatus {
        provider: "openai".to_owned(),
        egress: "e-2".to_owned(),
        success_permille,
        ..pb::UpstreamStatus::default()
    };
    pb::Status {
        upstreams: vec![row],
        ..pb::Status::default()
    }
}

#[tokio::test]
async fn an_upstream_that_fails_for_a_canary_and_not_for_others_rolls_back() {
    let control = start(HELD).await;
    let admin = control.admin().await;
    let mut fleet = Fleet::connect(&control, &control).await;
    say(&control, (&fleet.canary, "i-1"), answers(1_000)).await;
    say(&control, (&fleet.other, "i-2"), answers(1_000)).await;
    admin.apply(another("m"), false).await.unwrap();
    fleet.canary.snapshot(|snapshot| has(snapshot, "m")).await;
    say(&control, (&fleet.other, "i-2"), answers(950)).await;
    say(&control, (&fleet.canary, "i-1"), answers(400)).await;
    let reason = taken_back(&admin, &mut fleet, "m").await;
    let fails = "openai by way of e-2 fails since, as i-1 sees it: 60 of 100 more than before";
    assert_eq!(reason, fails);
    control.stop().await;
}

fn credential(state: pb::CredentialState) -> pb::Status {
    let row = pb::CredentialStatus {
        credential: "openai-1".to_owned(),
        provider: "openai".to_owned(),
        state: state.into(),
        ..pb::CredentialStatus::default()
    };
    pb::Status {
        credentials: vec![row],
        ..pb::Status::default()
    }
}

#[tokio::test]
async fn a_secret_that_the_provider_refuses_reaches_nobody_but_canaries() {
    use pb::CredentialState::{Out, Ready};
    let control = start(HELD).await;
    let admin = control.admin().await;
    let mut fleet = Fleet::connect(&control, &control).await;
    for (stream, node) in fleet._egress.iter().zip(["e-1", "e-2"]) {
        say(&control, (stream, node), credential(Ready)).await;
    }
    let mut plan = another("m");
    plan.credentials[0].secret = "sk-proj-with-a-slip".to_owned();
    admin.apply(plan, false).await.unwrap();
    fleet.canary.snapshot(|snapshot| has(snapshot, "m")).await;
    say(&control, (&fleet._egress[0], "e-1"), credential(Out)).await;
    let reason = taken_back(&admin, &mut fleet, "m").await;
    let out = "credential openai-1 of openai is out of use at e-1 since, and not elsewhere";
    assert_eq!(reason, out);
    control.stop().await;
}
