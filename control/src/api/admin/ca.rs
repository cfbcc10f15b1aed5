//! What signs certificates, and its replacement. No answer holds a key.

use tonic::Status;
use vector_proto::control::v1::{self as pb, RootStep};

use super::{super::caller::Caller, Operators};
use crate::{
    api::{unix_ms, unix_now},
    health,
    identity::{Facts, Rotation},
    registry,
};

/// Names that a refusal tells.
const NAMES_MAX: usize = 20;

impl Operators {
    pub(super) async fn authority(&self) -> Result<pb::AuthorityView, Status> {
        let authority = &self.rooms.authority;
        let signing = authority.signing();
        let rotation = match signing.rotation() {
            Some(rotation) => Some(self.rotation(rotation).await?),
            None => None,
        };
        Ok(pb::AuthorityView {
            trust_domain: authority.trust_domain().to_owned(),
            root: Some(told(signing.root().facts())),
            intermediate: signing.intermediate().map(|signing| told(signing.facts())),
            rotation,
            roots: signing
                .roots()
                .map(|root| root.certificate().to_vec().into())
                .collect(),
        })
    }

    pub(super) async fn intermediate_rotated(
        &self,
        caller: &Caller,
    ) -> Result<pb::AuthorityView, Status> {
        let authority = &self.rooms.authority;
        let facts = self
            .rooms
            .registry
            .rotate_intermediate(authority, &caller.by, unix_now())
            .await?;
        tracing::info!(pin = facts.pin, "another intermediate signs");
        self.authority().await
    }

    pub(super) async fn root_rotated(
        &self,
        caller: &Caller,
        step: RootStep,
    ) -> Result<pb::AuthorityView, Status> {
        let (registry, authority) = (&self.rooms.registry, &self.rooms.authority);
        let (by, now) = (&caller.by, unix_now());
        if !caller.force {
            self.check_step(step).await?;
        }
        match step {
            RootStep::Begin => registry.begin_rotation(authority, by, now).await?,
            RootStep::Switch => {
                let by = (by, caller.force);
                registry.switch_rotation(authority, by, now).await?;
            }
            RootStep::Finish => {
                let by = (by, caller.force);
                registry.finish_rotation(authority, by, now).await?;
            }
            RootStep::Abort => registry.abort_rotation(authority, by, now).await?,
            RootStep::Unspecified => return Err(Status::invalid_argument("which step?")),
        }
        tracing::warn!(step = step.as_str_name(), "the root is being replaced");
        self.authority().await
    }

    /// Refuses a step by which somebody would be out. Whether it is its turn is judged with what the store holds.
    async fn check_step(&self, step: RootStep) -> Result<(), Status> {
        let authority = &self.rooms.authority;
        let registry = &self.rooms.registry;
        registry.take_up_signing(authority, unix_now()).await?;
        let signing = authority.signing();
        let Some(rotation) = signing.rotation() else {
            return Ok(());
        };
        let standing = self.rotation(rotation).await?;
        let mut faults = Vec::new();
        let mut fault = |names: &[String], why: &str| {
            if !names.is_empty() {
                faults.push(format!("{why}: {}", listed(names)));
            }
        };
        match step {
            RootStep::Switch if !rotation.switched => fault(
                &standing.distrusting_connected,
                "connected nodes that have not said yet that they trust the new root",
            ),
            RootStep::Finish if rotation.switched => {
                fault(
                    &standing.distrusting,
                    "nodes that have not said that they trust the new root",
                );
                fault(
                    &standing.nodes_before,
                    "nodes whose certificates come from the old root",
                );
                fault(
                    &standing.operators_before,
                    "operators whose certificates come from the old root",
                );
            }
            _ => {}
        }
        if faults.is_empty() {
            return Ok(());
        }
        faults.push(
            "nodes of this version follow by themselves within moments once they are connected; remove a node that does not \
             come back, and an operator who is to have another certificate; or force it, and they are out"
                .to_owned(),
        );
        Err(Status::failed_precondition(faults.join("\n")))
    }

    /// How far everybody has come.
    async fn rotation(&self, rotation: &Rotation) -> Result<pb::RootRotation, Status> {
        let (registry, pin) = (&self.rooms.registry, &rotation.root.facts().pin);
        let store = registry.store().as_ref();
        let heard = health::agreed(store).await.map_err(registry::Error::from)?;
        let nodes = registry.trust().await?;
        let mut view = pb::RootRotation {
            root: Some(told(rotation.root.facts())),
            intermediate: Some(told(rotation.intermediate.facts())),
            switched: rotation.switched,
            nodes: nodes.len() as u64,
            operators_before: registry.operators_not_of(pin, unix_ms()).await?,
            ..pb::RootRotation::default()
        };
        for (id, trust) in nodes {
            let trust = trust.unwrap_or_default();
            let is_there = heard.ids.contains(&id) || self.rooms.fleet.presence(&id).connected;
            if !trust.proven_by.contains(pin) {
                view.nodes_before.push(id.clone());
            }
            if !trust.roots.contains(pin) {
                if is_there {
                    view.distrusting_connected.push(id.clone());
                }
                view.distrusting.push(id);
            }
        }
        Ok(view)
    }
}

fn listed(names: &[String]) -> String {
    let shown = &names[..names.len().min(NAMES_MAX)];
    let more = names.len() - shown.len();
    let shown = shown.join(", ");
    if more == 0 {
        return shown;
    }
    format!("{shown}, and {more} more")
}

fn told(facts: &Facts) -> pb::CertificateFacts {
    pb::CertificateFacts {
        pin: facts.pin.clone(),
        begins_unix_s: facts.begins.as_secs(),
        ends_unix_s: facts.ends.as_secs(),
    }
}
