//! Nodes: invited, given no new work, and put out.

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::{super::caller::Caller, Operators, unix_ms};
use crate::registry::Invite;

impl Operators {
    pub(super) async fn invited(
        &self,
        caller: &Caller,
        asked: pb::InviteNodeRequest,
    ) -> Result<pb::InviteNodeResponse, Status> {
        let invite = Invite {
            roles: asked.roles,
            region: asked.region,
            node: asked.node,
            ..Invite::default()
        };
        let (secret, invite) = self
            .rooms
            .registry
            .invite(&caller.by, invite, asked.ttl_s, unix_ms())
            .await?;
        tracing::info!(
            node.region = invite.region,
            node.roles = invite.roles.join("+"),
            node.id = invite.node,
            "node invited"
        );
        Ok(pb::InviteNodeResponse {
            token: format!("vinv_{}.{}", *secret, self.rooms.authority.lasting_pin()),
            expires_unix_ms: invite.expires_unix_ms,
        })
    }

    pub(super) async fn drained(
        &self,
        caller: &Caller,
        asked: pb::DrainNodeRequest,
    ) -> Result<pb::NodeView, Status> {
        let spec = self
            .rooms
            .registry
            .drain_node(&caller.by, &asked.node, asked.on)
            .await?;
        let drain = pb::ControlEvent {
            event: Some(pb::control_event::Event::Drain(pb::Drain { on: asked.on })),
        };
        self.rooms.fleet.push(&asked.node, drain).await;
        tracing::info!(node.id = spec.id, draining = asked.on, "node drain set");
        let nodes = self.node_views().await?;
        let is_it = |view: &pb::NodeView| {
            view.record
                .as_ref()
                .is_some_and(|record| record.id == asked.node)
        };
        let view = nodes.into_iter().find(is_it);
        view.ok_or_else(|| Status::not_found("the node was removed meanwhile"))
    }

    pub(super) async fn removed(&self, caller: &Caller, id: &str) -> Result<pb::Removed, Status> {
        let registry = &self.rooms.registry;
        let existed = registry.remove_node(&caller.by, id, unix_ms()).await?;
        // All others hear with the next snapshot that its certificate counts no more.
        self.rooms.fleet.dismiss(id);
        tracing::info!(node.id = id, existed, "node removed");
        Ok(pb::Removed { existed })
    }
}
