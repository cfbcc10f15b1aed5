//! What the configuration was, and the way back to it.

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::{super::caller::Caller, Operators};
use crate::{
    registry::{Generation, Terms},
    routing::judge,
};

impl Operators {
    pub(super) async fn generations(
        &self,
        asked: pb::ListGenerationsRequest,
    ) -> Result<pb::ListGenerationsResponse, Status> {
        let rows = match usize::try_from(asked.page_size) {
            Ok(rows) if rows > 0 => rows,
            _ => usize::MAX,
        };
        let (generations, generation) = self.rooms.registry.history(rows).await?;
        Ok(pb::ListGenerationsResponse {
            generations: generations.into_iter().map(view).collect(),
            generation,
        })
    }

    pub(super) async fn undone(
        &self,
        caller: &Caller,
        asked: pb::UndoRequest,
    ) -> Result<pb::UndoResponse, Status> {
        let registry = &self.rooms.registry;
        let nodes = registry.nodes().await?;
        let terms = Terms {
            by: &caller.by,
            base: asked.base_revision,
            dry_run: asked.dry_run,
            force: caller.force,
            judge: &|old, new| judge(old, new, &nodes),
        };
        let (outcome, left) = registry.undo(terms, asked.generation).await?;
        if !asked.dry_run {
            self.settle(&outcome).await?;
        }
        Ok(pb::UndoResponse {
            losses: outcome.losses.iter().map(ToString::to_string).collect(),
            changes: outcome.changes,
            revision: outcome.generation,
            left,
        })
    }
}

fn view(generation: Generation) -> pb::Generation {
    pb::Generation {
        generation: generation.number,
        unix_ms: generation.unix_ms,
        actor: generation.actor,
        changes: generation.changes,
    }
}
