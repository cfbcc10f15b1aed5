//! Streams in full flow whose path is cut: the longest silence that a client sees, and whether every byte is right.
//!
//! A few streams run side by side. In the middle, the road that carries most of their bytes is blackholed both ways,
//! packets under way included; when all have ended, it is mended. A silence counts from the last token before it to the
//! first after it, so that the spacing of the tokens (20 ms) is part of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use vector_wan::Remote;

use super::token::{Tokens, Verdict};
use super::{Door, figures, runtime, secure::Secure, ttft};
use crate::ask::Target;
use crate::wire::{Fault, Reply};

/// When a stream's path is cut: after this share of its length.
const CUT_AT: f64 = 0.45;

/// How long before the cut it is looked at which road carries the streams.
const LOOK: Duration = Duration::from_millis(300);

/// A stream that stays silent for so long after its last token is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    #[command(flatten)]
    door: Door,
    /// The provider itself, whose own stream is what others are compared with.
    #[arg(long)]
    provider_url: String,
    /// The lab whose lines are cut.
    #[arg(long)]
    lab: String,
    /// A road as NAME=LINES, where LINES are one or more A:B with commas, the way back from the provider; may be repeated.
    #[arg(long = "road", required = true)]
    roads: Vec<String>,
    #[arg(long, default_value_t = 30)]
    cuts: u32,
    /// Streams at once.
    #[arg(long, default_value_t = 10)]
    streams: u32,
    #[arg(long, default_value_t = 120)]
    tokens: u32,
    #[arg(long, default_value_t = 20)]
    gap_ms: u64,
    /// From the mending of a road to the next streams.
    #[arg(long, default_value_t = 1500)]
    rest_ms: u64,
}

/// A way that answers may take.
#[derive(Debug)]
struct Road {
    name: String,
    lines: Vec<String>,
}

/// One stream after its path was cut.
#[derive(Debug)]
struct Outcome {
    /// Longest silence around or after the cut, of a stream that went on to its end.
    stall_ms: Option<f64>,
    /// From the cut to the end of a stream that did not.
    given_up_ms: Option<f64>,
    /// Longest silence before it.
    calm_ms: Option<f64>,
    verdict: Verdict,
    fault: Option<String>,
}

impl Ask {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let roads = self.roads.iter().map(|text| Road::parse(text));
        let roads = roads.collect::<anyhow::Result<Vec<_>>>()?;
        let secure = Arc::new(self.door.secure()?);
        let direct = Target::new(&self.provider_url, "sample-key")?;
        let direct = Secure::new(direct, &self.door.trust, None)?;
        let remote = Remote::of(&self.lab);
        let result = runtime()?.block_on(async {
            let own = follow(&direct, self.request(&direct).into()).await;
            let own = own.tokens;
            if own.came.len() + 1 != usize::try_from(self.tokens)? {
                bail!("the provider itself sent {} tokens", own.came.len());
            }
            self.measure(&secure, &remote, &roads, &own).await
        })?;
        self.door.output.write("cut", result)
    }

    fn request(&self, secure: &Secure) -> Vec<u8> {
        request(secure, self.tokens, self.gap_ms)
    }

    async fn measure(
        &self,
        secure: &Arc<Secure>,
        remote: &Remote,
        roads: &[Road],
        own: &Tokens,
    ) -> anyhow::Result<Value> {
        let mut outcomes = Vec::new();
        let mut worst_ms = Vec::new();
        let mut of_road_ms = vec![Vec::new(); roads.len()];
        for _ in 0..self.cuts {
            let (road, found) = self.one_cut(secure, remote, roads, own).await?;
            // A stream that never went on was silent for as long as anybody cared to wait.
            let stalls = found.iter().map(|outcome| outcome.stall_ms);
            let stalls = stalls.map(|stall| stall.unwrap_or(figures::ms(PATIENCE)));
            let worst = stalls.reduce(f64::max);
            worst_ms.extend(worst);
            of_road_ms[road].extend(worst);
            outcomes.extend(found);
            tokio::time::sleep(Duration::from_millis(self.rest_ms)).await;
        }
        let cut = roads.iter().zip(&of_road_ms);
        let cut = cut.map(|(road, worst_ms)| (road.name.clone(), figures::spread(worst_ms)));
        Ok(self.told(&outcomes, &worst_ms, cut.collect()))
    }

    /// One round: streams, the cut, their ends, the mending. Tells which road was cut.
    async fn one_cut(
        &self,
        secure: &Arc<Secure>,
        remote: &Remote,
        roads: &[Road],
        own: &Tokens,
    ) -> anyhow::Result<(usize, Vec<Outcome>)> {
        let request: Arc<[u8]> = self.request(secure).into();
        let mut streams = JoinSet::new();
        for _ in 0..self.streams {
            let (secure, request) = (Arc::clone(secure), Arc::clone(&request));
            streams.spawn(async move { follow(&secure, request).await });
        }
        let length = Duration::from_millis(self.gap_ms) * self.tokens;
        // Not in step with the tokens.
        let phase = Duration::from_micros(fastrand::u64(0..1000 * self.gap_ms.max(1)));
        tokio::time::sleep(length.mul_f64(CUT_AT) + phase - LOOK.min(length / 4)).await;
        let before = carried(remote, roads)?;
        tokio::time::sleep(LOOK).await;
        let after = carried(remote, roads)?;
        let grown = |at: usize| after[at].saturating_sub(before[at]);
        let road = (0..roads.len()).max_by_key(|at| grown(*at));
        let road = road.context("no road")?;
        if grown(road) == 0 {
            bail!("no road carries the streams");
        }
        let cut = roads[road].set(remote, "blackhole=on")?;
        let mut outcomes = Vec::new();
        while let Some(ended) = streams.join_next().await {
            let Followed {
                tokens,
                ended,
                fault,
            } = ended?;
            outcomes.push(Outcome::of(&tokens, ended, fault, own, cut));
        }
        roads[road].set(remote, "blackhole=off")?;
        Ok((road, outcomes))
    }

    fn told(
        &self,
        outcomes: &[Outcome],
        worst_ms: &[f64],
        cut: serde_json::Map<String, Value>,
    ) -> Value {
        let count = |wanted| {
            let same = outcomes.iter().filter(|outcome| outcome.verdict == wanted);
            same.count()
        };
        let mut faults = std::collections::BTreeMap::new();
        for fault in outcomes.iter().filter_map(|outcome| outcome.fault.clone()) {
            *faults.entry(fault).or_insert(0_u32) += 1;
        }
        let stalls: Vec<f64> = outcomes.iter().filter_map(|it| it.stall_ms).collect();
        let given_up: Vec<f64> = outcomes.iter().filter_map(|it| it.given_up_ms).collect();
        let calm: Vec<f64> = outcomes.iter().filter_map(|it| it.calm_ms).collect();
        json!({
            "cuts": self.cuts,
            "streams": outcomes.len(),
            "gap_ms": self.gap_ms,
            "roads_cut": cut,
            "stall_ms": figures::spread(&stalls),
            "worst_stall_of_a_cut_ms": figures::spread(worst_ms),
            "longest_gap_before_ms": figures::spread(&calm),
            "never_went_on": given_up.len(),
            "given_up_after_ms": figures::spread(&given_up),
            "whole": count(Verdict::Whole),
            "ended_with_error": count(Verdict::Error),
            "cut_short": count(Verdict::Short),
            "wrong_bytes": count(Verdict::Wrong),
            "errors": outcomes.len() - count(Verdict::Whole),
            "error_kinds": faults,
        })
    }
}

