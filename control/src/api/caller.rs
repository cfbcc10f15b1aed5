//! Says who calls: a node by its certificate, an operator by a token, or nobody in particular.

use std::{net::SocketAddr, sync::Arc};

use tonic::{Request, Status};

use super::Rooms;
use crate::identity::{Peer, Role};

/// What is known of a connection since its handshake. Every request on it carries this.
#[derive(Clone, Debug)]
pub struct Connection {
    /// From where.
    pub address: SocketAddr,
    /// Who the client certificate names, when there is one.
    pub peer: Option<Arc<Peer>>,
}

impl Rooms {
    /// The node that calls. It must still belong to the network, whatever its certificate says.
    pub(super) async fn node<T>(&self, request: &Request<T>) -> Result<Arc<Peer>, Status> {
        let connection = request.extensions().get::<Connection>();
        let peer = connection
            .and_then(|connection| connection.peer.clone())
            .ok_or_else(|| Status::unauthenticated("this call needs the certificate of a node"))?;
        match self.registry.node(peer.id.as_str()).await {
            Ok(_) => Ok(peer),
            Err(crate::registry::Error::Unknown { .. }) => Err(Status::unauthenticated(format!(
                "node `{}` does not belong to this network any more",
                peer.id
            ))),
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

    /// Refuses everybody but the operator.
    pub(super) fn operator<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let token = request
            .metadata()
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim());
        match token {
            None => Err(Status::unauthenticated(
                "this call needs the operator's token: `authorization: Bearer vadm_...`",
            )),
            Some(token) if self.registry.is_operator(token) => Ok(()),
            Some(_) => Err(Status::unauthenticated(
                "the operator's token is not the right one",
            )),
        }
    }
}
