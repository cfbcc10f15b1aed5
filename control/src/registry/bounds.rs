//! Bounds that what is new in a configuration must keep: values that no network has, and more bytes than a node takes or the
//! store writes at once. Pure.
//!
//! Only what a change brings is looked at. What is stored already may break a bound that is newer than it, and must not
//! stand in the way of every later change, such as one that switches an account off.

use std::collections::BTreeMap;

use prost::Message as _;
use vector_proto::control::v1::{CredentialSpec, KeySpec, ProviderSpec, Upstream};

use super::{Catalog, StoredCredential, base_url, check::Faults, headers};
use crate::coordinate::{VALUE_BYTES_MAX, Write};

/// Connections to one provider: no machine has more ports towards one address.
const CONNECTIONS_MAX: u32 = 65_535;

/// Priorities are ranks, and no model has more than 64 upstreams; this leaves room for any way to number them.
const PRIORITY_MAX: u32 = 10_000;

/// An egress counts calls in flight in thousandths by weight: above this, one counts as none.
const WEIGHT_MAX: u32 = 1_000;

/// Limits by the minute and at once that are a thousand times what any provider sells: more is a slip of the unit.
const REQUESTS_PER_MINUTE_MAX: u32 = 100_000_000;
const TOKENS_PER_MINUTE_MAX: u64 = 1_000_000_000_000;
const CONCURRENCY_MAX: u32 = 10_000_000;

/// Longer ones are cut or refused on the way.
const BASE_URL_BYTES_MAX: usize = 2_048;

/// All credentials together, since one egress may be told all of them in one message of at most 64 MiB; half, so that
/// the frame and what is still to come have room.
const CREDENTIALS_BYTES_MAX: usize = 32 << 20;

/// Of one change with what it replaces, which is kept for its undoing: etcd takes 1.5 MiB in one request, and the entry
/// of the audit log goes with it.
const CHANGE_BYTES_MAX: usize = 5 << 18;

/// What a write costs besides its key and value: its frame, and the prefix that every key of this network has.
const WRITE_FRAME_BYTES: usize = 48;

/// Every value that `new` brings and that is out of bounds.
pub(super) fn values(old: &Catalog, new: &Catalog, faults: &mut Faults) {
    for spec in brought(&old.providers, &new.providers) {
        provider(spec, faults);
    }
    for stored in brought(&old.credentials, &new.credentials) {
        credential(&stored.spec, faults);
    }
    for spec in brought(&old.models, &new.models) {
        upstreams(&format!("models[{}]", spec.name), &spec.upstreams, faults);
    }
    for spec in brought(&old.default_routes, &new.default_routes) {
        let at = format!("default_routes[{}]", spec.operation);
        upstreams(&at, &spec.upstreams, faults);
    }
}

fn brought<'a, S: PartialEq>(
    old: &'a BTreeMap<String, S>,
    new: &'a BTreeMap<String, S>,
) -> impl Iterator<Item = &'a S> {
    new.iter()
        .filter(|(name, spec)| old.get(*name) != Some(spec))
        .map(|(_, spec)| spec)
}

/// What is too large as a whole: the credentials with their secrets, or this one change, with what is kept of what it
/// replaces: in the history, and while it is under way.
pub(super) fn sizes(
    old: &Catalog,
    new: &Catalog,
    writes: &[Write],
    kept: [usize; 2],
    faults: &mut Faults,
) {
    let (before, after) = (credentials_bytes(old), credentials_bytes(new));
    if after > CREDENTIALS_BYTES_MAX && after > before {
        let why =
            format!("{after} bytes together, more than the {CREDENTIALS_BYTES_MAX} there may be");
        faults.push("credentials".to_owned(), why);
    }
    let written: usize = writes.iter().map(written).sum();
    let largest = kept.into_iter().max().unwrap_or_default();
    let kept: usize = kept.into_iter().sum();
    if written + kept > CHANGE_BYTES_MAX || largest > VALUE_BYTES_MAX {
        let why = format!(
            "{written} bytes at once that replace {kept} are more than the {CHANGE_BYTES_MAX} there may be: apply in parts"
        );
        faults.push("changes".to_owned(), why);
    }
}

