//! What a run leaves: one JSON object, shown or added as a line to a file.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Map, Value};

/// Where a run's result goes, and what it is called there.
#[derive(Debug, clap::Args)]
pub(crate) struct Output {
    /// A field of the result, such as round=2; may be repeated.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// Adds the result as a line to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Prints the result as one line of JSON, not as a list.
    #[arg(long)]
    json: bool,
}

impl Output {
    pub(crate) fn write(&self, test: &str, result: Value) -> anyhow::Result<()> {
        let mut head = Map::new();
        head.insert("test".to_owned(), test.into());
        for label in &self.labels {
            let (name, value) = label
                .split_once('=')
                .with_context(|| format!("{label}: not NAME=VALUE"))?;
            let value = value
                .parse::<i64>()
                .map_or_else(|_| value.into(), Value::from);
            head.insert(name.to_owned(), value);
        }
        let whole = join([Value::Object(head), result]);
        if let Some(path) = &self.out {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("{}", path.display()))?;
            writeln!(file, "{whole}")?;
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{whole}")?;
        } else if self.out.is_none() {
            writeln!(out, "{whole:#}")?;
        }
        Ok(())
    }
}

/// One object with the fields of all.
pub(crate) fn join<const N: usize>(parts: [Value; N]) -> Value {
    let mut whole = Map::new();
    for part in parts {
        if let Value::Object(fields) = part {
            whole.extend(fields);
        }
    }
    Value::Object(whole)
}
