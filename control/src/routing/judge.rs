//! Looks at a change before it is made: whether nodes could take what would follow from it, and whether it takes away more
//! than half of what can be served now. Pure.
//!
//! Both configurations are compiled as if every known node were there, so that the answer is about the change and not about
//! who happens to be away.

use std::collections::HashSet;

use vector_proto::control::v1::{CredentialSpec, Snapshot, Upstream};

use super::{
    Compiler, Inputs,
    compile::{Compiled, default_routes, models},
};
use crate::{
    health::Usable,
    registry::{Catalog, Fault, Judgement, NodeSpec, Seen},
};

/// Largest snapshot that a change may lead to. Nodes take 64 MiB; the rest is for nodes that are still to come.
const SNAPSHOT_BYTES_MAX: usize = 32 << 20;

/// What a network must have of something before half of it is many: below it, a change is as large as the network.
const FLOOR: usize = 10;

/// Judges the change from `old` to `new` among these nodes.
#[must_use]
pub fn judge(
    compiler: &Compiler,
    (old, new): (&Catalog, &Catalog),
    nodes: &[(NodeSpec, Option<Seen>)],
) -> Judgement {
    let same_egress = old.providers == new.providers && served(old) == served(new);
    if same_egress && old.models == new.models && old.default_routes == new.default_routes {
        // Accounts and secrets change nothing of what is served.
        return Judgement::default();
    }
    let usable = Usable {
        all: true,
        ..Usable::default()
    };
    let compiled = |catalog: &Catalog| {
        compiler.compile(Inputs {
            catalog,
            nodes,
            usable: &usable,
            revoked: &[],
        })
    };
    let before = compiled(old);
    let (bytes, reach) = (before.encoded_len(), Reach::of(&before));
    let after = if same_egress {
        Compiled {
            snapshot: Snapshot {
                models: models(new),
                default_routes: default_routes(new),
                ..before.snapshot
            },
            ways: before.ways,
        }
    } else {
        compiled(new)
    };
    Judgement {
        faults: size(bytes, after.encoded_len()).into_iter().collect(),
        losses: losses(&reach, &Reach::of(&after)),
    }
}

/// What of the credentials decides who may call a provider.
fn served(catalog: &Catalog) -> impl PartialEq + use<> {
    let stored = catalog.credentials.values();
    let row = |spec: &CredentialSpec| (spec.provider.clone(), spec.disabled);
    stored.map(|stored| row(&stored.spec)).collect::<Vec<_>>()
}

fn size(before: usize, after: usize) -> Option<Fault> {
    (after > SNAPSHOT_BYTES_MAX && after > before).then(|| Fault {
        field: "snapshot".to_owned(),
        why: format!(
            "what every node is told would have {after} bytes, more than the {SNAPSHOT_BYTES_MAX} it may have: \
             fewer providers, models or upstreams, or fewer egress nodes for each provider"
        ),
    })
}

/// What can be served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Reach {
    /// Models and default routes with an upstream that can be used.
    names: usize,
    /// Their upstreams that can be used.
    upstreams: usize,
    /// Ways from a region's ingress nodes to an egress.
    paths: usize,
}

impl Reach {
    fn of(compiled: &Compiled) -> Self {
        let snapshot = &compiled.snapshot;
        let usable: HashSet<&str> = snapshot
            .providers
            .iter()
            .filter(|provider| !provider.egress.is_empty())
            .map(|provider| provider.name.as_str())
            .collect();
        let used = |upstreams: &[Upstream]| {
            let used = upstreams.iter();
            used.filter(|upstream| usable.contains(upstream.provider.as_str()))
                .count()
        };
        let models = snapshot.models.iter().map(|model| used(&model.upstreams));
        let routes = snapshot.default_routes.iter();
        let rows: Vec<usize> = models
            .chain(routes.map(|route| used(&route.upstreams)))
            .collect();
        Self {
            names: rows.iter().filter(|count| **count > 0).count(),
            upstreams: rows.iter().sum(),
            paths: compiled.ways.paths.len(),
        }
    }
}