fn written(write: &Write) -> usize {
    let value = match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete { .. } => 0,
    };
    WRITE_FRAME_BYTES + write.key().len() + value
}

fn credentials_bytes(catalog: &Catalog) -> usize {
    let all = catalog.credentials.values();
    all.map(StoredCredential::encoded_len).sum()
}

impl Faults {
    fn at_most<N: PartialOrd + std::fmt::Display>(&mut self, field: String, value: N, max: N) {
        if value > max {
            self.push(field, format!("{value} is more than the {max} it may be"));
        }
    }
}

fn provider(spec: &ProviderSpec, faults: &mut Faults) {
    let at = |field: &str| format!("providers[{}].{field}", spec.name);
    if spec.base_url.len() <= BASE_URL_BYTES_MAX {
        base_url::judge(spec, at, faults);
    }
    let limits = spec.limits.unwrap_or_default();
    let field = at("limits.connections_max");
    faults.at_most(field, limits.connections_max, CONNECTIONS_MAX);
    for (field, text) in [("base_url", &spec.base_url), ("balance", &spec.balance)] {
        if text.len() > BASE_URL_BYTES_MAX {
            faults.push(at(field), format!("longer than {BASE_URL_BYTES_MAX} bytes"));
        }
    }
}

fn credential(spec: &CredentialSpec, faults: &mut Faults) {
    let at = |field: &str| format!("credentials[{}].{field}", spec.name);
    rates(
        at,
        spec.requests_per_minute,
        spec.tokens_per_minute,
        spec.concurrency,
        faults,
    );
    faults.at_most(at("weight"), spec.weight, WEIGHT_MAX);
    let most = headers::NAME_BYTES_MAX;
    for name in spec.headers.keys().filter(|name| name.len() > most) {
        let why = format!("its name is longer than {most} bytes");
        faults.push(headers::field(&spec.name, name), why);
    }
}

/// The limits of an API key.
pub(super) fn key(spec: &KeySpec, faults: &mut Faults) {
    rates(
        str::to_owned,
        spec.requests_per_minute,
        spec.tokens_per_minute,
        spec.concurrency,
        faults,
    );
}

fn rates(
    at: impl Fn(&str) -> String,
    requests_per_minute: u32,
    tokens_per_minute: u64,
    concurrency: u32,
    faults: &mut Faults,
) {
    let field = at("requests_per_minute");
    faults.at_most(field, requests_per_minute, REQUESTS_PER_MINUTE_MAX);
    let field = at("tokens_per_minute");
    faults.at_most(field, tokens_per_minute, TOKENS_PER_MINUTE_MAX);
    faults.at_most(at("concurrency"), concurrency, CONCURRENCY_MAX);
}

