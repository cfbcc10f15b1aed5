//! Says everything that is wrong with a catalog: pure, and all faults at once.

use std::{collections::HashSet, net::IpAddr};

use http::{HeaderName, HeaderValue};
use vector_proto::{
    control::v1::{
        AccountSpec, CredentialSpec, DefaultRouteSpec, KeySpec, ModelSpec, ProviderLimits,
        ProviderSpec, Upstream,
    },
    id::Name,
};

use super::{
    Catalog, Fault,
    headers::{self, Headers},
};

/// Kinds of providers that nodes can speak to.
const KINDS: &[&str] = &["openai", "anthropic", "gemini", "midjourney", "suno"];

/// Each kind of thing may be this often in a catalog.
const ENTRIES_MAX: usize = 20_000;

/// Upstreams of one model or route.
const UPSTREAMS_MAX: usize = 64;

/// Longest name of a model, title or secret's hint.
const MODEL_BYTES_MAX: usize = 256;
const TITLE_BYTES_MAX: usize = 200;
const SECRET_BYTES_MAX: usize = 16 << 10;

/// Entries of a key's lists, and of a provider's.
const LIST_MAX: usize = 256;

/// Longest time limit a provider may have: a day.
const LIMIT_MS_MAX: u64 = 86_400_000;

/// Shortest pause between two probes of one egress: a thousand egress nodes ask a provider a thousand times a second then.
const PROBE_MS_MIN: u64 = 1_000;

/// Headers that a credential may not set: they are the transport's or the network's own.
const HEADERS_KEPT: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "upgrade",
    "trailer",
    "authorization",
    "x-api-key",
];

/// Collects faults under the path of the field that is looked at.
#[derive(Debug, Default)]
pub(super) struct Faults(pub(super) Vec<Fault>);

impl Faults {
    pub(super) fn push(&mut self, field: String, why: impl Into<String>) {
        self.0.push(Fault {
            field,
            why: why.into(),
        });
    }

    fn name(&mut self, field: &str, text: &str) {
        if let Err(error) = text.parse::<Name>() {
            self.push(field.to_owned(), error.to_string());
        }
    }

    fn up_to(&mut self, field: String, count: usize, max: usize) {
        if count > max {
            self.push(
                field,
                format!("{count} are more than the {max} there may be"),
            );
        }
    }
}

/// Everything wrong with the catalog.
pub(super) fn catalog(catalog: &Catalog, faults: &mut Faults) {
    for (kind, count) in [
        ("providers", catalog.providers.len()),
        ("credentials", catalog.credentials.len()),
        ("models", catalog.models.len()),
        ("default_routes", catalog.default_routes.len()),
    ] {
        faults.up_to(kind.to_owned(), count, ENTRIES_MAX);
    }
    for spec in catalog.providers.values() {
        provider(spec, faults);
    }
    for stored in catalog.credentials.values() {
        credential(catalog, &stored.spec, faults);
    }
    for spec in catalog.models.values() {
        model(catalog, spec, faults);
    }
    for spec in catalog.default_routes.values() {
        default_route(catalog, spec, faults);
    }
    for spec in catalog.accounts.values() {
        account(spec, faults);
    }
}

