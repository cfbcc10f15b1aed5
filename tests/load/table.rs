//! Compares runs: medians over rounds, what each way adds to going directly, and the goals beside.
//!
//! A run says by its labels which `part` of the benchmark it is, which `arm` (way to the provider) it took and
//! in which `round`. What an arm adds, or how often it costs nginx's, is told round by round before the median.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::report::join;

/// The ways to the provider, in the order of their columns.
const ARMS: [&str; 4] = ["direct", "nginx", "all", "pair"];

/// The way that the others are compared with in delays.
const BASE: &str = "direct";

/// The way that ours are compared with in cost.
const PEER: &str = "nginx";

const MIB_KIB: f64 = 1024.0;

/// How a row's figure is found for one arm.
#[derive(Clone, Copy, Debug)]
enum Figure {
    /// A field of the run.
    Field(&'static str),
    /// The errors of all rounds together: a median would hide them.
    Errors,
    /// The field less that of going directly.
    Added(&'static str),
    /// The field as a multiple of nginx's.
    OfNginx(&'static str),
    /// How much memory all processes gained by the run's height, per stream, in KiB.
    HeldPerStream,
    /// The most that any process's memory grew in the run, in MiB.
    Growth,
    /// The largest memory of any process, in MiB.
    Peak,
    /// The sum over processes of memory at the end, in MiB.
    Resident,
}

/// What an arm is to reach.
#[derive(Clone, Copy, Debug)]
struct Goal {
    arm: &'static str,
    at_least: bool,
    value: f64,
}

const fn at_most(arm: &'static str, value: f64) -> Option<Goal> {
    Some(Goal {
        arm,
        at_least: false,
        value,
    })
}

const fn at_least(arm: &'static str, value: f64) -> Option<Goal> {
    Some(Goal {
        arm,
        at_least: true,
        value,
    })
}

/// One line of the table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    part: &'static str,
    figure: Figure,
    /// Multiplies the figure: delays are kept in µs and shown in ms.
    scale: f64,
    goals: [Option<Goal>; 2],
}

const fn row(name: &'static str, part: &'static str, figure: Figure) -> Row {
    Row {
        name,
        part,
        figure,
        scale: 1.0,
        goals: [None, None],
    }
}

impl Row {
    const fn in_ms(mut self) -> Self {
        self.scale = 0.001;
        self
    }

    const fn goals(mut self, first: Option<Goal>, second: Option<Goal>) -> Self {
        self.goals = [first, second];
        self
    }

    const fn goal(self, only: Option<Goal>) -> Self {
        self.goals(only, None)
    }
}

const CPU: &str = "/cpu_us_per_request";
const ERRORS: &str = "/errors";

/// The table, with the goals that the project has set itself.
const ROWS: &[Row] = &[
    row(
        "plain, 64 connections: requests/s",
        "plain",
        Figure::Field("/requests_per_second"),
    )
    .goal(at_least("pair", 8000.0)),
    row("  errors", "plain", Figure::Errors).goals(at_most("all", 0.0), at_most("pair", 0.0)),
    row("  p50 ms", "plain", Figure::Field("/latency/p50_us")).in_ms(),
    row("  p99 ms", "plain", Figure::Field("/latency/p99_us")).in_ms(),
    row("  CPU µs a request", "plain", Figure::Field(CPU)),
    row(
        "  CPU as a multiple of nginx's",
        "plain",
        Figure::OfNginx(CPU),
    )
    .goals(at_most("all", 4.0), at_most("pair", 8.0)),
    row("  peak memory of a process, MiB", "plain", Figure::Peak),
    row(
        "20-chunk streams, 64 connections: streams/s",
        "stream20",
        Figure::Field("/requests_per_second"),
    ),
    row("  errors", "stream20", Figure::Errors).goals(at_most("all", 0.0), at_most("pair", 0.0)),
    row("  CPU µs a stream", "stream20", Figure::Field(CPU)),
    row(
        "  CPU as a multiple of nginx's",
        "stream20",
        Figure::OfNginx(CPU),
    )
    .goal(at_most("all", 2.5)),
    row(
        "300 requests/s, open loop: p50 ms",
        "rate300",
        Figure::Field("/latency/p50_us"),
    )
    .in_ms(),
    row("  p99 ms", "rate300", Figure::Field("/latency/p99_us")).in_ms(),
    row(
        "  added p50 ms",
        "rate300",
        Figure::Added("/latency/p50_us"),
    )
    .in_ms()
    .goal(at_most("all", 0.3)),
    row(
        "  added p99 ms",
        "rate300",
        Figure::Added("/latency/p99_us"),
    )
    .in_ms(),
    row("  CPU µs a request", "rate300", Figure::Field(CPU)),
    row(
        "1,000 requests/s sustained: answers",
        "rate1000",
        Figure::Field("/latency/count"),
    ),
    row("  errors", "rate1000", Figure::Errors).goal(at_most("pair", 0.0)),
    row(
        "  added p50 ms",
        "rate1000",
        Figure::Added("/latency/p50_us"),
    )
    .in_ms()
    .goal(at_most("pair", 0.8)),
    row(
        "  added p99 ms",
        "rate1000",
        Figure::Added("/latency/p99_us"),
    )
    .in_ms()
    .goal(at_most("pair", 5.0)),
    row(
        "1,000 streams at once: errors",
        "streams1000",
        Figure::Errors,
    )
    .goals(at_most("all", 0.0), at_most("pair", 0.0)),
    row(
        "  first chunk p50 ms",
        "streams1000",
        Figure::Field("/first_chunk/p50_us"),
    )
    .in_ms(),
    row(
        "  added first chunk p50 ms",
        "streams1000",
        Figure::Added("/first_chunk/p50_us"),
    )
    .in_ms(),
    row(
        "  chunk delay p50 ms",
        "streams1000",
        Figure::Field("/chunk_delay/p50_us"),
    )
    .in_ms(),
    row(
        "  chunk delay p99 ms",
        "streams1000",
        Figure::Field("/chunk_delay/p99_us"),
    )
    .in_ms(),
    row(
        "  memory per stream, all processes, KiB",
        "streams1000",
        Figure::HeldPerStream,
    )
    .goal(at_most("pair", 40.0)),
    row(
        "  provider over TLS and HTTP/2: errors",
        "streams1000h2",
        Figure::Errors,
    )
    .goals(at_most("all", 0.0), at_most("pair", 0.0)),
    row(
        "    chunk delay p99 ms",
        "streams1000h2",
        Figure::Field("/chunk_delay/p99_us"),
    )
    .in_ms(),
    row(
        "    memory per stream, all processes, KiB",
        "streams1000h2",
        Figure::HeldPerStream,
    )
    .goal(at_most("pair", 40.0)),
    row("1 GiB upload: seconds", "upload", Figure::Field("/seconds")),
    row("  most growth of a process, MiB", "upload", Figure::Growth)
        .goals(at_most("all", 64.0), at_most("pair", 64.0)),
    row(
        "1 GiB download: seconds",
        "download",
        Figure::Field("/seconds"),
    ),
    row(
        "  most growth of a process, MiB",
        "download",
        Figure::Growth,
    )
    .goals(at_most("all", 64.0), at_most("pair", 64.0)),
    row(
        "client leaves, provider notices: median ms",
        "gone",
        Figure::Field("/noticed/p50_us"),
    )
    .in_ms()
    .goals(at_most("all", 100.0), at_most("pair", 100.0)),
    row("  slowest ms", "gone", Figure::Field("/noticed/max_us")).in_ms(),
    row("idle: largest process, MiB", "idle", Figure::Peak)
        .goals(at_most("all", 30.0), at_most("pair", 30.0)),
    row("  all processes, MiB", "idle", Figure::Resident),
];

/// Prints the table and writes it, with the runs themselves, to `out`.
pub(crate) fn show(runs: &Path, about: &str, out: Option<&Path>) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(runs).with_context(|| format!("{}", runs.display()))?;
    let runs: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .context("a line of the runs is no JSON")?;
    let about: Value = serde_json::from_str(about).context("--about is no JSON")?;
    let mut shown = String::new();
    let mut rows = Vec::new();
    line(&mut shown, "", &ARMS.map(str::to_owned), "goal");
    for row in ROWS {
        let values = ARMS.map(|arm| value(row, &runs, arm));
        if values.iter().all(Option::is_none) {
            continue;
        }
        let verdicts = row.goals.iter().flatten();
        let verdicts: Vec<String> = verdicts.map(|goal| verdict(goal, &values)).collect();
        line(
            &mut shown,
            row.name,
            &values.map(number),
            &verdicts.join("; "),
        );
        rows.push(json!({"part": row.part, "name": row.name.trim(), "values": by_arm(values), "goals": verdicts}));
    }
    shown.push('\n');
    line(
        &mut shown,
        "CPU µs a request, by process",
        &PARTS.map(|part| part.to_owned()),
        "",
    );
    for (process, values) in processes(&runs) {
        line(&mut shown, &process, &values.map(number), "");
    }
    std::io::stdout().lock().write_all(shown.as_bytes())?;
    if let Some(out) = out {
        let whole = join([about, json!({"rows": rows, "runs": runs})]);
        std::fs::write(out, format!("{whole:#}\n"))
            .with_context(|| format!("{}", out.display()))?;
    }
    Ok(())
}

fn line(shown: &mut String, name: &str, values: &[String; 4], goal: &str) {
    let [a, b, c, d] = values;
    let whole = format!("{name:<44}{a:>10}{b:>10}{c:>10}{d:>10}   {goal}");
    shown.push_str(whole.trim_end());
    shown.push('\n');
}

fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn by_arm(values: [Option<f64>; 4]) -> Value {
    let pairs = ARMS.iter().zip(values);
    Value::Object(
        pairs
            .map(|(arm, value)| ((*arm).to_owned(), json!(value)))
            .collect(),
    )
}

fn verdict(goal: &Goal, values: &[Option<f64>; 4]) -> String {
    let Goal {
        arm,
        at_least,
        value,
    } = goal;
    let found = ARMS.iter().zip(values).find(|(name, _)| *name == arm);
    let met = match found.and_then(|(_, found)| *found) {
        None => "not measured",
        Some(found) if (*at_least && found >= *value) || (!at_least && found <= *value) => "met",
        Some(_) => "MISSED",
    };
    let sign = if *at_least { "≥" } else { "≤" };
    format!("{arm} {sign} {value} {met}")
}

/// The median over rounds of a row's figure.
fn value(row: &Row, runs: &[Value], arm: &str) -> Option<f64> {
    let mine = runs.iter().filter(|run| is(run, row.part, arm));
    let found: Vec<f64> = mine.filter_map(|run| figure(row, runs, run)).collect();
    if matches!(row.figure, Figure::Errors) {
        return found.into_iter().reduce(|sum, errors| sum + errors);
    }
    Some(median(found)? * row.scale)
}

fn figure(row: &Row, runs: &[Value], run: &Value) -> Option<f64> {
    let of_arm = |arm: &'static str, field: &str| {
        let round = run.get("round");
        let same = runs
            .iter()
            .find(|other| is(other, row.part, arm) && other.get("round") == round);
        same?.pointer(field)?.as_f64()
    };
    match row.figure {
        Figure::Field(field) if field == CPU && is(run, row.part, BASE) => None,
        Figure::Field(field) => run.pointer(field)?.as_f64(),
        Figure::Errors => run.pointer(ERRORS)?.as_f64(),
        Figure::Added(_) if is(run, row.part, BASE) => None,
        Figure::Added(field) => Some(run.pointer(field)?.as_f64()? - of_arm(BASE, field)?),
        Figure::OfNginx(_) if is(run, row.part, BASE) => None,
        Figure::OfNginx(field) => Some(run.pointer(field)?.as_f64()? / of_arm(PEER, field)?),
        Figure::HeldPerStream => {
            let gained = memory(run, |process| kib(process, "held") - kib(process, "before"));
            let streams = run.pointer("/open_when_measured")?.as_f64()?;
            (!gained.is_empty()).then(|| gained.iter().sum::<f64>() / streams)
        }
        Figure::Growth => most(memory(run, |process| {
            kib(process, "peak") - kib(process, "before")
        })),
        Figure::Peak => most(memory(run, |process| kib(process, "peak"))),
        Figure::Resident => {
            let each = memory(run, |process| kib(process, "after"));
            (!each.is_empty()).then(|| each.iter().sum::<f64>() / MIB_KIB)
        }
    }
}

