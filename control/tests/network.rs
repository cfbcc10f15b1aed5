//! Control over real sockets: who may do what, what nodes hear, and what a restart keeps.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test that cannot set itself up fails"
)]

use std::time::Duration;

use prost::Message as _;
use ring::digest::{SHA256, digest};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use vector_control::{config::Config, dial, server::Server};
use vector_proto::{
    control::v1::{
        self as pb, admin_client::AdminClient, control_event::Event, node_client::NodeClient,
        node_event,
    },
    id::ApiKey,
};

/// Nothing here waits this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct Control {
    dir: TempDir,
    url: String,
    pin: String,
    token: String,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Control {
    async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    async fn start_in(dir: TempDir) -> Self {
        let text = format!(
            "[control]\nlisten = \"127.0.0.1:0\"\ndata_dir = {:?}\n[admin]\nlisten = \"127.0.0.1:0\"",
            dir.path()
        );
        let server = Server::bind(&Config::read(&text, &|_| None).unwrap())
            .await
            .unwrap();
        let url = format!("https://{}", server.address().unwrap());
        let pin = server.pin();
        let token = std::fs::read_to_string(dir.path().join("admin.token"))
            .unwrap()
            .trim()
            .to_owned();
        let stop = CancellationToken::new();
        let served = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(stop).await.unwrap() }
        });
        Self {
            dir,
            url,
            pin,
            token,
            stop,
            served,
        }
    }

    async fn stop(self) -> TempDir {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.served)
            .await
            .unwrap()
            .unwrap();
        self.dir
    }

    async fn admin(&self) -> Admin {
        self.admin_with(&self.token).await
    }

    async fn admin_with(&self, token: &str) -> Admin {
        let channel = dial::dial(&self.url, &self.pin, None).await.unwrap();
        Admin {
            client: AdminClient::new(channel),
            token: token.to_owned(),
        }
    }

    async fn stranger(&self) -> NodeClient<Channel> {
        NodeClient::new(dial::dial(&self.url, &self.pin, None).await.unwrap())
    }

    async fn invite(&self, role: &str, node: &str) -> String {
        let asked = pb::InviteNodeRequest {
            roles: vec![role.to_owned()],
            region: "eu".to_owned(),
            node: node.to_owned(),
            ttl_s: 0,
        };
        self.admin()
            .await
            .call(asked, |mut c, r| async move { c.invite_node(r).await })
            .await
            .unwrap()
            .token
    }

    async fn enroll(&self, role: &str, node: &str) -> Identity {
        let invite = self.invite(role, node).await;
        let (key, csr) = request();
        let enrolled = self
            .stranger()
            .await
            .enroll(enrolment(&invite, &csr, ""))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            (enrolled.node.as_str(), enrolled.region.as_str()),
            (node, "eu")
        );
        Identity::new(&enrolled, &key)
    }

    async fn node(&self, identity: &Identity) -> NodeClient<Channel> {
        let certificate = (identity.chain.clone(), identity.key.clone_key());
        NodeClient::new(
            dial::dial(&self.url, &self.pin, Some(certificate))
                .await
                .unwrap(),
        )
    }
}

struct Admin {
    client: AdminClient<Channel>,
    token: String,
}

impl Admin {
    async fn call<T, R, F>(
        &self,
        asked: T,
        call: impl FnOnce(AdminClient<Channel>, Request<T>) -> F,
    ) -> Result<R, Status>
    where
        F: Future<Output = Result<tonic::Response<R>, Status>>,
    {
        let mut request = Request::new(asked);
        request.metadata_mut().insert(
            "authorization",
            format!("Bearer {}", self.token).parse().unwrap(),
        );
        call(self.client.clone(), request)
            .await
            .map(tonic::Response::into_inner)
    }

    async fn apply(&self, plan: pb::Plan, prune: bool) -> Result<pb::ApplyResponse, Status> {
        let asked = pb::ApplyRequest {
            plan: Some(plan),
            prune,
            ..pb::ApplyRequest::default()
        };
        self.call(asked, |mut c, r| async move { c.apply(r).await })
            .await
    }

    async fn create_key(&self) -> pb::CreatedKey {
        let asked = pb::KeySpec {
            account: "acme".to_owned(),
            ..pb::KeySpec::default()
        };
        self.call(asked, |mut c, r| async move { c.create_key(r).await })
            .await
            .unwrap()
    }