fn provider(spec: &ProviderSpec, faults: &mut Faults) {
    let at = |field: &str| format!("providers[{}].{field}", spec.name);
    faults.name(&at("name"), &spec.name);
    if !KINDS.contains(&spec.kind.as_str()) {
        faults.push(
            at("kind"),
            format!("`{}` is none of: {}", spec.kind, KINDS.join(", ")),
        );
    }
    if let Err(why) = balance(&spec.balance) {
        faults.push(at("balance"), why);
    }
    faults.up_to(at("egress"), spec.egress.len(), LIST_MAX);
    for (place, egress) in spec.egress.iter().enumerate() {
        faults.name(&at(&format!("egress[{place}]")), egress);
    }
    let ProviderLimits {
        connect_ms,
        first_byte_ms,
        idle_ms,
        connections_max: _,
    } = spec.limits.unwrap_or_default();
    for (field, value) in [
        ("connect_ms", connect_ms),
        ("first_byte_ms", first_byte_ms),
        ("idle_ms", idle_ms),
    ] {
        if value > LIMIT_MS_MAX {
            faults.push(
                at(&format!("limits.{field}")),
                format!("at most {LIMIT_MS_MAX}"),
            );
        }
    }
    if spec.probe_ms != 0 && !(PROBE_MS_MIN..=LIMIT_MS_MAX).contains(&spec.probe_ms) {
        let range = format!("0, or {PROBE_MS_MIN} to {LIMIT_MS_MAX}");
        faults.push(at("probe_ms"), range);
    }
}

/// Whose API tells balances, and perhaps a path before its own: `billing /gateway`.
fn balance(text: &str) -> Result<(), String> {
    const TELLERS: [&str; 6] = [
        "none",
        "deepseek",
        "openrouter",
        "siliconflow",
        "billing",
        "quota",
    ];
    let (name, path) = text.split_once(' ').unwrap_or((text, ""));
    if !text.is_empty() && !TELLERS.contains(&name) {
        return Err(format!("`{name}` is none of: {}", TELLERS.join(", ")));
    }
    let whole = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !path.is_empty() && !whole {
        return Err(format!("`{path}` is not a path such as /gateway"));
    }
    Ok(())
}

fn credential(catalog: &Catalog, spec: &CredentialSpec, faults: &mut Faults) {
    let at = |field: &str| format!("credentials[{}].{field}", spec.name);
    faults.name(&at("name"), &spec.name);
    if !catalog.providers.contains_key(&spec.provider) {
        faults.push(
            at("provider"),
            format!("there is no provider `{}`", spec.provider),
        );
    }
    faults.up_to(at("headers"), spec.headers.len(), 16);
    for name in spec.headers.keys() {
        let field = headers::field(&spec.name, name);
        if HeaderName::try_from(name.as_str()).is_err() {
            faults.push(field, "not a header that can be sent");
        } else if HEADERS_KEPT.contains(&name.to_ascii_lowercase().as_str()) {
            faults.push(field, "is set by the network itself");
        }
    }
}

/// A secret as it was given.
pub(super) fn secret(name: &str, secret: &str, faults: &mut Faults) {
    let field = format!("credentials[{name}].secret");
    if secret.len() > SECRET_BYTES_MAX {
        faults.push(field, format!("longer than {SECRET_BYTES_MAX} bytes"));
    } else if HeaderValue::try_from(secret).is_err() {
        faults.push(
            field,
            "holds characters that no header can carry, such as a line break",
        );
    }
}

/// Values of headers as they were given.
pub(super) fn header_values(credential: &str, given: &Headers, faults: &mut Faults) {
    for (name, value) in given.iter() {
        let field = headers::field(credential, name);
        if value.len() > headers::VALUE_BYTES_MAX {
            let most = headers::VALUE_BYTES_MAX;
            faults.push(field, format!("its value is longer than {most} bytes"));
        } else if HeaderValue::try_from(value).is_err() {
            faults.push(field, "holds characters that no header can carry");
        }
    }
}

fn model(catalog: &Catalog, spec: &ModelSpec, faults: &mut Faults) {
    let at = |field: &str| format!("models[{}].{field}", spec.name);
    model_name(&at("name"), &spec.name, faults);
    if spec.owned_by.len() > TITLE_BYTES_MAX {
        faults.push(at("owned_by"), "too long");
    }
    upstreams(catalog, &at("upstreams"), &spec.upstreams, faults);
}

fn model_name(field: &str, name: &str, faults: &mut Faults) {
    let bad = |c: char| c.is_control() || c.is_whitespace();
    if name.is_empty() || name.len() > MODEL_BYTES_MAX || name.contains(bad) {
        faults.push(
            field.to_owned(),
            format!("1 to {MODEL_BYTES_MAX} bytes without spaces"),
        );
    }
}

