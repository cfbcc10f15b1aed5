//! The load generator: asks an OpenAI-shaped target for answers and tells what it cost.
//!
//! It measures a network from outside and knows nothing of ours; `tests/bench` runs it against the sample
//! provider directly, through nginx, and through Vector Engine, and `load table` compares the results.

// What is run.
mod closed;

mod open;

mod streams;

mod bulk;

mod gone;

// What is run on control alone.
mod fleet;

// What is run over long lines.
mod wan;

// What the runs stand on.
mod ask;

mod line;

mod wire;

mod tally;

mod watch;

// What becomes of the results.
mod report;

mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::Value;

use crate::ask::Target;
use crate::report::Output;
use crate::watch::Watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Load for an OpenAI-shaped API over plain HTTP/1.1, and what the processes behind it cost.
#[derive(Debug, Parser)]
#[command(name = "load", version)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Connections that ask again at once: requests a second, cost per request.
    Closed(Closed),
    /// A fixed rate of arrivals: delays, counted from when each request was due.
    Open(Open),
    /// Event streams side by side: first chunk, chunk delays, memory.
    Streams(Streams),
    /// One large file up.
    Upload(Upload),
    /// The content of a file down.
    Download(Download),
    /// Leave streams early: time until the provider notices.
    Gone(Gone),
    /// Send nothing: what the processes cost at rest.
    Idle(Idle),
    /// Compare the results of many runs.
    Table(Table),
    /// A thousand nodes that only talk to control.
    Fleet(Fleet),
    /// Over long, lossy and dying lines.
    #[command(subcommand)]
    Wan(wan::Wan),
}

/// What every run needs to know.
#[derive(Args, Debug)]
struct Common {
    /// Where requests go: <http://HOST:PORT>
    #[arg(long)]
    url: String,
    /// The bearer key.
    #[arg(
        long,
        env = "OPENAI_API_KEY",
        hide_env_values = true,
        default_value = "sample-key"
    )]
    key: String,
    #[command(flatten)]
    watched: Watched,
    #[command(flatten)]
    output: Output,
}

impl Common {
    fn target(&self) -> anyhow::Result<Target> {
        Target::new(&self.url, &self.key)
    }
}

#[derive(Args, Debug)]
struct Watched {
    /// Processes to measure and to sum: NAME=PID,NAME=PID
    #[arg(long, default_value = "", hide_default_value = true)]
    pids: String,
    /// Processes to measure beside them, as the provider: NAME=PID
    #[arg(long, default_value = "", hide_default_value = true)]
    beside: String,
}

impl Watched {
    fn start(&self) -> anyhow::Result<Watch> {
        Watch::start(&self.pids, &self.beside)
    }
}

#[derive(Args, Debug)]
struct Closed {
    #[command(flatten)]
    common: Common,
    #[arg(long, default_value = "bench")]
    model: String,
    /// Ask for a stream, and read it to its end.
    #[arg(long)]
    stream: bool,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 500)]
    warm_up_ms: u64,
}

#[derive(Args, Debug)]
struct Open {
    #[command(flatten)]
    common: Common,
    #[arg(long, default_value = "bench")]
    model: String,
    /// Ask for a stream, and read it to its end.
    #[arg(long)]
    stream: bool,
    /// Requests a second.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Requests that may be under way at once.
    #[arg(long, default_value_t = 64)]
    workers: usize,
}

#[derive(Args, Debug)]
struct Streams {
    #[command(flatten)]
    common: Common,
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    #[arg(long, default_value_t = 60)]
    chunks: u32,
    #[arg(long, default_value_t = 100)]
    gap_ms: u64,
    /// Starts are spread over this time.
    #[arg(long, default_value_t = 2000)]
    ramp_ms: u64,
    /// Put before the model's name: a network may have the same model at another provider.
    #[arg(long, default_value = "")]
    prefix: String,
}

#[derive(Args, Debug)]
struct Upload {
    #[command(flatten)]
    common: Common,
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
}