fn upstreams(at: &str, upstreams: &[Upstream], faults: &mut Faults) {
    for (place, upstream) in upstreams.iter().enumerate() {
        let at = |field: &str| format!("{at}.upstreams[{place}].{field}");
        faults.at_most(at("priority"), upstream.priority, PRIORITY_MAX);
        faults.at_most(at("weight"), upstream.weight, WEIGHT_MAX);
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1::{ModelSpec, ProviderLimits};

    use super::*;

    fn fields(old: &Catalog, new: &Catalog) -> Vec<String> {
        let mut faults = Faults::default();
        values(old, new, &mut faults);
        faults.0.into_iter().map(|fault| fault.field).collect()
    }

    fn absurd() -> Catalog {
        let mut catalog = Catalog::default();
        let provider = ProviderSpec {
            name: "p".to_owned(),
            base_url: format!("https://{}.com", "x".repeat(BASE_URL_BYTES_MAX)),
            limits: Some(ProviderLimits {
                connections_max: u32::MAX,
                ..ProviderLimits::default()
            }),
            ..ProviderSpec::default()
        };
        catalog.providers.insert("p".to_owned(), provider);
        let spec = CredentialSpec {
            name: "c".to_owned(),
            requests_per_minute: u32::MAX,
            tokens_per_minute: u64::MAX,
            concurrency: u32::MAX,
            weight: WEIGHT_MAX + 1,
            headers: [("x".repeat(headers::NAME_BYTES_MAX + 1), String::new())].into(),
            ..CredentialSpec::default()
        };
        let stored = StoredCredential {
            spec,
            ..StoredCredential::default()
        };
        catalog.credentials.insert("c".to_owned(), stored);
        let upstream = Upstream {
            priority: PRIORITY_MAX + 1,
            weight: u32::MAX,
            ..Upstream::default()
        };
        let model = ModelSpec {
            name: "m".to_owned(),
            upstreams: vec![upstream],
            ..ModelSpec::default()
        };
        catalog.models.insert("m".to_owned(), model);
        catalog
    }

    #[test]
    fn absurd_values_are_told_by_field_and_only_when_they_are_new() {
        let catalog = absurd();
        assert_eq!(
            fields(&Catalog::default(), &catalog),
            [
                "providers[p].limits.connections_max",
                "providers[p].base_url",
                "credentials[c].requests_per_minute",
                "credentials[c].tokens_per_minute",
                "credentials[c].concurrency",
                "credentials[c].weight",
                &headers::field("c", &"x".repeat(headers::NAME_BYTES_MAX)),
                "models[m].upstreams[0].priority",
                "models[m].upstreams[0].weight",
            ]
        );
        let mut other = catalog.clone();
        other.accounts.insert("acme".to_owned(), Default::default());
        assert_eq!(fields(&catalog, &other), [""; 0], "what is stored stays");
        // As one of before the rule may be: the egress does not call it, and other changes are not held up by it.
        let inside = ProviderSpec {
            name: "inside".to_owned(),
            base_url: "https://10.0.0.8".to_owned(),
            ..ProviderSpec::default()
        };
        let mut stored = catalog.clone();
        stored.providers.insert(inside.name.clone(), inside.clone());
        assert_eq!(fields(&catalog, &stored), ["providers[inside].base_url"]);
        let mut later = stored.clone();
        later.accounts.insert("acme".to_owned(), Default::default());
        assert_eq!(fields(&stored, &later), [""; 0]);
        other.models.get_mut("m").unwrap().redundant = true;
        assert_eq!(fields(&catalog, &other).len(), 2, "what is touched is not");
    }

    #[test]
    fn one_change_has_as_many_bytes_as_the_store_takes() {
        let catalog = Catalog::default();
        let put = |bytes: usize| Write::Put {
            key: "/cfg/models/m".to_owned(),
            value: vec![0; bytes].into(),
            session: None,
        };
        let faults = |bytes: usize, kept: usize| {
            let mut faults = Faults::default();
            let writes = [put(bytes), put(bytes)];
            sizes(&catalog, &catalog, &writes, [kept, 0], &mut faults);
            faults.0.len()
        };
        assert_eq!(faults(600 << 10, 0), 0);
        assert_eq!(faults(641 << 10, 0), 1);
        assert_eq!(faults(600 << 10, 100 << 10), 1, "what it replaces counts");
    }

    #[test]
    fn credentials_may_shrink_whatever_they_are() {
        let with = |count: usize| {
            let mut catalog = Catalog::default();
            for n in 0..count {
                let stored = StoredCredential {
                    sealed: vec![0; 1 << 20].into(),
                    ..StoredCredential::default()
                };
                catalog.credentials.insert(n.to_string(), stored);
            }
            catalog
        };
        let faults = |old: usize, new: usize| {
            let mut faults = Faults::default();
            sizes(&with(old), &with(new), &[], [0, 0], &mut faults);
            faults.0.len()
        };
        assert_eq!((faults(0, 31), faults(31, 33), faults(40, 39)), (0, 1, 0));
    }
}
