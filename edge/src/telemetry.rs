//! What a node tells about itself: log lines, metrics, traces.
//!
//! One [`Telemetry`] handle, cheap to clone, is all that other rooms hold. A slow reader of the
//! log never slows a request: lines go through `writer`, which drops and counts what does not
//! fit. No prompt, no answer and no key's secret ever passes through here: [`Exchange`] has no
//! field for one.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prometheus_client::registry::Metric;
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt, LevelFilter, filter_fn},
    layer::{Filter, SubscriberExt as _},
    util::SubscriberInitExt as _,
};
use vector_proto::{id::ExchangeId, tunnel::v1::Usage};

use crate::config::{self, Format, Role};

#[cfg(test)]
mod caught;

mod line;

mod metrics;

mod process;

mod trace;

mod writer;

pub use metrics::{InFlight, LinkSeries};

use metrics::Metrics;
use writer::Writer;

/// Target of the line that every exchange ends with.
const EXCHANGE: &str = "vector_edge::exchange";

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter of the log.
    #[error("telemetry.log: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter of traces.
    #[error("telemetry.otlp: {0}")]
    Traces(#[from] opentelemetry_otlp::ExporterBuildError),
    /// The writer's thread.
    #[error("log writer: {0}")]
    Thread(#[from] io::Error),
    /// Somebody else reads this process's log already.
    #[error("log: {0}")]
    Taken(#[from] tracing_subscriber::util::TryInitError),
}

/// The handle. Cheap to clone.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    metrics: Metrics,
    writer: Writer,
    /// Exchange lines are written by hand, in the shape of all other lines.
    by_hand: bool,
    /// Exchange lines are wanted at all.
    lines: bool,
    traces: Option<trace::Traces>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Telemetry")
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Outcome {
    /// The whole answer was passed on, whatever its status.
    Whole,
    /// The client went away.
    Cancelled,
    /// The answer was cut.
    Broken,
    /// This network refused it.
    Refused,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Whole, Self::Cancelled, Self::Broken, Self::Refused];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Cancelled => "cancelled",
            Self::Broken => "broken",
            Self::Refused => "refused",
        }
    }
}

/// One exchange that has ended, as log and metrics tell it. Texts that are not known are empty.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// As what this node took part.
    pub role: Role,
    /// Which.
    pub exchange: ExchangeId,
    /// Id of the key, never its secret.
    pub key: &'a str,
    /// Who pays.
    pub account: &'a str,
    /// What the client called the model.
    pub model: &'a str,
    /// Name in proto's operation table.
    pub operation: &'a str,
    /// Node that called the provider.
    pub egress: &'a str,
    /// Provider that answered.
    pub upstream: &'a str,
    /// Credential that was used: its name.
    pub credential: &'a str,
    /// How many tries there were.
    pub attempts: u32,
    /// HTTP status of the answer.
    pub status: u16,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// Bytes of the answer's body.
    pub response_bytes: u64,
    /// Until the answer's first byte.
    pub first_byte: Option<Duration>,
    /// Until its end.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Name in proto's refusal table, or why an answer was cut.
    pub reason: &'a str,
    /// What was consumed, where the provider said so.
    pub usage: Option<&'a Usage>,
}

/// One passage of an exchange over a relay that has ended, as log and metrics tell it.
#[derive(Clone, Copy, Debug)]
pub struct Passage<'a> {
    /// Of which exchange.
    pub exchange: ExchangeId,
    /// Node that it came from.
    pub from: &'a str,
    /// Node that it was passed on to; empty when it was not.
    pub to: &'a str,
    /// Bytes of the tunnel passed on.
    pub bytes_on: u64,
    /// Bytes of the tunnel passed back.
    pub bytes_back: u64,
    /// Until its end.
    pub duration: Duration,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where there is more to say.
    pub reason: &'a str,
}

/// Writes what is left when the process ends. Keep it until then.
#[derive(Debug)]
pub struct Flush(Telemetry);

impl Drop for Flush {
    fn drop(&mut self) {
        if let Some(traces) = &self.0.0.traces {
            traces.flush();
        }
        self.0.0.writer.flush();
    }
}

impl Telemetry {
    /// Takes over this process's log. Needs a runtime when traces are wanted.
    ///
    /// # Errors
    /// [`Error`], with the setting that is at fault.
    pub fn start(config: &config::Telemetry) -> Result<(Self, Flush), Error> {
        let metrics = Metrics::new();
        let writer = Writer::start(Box::new(io::stderr()), metrics.lines_dropped.clone())?;
        let traces = config
            .otlp
            .as_deref()
            .map(trace::Traces::start)
            .transpose()?;
        let lines = wants_exchanges(&config.log)?;
        let filter = events_of(&config.log)?;
        let general = tracing_subscriber::fmt::layer().with_writer(writer.clone());
        let general = match config.format {
            Format::Json => general
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_filter(filter)
                .boxed(),
            Format::Text => general.with_ansi(false).with_filter(filter).boxed(),
        };
        let spans = traces.as_ref().map(trace::Traces::layer);
        tracing_subscriber::registry()
            .with(spans)
            .with(general)
            .try_init()?;
        let telemetry = Self(Arc::new(Inner {
            metrics,
            writer,
            by_hand: config.format == Format::Json,
            lines,
            traces,
        }));
        Ok((telemetry.clone(), Flush(telemetry)))
    }

