//! What may be wrong with nodes and the paths between them.

use std::collections::BTreeMap;

use vector_proto::control::v1 as pb;

use super::Findings;
use crate::sight::{Sight, has, id, is_draining, links};

/// Clocks this far apart are told, and this far apart break certificates: control backdates them by five minutes.
const SKEW_WARN_MS: u64 = 2_000;
const SKEW_FAULT_MS: u64 = 240_000;

/// A certificate lives a day and is renewed from 16 hours before its end.
const CERTIFICATE_WARN_MS: u64 = 12 * 3_600_000;
const CERTIFICATE_FAULT_MS: u64 = 3_600_000;

/// Disk left, in percent of its size.
const DISK_WARN_PERCENT: u64 = 10;
const DISK_FAULT_PERCENT: u64 = 2;

/// Without an ingress and an egress there is no network.
pub(super) fn there(sight: &Sight, found: &mut Findings) {
    for role in ["ingress", "egress"] {
        let all: Vec<_> = sight.with_role(role).collect();
        if all.is_empty() {
            found.fault(
                "nodes",
                format!("there is no {role} node"),
                format!("vectorctl node invite --role {role} --region REGION, and start vector-edge with what it prints as control.invite"),
            );
        } else if !all.iter().any(|view| view.connected) {
            found.fault(
                "nodes",
                format!(
                    "none of {} {role} nodes is connected to control",
                    all.len()
                ),
                "start vector-edge on them and let TCP through to control's port; their logs say what keeps them",
            );
        } else if all.iter().all(|view| !view.connected || is_draining(view)) {
            found.fault(
                "nodes",
                format!("every connected {role} node is draining"),
                "vectorctl node undrain NODE",
            );
        }
    }
}

/// Every ingress reaches every egress, directly or over one relay.
pub(super) fn paths(sight: &Sight, found: &mut Findings) {
    let there = |view: &&pb::NodeView| view.connected && view.status.is_some();
    let egress: Vec<_> = sight.with_role("egress").filter(there).collect();
    let relays: Vec<_> = sight.with_role("relay").filter(there).collect();
    for ingress in sight.with_role("ingress").filter(there) {
        let missing: Vec<&pb::NodeView> = egress
            .iter()
            .copied()
            .filter(|egress| !reaches(ingress, egress, &relays))
            .collect();
        if missing.is_empty() {
            continue;
        }
        let names: Vec<&str> = missing.iter().map(|view| id(view)).collect();
        let what = format!("{} has no path to {}", id(ingress), names.join(", "));
        let cure = cure_of_paths(ingress, &missing);
        if missing.len() == egress.len() {
            found.fault("paths", what, cure);
        } else {
            found.warning("paths", what, cure);
        }
    }
}

fn reaches(ingress: &pb::NodeView, egress: &pb::NodeView, relays: &[&pb::NodeView]) -> bool {
    id(ingress) == id(egress)
        || is_up(ingress, id(egress))
        || relays
            .iter()
            .any(|relay| is_up(ingress, id(relay)) && is_up(relay, id(egress)))
}

fn is_up(from: &pb::NodeView, peer: &str) -> bool {
    links(from)
        .iter()
        .any(|link| link.peer == peer && link.state() == pb::LinkState::Up)
}

fn cure_of_paths(ingress: &pb::NodeView, missing: &[&pb::NodeView]) -> String {
    let addresses: Vec<&str> = missing
        .iter()
        .filter_map(|view| view.record.as_ref())
        .flat_map(|record| record.tunnel_addresses.iter().map(String::as_str))
        .collect();
    let nowhere: Vec<&str> = addresses
        .iter()
        .copied()
        .filter(|at| leads_home(at))
        .collect();
    if addresses.is_empty() {
        return "they tell no address: set tunnel.advertise on them to a host:port that others reach".to_owned();
    }
    let mut cure = format!(
        "let UDP through from {} to {}, and the answers back (firewalls, security groups, NAT)",
        id(ingress),
        addresses.join(", ")
    );
    if !nowhere.is_empty() {
        cure += &format!(
            "; {} leads to nobody else: set tunnel.advertise there",
            nowhere.join(", ")
        );
    }
    cure
}

/// An address that means another machine on every machine, or none.
fn leads_home(address: &str) -> bool {
    address
        .parse::<std::net::SocketAddr>()
        .is_ok_and(|at| at.ip().is_loopback() || at.ip().is_unspecified())
}

