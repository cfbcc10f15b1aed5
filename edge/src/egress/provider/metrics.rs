//! What is counted about calls to providers.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

use crate::telemetry::Telemetry;

/// Upper bounds in seconds of the time to the first byte: models answer between 50 ms and minutes.
const FIRST_BYTE_BOUNDS: [f64; 13] = [
    0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 120.0,
];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByProvider {
    provider: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByStatus {
    provider: String,
    status: u16,
}

type Histograms = Family<ByProvider, Histogram, fn() -> Histogram>;

/// The metrics of all providers.
#[derive(Clone, Debug)]
pub struct Metrics {
    opened: Family<ByProvider, Counter>,
    reused: Family<ByProvider, Counter>,
    answers: Family<ByStatus, Counter>,
    first_byte: Histograms,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            opened: Family::default(),
            reused: Family::default(),
            answers: Family::default(),
            first_byte: Family::new_with_constructor(|| Histogram::new(FIRST_BYTE_BOUNDS)),
        }
    }
}

impl Metrics {
    /// Makes the metrics visible.
    pub fn register(&self, telemetry: &Telemetry) {
        telemetry.register(
            "provider_connections_opened",
            "Connections made to a provider",
            self.opened.clone(),
        );
        telemetry.register(
            "provider_connections_reused",
            "Exchanges that found a warm connection to their provider",
            self.reused.clone(),
        );
        telemetry.register(
            "provider_answers",
            "Answers of a provider by status; 0: none came",
            self.answers.clone(),
        );
        telemetry.register(
            "provider_first_byte_seconds",
            "Time from a call's start to the head of its answer",
            self.first_byte.clone(),
        );
    }

    /// The counters of one provider, looked up once.
    pub(super) fn of(&self, provider: &str) -> Counters {
        let by = ByProvider {
            provider: provider.to_owned(),
        };
        let ok = ByStatus {
            provider: provider.to_owned(),
            status: 200,
        };
        Counters {
            opened: self.opened.get_or_create(&by).clone(),
            reused: self.reused.get_or_create(&by).clone(),
            ok: self.answers.get_or_create(&ok).clone(),
            first_byte: self.first_byte.get_or_create(&by).clone(),
            answers: self.answers.clone(),
            provider: provider.to_owned(),
        }
    }
}

/// The counters of one provider.
#[derive(Clone, Debug)]
pub struct Counters {
    pub(super) opened: Counter,
    pub(super) reused: Counter,
    ok: Counter,
    first_byte: Histogram,
    answers: Family<ByStatus, Counter>,
    provider: String,
}

impl Counters {
    /// Counts an answer's head; status 0 for none.
    pub fn answered(&self, status: u16, after: Duration) {
        if status == 200 {
            self.ok.inc();
        } else {
            let provider = self.provider.clone();
            self.answers
                .get_or_create(&ByStatus { provider, status })
                .inc();
        }
        if status != 0 {
            self.first_byte.observe(after.as_secs_f64());
        }
    }
}
