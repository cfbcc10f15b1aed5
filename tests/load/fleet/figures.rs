//! What a fleet's run found, for people: figures, and the goals beside them.

use std::io::Write as _;

use serde_json::Value;

/// One line of the table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    /// Where its value is in the result.
    at: &'static str,
    /// Multiplies the value.
    scale: f64,
    at_most: Option<f64>,
}

const fn row(name: &'static str, at: &'static str, scale: f64) -> Row {
    Row {
        name,
        at,
        scale,
        at_most: None,
    }
}

impl Row {
    const fn at_most(self, goal: f64) -> Self {
        Self {
            at_most: Some(goal),
            ..self
        }
    }
}

const KIB: f64 = 1.0 / 1024.0;
const MS: f64 = 0.001;

const ROWS: &[Row] = &[
    row("nodes", "/nodes", 1.0),
    row("models", "/models", 1.0),
    row("upstreams", "/upstreams", 1.0),
    row("paths", "/paths", 1.0),
    row("a snapshot, KiB", "/snapshot_bytes", KIB),
    row("all nodes connect, ms", "/connecting/ms", 1.0),
    row(
        "  peak memory of control, MiB",
        "/connecting/control/processes/0/rss_kib_peak",
        KIB,
    )
    .at_most(200.0),
    row(
        "a change, in force at a node: p50 ms",
        "/changes/applied_by_each/p50_us",
        MS,
    ),
    row("  p99 ms", "/changes/applied_by_each/p99_us", MS).at_most(100.0),
    row(
        "  at the last node: p50 ms",
        "/changes/applied_by_all/p50_us",
        MS,
    ),
    row(
        "  at the last node: p99 ms",
        "/changes/applied_by_all/p99_us",
        MS,
    )
    .at_most(100.0),
    row(
        "  control's processor time, ms",
        "/changes/control/cpu_us_per_request",
        MS,
    )
    .at_most(50.0),
    row(
        "  the nodes' processor time, ms",
        "/changes/control/load_cpu_us_per_request",
        MS,
    ),
    row(
        "nothing changes: control's processor time, ms a second",
        "/steady/control/cpu_us_per_request",
        MS,
    ),
    row(
        "  memory of control, MiB",
        "/steady/control/processes/0/rss_kib_held",
        KIB,
    )
    .at_most(200.0),
    row(
        "  etcd writes a second",
        "/steady/etcd_writes_per_second",
        1.0,
    )
    .at_most(50.0),
    row(
        "an egress starts again, the first node knows: p50 ms",
        "/restarts/known_by_first/p50_us",
        MS,
    ),
    row(
        "  the last node knows: p50 ms",
        "/restarts/known_by_all/p50_us",
        MS,
    )
    .at_most(500.0),
];

/// Prints the table.
pub(crate) fn tell(result: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for row in ROWS {
        let Some(value) = result.pointer(row.at).and_then(Value::as_f64) else {
            writeln!(out, "{:<56}{:>10}", row.name, "-")?;
            continue;
        };
        let value = value * row.scale;
        let judged = row.at_most.map_or_else(String::new, |goal| {
            let word = if value <= goal { "met" } else { "MISSED" };
            format!("   at most {goal} {word}")
        });
        let digits = usize::from(value.fract() != 0.0);
        writeln!(out, "{:<56}{value:>10.digits$}{judged}", row.name)?;
    }
    Ok(())
}
