//! Reads `network.toml`: what the network should be.
//!
//! Unknown keys are refused, and each entry's fault is told with its place, all at once. Secrets need not stand
//! in the file: `secret_env` and `secret_file` say where they are. Relative files start at the plan's folder.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, de::DeserializeOwned};
use vector_proto::control::v1::{
    AccountSpec, CredentialSpec, DefaultRouteSpec, ModelSpec, Plan, ProviderLimits, ProviderSpec,
    Upstream,
};

const KINDS: [&str; 5] = [
    "provider",
    "credential",
    "model",
    "default_route",
    "account",
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProvider {
    name: String,
    kind: String,
    base_url: String,
    #[serde(default)]
    allow_private: bool,
    #[serde(default)]
    egress: Vec<String>,
    #[serde(default)]
    unknown_objects: bool,
    #[serde(default)]
    balance: String,
    #[serde(default)]
    connect_ms: u64,
    #[serde(default)]
    first_byte_ms: u64,
    #[serde(default)]
    idle_ms: u64,
    #[serde(default)]
    connections_max: u32,
    #[serde(default)]
    probe_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCredential {
    name: String,
    provider: String,
    secret: Option<String>,
    secret_env: Option<String>,
    secret_file: Option<String>,
    #[serde(default)]
    requests_per_minute: u32,
    #[serde(default)]
    tokens_per_minute: u64,
    #[serde(default)]
    concurrency: u32,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    name: String,
    upstreams: Vec<RawUpstream>,
    #[serde(default)]
    owned_by: String,
    #[serde(default)]
    redundant: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoute {
    operation: String,
    upstreams: Vec<RawUpstream>,
    #[serde(default)]
    redundant: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpstream {
    provider: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    priority: u32,
    #[serde(default = "one")]
    weight: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAccount {
    name: String,
    #[serde(default)]
    title: String,
    #[serde(default)]
    time_zone: String,
    #[serde(default)]
    disabled: bool,
}

fn one() -> u32 {
    1
}

/// Where secrets that do not stand in the file are looked up.
pub(crate) struct Outside<'a> {
    /// Folder of the file.
    pub(crate) folder: &'a Path,
    /// The environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
}

/// Reads the plan, or tells every fault of the file.
pub(crate) fn read(text: &str, outside: &Outside<'_>) -> Result<Plan, Vec<String>> {
    let mut table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| vec![error.to_string()])?;
    let mut faults = Vec::new();
    let providers = entries(&mut table, "provider", &mut faults, provider);
    let credentials = entries(&mut table, "credential", &mut faults, |raw| {
        credential(raw, outside)
    });
    let models = entries(&mut table, "model", &mut faults, model);
    let default_routes = entries(&mut table, "default_route", &mut faults, route);
    let accounts = entries(&mut table, "account", &mut faults, account);
    for key in table.keys() {
        let kinds = KINDS.map(|kind| format!("[[{kind}]]")).join(", ");
        faults.push(format!("{key}: unknown key; there are {kinds}"));
    }
    if faults.is_empty() {
        Ok(Plan {
            providers,
            credentials,
            models,
            default_routes,
            accounts,
        })
    } else {
        Err(faults)
    }
}

fn entries<R: DeserializeOwned, S>(
    table: &mut toml::Table,
    kind: &str,
    faults: &mut Vec<String>,
    mean: impl Fn(R) -> Result<S, String>,
) -> Vec<S> {
    let rows = match table.remove(kind) {
        None => return Vec::new(),
        Some(toml::Value::Array(rows)) => rows,
        Some(_) => {
            faults.push(format!(
                "{kind}: write [[{kind}]] with two brackets, once for each"
            ));
            return Vec::new();
        }
    };
    let mut specs = Vec::with_capacity(rows.len());
    for (place, row) in rows.into_iter().enumerate() {
        let name = row
            .get("name")
            .or_else(|| row.get("operation"))
            .and_then(toml::Value::as_str);
        let at = format!(
            "[[{kind}]] {}",
            name.map_or_else(
                || format!("number {}", place + 1),
                |name| format!("`{name}`")
            )
        );
        match row
            .try_into::<R>()
            .map_err(|error| error.message().to_owned())
            .and_then(&mean)
        {
            Ok(spec) => specs.push(spec),
            Err(why) => faults.push(format!("{at}: {why}")),
        }
    }
    specs
}

fn provider(raw: RawProvider) -> Result<ProviderSpec, String> {
    Ok(ProviderSpec {
        name: raw.name,
        kind: raw.kind,
        base_url: raw.base_url,
        egress: raw.egress,
        limits: limits(
            raw.connect_ms,
            raw.first_byte_ms,
            raw.idle_ms,
            raw.connections_max,
        ),
        unknown_objects: raw.unknown_objects,
        balance: raw.balance,
        allow_private: raw.allow_private,
        probe_ms: raw.probe_ms,
    })
}

/// Limits, when any is said.
pub(crate) fn limits(
    connect_ms: u64,
    first_byte_ms: u64,
    idle_ms: u64,
    connections_max: u32,
) -> Option<ProviderLimits> {
    let limits = ProviderLimits {
        connect_ms,
        first_byte_ms,
        idle_ms,
        connections_max,
    };
    (limits != ProviderLimits::default()).then_some(limits)
}

fn credential(raw: RawCredential, outside: &Outside<'_>) -> Result<CredentialSpec, String> {
    let secret = match (raw.secret, raw.secret_env, raw.secret_file) {
        (None, None, None) => String::new(),
        (Some(secret), None, None) => secret,
        (None, Some(name), None) => (outside.env)(&name)
            .ok_or_else(|| format!("secret_env: {name} is not set in the environment"))?,
        (None, None, Some(file)) => std::fs::read_to_string(outside.folder.join(&file))
            .map_err(|error| format!("secret_file: {file}: {error}"))?,
        _ => return Err("say only one of secret, secret_env and secret_file".to_owned()),
    };
    Ok(CredentialSpec {
        name: raw.name,
        provider: raw.provider,
        secret: secret.trim().to_owned(),
        disabled: raw.disabled,
        requests_per_minute: raw.requests_per_minute,
        tokens_per_minute: raw.tokens_per_minute,
        concurrency: raw.concurrency,
        weight: raw.weight,
        headers: raw.headers,
    })
}

fn model(raw: RawModel) -> Result<ModelSpec, String> {
    Ok(ModelSpec {
        name: raw.name,
        upstreams: raw.upstreams.into_iter().map(upstream).collect(),
        owned_by: raw.owned_by,
        created_unix_s: 0,
        redundant: raw.redundant,
    })
}

fn route(raw: RawRoute) -> Result<DefaultRouteSpec, String> {
    Ok(DefaultRouteSpec {
        operation: raw.operation,
        upstreams: raw.upstreams.into_iter().map(upstream).collect(),
        redundant: raw.redundant,
    })
}

fn upstream(raw: RawUpstream) -> Upstream {
    Upstream {
        provider: raw.provider,
        model: raw.model,
        priority: raw.priority,
        weight: raw.weight,
    }
}

fn account(raw: RawAccount) -> Result<AccountSpec, String> {
    Ok(AccountSpec {
        name: raw.name,
        title: raw.title,
        time_zone: raw.time_zone,
        disabled: raw.disabled,
    })
}

/// An upstream as typed: `PROVIDER[/MODEL][@PRIORITY]`. Only a number behind the last `@` is a priority.
pub(crate) fn typed_upstream(text: &str) -> Upstream {
    let (rest, priority) = match text.rsplit_once('@') {
        Some((rest, digits)) => match digits.parse() {
            Ok(priority) => (rest, priority),
            Err(_) => (text, 0),
        },
        None => (text, 0),
    };
    let (provider, model) = rest.split_once('/').unwrap_or((rest, ""));
    Upstream {
        provider: provider.to_owned(),
        model: model.to_owned(),
        priority,
        weight: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Plan, Vec<String>> {
        let env = |name: &str| (name == "OPENAI_KEY").then(|| "sk-from-env".to_owned());
        read(
            text,
            &Outside {
                folder: Path::new("/nowhere"),
                env: &env,
            },
        )
    }

    #[test]
    fn the_example_file_is_good() {
        let plan = check(include_str!("../../../deploy/config/network.toml")).unwrap();
        assert_eq!(plan.credentials[0].secret, "sk-from-env");
        assert!(
            !plan.models.is_empty() && !plan.default_routes.is_empty() && !plan.accounts.is_empty()
        );
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let faults = check(
            "[[provider]]\nname = \"a\"\n[[provider]]\nname = \"b\"\nkind = \"openai\"\nbase_url = \"x\"\ncolour = 1\n\
             [[credential]]\nname = \"c\"\nprovider = \"b\"\nsecret_env = \"NONE\"\n[[modell]]\nname = \"m\"",
        )
        .unwrap_err()
        .join("\n");
        for part in ["`a`", "`b`", "colour", "NONE", "modell"] {
            assert!(faults.contains(part), "{part} is missing in: {faults}");
        }
    }

    #[test]
    fn upstreams_are_typed_short() {
        let up = typed_upstream("openai/gpt-4o@2");
        assert_eq!(
            (up.provider.as_str(), up.model.as_str(), up.priority),
            ("openai", "gpt-4o", 2)
        );
        let up = typed_upstream("vertex/claude@20250101x");
        assert_eq!((up.model.as_str(), up.priority), ("claude@20250101x", 0));
        assert_eq!(typed_upstream("openai").model, "");
    }
}
