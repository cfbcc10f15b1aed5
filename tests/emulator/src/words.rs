//! What a lab's router and those who use it say to one another, as lines of JSON over a Unix socket.
//!
//! [`Remote`] is how a program changes lines while it measures: an answer takes a fraction of a millisecond.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::line::Counters;

/// Where labs keep their files, a folder each.
pub const ROOT: &str = "/run/vector-wan";

/// A lab's door, in its folder.
pub const SOCKET: &str = "socket";

/// The router answers within a millisecond; a machine that does not run it for so long measures nothing.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What is asked of the router.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
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
pub enum Said {
    Set(Set),
    Status(Box<Status>),
    Quit,
    Refused(String),
}

/// A change, and when it took effect.
#[derive(Debug, Deserialize, Serialize)]
pub struct Set {
    /// On `CLOCK_MONOTONIC`.
    pub effective_mono_ns: u64,
    pub effective_unix_ns: u64,
    pub lines: Vec<Now>,
}

/// What one direction does now.
#[derive(Debug, Deserialize, Serialize)]
pub struct Now {
    pub from: String,
    pub to: String,
    pub conditions: String,
}

/// Everything the router knows.
#[derive(Debug, Deserialize, Serialize)]
pub struct Status {
    pub seconds: f64,
    pub router: Health,
    pub lines: Vec<LineStatus>,
}

/// Whether measurements over this router are sound.
#[derive(Debug, Deserialize, Serialize)]
pub struct Health {
    pub realtime: bool,
    pub cpu_percent: f64,
    /// How late packets were handed over.
    pub late_p50_us: f64,
    pub late_p99_us: f64,
    pub late_max_us: f64,
    pub machine_busy_percent: f64,
    pub machine_stolen_ms: u64,
    pub no_line: u64,
    pub write_errors: u64,
    pub overload: u64,
    /// Per host; filled in by whoever asks.
    #[serde(default)]
    pub device_drops: Vec<(String, u64)>,
}

/// One direction.
#[derive(Debug, Deserialize, Serialize)]
pub struct LineStatus {
    #[serde(flatten)]
    pub now: Now,
    pub backlog_ms: f64,
    #[serde(flatten)]
    pub counters: Counters,
}

/// Why a router did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// It is not there, or does not answer.
    #[error("the lab's router does not answer")]
    Silent(#[source] io::Error),
    /// It answered what is no answer.
    #[error("the lab's router does not speak as expected")]
    Garbled(#[from] serde_json::Error),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// It answered another question.
    #[error("the lab's router answered something else")]
    Other,
}

impl From<io::Error> for AskError {
    fn from(error: io::Error) -> Self {
        Self::Silent(error)
    }
}

/// The router of a lab that is up on this machine.
#[derive(Clone, Debug)]
pub struct Remote {
    socket: PathBuf,
}

impl Remote {
    /// By the lab's name.
    pub fn of(lab: &str) -> Self {
        Self {
            socket: Path::new(ROOT).join(lab).join(SOCKET),
        }
    }

    /// Asks anything.
    pub fn ask(&self, what: &Ask) -> Result<Said, AskError> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut line = serde_json::to_string(what)?;
        line.push('\n');
        (&stream).write_all(line.as_bytes())?;
        line.clear();
        BufReader::new(&stream).read_line(&mut line)?;
        match serde_json::from_str(&line)? {
            Said::Refused(why) => Err(AskError::Refused(why)),
            said => Ok(said),
        }
    }

    /// Changes lines, such as `ingress-1::egress-1`, and tells when that took effect.
    pub fn set(&self, lines: &str, changes: &str) -> Result<Set, AskError> {
        let ask = Ask::Set {
            lines: lines.to_owned(),
            changes: changes.to_owned(),
        };
        match self.ask(&ask)? {
            Said::Set(set) => Ok(set),
            Said::Status(_) | Said::Quit | Said::Refused(_) => Err(AskError::Other),
        }
    }

    /// What lines do and have carried, and whether the router keeps its time.
    pub fn status(&self, reset: bool) -> Result<Status, AskError> {
        match self.ask(&Ask::Status { reset })? {
            Said::Status(status) => Ok(*status),
            Said::Set(_) | Said::Quit | Said::Refused(_) => Err(AskError::Other),
        }
    }
}
