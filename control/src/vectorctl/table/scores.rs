//! Upstreams and paths as the network measures them, as tables.

use std::{collections::HashMap, time::Duration};

use vector_proto::control::v1 as pb;

use super::{limit, table};
use crate::json::word;

pub(crate) fn upstreams_seen(views: &[pb::UpstreamView]) -> String {
    let rows = views.iter().flat_map(|view| {
        let pool = view.pool.clone().unwrap_or_default();
        let keys = format!("{}/{}", pool.ready, pool.keys);
        let rests = match pool.rests_ms {
            0 => "-".to_owned(),
            ms => format!("{:.1} s", Duration::from_millis(ms).as_secs_f64()),
        };
        let left = vec![view.provider.clone(), view.egress.clone(), keys, rests];
        // Each ingress tells of the provider there, and then of its models.
        let seen = view.seen.iter().chain(&view.models).map(seen_cells);
        let mut seen: Vec<Vec<String>> = seen.collect();
        if seen.is_empty() {
            seen.push(vec!["-".to_owned(); 7]);
        }
        seen.into_iter()
            .map(move |right| [left.clone(), right].concat())
    });
    table(
        &[
            "provider",
            "egress",
            "ready",
            "rests",
            "model",
            "seen by",
            "state",
            "success",
            "first byte",
            "tokens/s",
            "in flight",
        ],
        rows,
    )
}

fn seen_cells(seen: &pb::UpstreamSeen) -> Vec<String> {
    let status = seen.status.clone().unwrap_or_default();
    let state = match status.ejected_ms {
        0 => "in use".to_owned(),
        ms => format!("ejected {} s", ms.div_ceil(1_000)),
    };
    // Where names are passed through, clients choose them.
    let shown = |letter: char| if letter.is_control() { '?' } else { letter };
    let model = match status.model.as_str() {
        "" => "all".to_owned(),
        model => model.chars().map(shown).collect(),
    };
    vec![
        model,
        seen.ingress.clone(),
        state,
        format!("{:.1} %", f64::from(status.success_permille) / 10.0),
        millis(status.first_byte_us),
        limit(status.tokens_per_s.into()),
        status.in_flight.to_string(),
    ]
}

fn millis(micros: u64) -> String {
    let ms = Duration::from_micros(micros).as_secs_f64() * 1e3;
    format!("{ms:.1} ms")
}

pub(crate) fn paths(views: &[pb::PathView]) -> String {
    // Where a link begins is worth a column only where a node has several sockets.
    let mut begins: HashMap<&str, &str> = HashMap::new();
    let several = views.iter().any(|view| {
        let local = view.link.as_ref().map_or("", |link| &link.local_address);
        *begins.entry(&view.node).or_insert(local) != local
    });
    let rows = views.iter().map(|view| {
        let link = view.link.clone().unwrap_or_default();
        // Of the last heartbeats, the worse way: counters of a connection would tell of outages that are over.
        let (jitter, lost) = match link.heartbeats_heard {
            0 => ("-".to_owned(), "-".to_owned()),
            _ => (
                millis(link.jitter_us),
                format!("{:.2} %", percent(link.loss_out_ppm.max(link.loss_in_ppm))),
            ),
        };
        let mut row = vec![view.node.clone(), view.region.clone()];
        if several {
            row.push(link.local_address.clone());
        }
        row.extend([
            link.peer.clone(),
            address(&link),
            word(link.state().as_str_name(), "LINK_STATE_"),
            millis(link.rtt_us),
            jitter,
            lost,
            rate(link.delivery_bytes_per_s),
        ]);
        row
    });
    let begin: &[&str] = if several { &["local"] } else { &[] };
    let rest = [
        "to",
        "address",
        "state",
        "round trip",
        "jitter",
        "lost",
        "delivers",
    ];
    table(&[&["from", "region"], begin, &rest].concat(), rows)
}

/// Where a link ends; a busy path has several connections.
fn address(link: &pb::LinkStatus) -> String {
    match link.connection {
        0 => link.address.clone(),
        number => format!("{} ({})", link.address, number + 1),
    }
}

/// As lines are sold: in megabits a second.
fn rate(bytes_per_s: u64) -> String {
    match bytes_per_s {
        0 => "-".to_owned(),
        bytes => format!("{:.1} Mbit/s", bytes as f64 * 8.0 / 1e6),
    }
}

fn percent(ppm: u32) -> f64 {
    f64::from(ppm) / 10_000.0
}
