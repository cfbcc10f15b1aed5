//! What the processes under test cost: processor time and resident memory, read from `/proc`.
//!
//! Processor time is user plus system in the kernel's ticks of 10 ms, so a run needs seconds to tell microseconds
//! per request. Peaks count from the start of the run; where the kernel lets us not reset them, from the process's.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Value, json};

/// The kernel's unit of processor time, in microseconds (`USER_HZ` is 100 on every Linux we meet).
const TICK_US: u64 = 10_000;

/// A process of the network that is measured, or one beside it (`summed` is false).
#[derive(Debug)]
struct Process {
    name: String,
    pid: u32,
    summed: bool,
    cpu_us: u64,
    rss_kib: u64,
}

/// Processes from the moment [`Watch::start`] was called.
#[derive(Debug)]
pub(crate) struct Watch {
    processes: Vec<Process>,
    own_us: u64,
}

impl Watch {
    /// `ours` and `beside` are `NAME=PID,NAME=PID`; only `ours` are summed.
    pub(crate) fn start(ours: &str, beside: &str) -> anyhow::Result<Self> {
        let mut processes = Vec::new();
        for (list, summed) in [(ours, true), (beside, false)] {
            for item in list.split(',').filter(|item| !item.is_empty()) {
                let (name, pid) = item
                    .split_once('=')
                    .with_context(|| format!("{item}: not NAME=PID"))?;
                let pid = pid
                    .parse()
                    .with_context(|| format!("{item}: not NAME=PID"))?;
                // Refused where the process is another user's: its peak then is that of its whole life.
                drop(std::fs::write(of(pid, "clear_refs"), "5"));
                processes.push(Process {
                    name: name.to_owned(),
                    pid,
                    summed,
                    cpu_us: cpu_us(pid)?,
                    rss_kib: memory_kib(pid, "VmRSS")?,
                });
            }
        }
        Ok(Self {
            processes,
            own_us: cpu_us(std::process::id())?,
        })
    }

    /// Resident memory of each process now, in KiB.
    pub(crate) fn resident(&self) -> anyhow::Result<Vec<u64>> {
        self.processes
            .iter()
            .map(|process| memory_kib(process.pid, "VmRSS"))
            .collect()
    }

    /// The costs since the start; `count` requests share them. `held` is memory at the run's height, where known.
    pub(crate) fn show(&self, count: u64, held: Option<&[u64]>) -> anyhow::Result<Value> {
        let mut shown = Vec::new();
        let mut sum_us = 0;
        for (at, process) in self.processes.iter().enumerate() {
            let used_us = cpu_us(process.pid)?.saturating_sub(process.cpu_us);
            if process.summed {
                sum_us += used_us;
            }
            shown.push(json!({
                "name": process.name,
                "summed": process.summed,
                "cpu_us": used_us,
                "cpu_us_per_request": share(used_us, count),
                "rss_kib_before": process.rss_kib,
                "rss_kib_held": held.and_then(|held| held.get(at)),
                "rss_kib_after": memory_kib(process.pid, "VmRSS")?,
                "rss_kib_peak": memory_kib(process.pid, "VmHWM")?,
            }));
        }
        let own_us = cpu_us(std::process::id())?.saturating_sub(self.own_us);
        Ok(json!({
            "cpu_us_per_request": share(sum_us, count),
            "load_cpu_us_per_request": share(own_us, count),
            "processes": shown,
        }))
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people, far below 2^53"
)]
fn share(us: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| (us as f64 / count as f64 * 100.0).round() / 100.0)
}

fn of(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

fn cpu_us(pid: u32) -> anyhow::Result<u64> {
    let path = of(pid, "stat");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("process {pid} has ended"))?;
    ticks(&text)
        .map(|ticks| ticks * TICK_US)
        .with_context(|| format!("{}: not as expected", path.display()))
}

/// User and system ticks of a `stat` line. The name in brackets may hold spaces; what follows it does not.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user = fields.next()?.parse::<u64>().ok()?;
    let system = fields.next()?.parse::<u64>().ok()?;
    Some(user + system)
}

fn memory_kib(pid: u32, field: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(of(pid, "status"))
        .with_context(|| format!("process {pid} has ended"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|value| value.split_ascii_whitespace().next()?.parse().ok())
        .with_context(|| format!("process {pid} tells no {field}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_found_behind_any_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 100 0 0 0 31 11 0 0 20 0 4 0 99 1 2";
        assert_eq!(ticks(stat), Some(42));
    }
}