#[derive(Args, Debug)]
struct Download {
    #[command(flatten)]
    common: Common,
    /// The file's id.
    #[arg(long)]
    object: String,
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
}

#[derive(Args, Debug)]
struct Gone {
    #[command(flatten)]
    common: Common,
    /// The sample provider itself, for its counters.
    #[arg(long)]
    stats: String,
    #[arg(long, default_value_t = 20)]
    times: u32,
}

#[derive(Args, Debug)]
struct Idle {
    #[command(flatten)]
    watched: Watched,
    #[command(flatten)]
    output: Output,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

#[derive(Args, Debug)]
struct Table {
    /// Lines written by `--out`.
    runs: PathBuf,
    /// A JSON object about the machine and the build, kept with the results.
    #[arg(long, default_value = "{}")]
    about: String,
    /// Writes all of it here.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct Fleet {
    #[command(flatten)]
    plan: fleet::Plan,
    #[command(flatten)]
    watched: Watched,
    #[command(flatten)]
    output: Output,
}

fn main() -> ExitCode {
    match run(Options::parse().what) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(what: What) -> anyhow::Result<()> {
    match what {
        What::Closed(ask) => ask.run(),
        What::Open(ask) => ask.run(),
        What::Streams(ask) => ask.run(),
        What::Upload(Upload { common, bytes }) => {
            let result = bulk::upload(&common.target()?, bytes, || common.watched.start())?;
            common.output.write("upload", result)
        }
        What::Download(Download {
            common,
            object,
            bytes,
        }) => {
            let target = common.target()?;
            let result = bulk::download(&target, &object, bytes, || common.watched.start())?;
            common.output.write("download", result)
        }
        What::Gone(Gone {
            common,
            stats,
            times,
        }) => {
            let stats = Target::new(&stats, "none")?;
            let result = gone::run(&common.target()?, &stats, times)?;
            common.output.write("gone", result)
        }
        What::Idle(Idle {
            watched,
            output,
            seconds,
        }) => {
            let watch = watched.start()?;
            std::thread::sleep(Duration::from_secs(seconds));
            output.write("idle", join_idle(seconds, watch.show(0, None)?))
        }
        What::Table(Table { runs, about, out }) => table::show(&runs, &about, out.as_deref()),
        What::Fleet(Fleet {
            plan,
            watched,
            output,
        }) => {
            let result = fleet::run(&plan, || watched.start())?;
            fleet::tell(&result)?;
            output.write("fleet", result)
        }
        What::Wan(wan) => wan.run(),
    }
}

fn join_idle(seconds: u64, costs: Value) -> Value {
    report::join([serde_json::json!({"seconds": seconds}), costs])
}

impl Closed {
    fn run(self) -> anyhow::Result<()> {
        let target = self.common.target()?;
        let plan = closed::Plan {
            connections: self.connections,
            time: Duration::from_secs(self.seconds),
            warm_up: Duration::from_millis(self.warm_up_ms),
            request: target.chat(&self.model, self.stream).into(),
            stream: self.stream,
        };
        let result = closed::run(&target, &plan, || self.common.watched.start())?;
        self.common.output.write("closed", result)
    }
}

impl Open {
    fn run(self) -> anyhow::Result<()> {
        let target = self.common.target()?;
        let plan = open::Plan {
            rate: self.rate,
            time: Duration::from_secs(self.seconds),
            workers: self.workers,
            request: target.chat(&self.model, self.stream),
            stream: self.stream,
        };
        let result = open::run(&target, &plan, || self.common.watched.start())?;
        self.common.output.write("open", result)
    }
}

impl Streams {
    fn run(self) -> anyhow::Result<()> {
        let target = self.common.target()?;
        let plan = streams::Plan {
            streams: self.streams,
            chunks: self.chunks,
            gap_ms: self.gap_ms,
            ramp: Duration::from_millis(self.ramp_ms),
            prefix: self.prefix,
        };
        let result = streams::run(&target, &plan, || self.common.watched.start())?;
        self.common.output.write("streams", result)
    }
}
