//! A credential that is told to wait (429) at one egress: how soon an ingress of another region sends nothing there.
//!
//! A request through the near ingress meets the 429. So long after the provider said it, two requests go through the other
//! ingress at the same instant, which then chooses both egress nodes unless it knows better: one that is sent where the
//! credential rests comes back and is sent again, which its answer tells. The shortest time after which no pair has such a
//! one is the time in which the signal arrived.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    Door, runtime,
    secure::{Secure, SecureLine},
    ttft,
};
use crate::ask::Target;
use crate::wire::{Fault, Reply};

/// How long the credential rests.
const REST: Duration = Duration::from_millis(1_500);

/// Until nothing of the round before is left.
const PAUSE: Duration = Duration::from_millis(2_500);

/// An answer that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    #[command(flatten)]
    door: Door,
    /// The ingress that is to hear of it.
    #[arg(long)]
    other_url: String,
    /// The provider itself, which is told whom to refuse.
    #[arg(long)]
    provider_url: String,
    /// One way from the first request's ingress to the provider.
    #[arg(long, default_value_t = 76.0)]
    far_ms: f64,
    /// One way from the provider to an egress, from there to control, and from control to the other ingress, together.
    #[arg(long, default_value_t = 86.0)]
    signal_ms: f64,
    /// Tried after the provider's word: from this time.
    #[arg(long, default_value_t = 80)]
    from_ms: u64,
    /// To this time.
    #[arg(long, default_value_t = 150)]
    to_ms: u64,
    /// In steps of this time.
    #[arg(long, default_value_t = 5)]
    step_ms: u64,
    /// Pairs at each of them.
    #[arg(long, default_value_t = 4)]
    pairs: u32,
}

/// Two ingress nodes and the provider.
struct Places {
    near: Secure,
    other: Secure,
    provider: Secure,
}

impl Ask {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let near = self.door.secure()?;
        let secure =
            |url: &str, key: &str| Secure::new(Target::new(url, key)?, &self.door.trust, None);
        let places = Arc::new(Places {
            near,
            other: secure(&self.other_url, &self.door.key)?,
            provider: secure(&self.provider_url, "sample-key")?,
        });
        let result = runtime()?.block_on(self.measure(&places))?;
        self.door.output.write("signal", result)
    }

    async fn measure(&self, places: &Arc<Places>) -> anyhow::Result<Value> {
        let (mut late_ms, mut later) = (Vec::new(), Vec::new());
        let steps = (self.from_ms..=self.to_ms).step_by(usize::try_from(self.step_ms.max(1))?);
        for after_ms in steps {
            let mut unaware = 0_u32;
            for _ in 0..self.pairs {
                unaware += u32::from(self.pair(places, after_ms).await?);
                tokio::time::sleep(PAUSE).await;
            }
            later.push(json!({"after_ms": after_ms, "pairs": self.pairs, "unaware": unaware}));
            if unaware > 0 {
                late_ms.push(after_ms);
            }
        }
        let known_ms = late_ms
            .last()
            .map_or(self.from_ms, |last| last + self.step_ms);
        ensure!(
            !late_ms.is_empty(),
            "no pair was sent too early: begin before {} ms",
            self.from_ms
        );
        Ok(json!({
            "known_after_ms": known_ms,
            "ways_ms": self.signal_ms,
            "tried": later,
        }))
    }

    /// One 429 and one pair. True if one of the two was sent where the credential rests.
    async fn pair(&self, places: &Arc<Places>, after_ms: u64) -> anyhow::Result<bool> {
        let mut lines = Vec::new();
        for secure in [&places.near, &places.other, &places.other] {
            lines.push(ttft::warm(secure).await?);
        }
        self.arm(&places.provider).await?;
        let began = Instant::now();
        // Both ingress nodes are as near.
        let ways_ms = self.far_ms + after_ms as f64;
        let mut asked = JoinSet::new();
        for (at, line) in lines.into_iter().enumerate() {
            let target = if at == 0 { &places.near } else { &places.other };
            let request: Arc<[u8]> = target.target.completion(&ttft::body(64)).into();
            let start = if at == 0 { 0.0 } else { ways_ms };
            asked.spawn(async move {
                let start = began + Duration::from_secs_f64(start / 1e3);
                tokio::time::sleep_until(start.into()).await;
                let answer = tokio::time::timeout(PATIENCE, attempts(line, &request)).await;
                (
                    at,
                    answer.unwrap_or(Err(Fault::Incomplete("no answer in time"))),
                )
            });
        }
        let mut unaware = false;
        for (at, answer) in asked.join_all().await {
            if at == 0 {
                ensure!(answer? > 1, "the first request met no 429");
            } else {
                unaware |= answer? > 1;
            }
        }
        Ok(unaware)
    }

    /// The next request that reaches the provider is refused.
    async fn arm(&self, provider: &Secure) -> anyhow::Result<()> {
        let rule = json!({"kind": format!("429:{}ms", REST.as_millis()), "count": 1}).to_string();
        let kind = "application/json";
        let mut request = (provider.target).head("POST", "/sample/faults", kind, rule.len());
        request.extend_from_slice(rule.as_bytes());
        let mut line = provider.open().await?;
        let answer = line.exchange(&request, &mut |_: &[u8]| {}).await;
        answer.context("the provider takes no fault")?;
        Ok(())
    }
}

/// Asks, reads the whole answer, and tells how often the network tried.
async fn attempts(mut line: SecureLine, request: &[u8]) -> Result<u64, Fault> {
    line.send(request).await?;
    let mut reply = Reply::new();
    while !reply.done() {
        line.more(&mut reply, &mut |_: &[u8]| {}).await?;
    }
    match reply.status() {
        200 => Ok(reply.attempts()),
        status => Err(Fault::Status(status)),
    }
}
