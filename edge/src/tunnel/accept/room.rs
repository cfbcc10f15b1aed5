//! How many links other nodes may hold to this one, in all and each of them.

use std::sync::Arc;

use super::Acceptor;
use crate::tunnel::link::Link;

/// Links that other nodes may hold at once.
const LINKS_MAX: usize = 16_384;

/// Of those, what one node may hold: to each of 8 addresses, 8 incarnations of it, so that dead ones may wait for their
/// time-out. It takes 256 nodes at this limit to keep another one out.
const LINKS_PER_NODE_MAX: usize = 64;

const _: () = assert!(LINKS_MAX / LINKS_PER_NODE_MAX == 256);

impl Acceptor {
    /// Whether a node may have another link, before it is greeted.
    pub(super) fn has_room(&self, node: &str, address: &str) -> Result<(), &'static str> {
        let room = room(node, &self.links.lock());
        self.told(room, node, address)
    }

    /// Takes a link in. Several may have been greeted at once, so they are counted again.
    pub(super) fn seat(&self, link: &Arc<Link>) -> Result<(), &'static str> {
        let mut links = self.links.lock();
        let room = room(&link.peer, &links);
        if room.is_ok() {
            links.push(Arc::clone(link));
        }
        drop(links);
        self.told(room, &link.peer, &link.address)
    }

    fn told(
        &self,
        room: Result<(), &'static str>,
        node: &str,
        address: &str,
    ) -> Result<(), &'static str> {
        room.inspect_err(|reason| {
            tracing::warn!(address, peer = node, reason, "connection refused");
            self.tunnel.tally().links_refused.inc();
        })
    }
}

fn room(node: &str, links: &[Arc<Link>]) -> Result<(), &'static str> {
    if links.len() >= LINKS_MAX {
        return Err("too many links");
    }
    let held = links.iter().filter(|link| *link.peer == *node).count();
    match held < LINKS_PER_NODE_MAX {
        true => Ok(()),
        false => Err("too many links of one node"),
    }
}
