//! What operators see of nodes and credentials. Never a secret.

use tonic::Status;
use vector_proto::control::v1::{CredentialAt, CredentialView, NodeRecord, NodeView};

use super::Operators;
use crate::{
    health::{self, Presence},
    registry::{self, NodeSpec, Seen, StoredCredential},
};

impl Operators {
    /// Every node, as this replica and the others know it.
    pub(super) async fn node_views(&self) -> Result<Vec<NodeView>, Status> {
        let nodes = self.rooms.registry.nodes().await?;
        // Another replica may hear a node that this one does not; what the node says is known there only.
        let store = self.rooms.registry.store().as_ref();
        let heard = health::agreed(store).await.map_err(registry::Error::from)?;
        let view = |(spec, seen)| {
            let mut view = node(spec, seen, |id| self.rooms.fleet.presence(id));
            let id = view.record.as_ref().map(|record| &record.id);
            view.connected |= id.is_some_and(|id| heard.ids.contains(id));
            view
        };
        Ok(nodes.into_iter().map(view).collect())
    }
}

/// A node: its record, and what it says of itself.
pub(super) fn node(
    spec: NodeSpec,
    seen: Option<Seen>,
    presence: impl Fn(&str) -> Presence,
) -> NodeView {
    let presence = presence(&spec.id);
    let seen = seen.unwrap_or_default();
    let version = if presence.version.is_empty() {
        seen.version
    } else {
        presence.version
    };
    NodeView {
        record: Some(NodeRecord {
            id: spec.id,
            region: spec.region,
            roles: spec.roles,
            epoch: seen.epoch,
            tunnel_addresses: seen.tunnel_addresses,
            draining: spec.draining,
            client_urls: seen.client_urls,
        }),
        connected: presence.connected,
        revision: presence.revision,
        version,
        last_seen_unix_ms: presence.last_seen_unix_ms,
        status: presence.said.map(|said| said.status()),
        rejection: presence.rejection,
        clock_skew_ms: presence.clock_skew_ms,
    }
}

/// A credential: its spec without the secret and the values of headers, and how it fares at each egress.
pub(super) fn credential(stored: StoredCredential, nodes: &[NodeView]) -> CredentialView {
    let at = nodes.iter().filter_map(|node| {
        let statuses = &node.status.as_ref()?.credentials;
        let status = statuses
            .iter()
            .find(|status| status.credential == stored.spec.name)?;
        Some(CredentialAt {
            egress: node.record.as_ref()?.id.clone(),
            status: Some(status.clone()),
        })
    });
    let at = at.collect();
    CredentialView {
        spec: Some(stored.shown()),
        hint: stored.hint,
        at,
    }
}
