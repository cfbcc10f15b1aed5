//! Finds who can serve a request: first the upstreams that may, then, try by try, the best way to one of them.
//!
//! Upstreams are tried by priority. Inside a priority two candidates are drawn by lot and the cheaper one is taken
//! (`load`), so that the work does not grow with the network and no two ingress nodes flock to one egress. What this node
//! sees itself decides: of several paths to an egress, one is taken until another is clearly better as both are measured
//! (`tunnel::cost`); a path that is suspect is taken when its priority has no other, one that is dead when nothing else is
//! left. So is a pair that is ejected; one whose credentials rest is not taken at all. An egress that drains says so over
//! its links, which then count as none; whom only the snapshot calls draining, which may be old, is taken last.

// Calls that are about an object.
mod pinned;

// Calls whose bodies are on their way.
mod ahead;

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use vector_proto::{
    control::v1::{KeyPolicy, Object},
    dialect::operation::{ModelAt, Operation},
    refusal::{Code, Refusal},
};

pub(super) use self::pinned::Names;
use self::pinned::pinned;
use super::{
    affinity,
    load::{Load, Loads, Standing},
    peek::Ask,
    tries::Tried,
};
use crate::{
    control_plane::{ControlPlane, ModelRow, PathRow, ProviderRow, Routes, UpstreamRow, Ways},
    tunnel::{
        Condition, Path, PathState,
        cost::{self, Choice as Cheapest},
    },
};

/// Who may serve a request.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The upstreams, by priority.
    pub(super) row: Arc<ModelRow>,
    /// The credential that made an object the call names; empty for free choice.
    pub(super) credential: Box<str>,
    /// Those of the model that the object was made with, if they differ.
    pub(super) names: Option<Names>,
}

/// One way to one upstream.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    /// Which of the target's upstreams.
    pub(super) upstream: usize,
    pub(super) path: Path,
    pub(super) load: Load,
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
    let names_models = operation.model != ModelAt::Nowhere;
    // An object would lead around the list of models: whatever model it has would run.
    if names_models && ask.model.is_none() && !policy.models.is_empty() {
        let message = "this API key may use certain models only, so the request has to name one";
        return Err(Refusal::new(Code::ModelMissing, message).at("model"));
    }
    let named = match ask.named.is_empty() {
        true => Vec::new(),
        // None of them may be another account's, whichever decides.
        false => Box::pin(control.locate_named(&policy.account, &ask.named)).await?,
    };
    if let Some(object) = &ask.object {
        if let Some(made) = Box::pin(control.locate(&policy.account, object)).await? {
            return pinned(&control.routes(), &made, ask);
        }
        return unknown_object(&control.routes(), operation, ask, object);
    }
    let routes = control.routes();
    if let (Some(made), ModelAt::Nowhere) = (named.first(), operation.model) {
        return pinned(&routes, made, ask);
    }
    let row = row(&routes, operation, ask)?;
    // To a provider that does not have the model, none of its objects helps.
    let serves = |made: &&Arc<Object>| {
        let mut upstreams = row.upstreams.iter();
        upstreams.any(|upstream| *upstream.provider.name == *made.provider)
    };
    match named.iter().find(serves) {
        Some(made) => pinned(&routes, made, ask),
        None => Ok(Target {
            row,
            credential: Box::default(),
            names: None,
        }),
    }
}

/// By the model named, or by the operation's default route.
fn row(routes: &Routes, operation: &Operation, ask: &Ask) -> Result<Arc<ModelRow>, Refusal> {
    if let Some(model) = &ask.model {
        return routes.model(model).map(Arc::clone).ok_or_else(|| {
            let message =
                format!("The model `{model}` does not exist or you do not have access to it.");
            Refusal::new(Code::ModelUnknown, message).at("model")
        });
    }
    match routes.default_route(operation.name) {
        Some(row) => Ok(Arc::clone(row)),
        None if operation.model != ModelAt::Nowhere => {
            Err(Refusal::new(Code::ModelMissing, "you must provide a model parameter").at("model"))
        }
        None => Err(Refusal::new(
            Code::NoRoute,
            format!("no provider is configured for `{}`", operation.name),
        )),
    }
}