fn losses(before: &Reach, after: &Reach) -> Vec<Fault> {
    let rows = [
        ("models", before.names, after.names),
        ("upstreams", before.upstreams, after.upstreams),
        ("paths", before.paths, after.paths),
    ];
    rows.into_iter()
        .filter(|(_, before, after)| *before >= FLOOR && after * 2 < *before)
        .map(|(field, before, after)| Fault {
            field: field.to_owned(),
            why: format!(
                "{} of {before} that can be used would go, more than half; if that is meant, say so with --force",
                before - after
            ),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1::{ModelSpec, ProviderSpec, Register};

    use super::*;
    use crate::registry::StoredCredential;

    fn nodes(egress: usize) -> Vec<(NodeSpec, Option<Seen>)> {
        let node = |id: String, role: &str| {
            let spec = NodeSpec {
                id,
                region: "eu".to_owned(),
                roles: vec![role.to_owned()],
                draining: false,
                enrolled_unix_ms: 0,
            };
            (spec, Some(Register::default()))
        };
        let mut nodes: Vec<_> = (0..egress)
            .map(|n| node(format!("egress-{n}"), "egress"))
            .collect();
        nodes.push(node("ingress-1".to_owned(), "ingress"));
        nodes
    }

    fn catalog(providers: usize, models: usize) -> Catalog {
        let mut catalog = Catalog::default();
        for n in 0..providers {
            let name = format!("p{n}");
            let spec = ProviderSpec {
                name: name.clone(),
                ..ProviderSpec::default()
            };
            catalog.providers.insert(name.clone(), spec);
            let spec = CredentialSpec {
                name: name.clone(),
                provider: name.clone(),
                ..CredentialSpec::default()
            };
            let stored = StoredCredential {
                spec,
                ..StoredCredential::default()
            };
            catalog.credentials.insert(name, stored);
        }
        for n in 0..models {
            let upstream = Upstream {
                provider: format!("p{}", n % providers),
                ..Upstream::default()
            };
            let spec = ModelSpec {
                name: format!("m{n}"),
                upstreams: vec![upstream],
                ..ModelSpec::default()
            };
            catalog.models.insert(spec.name.clone(), spec);
        }
        catalog
    }

    fn lost(old: &Catalog, new: &Catalog, egress: usize) -> Vec<String> {
        let judged = judge(&Compiler::default(), (old, new), &nodes(egress));
        assert_eq!(judged.faults, []);
        judged.losses.into_iter().map(|loss| loss.field).collect()
    }

    #[test]
    fn losing_more_than_half_is_told_and_half_is_not() {
        let old = catalog(2, 20);
        let mut half = old.clone();
        half.models
            .retain(|name, _| name.ends_with(['0', '2', '4', '6', '8']));
        assert_eq!(lost(&old, &half, 3), [""; 0]);
        half.models.remove("m0");
        assert_eq!(lost(&old, &half, 3), ["models", "upstreams"]);
        assert_eq!(lost(&half, &old, 3), [""; 0], "more is no loss");
    }

    #[test]
    fn a_key_that_is_switched_off_or_a_region_misspelt_can_be_the_loss() {
        let old = catalog(1, 20);
        let mut off = old.clone();
        off.credentials.get_mut("p0").unwrap().spec.disabled = true;
        assert_eq!(lost(&old, &off, 12), ["models", "upstreams", "paths"]);
        let mut misspelt = old.clone();
        misspelt.providers.get_mut("p0").unwrap().egress = vec!["ue".to_owned()];
        assert_eq!(lost(&old, &misspelt, 2), ["models", "upstreams"]);
    }

    #[test]
    fn a_small_network_is_not_guarded() {
        let old = catalog(1, 9);
        assert_eq!(lost(&old, &Catalog::default(), 9), [""; 0]);
        assert_eq!(lost(&catalog(1, 10), &Catalog::default(), 9).len(), 2);
    }

    #[test]
    fn what_nodes_cannot_take_is_refused_whoever_asks() {
        // Each provider names each of its egress nodes: a few megabytes of intent become many of snapshot.
        let mut nodes = nodes(64);
        for (place, (spec, _)) in nodes.iter_mut().enumerate() {
            spec.id = format!("{place:x>63}");
        }
        let (old, new) = (Catalog::default(), catalog(8_200, 1));
        let judged = judge(&Compiler::default(), (&old, &new), &nodes);
        assert_eq!(judged.faults.len(), 1);
        assert_eq!(judged.faults[0].field, "snapshot");
        let mut fewer = new.clone();
        fewer.providers.remove("p8199");
        let judged = judge(&Compiler::default(), (&new, &fewer), &nodes);
        assert_eq!(judged.faults, [], "less is never refused for its size");
    }
}
