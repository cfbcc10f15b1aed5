//! What nodes ask: certificates, keys, objects, claims; and where they bring usage.

use std::time::Duration;

use bytes::Bytes;
use tonic::{Request, Response, Status, Streaming};
use vector_proto::control::v1::{
    AdmitRequest, AdmitResponse, ClaimOutcome, ClaimRequest, ClaimResponse, EnrollRequest,
    EnrollResponse, LocateRequest, LocateResponse, NodeEvent, RecallRequest, RecallResponse,
    RecordRequest, RecordResponse, RenewRequest, Roots, SettleRequest, SettleResponse,
    node_server::Node,
};

use super::{Rooms, sync, unix_ms, unix_now};
use crate::{
    identity::{Peer, Role, Signing},
    ledger::{Claim, Claimed, Located},
    registry::{Admission, Enrolment, NodeSpec},
    telemetry::Outcome,
};

/// Longest name or secret in a request; nobody of ours sends longer ones.
const TEXT_BYTES_MAX: usize = 1_024;

/// Largest signing request.
const CSR_BYTES_MAX: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Nodes {
    rooms: Rooms,
}

impl Nodes {
    pub(super) fn new(rooms: Rooms) -> Self {
        Self { rooms }
    }

    /// A certificate from our own record of the node.
    fn issue(&self, spec: NodeSpec, csr: &[u8]) -> Result<EnrollResponse, Status> {
        let damaged =
            || Status::data_loss(format!("the record of node `{}` cannot be read", spec.id));
        let roles: Result<Vec<Role>, _> = spec.roles.iter().map(|role| role.parse()).collect();
        let peer = Peer {
            id: spec.id.parse().map_err(|_| damaged())?,
            roles: roles.map_err(|_| damaged())?,
        };
        let authority = &self.rooms.authority;
        // Never one of before its enrolment, whatever this replica's clock says.
        let at = unix_now().max(Duration::from_millis(spec.enrolled_unix_ms));
        let chain = authority.node_leaf(csr, &peer, at)?;
        let signing = authority.signing();
        Ok(EnrollResponse {
            node: spec.id,
            region: spec.region,
            roles: spec.roles,
            certificate_chain: chain.iter().map(|der| der.to_vec().into()).collect(),
            roots: ders(&signing),
            trust_domain: authority.trust_domain().to_owned(),
            roots_generation: generation(&signing),
        })
    }
}

#[tonic::async_trait]
impl Node for Nodes {
    async fn enroll(
        &self,
        request: Request<EnrollRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let asked = request.into_inner();
        if asked.invite.len() > TEXT_BYTES_MAX
            || asked.node.len() > TEXT_BYTES_MAX
            || asked.csr.len() > CSR_BYTES_MAX
        {
            return Err(Status::invalid_argument("the request is absurdly large"));
        }
        // The request must be good before the invite is used up.
        self.rooms.authority.check_request(&asked.csr)?;
        // People paste the whole line; the pin behind the secret is theirs to check, not ours.
        let invite = asked.invite.strip_prefix("vinv_").unwrap_or(&asked.invite);
        let secret = invite.split_once('.').map_or(invite, |(secret, _)| secret);
        let spec = self
            .rooms
            .registry
            .enroll(Enrolment {
                secret,
                node: &asked.node,
                csr: &asked.csr,
                now_unix_ms: unix_ms(),
            })
            .await?;
        // A new key for an existing node: whoever holds the old one is not it any more.
        self.rooms.fleet.dismiss(&spec.id);
        self.rooms.metrics.enrolments.inc();
        tracing::info!(
            node.id = spec.id,
            node.region = spec.region,
            node.roles = spec.roles.join("+"),
            "node enrolled"
        );
        self.issue(spec, &asked.csr).map(Response::new)
    }

    async fn renew(
        &self,
        request: Request<RenewRequest>,
    ) -> Result<Response<EnrollResponse>, Status> {
        let peer = self.rooms.node_to_renew(&request).await?;
        let asked = request.into_inner();
        if asked.csr.len() > CSR_BYTES_MAX {
            return Err(Status::invalid_argument("the request is absurdly large"));
        }
        let spec = self.rooms.registry.node(peer.id.as_str()).await?;
        tracing::info!(node.id = spec.id, "certificate renewed");
        self.issue(spec, &asked.csr).map(Response::new)
    }

    type SyncStream = sync::Events;

    async fn sync(
        &self,
        request: Request<Streaming<NodeEvent>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let peer = self.rooms.node(&request).await?;
        let events = sync::open(self.rooms.clone(), peer, request.into_inner()).await?;
        Ok(Response::new(events))
    }