fn is(run: &Value, part: &str, arm: &str) -> bool {
    run.get("part").and_then(Value::as_str) == Some(part)
        && run.get("arm").and_then(Value::as_str) == Some(arm)
}

/// One figure for each of the arm's own processes.
fn memory(run: &Value, figure: impl Fn(&Value) -> f64) -> Vec<f64> {
    let processes = run.get("processes").and_then(Value::as_array);
    let own = processes.into_iter().flatten();
    own.filter(|process| process.get("summed") == Some(&Value::Bool(true)))
        .map(figure)
        .collect()
}

fn kib(process: &Value, when: &str) -> f64 {
    let field = format!("rss_kib_{when}");
    process.get(field).and_then(Value::as_f64).unwrap_or(0.0)
}

/// The largest, from KiB to MiB.
fn most(each: Vec<f64>) -> Option<f64> {
    each.into_iter().reduce(f64::max).map(|kib| kib / MIB_KIB)
}

fn median(mut found: Vec<f64>) -> Option<f64> {
    found.sort_by(f64::total_cmp);
    let middle = found.len() / 2;
    let upper = *found.get(middle)?;
    if found.len() % 2 == 1 {
        return Some(upper);
    }
    Some(f64::midpoint(upper, *found.get(middle - 1)?))
}

