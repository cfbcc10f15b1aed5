//! Time to the first token: from the first packet of a cold client, or the first byte of a warm one's request, to the
//! first byte of the answer's body.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use serde_json::{Value, json};

use super::{Door, bound::Lines, figures, runtime, secure::Secure, secure::SecureLine};
use crate::tally::Tally;
use crate::wire::{Fault, Reply};

/// A token that takes longer is an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two requests of a warm client, as people pause; short enough that nothing is closed.
const PAUSE: Duration = Duration::from_millis(50);

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    #[command(flatten)]
    door: Door,
    #[command(flatten)]
    lines: Lines,
    /// A new connection for each request.
    #[arg(long)]
    cold: bool,
    /// The prompt's length.
    #[arg(long, default_value_t = 2)]
    prompt_kib: usize,
    #[arg(long, default_value_t = 15)]
    times: u32,
}

impl Ask {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let secure = self.door.secure()?;
        let prompt_bytes = self.prompt_kib << 10;
        let request = secure.target.completion(&body(prompt_bytes));
        let (took_ms, tally) = runtime()?.block_on(self.measure(&secure, &request))?;
        if took_ms.is_empty() {
            bail!("not one answer came: {}", tally.errors());
        }
        let result = [
            json!({"client": if self.cold { "cold" } else { "warm" }, "prompt_kib": self.prompt_kib}),
            json!({"first_token_ms": figures::spread(&took_ms)}),
            json!({"bound_ms": self.lines.first_token_ms(self.cold, prompt_bytes)}),
            tally.errors(),
        ];
        self.door.output.write("ttft", crate::report::join(result))
    }

    async fn measure(&self, secure: &Secure, request: &[u8]) -> anyhow::Result<(Vec<f64>, Tally)> {
        let mut took_ms = Vec::new();
        let mut tally = Tally::new()?;
        let mut line = None;
        if !self.cold {
            // The connection is there, and has been used.
            line = Some(warm(secure).await?);
        }
        for _ in 0..self.times {
            tokio::time::sleep(PAUSE).await;
            let began = Instant::now();
            let first = first(secure, line.take(), request, began);
            match tokio::time::timeout(PATIENCE, first).await {
                Ok(Ok((kept, took))) => {
                    tally.answer(took);
                    took_ms.push(figures::ms(took));
                    line = kept.filter(|_| !self.cold);
                }
                Ok(Err(fault)) => tally.error(&fault),
                Err(_) => tally.error(&Fault::Incomplete("no token in time")),
            }
            if line.is_none() && !self.cold {
                line = warm(secure).await.ok();
            }
        }
        Ok((took_ms, tally))
    }
}

/// A chat of this length that is answered by a few prepared tokens.
pub(super) fn body(prompt_bytes: usize) -> String {
    let prompt = "abcdefghijklmno ".repeat(prompt_bytes.div_ceil(16));
    let prompt = prompt.get(..prompt_bytes).unwrap_or_default();
    let body: Value = json!({
        "model": "bench-stream-3",
        "stream": true,
        "max_tokens": 256,
        "messages": [{"role": "user", "content": prompt}],
    });
    body.to_string()
}

/// A connection over which a small request has been answered.
pub(super) async fn warm(secure: &Secure) -> Result<SecureLine, Fault> {
    let mut line = secure.open().await?;
    let request = secure.target.completion(&body(64));
    line.exchange(&request, &mut |_: &[u8]| {}).await?;
    Ok(line)
}

/// Asks, and reads the answer to its end. Gives the connection back if it can be used again, and the time to the first
/// byte of the body.
async fn first(
    secure: &Secure,
    line: Option<SecureLine>,
    request: &[u8],
    began: Instant,
) -> Result<(Option<SecureLine>, Duration), Fault> {
    let mut line = match line {
        Some(line) => line,
        None => secure.open().await?,
    };
    line.send(request).await?;
    let mut reply = Reply::new();
    let mut first = None;
    while !reply.done() {
        let mut note = |part: &[u8]| {
            if !part.is_empty() {
                first.get_or_insert_with(|| began.elapsed());
            }
        };
        line.more(&mut reply, &mut note).await?;
    }
    if reply.status() != 200 {
        return Err(Fault::Status(reply.status()));
    }
    let first = first.ok_or(Fault::Incomplete("an empty answer"))?;
    let kept = (!reply.closes()).then_some(line);
    Ok((kept, first))
}
