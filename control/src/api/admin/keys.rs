//! API keys: made, listed, and switched off or on where they are used before the operator has the answer.

use std::{
    collections::{BTreeSet, HashMap},
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
        let told = async {
            let told = self.rooms.fleet.ask_keys(event, given_up).await;
            let took_us = u64::try_from(changed.elapsed().as_micros()).unwrap_or(u64::MAX);
            (told, took_us)
        };
        // Neither the change nor the telling waits for the list.
        let ((told, took_us), ingress) = tokio::join!(told, self.ingress_nodes());
        let ingress = ingress.map_err(|status| {
            let state = if view.disabled { "off" } else { "on" };
            let why = status.message();
            let text = format!(
                "key {} is {state}, and every ingress that is connected here was told; which others there are cannot be \
                 read: {why}",
                view.id
            );
            Status::new(status.code(), text)
        })?;
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
        let mut hearing: HashMap<&str, usize> = HashMap::new();
        for node in rolls.iter().flat_map(|roll| &roll.nodes) {
            *hearing.entry(&node.id).or_default() += 1;
        }
        // One that has just gone from here is still on this replica's own roll.
        let (mine, _) = self.rooms.fleet.heard(Instant::now());
        for node in &mine {
            hearing
                .entry(&node.id)
                .and_modify(|rolls| *rolls = rolls.saturating_sub(1));
        }
        let nodes = self.rooms.registry.nodes().await?.into_iter();
        let ingress = nodes.filter(|(spec, _)| spec.roles.iter().any(|role| role == "ingress"));
        let by_others = |id: &str| hearing.get(id).is_some_and(|&rolls| rolls > 0);
        Ok(ingress
            .map(|(spec, _)| {
                let others = by_others(&spec.id);
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
