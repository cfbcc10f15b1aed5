//! What the network measures of itself now, as its nodes said last.

use std::collections::BTreeMap;

use vector_proto::control::v1::{
    NodeView, PathView, ShowScoresResponse, UpstreamSeen, UpstreamStatus, UpstreamView,
};

/// Rows of a kind told at most.
const ROWS_MAX: usize = 10_000;

/// Sorts what nodes said by upstream and by path.
pub(super) fn scores(nodes: &[NodeView]) -> ShowScoresResponse {
    let mut upstreams = Upstreams::new();
    let (mut paths, mut models) = (Vec::new(), 0);
    for node in nodes.iter().filter(|node| node.connected) {
        let (Some(record), Some(status)) = (&node.record, &node.status) else {
            continue;
        };
        for pool in &status.pools {
            if let Some(row) = row(&mut upstreams, &pool.provider, &record.id) {
                row.pool = Some(pool.clone());
            }
        }
        let of = |status: &UpstreamStatus| UpstreamSeen {
            ingress: record.id.clone(),
            status: Some(status.clone()),
        };
        for seen in &status.upstreams {
            if let Some(row) = row(&mut upstreams, &seen.provider, &seen.egress) {
                row.seen.push(of(seen));
            }
        }
        for seen in status.models.iter().take(ROWS_MAX - models) {
            if let Some(row) = row(&mut upstreams, &seen.provider, &seen.egress) {
                row.models.push(of(seen));
                models += 1;
            }
        }
        let left = ROWS_MAX - paths.len();
        paths.extend(status.links.iter().take(left).map(|link| PathView {
            node: record.id.clone(),
            region: record.region.clone(),
            link: Some(link.clone()),
        }));
    }
    ShowScoresResponse {
        upstreams: upstreams.into_values().collect(),
        paths,
    }
}

/// By provider and egress.
type Upstreams = BTreeMap<(String, String), UpstreamView>;

/// The row of an upstream; none if there are absurdly many.
fn row<'a>(
    upstreams: &'a mut Upstreams,
    provider: &str,
    egress: &str,
) -> Option<&'a mut UpstreamView> {
    let key = (provider.to_owned(), egress.to_owned());
    if upstreams.len() >= ROWS_MAX && !upstreams.contains_key(&key) {
        return None;
    }
    let row = upstreams.entry(key).or_default();
    provider.clone_into(&mut row.provider);
    egress.clone_into(&mut row.egress);
    Some(row)
}
