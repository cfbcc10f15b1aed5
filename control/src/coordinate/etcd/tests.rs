//! The contract against real clusters, also while their members are killed.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, CompactionOptions};

use super::*;
use crate::coordinate::contract::keeps_the_contract;

/// Times that the contract is kept while members are killed.
const RUNS: usize = 3;

/// Ports of the next cluster of this process: below those that outgoing connections get, since a member comes back to its own.
static PORTS: AtomicU16 = AtomicU16::new(20_000);

/// An address of this process alone.
fn host() -> Ipv4Addr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 64 | a, b, c)
}

/// A cluster of its own, in a folder of its own, ended with the value.
struct Cluster {
    dir: tempfile::TempDir,
    /// Client and peer port of each member.
    ports: Vec<(u16, u16)>,
    members: Vec<Option<Child>>,
    /// Of a cluster that speaks TLS only: CA, certificate and key.
    tls: Option<[PathBuf; 3]>,
    /// Bytes that its database may have, if not as many as by default.
    quota: Option<u32>,
}

impl Cluster {
    fn start(members: usize) -> Self {
        Self::start_with(members, None, None)
    }

    fn start_with(
        members: usize,
        tls: Option<(&PathBuf, &(PathBuf, PathBuf))>,
        quota: Option<u32>,
    ) -> Self {
        let first = PORTS.fetch_add(2 * members as u16, Ordering::Relaxed);
        let ports = (0..members as u16).map(|at| (first + 2 * at, first + 2 * at + 1));
        let mut cluster = Self {
            dir: tempfile::tempdir().unwrap(),
            ports: ports.collect(),
            members: Vec::new(),
            tls: tls.map(|(ca, (pem, key))| [ca.clone(), pem.clone(), key.clone()]),
            quota,
        };
        for at in 0..members {
            let member = cluster.launch(at);
            cluster.members.push(Some(member));
        }
        cluster
    }

