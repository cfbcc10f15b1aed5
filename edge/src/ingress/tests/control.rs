//! A made-up control: a snapshot on disk, and a gRPC server that knows a few keys.

use std::{
    collections::{HashMap, hash_map::Entry},
    pin::Pin,
};

use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::Notify;
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Endpoint};
use vector_proto::control::v1::{
    self as v1c,
    node_server::{Node, NodeServer},
};

use super::*;
use crate::{
    control_plane::{ControlPlane, Registration, Service, snapshot},
    identity::StateKeys,
};

pub(super) struct Control {
    pub(super) plane: ControlPlane,
    /// Told of each idempotency key that is given back.
    pub(super) freed: Arc<Notify>,
    /// Told of each that is taken.
    pub(super) taken: Arc<Notify>,
    /// No claim is answered while this is locked.
    pub(super) answers: Arc<tokio::sync::Mutex<()>>,
    _service: Service,
    _state: tempfile::TempDir,
}

struct Keys {
    keys: HashMap<[u8; 32], KeyPolicy>,
    claims: Mutex<Claims>,
    freed: Arc<Notify>,
    taken: Arc<Notify>,
    answers: Arc<tokio::sync::Mutex<()>>,
}

/// By account and key: the request's hash, its exchange, and its egress.
type Claims = HashMap<(String, Vec<u8>), (Vec<u8>, Vec<u8>, String)>;

/// Every model goes to one provider, and one to another as well; all of `egress` reach both.
fn snapshot_of(egress: &[&str]) -> v1c::Snapshot {
    let names: Vec<String> = egress.iter().map(|name| (*name).to_owned()).collect();
    let node = |id: &String| v1c::NodeRecord {
        id: id.clone(),
        roles: vec!["egress".into()],
        ..v1c::NodeRecord::default()
    };
    let upstream = |provider: &str, model: &str| v1c::Upstream {
        provider: provider.into(),
        model: model.into(),
        ..v1c::Upstream::default()
    };
    let upstreams = |model: &str| vec![upstream("p", model)];
    let model = |name: &str, upstream: &str| v1c::Model {
        name: name.into(),
        owned_by: "us".into(),
        upstreams: upstreams(upstream),
        created_unix_s: 1,
        redundant: name == "public",
    };
    let provider = |name: &str| v1c::Provider {
        name: name.into(),
        kind: "openai".into(),
        base_url: format!("http://{name}/v1"),
        egress: names.clone(),
        ..v1c::Provider::default()
    };
    let wide = v1c::Model {
        upstreams: vec![upstream("p", "echo"), upstream("q", "other")],
        ..model("wide", "")
    };
    let route = |operation: &str| v1c::DefaultRoute {
        operation: operation.into(),
        upstreams: upstreams(""),
        redundant: false,
    };
    let mut snapshot = v1c::Snapshot {
        revision: 1,
        nodes: names.iter().map(node).collect(),
        providers: vec![provider("p"), provider("q")],
        models: vec![
            model("echo", ""),
            model("public", "inner"),
            model("house/voice", "voice"),
            wide,
            model("*", ""),
        ],
        default_routes: vec![
            route("files.create"),
            route("images.generate"),
            route("realtime.calls.create"),
            route("responses.connect"),
            route("chatkit.*"),
        ],
        ..v1c::Snapshot::default()
    };
    let sum = digest::digest(&digest::SHA256, &snapshot.encode_to_vec());
    snapshot.digest = Bytes::copy_from_slice(sum.as_ref());
    snapshot
}

pub(super) async fn start(egress: &[&str], keys: HashMap<[u8; 32], KeyPolicy>) -> Control {
    let state = tempfile::tempdir().unwrap();
    snapshot::save(state.path(), &snapshot_of(egress).encode_to_vec()).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (freed, taken) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let answers = Arc::<tokio::sync::Mutex<()>>::default();
    let server = tonic::transport::Server::builder().add_service(NodeServer::new(Keys {
        keys,
        claims: Mutex::default(),
        freed: Arc::clone(&freed),
        taken: Arc::clone(&taken),
        answers: Arc::clone(&answers),
    }));
    // Ends with the test's runtime.
    TaskTracker::new().spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let channel = Endpoint::from_shared(url).unwrap().connect_lazy();
    let register = v1c::Register {
        region: "eu".into(),
        ..v1c::Register::default()
    };
    let (plane, service) = ControlPlane::new(
        channel,
        Registration {
            register,
            state_dir: state.path().into(),
            keys: StateKeys::of(b"test"),
            keep_credentials: false,
        },
    );
    Control {
        plane,
        freed,
        taken,
        answers,
        _service: service,
        _state: state,
    }
}

