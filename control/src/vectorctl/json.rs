//! Answers as JSON. The field names are an interface: they stay.

use serde_json::{Value, json};
use vector_proto::{control::v1 as pb, tunnel::v1::Usage};

use crate::{
    doctor::{self, Finding},
    sight::{RATE_S, Sight},
};

pub(crate) fn list<T>(name: &str, rows: &[T], row: impl Fn(&T) -> Value) -> Value {
    json!({ name: rows.iter().map(row).collect::<Vec<_>>() })
}

pub(crate) fn status(status: &pb::StatusResponse) -> Value {
    json!({
        "version": status.version, "trust_domain": status.trust_domain, "revision": status.revision,
        "uptime_s": status.uptime_s, "providers": status.providers, "credentials": status.credentials,
        "models": status.models, "accounts": status.accounts, "keys": status.keys,
        "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

/// `status` with what follows from all the rest.
pub(crate) fn glance(sight: &Sight, findings: &[Finding]) -> Value {
    let mut value = status(&sight.status);
    let [up, suspect, down] = sight.paths();
    let usage = sight.lately.total.unwrap_or_default();
    value["paths"] = json!({ "up": up, "suspect": suspect, "down": down });
    value["lately"] = json!({
        "seconds": RATE_S, "exchanges": sight.lately.exchanges,
        "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
    });
    value["findings"] = doctor::value(findings)["findings"].take();
    value
}

pub(crate) fn node(view: &pb::NodeView) -> Value {
    let record = view.record.clone().unwrap_or_default();
    let status = view.status.clone().unwrap_or_default();
    json!({
        "id": record.id, "region": record.region, "roles": record.roles, "epoch": record.epoch,
        "tunnel_addresses": record.tunnel_addresses, "client_urls": record.client_urls,
        "draining": record.draining || status.draining, "connected": view.connected, "revision": view.revision,
        "version": view.version, "last_seen_unix_ms": view.last_seen_unix_ms, "rejection": view.rejection,
        "exchanges": status.exchanges, "client_exchanges": status.client_exchanges,
        "clock_skew_ms": view.clock_skew_ms, "certificate_until_unix_ms": status.certificate_until_unix_ms,
        "disk_free_bytes": status.disk_free_bytes, "disk_bytes": status.disk_bytes,
        "links": status.links.iter().map(link).collect::<Vec<_>>(),
        "credentials": status.credentials.iter().map(credential_status).collect::<Vec<_>>(),
    })
}

fn link(link: &pb::LinkStatus) -> Value {
    json!({
        "peer": link.peer, "address": link.address, "local_address": link.local_address, "state": word(link.state().as_str_name(), "LINK_STATE_"),
        "rtt_us": link.rtt_us, "lost_packets": link.lost_packets, "sent_packets": link.sent_packets,
        "jitter_us": link.jitter_us, "loss_out_ppm": link.loss_out_ppm, "loss_in_ppm": link.loss_in_ppm,
        "flaps": link.flaps, "heartbeats_sent": link.heartbeats_sent, "heartbeats_heard": link.heartbeats_heard,
        "delivery_bytes_per_s": link.delivery_bytes_per_s, "connection": link.connection,
    })
}

fn credential_status(status: &pb::CredentialStatus) -> Value {
    json!({
        "credential": status.credential, "state": word(status.state().as_str_name(), "CREDENTIAL_STATE_"),
        "rests_ms": status.rests_ms, "in_flight": status.in_flight, "reason": status.reason,
        "provider": status.provider, "balance": status.balance.as_ref().map(|balance| json!({
            "micros": balance.micros, "currency": balance.currency, "age_ms": balance.age_ms,
        })),
    })
}

pub(crate) fn upstreams_seen(views: &[pb::UpstreamView]) -> Value {
    let view = |view: &pb::UpstreamView| {
        let pool = view.pool.clone().unwrap_or_default();
        let seen = |seen: &pb::UpstreamSeen| {
            let status = seen.status.clone().unwrap_or_default();
            json!({
                "model": status.model, "ingress": seen.ingress, "success_permille": status.success_permille,
                "first_byte_us": status.first_byte_us, "tokens_per_s": status.tokens_per_s,
                "in_flight": status.in_flight, "ejected_ms": status.ejected_ms, "reached_permille": status.reached_permille,
            })
        };
        json!({
            "provider": view.provider, "egress": view.egress, "keys": pool.keys, "ready": pool.ready,
            "rests_ms": pool.rests_ms, "in_flight": pool.in_flight,
            "probes_failed": pool.probes_failed, "probed_ms_ago": pool.probed_ms_ago, "probe_us": pool.probe_us,
            "seen": view.seen.iter().map(seen).collect::<Vec<_>>(), "models": view.models.iter().map(seen).collect::<Vec<_>>(),
        })
    };
    json!({ "upstreams": views.iter().map(view).collect::<Vec<_>>() })
}

pub(crate) fn paths(views: &[pb::PathView]) -> Value {
    let view = |view: &pb::PathView| {
        let link = view.link.clone().unwrap_or_default();
        json!({
            "node": view.node, "region": view.region, "peer": link.peer, "address": link.address,
            "state": word(link.state().as_str_name(), "LINK_STATE_"), "rtt_us": link.rtt_us,
            "sent_packets": link.sent_packets, "lost_packets": link.lost_packets,
            "loss_out_ppm": link.loss_out_ppm, "loss_in_ppm": link.loss_in_ppm,
        })
    };
    json!({ "paths": views.iter().map(view).collect::<Vec<_>>() })
}

/// `LINK_STATE_UP` as people say it: `up`.
pub(crate) fn word(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase()
}

pub(crate) fn provider(spec: &pb::ProviderSpec) -> Value {
    let limits = spec.limits.unwrap_or_default();
    json!({
        "name": spec.name, "kind": spec.kind, "base_url": spec.base_url, "allow_private": spec.allow_private, "egress": spec.egress,
        "unknown_objects": spec.unknown_objects, "balance": spec.balance, "connect_ms": limits.connect_ms, "first_byte_ms": limits.first_byte_ms,
        "idle_ms": limits.idle_ms, "connections_max": limits.connections_max, "probe_ms": spec.probe_ms,
    })
}

pub(crate) fn credential(view: &pb::CredentialView) -> Value {
    let spec = view.spec.clone().unwrap_or_default();
    // Control tells their names only.
    let headers = spec.headers.keys().map(|name| (name.clone(), Value::Null));
    let at = view.at.iter().map(
        |at| json!({ "egress": at.egress, "status": at.status.as_ref().map(credential_status) }),
    );
    json!({
        "name": spec.name, "provider": spec.provider, "hint": view.hint, "disabled": spec.disabled,
        "requests_per_minute": spec.requests_per_minute, "tokens_per_minute": spec.tokens_per_minute,
        "concurrency": spec.concurrency, "weight": spec.weight, "headers": headers.collect::<serde_json::Map<_, _>>(),
        "at": at.collect::<Vec<_>>(),
    })
}

pub(crate) fn upstream(up: &pb::Upstream) -> Value {
    json!({ "provider": up.provider, "model": up.model, "priority": up.priority, "weight": up.weight })
}

fn upstreams(upstreams: &[pb::Upstream]) -> Vec<Value> {
    upstreams.iter().map(upstream).collect()
}

pub(crate) fn model(spec: &pb::ModelSpec) -> Value {
    json!({
        "name": spec.name, "owned_by": spec.owned_by, "created_unix_s": spec.created_unix_s,
        "redundant": spec.redundant, "upstreams": upstreams(&spec.upstreams),
    })
}

pub(crate) fn route(spec: &pb::DefaultRouteSpec) -> Value {
    json!({
        "operation": spec.operation, "redundant": spec.redundant, "upstreams": upstreams(&spec.upstreams),
    })
}

pub(crate) fn account(spec: &pb::AccountSpec) -> Value {
    json!({ "name": spec.name, "title": spec.title, "time_zone": spec.time_zone, "disabled": spec.disabled })
}

pub(crate) fn key(view: &pb::KeyView) -> Value {
    let spec = view.spec.clone().unwrap_or_default();
    json!({
        "id": view.id, "account": spec.account, "name": spec.name, "models": spec.models, "addresses": spec.addresses,
        "requests_per_minute": spec.requests_per_minute, "tokens_per_minute": spec.tokens_per_minute,
        "concurrency": spec.concurrency, "expires_unix_ms": spec.expires_unix_ms, "disabled": view.disabled,
        "created_unix_ms": view.created_unix_ms,
    })
}

pub(crate) fn key_heard(heard: &pb::KeyHeard) -> Value {
    json!({
        "confirmed": heard.confirmed, "silent": heard.silent, "older": heard.older,
        "elsewhere": heard.elsewhere, "away": heard.away, "took_us": heard.took_us,
    })
}

pub(crate) fn change(change: &pb::Change) -> Value {
    json!({ "action": change.action, "kind": change.kind, "name": change.name, "details": change.details })
}

pub(crate) fn rollout(rollout: &pb::Rollout) -> Value {
    json!({
        "stage": rollout.stage, "from": rollout.from, "to": rollout.to, "canaries": rollout.canaries,
        "began_unix_ms": rollout.began_unix_ms, "deadline_unix_ms": rollout.deadline_unix_ms, "reason": rollout.reason,
    })
}

pub(crate) fn generations(listed: &pb::ListGenerationsResponse) -> Value {
    let rows = listed.generations.iter().map(|row| {
        json!({
            "generation": row.generation, "unix_ms": row.unix_ms, "actor": row.actor,
            "changes": row.changes.iter().map(change).collect::<Vec<_>>(),
        })
    });
    json!({ "generation": listed.generation, "generations": rows.collect::<Vec<_>>() })
}

pub(crate) fn changes(response: &pb::ApplyResponse) -> Value {
    let rows = response.changes.iter().map(change);
    json!({
        "generation": response.revision, "changes": rows.collect::<Vec<_>>(), "losses": response.losses,
    })
}

pub(crate) fn explanation(response: &pb::ExplainRouteResponse) -> Value {
    let rows = response.candidates.iter().map(|candidate| {
        json!({
            "upstream": candidate.upstream.as_ref().map(upstream), "egress": candidate.egress, "relay": candidate.relay,
            "score_us": candidate.score, "usable": candidate.usable, "why_not": candidate.why_not,
        })
    });
    json!({ "note": response.note, "candidates": rows.collect::<Vec<_>>() })
}

pub(crate) fn usage(response: &pb::ListUsageResponse) -> Value {
    json!({
        "exchanges": response.exchanges, "total": counted(&response.total.unwrap_or_default()),
        "records": response.records.iter().map(record).collect::<Vec<_>>(),
    })
}

fn record(record: &pb::UsageRecord) -> Value {
    json!({
        "exchange": exchange(&record.exchange), "account": record.account, "key": record.key, "operation": record.operation,
        "model": record.model, "provider": record.provider, "upstream_model": record.upstream_model,
        "credential": record.credential, "egress": record.egress, "ended_unix_ms": record.ended_unix_ms,
        "status": record.status, "outcome": record.outcome, "usage": counted(&record.usage.unwrap_or_default()),
        "request_bytes": record.request_bytes, "response_bytes": record.response_bytes,
        "first_byte_us": record.first_byte_us, "duration_us": record.duration_us,
    })
}

pub(crate) fn exchange(bytes: &[u8]) -> String {
    vector_proto::id::ExchangeId::try_from(bytes)
        .map(|id| id.to_string())
        .unwrap_or_default()
}

fn counted(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.input_tokens, "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens, "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens, "input_audio_tokens": usage.input_audio_tokens,
        "output_audio_tokens": usage.output_audio_tokens, "input_image_tokens": usage.input_image_tokens,
        "output_image_tokens": usage.output_image_tokens, "seconds_milli": usage.seconds_milli, "reported": usage.reported,
    })
}

pub(crate) fn operator(view: &pb::OperatorView) -> Value {
    json!({
        "name": view.name, "role": view.role, "by": view.by, "created_unix_ms": view.created_unix_ms,
        "created_by": view.created_by, "expires_unix_ms": view.expires_unix_ms,
    })
}
