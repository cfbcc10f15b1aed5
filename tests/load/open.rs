//! Open loop: requests leave at a fixed rate, whatever became of the earlier ones.
//!
//! A delay counts from when the request should have left, so a stall shows in every request that it held up.
//! Each worker is a thread that sleeps until its turn; timers of an async runtime are too coarse (1 ms) for this.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Value, json};

use crate::ask::{Tail, Target};
use crate::line::OwnLine;
use crate::tally::{Delays, Tally};
use crate::watch::Watch;
use crate::wire::Fault;

/// From the start of the threads to the first request, so that all stand ready.
const LEAD: Duration = Duration::from_millis(300);

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) rate: u32,
    pub(crate) time: Duration,
    /// Requests that may be under way at once; more are late.
    pub(crate) workers: usize,
    pub(crate) request: Vec<u8>,
    pub(crate) stream: bool,
}

/// The order of requests, shared by the workers.
struct Clock {
    began: Instant,
    gap: Duration,
    next: AtomicU64,
    count: u64,
}

impl Clock {
    /// When the next request leaves; nothing when all have.
    fn turn(&self) -> Option<Instant> {
        let at = self.next.fetch_add(1, Relaxed);
        let at = u32::try_from((at < self.count).then_some(at)?).ok()?;
        Some(self.began + self.gap * at)
    }
}

pub(crate) fn run(
    target: &Target,
    plan: &Plan,
    watch: impl Fn() -> anyhow::Result<Watch>,
) -> anyhow::Result<Value> {
    let watch = watch()?;
    let clock = Clock {
        began: Instant::now() + LEAD,
        gap: Duration::from_secs(1) / plan.rate,
        next: AtomicU64::new(0),
        count: u64::from(plan.rate) * plan.time.as_secs(),
    };
    let mut all = Tally::new()?;
    let mut late = Delays::new()?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.workers)
            .map(|_| scope.spawn(|| work(target, plan, &clock)))
            .collect();
        for worker in workers {
            let (tally, its_late) = worker.join().ok().context("a worker died")??;
            all.merge(&tally)?;
            late.merge(&its_late)?;
        }
        anyhow::Ok(())
    })?;
    let shown = [
        json!({"rate": plan.rate, "seconds": plan.time.as_secs(), "workers": plan.workers}),
        json!({"latency": all.delays.show(), "sent_late": late.show()}),
        all.errors(),
        watch.show(all.delays.count(), None)?,
    ];
    Ok(crate::report::join(shown))
}

/// One worker: waits for its turn, asks, takes the next turn. Also tells how late it sent.
fn work(target: &Target, plan: &Plan, clock: &Clock) -> anyhow::Result<(Tally, Delays)> {
    let mut tally = Tally::new()?;
    let mut late = Delays::new()?;
    let mut line = OwnLine::open(target.address).ok();
    while let Some(turn) = clock.turn() {
        std::thread::sleep(turn.saturating_duration_since(Instant::now()));
        late.add(turn.elapsed());
        match ask(target, plan, line.take()) {
            Ok(kept) => {
                line = kept;
                tally.answer(turn.elapsed());
            }
            Err(fault) => tally.error(&fault),
        }
    }
    Ok((tally, late))
}

fn ask(target: &Target, plan: &Plan, line: Option<OwnLine>) -> Result<Option<OwnLine>, Fault> {
    let mut line = match line {
        Some(line) => line,
        None => OwnLine::open(target.address)?,
    };
    let mut tail = Tail::default();
    line.send(&plan.request)?;
    let again = line.answer(&mut |part: &[u8]| tail.push(part))?;
    if !tail.is_whole(plan.stream) {
        return Err(Fault::Incomplete("the answer lacks its end"));
    }
    Ok(again.then_some(line))
}
