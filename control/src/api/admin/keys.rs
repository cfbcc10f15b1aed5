//! API keys: made, listed, and switched off or on where they are used before the operator has the answer.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use tonic::Status;
use vector_proto::control::v1 as pb;

use super::{super::caller::Caller, Operators, pages, unix_ms};
use crate::{
    health::{self, KeysTold},
    registry,
};

/// How long a change of a key waits for those that confirm it. It is made either way.
const HEARD_WAIT: Duration = Duration::from_secs(1);

impl Operators {
    pub(super) async fn key_created(
        &self,
        caller: &Caller,
        spec: pb::KeySpec,
    ) -> Result<pb::CreatedKey, Status> {
        let registry = &self.rooms.registry;
        let (key, secret) = registry.create_key(&caller.by, spec, unix_ms()).await?;
        tracing::info!(key.id = key.id, "key created");
        Ok(pb::CreatedKey {
            key: Some(key),
            secret: secret.to_string(),
        })
    }

    pub(super) async fn keys(
        &self,
        asked: pb::ListKeysRequest,
    ) -> Result<pb::ListKeysResponse, Status> {
        let views = self.rooms.registry.keys(&asked.account).await?;
        let list = pb::ListRequest {
            page_size: asked.page_size,
            page_token: asked.page_token,
        };
        let (keys, next_page_token) = pages::page(views, &list, |view| view.id.clone());
        Ok(pb::ListKeysResponse {
            keys,
            next_page_token,
        })
    }

    /// Makes the change, then tells every ingress and says which of them have it in force.
    pub(super) async fn key_state_set(
        &self,
        caller: &Caller,
        asked: pb::SetKeyStateRequest,
    ) -> Result<pb::KeyView, Status> {
        // Before the change, so that nothing fails once it is made.
        let ingress = self.ingress_nodes().await?;
        let registry = &self.rooms.registry;
        let (id, disabled) = (&asked.id, asked.disabled);
        let mut view = if asked.ask_only {
            registry.key_in_state(id, disabled).await?
        } else {
            registry.set_key_state(&caller.by, id, disabled).await?
        };
        let changed = Instant::now();
        let event = pb::KeysChanged {
            keys: vec![view.id.clone()],
            // Out of turn: what came before it may not have been told yet.
            ..pb::KeysChanged::default()
        };
        // Told even when nothing changed: an operator who repeats it wants to be sure.
        let given_up = tokio::time::sleep(HEARD_WAIT);
        let told = self.rooms.fleet.ask_keys(event, given_up).await;
        let took_us = u64::try_from(changed.elapsed().as_micros()).unwrap_or(u64::MAX);
        let heard = heard(told, ingress, took_us);
        tracing::info!(
            key.id = view.id,
            disabled = view.disabled,
            confirmed = heard.confirmed.len(),
            silent = heard.silent.len(),
            took_us,
            asked_only = asked.ask_only,
            "key state set"
        );
        view.heard = Some(heard);
        Ok(view)
    }

    /// Every ingress, and whether another replica than this one hears it.
    async fn ingress_nodes(&self) -> Result<Vec<(String, bool)>, Status> {
        let store = self.rooms.registry.store().as_ref();
        let rolls = health::rolls(store).await.map_err(registry::Error::from)?;
        // One that has just gone from here is still on this replica's own roll.
        let (mine, _) = self.rooms.fleet.heard(Instant::now());
        let heard_by_others = |id: &str| {
            let lists = |nodes: &[health::Heard]| nodes.iter().any(|node| node.id == id);
            let rolls = rolls.iter().filter(|roll| lists(&roll.nodes));
            rolls.count() > usize::from(lists(&mine))
        };
        let nodes = self.rooms.registry.nodes().await?.into_iter();
        let ingress = nodes.filter(|(spec, _)| spec.roles.iter().any(|role| role == "ingress"));
        Ok(ingress
            .map(|(spec, _)| {
                let others = heard_by_others(&spec.id);
                (spec.id, others)
            })
            .collect())
    }
}

/// What became of the change at each of the ingress nodes.
fn heard(told: KeysTold, ingress: Vec<(String, bool)>, took_us: u64) -> pb::KeyHeard {
    let here: BTreeSet<&String> = [&told.confirmed, &told.silent, &told.older]
        .into_iter()
        .flatten()
        .collect();
    let not_here = ingress.into_iter().filter(|(id, _)| !here.contains(id));
    let (elsewhere, away): (Vec<_>, Vec<_>) = not_here.partition(|(_, others)| *others);
    let ids = |nodes: Vec<(String, bool)>| nodes.into_iter().map(|(id, _)| id).collect();
    pb::KeyHeard {
        elsewhere: ids(elsewhere),
        away: ids(away),
        confirmed: told.confirmed,
        silent: told.silent,
        older: told.older,
        took_us,
    }
}
