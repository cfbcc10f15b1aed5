//! Says where a request for a model would go now, and why not elsewhere. Pure.

use vector_proto::control::v1::{
    Candidate, ExplainRouteRequest, ExplainRouteResponse, Path, Snapshot, Upstream,
};

use super::{Inputs, compile::may_call};

/// Candidates told at most.
const CANDIDATES_MAX: usize = 500;

/// Explains by the snapshot in force and what it was made from.
#[must_use]
pub fn explain(
    asked: &ExplainRouteRequest,
    snapshot: &Snapshot,
    inputs: Inputs<'_>,
) -> ExplainRouteResponse {
    let (upstreams, mut note) = chosen(asked, snapshot);
    let region = if asked.region.is_empty() {
        let mut ingress = snapshot
            .nodes
            .iter()
            .filter(|node| node.roles.iter().any(|role| role == "ingress"));
        ingress
            .next()
            .map_or(String::new(), |node| node.region.clone())
    } else {
        asked.region.clone()
    };
    if region.is_empty() {
        note.push_str("; no ingress node has ever connected");
    } else {
        note = format!(
            "{note}; as seen from region {region}. Costs are expected; of several paths to an egress, an ingress takes another one where that measures clearly better"
        );
    }
    let mut candidates = Vec::new();
    for upstream in upstreams {
        of_upstream(upstream, &region, snapshot, inputs, &mut candidates);
    }
    candidates.sort_by_key(|candidate| {
        let priority = candidate.upstream.as_ref().map_or(0, |up| up.priority);
        (!candidate.usable, priority, candidate.score)
    });
    candidates.truncate(CANDIDATES_MAX);
    ExplainRouteResponse { candidates, note }
}

/// The upstreams that serve what is asked for, and by which row.
fn chosen<'a>(asked: &ExplainRouteRequest, snapshot: &'a Snapshot) -> (&'a [Upstream], String) {
    if !asked.model.is_empty() {
        let named = |name: &str| snapshot.models.iter().find(|model| model.name == name);
        return match named(&asked.model) {
            Some(model) => (&model.upstreams, format!("model `{}`", model.name)),
            None => match named("*") {
                Some(model) => (
                    &model.upstreams,
                    "model `*`, which stands for every other name".to_owned(),
                ),
                None => (
                    &[],
                    format!(
                        "no model `{}` is configured, and none named `*`",
                        asked.model
                    ),
                ),
            },
        };
    }
    let family = asked
        .operation
        .rsplit_once('.')
        .map(|(family, _)| format!("{family}.*"));
    let names = [Some(asked.operation.clone()), family, Some("*".to_owned())];
    for name in names.into_iter().flatten() {
        if let Some(route) = snapshot
            .default_routes
            .iter()
            .find(|route| route.operation == name)
        {
            return (&route.upstreams, format!("default route `{name}`"));
        }
    }
    (
        &[],
        format!("no default route covers `{}`", asked.operation),
    )
}

fn of_upstream(
    upstream: &Upstream,
    region: &str,
    snapshot: &Snapshot,
    inputs: Inputs<'_>,
    candidates: &mut Vec<Candidate>,
) {
    let mut push = |egress: &str, relay: &str, score: u64, why_not: &str| {
        candidates.push(Candidate {
            upstream: Some(upstream.clone()),
            egress: egress.to_owned(),
            relay: relay.to_owned(),
            score,
            usable: why_not.is_empty(),
            why_not: why_not.to_owned(),
        });
    };
    let Some(spec) = inputs.catalog.providers.get(&upstream.provider) else {
        return push("", "", 0, "the provider is not configured");
    };
    if !has_credential(inputs, &spec.name) {
        return push(
            "",
            "",
            0,
            "the provider has no credential that is switched on",
        );
    }
    let listed = snapshot
        .providers
        .iter()
        .find(|provider| provider.name == spec.name);
    let listed = listed.map_or(&[][..], |provider| &provider.egress);
    let mut any = false;
    for (node, seen) in inputs
        .nodes
        .iter()
        .filter(|(node, _)| node.roles.iter().any(|role| role == "egress"))
    {
        any = true;
        if !may_call(spec, node) {
            push(
                &node.id,
                "",
                0,
                "the provider's `egress` list leaves this node out",
            );
        } else if seen.is_none() {
            push(&node.id, "", 0, "the node has never connected");
        } else if !listed.contains(&node.id) {
            push(&node.id, "", 0, "the node is not connected");
        } else {
            let draining = node.draining || inputs.usable.draining.contains(&node.id);
            let why_not = if draining { "the node is draining" } else { "" };
            let from_here = |path: &&Path| path.egress == node.id && path.from_region == region;
            let mut reached = false;
            for path in snapshot.paths.iter().filter(from_here) {
                reached = true;
                push(&node.id, &path.relay, path.score, why_not);
            }
            if !reached {
                push(
                    &node.id,
                    "",
                    0,
                    "no ingress of this region has ever connected",
                );
            }
        }
    }
    if !any {
        push("", "", 0, "the network has no egress node");
    }
}

fn has_credential(inputs: Inputs<'_>, provider: &str) -> bool {
    let mut credentials = inputs.catalog.credentials.values();
    credentials.any(|stored| stored.spec.provider == provider && !stored.spec.disabled)
}
