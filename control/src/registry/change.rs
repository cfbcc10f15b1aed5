//! Tells two catalogs apart: what to write, and what to show. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use vector_proto::control::v1::{
    AccountSpec, Change, DefaultRouteSpec, ModelSpec, ProviderSpec, Upstream,
};

use super::{
    audit::{change, hash},
    catalog::{Catalog, Kind, StoredCredential},
    history::{Earlier, without_secrets},
};
use crate::coordinate::Write;

/// A spec as lines of field and value, as people read it. Never holds a secret.
type Lines = Vec<(&'static str, String)>;

trait Described: Message + PartialEq + Sized {
    fn lines(&self) -> Lines;

    /// As it is kept when it is replaced.
    fn kept(&self) -> Bytes {
        self.encode_to_vec().into()
    }

    /// What is different in `other` and is neither shown nor kept.
    fn hidden(&self, _other: &Self) -> Vec<String> {
        Vec::new()
    }
}

impl Described for ProviderSpec {
    fn lines(&self) -> Lines {
        let limits = self.limits.unwrap_or_default();
        vec![
            ("kind", self.kind.clone()),
            ("base_url", self.base_url.clone()),
            ("allow_private", self.allow_private.to_string()),
            ("egress", self.egress.join(" ")),
            ("unknown_objects", self.unknown_objects.to_string()),
            ("balance", self.balance.clone()),
            ("limits.connect_ms", limits.connect_ms.to_string()),
            ("limits.first_byte_ms", limits.first_byte_ms.to_string()),
            ("limits.idle_ms", limits.idle_ms.to_string()),
            ("limits.connections_max", limits.connections_max.to_string()),
            ("probe_ms", self.probe_ms.to_string()),
        ]
    }
}

impl Described for StoredCredential {
    fn lines(&self) -> Lines {
        let spec = &self.spec;
        vec![
            ("provider", spec.provider.clone()),
            ("disabled", spec.disabled.to_string()),
            ("requests_per_minute", spec.requests_per_minute.to_string()),
            ("tokens_per_minute", spec.tokens_per_minute.to_string()),
            ("concurrency", spec.concurrency.to_string()),
            ("weight", spec.weight.to_string()),
            ("headers", self.header_names()),
        ]
    }

    fn kept(&self) -> Bytes {
        without_secrets(self).encode_to_vec().into()
    }

    fn hidden(&self, other: &Self) -> Vec<String> {
        let rows = [
            ("secret: changed", self.sealed != other.sealed),
            ("headers: changed", self.has_other_headers(other)),
        ];
        let changed = rows.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(line, _)| line.to_owned()).collect()
    }
}

impl Described for ModelSpec {
    fn lines(&self) -> Lines {
        vec![
            ("owned_by", self.owned_by.clone()),
            ("redundant", self.redundant.to_string()),
            ("upstreams", upstreams(&self.upstreams)),
        ]
    }
}

impl Described for DefaultRouteSpec {
    fn lines(&self) -> Lines {
        vec![
            ("redundant", self.redundant.to_string()),
            ("upstreams", upstreams(&self.upstreams)),
        ]
    }
}

impl Described for AccountSpec {
    fn lines(&self) -> Lines {
        vec![
            ("title", self.title.clone()),
            ("time_zone", self.time_zone.clone()),
            ("disabled", self.disabled.to_string()),
        ]
    }
}

fn upstreams(upstreams: &[Upstream]) -> String {
    let texts: Vec<String> = upstreams
        .iter()
        .map(|up| {
            let model = if up.model.is_empty() { "=" } else { &up.model };
            format!(
                "{}/{model} (priority {}, weight {})",
                up.provider, up.priority, up.weight
            )
        })
        .collect();
    texts.join(", ")
}

/// What leads from one catalog to another.
#[derive(Debug, Default)]
pub(super) struct Difference {
    pub(super) changes: Vec<Change>,
    pub(super) writes: Vec<Write>,
    /// What the writes replace.
    pub(super) earlier: Vec<Earlier>,
}

impl Difference {
    /// From `old` to `new`.
    pub(super) fn between(old: &Catalog, new: &Catalog) -> Self {
        let mut difference = Self::default();
        difference.compare(Kind::Provider, &old.providers, &new.providers);
        difference.compare(Kind::Credential, &old.credentials, &new.credentials);
        difference.compare(Kind::Model, &old.models, &new.models);
        difference.compare(Kind::DefaultRoute, &old.default_routes, &new.default_routes);
        difference.compare(Kind::Account, &old.accounts, &new.accounts);
        difference
    }

    fn compare<S: Described>(
        &mut self,
        kind: Kind,
        old: &BTreeMap<String, S>,
        new: &BTreeMap<String, S>,
    ) {
        for (name, spec) in new {
            let details = match old.get(name) {
                Some(before) if before == spec => continue,
                Some(before) => {
                    let mut details = updated(&before.lines(), &spec.lines());
                    details.extend(before.hidden(spec));
                    details
                }
                None => created(&spec.lines()),
            };
            let action = if old.contains_key(name) {
                "update"
            } else {
                "create"
            };
            let value: Bytes = spec.encode_to_vec().into();
            let change = self.note(action, kind, name, details);
            change.after = hash(&value);
            let before = old.get(name);
            if let Some(before) = before {
                change.before = hash(&before.encode_to_vec());
            }
            self.earlier.push(Earlier {
                key: kind.key(name),
                value: before.map(S::kept),
                hidden: before.map(|before| before.hidden(spec)).unwrap_or_default(),
            });
            self.writes.push(Write::Put {
                key: kind.key(name),
                value,
                session: None,
            });
        }
        for (name, before) in old.iter().filter(|(name, _)| !new.contains_key(*name)) {
            self.note("remove", kind, name, Vec::new()).before = hash(&before.encode_to_vec());
            self.earlier.push(Earlier {
                key: kind.key(name),
                value: Some(before.kept()),
                hidden: Vec::new(),
            });
            self.writes.push(Write::Delete {
                key: kind.key(name),
            });
        }
    }

    fn note(&mut self, action: &str, kind: Kind, name: &str, details: Vec<String>) -> &mut Change {
        self.changes
            .push_mut(change(action, kind.as_str(), name, details))
    }
}

fn created(lines: &Lines) -> Vec<String> {
    let told = |value: &String| !matches!(value.as_str(), "" | "0" | "false");
    lines
        .iter()
        .filter(|(_, value)| told(value))
        .map(|(field, value)| format!("{field}: {value}"))
        .collect()
}

fn updated(old: &Lines, new: &Lines) -> Vec<String> {
    old.iter()
        .zip(new)
        .filter(|(before, after)| before != after)
        .map(|((field, before), (_, after))| format!("{field}: {before} -> {after}"))
        .collect()
}
