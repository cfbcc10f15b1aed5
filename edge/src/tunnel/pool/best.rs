//! Which of several links is taken.

use std::sync::Arc;

use super::Links;
use crate::tunnel::{Condition, Link, cost};

/// The best link over any of the first hops, over which a running exchange may go on; of equals, the one that is named first.
///
/// Another connection of the path that failed is another way only if there is no other that is alive: what a path does to one
/// of its connections, it mostly does to all.
pub(super) fn best_way<'a>(
    links: &Links,
    hops: impl Iterator<Item = &'a str>,
    failed: Option<&Arc<Link>>,
    rank: impl Fn(&Link) -> (Condition, u64),
) -> Option<Arc<Link>> {
    let beside = |link: &Link| failed.is_some_and(|failed| are_of_one_path(failed, link));
    let best = |hop, beside_it: bool| {
        let of_hop: &Vec<Arc<Link>> = links.get(hop)?;
        best_of(of_hop.iter().filter(|link| {
            let other = failed.is_none_or(|failed| !Arc::ptr_eq(failed, link));
            other && link.carries() && beside(link) == beside_it
        }))
    };
    hops.flat_map(|hop| [best(hop, false), best(hop, true)])
        .flatten()
        .min_by_key(|link| {
            let (condition, cost_us) = rank(link);
            let dead = condition == Condition::Down;
            (dead, beside(link), condition, cost_us)
        })
        .cloned()
}

/// The best of one peer's links over which a running exchange may go on.
pub(super) fn best_carrying(links: &[Arc<Link>]) -> Option<&Arc<Link>> {
    best_of(links.iter().filter(|link| link.carries()))
}

/// The best link for a new exchange. A dead one is better than none: its path may come back before its connection is
/// given up.
pub(super) fn least_loaded(links: &[Arc<Link>]) -> Option<&Arc<Link>> {
    let takes = |link: &&Arc<Link>| !link.draining() && !link.is_down();
    best_of(links.iter().filter(takes))
}

/// Of several links to one peer, one in the best condition than which none is clearly cheaper, and of those the one with
/// the least on it.
fn best_of<'a>(links: impl Iterator<Item = &'a Arc<Link>> + Clone) -> Option<&'a Arc<Link>> {
    let rank = |link: &&Arc<Link>| {
        let way = link.way();
        (way.condition, way.cost_us)
    };
    let cheapest = links.clone().min_by_key(rank)?;
    let (condition, cost_us) = rank(&cheapest);
    let as_good = |link: &&Arc<Link>| {
        let way = link.way();
        way.condition <= condition && !cost::is_clearly_cheaper(cost_us, way.cost_us)
    };
    let lightest = links.filter(as_good).min_by_key(|link| link.load());
    // What was measured may change while it is looked at.
    lightest.or(Some(cheapest))
}

/// The same for what its egress has already: a peer that drains takes nothing new, and keeps what it has.
pub(super) fn least_loaded_of_all(links: &[Arc<Link>]) -> Option<&Arc<Link>> {
    let there = links.iter().filter(|link| !link.is_down());
    there.min_by_key(|link| (link.draining(), link.condition(), link.load()))
}

/// Whether two links go between the same two sockets.
fn are_of_one_path(one: &Link, other: &Link) -> bool {
    let ends = |link: &Link| {
        let quic = link.over_quic()?;
        Some((quic.remote_address(), quic.local_address()))
    };
    ends(one).is_some_and(|of| ends(other) == Some(of))
}