type Down = Pin<Box<dyn Stream<Item = Result<v1c::ControlEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Node for Keys {
    type SyncStream = Down;

    async fn admit(
        &self,
        request: Request<v1c::AdmitRequest>,
    ) -> Result<Response<v1c::AdmitResponse>, Status> {
        let digest: Option<[u8; 32]> = request.get_ref().digest.as_ref().try_into().ok();
        let policy = digest.and_then(|digest| self.keys.get(&digest).cloned());
        let refusal = if policy.is_some() {
            String::new()
        } else {
            "invalid_api_key".into()
        };
        Ok(Response::new(v1c::AdmitResponse { policy, refusal }))
    }

    async fn locate(
        &self,
        request: Request<v1c::LocateRequest>,
    ) -> Result<Response<v1c::LocateResponse>, Status> {
        let asked = request.into_inner();
        // Whose an object is stands in its id, and what it was made with.
        let public = asked.object.starts_with("public-");
        let model = if public { "public" } else { "" };
        let by = |kind: &str| asked.object.contains(kind);
        let operation = if by("-thread-") {
            "threads.create_and_run"
        } else {
            "responses.create"
        };
        let object = asked
            .object
            .split_once("-of-")
            .map(|(_, provider)| v1c::Object {
                id: asked.object.clone(),
                account: asked.account.clone(),
                provider: provider.into(),
                credential: format!("{provider}-1"),
                operation: operation.into(),
                model: model.into(),
                told: by("-told-"),
                ..v1c::Object::default()
            });
        Ok(Response::new(v1c::LocateResponse {
            foreign: asked.object.starts_with("foreign"),
            found: object.is_some(),
            object,
        }))
    }

    async fn claim(
        &self,
        request: Request<v1c::ClaimRequest>,
    ) -> Result<Response<v1c::ClaimResponse>, Status> {
        let asked = request.into_inner();
        let key = (asked.account, asked.key.to_vec());
        let plain = |outcome: v1c::ClaimOutcome| v1c::ClaimResponse {
            outcome: outcome.into(),
            ..v1c::ClaimResponse::default()
        };
        let answer = match self.claims.lock().entry(key) {
            Entry::Vacant(place) => {
                place.insert((asked.print.to_vec(), asked.exchange.to_vec(), String::new()));
                self.taken.notify_one();
                plain(v1c::ClaimOutcome::Fresh)
            }
            Entry::Occupied(claim) if claim.get().0 != asked.print => {
                plain(v1c::ClaimOutcome::Conflict)
            }
            Entry::Occupied(claim) => v1c::ClaimResponse {
                exchange: claim.get().1.clone().into(),
                egress: claim.get().2.clone(),
                ..plain(v1c::ClaimOutcome::Taken)
            },
        };
        drop(self.answers.lock().await);
        Ok(Response::new(answer))
    }

    async fn settle(
        &self,
        request: Request<v1c::SettleRequest>,
    ) -> Result<Response<v1c::SettleResponse>, Status> {
        let asked = request.into_inner();
        let mut claims = self.claims.lock();
        let key = (asked.account, asked.key.to_vec());
        if asked.egress.is_empty() {
            claims.remove(&key);
            self.freed.notify_one();
        } else if let Some(claim) = claims.get_mut(&key) {
            claim.2 = asked.egress;
        }
        Ok(Response::new(v1c::SettleResponse {}))
    }

    async fn recall(
        &self,
        request: Request<v1c::RecallRequest>,
    ) -> Result<Response<v1c::RecallResponse>, Status> {
        let asked = request.into_inner();
        let claims = self.claims.lock();
        let found = claims
            .iter()
            .find(|((account, _), claim)| *account == asked.account && claim.1 == asked.exchange);
        Ok(Response::new(v1c::RecallResponse {
            found: found.is_some(),
            egress: found.map(|(_, claim)| claim.2.clone()).unwrap_or_default(),
        }))
    }

    async fn enroll(
        &self,
        _: Request<v1c::EnrollRequest>,
    ) -> Result<Response<v1c::EnrollResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn renew(
        &self,
        _: Request<v1c::RenewRequest>,
    ) -> Result<Response<v1c::EnrollResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn sync(&self, _: Request<Streaming<v1c::NodeEvent>>) -> Result<Response<Down>, Status> {
        Err(Status::unimplemented("not needed here"))
    }

    async fn record(
        &self,
        _: Request<v1c::RecordRequest>,
    ) -> Result<Response<v1c::RecordResponse>, Status> {
        Err(Status::unimplemented("not needed here"))
    }
}