    fn launch(&self, at: usize) -> Child {
        let url = |port: u16| format!("http://{}:{port}", host());
        let name = |at: usize| format!("m{at}");
        let all: Vec<_> = self
            .ports
            .iter()
            .enumerate()
            .map(|(at, ports)| format!("{}={}", name(at), url(ports.1)))
            .collect();
        let client = self.client_url(self.ports[at].0);
        let peer = url(self.ports[at].1);
        let data: PathBuf = self.dir.path().join(name(at));
        let mut command = Command::new("etcd");
        if let Some([ca, pem, key]) = &self.tls {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(ca);
            command
                .arg("--cert-file")
                .arg(pem)
                .arg("--key-file")
                .arg(key);
        }
        if let Some(quota) = self.quota {
            command.arg(format!("--quota-backend-bytes={quota}"));
        }
        command
            .args(["--name", &name(at), "--data-dir"])
            .arg(data)
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args([
                "--initial-cluster",
                &all.join(","),
                "--max-txn-ops",
                "8192",
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "500",
                "--log-level",
                "error",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is needed: install Debian's etcd-server")
    }

    fn client_url(&self, port: u16) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{port}", host())
    }

    fn settings(&self, root: &str) -> Settings {
        let endpoints = self.ports.iter();
        let endpoints = endpoints.map(|(client, _)| self.client_url(*client));
        Settings {
            endpoints: endpoints.collect(),
            root: root.to_owned(),
            user: None,
            tls: None,
        }
    }

    /// A cluster elects its first leader while we wait.
    async fn open(&self, root: &str) -> Etcd {
        loop {
            match Etcd::open(self.settings(root)).await {
                Ok(store) => return store,
                Err(Error::Unavailable(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn kill(&mut self, at: usize) {
        if let Some(mut member) = self.members[at].take() {
            member.kill().unwrap();
            member.wait().unwrap();
        }
    }

    /// Kills every member in turn, so the leader at least once, and brings each back before the next. `probe` makes a
    /// commit each time: no call is asked to live through more leaders than its deadline has room for.
    async fn rampage(&mut self, probe: &Etcd) {
        for at in 0..self.members.len() {
            self.kill(at);
            // A majority elects and serves without it: that is what is tested.
            probe
                .commit(Transaction::new().put("/alive", &b"x"[..]))
                .await
                .unwrap();
            self.members[at] = Some(self.launch(at));
            let alone = Settings {
                endpoints: vec![self.settings("").endpoints[at].clone()],
                ..self.settings("/probe")
            };
            while Etcd::open(alone.clone()).await.is_err() {}
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for at in 0..self.members.len() {
            self.kill(at);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_etcd_keeps_the_contract() {
    let cluster = Cluster::start(1);
    let store = cluster.open("/vector").await;
    keeps_the_contract(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_keep_the_contract_while_they_are_killed() {
    let mut cluster = Cluster::start(3);
    let probe = cluster.open("/probe").await;
    let settings = cluster.settings("");
    let (done, mut runs) = tokio::sync::watch::channel(0);
    let mut work = tokio::task::JoinSet::new();
    work.spawn(async move {
        for run in 1..=RUNS {
            let root = format!("/run-{run}");
            let settings = Settings {
                root,
                ..settings.clone()
            };
            keeps_the_contract(Arc::new(Etcd::open(settings).await.unwrap())).await;
            done.send_replace(run);
        }
    });
    while *runs.borrow_and_update() < RUNS {
        cluster.rampage(&probe).await;
        if let Some(finished) = work.try_join_next() {
            finished.unwrap();
        }
    }
}

/// A CA, and PEM files of a server's and a client's certificate by it.
fn certificates(dir: &std::path::Path) -> (PathBuf, [(PathBuf, PathBuf); 2]) {
    let mut params = rcgen::CertificateParams::new([]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let ca_file = dir.join("ca.pem");
    std::fs::write(&ca_file, ca.pem()).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let pairs = ["server", "client"].map(|name| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new([host().to_string()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let (pem, key_file) = (
            dir.join(format!("{name}.pem")),
            dir.join(format!("{name}.key")),
        );
        std::fs::write(&pem, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (pem, key_file)
    });
    (ca_file, pairs)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_with_tls_and_users_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, [server, client]) = certificates(dir.path());
    let cluster = Cluster::start_with(1, Some((&ca, &server)), None);
    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    let identity = etcd_client::Identity::from_pem(read(&client.0), read(&client.1));
    let tls = etcd_client::TlsOptions::new()
        .ca_certificate(etcd_client::Certificate::from_pem(read(&ca)))
        .identity(identity);
    let settings = Settings {
        tls: Some(tls),
        ..cluster.settings("/vector")
    };
    let bare = loop {
        if let Ok(store) = Etcd::open(settings.clone()).await {
            break store;
        }
    };
    let lock = |mut client: Client| async move {
        client.user_add("root", "secret", None).await?;
        client.user_grant_role("root", "root").await?;
        client.auth_enable().await
    };
    bare.inner.members.call(lock).await.unwrap();
    let stranger = Etcd::open(settings.clone()).await;
    assert!(
        matches!(stranger, Err(Error::Unavailable(_))),
        "{stranger:?}"
    );
    let user = Some(("root".to_owned(), "secret".to_owned().into()));
    let store = Etcd::open(Settings { user, ..settings }).await.unwrap();
    keeps_the_contract(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_history_is_told() {
    let cluster = Cluster::start(1);
    let store = cluster.open("/vector").await;
    let first = store
        .commit(Transaction::new().put("/a", &b"1"[..]))
        .await
        .unwrap();
    let last = store
        .commit(Transaction::new().put("/a", &b"2"[..]))
        .await
        .unwrap();
    let compact = |mut client: Client| async move { client.compact(last, None).await };
    store.inner.members.call(compact).await.unwrap();
    let watch = store.watch("/a", first - 1).await;
    let told = match watch {
        Err(error) => error,
        Ok(mut watch) => watch.next().await.unwrap_err(),
    };
    assert!(matches!(told, Error::Compacted), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_of_many_pages_is_of_one_moment() {
    let cluster = Cluster::start(1);
    let store = cluster.open("/vector").await;
    let keys = (0..2_500).map(|at| format!("/many/{at:04}"));
    let all = keys
        .clone()
        .fold(Transaction::new(), |all, key| all.put(key, &b"x"[..]));
    let revision = store.commit(all).await.unwrap();
    let listing = store.list("/many/").await.unwrap();
    assert!(
        listing
            .entries
            .iter()
            .map(|entry| entry.key.clone())
            .eq(keys)
    );
    assert_eq!(listing.revision, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_is_far_behind_ends_instead_of_asking_for_ever() {
    let cluster = Cluster::start(1);
    let store = cluster.open("/vector").await;
    let before = store.list("/large/").await.unwrap().revision;
    for _ in 0..=WATCH_BYTES_MAX / VALUE_BYTES_MAX {
        let large = Transaction::new().put("/large/1", vec![0; VALUE_BYTES_MAX]);
        store.commit(large).await.unwrap();
    }
    let mut watch = store.watch("/large/", before).await.unwrap();
    let told = watch.next().await.map(|batch| batch.revision);
    assert!(matches!(told, Err(Error::Compacted)), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_asked_twice_is_done_once() {
    let cluster = Cluster::start(1);
    let store = cluster.open("/vector").await;
    let first = store
        .commit(Transaction::new().put("/n", &b"1"[..]))
        .await
        .unwrap();
    // As if the answer to this very commit had been lost: it is done behind the store's back, and then asked for.
    let transaction = Transaction::new().when("/n", first).put("/n", &b"2"[..]);
    let mark = store.inner.mark.lock().await.clone();
    let id = Uuid::now_v7().into_bytes().to_vec();
    let txn = store.inner.txn(&transaction, (&mark.0, mark.1), &id);
    let ask = |mut client: Client| {
        let txn = txn.clone();
        async move { client.txn(txn).await }
    };
    let once = store.inner.members.call(ask).await.unwrap();
    let again = store.inner.members.call(ask).await.unwrap();
    assert!(once.succeeded() && !again.succeeded());
    let (shown, _) = store.inner.shown(&again);
    assert_eq!(
        shown.map(|entry| entry.value.to_vec()),
        Some(id),
        "the mark tells that it was done"
    );
    // And the next commit is not confused by a mark it did not expect.
    let next = store
        .commit(Transaction::new().put("/n", &b"3"[..]))
        .await
        .unwrap();
    assert_eq!(store.get("/n").await.unwrap().unwrap().changed, next);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_says_the_cure_and_the_cure_cures() {
    let cluster = Cluster::start_with(1, None, Some(1 << 20));
    let store = cluster.open("/vector").await;
    let large = || Transaction::new().put("/large", vec![0; 128 << 10]);
    let mut last = store.commit(large()).await.unwrap();
    let told = loop {
        match store.commit(large()).await {
            Ok(revision) => last = revision,
            Err(error) => break error.to_string(),
        }
    };
    assert!(
        told.contains("compact, defragment and disarm the alarm"),
        "{told}"
    );
    // What is there can be read.
    assert_eq!(store.get("/large").await.unwrap().unwrap().changed, last);
    let cure = |mut client: Client| async move {
        client
            .compact(last, Some(CompactionOptions::new().with_physical()))
            .await?;
        client.defragment().await?;
        let full = AlarmType::Nospace;
        let raised = client.alarm(AlarmAction::Get, full, None).await?;
        for alarm in raised.alarms() {
            let mut of = AlarmOptions::new();
            of.with_member(alarm.member_id());
            client
                .alarm(AlarmAction::Deactivate, full, Some(of))
                .await?;
        }
        Ok(())
    };
    store.inner.members.call(cure).await.unwrap();
    let next = store.commit(large()).await.unwrap();
    assert!(next > last);
}
