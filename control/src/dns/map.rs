//! Which clients are in which region: a static map, read at the start. The longest prefix wins.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::Path,
};

use serde::Deserialize;

use super::Error;

/// Prefixes of a map.
const PREFIXES_MAX: usize = 1_000_000;

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Regions for clients that are in none, best first.
    #[serde(default)]
    default: Vec<String>,
    #[serde(default)]
    region: BTreeMap<String, Place>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    /// Where its clients are.
    #[serde(default)]
    subnets: Vec<String>,
    /// Regions to go to when it has no ingress, best first.
    #[serde(default)]
    near: Vec<String>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Map {
    default: Vec<String>,
    near: Vec<(String, Vec<String>)>,
    v4: Prefixes,
    v6: Prefixes,
}

/// A client's place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Found<'a> {
    pub(super) region: Option<&'a str>,
    /// All that share so many first bits with the client are in the same place (RFC 7871, section 7.2.1).
    pub(super) scope: u8,
}

/// Of one family; addresses are left-aligned in 128 bits.
#[derive(Debug, Default)]
struct Prefixes {
    /// In order of first address, then of length.
    sorted: Vec<(u128, u8)>,
    regions: HashMap<(u128, u8), usize>,
    lengths: BTreeSet<u8>,
}

impl Map {
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|why| Error::Map {
            path: path.to_owned(),
            why,
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut map = Self {
            default: file.default,
            ..Self::default()
        };
        for (name, place) in file.region {
            let at = map.near.len();
            for subnet in &place.subnets {
                let (address, length) = prefix(subnet)
                    .map_err(|why| format!("region.{name}.subnets: `{subnet}` {why}"))?;
                let (prefixes, bits) = map.of_mut(address);
                if prefixes.regions.insert((bits, length), at).is_some() {
                    return Err(format!(
                        "region.{name}.subnets: `{subnet}` stands there twice"
                    ));
                }
                prefixes.lengths.insert(length);
                prefixes.sorted.push((bits, length));
            }
            map.near.push((name, place.near));
        }
        if map.v4.sorted.len() + map.v6.sorted.len() > PREFIXES_MAX {
            return Err(format!("more than {PREFIXES_MAX} subnets"));
        }
        map.v4.sorted.sort_unstable();
        map.v6.sorted.sort_unstable();
        Ok(map)
    }

    fn of_mut(&mut self, address: IpAddr) -> (&mut Prefixes, u128) {
        match address {
            IpAddr::V4(_) => (&mut self.v4, bits(address)),
            IpAddr::V6(_) => (&mut self.v6, bits(address)),
        }
    }

    /// Where a client is.
    pub(super) fn find(&self, client: IpAddr) -> Found<'_> {
        let prefixes = match client {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        let (region, scope) = prefixes.find(bits(client));
        Found {
            region: region.map(|at| self.near[at].0.as_str()),
            scope,
        }
    }

    /// Regions that clients of a place go to, best first, as far as the map says.
    pub(super) fn order<'a>(&'a self, region: Option<&'a str>) -> impl Iterator<Item = &'a str> {
        let near = region.and_then(|name| self.near.iter().find(|(is, _)| is == name));
        let near = near.into_iter().flat_map(|(_, near)| near);
        let named = near.chain(&self.default).map(String::as_str);
        region.into_iter().chain(named)
    }

    /// Whether the map has such a region.
    pub(super) fn names(&self, region: &str) -> bool {
        self.near.iter().any(|(name, _)| name == region)
    }
}

