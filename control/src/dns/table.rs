//! Which addresses are answered: those of ingress nodes that can be used, by region.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    health::Usable,
    registry::{NodeSpec, Seen},
};

/// Addresses of one answer.
const ADDRESSES_MAX: usize = 3;

/// See the module.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Table {
    regions: BTreeMap<String, Region>,
}

/// Each once, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Region {
    v4: BTreeSet<Ipv4Addr>,
    v6: BTreeSet<Ipv6Addr>,
}

impl Table {
    /// Of the nodes that there are. When none of them can be used, of those that no operator drains, and then of all: an
    /// address that may work is better than none. `private`: also those that strangers cannot reach.
    pub(super) fn of(nodes: &[(NodeSpec, Option<Seen>)], usable: &Usable, private: bool) -> Self {
        let all: Vec<(&NodeSpec, Vec<IpAddr>)> = nodes
            .iter()
            .filter(|(spec, _)| spec.roles.iter().any(|role| role == "ingress"))
            .filter_map(|(spec, seen)| Some((spec, addresses(seen.as_ref()?, private))))
            .filter(|(_, addresses)| !addresses.is_empty())
            .collect();
        let kept = |spec: &NodeSpec| !spec.draining && !usable.draining.contains(&spec.id);
        let good = |spec: &NodeSpec| kept(spec) && (usable.all || usable.ids.contains(&spec.id));
        let among = |which: &dyn Fn(&NodeSpec) -> bool| {
            let mut table = Self::default();
            for (spec, addresses) in all.iter().filter(|(spec, _)| which(spec)) {
                let region = table.regions.entry(spec.region.clone()).or_default();
                for address in addresses {
                    match address {
                        IpAddr::V4(address) => region.v4.insert(*address),
                        IpAddr::V6(address) => region.v6.insert(*address),
                    };
                }
            }
            (!table.regions.is_empty()).then_some(table)
        };
        among(&good)
            .or_else(|| among(&kept))
            .or_else(|| among(&|_| true))
            .unwrap_or_default()
    }

    pub(super) fn has(&self, region: &str) -> bool {
        self.regions.contains_key(region)
    }

    /// Regions with an ingress: those of the order first, then the others.
    fn along<'a>(
        &'a self,
        order: impl Iterator<Item = &'a str>,
    ) -> impl Iterator<Item = &'a Region> {
        let mut named = BTreeSet::new();
        let first: Vec<&Region> = order
            .filter(|name| named.insert(*name))
            .filter_map(|name| self.regions.get(name))
            .collect();
        let others = self.regions.iter();
        let others = others.filter(move |(name, _)| !named.contains(name.as_str()));
        first.into_iter().chain(others.map(|(_, region)| region))
    }

    /// IPv4 addresses of the first region that has any: who asks for them may have nothing else.
    pub(super) fn v4<'a>(
        &'a self,
        order: impl Iterator<Item = &'a str>,
        turn: usize,
    ) -> Vec<Ipv4Addr> {
        let mut regions = self.along(order);
        let region = regions.find(|region| !region.v4.is_empty());
        region.map_or_else(Vec::new, |region| some(&region.v4, turn))
    }

    /// IPv6 addresses of the first region. When it has none, none: clients that have both families would go to a region
    /// farther away by this one.
    pub(super) fn v6<'a>(
        &'a self,
        order: impl Iterator<Item = &'a str>,
        turn: usize,
    ) -> Vec<Ipv6Addr> {
        let region = self.along(order).next();
        region.map_or_else(Vec::new, |region| some(&region.v6, turn))
    }

    /// Addresses of one region alone.
    pub(super) fn only_v4(&self, region: &str, turn: usize) -> Vec<Ipv4Addr> {
        let region = self.regions.get(region);
        region.map_or_else(Vec::new, |region| some(&region.v4, turn))
    }

    /// The same, IPv6.
    pub(super) fn only_v6(&self, region: &str, turn: usize) -> Vec<Ipv6Addr> {
        let region = self.regions.get(region);
        region.map_or_else(Vec::new, |region| some(&region.v6, turn))
    }
}

/// A few of them; the next turn begins at the next one, so that all get their share.
fn some<A: Copy>(all: &BTreeSet<A>, turn: usize) -> Vec<A> {
    let skipped = turn.checked_rem(all.len()).unwrap_or(0);
    let count = all.len().min(ADDRESSES_MAX);
    all.iter()
        .cycle()
        .skip(skipped)
        .take(count)
        .copied()
        .collect()
}

