//! What follows from a change: those whom it concerns are told before the operator has the answer.

use std::time::Duration;

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::{super::caller::Caller, Operators};
use crate::{
    health,
    registry::{self, Draft, NodeSpec, Outcome, Seen, Staging, Terms},
    routing::{canaries, judge},
};

/// How long a change waits for the snapshot that follows from it. It is kept either way.
const PUBLISH_WAIT: Duration = Duration::from_secs(2);

impl Operators {
    /// Makes one change, tells those whom it concerns, and returns when that is done.
    pub(super) async fn edit(
        &self,
        caller: &Caller,
        alter: impl Fn(&mut Draft) + Send + Sync,
    ) -> Result<Outcome, Status> {
        self.edit_on(caller, 0, false, alter).await
    }

    /// The same, of one generation (0: any), or only tells what would be different.
    pub(super) async fn edit_on(
        &self,
        caller: &Caller,
        base: u64,
        dry_run: bool,
        alter: impl Fn(&mut Draft) + Send + Sync,
    ) -> Result<Outcome, Status> {
        let registry = &self.rooms.registry;
        let nodes = registry.nodes().await?;
        let canaries = self.canaries(&nodes).await?;
        let terms = Terms {
            by: &caller.by,
            base,
            dry_run,
            force: caller.force,
            staging: self.staging(&canaries),
            judge: &|old, new| judge(self.rooms.publisher.compiler(), (old, new), &nodes),
        };
        let outcome = registry.edit(terms, alter).await?;
        if !dry_run {
            self.settle(&outcome).await?;
        }
        Ok(outcome)
    }

    /// Who has a change first; nobody when changes are not staged.
    pub(super) async fn canaries(
        &self,
        nodes: &[(NodeSpec, Option<Seen>)],
    ) -> Result<Vec<String>, Status> {
        let staged = self.rooms.staging;
        if staged.pause_ms == 0 {
            return Ok(Vec::new());
        }
        let store = self.rooms.registry.store().as_ref();
        let mut usable = health::agreed(store).await.map_err(registry::Error::from)?;
        // Whom this replica hears, the others may not have been told yet.
        usable.ids.extend(self.rooms.fleet.attached());
        Ok(canaries(nodes, &usable, staged.canaries_percent))
    }

    pub(super) fn staging<'a>(&self, canaries: &'a [String]) -> Staging<'a> {
        Staging {
            canaries,
            pause_ms: self.rooms.staging.pause_ms,
        }
    }

    pub(super) async fn settle(&self, outcome: &Outcome) -> Result<(), Status> {
        for change in &outcome.changes {
            tracing::info!(
                action = change.action,
                kind = change.kind,
                name = change.name,
                "configuration changed"
            );
        }
        for account in outcome.accounts() {
            let keys = self.rooms.registry.keys(account).await?;
            self.forget(keys.into_iter().map(|key| key.id).collect())
                .await?;
        }
        let published = self.rooms.publisher.published(outcome.generation);
        if tokio::time::timeout(PUBLISH_WAIT, published).await.is_err() {
            tracing::warn!(
                generation = outcome.generation,
                "the change is kept, but not published yet"
            );
        }
        Ok(())
    }

    /// Has every ingress forget these keys. Returns when each stream has it.
    pub(super) async fn forget(&self, keys: Vec<String>) -> Result<(), Status> {
        if keys.is_empty() {
            return Ok(());
        }
        let event = pb::KeysChanged {
            keys,
            // Out of turn: what came before it may not have been told yet.
            ..pb::KeysChanged::default()
        };
        self.rooms.fleet.push_keys(event).await;
        Ok(())
    }
}
