//! Many downloads side by side: goodput at the client, every byte compared, and how long the long line's queue is
//! meanwhile.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::LocalSet;
use vector_wan::Remote;

use super::{Door, figures, runtime, secure::Secure};
use crate::tally::Tally;
use crate::wire::{Fault, Reply};

/// The provider's pattern: byte `i` of each block of this length is `i mod 251`.
const FILL_BYTES: usize = 64 << 10;

/// The upload that the downloads need meets lines without loss.
const UPLOAD_MAX: Duration = Duration::from_secs(60);

/// How often the queue is looked at.
const LOOK: Duration = Duration::from_millis(20);

const BOUNDARY: &str = "vector-load-boundary-2b9f61d4";

/// What to run.
#[derive(Args, Debug)]
pub(crate) struct Ask {
    #[command(flatten)]
    door: Door,
    /// The lab whose line is looked at.
    #[arg(long)]
    lab: String,
    /// The line that carries the downloads, as FROM:TO.
    #[arg(long)]
    line: String,
    /// A change of lines for the time of the downloads, as LINES CHANGE; may be repeated.
    #[arg(long = "during", num_args = 2)]
    during: Vec<String>,
    /// Downloads at once.
    #[arg(long, default_value_t = 16)]
    workers: u32,
    /// The length of each.
    #[arg(long, default_value_t = 4 << 20)]
    bytes: usize,
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Not counted: congestion control finds its rate.
    #[arg(long, default_value_t = 5)]
    warm_up_seconds: u64,
}

impl Ask {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let secure = Rc::new(self.door.secure()?);
        let runtime = runtime()?;
        let result = LocalSet::new().block_on(&runtime, self.measure(&secure))?;
        self.door.output.write("bulk", result)
    }

    async fn measure(&self, secure: &Rc<Secure>) -> anyhow::Result<Value> {
        let object = tokio::time::timeout(UPLOAD_MAX, upload(secure, self.bytes)).await;
        let object = object.context("the upload takes too long")??;
        let remote = Remote::of(&self.lab);
        for change in self.during.chunks_exact(2) {
            remote.set(&change[0], &change[1])?;
        }
        let request: Rc<[u8]> = secure
            .target
            .get(&format!("/v1/files/{object}/content"))
            .into();
        let (bytes, tally) = (
            Rc::new(Cell::new(0_u64)),
            Rc::new(RefCell::new(Tally::new()?)),
        );
        let mut workers = tokio::task::JoinSet::new();
        for _ in 0..self.workers {
            let (secure, request) = (Rc::clone(secure), Rc::clone(&request));
            let (bytes, tally, expected) = (Rc::clone(&bytes), Rc::clone(&tally), self.bytes);
            workers.spawn_local(async move {
                loop {
                    let began = Instant::now();
                    match download(&secure, &request, expected, &bytes).await {
                        Ok(()) => tally.borrow_mut().answer(began.elapsed()),
                        Err(fault) => {
                            tally.borrow_mut().error(&fault);
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    }
                }
            });
        }
        tokio::time::sleep(Duration::from_secs(self.warm_up_seconds)).await;
        let (start, at_start) = (Instant::now(), bytes.get());
        let queue_ms = self.watch_queue(&remote).await?;
        let (took, came) = (start.elapsed(), bytes.get() - at_start);
        workers.abort_all();
        let tally = tally.borrow();
        let shown = [
            json!({"workers": self.workers, "seconds": took.as_secs_f64()}),
            json!({"mbit_per_second": rate(came, took), "queue_ms": figures::spread(&queue_ms)}),
            json!({"whole": tally.delays.count()}),
            tally.errors(),
        ];
        Ok(crate::report::join(shown))
    }

    /// How long a packet would have waited for the line, time and again until the run is over.
    async fn watch_queue(&self, remote: &Remote) -> anyhow::Result<Vec<f64>> {
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let mut queue_ms = Vec::new();
        while Instant::now() < end {
            tokio::time::sleep(LOOK).await;
            let status = remote.status(false)?;
            let named = |line: &&vector_wan::words::LineStatus| {
                format!("{}:{}", line.now.from, line.now.to) == self.line
            };
            let line = status.lines.iter().find(named);
            queue_ms.push(line.context("--line: no such line")?.backlog_ms);
        }
        Ok(queue_ms)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people, far below 2^53"
)]
fn rate(bytes: u64, took: Duration) -> f64 {
    (bytes as f64 * 8.0 / took.as_secs_f64() / 1e4).round() / 100.0
}

/// A file of which the provider remembers the length; its content is the provider's pattern.
async fn upload(secure: &Secure, bytes: usize) -> anyhow::Result<String> {
    let open = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nuser_data\r\n--{BOUNDARY}\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"bulk.bin\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    );
    let close = format!("\r\n--{BOUNDARY}--\r\n");
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    let length = open.len() + bytes + close.len();
    let mut request = secure.target.head("POST", "/v1/files", &kind, length);
    request.extend_from_slice(open.as_bytes());
    request.extend((0..bytes).map(pattern));
    request.extend_from_slice(close.as_bytes());
    let mut line = secure.open().await?;
    line.send(&request).await?;
    let mut reply = Reply::new();
    let mut answer = Vec::new();
    while !reply.done() {
        let mut keep = |part: &[u8]| answer.extend_from_slice(part);
        line.more(&mut reply, &mut keep).await?;
    }
    if reply.status() != 200 {
        bail!("the upload was answered with {}", reply.status());
    }
    let file: Value = serde_json::from_slice(&answer).context("the answer is no file object")?;
    let id = file.get("id").and_then(Value::as_str);
    Ok(id.context("a file without an id")?.to_owned())
}

/// One download on a connection of its own.
async fn download(
    secure: &Secure,
    request: &[u8],
    expected: usize,
    bytes: &Cell<u64>,
) -> Result<(), Fault> {
    let mut line = secure.open().await?;
    line.send(request).await?;
    let mut reply = Reply::new();
    let (mut seen, mut wrong) = (0, false);
    while !reply.done() {
        let mut check = |part: &[u8]| {
            let right = part
                .iter()
                .zip(seen..)
                .all(|(byte, at)| *byte == pattern(at));
            wrong |= !right;
            seen += part.len();
            bytes.set(bytes.get() + u64::try_from(part.len()).unwrap_or(0));
        };
        line.more(&mut reply, &mut check).await?;
    }
    match reply.status() {
        200 if wrong => Err(Fault::Incomplete("wrong bytes")),
        200 if seen != expected => Err(Fault::Incomplete("bytes are missing")),
        200 => Ok(()),
        status => Err(Fault::Status(status)),
    }
}

fn pattern(at: usize) -> u8 {
    u8::try_from(at % FILL_BYTES % 251).unwrap_or(0)
}
