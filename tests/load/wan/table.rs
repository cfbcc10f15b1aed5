//! Shows what the runs over long lines have found: what the lines allow, ours and the direct way side by side, and the
//! goals that the project has set itself.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

/// How much longer than the usual gap the next token may take when the direct road is cut, without and with doubled frames, in
/// ms. Where another road is cut beside its ingress, the egress hears of it only after its own longer way: nobody is judged by
/// that.
const STALL_MS: f64 = 120.0;
const STALL_REDUNDANT_MS: f64 = 30.0;

/// The road without a relay, as `tests/bench wan` calls it.
const DIRECT: &str = "direct";

/// How long after the kill the clients of running streams are told, in ms.
const TOLD_MS: f64 = 300.0;

/// Beyond this and one round trip, a killed egress may not delay an answer, in ms.
const KILL_MS: f64 = 250.0;

/// How much later than its ways take a signal may be gone by, in ms.
const SIGNAL_MS: f64 = 20.0;

/// First tokens may be later than the bound by this share or by this many ms.
const BOUND_SHARE: f64 = 1.05;
const BOUND_MS: f64 = 5.0;

/// Ours as a share of the direct way's first token where that is cold with a long prompt, or packets are lost.
const DIRECT_SHARE: f64 = 0.6;

/// Goodput of a line of 100 Mbit/s, and the queue added to it.
const BULK_MBIT: f64 = 85.0;
const QUEUE_MS: f64 = 20.0;

/// What is shown.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    /// Lines written by `--out`.
    runs: PathBuf,
    /// A JSON object about the machine and the build, kept with the results.
    #[arg(long, default_value = "{}")]
    about: String,
    /// Writes all of it here.
    #[arg(long)]
    out: Option<PathBuf>,
}

impl Ask {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let text =
            std::fs::read_to_string(&self.runs).with_context(|| self.runs.display().to_string())?;
        let runs = text.lines().map(serde_json::from_str);
        let runs = runs.collect::<Result<Vec<Value>, _>>()?;
        let shown = show(&runs)?;
        std::io::stdout().write_all(shown.as_bytes())?;
        if let Some(path) = &self.out {
            let about: Value = serde_json::from_str(&self.about).context("--about")?;
            let all = json!({"about": about, "runs": runs});
            std::fs::write(path, format!("{all:#}\n"))
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }
}

fn show(runs: &[Value]) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let of = |part: &'static str| runs.iter().filter(move |run| word(run, "part") == part);
    for run in of("cut") {
        cut(&mut text, run)?;
    }
    for run in of("kill") {
        kill(&mut text, run)?;
    }
    for run in of("signal") {
        signal(&mut text, run)?;
    }
    first_tokens(&mut text, &of("ttft").collect::<Vec<_>>())?;
    bulk(&mut text, &of("bulk").collect::<Vec<_>>())?;
    for run in of("idle") {
        idle(&mut text, run)?;
    }
    Ok(text)
}

/// The worst silences by the road that was cut.
fn roads(text: &mut String, run: &Value) -> std::fmt::Result {
    let goal = if word(run, "redundant") == "yes" {
        STALL_REDUNDANT_MS
    } else {
        STALL_MS
    };
    for (road, worst) in run["roads_cut"].as_object().into_iter().flatten() {
        write!(
            text,
            "  worst, {road} road cut: {:>3} p50 {:>8.1}   p90 {:>8.1}   max {:>8.1} ms",
            number(worst, "/count"),
            number(worst, "/p50"),
            number(worst, "/p90"),
            number(worst, "/max")
        )?;
        if road == DIRECT && number(worst, "/count") > 0.0 {
            let stall = number(worst, "/max") - number(run, "/gap_ms");
            write!(
                text,
                "   a stall of {stall:.1} ≤ {goal} {}",
                verdict(stall <= goal)
            )?;
        }
        writeln!(text)?;
    }
    Ok(())
}

fn cut(text: &mut String, run: &Value) -> std::fmt::Result {
    writeln!(text, "\nPath cut in mid-stream ({})", word(run, "label"))?;
    writeln!(
        text,
        "  {} cuts x {} streams, a token every {} ms",
        run["cuts"],
        number(run, "/streams") / number(run, "/cuts").max(1.0),
        run["gap_ms"],
    )?;
    roads(text, run)?;
    writeln!(
        text,
        "  silence of a stream       p50 {:>8.1}   p90 {:>8.1}   max {:>8.1} ms",
        number(run, "/stall_ms/p50"),
        number(run, "/stall_ms/p90"),
        number(run, "/stall_ms/max")
    )?;
    writeln!(
        text,
        "  worst silence of a cut    p50 {:>8.1}   p90 {:>8.1}   max {:>8.1} ms",
        number(run, "/worst_stall_of_a_cut_ms/p50"),
        number(run, "/worst_stall_of_a_cut_ms/p90"),
        number(run, "/worst_stall_of_a_cut_ms/max")
    )?;
    writeln!(
        text,
        "  before the cut            p50 {:>8.1}   p90 {:>8.1}   max {:>8.1} ms",
        number(run, "/longest_gap_before_ms/p50"),
        number(run, "/longest_gap_before_ms/p90"),
        number(run, "/longest_gap_before_ms/max")
    )?;
    if number(run, "/never_went_on") > 0.0 {
        writeln!(
            text,
            "  given up after the cut    p50 {:>8.1}   p90 {:>8.1}   max {:>8.1} ms   ({} streams)",
            number(run, "/given_up_after_ms/p50"),
            number(run, "/given_up_after_ms/p90"),
            number(run, "/given_up_after_ms/max"),
            run["never_went_on"]
        )?;
    }
    let (wrong, errors) = (number(run, "/wrong_bytes"), number(run, "/errors"));
    writeln!(
        text,
        "  streams: whole {}, ended with an error {}, cut short {}, wrong bytes {wrong} {}; client errors {errors} {} {}",
        run["whole"],
        run["ended_with_error"],
        run["cut_short"],
        verdict(wrong == 0.0),
        verdict(errors == 0.0),
        kinds(run)
    )
}

