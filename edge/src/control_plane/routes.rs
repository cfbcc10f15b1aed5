//! A snapshot compiled for this node: maps, so that a request does no work over all of it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{identity::Revocations, lookup::HashMap};
use http::Uri;
use vector_proto::control::v1;

/// Rows that one snapshot may have of a kind. More is a mistake, and a node does not load it.
const ROWS_MAX: usize = 200_000;

/// What this node routes by.
#[derive(Debug, Default)]
pub struct Routes {
    /// Of the snapshot.
    pub revision: u64,
    /// Where this node stands.
    pub region: Arc<str>,
    /// Every node of the network, by id.
    pub nodes: HashMap<Arc<str>, NodeRow>,
    /// Every provider, by name.
    pub providers: HashMap<Arc<str>, Arc<ProviderRow>>,
    /// Every model but the wildcard, by public name.
    pub models: HashMap<Box<str>, Arc<ModelRow>>,
    /// The model `*`.
    pub any_model: Option<Arc<ModelRow>>,
    default_routes: HashMap<Box<str>, Arc<ModelRow>>,
    /// Prefixes such as `files.`, longest first.
    family_routes: Vec<(Box<str>, Arc<ModelRow>)>,
    any_route: Option<Arc<ModelRow>>,
    paths: HashMap<Arc<str>, Ways>,
    /// Whose certificates count no more.
    pub revoked: Arc<Revocations>,
}

/// One node.
#[derive(Debug)]
pub struct NodeRow {
    /// Where it stands.
    pub region: Arc<str>,
    /// Whether clients connect to it.
    pub ingress: bool,
    /// Whether it passes exchanges on.
    pub relay: bool,
    /// Whether it calls providers.
    pub egress: bool,
    /// `host:port` of its tunnel.
    pub tunnel_addresses: Vec<Arc<str>>,
    /// It takes no new exchanges.
    pub draining: bool,
    /// Base URLs of its door for clients.
    pub client_urls: Vec<Arc<str>>,
}

/// One provider.
#[derive(Debug)]
pub struct ProviderRow {
    /// Its name.
    pub name: Arc<str>,
    /// Which dialect it speaks.
    pub kind: Arc<str>,
    /// Such as `https://api.openai.com/v1`.
    pub base_url: Uri,
    /// It may be on loopback or a private network.
    pub allow_private: bool,
    /// The nodes that may call it.
    pub egress: Vec<Arc<str>>,
    /// For TCP and TLS; where nothing is said, the egress's own settings count.
    pub connect: Option<Duration>,
    /// From the request's last byte to the answer's first; likewise.
    pub first_byte: Option<Duration>,
    /// Longest silence within an answer; likewise.
    pub idle: Option<Duration>,
    /// Connections of one egress to it; 0: as many as an egress makes at all.
    pub connections_max: u32,
    /// Calls that name an object nobody saw being made are passed on.
    pub unknown_objects: bool,
    /// Who tells its credentials' balances; empty: whoever its host's name says.
    pub balance: Box<str>,
    /// An egress that has had no answer for so long asks whether it is there.
    pub probe: Option<Duration>,
    /// Those of `egress` that take no new exchanges, in the same order.
    pub draining: Box<[bool]>,
}

/// One public model, or a default route.
#[derive(Debug)]
pub struct ModelRow {
    /// Public name; empty for a default route.
    pub name: Box<str>,
    /// Whom to name as its owner.
    pub owned_by: Box<str>,
    /// When it was made.
    pub created_unix_s: u64,
    /// Small pieces go over two paths at once.
    pub redundant: bool,
    /// Where it is served, by priority.
    pub upstreams: Vec<UpstreamRow>,
}

/// One place that serves a model.
#[derive(Debug)]
pub struct UpstreamRow {
    /// Who.
    pub provider: Arc<ProviderRow>,
    /// What the provider calls the model; empty: what the client called it.
    pub model: Arc<str>,
    /// Lower is tried first.
    pub priority: u32,
    /// Share among equals, at least 1.
    pub weight: u32,
}

/// The candidate ways to one egress.
#[derive(Debug, Default)]
pub struct Ways {
    /// Best score first.
    pub rows: Vec<PathRow>,
    /// Which of them is taken while none is clearly better by what was measured: the first of a new snapshot.
    in_use: AtomicUsize,
}

impl Ways {
    /// Which of them is taken.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// From now on it is this one.
    pub fn take(&self, at: usize) {
        self.in_use.store(at, Ordering::Relaxed);
    }
}

