//! What people are shown: labs, hosts, what each line does and has done, and whether a measurement was sound.

use std::fmt::Write as _;

use vector_wan::words::{LineStatus, Set, Status};

use crate::topology::Topology;

/// A change, when it took effect, and what the lines do now. The first line is for programs.
pub(crate) fn set(set: &Set) -> String {
    let mut text = format!(
        "effective_mono_ns={} effective_unix_ns={} lines={}\n",
        set.effective_mono_ns,
        set.effective_unix_ns,
        set.lines.len()
    );
    for line in &set.lines {
        text += &format!("  {}:{} {}\n", line.from, line.to, line.conditions);
    }
    text
}

/// Hosts and their addresses.
pub(crate) fn hosts(topology: &Topology) -> String {
    let mut text = String::new();
    for address in &topology.addresses {
        let host = &topology.hosts[address.host].name;
        let of = if *host == address.name {
            String::new()
        } else {
            format!(" (of {host})")
        };
        text += &format!("  {:<24} {}{of}\n", address.name, address.ip);
    }
    text
}

/// Lines and health. Counters only of lines that carried something.
pub(crate) fn status(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = table(&mut text, status);
    text
}

fn table(text: &mut String, status: &Status) -> std::fmt::Result {
    let name = |line: &LineStatus| format!("{}:{}", line.now.from, line.now.to);
    let width = status.lines.iter().map(|line| name(line).len()).max();
    let width = width.unwrap_or(0);
    for line in &status.lines {
        writeln!(text, "  {:<width$}  {}", name(line), line.now.conditions)?;
        let counters = &line.counters;
        if counters.in_packets == 0 {
            continue;
        }
        write!(
            text,
            "  {:<width$}  in {} out {} ({} bytes)",
            "", counters.in_packets, counters.out_packets, counters.out_bytes
        )?;
        for (what, count) in [
            ("lost", counters.lost),
            ("lost in bursts", counters.lost_in_burst),
            ("queue full", counters.queue_full),
            ("blackholed", counters.blackholed),
            ("too large", counters.too_large),
            ("doubled", counters.duplicated),
            ("reordered", counters.reordered),
            ("under way", counters.in_flight),
        ] {
            if count > 0 {
                write!(text, ", {what} {count}")?;
            }
        }
        writeln!(text, ", queue {:.1} ms", line.backlog_ms)?;
    }
    health(text, status)
}

fn health(text: &mut String, status: &Status) -> std::fmt::Result {
    let router = &status.router;
    writeln!(
        text,
        "  router: {:.0} s, {:.1} % of a core{}; packets late by {:.0} us (p50), {:.0} us (p99), {:.0} us at most",
        status.seconds,
        router.cpu_percent,
        if router.realtime {
            ""
        } else {
            ", no realtime scheduling"
        },
        router.late_p50_us,
        router.late_p99_us,
        router.late_max_us
    )?;
    let drops: Vec<String> = router
        .device_drops
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(host, count)| format!("{host} {count}"))
        .collect();
    writeln!(
        text,
        "  machine: {:.0} % busy, {} ms stolen from it; must be 0: overload {}, write errors {}, device drops {}; no line {}",
        router.machine_busy_percent,
        router.machine_stolen_ms,
        router.overload,
        router.write_errors,
        if drops.is_empty() {
            "0".to_owned()
        } else {
            drops.join(" ")
        },
        router.no_line
    )
}