impl Road {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (name, lines) = text.split_once('=').context("--road: not NAME=LINES")?;
        Ok(Self {
            name: name.to_owned(),
            lines: lines.split(',').map(str::to_owned).collect(),
        })
    }

    /// Both ways of all its lines; tells when the last took effect.
    fn set(&self, remote: &Remote, changes: &str) -> anyhow::Result<Instant> {
        for line in &self.lines {
            remote.set(&line.replacen(':', "::", 1), changes)?;
        }
        Ok(Instant::now())
    }
}

/// Bytes that each road has carried towards the client.
fn carried(remote: &Remote, roads: &[Road]) -> anyhow::Result<Vec<u64>> {
    let status = remote.status(false)?;
    let of = |road: &Road| {
        let lines = status.lines.iter().filter(|line| {
            let name = format!("{}:{}", line.now.from, line.now.to);
            road.lines.contains(&name)
        });
        lines.map(|line| line.counters.out_bytes).sum()
    };
    Ok(roads.iter().map(of).collect())
}

/// A stream that has ended, somehow.
pub(super) struct Followed {
    pub(super) tokens: Tokens,
    pub(super) ended: Instant,
    pub(super) fault: Option<Fault>,
}

/// A request for a stream of so many tokens, so far apart.
pub(super) fn request(secure: &Secure, tokens: u32, gap_ms: u64) -> Vec<u8> {
    let body = json!({
        "model": format!("bench-stream-{tokens}x{gap_ms}"),
        "stream": true,
        "messages": [{"role": "user", "content": "Go on and on."}],
    });
    secure.target.completion(&body.to_string())
}

/// Follows one stream to its end, or until it has been silent for too long.
pub(super) async fn follow(secure: &Secure, request: Arc<[u8]>) -> Followed {
    let mut tokens = Tokens::default();
    let fault = read(secure, &request, &mut tokens).await.err();
    Followed {
        tokens,
        ended: Instant::now(),
        fault,
    }
}

async fn read(secure: &Secure, request: &[u8], tokens: &mut Tokens) -> Result<(), Fault> {
    let mut line = ttft::warm(secure).await?;
    line.send(request).await?;
    let mut reply = Reply::new();
    while !reply.done() {
        let mut push = |part: &[u8]| tokens.push(part, Instant::now());
        let more = line.more(&mut reply, &mut push);
        let more = tokio::time::timeout(PATIENCE, more).await;
        more.map_err(|_| Fault::Incomplete("silent"))??;
    }
    match reply.status() {
        200 => Ok(()),
        status => Err(Fault::Status(status)),
    }
}

impl Outcome {
    fn of(
        tokens: &Tokens,
        ended: Instant,
        fault: Option<Fault>,
        own: &Tokens,
        cut: Instant,
    ) -> Self {
        let gaps = tokens.came.windows(2).map(|two| (two[1], two[1] - two[0]));
        let longest = |after: bool| {
            let some = gaps.clone().filter(|(end, _)| (*end > cut) == after);
            some.map(|(_, gap)| figures::ms(gap)).reduce(f64::max)
        };
        let verdict = tokens.compare(own);
        let fault = match (fault, verdict) {
            (Some(fault), _) => Some(fault.kind()),
            (None, Verdict::Whole) => None,
            (None, other) => Some(format!("{other:?}")),
        };
        let whole = verdict == Verdict::Whole;
        let after = figures::ms(ended.saturating_duration_since(cut));
        Self {
            stall_ms: longest(true).filter(|_| whole),
            given_up_ms: (!whole).then_some(after),
            calm_ms: longest(false),
            verdict,
            fault,
        }
    }
}