fn upstreams(catalog: &Catalog, field: &str, upstreams: &[Upstream], faults: &mut Faults) {
    if upstreams.is_empty() {
        faults.push(field.to_owned(), "at least one is needed");
    }
    faults.up_to(field.to_owned(), upstreams.len(), UPSTREAMS_MAX);
    let mut seen = HashSet::new();
    for (place, upstream) in upstreams.iter().enumerate() {
        let at = format!("{field}[{place}]");
        if !catalog.providers.contains_key(&upstream.provider) {
            faults.push(
                format!("{at}.provider"),
                format!("there is no provider `{}`", upstream.provider),
            );
        }
        if !upstream.model.is_empty() {
            model_name(&format!("{at}.model"), &upstream.model, faults);
        }
        if !seen.insert((&upstream.provider, &upstream.model)) {
            faults.push(at, "the same provider and model stand there already");
        }
    }
}

fn default_route(catalog: &Catalog, spec: &DefaultRouteSpec, faults: &mut Faults) {
    let at = |field: &str| format!("default_routes[{}].{field}", spec.operation);
    let parts: Vec<&str> = spec.operation.split('.').collect();
    let last = parts.len() - 1;
    let word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    };
    let good = parts
        .iter()
        .enumerate()
        .all(|(place, part)| word(part) || (place == last && *part == "*"));
    if !good || spec.operation.len() > 120 {
        faults.push(
            at("operation"),
            "an operation such as `files.create`, a family such as `files.*`, or `*`",
        );
    }
    upstreams(catalog, &at("upstreams"), &spec.upstreams, faults);
}

fn account(spec: &AccountSpec, faults: &mut Faults) {
    let at = |field: &str| format!("accounts[{}].{field}", spec.name);
    faults.name(&at("name"), &spec.name);
    if spec.title.len() > TITLE_BYTES_MAX {
        faults.push(at("title"), "too long");
    }
    if !spec.time_zone.is_empty() && jiff::tz::TimeZone::get(&spec.time_zone).is_err() {
        faults.push(
            at("time_zone"),
            format!(
                "`{}` is not an IANA name such as Asia/Shanghai",
                spec.time_zone
            ),
        );
    }
}

/// Everything wrong with a key's own fields.
pub(super) fn key(spec: &KeySpec, faults: &mut Faults) {
    if spec.name.len() > TITLE_BYTES_MAX || spec.name.contains(char::is_control) {
        faults.push("name".to_owned(), "too long, or holds control characters");
    }
    faults.up_to("models".to_owned(), spec.models.len(), LIST_MAX);
    for (place, model) in spec.models.iter().enumerate() {
        model_name(&format!("models[{place}]"), model, faults);
    }
    faults.up_to("addresses".to_owned(), spec.addresses.len(), LIST_MAX);
    for (place, address) in spec.addresses.iter().enumerate() {
        if !is_cidr(address) {
            faults.push(
                format!("addresses[{place}]"),
                format!("`{address}` is neither an address nor a network such as 10.0.0.0/8"),
            );
        }
    }
}

fn is_cidr(text: &str) -> bool {
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => match bits.parse::<u8>() {
            Ok(bits) => (address, Some(bits)),
            Err(_) => return false,
        },
    };
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => bits.is_none_or(|bits| bits <= 32),
        Ok(IpAddr::V6(_)) => bits.is_none_or(|bits| bits <= 128),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read() {
        for good in ["10.0.0.0/8", "::/0", "1.2.3.4", "fe80::1"] {
            assert!(is_cidr(good), "{good}");
        }
        for bad in ["10.0.0.0/33", "x", "1.2.3.4/", ""] {
            assert!(!is_cidr(bad), "{bad}");
        }
    }
}
