//! What the configuration was, and the way back to it.

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::{super::caller::Caller, Operators};
use crate::{
    registry::{Generation, Outcome, Rollout, Stage, Terms},
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
        let plain = asked.generation.is_none() && asked.base_revision == 0;
        if plain && !asked.dry_run {
            // What has not reached everybody yet is taken back as if it had never been.
            let seen = registry.catalog().await?;
            if seen.rollout.is_under_way() {
                let reason = format!("taken back by {}", caller.by.name);
                let outcome = registry.roll_back(&caller.by, &seen, &reason).await?;
                self.settle(&outcome).await?;
                return Ok(undone(outcome, Vec::new()));
            }
        }
        let nodes = registry.nodes().await?;
        let canaries = self.canaries(&nodes).await?;
        let terms = Terms {
            by: &caller.by,
            base: asked.base_revision,
            dry_run: asked.dry_run,
            force: caller.force,
            staging: self.staging(&canaries),
            judge: &|old, new| judge(self.rooms.publisher.compiler(), (old, new), &nodes),
        };
        let (outcome, left) = registry.undo(terms, asked.generation).await?;
        if !asked.dry_run {
            self.settle(&outcome).await?;
        }
        Ok(undone(outcome, left))
    }

    pub(super) async fn paused(&self, caller: &Caller, on: bool) -> Result<pb::Rollout, Status> {
        let rollout = self.rooms.registry.pause(&caller.by, on).await?;
        Ok(shown(&rollout))
    }
}

fn undone(outcome: Outcome, left: Vec<String>) -> pb::UndoResponse {
    pb::UndoResponse {
        losses: outcome.losses.iter().map(ToString::to_string).collect(),
        changes: outcome.changes,
        revision: outcome.generation,
        left,
    }
}

/// How far a change is.
pub(super) fn shown(rollout: &Rollout) -> pb::Rollout {
    let stage = match rollout.stage() {
        Stage::Never => "none",
        Stage::Canary if rollout.paused => "paused",
        Stage::Canary => "canaries",
        Stage::Done => "done",
        Stage::RolledBack => "rolled back",
    };
    pb::Rollout {
        stage: stage.to_owned(),
        from: rollout.from,
        to: rollout.to,
        canaries: rollout.canaries.clone(),
        began_unix_ms: rollout.began_unix_ms,
        deadline_unix_ms: rollout.deadline_unix_ms,
        reason: rollout.reason.clone(),
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
