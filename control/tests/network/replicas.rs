//! Two replicas of control on one etcd.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use vector_control::server::Error;

use super::*;

/// Ports of the next etcd of this process.
static PORTS: AtomicU16 = AtomicU16::new(22_700);

/// An etcd of one member, with a folder and an address of its own, ended with the value.
pub(super) struct Etcd {
    dir: TempDir,
    url: String,
    member: Child,
}

impl Etcd {
    pub(super) fn start() -> Self {
        // An address of this process alone; ports below those that outgoing connections get.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let host = Ipv4Addr::new(127, 128 | (a >> 1), b, c);
        let port = PORTS.fetch_add(2, Ordering::Relaxed);
        let (url, peer) = (
            format!("http://{host}:{port}"),
            format!("http://{host}:{}", port + 1),
        );
        let dir = TempDir::new().unwrap();
        let member = Command::new("etcd")
            .args([
                "--name",
                "m",
                "--max-txn-ops",
                "8192",
                "--log-level",
                "error",
            ])
            .arg("--data-dir")
            .arg(dir.path())
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("m={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is needed: install Debian's etcd-server");
        Self { dir, url, member }
    }

    /// Settings of a replica.
    pub(super) fn settings(&self) -> String {
        format!("[etcd]\nendpoints = [{:?}]", self.url)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.member.kill().unwrap();
        self.member.wait().unwrap();
    }
}

/// Two folders of one network: the second has the first's master key and, as if both wrote to one database, its ledger.
pub(super) async fn pair(etcd: &Etcd) -> (Control, Control) {
    pair_with(etcd, "").await
}

