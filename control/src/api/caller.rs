//! Says who calls: a node by its certificate, an operator by a token or certificate, or nobody in particular.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ring::digest::{SHA256, digest};
use tonic::{
    Request, Status,
    metadata::{MetadataMap, MetadataValue},
};
use vector_proto::{control::REMOVED, id::NodeId};

use super::{Rooms, unix_ms};
use crate::{
    identity::{Peer, Role, operator_of_leaf},
    registry::{Actor, Operator},
};

/// What is known of a connection since its handshake. Every request on it carries this.
#[derive(Clone, Debug)]
pub struct Connection {
    /// From where.
    pub address: SocketAddr,
    /// Who the client certificate names, when there is one.
    pub peer: Option<Arc<Peer>>,
    /// When that certificate was issued, in seconds since 1970.
    pub issued: Duration,
    /// When it ended, if it had when the connection was made; in seconds since 1970. One that ends later does not end its
    /// connection: its node has a new one long before, and uses it for the next.
    pub ended: Option<Duration>,
    /// The operator whom it names instead.
    pub operator: Option<Arc<Certified>>,
}

/// An operator's certificate, verified.
#[derive(Clone, Debug)]
pub struct Certified {
    /// Whom it names.
    pub name: NodeId,
    /// Which of theirs it is.
    pub sha256: [u8; 32],
}

impl Certified {
    /// Reads a leaf that rustls has verified. `None` when it names no operator of this network.
    #[must_use]
    pub fn of_leaf(der: &[u8], trust_domain: &str) -> Option<Self> {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, der).as_ref());
        Some(Self {
            name: operator_of_leaf(der, trust_domain)?,
            sha256,
        })
    }
}

impl Rooms {
    /// The node that calls. It must still belong to the network, whatever its certificate says, and its certificate must
    /// not have ended.
    pub(super) async fn node<T>(&self, request: &Request<T>) -> Result<Arc<Peer>, Status> {
        let peer = self.node_to_renew(request).await?;
        let connection = request.extensions().get::<Connection>();
        match connection.and_then(|connection| connection.ended) {
            Some(ended) => Err(over(&peer, ended)),
            None => Ok(peer),
        }
    }

    /// The same, for a call that is good for an ended certificate too: to have it renewed, and nothing else.
    pub(super) async fn node_to_renew<T>(&self, request: &Request<T>) -> Result<Arc<Peer>, Status> {
        let connection = request.extensions().get::<Connection>();
        let (peer, issued) = connection
            .and_then(|connection| Some((connection.peer.clone()?, connection.issued)))
            .ok_or_else(|| Status::unauthenticated("this call needs the certificate of a node"))?;
        match self.registry.node(peer.id.as_str()).await {
            Ok(spec) if is_superseded(issued, spec.enrolled_unix_ms) => Err(removed(format!(
                "node `{}` has enrolled again since this certificate was issued",
                peer.id
            ))),
            Ok(_) => Ok(peer),
            Err(crate::registry::Error::Unknown { .. }) => {
                let why = format!(
                    "node `{}` does not belong to this network any more",
                    peer.id
                );
                // That nothing is known of it may be the fault of a store that lost it.
                let before = self.registry.revoked_of(peer.id.as_str()).await?;
                Err(if issued.as_secs() < before {
                    removed(why)
                } else {
                    Status::unauthenticated(why)
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The node that calls, when it has the role.
    pub(super) async fn node_as<T>(
        &self,
        request: &Request<T>,
        role: Role,
    ) -> Result<Arc<Peer>, Status> {
        let peer = self.node(request).await?;
        if peer.roles.contains(&role) {
            Ok(peer)
        } else {
            Err(Status::permission_denied(format!(
                "only {role} nodes may call this"
            )))
        }
    }

    /// The operator that calls. The guard before this door has looked at the role.
    pub(super) fn operator<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = request.extensions().get::<Caller>();
        // Without a guard nobody gets in.
        caller
            .cloned()
            .ok_or_else(|| Status::unauthenticated(NO_TOKEN))
    }

    /// Whom a token or, without one, a certificate stands for.
    pub(super) async fn prove(
        &self,
        token: Option<&str>,
        connection: Option<&Connection>,
    ) -> Result<Caller, Status> {
        let certified = connection.and_then(|connection| connection.operator.as_deref());
        let now = unix_ms();
        let proven = match (token, certified) {
            (Some(token), _) => self.registry.operator_by_token(token, now).await?,
            (None, Some(Certified { name, sha256 })) => {
                let registry = &self.registry;
                registry
                    .operator_by_certificate(name.as_str(), sha256, now)
                    .await?
            }
            (None, None) => return Err(Status::unauthenticated(NO_TOKEN)),
        };
        let operator = proven.ok_or_else(|| {
            Status::unauthenticated(
                "the operator's token or certificate is not one of this network, or was removed, or is over",
            )
        })?;
        let address = connection.map(|connection| connection.address.ip().to_string());
        Ok(Caller {
            by: Actor::operator(&operator.name, address.unwrap_or_default()),
            operator,
            force: false,
        })
    }
}

/// Tells a node that it is out for good, which it then acts upon.
fn removed(why: String) -> Status {
    let mut told = MetadataMap::new();
    told.insert(REMOVED, MetadataValue::from_static("true"));
    Status::with_metadata(tonic::Code::Unauthenticated, why, told)
}

/// Tells a node that its certificate has ended, and the way out.
fn over(peer: &Peer, ended: Duration) -> Status {
    let at = i64::try_from(ended.as_secs()).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_second(at).unwrap_or(jiff::Timestamp::MAX);
    Status::unauthenticated(format!(
        "the certificate of node `{}` ended at {at}: it is good for Renew and for nothing else, which gives a new one",
        peer.id
    ))
}

/// Whether a certificate is of an earlier enrolment of its node. One of the same second counts: certificates know no smaller
/// time.
fn is_superseded(issued: Duration, enrolled_unix_ms: u64) -> bool {
    issued.as_secs() < enrolled_unix_ms / 1_000
}

const NO_TOKEN: &str = "this call needs an operator's token, `authorization: Bearer vadm_...`, or an operator's certificate";

/// An operator that has proved who it is.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) operator: Operator,
    /// The same, as the log names it.
    pub(super) by: Actor,
    /// It means what would be refused as too large a loss.
    pub(super) force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_ends_with_the_enrolment_that_it_is_of() {
        let issued = Duration::from_secs(1_000);
        for (enrolled_unix_ms, superseded) in [
            (0, false),
            (999_999, false),
            (1_000_999, false),
            (1_001_000, true),
        ] {
            assert_eq!(
                is_superseded(issued, enrolled_unix_ms),
                superseded,
                "{enrolled_unix_ms}"
            );
        }
    }
}
