//! Many event streams at once: time to the first chunk, the delay of every chunk, memory per stream.
//!
//! The sample provider writes into each chunk when it left (`sample_sent_ns`), on the same clock as ours, so a
//! chunk's delay is its way through the network and nothing else. Every stream must bring all of its text.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use memchr::{memchr, memmem};
use serde_json::{Value, json};
use tokio::task::{JoinSet, LocalSet};

use crate::ask::Target;
use crate::line::Line;
use crate::tally::{Delays, Tally};
use crate::watch::Watch;
use crate::wire::{Fault, Reply};

/// From the last start to the measurement of memory, while all streams run.
const SETTLE: Duration = Duration::from_millis(700);

/// Longest line of an event; a longer one is no chunk of the sample provider.
const LINE_BYTES_MAX: usize = 16 << 10;

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) streams: u32,
    pub(crate) chunks: u32,
    pub(crate) gap_ms: u64,
    /// Starts are spread over this time.
    pub(crate) ramp: Duration,
    /// Before the model's name.
    pub(crate) prefix: String,
}

/// What all streams add to.
struct Shared {
    /// Whole streams by their length; errors.
    tally: Tally,
    first: Delays,
    chunk: Delays,
    jitter: Delays,
    open: u64,
    open_max: u64,
}

pub(crate) fn run(
    target: &Target,
    plan: &Plan,
    watch: impl Fn() -> anyhow::Result<Watch>,
) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let shared = Rc::new(RefCell::new(Shared {
        tally: Tally::new()?,
        first: Delays::new()?,
        chunk: Delays::new()?,
        jitter: Delays::new()?,
        open: 0,
        open_max: 0,
    }));
    let model = format!(
        "{}bench-stream-{}x{}",
        plan.prefix, plan.chunks, plan.gap_ms
    );
    let request: Rc<[u8]> = target.chat(&model, true).into();
    let watch = watch()?;
    let began = Instant::now();
    LocalSet::new().block_on(&runtime, async {
        let mut streams = JoinSet::new();
        for at in 0..plan.streams {
            let start = plan.ramp * at / plan.streams;
            let request = Rc::clone(&request);
            let shared = Rc::clone(&shared);
            let (address, chunks) = (target.address, plan.chunks);
            streams.spawn_local(async move {
                tokio::time::sleep(start).await;
                follow(address, &request, chunks, &shared).await;
            });
        }
        tokio::time::sleep(plan.ramp + SETTLE).await;
        let held = watch.resident()?;
        let open = shared.borrow().open;
        while streams.join_next().await.is_some() {}
        let shared = shared.borrow();
        let count = shared.tally.delays.count();
        let shown = [
            json!({"streams": plan.streams, "chunks": plan.chunks, "gap_ms": plan.gap_ms}),
            json!({"seconds": began.elapsed().as_secs_f64(), "open_when_measured": open, "open_max": shared.open_max}),
            json!({"first_chunk": shared.first.show(), "chunk_delay": shared.chunk.show()}),
            json!({"chunk_jitter": shared.jitter.show(), "whole": count}),
            shared.tally.errors(),
            watch.show(count, Some(&held))?,
        ];
        Ok(crate::report::join(shown))
    })
}

/// Follows one stream to its end and adds what it saw.
async fn follow(
    address: std::net::SocketAddr,
    request: &[u8],
    chunks: u32,
    shared: &RefCell<Shared>,
) {
    let line = Line::open(address).await;
    let began = Instant::now();
    {
        let mut shared = shared.borrow_mut();
        shared.open += 1;
        shared.open_max = shared.open_max.max(shared.open);
    }
    let outcome = match line {
        Ok(line) => read(line, request, chunks, began, shared).await,
        Err(fault) => Err(fault),
    };
    let mut shared = shared.borrow_mut();
    shared.open -= 1;
    match outcome {
        Ok(()) => shared.tally.answer(began.elapsed()),
        Err(fault) => shared.tally.error(&fault),
    }
}

