//! Finds who can serve a request: first the upstreams that may, then, try by try, the best way to one of them.
//!
//! Upstreams are tried by priority. Inside a priority two candidates are drawn by lot and the cheaper one is taken
//! (`load`), so that the work does not grow with the network and no two ingress nodes flock to one egress. What this node
//! sees itself decides: a path whose link is down is no candidate, whatever the snapshot says.

use std::{sync::Arc, time::Instant};

use vector_proto::{
    control::v1::KeyPolicy,
    dialect::operation::{ModelAt, Operation},
    refusal::{Code, Refusal},
};

use super::{
    load::{Load, Loads},
    peek::Ask,
};
use crate::{
    control_plane::{ControlPlane, ModelRow, ProviderRow, Routes, UpstreamRow},
    tunnel::{Path, PathState},
};

/// Who may serve a request.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The upstreams, by priority.
    pub(super) row: Arc<ModelRow>,
    /// The credential that made the object the call names; empty for free choice.
    pub(super) credential: Box<str>,
}

/// One way to one upstream.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Which of the target's upstreams.
    pub(super) upstream: usize,
    pub(super) path: Path,
    pub(super) load: Arc<Load>,
}

/// What was tried and is not tried again.
#[derive(Debug)]
pub(super) enum Tried {
    /// The path failed; the egress may be fine.
    Path(Path),
    /// The egress could not serve this upstream.
    Egress(usize, Arc<str>),
}

/// Finds the upstreams for a request.
///
/// Cancel safety: nothing is left behind.
pub(super) async fn target(
    control: &ControlPlane,
    policy: &KeyPolicy,
    operation: &Operation,
    ask: &Ask,
) -> Result<Target, Refusal> {
    if let Some(object) = &ask.object {
        if let Some(made) = Box::pin(control.locate(&policy.account, object)).await? {
            return pinned(&control.routes(), &made.provider, &made.credential, ask);
        }
        return unknown_object(&control.routes(), operation, ask, object);
    }
    let row = row(&control.routes(), policy, operation, ask)?;
    Ok(Target {
        row,
        credential: Box::default(),
    })
}

/// By the model named, or by the operation's default route.
fn row(
    routes: &Routes,
    policy: &KeyPolicy,
    operation: &Operation,
    ask: &Ask,
) -> Result<Arc<ModelRow>, Refusal> {
    if let Some(model) = &ask.model {
        return routes.model(model).map(Arc::clone).ok_or_else(|| {
            let message =
                format!("The model `{model}` does not exist or you do not have access to it.");
            Refusal::new(Code::ModelUnknown, message).at("model")
        });
    }
    let names_models = operation.model != ModelAt::Nowhere;
    match routes.default_route(operation.name) {
        Some(_) if names_models && !policy.models.is_empty() => {
            let message =
                "this API key may use certain models only, so the request has to name one";
            Err(Refusal::new(Code::ModelMissing, message).at("model"))
        }
        Some(row) => Ok(Arc::clone(row)),
        None if names_models => {
            Err(Refusal::new(Code::ModelMissing, "you must provide a model parameter").at("model"))
        }
        None => Err(Refusal::new(
            Code::NoRoute,
            format!("no provider is configured for `{}`", operation.name),
        )),
    }
}

/// To the provider and credential that made the object.
fn pinned(routes: &Routes, provider: &str, credential: &str, ask: &Ask) -> Result<Target, Refusal> {
    let Some(provider) = routes.providers.get(provider) else {
        return Err(Refusal::new(
            Code::NoRoute,
            "the provider that made this object is no longer configured",
        ));
    };
    let known = ask.model.as_deref().and_then(|model| routes.model(model));
    let known = known.and_then(|row| {
        row.upstreams
            .iter()
            .find(|upstream| upstream.provider.name == provider.name)
    });
    let model = known
        .map(|upstream| Arc::clone(&upstream.model))
        .unwrap_or_default();
    let row = one_provider(provider, model);
    Ok(Target {
        row: Arc::new(row),
        credential: credential.into(),
    })
}

fn one_provider(provider: &Arc<ProviderRow>, model: Arc<str>) -> ModelRow {
    ModelRow {
        name: Box::default(),
        owned_by: Box::default(),
        created_unix_s: 0,
        upstreams: vec![UpstreamRow {
            provider: Arc::clone(provider),
            model,
            priority: 0,
            weight: 1,
        }],
    }
}

