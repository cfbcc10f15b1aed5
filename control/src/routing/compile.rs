//! From what is wanted and what is there to what nodes route by. Pure: the same inputs give the same bytes.
//!
//! Everything is sorted by name. An egress that has been gone for a while is left out of the rows that
//! say what may be used, unless nobody else is left: control's view must never be the only reason why a
//! request fails, and nodes see dead neighbours themselves.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message as _;
use ring::digest::{SHA256, digest};
use vector_proto::control::v1::{
    DefaultRoute, DefaultRouteSpec, Model, ModelSpec, NodeRecord, Path, Provider, ProviderSpec,
    Revocation, Snapshot, Upstream,
};

use crate::{
    health::Usable,
    registry::{Catalog, NodeSpec, Seen},
};

/// What a link inside a region costs, until links are measured: one millisecond.
const NEAR_US: u64 = 1_000;

/// What a link between regions costs, until links are measured.
const FAR_US: u64 = 80_000;

/// What a relay adds to the links on both its sides.
const RELAY_US: u64 = 5_000;

/// Relays that may carry exchanges between two regions.
///
/// Every one of them in every path would make 1.2 million rows of 1,000 nodes (ten regions, each with 30 ingress, 40 egress
/// and 30 relay nodes), some 60 MB, told to each. With four it is 20,000 rows and about 1 MB, 2,000 of them an ingress's own,
/// and one relay is seldom the only way left: a path is cut, its relay dies and there are three. Which links are kept warm
/// is another matter: an ingress holds one to each address of every egress and relay, at a heartbeat a second while nobody
/// uses it. Shown by `a_thousand_nodes_compile_to_a_bounded_sum`.
const RELAYS_MAX: usize = 4;

/// All that a snapshot follows from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What is wanted.
    pub catalog: &'a Catalog,
    /// Who belongs to the network, by id, with what each said of itself.
    pub nodes: &'a [(NodeSpec, Option<Seen>)],
    /// Who is there.
    pub usable: &'a Usable,
    /// Certificates that count no more, by node.
    pub revoked: &'a [Revocation],
}

impl Inputs<'_> {
    fn is_usable(&self, id: &str) -> bool {
        self.usable.all || self.usable.ids.contains(id)
    }

    /// Nodes of a role that have ever said where they are.
    fn known(&self, role: &str) -> impl Iterator<Item = &NodeSpec> {
        self.nodes
            .iter()
            .filter(move |(spec, seen)| seen.is_some() && spec.roles.iter().any(|has| has == role))
            .map(|(spec, _)| spec)
    }
}

/// The snapshot, without revision and digest.
#[must_use]
pub fn compile(inputs: Inputs<'_>) -> Snapshot {
    let stored = inputs.catalog.credentials.values();
    // Once, and not for each provider: there may be many of both.
    let served: BTreeSet<&str> = stored
        .filter(|stored| !stored.spec.disabled)
        .map(|stored| stored.spec.provider.as_str())
        .collect();
    let providers: Vec<Provider> = inputs
        .catalog
        .providers
        .values()
        .map(|spec| provider(inputs, spec, served.contains(spec.name.as_str())))
        .collect();
    Snapshot {
        revision: 0,
        nodes: nodes(inputs),
        paths: paths(inputs, &providers),
        providers,
        models: models(inputs.catalog),
        default_routes: default_routes(inputs.catalog),
        revocations: inputs.revoked.to_vec(),
        digest: Bytes::new(),
    }
}

/// The models of a snapshot, which follow from the configuration alone.
pub(super) fn models(catalog: &Catalog) -> Vec<Model> {
    let row = |spec: &ModelSpec| Model {
        name: spec.name.clone(),
        upstreams: upstreams(&spec.upstreams),
        owned_by: spec.owned_by.clone(),
        created_unix_s: spec.created_unix_s,
        redundant: spec.redundant,
    };
    catalog.models.values().map(row).collect()
}

/// The default routes of a snapshot; the same holds of them.
pub(super) fn default_routes(catalog: &Catalog) -> Vec<DefaultRoute> {
    let row = |spec: &DefaultRouteSpec| DefaultRoute {
        operation: spec.operation.clone(),
        upstreams: upstreams(&spec.upstreams),
        redundant: spec.redundant,
    };
    catalog.default_routes.values().map(row).collect()
}

/// A snapshot with its revision and its digest, and the same in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sealed {
    /// Itself.
    pub(super) snapshot: Snapshot,
    /// What nodes are told: encoded once for all of them.
    pub(super) encoded: Bytes,
}

