//! Answers as tables for people.

use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};
use vector_proto::control::v1 as pb;

use crate::json::word;

mod edges;
pub(crate) use edges::edges;

mod glance;
pub(crate) use glance::glance;

mod keys;
pub(crate) use keys::{key_heard, keys};

mod scores;
pub(crate) use scores::{paths, upstreams_seen};

mod rollout;
pub(crate) use rollout::{changes, generations, rollout};

mod trust;
pub(crate) use trust::{audit, authority, operators};

/// A table without lines, as wide as the terminal.
fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    let mut any = false;
    for row in rows {
        any = true;
        table.add_row(row);
    }
    if any {
        table.trim_fmt()
    } else {
        "none".to_owned()
    }
}

fn dash(text: String) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text
    }
}

fn limit(number: u64) -> String {
    if number == 0 {
        "-".to_owned()
    } else {
        number.to_string()
    }
}

fn yes(flag: bool) -> String {
    if flag { "yes" } else { "no" }.to_owned()
}

/// How long ago, in the largest unit that is not 0.
fn ago(unix_ms: u64) -> String {
    if unix_ms == 0 {
        return "never".to_owned();
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let gone_s = now.saturating_sub(u128::from(unix_ms)) / 1_000;
    span(u64::try_from(gone_s).unwrap_or(u64::MAX)) + " ago"
}

fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn moment(unix_ms: u64) -> String {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(
            || "-".to_owned(),
            |at| at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        )
}

pub(crate) fn status(status: &pb::StatusResponse) -> String {
    let connected = status.nodes.iter().filter(|node| node.connected).count();
    let behind = status
        .nodes
        .iter()
        // Of what another replica hears, it alone knows the revision.
        .filter(|node| node.connected && node.status.is_some() && node.revision != status.revision)
        .count();
    let mut text = format!(
        "control {} of {}, up {}, snapshot revision {}\n{} of {} nodes connected",
        status.version,
        status.trust_domain,
        span(status.uptime_s),
        status.revision,
        connected,
        status.nodes.len(),
    );
    if behind > 0 {
        text += &format!(", {behind} not yet on revision {}", status.revision);
    }
    text += &format!(
        "; {} providers, {} credentials, {} models, {} accounts, {} keys\n\n{}",
        status.providers,
        status.credentials,
        status.models,
        status.accounts,
        status.keys,
        nodes(&status.nodes)
    );
    for node in status
        .nodes
        .iter()
        .filter(|node| !node.rejection.is_empty())
    {
        let id = node.record.as_ref().map_or("?", |record| &record.id);
        text += &format!("\n{id} refused the last snapshot: {}", node.rejection);
    }
    text
}

pub(crate) fn nodes(nodes: &[pb::NodeView]) -> String {
    let rows = nodes.iter().map(|view| {
        let record = view.record.clone().unwrap_or_default();
        let status = view.status.clone().unwrap_or_default();
        let draining = record.draining || status.draining;
        let state = match (view.connected, draining) {
            (true, true) => "draining",
            (true, false) => "connected",
            (false, _) if record.epoch == 0 => "never seen",
            (false, _) => "away",
        };
        let up = status
            .links
            .iter()
            .filter(|link| link.state() == pb::LinkState::Up)
            .count();
        vec![
            record.id,
            record.region,
            record.roles.join("+"),
            state.to_owned(),
            view.revision.to_string(),
            format!("{up}/{}", status.links.len()),
            (status.exchanges + status.client_exchanges).to_string(),
            dash(record.client_urls.join(" ")),
            dash(view.version.clone()),
            ago(view.last_seen_unix_ms),
        ]
    });
    table(
        &[
            "node",
            "region",
            "roles",
            "state",
            "revision",
            "links up",
            "exchanges",
            "url",
            "version",
            "heard",
        ],
        rows,
    )
}

pub(crate) fn providers(specs: &[pb::ProviderSpec]) -> String {
    let rows = specs.iter().map(|spec| {
        let egress = if spec.egress.is_empty() {
            "all".to_owned()
        } else {
            spec.egress.join(" ")
        };
        vec![
            spec.name.clone(),
            spec.kind.clone(),
            spec.base_url.clone(),
            egress,
            yes(spec.unknown_objects),
        ]
    });
    table(
        &["provider", "kind", "base url", "egress", "unknown objects"],
        rows,
    )
}

pub(crate) fn master_keys(keys: &[pb::MasterKeyUse], clear: u64) -> String {
    let rows = keys.iter().map(|row| {
        let use_of = match (row.current, row.held) {
            (true, _) => "seals and opens",
            (false, true) if row.secrets == 0 => "not needed any more",
            (false, true) => "opens: `vectorctl secrets rotate`",
            (false, false) => "missing: name it in control.other_master_key_files",
        };
        vec![
            if row.key.is_empty() {
                "unknown"
            } else {
                &row.key
            }
            .to_owned(),
            row.secrets.to_string(),
            row.direct.to_string(),
            use_of.to_owned(),
        ]
    });
    let mut text = table(&["master key", "secrets", "without data key", "use"], rows);
    if clear > 0 {
        text += &format!(
            "\n\nthe headers of {clear} credentials lie in clear: `vectorctl secrets rotate` seals them"
        );
    }
    text
}

pub(crate) fn credentials(views: &[pb::CredentialView]) -> String {
    let rows = views.iter().map(|view| {
        let spec = view.spec.clone().unwrap_or_default();
        let at = view.at.iter().map(|at| {
            let state = at.status.as_ref().map_or("?".to_owned(), |status| {
                let state = word(status.state().as_str_name(), "CREDENTIAL_STATE_");
                let rests = if status.rests_ms > 0 {
                    format!(" {} s", status.rests_ms.div_ceil(1_000))
                } else {
                    String::new()
                };
                let reason = if status.reason.is_empty() {
                    String::new()
                } else {
                    format!(" ({})", status.reason)
                };
                let left = status.balance.as_ref().map(money).unwrap_or_default();
                format!("{state}{rests}{reason}{left}")
            });
            format!("{}: {state}", at.egress)
        });
        vec![
            spec.name,
            spec.provider,
            view.hint.clone(),
            yes(!spec.disabled),
            limit(spec.requests_per_minute.into()),
            limit(spec.tokens_per_minute),
            limit(spec.concurrency.into()),
            dash(at.collect::<Vec<_>>().join("\n")),
        ]
    });
    table(
        &[
            "credential",
            "provider",
            "secret",
            "on",
            "rpm",
            "tpm",
            "concurrency",
            "at",
        ],
        rows,
    )
}

#[expect(
    clippy::cast_precision_loss,
    reason = "two digits behind the point are shown"
)]
fn money(balance: &pb::Balance) -> String {
    let amount = balance.micros as f64 / 1e6;
    format!(", {amount:.2} {} left", balance.currency)
}

