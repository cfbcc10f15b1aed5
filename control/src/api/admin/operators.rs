//! Makes operators, and tells one who it is.

use std::time::Duration;

use bytes::Bytes;
use ring::digest::{SHA256, digest};
use tonic::Status;
use vector_proto::{control::v1 as pb, id::NodeId};

use super::{super::caller::Caller, Operators, unix_ms};
use crate::{api::unix_now, registry::NewOperator};

/// Largest signing request.
const CSR_BYTES_MAX: usize = 16 << 10;

/// Life of a certificate when nothing is said: 90 days; and the longest.
const CERTIFICATE_TTL_S: u64 = 90 * 86_400;
const CERTIFICATE_TTL_S_MAX: u64 = 5 * 365 * 86_400;

impl Operators {
    /// The caller's own record; `root` has none.
    pub(super) async fn myself(&self, caller: &Caller) -> Result<pb::OperatorView, Status> {
        let all = self.rooms.registry.operators().await?;
        let mine = all
            .into_iter()
            .find(|view| view.name == caller.operator.name);
        Ok(mine.unwrap_or_else(|| pb::OperatorView {
            name: caller.operator.name.clone(),
            role: caller.operator.role.as_str().to_owned(),
            by: "token".to_owned(),
            ..pb::OperatorView::default()
        }))
    }

    pub(super) async fn add(
        &self,
        caller: &Caller,
        mut asked: pb::AddOperatorRequest,
    ) -> Result<pb::AddedOperator, Status> {
        let signing = self.rooms.authority.signing();
        let root = signing.lasting();
        let chain = self.certified(&mut asked)?;
        let new = NewOperator {
            name: &asked.name,
            role: &asked.role,
            certificate: chain.first().map(|leaf| sha256(leaf)),
            root: &root.facts().pin,
            ttl_s: asked.ttl_s,
            now_unix_ms: unix_ms(),
        };
        let (view, secret) = self.rooms.registry.add_operator(&caller.by, new).await?;
        let token = secret.map(|secret| format!("vadm_{}.{}", *secret, root.facts().pin));
        Ok(pb::AddedOperator {
            operator: Some(view),
            token: token.unwrap_or_default(),
            certificate_chain: chain,
            root: root.certificate().to_vec().into(),
        })
    }

    /// The certificate for the request's key with what is above it, if it brings one and has a name; bad names are told with
    /// the other faults.
    fn certified(&self, asked: &mut pb::AddOperatorRequest) -> Result<Vec<Bytes>, Status> {
        let Ok(name) = asked.name.parse::<NodeId>() else {
            return Ok(Vec::new());
        };
        if asked.csr.is_empty() {
            return Ok(Vec::new());
        }
        if asked.csr.len() > CSR_BYTES_MAX {
            return Err(Status::invalid_argument("the request is absurdly large"));
        }
        if asked.ttl_s == 0 {
            asked.ttl_s = CERTIFICATE_TTL_S;
        }
        let life = Duration::from_secs(asked.ttl_s.min(CERTIFICATE_TTL_S_MAX));
        let authority = &self.rooms.authority;
        let now = unix_now();
        let left = authority.signs_until().saturating_sub(now);
        if life > left {
            return Err(Status::invalid_argument(format!(
                "ttl_s: {} days at most, since what signs the certificate ends then",
                left.as_secs() / 86_400
            )));
        }
        let chain = authority.operator_leaf(&asked.csr, &name, life, now)?;
        Ok(chain.iter().map(|der| der.to_vec().into()).collect())
    }
}

fn sha256(leaf: &[u8]) -> Bytes {
    Bytes::copy_from_slice(digest(&SHA256, leaf).as_ref())
}
