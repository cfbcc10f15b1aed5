//! `vectorctl`: everything an operator does, from a terminal or a script.
//!
//! `args` is what can be typed, `command` does it, `table` and `json` show it, `plan` reads
//! `network.toml`. Faults go to standard error in words that say what to do; the exit code says their kind.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};

use crate::args::{Arguments, Command};

mod args;
mod command;
mod connect;
mod json;
mod plan;
mod table;

/// Why a command did not do as asked, by exit code.
#[derive(Debug)]
enum Failure {
    /// 1: control says no, or `diff --exit-code` found something.
    Refused(String),
    /// 2: what was typed, or a file, is wrong.
    Usage(String),
    /// 3: control is not there.
    Unreachable(String),
    /// 4: the token is not good, or not for this control.
    Token(String),
}

impl Failure {
    fn parts(&self) -> (u8, &str) {
        match self {
            Self::Refused(text) => (1, text),
            Self::Usage(text) => (2, text),
            Self::Unreachable(text) => (3, text),
            Self::Token(text) => (4, text),
        }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let text = status.message().to_owned();
        match status.code() {
            tonic::Code::Unauthenticated => {
                Self::Token(format!("{text}\nCheck VECTOR_ADMIN_TOKEN."))
            }
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
                Self::Unreachable(format!("control did not answer: {text}"))
            }
            _ => Self::Refused(text),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "vectorctl", &mut script);
            Ok(String::from_utf8_lossy(&script).into_owned())
        }
        _ => run(arguments),
    };
    match done {
        Ok(text) => {
            // Whoever closed the pipe has read enough.
            let _ = writeln!(io::stdout().lock(), "{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let (code, text) = failure.parts();
            if !text.is_empty() {
                let _ = writeln!(io::stderr().lock(), "vectorctl: {text}");
            }
            ExitCode::from(code)
        }
    }
}

fn run(arguments: Arguments) -> Result<String, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Unreachable(error.to_string()))?
        .block_on(command::run(arguments))
}
