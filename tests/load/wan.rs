//! What a network does over long, lossy and dying lines: `tests/bench wan` runs these in the namespace of a client of a
//! lab (`tests/wan`), and changes the lab's lines while they run.

// What is measured.
mod cut;

mod kill;

mod signal;

mod ttft;

mod bulk;

// What it is measured against.
mod bound;

mod token;

// What the measurements stand on.
mod secure;

mod certificate;

mod figures;

// What is shown.
mod table;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::ask::Target;
use crate::report::Output;

use self::secure::Secure;

/// The parts of `load wan`.
#[derive(Debug, Subcommand)]
pub(crate) enum Wan {
    /// Streams whose path is cut: the longest silence between two tokens, and every byte.
    Cut(cut::Ask),
    /// Requests without an answer yet whose egress is killed: errors and added delay.
    Kill(kill::Ask),
    /// A 429 at one egress: how soon an ingress elsewhere goes by it.
    Signal(signal::Ask),
    /// Time to the first token.
    Ttft(ttft::Ask),
    /// Many downloads at once: goodput, and how long a line's queue is.
    Bulk(bulk::Ask),
    /// Make a certificate for the names of a lab.
    Certificate(certificate::Ask),
    /// Show what many runs have found, beside what was to be reached.
    Table(table::Ask),
}

impl Wan {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Cut(ask) => ask.run(),
            Self::Kill(ask) => ask.run(),
            Self::Signal(ask) => ask.run(),
            Self::Ttft(ask) => ask.run(),
            Self::Bulk(ask) => ask.run(),
            Self::Certificate(ask) => ask.run(),
            Self::Table(ask) => ask.run(),
        }
    }
}

/// Whom a part asks, and where its result goes.
#[derive(Args, Debug)]
struct Door {
    /// Where requests go: <https://HOST:PORT>
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
    /// The certificate to trust (PEM).
    #[arg(long)]
    trust: PathBuf,
    /// TCP congestion control of the client's side; the system's if not given.
    #[arg(long)]
    congestion: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl Door {
    fn secure(&self) -> anyhow::Result<Secure> {
        let target = Target::new(&self.url, &self.key)?;
        Secure::new(target, &self.trust, self.congestion.clone())
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