/// Gives a snapshot its revision and its digest.
pub(super) fn seal(mut snapshot: Snapshot, revision: u64) -> Sealed {
    snapshot.revision = revision;
    snapshot.digest = Bytes::new();
    let mut encoded = snapshot.encode_to_vec();
    snapshot.digest = Bytes::copy_from_slice(digest(&SHA256, &encoded).as_ref());
    // The last field of the message: what stands before it is what it covers.
    let last = Snapshot {
        digest: snapshot.digest.clone(),
        ..Snapshot::default()
    };
    encoded.extend_from_slice(&last.encode_to_vec());
    Sealed {
        snapshot,
        encoded: encoded.into(),
    }
}

/// What a snapshot says, whatever its revision: two with the same content are the same to every node.
pub(super) fn content(bare: &Snapshot) -> Vec<u8> {
    digest(&SHA256, &bare.encode_to_vec()).as_ref().to_vec()
}

fn nodes(inputs: Inputs<'_>) -> Vec<NodeRecord> {
    inputs
        .nodes
        .iter()
        .filter_map(|(spec, seen)| {
            let seen = seen.as_ref()?;
            Some(NodeRecord {
                id: spec.id.clone(),
                region: spec.region.clone(),
                roles: spec.roles.clone(),
                epoch: seen.epoch,
                tunnel_addresses: seen.tunnel_addresses.clone(),
                draining: spec.draining || inputs.usable.draining.contains(&spec.id),
                client_urls: seen.client_urls.clone(),
            })
        })
        .collect()
}

/// A provider with those who may call it; nobody without a credential.
fn provider(inputs: Inputs<'_>, spec: &ProviderSpec, served: bool) -> Provider {
    let allowed: Vec<&NodeSpec> = inputs
        .known("egress")
        .filter(|node| served && may_call(spec, node))
        .collect();
    let mut egress: Vec<String> = allowed
        .iter()
        .filter(|node| inputs.is_usable(&node.id))
        .map(|node| node.id.clone())
        .collect();
    if egress.is_empty() {
        egress = allowed.iter().map(|node| node.id.clone()).collect();
    }
    Provider {
        name: spec.name.clone(),
        kind: spec.kind.clone(),
        base_url: spec.base_url.clone(),
        egress,
        limits: spec.limits,
        unknown_objects: spec.unknown_objects,
        balance: spec.balance.clone(),
        allow_private: spec.allow_private,
    }
}

/// Whether the operator lets this node call the provider: by its region, by its id, or everybody.
pub(super) fn may_call(spec: &ProviderSpec, node: &NodeSpec) -> bool {
    spec.egress.is_empty()
        || spec
            .egress
            .iter()
            .any(|name| *name == node.region || *name == node.id)
}

fn upstreams(upstreams: &[Upstream]) -> Vec<Upstream> {
    let mut sorted = upstreams.to_vec();
    sorted.sort_by(|a, b| {
        (a.priority, &a.provider, &a.model).cmp(&(b.priority, &b.provider, &b.model))
    });
    sorted
}

fn paths(inputs: Inputs<'_>, providers: &[Provider]) -> Vec<Path> {
    let from: BTreeSet<&str> = inputs
        .known("ingress")
        .map(|node| node.region.as_str())
        .collect();
    let used: BTreeSet<&str> = providers
        .iter()
        .flat_map(|provider| &provider.egress)
        .map(String::as_str)
        .collect();
    let egress: Vec<&NodeSpec> = inputs
        .known("egress")
        .filter(|node| used.contains(node.id.as_str()))
        .collect();
    let relays: Vec<&NodeSpec> = inputs
        .known("relay")
        .filter(|node| inputs.is_usable(&node.id))
        .collect();
    let mut paths = Vec::with_capacity(from.len() * egress.len() * (1 + RELAYS_MAX));
    for region in from {
        let mut between: BTreeMap<&str, Vec<(u64, &NodeSpec)>> = BTreeMap::new();
        for node in &egress {
            let path = |relay: &str, score| Path {
                from_region: region.to_owned(),
                egress: node.id.clone(),
                relay: relay.to_owned(),
                score,
            };
            paths.push(path("", link_us(region, &node.region)));
            let best = between
                .entry(&node.region)
                .or_insert_with(|| best_relays(&relays, region, &node.region));
            let others = best.iter().filter(|(_, relay)| relay.id != node.id);
            let others = others.take(RELAYS_MAX);
            paths.extend(others.map(|(score, relay)| path(&relay.id, *score)));
        }
    }
    paths.sort_by(|a, b| {
        (&a.from_region, &a.egress, a.score, &a.relay).cmp(&(
            &b.from_region,
            &b.egress,
            b.score,
            &b.relay,
        ))
    });
    paths
}