    async fn admit(
        &self,
        request: Request<AdmitRequest>,
    ) -> Result<Response<AdmitResponse>, Status> {
        self.rooms.node_as(&request, Role::Ingress).await?;
        let asked = request.into_inner();
        let admission = self
            .rooms
            .registry
            .admit(&asked.key, &asked.digest, unix_ms())
            .await?;
        let (outcome, response) = match admission {
            Admission::Granted(policy) => (
                "granted".to_owned(),
                AdmitResponse {
                    policy: Some(policy),
                    refusal: String::new(),
                },
            ),
            Admission::Refused(code) => (
                code.to_string(),
                AdmitResponse {
                    policy: None,
                    refusal: code.to_string(),
                },
            ),
        };
        self.rooms
            .metrics
            .admissions
            .get_or_create(&Outcome { outcome })
            .inc();
        Ok(Response::new(response))
    }

    async fn locate(
        &self,
        request: Request<LocateRequest>,
    ) -> Result<Response<LocateResponse>, Status> {
        self.rooms.node_as(&request, Role::Ingress).await?;
        let asked = request.into_inner();
        let located = self
            .rooms
            .ledger
            .locate(&asked.account, &asked.object)
            .await?;
        Ok(Response::new(match located {
            Located::Own(object) => LocateResponse {
                object: Some(object),
                found: true,
                foreign: false,
            },
            Located::Foreign => LocateResponse {
                foreign: true,
                ..LocateResponse::default()
            },
            Located::Unknown => LocateResponse::default(),
        }))
    }

    async fn claim(
        &self,
        request: Request<ClaimRequest>,
    ) -> Result<Response<ClaimResponse>, Status> {
        self.rooms.node_as(&request, Role::Ingress).await?;
        let asked = request.into_inner();
        let claim = Claim {
            account: asked.account,
            key: sized(&asked.key)?,
            print: sized(&asked.print)?,
            exchange: sized(&asked.exchange)?,
            now_unix_ms: unix_ms(),
        };
        let plain = |outcome: ClaimOutcome| ClaimResponse {
            outcome: outcome.into(),
            ..ClaimResponse::default()
        };
        Ok(Response::new(
            match self.rooms.ledger.claim(claim).await? {
                Claimed::Fresh => plain(ClaimOutcome::Fresh),
                Claimed::Conflict => plain(ClaimOutcome::Conflict),
                Claimed::Full => plain(ClaimOutcome::Full),
                Claimed::Taken {
                    exchange,
                    egress,
                    age_ms,
                } => ClaimResponse {
                    exchange: exchange.to_vec().into(),
                    egress,
                    age_ms,
                    ..plain(ClaimOutcome::Taken)
                },
            },
        ))
    }

    async fn settle(
        &self,
        request: Request<SettleRequest>,
    ) -> Result<Response<SettleResponse>, Status> {
        self.rooms.node_as(&request, Role::Ingress).await?;
        let asked = request.into_inner();
        let (key, exchange) = (sized(&asked.key)?, sized(&asked.exchange)?);
        let ledger = &self.rooms.ledger;
        ledger
            .settle(asked.account, key, exchange, asked.egress)
            .await?;
        Ok(Response::new(SettleResponse {}))
    }

    async fn recall(
        &self,
        request: Request<RecallRequest>,
    ) -> Result<Response<RecallResponse>, Status> {
        self.rooms.node_as(&request, Role::Ingress).await?;
        let asked = request.into_inner();
        let exchange = sized(&asked.exchange)?;
        let egress = self.rooms.ledger.recall(asked.account, exchange).await?;
        Ok(Response::new(RecallResponse {
            found: egress.is_some(),
            egress: egress.unwrap_or_default(),
        }))
    }

    async fn record(
        &self,
        request: Request<RecordRequest>,
    ) -> Result<Response<RecordResponse>, Status> {
        let peer = self.rooms.node_as(&request, Role::Egress).await?;
        let mut batch = request.into_inner();
        for record in &mut batch.records {
            // An egress speaks for itself only.
            peer.id.as_str().clone_into(&mut record.egress);
        }
        self.rooms
            .metrics
            .usage_records
            .inc_by(batch.records.len() as u64);
        let refused = self.rooms.ledger.record(batch.records).await?;
        Ok(Response::new(RecordResponse {
            seq: batch.seq,
            refused: sync::refused(&refused),
        }))
    }
}

/// What a node is told of the roots.
pub(super) fn roots(signing: &Signing) -> Roots {
    Roots {
        roots: ders(signing),
        generation: generation(signing),
        signing: signing.of_nodes().facts().pin.clone(),
    }
}

fn ders(signing: &Signing) -> Vec<Bytes> {
    signing
        .roots()
        .map(|root| root.certificate().to_vec().into())
        .collect()
}

fn generation(signing: &Signing) -> u64 {
    u64::try_from(signing.generation).unwrap_or_default()
}

/// Bytes of a fixed length.
fn sized<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Status> {
    bytes
        .try_into()
        .map_err(|_| Status::invalid_argument("an id or a hash has another length"))
}