fn one_provider(provider: &Arc<ProviderRow>, model: Arc<str>, redundant: bool) -> ModelRow {
    ModelRow {
        name: Box::default(),
        owned_by: Box::default(),
        created_unix_s: 0,
        redundant,
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
            let redundant = row.is_some_and(|row| row.redundant);
            let row = one_provider(&upstream.provider, Arc::clone(&upstream.model), redundant);
            Ok(Target {
                row: Arc::new(row),
                credential: Box::default(),
                names: None,
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
    /// What the client calls the model; empty where it names none.
    pub(super) model: &'a str,
    /// See `affinity`.
    pub(super) affinity: u64,
    /// Where the body has gone already.
    pub(super) ahead: Option<&'a Path>,
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
        model: wish.model,
        loads,
        up,
        now_us: loads.at(Instant::now()),
        rests_us: Cell::new(None),
    };
    // A pinned credential rests or not whatever the others do.
    let pinned = !wish.target.credential.is_empty();
    for careful in [!pinned, false] {
        let alive = [Condition::Up, Condition::Suspect];
        if let Some(candidate) = draw.by_priority(&wish, careful, pinned, &alive) {
            return Choice::Take(candidate);
        }
    }
    if draw.rests_us.get().is_none()
        && let Some(candidate) = draw.by_priority(&wish, false, pinned, &[Condition::Down])
    {
        return Choice::Take(candidate);
    }
    match draw.rests_us.get() {
        Some(rest_us) => Choice::Rests(Duration::from_micros(rest_us)),
        None => Choice::Nobody,
    }
}

struct Draw<'a, Up> {
    routes: &'a Routes,
    tried: &'a [Tried],
    model: &'a str,
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
    /// Passes over those that are ejected, and those that the snapshot calls draining.
    careful: bool,
    /// Takes those that rest.
    resting: bool,
    /// Passes over paths in a worse condition.
    worst: Condition,
    slots: usize,
}

type Drawn = (usize, Candidate, f64);

impl<Up: Fn(&Path) -> Option<PathState>> Draw<'_, Up> {
    /// One priority after the other, and in each the paths of one condition after the other.
    fn by_priority(
        &self,
        wish: &Wish<'_>,
        careful: bool,
        resting: bool,
        conditions: &[Condition],
    ) -> Option<Candidate> {
        let upstreams = &wish.target.row.upstreams;
        let mut first = 0;
        while first < upstreams.len() {
            let priority = upstreams[first].priority;
            let end = first
                + upstreams[first..]
                    .iter()
                    .take_while(|upstream| upstream.priority == priority)
                    .count();
            for worst in conditions {
                let among = Among::new(&upstreams[first..end], first, (careful, resting), *worst);
                if let Some((candidate, cost)) = self.from(among) {
                    let known = self.preferred(among, wish.affinity, (candidate, cost));
                    return Some(self.ahead(among, wish.ahead, known));
                }
            }
            first = end;
        }
        None
    }

    /// The upstream that knows the prompt, unless it is much worse than the best.
    fn preferred(&self, among: Among<'_>, number: u64, best: (Candidate, f64)) -> (Candidate, f64) {
        if among.upstreams.len() < 2 {
            return best;
        }
        let names = among.upstreams.iter();
        let names = names.map(|upstream| (&upstream.provider.name, upstream.weight));
        let Some(at) = affinity::preferred(number, names) else {
            return best;
        };
        if best.0.upstream == among.base + at {
            return best;
        }
        let one = &among.upstreams[at..=at];
        let how = (among.careful, among.resting);
        let one = Among::new(one, among.base + at, how, among.worst);
        match self.from(one) {
            Some(known) if known.1 <= best.1 * AFFINITY_TIMES + AFFINITY_US => known,
            _ => best,
        }
    }

    /// The better of two that are drawn by lot.
    fn from(&self, among: Among<'_>) -> Option<(Candidate, f64)> {
        let slots = among.slots;
        if slots == 0 {
            return None;
        }
        let start = fastrand::usize(..slots);
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
            let model = upstream.called(self.model);
            let load = self.loads.of(&upstream.provider.name, egress, model);
            let Some((path, state)) = self.path(among.base + index, egress, among.worst) else {
                if self.tried.is_empty() && !self.reaches(egress) {
                    load.reached_over(0);
                }
                return None;
            };
            if !self.may_use(&load, among, upstream.provider.draining[slot]) {
                return None;
            }
            // A path that was tried is passed over, and is the way all the same.
            if self.tried.is_empty() {
                load.reached_over(1 + u32::from(path.relay.is_some()));
            }
            let path_cost = Duration::from_micros(state.cost_us);
            let cost = load.cost(path_cost, upstream.weight, self.now_us);
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

    /// Whether any path leads to an egress that is not dead.
    fn reaches(&self, egress: &Arc<str>) -> bool {
        let mut paths = self.routes.paths(egress).iter();
        paths.any(|row| {
            (self.up)(&path_of(row)).is_some_and(|state| state.condition < Condition::Down)
        })
    }

    /// The best path to an egress that is well enough and was not tried.
    fn path(
        &self,
        upstream: usize,
        egress: &Arc<str>,
        worst: Condition,
    ) -> Option<(Path, PathState)> {
        let spent = |one: &Tried| match one {
            Tried::Egress(at, id) => *at == upstream && id == egress,
            Tried::Aside(at) => *at == upstream,
            Tried::Path(_) => false,
        };
        if self.tried.iter().any(spent) {
            return None;
        }
        let ways = self.routes.ways(egress)?;
        let mut cheapest = Cheapest::new(ways.in_use());
        for (at, row) in ways.rows.iter().enumerate() {
            let path = path_of(row);
            let failed = |one: &Tried| matches!(one, Tried::Path(failed) if *failed == path);
            if self.tried.iter().any(failed) {
                continue;
            }
            let Some(state) = (self.up)(&path).filter(|state| state.condition <= worst) else {
                continue;
            };
            let cost_us = match state.whole {
                true => state.cost_us,
                false => self.expected_us(ways, row, state),
            };
            let state = PathState { cost_us, ..state };
            cheapest.offer(at, state.condition, cost_us, state);
        }
        let chosen = cheapest.chosen()?;
        if chosen.instead {
            ways.take(chosen.at);
        }
        Some((path_of(&ways.rows[chosen.at]), chosen.what))
    }

    /// What a path may cost of which only the first link is known.
    fn expected_us(&self, ways: &Ways, row: &PathRow, state: PathState) -> u64 {
        let direct = ways.rows.iter().find(|row| row.relay.is_none());
        let direct = direct.and_then(|direct| {
            let rtt = (self.up)(&path_of(direct))?.rtt;
            Some((u64::try_from(rtt.as_micros()).ok()?, direct.score))
        });
        cost::expected_us(state.cost_us, row.score, direct)
    }
}

fn path_of(row: &PathRow) -> Path {
    Path {
        egress: Arc::clone(&row.egress),
        relay: row.relay.clone(),
    }
}

impl<'a> Among<'a> {
    fn new(
        upstreams: &'a [UpstreamRow],
        base: usize,
        (careful, resting): (bool, bool),
        worst: Condition,
    ) -> Self {
        let slots = upstreams.iter();
        Self {
            upstreams,
            base,
            careful,
            resting,
            worst,
            slots: slots.map(|upstream| upstream.provider.egress.len()).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use vector_proto::control::v1;

    use super::*;

    /// Two egress nodes of one provider, and a second provider below it; a relay to the first. Some are said to drain.
    fn routes(draining: &[&str]) -> Routes {
        let node = |id: &str, role: &str| v1::NodeRecord {
            id: id.into(),
            roles: vec![role.into()],
            draining: draining.contains(&id),
            ..v1::NodeRecord::default()
        };
        let provider = |name: &str, egress: &[&str]| v1::Provider {
            name: name.into(),
            base_url: "https://api.test/v1".into(),
            egress: egress.iter().map(|id| (*id).to_owned()).collect(),
            ..v1::Provider::default()
        };
        let upstream = |provider: &str, priority: u32| v1::Upstream {
            provider: provider.into(),
            priority,
            ..v1::Upstream::default()
        };
        let path = |egress: &str, relay: &str, score: u64| v1::Path {
            from_region: "eu".into(),
            egress: egress.into(),
            relay: relay.into(),
            score,
        };
        let snapshot = v1::Snapshot {
            nodes: vec![
                node("e1", "egress"),
                node("e2", "egress"),
                node("e3", "egress"),
                node("r1", "relay"),
            ],
            providers: vec![provider("a", &["e1", "e2"]), provider("b", &["e3"])],
            models: vec![v1::Model {
                name: "m".into(),
                upstreams: vec![upstream("a", 1), upstream("b", 2)],
                ..v1::Model::default()
            }],
            paths: vec![
                path("e1", "", 1),
                path("e1", "r1", 2),
                path("e2", "", 1),
                path("e3", "", 1),
            ],
            ..v1::Snapshot::default()
        };
        Routes::compile(&snapshot, "eu").unwrap()
    }

    /// Where requests go, over many draws, when first hops are in these conditions; the others have no link.
    fn drawn(conditions: &[(&str, Condition)]) -> Vec<String> {
        drawn_while(&[], conditions)
    }

    /// The same with a snapshot that calls some nodes draining.
    fn drawn_while(draining: &[&str], conditions: &[(&str, Condition)]) -> Vec<String> {
        let routes = routes(draining);
        let target = Target {
            row: Arc::clone(routes.model("m").unwrap()),
            credential: Box::default(),
            names: None,
        };
        let known: HashMap<&str, Condition> = conditions.iter().copied().collect();
        let up = |path: &Path| {
            known.get(&**path.first_hop()).map(|condition| PathState {
                condition: *condition,
                rtt: Duration::from_millis(1),
                cost_us: 1_000,
                whole: true,
                outstanding: 0,
            })
        };
        let loads = Loads::new(Instant::now());
        let wish = Wish {
            target: &target,
            tried: &[],
            model: "m",
            affinity: 0,
            ahead: None,
        };
        let mut hops: Vec<String> = (0..200)
            .filter_map(|_| match choose(&routes, wish, &loads, &up) {
                Choice::Take(candidate) => Some(candidate.path.first_hop().to_string()),
                Choice::Rests(_) | Choice::Nobody => None,
            })
            .collect();
        hops.sort_unstable();
        hops.dedup();
        hops
    }

    #[test]
    fn paths_in_a_bad_condition_wait_for_those_that_are_better() {
        use Condition::{Down, Suspect, Up};
        assert_eq!(drawn(&[("e1", Up), ("e2", Up), ("e3", Up)]), ["e1", "e2"]);
        assert_eq!(drawn(&[("e1", Suspect), ("e2", Up)]), ["e2"]);
        assert_eq!(drawn(&[("e1", Suspect), ("r1", Up), ("e2", Down)]), ["r1"]);
        // A path that may well be fine does not push a request to what the operator put second,
        assert_eq!(drawn(&[("e1", Suspect), ("e2", Down), ("e3", Up)]), ["e1"]);
        // a dead one does, and is tried when there is nothing else.
        assert_eq!(
            drawn(&[("e1", Down), ("e2", Down), ("e3", Suspect)]),
            ["e3"]
        );
        assert_eq!(drawn(&[("e1", Down)]), ["e1"]);
        assert!(drawn(&[]).is_empty());
    }

    /// Over what requests to `e1` go one after the other, as its direct path and the one over `r1` come to cost this, in
    /// milliseconds; 0 for the latter if its relay tells nothing.
    fn over(costs_ms: &[(u64, u64)]) -> Vec<&'static str> {
        let (routes, loads) = (routes(&[]), Loads::new(Instant::now()));
        let target = Target {
            row: Arc::clone(routes.model("m").unwrap()),
            credential: Box::default(),
            names: None,
        };
        let wish = Wish {
            target: &target,
            tried: &[],
            model: "m",
            affinity: 0,
            ahead: None,
        };
        let over = costs_ms.iter().map(|&(direct_ms, relay_ms)| {
            let up = |path: &Path| {
                let state = |cost_ms, whole| PathState {
                    condition: Condition::Up,
                    rtt: Duration::from_millis(cost_ms),
                    cost_us: cost_ms * 1_000,
                    whole,
                    outstanding: 0,
                };
                match (&*path.egress, &path.relay, relay_ms) {
                    ("e1", None, _) => Some(state(direct_ms, true)),
                    ("e1", Some(_), 0) => Some(state(5, false)),
                    ("e1", Some(_), _) => Some(state(relay_ms, true)),
                    _ => None,
                }
            };
            match choose(&routes, wish, &loads, &up) {
                Choice::Take(candidate) if candidate.path.relay.is_some() => "relay",
                Choice::Take(_) => "direct",
                Choice::Rests(_) | Choice::Nobody => "nothing",
            }
        });
        over.collect()
    }

    #[test]
    fn a_path_is_left_for_one_that_is_clearly_better_as_both_are_measured() {
        // What the relay does not tell is as much longer as the snapshot says: here twice as long.
        assert_eq!(over(&[(150, 0)]), ["direct"]);
        assert_eq!(over(&[(150, 140)]), ["direct"]);
        // And is gone back to only when it is as much better.
        assert_eq!(
            over(&[(150, 120), (118, 120), (110, 120), (105, 120), (118, 120)]),
            ["relay", "relay", "relay", "direct", "direct"]
        );
        // One whose relay tells nothing any more counts for what is expected of it.
        assert_eq!(
            over(&[(150, 120), (150, 0), (150, 140), (150, 120)]),
            ["relay", "direct", "direct", "relay"]
        );
    }

    /// Where a request goes whose body has gone over a path, when the egress nodes cost this, in milliseconds; 0 for no link.
    fn after(ahead: &Path, (e1_ms, e2_ms): (u64, u64)) -> Vec<String> {
        let (routes, loads) = (routes(&[]), Loads::new(Instant::now()));
        let target = Target {
            row: Arc::clone(routes.model("m").unwrap()),
            credential: Box::default(),
            names: None,
        };
        let up = |path: &Path| {
            let cost_ms = match &*path.egress {
                "e1" if path.relay.is_none() => e1_ms,
                "e2" => e2_ms,
                "e3" => 1,
                _ => 0,
            };
            (cost_ms > 0).then(|| PathState {
                condition: Condition::Up,
                rtt: Duration::from_millis(cost_ms),
                cost_us: cost_ms * 1_000,
                whole: true,
                outstanding: 0,
            })
        };
        let wish = Wish {
            target: &target,
            tried: &[],
            model: "m",
            affinity: 0,
            ahead: Some(ahead),
        };
        let drawn = (0..100).filter_map(|_| match choose(&routes, wish, &loads, &up) {
            Choice::Take(candidate) => Some(candidate.path.egress.to_string()),
            Choice::Rests(_) | Choice::Nobody => None,
        });
        let mut drawn: Vec<String> = drawn.collect();
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    }

    #[test]
    fn who_has_the_body_is_asked_unless_another_is_clearly_better() {
        let e2 = Path::direct("e2".into());
        assert_eq!(after(&e2, (150, 150)), ["e2"]);
        assert_eq!(after(&e2, (150, 180)), ["e2"]);
        assert_eq!(after(&e2, (150, 200)), ["e1"]);
        assert_eq!(after(&e2, (150, 0)), ["e1"], "it is dead");
        // The operator's second choice, or another path to the same egress.
        let e3 = Path::direct("e3".into());
        assert_eq!(after(&e3, (150, 200)), ["e1"]);
        let relayed = Path {
            egress: "e2".into(),
            relay: Some("r1".into()),
        };
        assert_eq!(after(&relayed, (150, 200)), ["e1"]);
    }

    #[test]
    fn who_is_said_to_drain_is_taken_last_and_who_says_so_itself_never() {
        use Condition::Up;
        assert_eq!(
            drawn_while(&["e1"], &[("e1", Up), ("e2", Up), ("e3", Up)]),
            ["e2"]
        );
        // Rather the operator's second choice,
        assert_eq!(
            drawn_while(&["e1", "e2"], &[("e1", Up), ("e2", Up), ("e3", Up)]),
            ["e3"]
        );
        // but before nothing at all: its links take exchanges, so the snapshot is old.
        assert_eq!(drawn_while(&["e1", "e3"], &[("e3", Up)]), ["e3"]);
        // Its links take none.
        assert!(drawn_while(&["e1", "e2"], &[]).is_empty());
    }
}