fn kill(text: &mut String, run: &Value) -> std::fmt::Result {
    unanswered(text, run)?;
    let worst = number(run, "/told_after_ms/max");
    let untold = number(run, "/streams_cut_short") + number(run, "/streams_wrong");
    writeln!(
        text,
        "  streams running: at another egress {}, ended with an error {}, without one {untold} {}",
        run["streams_whole"],
        run["streams_told"],
        verdict(untold == 0.0)
    )?;
    if number(run, "/streams_told") == 0.0 {
        return writeln!(text, "  told after                none ran there");
    }
    writeln!(
        text,
        "  told after                p50 {:>8.1}   p90 {:>8.1}   max {worst:>8.1} ms   ≤ {TOLD_MS} {}",
        number(run, "/told_after_ms/p50"),
        number(run, "/told_after_ms/p90"),
        verdict(worst <= TOLD_MS)
    )
}

fn unanswered(text: &mut String, run: &Value) -> std::fmt::Result {
    let (errors, worst) = (number(run, "/errors"), number(run, "/added_ms/max"));
    writeln!(
        text,
        "\nEgress killed, {} requests without an answer yet",
        run["requests"]
    )?;
    writeln!(
        text,
        "  errors {errors} {} {}; at another egress {}, asked again {}",
        verdict(errors == 0.0),
        kinds(run),
        run["untouched"],
        run["asked_again"]
    )?;
    if number(run, "/asked_again") == 0.0 {
        return writeln!(text, "  added delay               none was asked again");
    }
    writeln!(
        text,
        "  added delay               p50 {:>8.1}   p90 {:>8.1}   max {worst:>8.1} ms   ≤ {KILL_MS} {}",
        number(run, "/added_ms/p50"),
        number(run, "/added_ms/p90"),
        verdict(worst <= KILL_MS)
    )
}

/// What a first token was measured for.
#[derive(Eq, PartialEq)]
struct Cell {
    client: String,
    prompt: String,
    loss: String,
}

impl Cell {
    fn of(run: &Value) -> Self {
        Self {
            client: word(run, "client"),
            prompt: word(run, "prompt_kib"),
            loss: word(run, "loss"),
        }
    }

    /// Where ours must be far below the direct way. A warm client's small prompt takes the direct way a round trip: there
    /// is nothing to save.
    fn is_hard(&self) -> bool {
        let lossy = self.loss.parse::<f64>().is_ok_and(|loss| loss >= 1.0);
        self.client == "cold" && (lossy || self.prompt == "64")
    }
}

fn signal(text: &mut String, run: &Value) -> std::fmt::Result {
    let (known, ways) = (number(run, "/known_after_ms"), number(run, "/ways_ms"));
    writeln!(
        text,
        "\nA 429 at one egress, heard at another ingress over control"
    )?;
    for tried in run["tried"].as_array().into_iter().flatten() {
        writeln!(
            text,
            "  {:>4} ms after the provider's word: {} of {} pairs unaware",
            tried["after_ms"], tried["unaware"], tried["pairs"]
        )?;
    }
    let goal = ways + SIGNAL_MS;
    writeln!(
        text,
        "  gone by after             {known:>8.1} ms, of which the ways take {ways:.1}   ≤ {goal:.1} {}",
        verdict(known <= goal)
    )
}