    /// Counts, but writes nothing: for tests.
    #[must_use]
    pub fn silent() -> Self {
        let metrics = Metrics::new();
        Self(Arc::new(Inner {
            metrics,
            writer: Writer::nowhere(),
            by_hand: true,
            lines: false,
            traces: None,
        }))
    }

    /// Shows how full the disk of this folder is.
    pub fn watch_disk(&self, folder: PathBuf) {
        self.0.metrics.watch_disk(folder);
    }

    /// Left and whole size of the file system that a folder lies on; 0 where nobody knows.
    #[must_use]
    pub fn disk(folder: &Path) -> (u64, u64) {
        process::disk(folder)
    }

    /// Counts an exchange as running until the value is dropped.
    #[must_use]
    pub fn exchange_started(&self, role: Role) -> InFlight {
        self.0.metrics.in_flight(role)
    }

    /// How many exchanges run now as this role.
    #[must_use]
    pub fn running(&self, role: Role) -> u64 {
        self.0.metrics.running(role)
    }

    /// The one line of an exchange's end, and everything that is counted of it.
    pub fn exchange_ended(&self, ended: &Exchange<'_>) {
        self.0.metrics.exchange(ended);
        if !self.0.lines {
            return;
        }
        if self.0.by_hand {
            line::write(ended, std::time::SystemTime::now(), &self.0.writer);
        } else {
            line::event(ended);
        }
    }

    /// The one line of a passage's end, and everything that is counted of it.
    pub fn passage_ended(&self, ended: &Passage<'_>) {
        self.0.metrics.passage(ended);
        if !self.0.lines {
            return;
        }
        if self.0.by_hand {
            line::write_passage(ended, std::time::SystemTime::now(), &self.0.writer);
        } else {
            line::passage_event(ended);
        }
    }

    /// Models that may label metrics by name; all others are `other`. Called with every snapshot.
    pub fn name_models<'a>(&self, models: impl Iterator<Item = &'a str>) {
        self.0.metrics.name_models(models);
    }

    /// The series of one link. Keep it: making it takes a lock, using it does not.
    #[must_use]
    pub fn link(&self, peer: &str, address: &str, local: &str) -> LinkSeries {
        self.0.metrics.link(peer, address, local)
    }

    /// Adds a metric of a room's own. The name gets `vector_` in front.
    pub fn register(&self, name: &str, help: &str, metric: impl Metric) {
        self.0.metrics.register(name, help, metric);
    }

    /// All metrics, as Prometheus reads them.
    #[must_use]
    pub fn metrics(&self) -> String {
        self.0.metrics.text()
    }

    /// A span `exchange.ingress`, `exchange.relay` or `exchange.egress` below the one that
    /// `traceparent` names. Costs nothing while traces are off.
    #[must_use]
    pub fn span(&self, role: Role, exchange: ExchangeId, traceparent: &str) -> tracing::Span {
        match &self.0.traces {
            None => tracing::Span::none(),
            Some(_) => trace::span(role, exchange, traceparent),
        }
    }

    /// What to send on so that the next node's span stands below this one. While traces are off,
    /// the client's own context is passed on as it came.
    #[must_use]
    pub fn traceparent(&self, span: &tracing::Span, came: &str) -> String {
        match &self.0.traces {
            None => came.to_owned(),
            Some(_) => trace::traceparent(span).unwrap_or_else(|| came.to_owned()),
        }
    }
}

/// Events as the operator wants them, and no spans: those are for traces.
///
/// Without a hint of its own the second filter would take that of the first away, and every trace span of quinn and h2
/// would be made.
fn events_of<S: tracing::Subscriber>(log: &str) -> Result<impl Filter<S> + use<S>, Error> {
    let events = filter_fn(|about| about.is_event()).with_max_level_hint(LevelFilter::TRACE);
    Ok(FilterExt::<S>::and(EnvFilter::try_new(log)?, events))
}

/// Whether the filter lets the lines of exchanges through.
///
/// Asked of a subscriber of its own: asking the real one, whose layers have filters of their own,
/// would make it swallow the next event.
fn wants_exchanges(log: &str) -> Result<bool, Error> {
    let asked = tracing_subscriber::registry().with(EnvFilter::try_new(log)?);
    Ok(tracing::subscriber::with_default(
        asked,
        || tracing::enabled!(target: EXCHANGE, tracing::Level::INFO),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_logged_is_not_even_made() {
        let filter = events_of::<tracing_subscriber::Registry>("info,h2=warn").unwrap();
        assert_eq!(filter.max_level_hint(), Some(LevelFilter::INFO));
    }

    #[test]
    fn the_filter_decides_on_exchanges_too() {
        for (log, wanted) in [
            ("info", true),
            ("debug", true),
            ("warn", false),
            ("warn,vector_edge::exchange=info", true),
            ("info,vector_edge::exchange=off", false),
        ] {
            assert_eq!(wants_exchanges(log).unwrap(), wanted, "{log}");
        }
        assert!(wants_exchanges("=,=").is_err());
    }
}
