//! Logs and metrics of the control plane. Neither ever holds a secret, a key's text or a token.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::LogFormat;

/// Why logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is not one.
    #[error("telemetry.log: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody else logs already.
    #[error("logging cannot begin: {0}")]
    Begun(#[from] tracing_subscriber::util::TryInitError),
}

/// Begins to log to standard error.
///
/// # Errors
/// When `filter` is not one, or logging has begun already.
pub fn log(filter: &str, format: LogFormat) -> Result<(), Error> {
    let filter: EnvFilter = filter.parse()?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text => lines.boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()?;
    Ok(())
}

/// What an admission or a query ended in.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Outcome {
    /// `granted`, or the refusal's code; of a query, what became of it.
    pub outcome: String,
}

/// What signs certificates.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct Signer {
    /// `root` or `intermediate`.
    pub certificate: &'static str,
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Connections open now.
    pub connections: Gauge,
    /// TLS handshakes that failed.
    pub handshakes_failed: Counter,
    /// Nodes with a stream open now.
    pub nodes_connected: Gauge,
    /// Revision of the snapshot in force.
    pub snapshot_revision: Gauge<u64, AtomicU64>,
    /// Bytes of the snapshot in force.
    pub snapshot_bytes: Gauge,
    /// Time to compile and keep a snapshot.
    pub publish_seconds: Histogram,
    /// Snapshots that a node refused.
    pub snapshots_rejected: Counter,
    /// Changes that this replica rolled back because of what canaries said.
    pub changes_rolled_back: Counter,
    /// Keys asked for.
    pub admissions: Family<Outcome, Counter>,
    /// Usage records received, repeated ones included.
    pub usage_records: Counter,
    /// Nodes enrolled.
    pub enrolments: Counter,
    /// Queries for the zone.
    pub dns_queries: Family<Outcome, Counter>,
    /// When what signs certificates ends, in seconds since 1970.
    pub ca_ends: Family<Signer, Gauge<u64, AtomicU64>>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut all = Self {
            registry: Registry::default(),
            connections: Gauge::default(),
            handshakes_failed: Counter::default(),
            nodes_connected: Gauge::default(),
            snapshot_revision: Gauge::default(),
            snapshot_bytes: Gauge::default(),
            publish_seconds: Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0]),
            snapshots_rejected: Counter::default(),
            changes_rolled_back: Counter::default(),
            admissions: Family::default(),
            usage_records: Counter::default(),
            enrolments: Counter::default(),
            dns_queries: Family::default(),
            ca_ends: Family::default(),
        };
        all.registry = all.named();
        all
    }
}

impl Metrics {
    fn named(&self) -> Registry {
        let mut names = Registry::with_prefix("vector_control");
        names.register(
            "connections",
            "Connections open now",
            self.connections.clone(),
        );
        names.register(
            "handshakes_failed",
            "TLS handshakes that failed",
            self.handshakes_failed.clone(),
        );
        names.register(
            "nodes_connected",
            "Nodes with a stream open now",
            self.nodes_connected.clone(),
        );
        names.register(
            "snapshot_revision",
            "Revision of the snapshot in force",
            self.snapshot_revision.clone(),
        );
        names.register(
            "snapshot_bytes",
            "Size of the snapshot in force",
            self.snapshot_bytes.clone(),
        );
        names.register(
            "publish_seconds",
            "Time to compile and keep a snapshot",
            self.publish_seconds.clone(),
        );
        names.register(
            "snapshots_rejected",
            "Snapshots that a node refused",
            self.snapshots_rejected.clone(),
        );
        names.register(
            "changes_rolled_back",
            "Changes that canaries spoke against",
            self.changes_rolled_back.clone(),
        );
        names.register(
            "admissions",
            "Keys asked for, by outcome",
            self.admissions.clone(),
        );
        names.register(
            "usage_records",
            "Usage records received, repeated ones included",
            self.usage_records.clone(),
        );
        names.register("enrolments", "Nodes enrolled", self.enrolments.clone());
        names.register(
            "dns_queries",
            "Queries for the zone, by outcome",
            self.dns_queries.clone(),
        );
        names.register(
            "ca_ends_seconds",
            "End of what signs certificates, since 1970",
            self.ca_ends.clone(),
        );
        names
    }
}

impl Metrics {
    /// The text that Prometheus reads.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