impl UpstreamRow {
    /// What the provider calls the model that a client calls `asked`.
    #[must_use]
    pub fn called<'a>(&'a self, asked: &'a str) -> &'a str {
        if self.model.is_empty() {
            asked
        } else {
            &self.model
        }
    }
}

/// A candidate way to an egress.
#[derive(Clone, Debug)]
pub struct PathRow {
    /// Where it ends.
    pub egress: Arc<str>,
    /// The node between, if any.
    pub relay: Option<Arc<str>>,
    /// Expected cost in microseconds.
    pub score: u64,
}

/// Why a snapshot cannot be used. The one in force stays.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Fault {
    /// A row names something that is not there.
    #[error("{row} names the unknown {kind} `{name}`")]
    Unknown {
        /// Which row.
        row: String,
        /// What kind of thing.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A base URL is none.
    #[error("provider `{provider}`: base URL `{url}`")]
    BaseUrl {
        /// Whose.
        provider: String,
        /// The text.
        url: String,
    },
    /// Absurdly many rows.
    #[error("more than {ROWS_MAX} {0}")]
    TooMany(&'static str),
}

impl Routes {
    /// Routes that lead nowhere: what a node has before it ever heard from control.
    #[must_use]
    pub fn nowhere(region: &str) -> Self {
        Self {
            region: region.into(),
            ..Self::default()
        }
    }

    /// Compiles a snapshot for a node in `region`.
    ///
    /// # Errors
    /// The first [`Fault`].
    pub fn compile(snapshot: &v1::Snapshot, region: &str) -> Result<Self, Fault> {
        for (rows, kind) in [
            (snapshot.nodes.len(), "nodes"),
            (snapshot.providers.len(), "providers"),
            (snapshot.models.len(), "models"),
            (snapshot.paths.len(), "paths"),
            (snapshot.revocations.len(), "revocations"),
        ] {
            if rows > ROWS_MAX {
                return Err(Fault::TooMany(kind));
            }
        }
        let mut routes = Self {
            revision: snapshot.revision,
            region: region.into(),
            ..Self::default()
        };
        let revoked = snapshot.revocations.iter();
        routes.revoked = revoked
            .map(|row| (row.node.as_str().into(), row.before_unix_s))
            .collect::<Revocations>()
            .into();
        routes.nodes = snapshot
            .nodes
            .iter()
            .map(|node| (node.id.as_str().into(), node_row(node)))
            .collect();
        for provider in &snapshot.providers {
            let row = routes.provider_row(provider)?;
            routes
                .providers
                .insert(Arc::clone(&row.name), Arc::new(row));
        }
        for model in &snapshot.models {
            let row = Arc::new(routes.model_row(model)?);
            if model.name == "*" {
                routes.any_model = Some(row);
            } else {
                routes.models.insert(row.name.clone(), row);
            }
        }
        routes.add_default_routes(&snapshot.default_routes)?;
        routes.add_paths(&snapshot.paths);
        Ok(routes)
    }

    /// Where a model is served: by its name, or by the wildcard.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&Arc<ModelRow>> {
        self.models.get(name).or(self.any_model.as_ref())
    }

    /// Where an operation goes that names no model: its own route, its family's (the longest), or everybody's.
    #[must_use]
    pub fn default_route(&self, operation: &str) -> Option<&Arc<ModelRow>> {
        let family = || {
            self.family_routes
                .iter()
                .find(|(prefix, _)| operation.starts_with(&**prefix))
        };
        let named = self.default_routes.get(operation);
        named
            .or_else(|| family().map(|(_, row)| row))
            .or(self.any_route.as_ref())
    }

    /// Candidate ways to an egress from this node's region, best score first.
    #[must_use]
    pub fn paths(&self, egress: &str) -> &[PathRow] {
        self.ways(egress).map_or(&[], |ways| &ways.rows)
    }

    /// The same, and which of them is in use.
    #[must_use]
    pub fn ways(&self, egress: &str) -> Option<&Ways> {
        self.paths.get(egress)
    }

    fn provider_row(&self, provider: &v1::Provider) -> Result<ProviderRow, Fault> {
        let row = || format!("provider `{}`", provider.name);
        let bad_url = || Fault::BaseUrl {
            provider: provider.name.clone(),
            url: provider.base_url.clone(),
        };
        let base_url: Uri = provider.base_url.parse().map_err(|_| bad_url())?;
        if base_url.host().is_none() || !matches!(base_url.scheme_str(), Some("http" | "https")) {
            return Err(bad_url());
        }
        let egress = provider.egress.iter().map(|name| {
            let known = self
                .nodes
                .get_key_value(name.as_str())
                .filter(|(_, node)| node.egress);
            let unknown = || Fault::Unknown {
                row: row(),
                kind: "egress",
                name: name.clone(),
            };
            known.map(|(id, _)| Arc::clone(id)).ok_or_else(unknown)
        });
        let limits = provider.limits.unwrap_or_default();
        let said = |ms: u64| (ms > 0).then(|| Duration::from_millis(ms));
        let egress = egress.collect::<Result<Vec<_>, _>>()?;
        let drains = |id: &Arc<str>| self.nodes.get(id).is_some_and(|node| node.draining);
        Ok(ProviderRow {
            draining: egress.iter().map(drains).collect(),
            balance: provider.balance.as_str().into(),
            name: provider.name.as_str().into(),
            kind: provider.kind.as_str().into(),
            base_url,
            allow_private: provider.allow_private,
            egress,
            connect: said(limits.connect_ms),
            first_byte: said(limits.first_byte_ms),
            idle: said(limits.idle_ms),
            connections_max: limits.connections_max,
            probe: said(provider.probe_ms),
            unknown_objects: provider.unknown_objects,
        })
    }

    fn model_row(&self, model: &v1::Model) -> Result<ModelRow, Fault> {
        Ok(ModelRow {
            name: model.name.as_str().into(),
            owned_by: model.owned_by.as_str().into(),
            created_unix_s: model.created_unix_s,
            redundant: model.redundant,
            upstreams: self
                .upstream_rows(&model.upstreams, || format!("model `{}`", model.name))?,
        })
    }

    fn upstream_rows(
        &self,
        upstreams: &[v1::Upstream],
        row: impl Fn() -> String,
    ) -> Result<Vec<UpstreamRow>, Fault> {
        let rows = upstreams.iter().map(|upstream| {
            let provider = self.providers.get(upstream.provider.as_str());
            let unknown = || Fault::Unknown {
                row: row(),
                kind: "provider",
                name: upstream.provider.clone(),
            };
            Ok(UpstreamRow {
                provider: Arc::clone(provider.ok_or_else(unknown)?),
                model: upstream.model.as_str().into(),
                priority: upstream.priority,
                weight: upstream.weight.max(1),
            })
        });
        let mut rows = rows.collect::<Result<Vec<_>, Fault>>()?;
        rows.sort_by_key(|row| row.priority);
        Ok(rows)
    }

    fn add_default_routes(&mut self, routes: &[v1::DefaultRoute]) -> Result<(), Fault> {
        for route in routes {
            let row = Arc::new(ModelRow {
                name: "".into(),
                owned_by: "".into(),
                created_unix_s: 0,
                redundant: route.redundant,
                upstreams: self.upstream_rows(&route.upstreams, || {
                    format!("default route `{}`", route.operation)
                })?,
            });
            match route.operation.strip_suffix('*') {
                Some("") => self.any_route = Some(row),
                Some(prefix) => self.family_routes.push((prefix.into(), row)),
                None => {
                    self.default_routes
                        .insert(route.operation.as_str().into(), row);
                }
            }
        }
        self.family_routes
            .sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        Ok(())
    }

    fn add_paths(&mut self, paths: &[v1::Path]) {
        for path in paths
            .iter()
            .filter(|path| *path.from_region == *self.region)
        {
            // A path over a node that is gone is no path; the rest of the snapshot is as good as before.
            let Some((egress, _)) = self.nodes.get_key_value(path.egress.as_str()) else {
                continue;
            };
            let relay = match path.relay.as_str() {
                "" => None,
                relay => match self.nodes.get_key_value(relay) {
                    Some((relay, _)) => Some(Arc::clone(relay)),
                    None => continue,
                },
            };
            let row = PathRow {
                egress: Arc::clone(egress),
                relay,
                score: path.score,
            };
            let ways = self.paths.entry(Arc::clone(egress)).or_default();
            ways.rows.push(row);
        }
        for (egress, node) in &self.nodes {
            if node.egress && !self.paths.contains_key(egress) {
                let direct = PathRow {
                    egress: Arc::clone(egress),
                    relay: None,
                    score: 0,
                };
                let ways = self.paths.entry(Arc::clone(egress)).or_default();
                ways.rows.push(direct);
            }
        }
        self.paths
            .values_mut()
            .for_each(|ways| ways.rows.sort_by_key(|row| row.score));
    }
}

