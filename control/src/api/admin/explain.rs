//! Where a request would go now, by the snapshot in force and what it was made from.

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::Operators;
use crate::{
    health, registry,
    routing::{self, Inputs},
};

impl Operators {
    pub(super) async fn explained(
        &self,
        asked: &pb::ExplainRouteRequest,
    ) -> Result<pb::ExplainRouteResponse, Status> {
        let catalog = self.rooms.registry.catalog().await?;
        let nodes = self.rooms.registry.nodes().await?;
        let store = self.rooms.registry.store();
        let usable = health::agreed(store.as_ref())
            .await
            .map_err(registry::Error::from)?;
        let inputs = Inputs {
            catalog: &catalog,
            nodes: &nodes,
            usable: &usable,
            revoked: &[],
        };
        let published = self.rooms.publisher.current();
        Ok(routing::explain(asked, &published.whole(), inputs))
    }
}
