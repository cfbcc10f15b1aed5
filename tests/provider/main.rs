//! The sample provider: an OpenAI-shaped API that makes its answers up.
//!
//! It is for trying Vector Engine without an account anywhere, and for testing it: faults on demand,
//! counters of what arrived, answers that cost next to nothing. It thinks nothing, keeps nothing beyond
//! its own life, and is not for production. See `--help` and `GET /`.

// The door: sockets, requests, and the row of the table that each meets.
mod serve;

mod road;

mod table;

mod ask;

mod reply;

mod answer;

// What a tester may ask of it beside the API.
mod admin;

mod fault;

mod stats;

// The rooms, as the API has them.
mod chat;

mod complete;

mod response;

mod response_events;

mod embed;

mod moderate;

mod image;

mod audio;

mod file;

mod upload;

mod batch;

mod tune;

mod vector_store;

mod video;

mod model;

mod realtime;

mod echo;

// What the rooms stand on.
mod desk;

mod shelf;

mod words;

mod schema;

mod multipart;

mod bench;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A made-up provider with OpenAI's API, for trying and testing Vector Engine. Not for production.
///
/// Any model name is accepted and echoed; a name that begins with `no-such` is unknown. Models named
/// `bench` and `bench-stream-CHUNKS[xGAP_MS]` answer from prepared bytes.
/// Faults: header `x-sample-fault: KIND[:ARG]` or `POST /sample/faults`; counters: `GET /sample/stats`.
#[derive(Debug, Parser)]
#[command(name = "sample-provider", version)]
struct Options {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8090")]
    listen: SocketAddr,
    /// A bearer key to accept (may be repeated). Objects belong to the key that made them.
    #[arg(long = "key", default_value = "sample-key")]
    keys: Vec<String>,
    /// Milliseconds from a whole request to the first byte of its answer.
    #[arg(long, default_value_t = 120)]
    first_ms: u64,
    /// Milliseconds between two chunks of a streamed answer.
    #[arg(long, default_value_t = 20)]
    token_ms: u64,
    /// Milliseconds from the creation of a task (video, batch, background response) to its end.
    #[arg(long, default_value_t = 600)]
    task_ms: u64,
    /// Serve HTTPS with this certificate (PEM); needs --tls-key.
    #[arg(long, requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// TCP congestion control of all connections, such as cubic or bbr; the system's if not given.
    #[arg(long)]
    congestion: Option<String>,
    /// Threads that serve; as many as there are cores if not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sample-provider: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> std::io::Result<()> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = options.threads {
        builder.worker_threads(threads.max(1));
    }
    let pace = desk::Pace {
        first_ms: options.first_ms,
        token_ms: options.token_ms,
        task_ms: options.task_ms,
    };
    let desk = desk::Desk::new(options.keys, pace);
    let tls = match options.tls_cert.zip(options.tls_key) {
        Some((cert, key)) => Some(serve::acceptor(&cert, &key)?),
        None => None,
    };
    let door = serve::Door {
        listen: options.listen,
        tls,
        congestion: options.congestion,
    };
    builder
        .enable_all()
        .build()?
        .block_on(serve::serve(door, desk))
}
