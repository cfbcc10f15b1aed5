//! A client that leaves in mid-stream: how long until the provider's connection notices.
//!
//! The sample provider remembers when each of its answers lost its reader (`client_gone_recent`), on our clock.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::ask::Target;
use crate::line::OwnLine;
use crate::streams::unix_ns;
use crate::tally::Delays;
use crate::wire::Reply;

/// A stream that does not end by itself while we watch: 1,000 chunks, one every 20 ms.
const MODEL: &str = "bench-stream-1000x20";

/// How long the provider may take to notice before it counts as never.
const NEVER: Duration = Duration::from_secs(10);

/// Pause between two looks at the provider's counters.
const LOOK: Duration = Duration::from_millis(5);

/// Leaves `times` streams, one after the other. `stats` is the provider itself.
pub(crate) fn run(target: &Target, stats: &Target, times: u32) -> anyhow::Result<Value> {
    let mut delays = Delays::new()?;
    let mut never = 0;
    let request = target.chat(MODEL, true);
    for _ in 0..times {
        let before = departures(stats)?.len();
        let left_ns = leave(target, &request)?;
        match noticed_ns(stats, before)? {
            Some(noticed_ns) => delays.add_ns(noticed_ns.saturating_sub(left_ns)),
            None => never += 1,
        }
    }
    Ok(json!({"times": times, "errors": never, "noticed": delays.show()}))
}

/// Opens a stream, takes its first bytes, leaves. Tells when.
fn leave(target: &Target, request: &[u8]) -> anyhow::Result<u64> {
    let mut line = OwnLine::open(target.address)?;
    line.send(request)?;
    let mut reply = Reply::new();
    let mut seen = 0;
    while seen == 0 && !reply.done() {
        line.more(&mut reply, &mut |part: &[u8]| seen += part.len())?;
    }
    if reply.status() != 200 || reply.done() {
        bail!("no stream to leave: status {}", reply.status());
    }
    let left_ns = unix_ns();
    drop(line);
    Ok(left_ns)
}

fn noticed_ns(stats: &Target, before: usize) -> anyhow::Result<Option<u64>> {
    let began = Instant::now();
    while began.elapsed() < NEVER {
        if let Some(at_ns) = departures(stats)?.get(before) {
            return Ok(Some(*at_ns));
        }
        std::thread::sleep(LOOK);
    }
    Ok(None)
}

/// When readers left, as the provider remembers it. The caller resets its counters before a run of few.
fn departures(stats: &Target) -> anyhow::Result<Vec<u64>> {
    let mut line = OwnLine::open(stats.address)?;
    line.send(&stats.get("/sample/stats"))?;
    let mut answer = Vec::new();
    line.answer(&mut |part: &[u8]| answer.extend_from_slice(part))?;
    let shown: Value = serde_json::from_slice(&answer)?;
    let recent = shown
        .get("client_gone_recent")
        .and_then(Value::as_array)
        .context("the provider tells no departures")?;
    recent
        .iter()
        .map(|gone| {
            let text = gone.get("unix_ns").and_then(Value::as_str);
            text.context("a departure without its time")?
                .parse()
                .context("a departure without its time")
        })
        .collect()
}