fn node_row(node: &v1::NodeRecord) -> NodeRow {
    let has = |role: &str| node.roles.iter().any(|has| has == role);
    NodeRow {
        region: node.region.as_str().into(),
        ingress: has("ingress"),
        relay: has("relay"),
        egress: has("egress"),
        tunnel_addresses: node
            .tunnel_addresses
            .iter()
            .map(|address| address.as_str().into())
            .collect(),
        draining: node.draining,
        client_urls: node
            .client_urls
            .iter()
            .map(|url| url.as_str().into())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(provider: &str, priority: u32) -> v1::Upstream {
        v1::Upstream {
            provider: provider.into(),
            priority,
            ..v1::Upstream::default()
        }
    }

    fn snapshot() -> v1::Snapshot {
        let node = |id: &str, role: &str| v1::NodeRecord {
            id: id.into(),
            roles: vec![role.into()],
            ..v1::NodeRecord::default()
        };
        let provider = |name: &str| v1::Provider {
            name: name.into(),
            base_url: "https://api.test/v1".into(),
            egress: vec!["e1".into()],
            ..v1::Provider::default()
        };
        let route = |operation: &str, to: &str| v1::DefaultRoute {
            operation: operation.into(),
            upstreams: vec![upstream(to, 0)],
            redundant: false,
        };
        v1::Snapshot {
            revision: 3,
            nodes: vec![
                node("e1", "egress"),
                node("r1", "relay"),
                node("i1", "ingress"),
            ],
            providers: vec![provider("a"), provider("b")],
            models: vec![
                v1::Model {
                    name: "m".into(),
                    upstreams: vec![upstream("b", 2), upstream("a", 1)],
                    ..v1::Model::default()
                },
                v1::Model {
                    name: "*".into(),
                    upstreams: vec![upstream("a", 0)],
                    ..v1::Model::default()
                },
            ],
            default_routes: vec![
                route("*", "a"),
                route("files.*", "b"),
                route("files.list", "a"),
            ],
            paths: vec![
                v1::Path {
                    from_region: "eu".into(),
                    egress: "e1".into(),
                    relay: "r1".into(),
                    score: 9,
                },
                v1::Path {
                    from_region: "eu".into(),
                    egress: "e1".into(),
                    relay: String::new(),
                    score: 5,
                },
                v1::Path {
                    from_region: "us".into(),
                    egress: "e1".into(),
                    relay: String::new(),
                    score: 1,
                },
                v1::Path {
                    from_region: "eu".into(),
                    egress: "e1".into(),
                    relay: "gone".into(),
                    score: 1,
                },
            ],
            ..v1::Snapshot::default()
        }
    }

    #[test]
    fn names_families_and_wildcards_find_their_rows() {
        let routes = Routes::compile(&snapshot(), "eu").unwrap();
        let first =
            |row: Option<&Arc<ModelRow>>| row.map(|row| row.upstreams[0].provider.name.to_string());
        assert_eq!(first(routes.model("m")).as_deref(), Some("a"));
        assert_eq!(routes.model("other").map(|row| &*row.name), Some("*"));
        assert_eq!(
            first(routes.default_route("files.create")).as_deref(),
            Some("b")
        );
        assert_eq!(
            first(routes.default_route("files.list")).as_deref(),
            Some("a")
        );
        assert_eq!(
            first(routes.default_route("batches.list")).as_deref(),
            Some("a")
        );
        let scores: Vec<u64> = routes.paths("e1").iter().map(|path| path.score).collect();
        assert_eq!(scores, [5, 9]);
        let said_nothing = &routes.providers["a"];
        let unsaid = (said_nothing.connect, said_nothing.connections_max);
        assert_eq!(unsaid, (None, 0), "the egress decides what is not said");
        let elsewhere = Routes::compile(&snapshot(), "mars").unwrap();
        assert_eq!(
            elsewhere.paths("e1").len(),
            1,
            "a region without paths goes direct"
        );
    }

    #[test]
    fn a_snapshot_that_names_what_is_not_there_is_refused() {
        let mut bad = snapshot();
        bad.models[0].upstreams[0].provider = "gone".into();
        assert!(matches!(
            Routes::compile(&bad, "eu"),
            Err(Fault::Unknown {
                kind: "provider",
                ..
            })
        ));
        let mut bad = snapshot();
        bad.providers[0].egress = vec!["i1".into()];
        assert!(matches!(
            Routes::compile(&bad, "eu"),
            Err(Fault::Unknown { kind: "egress", .. })
        ));
        let mut bad = snapshot();
        bad.providers[0].base_url = "ftp://x".into();
        assert!(matches!(
            Routes::compile(&bad, "eu"),
            Err(Fault::BaseUrl { .. })
        ));
    }
}
