//! What the program and its router say to one another, as lines of JSON over a Unix socket.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use vector_wan::Counters;

/// The router answers within a millisecond; a machine that does not run it for so long measures nothing.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What is asked of the router.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Change what lines do.
    Set { lines: String, changes: String },
    /// Tell everything.
    Status { reset: bool },
    /// End.
    Quit,
}

/// What it answers.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Said {
    Set(Set),
    Status(Box<Status>),
    Quit,
    Refused(String),
}

/// A change, and when it took effect.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Set {
    /// On `CLOCK_MONOTONIC`.
    pub(crate) effective_mono_ns: u64,
    pub(crate) effective_unix_ns: u64,
    pub(crate) lines: Vec<Now>,
}

/// What one direction does now.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Now {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) conditions: String,
}

/// Everything the router knows.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Status {
    pub(crate) seconds: f64,
    pub(crate) router: Health,
    pub(crate) lines: Vec<LineStatus>,
}

/// Whether measurements over this router are sound.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Health {
    pub(crate) realtime: bool,
    pub(crate) cpu_percent: f64,
    /// How late packets were handed over.
    pub(crate) late_p50_us: f64,
    pub(crate) late_p99_us: f64,
    pub(crate) late_max_us: f64,
    pub(crate) machine_busy_percent: f64,
    pub(crate) machine_stolen_ms: u64,
    pub(crate) no_line: u64,
    pub(crate) write_errors: u64,
    pub(crate) overload: u64,
    /// Per host; filled in by whoever asks.
    #[serde(default)]
    pub(crate) device_drops: Vec<(String, u64)>,
}

/// One direction.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LineStatus {
    #[serde(flatten)]
    pub(crate) now: Now,
    pub(crate) backlog_ms: f64,
    #[serde(flatten)]
    pub(crate) counters: Counters,
}

/// Asks a lab's router.
pub(crate) fn ask(socket: &Path, what: &Ask) -> anyhow::Result<Said> {
    let stream = UnixStream::connect(socket).context("the lab's router does not answer")?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut line = serde_json::to_string(what)?;
    line.push('\n');
    (&stream).write_all(line.as_bytes())?;
    line.clear();
    BufReader::new(&stream).read_line(&mut line)?;
    match serde_json::from_str(&line).context("the lab's router did not answer")? {
        Said::Refused(why) => bail!("{why}"),
        said => Ok(said),
    }
}