    async fn set_key(&self, id: &str, disabled: bool) {
        let asked = pb::SetKeyStateRequest {
            id: id.to_owned(),
            disabled,
        };
        self.call(asked, |mut c, r| async move { c.set_key_state(r).await })
            .await
            .unwrap();
    }
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    fn new(enrolled: &pb::EnrollResponse, key: &rcgen::KeyPair) -> Self {
        let chain = enrolled
            .certificate_chain
            .iter()
            .map(|der| CertificateDer::from(der.to_vec()))
            .collect();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Self { chain, key }
    }
}

fn request() -> (rcgen::KeyPair, Vec<u8>) {
    let key = rcgen::KeyPair::generate().unwrap();
    // Names of a request are wishes, and wishes are ignored.
    let params = rcgen::CertificateParams::new(["vector-control".to_owned()]).unwrap();
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    (key, csr)
}

fn enrolment(invite: &str, csr: &[u8], node: &str) -> pb::EnrollRequest {
    pb::EnrollRequest {
        invite: invite.to_owned(),
        csr: csr.to_vec().into(),
        node: node.to_owned(),
    }
}

fn plan() -> pb::Plan {
    let upstream = pb::Upstream {
        provider: "openai".to_owned(),
        weight: 1,
        ..pb::Upstream::default()
    };
    pb::Plan {
        providers: vec![pb::ProviderSpec {
            name: "openai".to_owned(),
            kind: "openai".to_owned(),
            base_url: "https://api.openai.com/v1/".to_owned(),
            ..pb::ProviderSpec::default()
        }],
        credentials: vec![pb::CredentialSpec {
            name: "openai-1".to_owned(),
            provider: "openai".to_owned(),
            secret: "sk-proj-very-secret-canary".to_owned(),
            weight: 1,
            ..pb::CredentialSpec::default()
        }],
        models: vec![pb::ModelSpec {
            name: "*".to_owned(),
            upstreams: vec![upstream],
            ..pb::ModelSpec::default()
        }],
        default_routes: vec![],
        accounts: vec![pb::AccountSpec {
            name: "acme".to_owned(),
            ..pb::AccountSpec::default()
        }],
    }
}

/// An open Sync stream.
struct Stream {
    up: mpsc::Sender<pb::NodeEvent>,
    down: Streaming<pb::ControlEvent>,
}

impl Stream {
    async fn open(client: &mut NodeClient<Channel>, revision: u64) -> Self {
        let (up, events) = mpsc::channel(8);
        let register = pb::Register {
            epoch: 7,
            revision,
            tunnel_addresses: vec!["127.0.0.1:7440".to_owned()],
            ..pb::Register::default()
        };
        let stream = Self::send(&up, node_event::Event::Register(register));
        stream.await;
        let down = client
            .sync(ReceiverStream::new(events))
            .await
            .unwrap()
            .into_inner();
        Self { up, down }
    }

    async fn send(up: &mpsc::Sender<pb::NodeEvent>, event: node_event::Event) {
        up.send(pb::NodeEvent { event: Some(event) }).await.unwrap();
    }