/// An object that nobody here made: refused, so that no account reaches another's through a shared credential, unless
/// the operator says otherwise of the provider that the call would go to.
fn unknown_object(
    routes: &Routes,
    operation: &Operation,
    ask: &Ask,
    object: &str,
) -> Result<Target, Refusal> {
    let named = ask.model.as_deref().and_then(|model| routes.model(model));
    let row = named.or_else(|| routes.default_route(operation.name));
    let open = row.and_then(|row| {
        row.upstreams
            .iter()
            .find(|upstream| upstream.provider.unknown_objects)
    });
    match open {
        Some(upstream) => {
            let row = one_provider(&upstream.provider, Arc::clone(&upstream.model));
            Ok(Target {
                row: Arc::new(row),
                credential: Box::default(),
            })
        }
        None => Err(Refusal::new(
            Code::ObjectUnknown,
            format!("No such object: {object}"),
        )),
    }
}

/// Draws the next candidate, best priority first; `None` when nothing untried can be reached.
pub(super) fn choose(
    routes: &Routes,
    target: &Target,
    tried: &[Tried],
    loads: &Loads,
    up: &impl Fn(&Path) -> Option<PathState>,
) -> Option<Candidate> {
    let draw = Draw {
        routes,
        tried,
        loads,
        up,
        now_us: loads.at(Instant::now()),
    };
    let upstreams = &target.row.upstreams;
    let mut first = 0;
    while first < upstreams.len() {
        let priority = upstreams[first].priority;
        let end = first
            + upstreams[first..]
                .iter()
                .take_while(|upstream| upstream.priority == priority)
                .count();
        if let Some(candidate) = draw.from(&upstreams[first..end], first) {
            return Some(candidate);
        }
        first = end;
    }
    None
}

struct Draw<'a, Up> {
    routes: &'a Routes,
    tried: &'a [Tried],
    loads: &'a Loads,
    up: &'a Up,
    now_us: u64,
}

impl<Up: Fn(&Path) -> Option<PathState>> Draw<'_, Up> {
    /// The better of two that are drawn by lot from one priority, whose first upstream has the index `base`.
    fn from(&self, upstreams: &[UpstreamRow], base: usize) -> Option<Candidate> {
        let slots: usize = upstreams
            .iter()
            .map(|upstream| upstream.provider.egress.len())
            .sum();
        if slots == 0 {
            return None;
        }
        let start = if slots == 1 {
            0
        } else {
            fastrand::usize(..slots)
        };
        let (at, first, first_cost) = self.usable(upstreams, base, start, slots)?;
        let left = slots - 1 - at;
        if left == 0 {
            return Some(first);
        }
        // The second is drawn from those that the first search did not look at.
        let skip = if left == 1 {
            0
        } else {
            fastrand::usize(..left)
        };
        let second = self.usable(
            upstreams,
            base,
            (start + at + 1 + skip) % slots,
            left - skip,
        );
        match second {
            Some((_, second, cost)) if cost < first_cost => Some(second),
            _ => Some(first),
        }
    }

    /// The first usable slot of `count` from `start` on, how many were passed over, and its cost.
    fn usable(
        &self,
        upstreams: &[UpstreamRow],
        base: usize,
        start: usize,
        count: usize,
    ) -> Option<(usize, Candidate, f64)> {
        let slots: usize = upstreams
            .iter()
            .map(|upstream| upstream.provider.egress.len())
            .sum();
        (0..count).find_map(|step| {
            let mut slot = (start + step) % slots;
            let mut index = 0;
            while slot >= upstreams[index].provider.egress.len() {
                slot -= upstreams[index].provider.egress.len();
                index += 1;
            }
            let upstream = &upstreams[index];
            let egress = &upstream.provider.egress[slot];
            let load = self.loads.of(&upstream.provider.name, egress);
            let Some((path, state)) = self.path(base + index, egress) else {
                if self.tried.is_empty() {
                    load.reached_over(0);
                }
                return None;
            };
            load.reached_over(1 + u32::from(path.relay.is_some()));
            let cost = load.cost(state.rtt, upstream.weight, self.now_us);
            Some((
                step,
                Candidate {
                    upstream: base + index,
                    path,
                    load,
                },
                cost,
            ))
        })
    }

    /// The best path to an egress that is up and was not tried.
    fn path(&self, upstream: usize, egress: &Arc<str>) -> Option<(Path, PathState)> {
        let spent =
            |one: &Tried| matches!(one, Tried::Egress(at, id) if *at == upstream && id == egress);
        if self.tried.iter().any(spent) {
            return None;
        }
        self.routes.paths(egress).iter().find_map(|row| {
            let path = Path {
                egress: Arc::clone(egress),
                relay: row.relay.clone(),
            };
            if self
                .tried
                .iter()
                .any(|one| matches!(one, Tried::Path(failed) if *failed == path))
            {
                return None;
            }
            (self.up)(&path).map(|state| (path, state))
        })
    }
}
