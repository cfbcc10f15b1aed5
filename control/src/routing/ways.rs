//! The ways from each region's ingress nodes to each egress, and those that were found last.
//!
//! Most changes move no node: then the ways are what they were, and so are their bytes, which are most of a large snapshot.
//! Finding them is pure. What was kept stands for the very same ends only, so it saves time and decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use prost::Message as _;
use ring::digest::{SHA256, digest};
use vector_proto::control::v1::{Path, Provider, Snapshot};

use super::Inputs;
use crate::registry::NodeSpec;

/// What a link inside a region is expected to cost: one millisecond. Which relays are candidates follows from what is expected,
/// so that every replica finds the same; which of the candidates is taken, each ingress judges by what it measures on its own
/// links and its relays tell it of theirs.
const NEAR_US: u64 = 1_000;

/// What a link between regions is expected to cost.
const FAR_US: u64 = 80_000;

/// What a relay adds to the links on both its sides.
const RELAY_US: u64 = 5_000;

/// Relays that may carry exchanges between two regions.
///
/// Every one of them in every path would make 1.2 million rows of 1,000 nodes (ten regions, each with 30 ingress, 40 egress
/// and 30 relay nodes), some 60 MB, told to each. With four it is 20,000 rows and about 1 MB, 2,000 of them an ingress's own,
/// and one relay is seldom the only way left: a path is cut, its relay dies and there are three. An ingress keeps a link warm
/// to each address of every egress and of the relays in its own paths: 400 and at most 40, at a heartbeat a second while nobody
/// uses it. Shown by `a_thousand_nodes_compile_to_a_bounded_sum`.
pub(super) const RELAYS_MAX: usize = 4;

/// Sets of ways that are kept: as if everybody were there, for those who judge a change, and as they are told. Two megabytes
/// each with 1,000 nodes.
const KEPT: usize = 2;

/// Every way of a snapshot.
#[derive(Debug, Default)]
pub(super) struct Ways {
    pub(super) paths: Vec<Path>,
    /// The same, as they stand in a snapshot.
    pub(super) encoded: Bytes,
}

/// A node that a way leads to or over.
#[derive(Debug, Eq, Ord, PartialEq, PartialOrd)]
struct End {
    id: String,
    region: String,
}

/// All that ways follow from.
#[derive(Debug, Eq, PartialEq)]
struct Ends {
    from: BTreeSet<String>,
    /// By id.
    egress: Vec<End>,
    relays: Vec<End>,
}

/// The ways that were found last, newest first.
#[derive(Debug, Default)]
pub(super) struct Found {
    kept: Mutex<VecDeque<(Ends, Arc<Ways>)>>,
}

impl Found {
    /// Every way to an egress of these providers.
    pub(super) fn between(&self, inputs: Inputs<'_>, providers: &[Provider]) -> Arc<Ways> {
        let ends = Ends::of(inputs, providers);
        let mut kept = self.kept.lock();
        let known = kept.iter().position(|(of, _)| *of == ends);
        let found = match known.and_then(|at| kept.remove(at)) {
            Some((_, ways)) => ways,
            // Nobody else can go on without them.
            None => Arc::new(Ways::between(&ends)),
        };
        kept.push_front((ends, Arc::clone(&found)));
        kept.truncate(KEPT);
        found
    }
}

impl Ends {
    fn of(inputs: Inputs<'_>, providers: &[Provider]) -> Self {
        let used: BTreeSet<&str> = providers
            .iter()
            .flat_map(|provider| &provider.egress)
            .map(String::as_str)
            .collect();
        let end = |node: &NodeSpec| End {
            id: node.id.clone(),
            region: node.region.clone(),
        };
        let egress = inputs.known("egress");
        let mut egress: Vec<End> = egress
            .filter(|node| used.contains(node.id.as_str()))
            .map(end)
            .collect();
        egress.sort();
        let from = inputs.known("ingress");
        let relays = inputs.known("relay");
        Self {
            from: from.map(|node| node.region.clone()).collect(),
            egress,
            relays: relays
                .filter(|node| inputs.is_usable(&node.id))
                .map(end)
                .collect(),
        }
    }
}