fn first_tokens(text: &mut String, runs: &[&Value]) -> std::fmt::Result {
    let mut cells: Vec<Cell> = Vec::new();
    for cell in runs.iter().map(|run| Cell::of(run)) {
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    if cells.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nTime to the first token, median ms (errors)")?;
    writeln!(
        text,
        "  client  prompt   loss     bound      ours  direct bbr  direct cubic   near bound   below both"
    )?;
    for cell in &cells {
        first_token(text, runs, cell)?;
    }
    Ok(())
}

fn first_token(text: &mut String, runs: &[&Value], cell: &Cell) -> std::fmt::Result {
    let find = |arm: &str| {
        let mut same = runs.iter().copied();
        same.find(|run| word(run, "arm") == arm && Cell::of(run) == *cell)
    };
    let median = |arm: &str| find(arm).map(|run| number(run, "/first_token_ms/p50"));
    let shown = |arm: &str| {
        let Some(run) = find(arm) else {
            return "-".to_owned();
        };
        let median = number(run, "/first_token_ms/p50");
        match number(run, "/errors") {
            0.0 => format!("{median:.1}"),
            errors => format!("{median:.1} ({errors})"),
        }
    };
    let bound = find("ours").map_or(0.0, |run| number(run, "/bound_ms"));
    let ours = median("ours");
    let near = ours.map(|ours| ours <= (bound * BOUND_SHARE).max(bound + BOUND_MS));
    let direct = [median("direct-bbr"), median("direct-cubic")];
    let direct = direct.into_iter().flatten().reduce(f64::min);
    let below = ours.zip(direct).map_or_else(String::new, |(ours, direct)| {
        let share = ours / direct;
        let goal = if cell.is_hard() {
            verdict(share <= DIRECT_SHARE)
        } else {
            ""
        };
        format!("{:>+5.0} % {goal}", (share - 1.0) * 100.0)
    });
    writeln!(
        text,
        "  {:<6} {:>4} KiB {:>4} % {bound:>9.1} {:>9} {:>11} {:>13}   {:<10}   {below}",
        cell.client,
        cell.prompt,
        cell.loss,
        shown("ours"),
        shown("direct-bbr"),
        shown("direct-cubic"),
        near.map_or("", verdict)
    )
}

fn bulk(text: &mut String, runs: &[&Value]) -> std::fmt::Result {
    if runs.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nMany downloads at once over 100 Mbit/s, 150 ms")?;
    writeln!(
        text,
        "  loss   arm             Mbit/s            queue p50      p90      max ms            errors"
    )?;
    for run in runs {
        let ours = word(run, "arm") == "ours";
        let (mbit, queue) = (
            number(run, "/mbit_per_second"),
            number(run, "/queue_ms/p50"),
        );
        writeln!(
            text,
            "  {:>4} % {:<14} {mbit:>7.1} {:<14} {queue:>8.1} {:>8.1} {:>8.1}  {:<14} {} {}",
            word(run, "loss"),
            word(run, "arm"),
            if ours { verdict(mbit >= BULK_MBIT) } else { "" },
            number(run, "/queue_ms/p90"),
            number(run, "/queue_ms/max"),
            if ours { verdict(queue <= QUEUE_MS) } else { "" },
            number(run, "/errors"),
            kinds(run)
        )?;
    }
    Ok(())
}

fn idle(text: &mut String, run: &Value) -> std::fmt::Result {
    writeln!(text, "\nProcessor time {}, % of a core", word(run, "label"))?;
    let seconds = number(run, "/seconds").max(1e-9);
    for process in run["processes"].as_array().into_iter().flatten() {
        let percent = number(process, "/cpu_us") / seconds / 1e4;
        writeln!(text, "  {:<12} {percent:>6.2}", word(process, "name"))?;
    }
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn number(run: &Value, field: &str) -> f64 {
    run.pointer(field).and_then(Value::as_f64).unwrap_or(0.0)
}

fn word(run: &Value, field: &str) -> String {
    match run.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

fn kinds(run: &Value) -> String {
    match run.get("error_kinds") {
        Some(Value::Object(kinds)) if !kinds.is_empty() => Value::Object(kinds.clone()).to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::show;
    use serde_json::json;

    fn ttft(arm: &str, p50: f64) -> serde_json::Value {
        json!({"part": "ttft", "arm": arm, "client": "cold", "prompt_kib": 64, "loss": "0.1", "bound_ms": 200.0,
            "first_token_ms": {"p50": p50}, "errors": 0})
    }

    #[test]
    fn ours_is_judged_by_the_bound_and_by_the_better_direct_way() {
        let near = show(&[
            ttft("ours", 209.0),
            ttft("direct-bbr", 640.0),
            ttft("direct-cubic", 400.0),
        ]);
        let near = near.unwrap();
        assert!(
            near.contains("met") && near.contains("-48 % met") && !near.contains("MISSED"),
            "{near}"
        );
        let far = show(&[ttft("ours", 260.0), ttft("direct-cubic", 400.0)]).unwrap();
        assert!(
            far.contains("-35 % MISSED") && !far.contains(" met"),
            "{far}"
        );
    }

    #[test]
    fn a_wrong_byte_is_no_success() {
        let run = json!({"part": "cut", "cuts": 1, "streams": 2, "wrong_bytes": 1, "errors": 1,
            "gap_ms": 20, "roads_cut": {"direct": {"count": 1, "max": 139.0}, "relay": {"count": 1, "max": 205.0}}});
        let shown = show(&[run]).unwrap();
        assert!(shown.contains("wrong bytes 1 MISSED"), "{shown}");
        assert!(shown.contains("a stall of 119.0 ≤ 120 met"), "{shown}");
    }
}