/// What the node says, or what its URLs have for hosts.
fn addresses(seen: &Seen, private: bool) -> Vec<IpAddr> {
    let said = seen.public_addresses.iter().map(String::as_str);
    let mut addresses: Vec<IpAddr> = said.filter_map(|text| text.parse().ok()).collect();
    if addresses.is_empty() {
        let urls = seen.client_urls.iter();
        addresses = urls.filter_map(|url| literal(url)).collect();
    }
    addresses.retain(|address| private || is_public(*address));
    addresses
}

fn literal(url: &str) -> Option<IpAddr> {
    let url: http::Uri = url.parse().ok()?;
    let host = url.host()?;
    host.trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = address.octets()[0] == 100 && address.octets()[1] & 0xC0 == 64;
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast()
                || shared)
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address.to_ipv4_mapped().is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Node = (NodeSpec, Option<Seen>);

    fn node(id: &str, region: &str, addresses: &[&str]) -> Node {
        let spec = NodeSpec {
            id: id.to_owned(),
            region: region.to_owned(),
            roles: vec!["ingress".to_owned()],
            ..NodeSpec::default()
        };
        let seen = Seen {
            public_addresses: addresses.iter().map(|&text| text.to_owned()).collect(),
            ..Seen::default()
        };
        (spec, Some(seen))
    }

    fn usable(ids: &[&str]) -> Usable {
        Usable {
            ids: ids.iter().map(|&id| id.to_owned()).collect(),
            ..Usable::default()
        }
    }

    fn v4(table: &Table, order: &[&str]) -> Vec<String> {
        let found = table.v4(order.iter().copied(), 0);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_nearest_that_can_be_used_is_answered() {
        let nodes = [
            node("a", "eu", &["192.0.2.1"]),
            node("b", "us", &["192.0.2.2"]),
            node("c", "us", &["192.0.2.3"]),
        ];
        let table = |ids: &[&str]| Table::of(&nodes, &usable(ids), false);
        assert_eq!(v4(&table(&["a", "b", "c"]), &["eu"]), ["192.0.2.1"]);
        assert_eq!(v4(&table(&["b", "c"]), &["eu"]), ["192.0.2.2", "192.0.2.3"]);
        assert_eq!(v4(&table(&["a", "c"]), &["us", "eu"]), ["192.0.2.3"]);
        assert_eq!(
            v4(&table(&[]), &["us"]),
            ["192.0.2.2", "192.0.2.3"],
            "who may work"
        );
        let turned = table(&["b", "c"]).v4(["us"].into_iter(), 3);
        assert_eq!(turned[0].to_string(), "192.0.2.3");
    }

    #[test]
    fn who_drains_is_the_last_to_be_answered() {
        let mut nodes = [
            node("a", "eu", &["192.0.2.1"]),
            node("b", "us", &["192.0.2.2"]),
        ];
        nodes[0].0.draining = true;
        assert_eq!(
            v4(&Table::of(&nodes, &usable(&["a"]), false), &["eu"]),
            ["192.0.2.2"]
        );
        nodes[1].0.draining = true;
        assert_eq!(
            v4(&Table::of(&nodes, &usable(&["a"]), false), &["eu"]),
            ["192.0.2.1"]
        );
    }

    #[test]
    fn ipv6_leads_nobody_farther_away() {
        let nodes = [
            node("a", "eu", &["192.0.2.1"]),
            node("b", "us", &["2001:db8::2"]),
        ];
        let table = Table::of(&nodes, &usable(&["a", "b"]), false);
        assert!(table.v6(["eu"].into_iter(), 0).is_empty());
        assert_eq!(table.v6(["us"].into_iter(), 0).len(), 1);
        assert_eq!(
            v4(&table, &["us"]),
            ["192.0.2.1"],
            "who has only IPv4 goes on"
        );
    }

    #[test]
    fn addresses_are_said_or_stand_in_the_url_and_can_be_reached() {
        let of = |addresses: &[&str], url: &str, private| {
            let (spec, seen) = node("a", "eu", addresses);
            let seen = Seen {
                client_urls: vec![url.to_owned()],
                ..seen.unwrap()
            };
            v4(
                &Table::of(&[(spec, Some(seen))], &usable(&["a"]), private),
                &[],
            )
        };
        assert_eq!(of(&[], "https://192.0.2.9:8443", false), ["192.0.2.9"]);
        assert_eq!(
            of(&["192.0.2.1"], "https://192.0.2.9", false),
            ["192.0.2.1"]
        );
        assert!(of(&[], "https://edge.example.com", false).is_empty());
        for hidden in [
            "127.0.0.1",
            "10.1.2.3",
            "100.64.0.1",
            "0.0.0.0",
            "169.254.1.1",
            "224.0.0.1",
        ] {
            assert!(of(&[hidden], "", false).is_empty(), "{hidden}");
            assert_eq!(of(&[hidden], "", true), [hidden]);
        }
    }
}
