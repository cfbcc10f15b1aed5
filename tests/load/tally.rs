//! What a run counts: answers, their delays, errors by kind.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::wire::Fault;

/// Delays from 1 µs to 10 minutes, to three digits.
const LOW_NS: u64 = 1_000;
const HIGH_NS: u64 = 600_000_000_000;
const DIGITS: u8 = 3;

/// Delays of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Delays(Histogram<u64>);

impl Delays {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(LOW_NS, HIGH_NS, DIGITS)?))
    }

    pub(crate) fn add(&mut self, delay: Duration) {
        self.add_ns(u64::try_from(delay.as_nanos()).unwrap_or(HIGH_NS));
    }

    pub(crate) fn add_ns(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    pub(crate) fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        Ok(self.0.add(&other.0)?)
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// Percentiles in microseconds.
    pub(crate) fn show(&self) -> Value {
        let at = |quantile: f64| micros(self.0.value_at_quantile(quantile));
        json!({
            "count": self.0.len(),
            "p50_us": at(0.5),
            "p90_us": at(0.9),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": micros(self.0.max()),
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures for people, far below 2^53"
)]
fn micros(ns: u64) -> f64 {
    (ns / 100) as f64 / 10.0
}

/// Answers and errors.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) delays: Delays,
    errors: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            delays: Delays::new()?,
            errors: BTreeMap::new(),
        })
    }

    pub(crate) fn answer(&mut self, delay: Duration) {
        self.delays.add(delay);
    }

    pub(crate) fn error(&mut self, fault: &Fault) {
        *self.errors.entry(fault.kind()).or_default() += 1;
    }

    pub(crate) fn merge(&mut self, other: &Self) -> anyhow::Result<()> {
        self.delays.merge(&other.delays)?;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        Ok(())
    }

    pub(crate) fn errors(&self) -> Value {
        json!({"errors": self.errors.values().sum::<u64>(), "error_kinds": self.errors})
    }
}
