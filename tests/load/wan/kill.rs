//! Requests whose egress is killed before a byte of their answers has come: errors, and how much later they are answered.
//!
//! A request that was at the killed egress is asked again of the provider, so it is answered a whole answer's time after
//! the kill at best. What is beyond that is the network's: noticing, and asking again. The provider may have had it, so
//! the client has to allow it: without its header such a request ends with a 502.
//!
//! Streams that run at the killed egress cannot go on: measured is how long their clients wait for the error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::cut::{Followed, follow, request};
use super::token::{Tokens, Verdict};
use super::{Door, figures, runtime, secure::Secure, ttft};
use crate::ask::Target;
use crate::tally::Tally;
use crate::wire::Fault;

/// By which the client takes it upon itself that a request is done twice.
const ALLOWED: &str = "x-vector-retry: unsafe";

/// An answer that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// From the last request's start to the kill, so that all are at the provider.
const SETTLE: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    #[command(flatten)]
    door: Door,
    /// The egress to kill, by its process.
    #[arg(long)]
    pid: i32,
    #[arg(long, default_value_t = 200)]
    requests: u32,
    /// How long the provider thinks.
    #[arg(long, default_value_t = 2000)]
    first_ms: u64,
    /// Starts are spread over this time.
    #[arg(long, default_value_t = 500)]
    ramp_ms: u64,
    /// The provider itself, whose own stream is what others are compared with.
    #[arg(long)]
    provider_url: String,
    /// Streams that run meanwhile, over all egress nodes.
    #[arg(long, default_value_t = 20)]
    streams: u32,
    #[arg(long, default_value_t = 120)]
    tokens: u32,
    #[arg(long, default_value_t = 20)]
    gap_ms: u64,
}

/// One request: when it was answered, and how.
type Answered = (Instant, Instant, Result<(), Fault>);

impl Ask {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let secure = Arc::new(self.door.secure()?);
        let result = runtime()?.block_on(self.measure(&secure))?;
        self.door.output.write("kill", result)
    }

    async fn measure(&self, secure: &Arc<Secure>) -> anyhow::Result<Value> {
        let (calm, none) = self.wave(secure, None).await?;
        let calm_ms = calm.iter().filter(|(.., outcome)| outcome.is_ok());
        let calm_ms: Vec<f64> = calm_ms.map(|it| figures::ms(it.1 - it.0)).collect();
        let usual_ms = figures::median(&calm_ms).context("not one answer without a kill")?;
        if none.is_some() {
            bail!("killed too early");
        }
        let victim = Pid::from_raw(self.pid).context("--pid: no process")?;
        let direct = Target::new(&self.provider_url, "sample-key")?;
        let direct = Secure::new(direct, &self.door.trust, None)?;
        let asked = request(&direct, self.tokens, self.gap_ms);
        let own = follow(&direct, asked.into()).await.tokens;
        let streams = self.streams(secure);
        let (struck, killed) = self.wave(secure, Some(victim)).await?;
        let killed = killed.context("not killed")?;
        let streams = told(&streams.join_all().await, &own, killed);
        let mut tally = Tally::new()?;
        let (mut added_ms, mut untouched) = (Vec::new(), 0_u32);
        for (began, ended, outcome) in &struck {
            match outcome {
                Err(fault) => tally.error(fault),
                // Answered sooner after the kill than the provider thinks: it was at another egress.
                Ok(()) if figures::ms(ended.saturating_duration_since(killed)) < usual_ms => {
                    tally.answer(*ended - *began);
                    untouched += 1;
                }
                Ok(()) => {
                    tally.answer(*ended - *began);
                    added_ms.push(figures::ms(*ended - killed) - usual_ms);
                }
            }
        }
        let shown = [
            json!({"requests": struck.len(), "usual_ms": usual_ms, "untouched": untouched}),
            json!({"asked_again": added_ms.len(), "added_ms": figures::spread(&added_ms)}),
            streams,
            tally.errors(),
        ];
        Ok(crate::report::join(shown))
    }

    /// Streams that are in full flow when the egress is killed.
    fn streams(&self, secure: &Arc<Secure>) -> JoinSet<Followed> {
        let asked: Arc<[u8]> = request(secure, self.tokens, self.gap_ms).into();
        let mut streams = JoinSet::new();
        for _ in 0..self.streams {
            let (secure, asked) = (Arc::clone(secure), Arc::clone(&asked));
            streams.spawn(async move { follow(&secure, asked).await });
        }
        streams
    }

    /// All requests at once; in the midst of them the kill, whose time is told.
    async fn wave(
        &self,
        secure: &Arc<Secure>,
        victim: Option<Pid>,
    ) -> anyhow::Result<(Vec<Answered>, Option<Instant>)> {
        let body = json!({
            "model": "slow",
            "max_tokens": 16,
            "messages": [{"role": "user", "content": "Think about it."}],
            "metadata": {"sample_first_ms": self.first_ms.to_string()},
        });
        let body = body.to_string();
        let kind = format!("application/json\r\n{ALLOWED}");
        let mut request = (secure.target).head("POST", "/v1/chat/completions", &kind, body.len());
        request.extend_from_slice(body.as_bytes());
        let request: Arc<[u8]> = request.into();
        let mut lines = JoinSet::new();
        for _ in 0..self.requests {
            let secure = Arc::clone(secure);
            lines.spawn(async move { ttft::warm(&secure).await });
        }
        let mut asked = JoinSet::new();
        let ramp = Duration::from_millis(self.ramp_ms);
        let lines = lines.join_all().await;
        for (at, line) in (0_u32..).zip(lines) {
            let mut line = line?;
            let (start, request) = (ramp * at / self.requests.max(1), Arc::clone(&request));
            asked.spawn(async move {
                tokio::time::sleep(start).await;
                let began = Instant::now();
                let mut ignore = |_: &[u8]| {};
                let answer = line.exchange(&request, &mut ignore);
                let outcome = match tokio::time::timeout(PATIENCE, answer).await {
                    Ok(outcome) => outcome.map(drop),
                    Err(_) => Err(Fault::Incomplete("no answer in time")),
                };
                (began, Instant::now(), outcome)
            });
        }
        let mut killed = None;
        if let Some(victim) = victim {
            tokio::time::sleep(ramp + SETTLE).await;
            kill_process(victim, Signal::KILL).context("the egress cannot be killed")?;
            killed = Some(Instant::now());
        }
        Ok((asked.join_all().await, killed))
    }
}

/// What became of the streams.
fn told(streams: &[Followed], own: &Tokens, killed: Instant) -> Value {
    let verdicts: Vec<Verdict> = streams.iter().map(|it| it.tokens.compare(own)).collect();
    let count = |wanted| verdicts.iter().filter(|it| **it == wanted).count();
    let broken = streams.iter().zip(&verdicts);
    let broken = broken.filter(|(_, verdict)| **verdict != Verdict::Whole);
    let waited = broken.map(|(it, _)| figures::ms(it.ended.saturating_duration_since(killed)));
    let waited: Vec<f64> = waited.collect();
    json!({
        "streams": streams.len(),
        "streams_whole": count(Verdict::Whole),
        "streams_told": count(Verdict::Error),
        "streams_cut_short": count(Verdict::Short),
        "streams_wrong": count(Verdict::Wrong),
        "told_after_ms": figures::spread(&waited),
    })
}
