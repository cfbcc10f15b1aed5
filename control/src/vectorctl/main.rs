//! `vectorctl`: everything an operator does, from a terminal or a script.
//!
//! `args` is what can be typed, `command` does it, `table` and `json` show it, `plan` reads
//! `network.toml`. Faults go to standard error in words that say what to do; the exit code says their kind.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use tonic_types::StatusExt as _;

use crate::args::{Arguments, Command};

mod args;
mod command;
mod connect;
mod doctor;
mod json;
mod plan;
mod sight;
mod table;

/// Why a command did not do as asked, by exit code.
#[derive(Debug)]
enum Failure {
    /// 1: control says no, or `diff --exit-code` or `doctor` found something.
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
        let text = told(&status);
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

/// What control says, each field of a request with its own fault where it names them.
fn told(status: &tonic::Status) -> String {
    let fields = status.get_details_bad_request();
    let lines: Vec<String> = fields
        .iter()
        .flat_map(|details| &details.field_violations)
        .map(|fault| format!("{}: {}", fault.field, fault.description))
        .collect();
    // Details have limits, the text has all of them.
    if lines.is_empty() || lines.len() < status.message().lines().count() {
        return status.message().to_owned();
    }
    match lines.as_slice() {
        [one] => one.clone(),
        many => format!("{} faults:\n  {}", many.len(), many.join("\n  ")),
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

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, FieldViolation};

    use super::*;

    #[test]
    fn faults_are_told_by_field() {
        let refused = |text: &str, fields: &[(&str, &str)]| {
            let fields: Vec<FieldViolation> = fields
                .iter()
                .map(|(field, why)| FieldViolation::new(*field, *why))
                .collect();
            let details = ErrorDetails::with_bad_request(fields);
            let code = tonic::Code::InvalidArgument;
            told(&tonic::Status::with_error_details(code, text, details))
        };
        assert_eq!(refused("a: bad", &[("a", "bad")]), "a: bad");
        assert_eq!(
            refused("a: bad\nb: worse", &[("a", "bad"), ("b", "worse")]),
            "2 faults:\n  a: bad\n  b: worse"
        );
        assert_eq!(
            refused("a: bad\nb: did not fit", &[("a", "bad")]),
            "a: bad\nb: did not fit"
        );
        assert_eq!(told(&tonic::Status::internal("broken")), "broken");
    }
}
