//! Control over real sockets: who may do what, what nodes hear, and what a restart keeps.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test that cannot set itself up fails"
)]

mod backup;

mod deltas;

mod identity;

mod keys;

mod ledger;

mod malformed;

mod operators;

mod replicas;

mod rollout;

mod rotation;

mod staged;

mod words;

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
        let token = dir.path().join("admin.token");
        Self::try_start_in(dir, "", &token).await.unwrap()
    }

    /// With more settings, and the operator's token in a file that need not be its own.
    async fn try_start_in(
        dir: TempDir,
        settings: &str,
        token: &std::path::Path,
    ) -> Result<Self, (TempDir, vector_control::server::Error)> {
        Self::try_start_with(dir, "", settings, token).await
    }

    /// With more settings of `[control]`, too.
    async fn try_start_with(
        dir: TempDir,
        own: &str,
        settings: &str,
        token: &std::path::Path,
    ) -> Result<Self, (TempDir, vector_control::server::Error)> {
        let own = match own {
            "" => "rollout_pause_ms = 0",
            own => own,
        };
        let text = format!(
            "[control]\nlisten = \"127.0.0.1:0\"\ndata_dir = {:?}\n{own}\n[admin]\nlisten = \"127.0.0.1:0\"\n{settings}",
            dir.path()
        );
        let server = match Server::bind(&Config::read(&text, &|_| None).unwrap()).await {
            Ok(server) => server,
            Err(error) => return Err((dir, error)),
        };
        let url = format!("https://{}", server.address().unwrap());
        let pin = server.pin();
        let token = std::fs::read_to_string(token).unwrap().trim().to_owned();
        let stop = CancellationToken::new();
        let served = tokio::spawn({
            let stop = stop.clone();
            async move { server.serve(stop).await.unwrap() }
        });
        Ok(Self {
            dir,
            url,
            pin,
            token,
            stop,
            served,
        })
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
            force: false,
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
    /// Losses are meant.
    force: bool,
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
        if self.force {
            let metadata = request.metadata_mut();
            metadata.insert("vector-force", "true".parse().unwrap());
        }
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

    async fn set_key(&self, id: &str, disabled: bool) -> pb::KeyView {
        let asked = pb::SetKeyStateRequest {
            id: id.to_owned(),
            disabled,
            ask_only: false,
        };
        self.call(asked, |mut c, r| async move { c.set_key_state(r).await })
            .await
            .unwrap()
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
        let register = pb::Register {
            epoch: 7,
            revision,
            tunnel_addresses: vec!["127.0.0.1:7440".to_owned()],
            ..pb::Register::default()
        };
        Self::open_as(client, register).await
    }

    async fn open_as(client: &mut NodeClient<Channel>, register: pb::Register) -> Self {
        let (up, events) = mpsc::channel(8);
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
