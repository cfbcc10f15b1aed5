//! Which links this node keeps, and how its identity proves itself on them.

use std::{collections::HashSet, sync::Arc};

use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::CertificateDer;

use crate::{
    config::Role,
    control_plane::Routes,
    identity::Identity,
    telemetry::Telemetry,
    tunnel::{Credentials, Peer, Relays, dial::Wanted, tally::Tally, transport::quic::ALPN},
};

/// The node's identity, as the tunnel asks for it.
#[derive(Debug)]
pub(super) struct TunnelCredentials(pub(super) Identity);

impl Credentials for TunnelCredentials {
    fn client(&self) -> Arc<rustls::ClientConfig> {
        self.0.client_config(ALPN)
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        self.0.server_config(ALPN)
    }

    fn server_name(&self, node: &str) -> String {
        self.0.server_name(node)
    }

    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer> {
        let peer = self.0.peer(chain)?;
        Some(Peer {
            node: peer.id.as_str().into(),
            roles: peer.roles.iter().map(ToString::to_string).collect(),
        })
    }
}

/// An ingress reaches every egress, and the relays over which a path of its region leads; a relay every egress; nobody dials
/// itself.
///
/// Of 1,000 nodes (ten regions, each with 30 ingress, 40 egress and 30 relay nodes) an ingress holds 400 links to egress nodes
/// and at most 40 to relays, four for each region that a path may lead to, in place of 300.
pub(super) fn wanted(routes: &Routes, roles: &[Role], me: &str) -> Vec<Wanted> {
    let ingress = roles.contains(&Role::Ingress);
    let relay = roles.contains(&Role::Relay);
    let others = routes.nodes.iter().filter(|(id, _)| &***id != me);
    let egress = routes.nodes.iter().filter(|(_, node)| node.egress);
    let ways = egress.flat_map(|(id, _)| routes.paths(id));
    let relays: HashSet<&str> = ways.filter_map(|way| way.relay.as_deref()).collect();
    let reached = others.filter(|(id, node)| {
        (ingress && (node.egress || relays.contains(&***id))) || (relay && node.egress)
    });
    let mut wanted: Vec<Wanted> = reached
        .flat_map(|(id, node)| {
            let to = |address: &Arc<str>| Wanted {
                peer: Arc::clone(id),
                address: Arc::clone(address),
            };
            node.tunnel_addresses.iter().map(to)
        })
        .collect();
    wanted.sort_by(|a, b| (&a.peer, &a.address).cmp(&(&b.peer, &b.address)));
    wanted
}

/// The relays over which each egress may be reached, best first.
pub(super) fn relays(routes: &Routes) -> Relays {
    let egress = routes.nodes.iter().filter(|(_, node)| node.egress);
    egress
        .map(|(id, _)| {
            let paths = routes.paths(id).iter();
            let relays = paths.filter_map(|path| path.relay.clone());
            (Arc::clone(id), relays.collect())
        })
        .collect()
}

/// A counter's name, what it counts, and which it is.
type Shown = (&'static str, &'static str, fn(&Tally) -> &Counter);

/// What shows how often what keeps exchanges alive was used.
const SHOWN: &[Shown] = &[
    (
        "exchange_moves",
        "Times that an end of an exchange went on over another path",
        |tally| &tally.moved,
    ),
    (
        "exchange_orphans",
        "Exchanges ended at the egress, with no way to their ingress left",
        |tally| &tally.orphaned,
    ),
    (
        "exchange_unacknowledged",
        "Answers let go at the egress, as their ingress never acknowledged them",
        |tally| &tally.unacknowledged,
    ),
    (
        "exchange_hedges",
        "OPENs sent over a second path as the first was late",
        |tally| &tally.hedges,
    ),
    (
        "exchange_hedges_won",
        "Hedges that were accepted first",
        |tally| &tally.hedges_won,
    ),
    (
        "exchange_doubles",
        "Pieces of exchanges sent over two paths at once",
        |tally| &tally.doubled,
    ),
    (
        "exchange_doubles_first",
        "Pieces whose copy came first",
        |tally| &tally.doubles_first,
    ),
    (
        "exchange_repairs",
        "Datagrams of repair symbols that were sent behind requests",
        |tally| &tally.repairs_sent,
    ),
    (
        "exchange_mended",
        "Parts of requests that were whole by repair symbols, before what they had lost came again",
        |tally| &tally.mended,
    ),
    (
        "exchange_stale_acks",
        "Acknowledgements of less than was acknowledged before: overtaken on their way, or a peer's fault",
        |tally| &tally.stale_acks,
    ),
    (
        "exchange_ahead",
        "Exchanges opened for a body that goes ahead of what is asked",
        |tally| &tally.ahead,
    ),
    (
        "exchange_ahead_begun",
        "Of those, the ones that were asked for",
        |tally| &tally.ahead_begun,
    ),
    (
        "exchange_ahead_missed",
        "Of those, the ones given up as somebody else was asked, or nobody",
        |tally| &tally.ahead_missed,
    ),
    (
        "links_refused",
        "Links of other nodes that were refused, as there were too many",
        |tally| &tally.links_refused,
    ),
];

/// Shows it.
pub(super) fn show(telemetry: &Telemetry, tally: &Tally) {
    for (name, help, counter) in SHOWN {
        telemetry.register(name, help, counter(tally).clone());
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1;

    use super::*;

    fn routes() -> Routes {
        let node = |id: &str, role: &str| v1::NodeRecord {
            id: id.into(),
            roles: vec![role.into()],
            tunnel_addresses: vec![format!("{id}.test:7440")],
            ..v1::NodeRecord::default()
        };
        let path = |egress: &str, relay: &str| v1::Path {
            from_region: "eu".into(),
            egress: egress.into(),
            relay: relay.into(),
            score: 1,
        };
        let snapshot = v1::Snapshot {
            nodes: vec![
                node("i1", "ingress"),
                node("e1", "egress"),
                node("e2", "egress"),
                node("r1", "relay"),
                node("r2", "relay"),
                node("r3", "relay"),
            ],
            paths: vec![
                path("e1", ""),
                path("e1", "r1"),
                path("e2", ""),
                path("e2", "r3"),
            ],
            ..v1::Snapshot::default()
        };
        Routes::compile(&snapshot, "eu").unwrap()
    }

    #[test]
    fn links_go_to_every_egress_and_to_relays_that_are_in_a_path() {
        let of = |roles: &[Role], me: &str| -> Vec<String> {
            let wanted = wanted(&routes(), roles, me);
            wanted.iter().map(|to| to.peer.to_string()).collect()
        };
        assert_eq!(of(&[Role::Ingress], "i1"), ["e1", "e2", "r1", "r3"]);
        assert_eq!(of(&[Role::Relay], "r1"), ["e1", "e2"]);
        assert_eq!(of(&[Role::Ingress, Role::Egress], "e1"), ["e2", "r1", "r3"]);
        assert!(of(&[Role::Egress], "e1").is_empty());
    }
}