    /// The first event that `wanted` takes.
    async fn until<T>(&mut self, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
        let search = async {
            loop {
                let event = self
                    .down
                    .message()
                    .await
                    .unwrap()
                    .expect("the stream is open");
                if let Some(found) = event.event.and_then(&mut wanted) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, search)
            .await
            .expect("the event comes")
    }

    async fn snapshot(&mut self, good: impl Fn(&pb::Snapshot) -> bool) -> pb::Snapshot {
        self.until(|event| match event {
            Event::Snapshot(snapshot) if good(&snapshot) => Some(snapshot),
            _ => None,
        })
        .await
    }

    async fn ended(mut self) {
        let end = async { while let Ok(Some(_)) = self.down.message().await {} };
        tokio::time::timeout(PATIENCE, end)
            .await
            .expect("the stream ends");
    }
}

fn serves(snapshot: &pb::Snapshot, egress: &str) -> bool {
    snapshot
        .providers
        .iter()
        .any(|provider| provider.egress.iter().any(|id| id == egress))
}

fn admit_request(key: &str) -> pb::AdmitRequest {
    let key = ApiKey::parse(key).unwrap();
    pb::AdmitRequest {
        key: key.id().to_owned(),
        digest: digest(&SHA256, key.reveal().as_bytes())
            .as_ref()
            .to_vec()
            .into(),
    }
}

#[tokio::test]
async fn an_invite_makes_one_node_and_no_second() {
    let control = Control::start().await;
    let invite = control.invite("egress", "").await;
    let (key, csr) = request();
    let mut stranger = control.stranger().await;
    let bad_csr = stranger
        .enroll(enrolment(&invite, b"nonsense", "e-1"))
        .await
        .unwrap_err();
    assert_eq!(
        bad_csr.code(),
        Code::InvalidArgument,
        "and the invite is still good"
    );
    let enrolled = stranger
        .enroll(enrolment(&invite, &csr, "e-1"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(enrolled.roles, ["egress"]);
    let reused = stranger
        .enroll(enrolment(&invite, &csr, "e-2"))
        .await
        .unwrap_err();
    assert_eq!(reused.code(), Code::PermissionDenied);
    let made_up = stranger
        .enroll(enrolment("vinv_nonsense", &csr, ""))
        .await
        .unwrap_err();
    assert_eq!(made_up.code(), Code::PermissionDenied);

    let other = control.invite("egress", "").await;
    let taken = stranger
        .enroll(enrolment(&other, &csr, "e-1"))
        .await
        .unwrap_err();
    assert_eq!(
        taken.code(),
        Code::FailedPrecondition,
        "a name is not taken over: {taken}"
    );
    let bound = control.invite("egress", "e-1").await;
    let elsewhere = stranger
        .enroll(enrolment(&bound, &csr, "e-9"))
        .await
        .unwrap_err();
    assert_eq!(elsewhere.code(), Code::PermissionDenied);

    let mut node = control.node(&Identity::new(&enrolled, &key)).await;
    let (_, csr) = request();
    let renewed = node
        .renew(pb::RenewRequest { csr: csr.into() })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(renewed.node, "e-1");
    control.stop().await;
}

#[tokio::test]
async fn roles_say_who_may_call_what() {
    let control = Control::start().await;
    control.admin().await.apply(plan(), false).await.unwrap();
    let mut stranger = control.stranger().await;
    let (_, csr) = request();
    let nobody = stranger
        .renew(pb::RenewRequest { csr: csr.into() })
        .await
        .unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    let nobody = stranger
        .admit(pb::AdmitRequest::default())
        .await
        .unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);

    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let refused = egress.admit(pb::AdmitRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = egress
        .locate(pb::LocateRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = ingress
        .record(pb::RecordRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let by_node = AdminClient::new(dial::dial(&control.url, &control.pin, None).await.unwrap());
    let refused = by_node
        .clone()
        .status(pb::StatusRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let wrong = control.admin_with("vadm_0000").await;
    let refused = wrong
        .call(
            pb::StatusRequest {},
            |mut c, r| async move { c.status(r).await },
        )
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let gone = pb::NameRequest {
        name: "i-1".to_owned(),
    };
    let admin = control.admin().await;
    let stream = Stream::open(&mut ingress, 0).await;
    admin
        .call(gone, |mut c, r| async move { c.remove_node(r).await })
        .await
        .unwrap();
    stream.ended().await;
    let refused = ingress
        .admit(pb::AdmitRequest::default())
        .await
        .unwrap_err();
    assert_eq!(
        refused.code(),
        Code::Unauthenticated,
        "its certificate is worth nothing any more"
    );
    control.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_network_is_refused() {
    let (control, other) = (Control::start().await, Control::start().await);
    let foreign = other.enroll("ingress", "i-1").await;
    control.enroll("ingress", "i-1").await;
    let certificate = (foreign.chain.clone(), foreign.key.clone_key());
    let refused = match dial::dial(&control.url, &control.pin, Some(certificate)).await {
        Err(_) => true,
        // In TLS 1.3 a client learns that its certificate is refused only afterwards.
        Ok(channel) => NodeClient::new(channel)
            .admit(pb::AdmitRequest::default())
            .await
            .is_err(),
    };
    assert!(refused);
    let wrong_pin = dial::dial(&control.url, &other.pin, None)
        .await
        .unwrap_err();
    assert!(
        matches!(wrong_pin, dial::Error::WrongPin { .. }),
        "{wrong_pin}"
    );
    control.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn applying_twice_changes_once_and_faults_change_nothing() {
    let control = Control::start().await;
    let admin = control.admin().await;
    let first = admin.apply(plan(), false).await.unwrap();
    assert_eq!(first.changes.len(), 4);
    let second = admin.apply(plan(), true).await.unwrap();
    assert_eq!(second.changes, [], "the second time there is nothing to do");
    assert_eq!(second.revision, first.revision);

    let mut bad = plan();
    bad.providers[0].base_url = "http://example.com/?key=1".to_owned();
    bad.models[0].upstreams[0].provider = "nobody".to_owned();
    bad.accounts[0].time_zone = "Mars/Olympus".to_owned();
    let refused = admin.apply(bad, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    for field in [
        "providers[openai].base_url",
        "models[*].upstreams[0].provider",
        "accounts[acme].time_zone",
    ] {
        assert!(
            refused.message().contains(field),
            "{field} is missing in: {refused}"
        );
    }

    let mut less = plan();
    less.models.clear();
    let pruned = admin.apply(less.clone(), true).await.unwrap();
    assert_eq!(
        (pruned.changes.len(), pruned.changes[0].action.as_str()),
        (1, "remove")
    );
    let stale = pb::ApplyRequest {
        plan: Some(plan()),
        base_revision: first.revision,
        ..pb::ApplyRequest::default()
    };
    let conflict = admin
        .call(stale, |mut c, r| async move { c.apply(r).await })
        .await
        .unwrap_err();
    assert_eq!(
        conflict.code(),
        Code::Aborted,
        "two operators at once are told"
    );

    less.credentials[0].secret = "sk-another-secret".to_owned();
    let changed = admin.apply(less, false).await.unwrap();
    assert_eq!(changed.changes[0].details, ["secret: changed"]);
    let in_use = pb::NameRequest {
        name: "openai".to_owned(),
    };
    let refused = admin
        .call(in_use, |mut c, r| async move { c.remove_provider(r).await })
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("credentials[openai-1].provider"),
        "{refused}"
    );
    control.stop().await;
}

#[tokio::test]
async fn nodes_hear_of_everything_and_credentials_go_to_egress_only() {
    let control = Control::start().await;
    control.admin().await.apply(plan(), false).await.unwrap();
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let mut at_ingress = Stream::open(&mut ingress, 0).await;
    let mut at_egress = Stream::open(&mut egress, 0).await;
    let credentials = at_egress
        .until(|event| match event {
            Event::Credentials(credentials) if !credentials.credentials.is_empty() => {
                Some(credentials)
            }
            _ => None,
        })
        .await;
    assert_eq!(
        credentials.credentials[0].secret,
        "sk-proj-very-secret-canary"
    );
    let snapshot = at_ingress
        .until(|event| match event {
            Event::Credentials(_) => panic!("an ingress never gets credentials"),
            Event::Snapshot(snapshot) if serves(&snapshot, "e-1") && !snapshot.paths.is_empty() => {
                Some(snapshot)
            }
            _ => None,
        })
        .await;
    let bare = pb::Snapshot {
        digest: Default::default(),
        ..snapshot.clone()
    };
    assert_eq!(
        &snapshot.digest[..],
        digest(&SHA256, &bare.encode_to_vec()).as_ref()
    );
    assert_eq!(snapshot.providers[0].base_url, "https://api.openai.com/v1");

    let rejected = pb::Rejected {
        revision: snapshot.revision,
        reason: "because".to_owned(),
        kept: 0,
    };
    Stream::send(&at_ingress.up, node_event::Event::Rejected(rejected)).await;
    let drain = pb::DrainNodeRequest {
        node: "e-1".to_owned(),
        on: true,
    };
    let admin = control.admin().await;
    admin
        .call(drain, |mut c, r| async move { c.drain_node(r).await })
        .await
        .unwrap();
    at_egress
        .until(|event| matches!(event, Event::Drain(pb::Drain { on: true })).then_some(()))
        .await;
    let draining = at_ingress
        .snapshot(|snapshot| snapshot.nodes.iter().any(|node| node.draining))
        .await;
    assert!(serves(&draining, "e-1"), "a draining node stays listed");
    assert!(draining.revision > snapshot.revision);

    let stored = std::fs::read(control.dir.path().join("control.sqlite")).unwrap();
    let log = std::fs::read(control.dir.path().join("control.sqlite-wal")).unwrap_or_default();
    let canary = b"very-secret-canary";
    let clear = [stored, log]
        .iter()
        .any(|bytes| bytes.windows(canary.len()).any(|part| part == canary));
    assert!(!clear, "no credential lies on disk in clear");
    control.stop().await;
}

#[tokio::test]
async fn a_key_that_is_switched_off_is_told_before_the_command_returns() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(plan(), false).await.unwrap();
    let created = admin.create_key().await;
    let id = created.key.unwrap().id;
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let mut stream = Stream::open(&mut ingress, 0).await;
    stream
        .until(|event| matches!(event, Event::KeysChanged(_)).then_some(()))
        .await;

    let asked = admit_request(&created.secret);
    let granted = ingress.admit(asked.clone()).await.unwrap().into_inner();
    assert_eq!(granted.policy.unwrap().account, "acme");
    let mut wrong = asked.clone();
    wrong.digest = vec![0; 32].into();
    assert_eq!(
        ingress.admit(wrong).await.unwrap().into_inner().refusal,
        "invalid_api_key"
    );
    let unknown = admit_request(&ApiKey::assemble(
        "0123456789",
        &"x".repeat(ApiKey::SECRET_CHARS),
    ));
    assert_eq!(
        ingress.admit(unknown).await.unwrap().into_inner().refusal,
        "invalid_api_key"
    );

    admin.set_key(&id, true).await;
    let changed = stream.until(|event| match event {
        Event::KeysChanged(changed) => Some(changed),
        _ => None,
    });
    assert_eq!(changed.await.keys, std::slice::from_ref(&id));
    assert_eq!(
        ingress
            .admit(asked.clone())
            .await
            .unwrap()
            .into_inner()
            .refusal,
        "api_key_disabled"
    );
    admin.set_key(&id, false).await;
    assert!(
        ingress
            .admit(asked.clone())
            .await
            .unwrap()
            .into_inner()
            .policy
            .is_some()
    );

    let off = pb::AccountSpec {
        name: "acme".to_owned(),
        disabled: true,
        ..pb::AccountSpec::default()
    };
    admin
        .call(off, |mut c, r| async move { c.put_account(r).await })
        .await
        .unwrap();
    assert_eq!(
        ingress.admit(asked).await.unwrap().into_inner().refusal,
        "api_key_disabled"
    );
    control.stop().await;
}

#[tokio::test]
async fn usage_counts_each_exchange_once() {
    let control = Control::start().await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let record = |number: u8| pb::UsageRecord {
        exchange: vec![number; 16].into(),
        account: "acme".to_owned(),
        ended_unix_ms: u64::from(number),
        usage: Some(vector_proto::tunnel::v1::Usage {
            input_tokens: 10,
            ..Default::default()
        }),
        ..pb::UsageRecord::default()
    };
    for _ in 0..2 {
        let batch = pb::RecordRequest {
            epoch: 1,
            seq: 5,
            records: vec![record(1), record(2), record(3)],
        };
        assert_eq!(egress.record(batch).await.unwrap().into_inner().seq, 5);
    }
    let admin = control.admin().await;
    let mut asked = pb::ListUsageRequest {
        page_size: 2,
        ..pb::ListUsageRequest::default()
    };
    let page = admin
        .call(
            asked.clone(),
            |mut c, r| async move { c.list_usage(r).await },
        )
        .await
        .unwrap();
    assert_eq!((page.exchanges, page.total.unwrap().input_tokens), (3, 30));
    assert_eq!(
        (page.records.len(), page.records[0].ended_unix_ms),
        (2, 3),
        "newest first"
    );
    assert_eq!(page.records[0].egress, "e-1", "an egress speaks for itself");
    asked.page_token = page.next_page_token;
    let rest = admin
        .call(asked, |mut c, r| async move { c.list_usage(r).await })
        .await
        .unwrap();
    assert_eq!((rest.records.len(), rest.next_page_token.as_str()), (1, ""));

    control.stop().await;
}

#[tokio::test]
async fn an_object_is_found_by_its_account_even_when_asked_for_early() {
    let control = Control::start().await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let stream = Stream::open(&mut egress, 0).await;
    let object = pb::Object {
        id: "file-1".to_owned(),
        account: "acme".to_owned(),
        provider: "openai".to_owned(),
        ..pb::Object::default()
    };
    let made = pb::ObjectsMade {
        objects: vec![object],
    };
    let wanted = pb::LocateRequest {
        account: "acme".to_owned(),
        object: "file-1".to_owned(),
    };
    // Asked before it is told: the answer waits.
    let (located, ()) = tokio::join!(
        ingress.locate(wanted.clone()),
        Stream::send(&stream.up, node_event::Event::ObjectsMade(made))
    );
    assert_eq!(
        located.unwrap().into_inner().object.unwrap().provider,
        "openai"
    );
    let others = pb::LocateRequest {
        account: "other".to_owned(),
        ..wanted
    };
    assert!(!ingress.locate(others).await.unwrap().into_inner().found);
    control.stop().await;
}

#[tokio::test]
async fn an_idempotency_key_is_one_exchanges_whichever_ingress_asks_and_after_a_restart() {
    let control = Control::start().await;
    let mut egress = control.node(&control.enroll("egress", "e-1").await).await;
    let mut ingress = control.node(&control.enroll("ingress", "i-1").await).await;
    let second = control.enroll("ingress", "i-2").await;
    let mut other = control.node(&second).await;
    let asked = |exchange: u8, print: u8| pb::ClaimRequest {
        account: "acme".to_owned(),
        key: vec![7; 32].into(),
        print: vec![print; 32].into(),
        exchange: vec![exchange; 16].into(),
    };
    let refused = egress.claim(asked(1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let short = pb::ClaimRequest {
        print: vec![1; 31].into(),
        ..asked(1, 1)
    };
    let refused = ingress.claim(short).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let first = ingress.claim(asked(1, 1)).await.unwrap().into_inner();
    assert_eq!(first.outcome(), pb::ClaimOutcome::Fresh);
    let settled = pb::SettleRequest {
        account: "acme".to_owned(),
        key: vec![7; 32].into(),
        exchange: vec![1; 16].into(),
        egress: "e-1".to_owned(),
    };
    ingress.settle(settled).await.unwrap();
    let again = other.claim(asked(2, 1)).await.unwrap().into_inner();
    assert_eq!(again.outcome(), pb::ClaimOutcome::Taken);
    assert_eq!(
        (again.exchange.as_ref(), again.egress.as_str()),
        (&[1; 16][..], "e-1")
    );
    let another = other.claim(asked(2, 9)).await.unwrap().into_inner();
    assert_eq!(another.outcome(), pb::ClaimOutcome::Conflict);

    let control = Control::start_in(control.stop().await).await;
    let mut ingress = control.node(&second).await;
    let recalled = |account: &str| pb::RecallRequest {
        account: account.to_owned(),
        exchange: vec![1; 16].into(),
    };
    let found = ingress.recall(recalled("acme")).await.unwrap().into_inner();
    assert_eq!((found.found, found.egress.as_str()), (true, "e-1"));
    let foreign = ingress.recall(recalled("other")).await.unwrap();
    assert!(!foreign.into_inner().found);
    control.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let control = Control::start().await;
    let admin = control.admin().await;
    admin.apply(plan(), false).await.unwrap();
    let created = admin.create_key().await;
    let (i, e) = (
        control.enroll("ingress", "i-1").await,
        control.enroll("egress", "e-1").await,
    );
    let mut egress = Stream::open(&mut control.node(&e).await, 0).await;
    let before = egress.snapshot(|snapshot| serves(snapshot, "e-1")).await;
    let (pin, token) = (control.pin.clone(), control.token.clone());
    let dir = control.stop().await;

    let control = Control::start_in(dir).await;
    assert_eq!((&control.pin, &control.token), (&pin, &token));
    assert_eq!(
        control
            .admin()
            .await
            .apply(plan(), true)
            .await
            .unwrap()
            .changes,
        []
    );
    let mut ingress = control.node(&i).await;
    assert!(
        ingress
            .admit(admit_request(&created.secret))
            .await
            .unwrap()
            .into_inner()
            .policy
            .is_some()
    );
    let mut stream = Stream::open(&mut ingress, 0).await;
    let after = stream.snapshot(|_| true).await;
    assert!(after.revision >= before.revision, "revisions never go back");
    assert!(
        serves(&after, "e-1"),
        "a restart of control takes nobody out of use"
    );
    control.stop().await;
}

#[tokio::test]
async fn reflection_and_health_are_for_everybody() {
    let control = Control::start().await;
    let channel = dial::dial(&control.url, &control.pin, None).await.unwrap();
    let asked = tonic_health::pb::HealthCheckRequest {
        service: "vector.control.v1.Node".to_owned(),
    };
    let health = tonic_health::pb::health_client::HealthClient::new(channel.clone())
        .check(asked)
        .await
        .unwrap();
    assert_eq!(health.into_inner().status, 1);
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([list]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("a list of services");
    };
    let names: Vec<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(
        names.contains(&"vector.control.v1.Admin".to_owned()),
        "{names:?}"
    );
    control.stop().await;
}