impl Ways {
    fn between(ends: &Ends) -> Self {
        let Ends {
            from,
            egress,
            relays,
        } = ends;
        let mut paths = Vec::with_capacity(from.len() * egress.len() * (1 + RELAYS_MAX));
        for region in from {
            let mut between: BTreeMap<&str, Vec<(u64, &End)>> = BTreeMap::new();
            for node in egress {
                let path = |relay: &str, score| Path {
                    from_region: region.clone(),
                    egress: node.id.clone(),
                    relay: relay.to_owned(),
                    score,
                };
                let first = paths.len();
                paths.push(path("", link_us(region, &node.region)));
                let best = between
                    .entry(&node.region)
                    .or_insert_with(|| best_relays(relays, region, &node.region));
                let others = best.iter().filter(|(_, relay)| relay.id != node.id);
                let others = others.take(RELAYS_MAX);
                paths.extend(others.map(|(score, relay)| path(&relay.id, *score)));
                // Regions and egress nodes come in order.
                paths[first..].sort_by(|a, b| (a.score, &a.relay).cmp(&(b.score, &b.relay)));
            }
        }
        let alone = Snapshot {
            paths,
            ..Snapshot::default()
        };
        Self {
            encoded: alone.encode_to_vec().into(),
            paths: alone.paths,
        }
    }
}

/// The relays with the lowest scores between two regions; of equals, other ones for each pair, so that all are used. One
/// more than a path may have, since an egress is not its own relay.
fn best_relays<'a>(relays: &'a [End], from: &str, to: &str) -> Vec<(u64, &'a End)> {
    let score = |relay: &End| link_us(from, &relay.region) + link_us(&relay.region, to) + RELAY_US;
    let mut scored: Vec<_> = relays.iter().map(|relay| (score(relay), relay)).collect();
    scored.sort_by_key(|(score, _)| *score);
    // Lots are drawn only among those that may be chosen.
    if let Some(&(last, _)) = scored.get(RELAYS_MAX) {
        scored.truncate(scored.partition_point(|(score, _)| *score <= last));
    }
    scored.sort_by_cached_key(|(score, relay)| (*score, lot(from, to, &relay.id)));
    scored.truncate(RELAYS_MAX + 1);
    scored
}

fn lot(from: &str, to: &str, relay: &str) -> Vec<u8> {
    let names = [from, to, relay].join("\0");
    digest(&SHA256, names.as_bytes()).as_ref().to_vec()
}

fn link_us(from: &str, to: &str) -> u64 {
    if from == to { NEAR_US } else { FAR_US }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(id: String, region: usize) -> End {
        End {
            id,
            region: format!("region-{region}"),
        }
    }

    #[test]
    fn lots_decide_only_among_the_nearest() {
        let relays: Vec<End> = (0..60).map(|n| end(format!("relay-{n}"), n % 5)).collect();
        for (from, to) in [(0, 1), (2, 2), (7, 3), (7, 8)] {
            let (from, to) = (format!("region-{from}"), format!("region-{to}"));
            let rank = |relay: &End| {
                let score = link_us(&from, &relay.region) + link_us(&relay.region, &to) + RELAY_US;
                (score, lot(&from, &to, &relay.id))
            };
            let mut all: Vec<&End> = relays.iter().collect();
            all.sort_by_cached_key(|relay| rank(relay));
            let best: Vec<&End> = best_relays(&relays, &from, &to)
                .into_iter()
                .map(|(_, relay)| relay)
                .collect();
            assert_eq!(best, all[..=RELAYS_MAX]);
        }
        assert_eq!(best_relays(&relays[..2], "region-0", "region-1").len(), 2);
    }

    #[test]
    fn ways_come_in_order() {
        let ends = Ends {
            from: BTreeSet::from(["region-1".to_owned(), "region-0".to_owned()]),
            egress: (0..6).map(|n| end(format!("egress-{n}"), n % 3)).collect(),
            relays: (0..9).map(|n| end(format!("relay-{n}"), n % 3)).collect(),
        };
        let ways = Ways::between(&ends);
        let order = |path: &Path| {
            (
                path.from_region.clone(),
                path.egress.clone(),
                path.score,
                path.relay.clone(),
            )
        };
        assert!(ways.paths.is_sorted_by_key(order));
        assert_eq!(ways.paths.len(), 2 * 6 * (1 + RELAYS_MAX));
    }
}