/// The same, with more settings of `[control]`.
pub(super) async fn pair_with(etcd: &Etcd, own: &str) -> (Control, Control) {
    let (one, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let token = one.path().join("admin.token");
    // A cluster elects its first leader while we wait.
    let mut dir = Some(one);
    let one = loop {
        match Control::try_start_with(dir.take().unwrap(), own, &etcd.settings(), &token).await {
            Ok(control) => break control,
            Err((back, error)) => {
                assert!(matches!(error, Error::Store(_)), "{error}");
                dir = Some(back);
            }
        }
    };

    let without = Control::try_start_with(other, own, &etcd.settings(), &token).await;
    let (other, refused) = without.err().unwrap();
    assert!(matches!(refused, Error::NoMasterKey(_)), "{refused}");
    std::fs::write(other.path().join("master.key"), [7; 32]).unwrap();
    let wrong = Control::try_start_with(other, own, &etcd.settings(), &token).await;
    let (other, refused) = wrong.err().unwrap();
    assert!(matches!(refused, Error::OtherMasterKey(_)), "{refused}");
    let copy = |name: &str, to: &TempDir| {
        std::fs::copy(one.dir.path().join(name), to.path().join(name)).unwrap();
    };
    copy("master.key", &other);
    let apart = Control::try_start_with(other, own, &etcd.settings(), &token).await;
    let (other, refused) = apart.err().unwrap();
    assert!(
        refused.to_string().contains("[ledger] postgres"),
        "{refused}"
    );
    copy("ledger.id", &other);
    let other = Control::try_start_with(other, own, &etcd.settings(), &token).await;
    (one, other.ok().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_are_one_control() {
    let etcd = Etcd::start();
    let (one, other) = pair(&etcd).await;
    assert_eq!(one.pin, other.pin, "one CA");
    one.admin().await.apply(plan(), false).await.unwrap();
    let created = other.admin().await.create_key().await;
    // Enrolled here, known there.
    let (i, e) = (
        one.enroll("ingress", "i-1").await,
        other.enroll("egress", "e-1").await,
    );
    let lost = one.enroll("egress", "e-2").await;
    let mut at_one = one.node(&i).await;
    let admitted = at_one.admit(admit_request(&created.secret)).await.unwrap();
    assert!(admitted.into_inner().policy.is_some());
    let mut at_one = Stream::open(&mut at_one, 0).await;
    let mut at_other = Stream::open(&mut other.node(&i).await, 0).await;
    let egress = Stream::open(&mut other.node(&e).await, 0).await;
    let mut gone = Stream::open(&mut one.node(&lost).await, 0).await;
    gone.snapshot(|snapshot| serves(snapshot, "e-2")).await;

    // Keys changed and nodes drained at one replica are heard of at the other.
    other
        .admin()
        .await
        .set_key(&created.key.as_ref().unwrap().id, true)
        .await;
    let id = created.key.unwrap().id;
    let heard = at_one.until(|event| match event {
        Event::KeysChanged(changed) if changed.keys.contains(&id) => Some(changed.revision),
        _ => None,
    });
    assert!(heard.await > 0, "told in its turn");
    let drain = pb::DrainNodeRequest {
        node: "i-1".to_owned(),
        on: true,
    };
    let drained = one.admin().await;
    drained
        .call(drain, |mut c, r| async move { c.drain_node(r).await })
        .await
        .unwrap();
    at_other
        .until(|event| matches!(event, Event::Drain(drain) if drain.on).then_some(()))
        .await;
    let removed = pb::NameRequest {
        name: "e-2".to_owned(),
    };
    let removing = other.admin().await;
    removing
        .call(removed, |mut c, r| async move { c.remove_node(r).await })
        .await
        .unwrap();
    gone.ended().await;
    drop(egress);
    one.stop().await;
    other.stop().await;
    assert!(etcd.dir.path().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revisions_never_fork_while_both_replicas_publish() {
    let etcd = Etcd::start();
    let (one, other) = pair(&etcd).await;
    one.admin().await.apply(plan(), false).await.unwrap();
    let i = one.enroll("ingress", "i-1").await;
    let mut streams = [
        Stream::open(&mut one.node(&i).await, 0).await,
        Stream::open(&mut other.node(&i).await, 0).await,
    ];
    let model = |name: String| pb::ModelSpec {
        name,
        ..plan().models.remove(0)
    };
    let (at_one, at_other) = (one.admin().await, other.admin().await);
    let change = async |admin: &Admin, prefix: &str| {
        for turn in 0..15 {
            loop {
                let spec = model(format!("{prefix}-{turn}"));
                let put = admin.call(spec, |mut c, r| async move { c.put_model(r).await });
                match put.await {
                    Ok(_) => break,
                    // The other operator was faster: told, and to be repeated.
                    Err(status) => assert_eq!(status.code(), Code::Aborted, "{status}"),
                }
            }
        }
    };
    tokio::join!(change(&at_one, "a"), change(&at_other, "b"));
    let mut seen: BTreeMap<u64, pb::Snapshot> = BTreeMap::new();
    for stream in &mut streams {
        let (mut last, mut all) = (0, false);
        while !all {
            let snapshot = stream.snapshot(|_| true).await;
            assert!(snapshot.revision > last, "revisions only grow");
            last = snapshot.revision;
            // 30 models and the `*` of the plan.
            all = snapshot.models.len() == 31;
            let known = seen.entry(last).or_insert_with(|| snapshot.clone());
            assert_eq!(*known, snapshot, "one revision has one content");
        }
    }
    one.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_hears_all_route_by() {
    let etcd = Etcd::start();
    let (one, other) = pair(&etcd).await;
    one.admin().await.apply(plan(), false).await.unwrap();
    let i = one.enroll("ingress", "i-1").await;
    let (here, nowhere) = (
        one.enroll("egress", "e-1").await,
        one.enroll("egress", "e-2").await,
    );
    let mut at_one = Stream::open(&mut one.node(&i).await, 0).await;
    let _heard = Stream::open(&mut other.node(&here).await, 0).await;
    let mut gone = Stream::open(&mut one.node(&nowhere).await, 0).await;
    gone.snapshot(|snapshot| serves(snapshot, "e-2")).await;
    // Both were in; an older snapshot than that, without the one that goes, would prove nothing.
    at_one
        .snapshot(|snapshot| serves(snapshot, "e-1") && serves(snapshot, "e-2"))
        .await;
    drop(gone);
    // Once the replicas have been there for a while: the one that the other hears is in, the one that nobody hears is not.
    let without = |snapshot: &pb::Snapshot| serves(snapshot, "e-1") && !serves(snapshot, "e-2");
    let at_one = at_one.snapshot(without).await;
    let mut at_other = Stream::open(&mut other.node(&i).await, 0).await;
    assert_eq!(at_other.snapshot(without).await, at_one, "at both alike");
    one.stop().await;
    other.stop().await;
}