/// The relays with the lowest scores between two regions; of equals, other ones for each pair, so that all are used. One
/// more than a path may have, since an egress is not its own relay.
fn best_relays<'a>(relays: &[&'a NodeSpec], from: &str, to: &str) -> Vec<(u64, &'a NodeSpec)> {
    let lot = |relay: &NodeSpec| {
        let names = [from, to, &relay.id].join("\0");
        digest(&SHA256, names.as_bytes()).as_ref().to_vec()
    };
    let score =
        |relay: &NodeSpec| link_us(from, &relay.region) + link_us(&relay.region, to) + RELAY_US;
    let mut scored: Vec<_> = relays.iter().map(|relay| (score(relay), *relay)).collect();
    scored.sort_by_cached_key(|(score, relay)| (*score, lot(relay)));
    scored.truncate(RELAYS_MAX + 1);
    scored
}

fn link_us(from: &str, to: &str) -> u64 {
    if from == to { NEAR_US } else { FAR_US }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vector_proto::control::v1::{CredentialSpec, DefaultRouteSpec, ModelSpec, Register};

    use super::*;
    use crate::registry::StoredCredential;

    fn node(id: &str, region: &str, roles: &[&str]) -> (NodeSpec, Option<Seen>) {
        let spec = NodeSpec {
            id: id.to_owned(),
            region: region.to_owned(),
            roles: roles.iter().map(|&role| role.to_owned()).collect(),
            draining: false,
            enrolled_unix_ms: 0,
        };
        let seen = Register {
            epoch: 1,
            tunnel_addresses: vec![format!("{id}:7440")],
            ..Register::default()
        };
        (spec, Some(seen))
    }

    fn network() -> (Catalog, Vec<(NodeSpec, Option<Seen>)>) {
        let up = |provider: &str, priority| Upstream {
            provider: provider.to_owned(),
            priority,
            weight: 1,
            ..Upstream::default()
        };
        let mut catalog = Catalog::default();
        for (name, egress) in [("openai", vec!["us".to_owned()]), ("backup", vec![])] {
            let spec = ProviderSpec {
                name: name.to_owned(),
                kind: "openai".to_owned(),
                base_url: "https://example.com".to_owned(),
                egress,
                ..ProviderSpec::default()
            };
            catalog.providers.insert(name.to_owned(), spec);
            let stored = StoredCredential {
                spec: CredentialSpec {
                    name: name.to_owned(),
                    provider: name.to_owned(),
                    ..CredentialSpec::default()
                },
                ..StoredCredential::default()
            };
            catalog.credentials.insert(name.to_owned(), stored);
        }
        let model = ModelSpec {
            name: "*".to_owned(),
            upstreams: vec![up("backup", 1), up("openai", 0)],
            ..ModelSpec::default()
        };
        catalog.models.insert("*".to_owned(), model);
        let route = DefaultRouteSpec {
            operation: "files.*".to_owned(),
            upstreams: vec![up("openai", 0)],
            redundant: true,
        };
        catalog.default_routes.insert("files.*".to_owned(), route);
        let nodes = vec![
            node("egress-eu", "eu", &["egress"]),
            node("egress-us", "us", &["egress"]),
            node("ingress-eu", "eu", &["ingress"]),
            node("relay-us", "us", &["relay"]),
        ];
        (catalog, nodes)
    }

    fn there(ids: &[&str]) -> Usable {
        Usable {
            ids: ids.iter().map(|&id| id.to_owned()).collect(),
            ..Usable::default()
        }
    }

    fn compiled(usable: &Usable) -> Snapshot {
        let (catalog, nodes) = network();
        compile(Inputs {
            catalog: &catalog,
            nodes: &nodes,
            usable,
            revoked: &[],
        })
    }

    const ALL: &[&str] = &["egress-eu", "egress-us", "ingress-eu", "relay-us"];

    fn told(snapshot: &Snapshot) -> String {
        let mut text = String::new();
        for provider in &snapshot.providers {
            text += &format!("{}: {}\n", provider.name, provider.egress.join(" "));
        }
        for path in &snapshot.paths {
            text += &format!(
                "{} > {}/{} {}\n",
                path.from_region, path.relay, path.egress, path.score
            );
        }
        text
    }

    #[test]
    fn a_network_compiles_to_its_golden_paths() {
        let snapshot = compiled(&there(ALL));
        assert_eq!(
            told(&snapshot),
            "backup: egress-eu egress-us\n\
             openai: egress-us\n\
             eu > /egress-eu 1000\n\
             eu > relay-us/egress-eu 165000\n\
             eu > /egress-us 80000\n\
             eu > relay-us/egress-us 86000\n"
        );
        assert_eq!(
            snapshot.models[0].upstreams[0].provider, "openai",
            "lower priority first"
        );
        assert!(snapshot.default_routes[0].redundant && !snapshot.models[0].redundant);
        let said = content(&snapshot);
        let sealed = seal(snapshot, 7);
        assert_eq!(sealed.snapshot.revision, 7);
        assert_eq!(sealed.snapshot.encode_to_vec(), sealed.encoded);
        let again = seal(sealed.snapshot.clone(), 7);
        assert_eq!(again, sealed, "the digest is of the rest");
        let bare = Snapshot {
            revision: 0,
            digest: Bytes::new(),
            ..sealed.snapshot.clone()
        };
        assert_eq!(content(&bare), said);
        assert_ne!(seal(bare, 8).snapshot.digest, sealed.snapshot.digest);
    }

    #[test]
    fn who_is_gone_is_left_out_unless_nobody_else_is_left() {
        let snapshot = compiled(&there(&["egress-eu", "ingress-eu"]));
        assert_eq!(
            told(&snapshot),
            "backup: egress-eu\n\
             openai: egress-us\n\
             eu > /egress-eu 1000\n\
             eu > /egress-us 80000\n"
        );
        assert_eq!(
            snapshot.nodes.len(),
            4,
            "links stay warm to who may come back"
        );
    }

    #[test]
    fn a_thousand_nodes_compile_to_a_bounded_sum() {
        let (catalog, _) = network();
        let regions: Vec<String> = (0..10).map(|at| format!("region-{at}")).collect();
        let mut nodes = Vec::new();
        for region in &regions {
            for (role, count) in [("ingress", 30), ("egress", 40), ("relay", 30)] {
                let ids = (0..count).map(|at| format!("{role}-{region}-{at}"));
                nodes.extend(ids.map(|id| node(&id, region, &[role])));
            }
        }
        assert_eq!(nodes.len(), 1_000);
        let usable = Usable {
            all: true,
            ..Usable::default()
        };
        let snapshot = compile(Inputs {
            catalog: &catalog,
            nodes: &nodes,
            usable: &usable,
            revoked: &[],
        });
        assert_eq!(snapshot.paths.len(), 10 * 400 * (1 + RELAYS_MAX));
        let (all, paths) = (snapshot.encoded_len(), {
            let paths = snapshot.paths.clone();
            Snapshot {
                paths,
                ..Snapshot::default()
            }
            .encoded_len()
        });
        assert!(paths < 1 << 20, "{paths} bytes of paths");
        assert!(all < 5 << 18, "{all} bytes in all");
        let mut used = BTreeSet::new();
        for region in &regions {
            let of = snapshot.paths.iter();
            let of = of.filter(|path| path.from_region == *region && !path.relay.is_empty());
            let relays: BTreeSet<&str> = of.map(|path| path.relay.as_str()).collect();
            assert!(relays.len() <= regions.len() * RELAYS_MAX);
            used.extend(relays);
        }
        assert!(
            used.len() > 150,
            "only {} of 300 relays are used",
            used.len()
        );
    }

    #[test]
    fn a_draining_node_stays_listed_and_is_marked() {
        let mut usable = there(ALL);
        usable.draining.insert("egress-us".to_owned());
        let snapshot = compiled(&usable);
        let row = snapshot
            .nodes
            .iter()
            .find(|node| node.id == "egress-us")
            .unwrap();
        assert!(row.draining);
        assert_eq!(snapshot.providers[1].egress, ["egress-us"]);
    }

    #[test]
    fn without_a_credential_nobody_may_call() {
        let (mut catalog, nodes) = network();
        catalog.credentials.get_mut("openai").unwrap().spec.disabled = true;
        let usable = there(ALL);
        let snapshot = compile(Inputs {
            catalog: &catalog,
            nodes: &nodes,
            usable: &usable,
            revoked: &[],
        });
        assert!(snapshot.providers[1].egress.is_empty());
    }

    proptest! {
        #[test]
        fn the_same_inputs_give_the_same_bytes(gone in proptest::collection::vec(0..4_usize, 0..4)) {
            let ids: Vec<&str> = ALL.iter().enumerate().filter(|(at, _)| !gone.contains(at)).map(|(_, &id)| id).collect();
            let usable = there(&ids);
            let bytes = || seal(compiled(&usable), 3).encoded;
            prop_assert_eq!(bytes(), bytes());
        }
    }
}