/// The parts whose cost is told process by process.
const PARTS: [&str; 4] = ["plain", "stream20", "rate300", "rate1000"];

/// Each process of each arm, the provider, and the generator itself, with its cost in each of [`PARTS`].
fn processes(runs: &[Value]) -> Vec<(String, [Option<f64>; 4])> {
    let mut names: Vec<(String, &str, String)> = Vec::new();
    for run in runs {
        let arm = ARMS
            .iter()
            .find(|arm| run.get("arm").and_then(Value::as_str) == Some(arm));
        let processes = run.get("processes").and_then(Value::as_array);
        for process in processes.into_iter().flatten() {
            let name = process.get("name").and_then(Value::as_str);
            if let (Some(arm), Some(name)) = (arm, name) {
                let shown = format!("{arm}: {name}");
                if !names.iter().any(|(known, ..)| *known == shown) {
                    names.push((shown, arm, name.to_owned()));
                }
            }
        }
    }
    let cost = |arm: &str, name: &str, part: &str| {
        let mine = runs.iter().filter(|run| is(run, part, arm));
        let each = mine.filter_map(|run| {
            let mut processes = run.get("processes")?.as_array()?.iter();
            let process =
                processes.find(|process| process.get("name").is_some_and(|it| it == name));
            process?.get("cpu_us_per_request")?.as_f64()
        });
        median(each.collect())
    };
    let mut lines: Vec<_> = names
        .into_iter()
        .map(|(shown, arm, name)| (shown, PARTS.map(|part| cost(arm, &name, part))))
        .collect();
    for arm in ARMS {
        let own = PARTS.map(|part| {
            let mine = runs.iter().filter(|run| is(run, part, arm));
            median(
                mine.filter_map(|run| run.pointer("/load_cpu_us_per_request")?.as_f64())
                    .collect(),
            )
        });
        if own.iter().any(Option::is_some) {
            lines.push((format!("{arm}: load generator"), own));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arm: &str, round: u32, p50_us: f64, cpu: f64) -> Value {
        json!({
            "part": "rate300", "arm": arm, "round": round, "latency": {"p50_us": p50_us}, "cpu_us_per_request": cpu,
            "processes": [
                {"name": "a", "summed": true, "rss_kib_before": 1024, "rss_kib_peak": 4096, "cpu_us_per_request": cpu},
                {"name": "p", "summed": false, "rss_kib_before": 0, "rss_kib_peak": 1_000_000},
            ],
        })
    }

    fn runs() -> Vec<Value> {
        vec![
            run("direct", 1, 100.0, 0.0),
            run("nginx", 1, 150.0, 10.0),
            run("all", 1, 350.0, 30.0),
            run("direct", 2, 200.0, 0.0),
            run("nginx", 2, 250.0, 20.0),
            run("all", 2, 400.0, 40.0),
        ]
    }

    fn check(figure: Figure, arm: &str, expected: Option<f64>) {
        assert_eq!(value(&row("", "rate300", figure), &runs(), arm), expected);
    }

    #[test]
    fn figures_compare_round_by_round() {
        check(Figure::Field("/latency/p50_us"), "all", Some(375.0));
        check(Figure::Added("/latency/p50_us"), "all", Some(225.0));
        check(Figure::OfNginx(CPU), "all", Some(2.5));
        check(Figure::Growth, "all", Some(3.0));
        check(Figure::Peak, "nginx", Some(4.0));
        check(Figure::Field(CPU), "direct", None);
        check(Figure::Added("/latency/p50_us"), "pair", None);
    }

    #[test]
    fn a_goal_is_met_missed_or_open() {
        let values = [None, None, Some(4.0), Some(9.0)];
        let said = |goal: Option<Goal>| verdict(&goal.unwrap(), &values);
        assert_eq!(said(at_most("all", 4.0)), "all ≤ 4 met");
        assert_eq!(said(at_most("pair", 8.0)), "pair ≤ 8 MISSED");
        assert_eq!(said(at_least("pair", 8.0)), "pair ≥ 8 met");
        assert_eq!(said(at_least("nginx", 8.0)), "nginx ≥ 8 not measured");
    }
}