fn upstreams(upstreams: &[pb::Upstream]) -> String {
    let texts = upstreams.iter().map(|up| {
        let model = if up.model.is_empty() {
            "(same name)"
        } else {
            &up.model
        };
        format!(
            "{} / {model}, priority {}, weight {}",
            up.provider, up.priority, up.weight
        )
    });
    texts.collect::<Vec<_>>().join("\n")
}

pub(crate) fn models(specs: &[pb::ModelSpec]) -> String {
    let rows = specs.iter().map(|spec| {
        vec![
            spec.name.clone(),
            dash(spec.owned_by.clone()),
            yes(spec.redundant),
            upstreams(&spec.upstreams),
        ]
    });
    table(&["model", "owned by", "redundant", "upstreams"], rows)
}

pub(crate) fn routes(specs: &[pb::DefaultRouteSpec]) -> String {
    let rows = specs.iter().map(|spec| {
        vec![
            spec.operation.clone(),
            yes(spec.redundant),
            upstreams(&spec.upstreams),
        ]
    });
    table(&["operation", "redundant", "upstreams"], rows)
}

pub(crate) fn accounts(specs: &[pb::AccountSpec]) -> String {
    let rows = specs.iter().map(|spec| {
        let zone = if spec.time_zone.is_empty() {
            "UTC"
        } else {
            &spec.time_zone
        };
        vec![
            spec.name.clone(),
            dash(spec.title.clone()),
            zone.to_owned(),
            yes(!spec.disabled),
        ]
    });
    table(&["account", "title", "time zone", "on"], rows)
}

pub(crate) fn explanation(response: &pb::ExplainRouteResponse) -> String {
    let rows = response.candidates.iter().map(|candidate| {
        let up = candidate.upstream.clone().unwrap_or_default();
        let model = if up.model.is_empty() {
            "(same name)".to_owned()
        } else {
            up.model
        };
        let way = match (candidate.egress.as_str(), candidate.relay.as_str()) {
            ("", _) => "-".to_owned(),
            (egress, "") => egress.to_owned(),
            (egress, relay) => format!("{egress} over {relay}"),
        };
        let score = if candidate.score == 0 {
            "-".to_owned()
        } else {
            format!("{:.1} ms", candidate.score as f64 / 1_000.0)
        };
        let usable = if candidate.usable {
            "yes".to_owned()
        } else {
            format!("no: {}", candidate.why_not)
        };
        vec![
            up.priority.to_string(),
            up.provider,
            model,
            way,
            score,
            usable,
        ]
    });
    format!(
        "{}\n\n{}",
        response.note,
        table(
            &[
                "priority", "provider", "model", "egress", "expected", "usable"
            ],
            rows
        )
    )
}

pub(crate) fn usage(response: &pb::ListUsageResponse) -> String {
    let total = response.total.unwrap_or_default();
    let rows = response.records.iter().map(|record| {
        let usage = record.usage.unwrap_or_default();
        vec![
            moment(record.ended_unix_ms),
            record.account.clone(),
            record.key.clone(),
            if record.model.is_empty() {
                record.operation.clone()
            } else {
                record.model.clone()
            },
            record.egress.clone(),
            format!("{} {}", record.status, record.outcome),
            usage.input_tokens.to_string(),
            usage.output_tokens.to_string(),
            format!("{:.1} ms", record.duration_us as f64 / 1_000.0),
        ]
    });
    format!(
        "{} exchanges: {} input tokens ({} cached), {} output tokens ({} reasoning)\n\n{}",
        response.exchanges,
        total.input_tokens,
        total.cached_input_tokens,
        total.output_tokens,
        total.reasoning_tokens,
        table(
            &[
                "ended (UTC)",
                "account",
                "key",
                "model",
                "egress",
                "outcome",
                "input",
                "output",
                "time"
            ],
            rows
        )
    )
}
