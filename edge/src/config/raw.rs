//! The settings as somebody wrote them: nothing is checked here but names and kinds of values.
//!
//! [`KEYS`] is the list of all keys. It serves the environment, the search for unknown keys and
//! the kinds; the structs below are what `check` reads. A test holds the two together.

use serde::Deserialize;
use toml::{Table, Value};

use super::Error;

/// What a value looks like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Text,
    Number,
    Flag,
    List,
    /// One text, or a list of them.
    Texts,
}

use Kind::{Flag, List, Number, Text, Texts};

/// Section, key, kind.
const KEYS: &[(&str, &str, Kind)] = &[
    ("node", "id", Text),
    ("node", "region", Text),
    ("node", "roles", List),
    ("node", "state_dir", Text),
    ("node", "workers", Number),
    ("control", "url", Texts),
    ("control", "invite", Text),
    ("control", "invite_file", Text),
    ("ingress", "listen", Text),
    ("ingress", "url", Text),
    ("ingress", "public_addresses", List),
    ("ingress", "tls_cert", Text),
    ("ingress", "tls_key", Text),
    ("ingress", "acme_domains", List),
    ("ingress", "acme_directory", Text),
    ("ingress", "acme_contact", Text),
    ("ingress", "acme_ca", Text),
    ("ingress", "acme_agree", Flag),
    ("ingress", "insecure", Flag),
    ("ingress", "body_bytes_max", Number),
    ("ingress", "body_spool_bytes", Number),
    ("ingress", "header_read_ms", Number),
    ("ingress", "body_idle_ms", Number),
    ("ingress", "stall_ms", Number),
    ("ingress", "ping_ms", Number),
    ("ingress", "queue_ms", Number),
    ("ingress", "connections_max", Number),
    ("ingress", "drain_ms", Number),
    ("ingress", "notice_ms", Number),
    ("ingress", "request_ms", Number),
    ("tunnel", "listen", List),
    ("tunnel", "advertise", List),
    ("tunnel", "heartbeat_active_ms", Number),
    ("tunnel", "heartbeat_standby_ms", Number),
    ("tunnel", "heartbeat_cold_ms", Number),
    ("tunnel", "line_mbps", Number),
    ("tunnel", "own_runtime", Flag),
    ("egress", "connect_ms", Number),
    ("egress", "first_byte_ms", Number),
    ("egress", "idle_ms", Number),
    ("egress", "tls_roots", Text),
    ("egress", "kept_bytes_max", Number),
    ("egress", "keep_credentials", Flag),
    ("admin", "listen", Text),
    ("telemetry", "log", Text),
    ("telemetry", "format", Text),
    ("telemetry", "otlp", Text),
];

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub(super) node: RawNode,
    pub(super) control: RawControl,
    pub(super) ingress: RawIngress,
    pub(super) tunnel: RawTunnel,
    pub(super) egress: RawEgress,
    pub(super) admin: RawAdmin,
    pub(super) telemetry: RawTelemetry,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawNode {
    pub(super) id: Option<String>,
    pub(super) region: Option<String>,
    pub(super) roles: Option<Vec<String>>,
    pub(super) state_dir: Option<String>,
    pub(super) workers: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawControl {
    pub(super) url: Option<Vec<String>>,
    pub(super) invite: Option<String>,
    pub(super) invite_file: Option<String>,
}

impl std::fmt::Debug for RawControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("RawControl");
        shown.field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawIngress {
    pub(super) listen: Option<String>,
    pub(super) url: Option<String>,
    pub(super) public_addresses: Option<Vec<String>>,
    pub(super) tls_cert: Option<String>,
    pub(super) tls_key: Option<String>,
    pub(super) acme_domains: Option<Vec<String>>,
    pub(super) acme_directory: Option<String>,
    pub(super) acme_contact: Option<String>,
    pub(super) acme_ca: Option<String>,
    pub(super) acme_agree: Option<bool>,
    pub(super) insecure: Option<bool>,
    pub(super) body_bytes_max: Option<u64>,
    pub(super) body_spool_bytes: Option<u64>,
    pub(super) header_read_ms: Option<u64>,
    pub(super) body_idle_ms: Option<u64>,
    pub(super) stall_ms: Option<u64>,
    pub(super) ping_ms: Option<u64>,
    pub(super) queue_ms: Option<u64>,
    pub(super) connections_max: Option<u64>,
    pub(super) drain_ms: Option<u64>,
    pub(super) notice_ms: Option<u64>,
    pub(super) request_ms: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTunnel {
    pub(super) listen: Option<Vec<String>>,
    pub(super) advertise: Option<Vec<String>>,
    pub(super) heartbeat_active_ms: Option<u64>,
    pub(super) heartbeat_standby_ms: Option<u64>,
    pub(super) heartbeat_cold_ms: Option<u64>,
    pub(super) line_mbps: Option<u64>,
    pub(super) own_runtime: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawEgress {
    pub(super) connect_ms: Option<u64>,
    pub(super) first_byte_ms: Option<u64>,
    pub(super) idle_ms: Option<u64>,
    pub(super) tls_roots: Option<String>,
    pub(super) kept_bytes_max: Option<u64>,
    pub(super) keep_credentials: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAdmin {
    pub(super) listen: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawTelemetry {
    pub(super) log: Option<String>,
    pub(super) format: Option<String>,
    pub(super) otlp: Option<String>,
}

/// Reads the text, lays the environment over it, and tells every unknown key and wrong kind.
pub(super) fn read(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(RawConfig, Vec<String>), Error> {
    let written: Table = text
        .parse()
        .map_err(|error: toml::de::Error| Error::Syntax(error.to_string()))?;
    let mut faults = Vec::new();
    let mut table = known(written, &mut faults);
    for &(section, key, kind) in KEYS {
        let name = format!("VECTOR_{}_{}", section.to_uppercase(), key.to_uppercase());
        let Some(text) = env(&name) else { continue };
        match from_env(&text, kind) {
            Ok(value) => {
                let section = table
                    .entry(section)
                    .or_insert_with(|| Value::Table(Table::new()));
                if let Value::Table(section) = section {
                    section.insert(key.to_owned(), value);
                }
            }
            Err(wanted) => faults.push(format!("{section}.{key}: {name} must be {wanted}")),
        }
    }
    let raw = RawConfig::deserialize(table).unwrap_or_else(|error| {
        faults.push(format!("settings: {error}"));
        RawConfig::default()
    });
    Ok((raw, faults))
}

/// Keeps what is known and of the right kind, tells the rest.
fn known(written: Table, faults: &mut Vec<String>) -> Table {
    let mut kept = Table::new();
    for (section, value) in written {
        if !KEYS.iter().any(|row| row.0 == section) {
            faults.push(format!("{section}: no such section"));
            continue;
        }
        let Value::Table(rows) = value else {
            faults.push(format!("{section}: must be a section, [{section}]"));
            continue;
        };
        let mut good = Table::new();
        for (key, value) in rows {
            let row = KEYS.iter().find(|row| row.0 == section && row.1 == key);
            match row {
                None => faults.push(format!("{section}.{key}: no such key")),
                Some(row) if !fits(&value, row.2) => {
                    faults.push(format!("{section}.{key}: must be {}", wanted(row.2)));
                }
                Some(row) => {
                    good.insert(key, as_read(value, row.2));
                }
            }
        }
        kept.insert(section, Value::Table(good));
    }
    kept
}

fn fits(value: &Value, kind: Kind) -> bool {
    match (kind, value) {
        (Text, Value::String(_)) | (Flag, Value::Boolean(_)) => true,
        (Number, Value::Integer(number)) => *number >= 0,
        (List | Texts, Value::Array(items)) => items.iter().all(Value::is_str),
        (Texts, Value::String(_)) => true,
        (Text | Number | Flag | List | Texts, _) => false,
    }
}

/// One text stands for a list of one.
fn as_read(value: Value, kind: Kind) -> Value {
    if kind == Texts && value.is_str() {
        return Value::Array(vec![value]);
    }
    value
}

const fn wanted(kind: Kind) -> &'static str {
    match kind {
        Text => "a text in quotes",
        Number => "a whole number, not below 0",
        Flag => "true or false",
        List => "a list of texts",
        Texts => "a text in quotes, or a list of texts",
    }
}

/// Lists are parted by commas.
fn from_env(text: &str, kind: Kind) -> Result<Value, &'static str> {
    match kind {
        Text => Ok(Value::String(text.to_owned())),
        Number => {
            let number: i64 = text.trim().parse().map_err(|_| wanted(kind))?;
            (number >= 0)
                .then_some(Value::Integer(number))
                .ok_or(wanted(kind))
        }
        Flag => match text.trim() {
            "true" | "1" => Ok(Value::Boolean(true)),
            "false" | "0" => Ok(Value::Boolean(false)),
            _ => Err(wanted(kind)),
        },
        List | Texts => {
            let parts = text.split(',').map(str::trim);
            let parts = parts.filter(|part| !part.is_empty());
            Ok(Value::Array(
                parts.map(|part| Value::String(part.to_owned())).collect(),
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_keys_and_the_structs_agree() {
        let value = |kind| match kind {
            Text => "x",
            Number => "1",
            Flag => "true",
            List | Texts => "a,b",
        };
        let env = |name: &str| {
            let rest = name.strip_prefix("VECTOR_").unwrap().to_lowercase();
            let row = KEYS
                .iter()
                .find(|row| format!("{}_{}", row.0, row.1) == rest);
            row.map(|row| value(row.2).to_owned())
        };
        let (raw, faults) = read("", &env).unwrap();
        assert_eq!(faults, Vec::<String>::new());
        // Every key arrives: nothing is still absent, as far as `Debug` shows.
        assert!(!format!("{raw:?}").contains("None"), "{raw:?}");
        assert!(raw.control.invite.is_some() && raw.control.invite_file.is_some());
    }
}