impl Prefixes {
    fn find(&self, client: u128) -> (Option<usize>, u8) {
        let found = self.lengths.iter().rev().find_map(|&length| {
            let at = self.regions.get(&(masked(client, length), length))?;
            Some((*at, length))
        });
        let (region, own) = found.map_or((None, 0), |(at, length)| (Some(at), length));
        // Whoever differs from the client where a neighbouring prefix begins may be in that one.
        let behind = self.sorted.partition_point(|&(start, _)| start <= client);
        let neighbours = [behind.checked_sub(1), Some(behind)];
        let apart = neighbours.into_iter().flatten().filter_map(|at| {
            let &(start, length) = self.sorted.get(at)?;
            let common = u8::try_from((start ^ client).leading_zeros()).unwrap_or(128);
            (common < length).then_some(common + 1)
        });
        (region, apart.max().unwrap_or(0).max(own))
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn masked(bits: u128, length: u8) -> u128 {
    if length == 0 {
        0
    } else {
        bits & (u128::MAX << (128 - u32::from(length)))
    }
}

fn prefix(text: &str) -> Result<(IpAddr, u8), &'static str> {
    let shape = "is not ADDRESS/LENGTH, such as 192.0.2.0/24";
    let (address, length) = text.split_once('/').ok_or(shape)?;
    let address: IpAddr = address.parse().map_err(|_| shape)?;
    let length: u8 = length.parse().map_err(|_| shape)?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if length > longest {
        return Err("has a length that such an address has not");
    }
    if masked(bits(address), length) != bits(address) {
        return Err("has bits behind its length");
    }
    Ok((address, length))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"
        default = ["us-west"]
        [region.eu-west]
        subnets = ["185.0.0.0/8", "2a00::/12"]
        near = ["eu-north", "us-east"]
        [region.eu-north]
        subnets = ["185.7.0.0/16"]
        [region.us-east]
    "#;

    #[test]
    fn the_longest_prefix_wins_and_the_scope_keeps_clear_of_others() {
        let map = Map::parse(TEXT).unwrap();
        let found = |text: &str| {
            let found = map.find(text.parse().unwrap());
            (found.region, found.scope)
        };
        assert_eq!(found("185.7.1.1"), (Some("eu-north"), 16));
        assert_eq!(found("185.6.1.1"), (Some("eu-west"), 16));
        assert_eq!(found("185.200.1.1"), (Some("eu-west"), 9));
        assert_eq!(found("10.0.0.1"), (None, 1));
        assert_eq!(found("2a05::1"), (Some("eu-west"), 12));
        let order = |region| map.order(region).collect::<Vec<_>>();
        assert_eq!(
            order(Some("eu-west")),
            ["eu-west", "eu-north", "us-east", "us-west"]
        );
        assert_eq!(order(None), ["us-west"]);
        assert!(map.names("us-east") && !map.names("us-west"));
    }

    #[test]
    fn what_is_no_map_is_told() {
        for (text, told) in [
            ("[region.a]\nsubnets = [\"1.2.3.4\"]", "ADDRESS/LENGTH"),
            ("[region.a]\nsubnets = [\"1.2.3.4/33\"]", "a length"),
            ("[region.a]\nsubnets = [\"1.2.3.4/24\"]", "bits behind"),
            (
                "[region.a]\nsubnets = [\"1.2.3.0/24\"]\n[region.b]\nsubnets = [\"1.2.3.0/24\"]",
                "twice",
            ),
            ("[regions.a]", "unknown field"),
        ] {
            let error = Map::parse(text).unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn everybody_in_scope_is_in_the_same_place(
            rows in proptest::collection::btree_map((any::<u32>(), 0..=32_u8), 0..4_usize, 0..24),
            client in any::<u32>(), other in any::<u32>(), near in any::<prop::sample::Index>(),
        ) {
            let mut text = String::new();
            let mut seen = BTreeSet::new();
            for region in 0..4 {
                let of = rows.iter().filter(|(_, at)| **at == region).filter_map(|((address, length), _)| {
                    let start = u32::try_from(masked(u128::from(*address) << 96, *length) >> 96).unwrap();
                    seen.insert((start, *length)).then(|| format!("\"{}/{length}\"", Ipv4Addr::from(start)))
                });
                let of: Vec<String> = of.collect();
                text += &format!("[region.r{region}]\nsubnets = [{}]\n", of.join(","));
            }
            let map = Map::parse(&text).unwrap();
            // Half of the clients are beside a prefix's edge.
            let client = match seen.iter().nth(near.index(2 * seen.len().max(1))) {
                Some((start, _)) => start.wrapping_add(client % 3).wrapping_sub(1),
                None => client,
            };
            let found = map.find(Ipv4Addr::from(client).into());
            let kept = masked(u128::from(client) << 96, found.scope) >> 96;
            let free = u32::MAX.checked_shr(found.scope.into()).unwrap_or(0);
            let beside = u32::try_from(kept).unwrap() | (other & free);
            prop_assert_eq!(map.find(Ipv4Addr::from(beside).into()).region, found.region);
        }
    }

    #[test]
    fn families_do_not_mix() {
        let map = Map::parse("[region.a]\nsubnets = [\"0.0.0.0/0\"]").unwrap();
        assert_eq!(map.find(Ipv4Addr::LOCALHOST.into()).region, Some("a"));
        assert_eq!(map.find(Ipv6Addr::LOCALHOST.into()).region, None);
    }
}