/// Nodes that are known and not there.
pub(super) fn away(sight: &Sight, found: &mut Findings) {
    for view in sight.nodes().iter().filter(|view| !view.connected) {
        let never = view.record.as_ref().is_none_or(|record| record.epoch == 0);
        let (what, cure) = if never {
            (
                format!("{} enrolled and never connected", id(view)),
                "see its log: it has its certificate, but control's stream did not open",
            )
        } else {
            (
                format!("{} is not connected to control", id(view)),
                "see whether vector-edge runs there and reaches control's port; if it is gone for good: vectorctl node remove NODE",
            )
        };
        found.warning("nodes", what, cure);
    }
}

/// Snapshots that a node refused.
pub(super) fn rejections(sight: &Sight, found: &mut Findings) {
    for view in sight
        .nodes()
        .iter()
        .filter(|view| !view.rejection.is_empty())
    {
        found.fault(
            "snapshot",
            format!("{} refused the last snapshot: {}", id(view), view.rejection),
            "it goes on with the one before. Undo the last change of the configuration, or bring the node to control's version",
        );
    }
}

/// Clocks that differ.
pub(super) fn clocks(sight: &Sight, found: &mut Findings) {
    for view in sight.nodes() {
        let Some(skew) = view.clock_skew_ms.filter(|_| view.connected) else {
            continue;
        };
        let apart = skew.unsigned_abs();
        if apart < SKEW_WARN_MS {
            continue;
        }
        let side = if skew > 0 { "ahead of" } else { "behind" };
        let what = format!(
            "{}'s clock is {:.1} s {side} control's",
            id(view),
            std::time::Duration::from_millis(apart).as_secs_f64()
        );
        let cure = "let both keep time by NTP (chrony, systemd-timesyncd)";
        if apart >= SKEW_FAULT_MS {
            found.fault("clock", what, cure);
        } else {
            found.warning("clock", what, cure);
        }
    }
}

/// Certificates that are not renewed.
pub(super) fn certificates(sight: &Sight, found: &mut Findings) {
    for view in sight.nodes().iter().filter(|view| view.connected) {
        let Some(status) = &view.status else { continue };
        if status.certificate_until_unix_ms == 0 {
            continue;
        }
        // Both by the node's clock, which is the one that judges.
        let left = status
            .certificate_until_unix_ms
            .saturating_sub(status.unix_ms);
        if left >= CERTIFICATE_WARN_MS {
            continue;
        }
        let what = if left == 0 {
            format!("{}'s certificate is over", id(view))
        } else {
            format!(
                "{}'s certificate ends in {} min and was not renewed",
                id(view),
                left / 60_000
            )
        };
        let cure = "its log says why renewing failed; it tries again by itself, up to a week after the end. Later than that: vectorctl node \
             invite --role ROLE --region REGION --node NODE, an empty node.state_dir, and a start";
        if left < CERTIFICATE_FAULT_MS {
            found.fault("certificate", what, cure);
        } else {
            found.warning("certificate", what, cure);
        }
    }
}

/// Software that differs.
pub(super) fn versions(sight: &Sight, found: &mut Findings) {
    let mut others: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for view in sight.nodes().iter().filter(|view| view.connected) {
        if view.version != sight.status.version {
            others.entry(&view.version).or_default().push(id(view));
        }
    }
    for (version, nodes) in others {
        found.warning(
            "version",
            format!(
                "control is {}, but {} runs {version}",
                sight.status.version,
                nodes.join(", ")
            ),
            "fine in the middle of an upgrade, which goes control first, then nodes; otherwise finish it",
        );
    }
}

/// Disks that fill.
pub(super) fn disks(sight: &Sight, found: &mut Findings) {
    for view in sight.nodes().iter().filter(|view| view.connected) {
        let Some(status) = view.status.as_ref().filter(|status| status.disk_bytes > 0) else {
            continue;
        };
        let percent = status.disk_free_bytes.saturating_mul(100) / status.disk_bytes;
        if percent >= DISK_WARN_PERCENT {
            continue;
        }
        let what = format!(
            "{} has {} MiB left of the disk below node.state_dir ({percent} %)",
            id(view),
            status.disk_free_bytes >> 20
        );
        let cure = if has(view, "egress") {
            "make room, or lower egress.kept_bytes_max: snapshots and kept answers cannot be written to a full disk"
        } else {
            "make room: a snapshot cannot be kept on a full disk"
        };
        if percent < DISK_FAULT_PERCENT {
            found.fault("disk", what, cure);
        } else {
            found.warning("disk", what, cure);
        }
    }
}
