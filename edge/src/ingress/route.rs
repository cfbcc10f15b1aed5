//! Finds who can serve a request: first the upstreams that may, then, try by try, the best way to one of them.
//!
//! Upstreams are tried by priority. Inside a priority two candidates are drawn by lot and the cheaper one is taken
//! (`load`), so that the work does not grow with the network and no two ingress nodes flock to one egress. What this node
//! sees itself decides: a path whose link is down is no candidate, whatever the snapshot says. A pair that is ejected or
//! draining is taken only if there is nothing else, and one whose credentials rest not at all.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use vector_proto::{
    control::v1::KeyPolicy,
    dialect::operation::{ModelAt, Operation},
    refusal::{Code, Refusal},
};

use super::{
    affinity,
    load::{Load, Loads, Standing},
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

/// What can be tried next.
#[derive(Debug)]
pub(super) enum Choice {
    /// This.
    Take(Candidate),
    /// Nothing now, but something after this time.
    Rests(Duration),
    /// Nothing.
    Nobody,
}

/// What a choice follows from, besides the network's state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish<'a> {
    pub(super) target: &'a Target,
    pub(super) tried: &'a [Tried],
    /// See `affinity`.
    pub(super) affinity: u64,
}

/// A preferred upstream may cost so many times as much as the best one, and this much more, in microseconds: about what a
/// prompt cache saves.
const AFFINITY_TIMES: f64 = 3.0;
const AFFINITY_US: f64 = 50_000.0;

/// Draws the next candidate, best priority first.
pub(super) fn choose(
    routes: &Routes,
    wish: Wish<'_>,
    loads: &Loads,
    up: &impl Fn(&Path) -> Option<PathState>,
) -> Choice {
    let draw = Draw {
        routes,
        tried: wish.tried,
        loads,
        up,
        now_us: loads.at(Instant::now()),
        rests_us: Cell::new(None),
    };
    // A pinned credential rests or not whatever the others do.
    let pinned = !wish.target.credential.is_empty();
    for careful in [!pinned, false] {
        if let Some(candidate) = draw.by_priority(&wish, careful, pinned) {
            return Choice::Take(candidate);
        }
    }
    match draw.rests_us.get() {
        Some(rest_us) => Choice::Rests(Duration::from_micros(rest_us)),
        None => Choice::Nobody,
    }
}

struct Draw<'a, Up> {
    routes: &'a Routes,
    tried: &'a [Tried],
    loads: &'a Loads,
    up: &'a Up,
    now_us: u64,
    /// The shortest rest of those that were passed over for it.
    rests_us: Cell<Option<u64>>,
}

/// What a draw looks at.
#[derive(Clone, Copy)]
struct Among<'a> {
    upstreams: &'a [UpstreamRow],
    /// Index of the first of them.
    base: usize,
    /// Passes over those that are ejected or draining.
    careful: bool,
    /// Takes those that rest.
    resting: bool,
    slots: usize,
}

type Drawn = (usize, Candidate, f64);

impl<Up: Fn(&Path) -> Option<PathState>> Draw<'_, Up> {
    fn by_priority(&self, wish: &Wish<'_>, careful: bool, resting: bool) -> Option<Candidate> {
        let upstreams = &wish.target.row.upstreams;
        let mut first = 0;
        while first < upstreams.len() {
            let priority = upstreams[first].priority;
            let end = first
                + upstreams[first..]
                    .iter()
                    .take_while(|upstream| upstream.priority == priority)
                    .count();
            let among = Among::new(&upstreams[first..end], first, careful, resting);
            if let Some((candidate, cost)) = self.from(among) {
                return Some(self.preferred(among, wish.affinity, (candidate, cost)));
            }
            first = end;
        }
        None
    }

    /// The upstream that knows the prompt, unless it is much worse than the best.
    fn preferred(&self, among: Among<'_>, number: u64, best: (Candidate, f64)) -> Candidate {
        let (best, cost) = best;
        if among.upstreams.len() < 2 {
            return best;
        }
        let names = among.upstreams.iter();
        let names = names.map(|upstream| (&upstream.provider.name, upstream.weight));
        let Some(at) = affinity::preferred(number, names) else {
            return best;
        };
        if best.upstream == among.base + at {
            return best;
        }
        let one = &among.upstreams[at..=at];
        let one = Among::new(one, among.base + at, among.careful, among.resting);
        match self.from(one) {
            Some((known, known_cost)) if known_cost <= cost * AFFINITY_TIMES + AFFINITY_US => known,
            _ => best,
        }
    }

    /// The better of two that are drawn by lot.
    fn from(&self, among: Among<'_>) -> Option<(Candidate, f64)> {
        let slots = among.slots;
        if slots == 0 {
            return None;
        }
        let start = if slots == 1 {
            0
        } else {
            fastrand::usize(..slots)
        };
        let (at, first, first_cost) = self.usable(among, start, slots)?;
        let left = slots - 1 - at;
        if left == 0 {
            return Some((first, first_cost));
        }
        // The second is drawn from those that the first search did not look at.
        let skip = if left == 1 {
            0
        } else {
            fastrand::usize(..left)
        };
        match self.usable(among, (start + at + 1 + skip) % slots, left - skip) {
            Some((_, second, cost)) if cost < first_cost => Some((second, cost)),
            _ => Some((first, first_cost)),
        }
    }

    /// The first usable slot of `count` from `start` on, how many were passed over, and its cost.
    fn usable(&self, among: Among<'_>, start: usize, count: usize) -> Option<Drawn> {
        (0..count).find_map(|step| {
            let mut slot = (start + step) % among.slots;
            let mut index = 0;
            while slot >= among.upstreams[index].provider.egress.len() {
                slot -= among.upstreams[index].provider.egress.len();
                index += 1;
            }
            let upstream = &among.upstreams[index];
            let egress = &upstream.provider.egress[slot];
            let load = self.loads.of(&upstream.provider.name, egress);
            let Some((path, state)) = self.path(among.base + index, egress) else {
                if self.tried.is_empty() {
                    load.reached_over(0);
                }
                return None;
            };
            if !self.may_use(&load, among, upstream.provider.draining[slot]) {
                return None;
            }
            load.reached_over(1 + u32::from(path.relay.is_some()));
            let cost = load.cost(state.rtt, upstream.weight, self.now_us);
            let candidate = Candidate {
                upstream: among.base + index,
                path,
                load,
            };
            Some((step, candidate, cost))
        })
    }

    fn may_use(&self, load: &Load, among: Among<'_>, draining: bool) -> bool {
        match load.standing(self.now_us) {
            Standing::Rests(rest_us) if !among.resting => {
                let shortest = self.rests_us.get().unwrap_or(u64::MAX).min(rest_us);
                self.rests_us.set(Some(shortest));
                false
            }
            Standing::Ejected if among.careful => false,
            _ => !(among.careful && draining),
        }
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

impl<'a> Among<'a> {
    fn new(upstreams: &'a [UpstreamRow], base: usize, careful: bool, resting: bool) -> Self {
        let slots = upstreams.iter();
        Self {
            upstreams,
            base,
            careful,
            resting,
            slots: slots.map(|upstream| upstream.provider.egress.len()).sum(),
        }
    }
}
