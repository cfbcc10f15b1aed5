//! From what is wanted and what is there to what nodes route by. Pure: the same inputs give the same bytes.
//!
//! Everything is sorted by name. An egress that has been gone for a while is left out of the rows that
//! say what may be used, unless nobody else is left: control's view must never be the only reason why a
//! request fails, and nodes see dead neighbours themselves.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use vector_proto::control::v1::{
    DefaultRoute, DefaultRouteSpec, Model, ModelSpec, NodeRecord, Provider, ProviderSpec,
    Revocation, Snapshot, Upstream,
};

use super::ways::{Found, Ways};

use crate::{
    health::Usable,
    registry::{Catalog, NodeSpec, Seen},
};

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
    pub(super) fn is_usable(&self, id: &str) -> bool {
        self.usable.all || self.usable.ids.contains(id)
    }

    /// Nodes of a role that have ever said where they are.
    pub(super) fn known(&self, role: &str) -> impl Iterator<Item = &NodeSpec> {
        self.nodes
            .iter()
            .filter(move |(spec, seen)| seen.is_some() && spec.roles.iter().any(|has| has == role))
            .map(|(spec, _)| spec)
    }
}

/// What nodes are told, without revision and digest.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    /// Without its paths.
    pub(super) snapshot: Snapshot,
    pub(super) ways: Arc<Ways>,
}

/// Compiles, and keeps what is the same for many inputs. What it kept changes no byte.
#[derive(Debug, Default)]
pub struct Compiler {
    found: Found,
}

impl Compiler {
    pub(super) fn compile(&self, inputs: Inputs<'_>) -> Compiled {
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
        Compiled {
            ways: self.found.between(inputs, &providers),
            snapshot: Snapshot {
                revision: 0,
                nodes: nodes(inputs),
                paths: Vec::new(),
                providers,
                models: models(inputs.catalog),
                default_routes: default_routes(inputs.catalog),
                revocations: inputs.revoked.to_vec(),
                digest: Bytes::new(),
            },
        }
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
        probe_ms: spec.probe_ms,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use vector_proto::control::v1::{CredentialSpec, DefaultRouteSpec, ModelSpec, Register};

    use super::*;
    use crate::{registry::StoredCredential, routing::ways::RELAYS_MAX};

    /// By a compiler that has kept nothing.
    fn compile(inputs: Inputs<'_>) -> Snapshot {
        Compiler::default().compile(inputs).whole()
    }

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
        fn the_same_inputs_give_the_same_bytes(turns in proptest::collection::vec(proptest::collection::vec(0..4_usize, 0..4), 1..12)) {
            let kept = Compiler::default();
            let (catalog, nodes) = network();
            for gone in turns {
                let ids: Vec<&str> = ALL.iter().enumerate().filter(|(at, _)| !gone.contains(at)).map(|(_, &id)| id).collect();
                let usable = there(&ids);
                let inputs = Inputs { catalog: &catalog, nodes: &nodes, usable: &usable, revoked: &[] };
                let sealed = |compiler: &Compiler| compiler.compile(inputs).encode().seal(3);
                let (one, fresh) = (sealed(&kept), sealed(&Compiler::default()));
                prop_assert_eq!(&one.encoded, &fresh.encoded, "whatever was compiled before");
                prop_assert_eq!(&one.ways.paths, &fresh.ways.paths);
                prop_assert_eq!(&one.snapshot, &fresh.snapshot);
            }
        }
    }
}