async fn read(
    mut line: Line,
    request: &[u8],
    chunks: u32,
    began: Instant,
    shared: &RefCell<Shared>,
) -> Result<(), Fault> {
    let mut events = Events::default();
    let mut reply = Reply::new();
    let mut first = true;
    line.send(request).await?;
    while !reply.done() {
        line.more(&mut reply, &mut |part: &[u8]| {
            let mut shared = shared.borrow_mut();
            if first {
                first = false;
                shared.first.add(began.elapsed());
            }
            events.push(part, unix_ns(), &mut shared);
        })
        .await?;
    }
    match reply.status() {
        200 if events.is_whole(chunks) => Ok(()),
        200 => Err(Fault::Incomplete("events are missing")),
        status => Err(Fault::Status(status)),
    }
}

/// The events of one stream, as far as they have come.
#[derive(Debug, Default)]
struct Events {
    line: Vec<u8>,
    texts: u32,
    ended: bool,
    after_end: bool,
    last_delay_ns: Option<u64>,
}

impl Events {
    fn push(&mut self, mut part: &[u8], now_ns: u64, shared: &mut Shared) {
        while let Some(end) = memchr(b'\n', part) {
            let (line, rest) = part.split_at(end);
            part = rest.get(1..).unwrap_or_default();
            if self.line.is_empty() {
                self.event(line, now_ns, shared);
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.event(&whole, now_ns, shared);
                whole.clear();
                self.line = whole;
            }
        }
        if self.line.len() + part.len() <= LINE_BYTES_MAX {
            self.line.extend_from_slice(part);
        }
    }

    /// One line: an event's data, an empty line, or a comment.
    fn event(&mut self, line: &[u8], now_ns: u64, shared: &mut Shared) {
        let Some(data) = line.trim_ascii_end().strip_prefix(b"data: ") else {
            return;
        };
        self.after_end |= self.ended;
        if data == b"[DONE]" {
            self.ended = true;
            return;
        }
        if memmem::find(data, b"\"content\":\" again\"").is_some() {
            self.texts += 1;
        }
        if let Some(sent_ns) = sent_ns(data) {
            let delay_ns = now_ns.saturating_sub(sent_ns);
            shared.chunk.add_ns(delay_ns);
            if let Some(last_ns) = self.last_delay_ns.replace(delay_ns) {
                shared.jitter.add_ns(delay_ns.abs_diff(last_ns));
            }
        }
    }

    /// Every chunk but the last brings text; the last brings the end.
    fn is_whole(&self, chunks: u32) -> bool {
        self.ended && !self.after_end && self.texts + 1 == chunks
    }
}

/// When the provider sent this chunk.
fn sent_ns(data: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"sample_sent_ns\":";
    let at = memmem::rfind(data, NAME)? + NAME.len();
    let digits = data
        .get(at..)?
        .split(|byte| !byte.is_ascii_digit())
        .next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

pub(crate) fn unix_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        Shared {
            tally: Tally::new().unwrap(),
            first: Delays::new().unwrap(),
            chunk: Delays::new().unwrap(),
            jitter: Delays::new().unwrap(),
            open: 0,
            open_max: 0,
        }
    }

    #[test]
    fn a_stream_is_whole_however_it_is_cut_into_reads() {
        let stream = "data: {\"delta\":{\"content\":\" again\"},\"sample_sent_ns\":5}\n\n: ping\n\n\
                      data: {\"delta\":{\"content\":\" again\"},\"sample_sent_ns\":6}\n\n\
                      data: {\"delta\":{}}\n\ndata: {\"usage\":{}}\n\ndata: [DONE]\n\n";
        for step in [1, 2, 13, 1000] {
            let mut events = Events::default();
            let mut shared = shared();
            for part in stream.as_bytes().chunks(step) {
                events.push(part, 2_005, &mut shared);
            }
            assert!(events.is_whole(3), "{step}");
            assert!(!events.is_whole(4), "{step}");
            assert_eq!(shared.chunk.count(), 2);
            assert_eq!(shared.jitter.count(), 1);
        }
    }
}
