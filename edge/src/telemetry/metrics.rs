//! What is counted, under OpenTelemetry's GenAI names where it has one and `vector_…` elsewhere.
//!
//! A label never takes a value that a stranger chose: models are named only when a snapshot
//! names them, and the number of series is bounded. Finding an exchange's series is two look-ups
//! under a read lock; using one is a few atomics.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Metric, Registry},
};

mod call;

use self::call::{CallLabels, DurationLabels, ErrorType, TokenLabels, gen_ai_operation};
use super::{Exchange, Outcome, Passage, process::Process};
use crate::config::Role;
use crate::lookup::HashMap;

/// Calls (an operation with a model of a provider) that get series of their own; all others share one.
/// 2,000 calls x 2 roles x about 4 KiB = 16 MiB at the worst, and as much again where each fails in every way.
const CALLS_MAX: usize = 2_000;

/// Ways to fail that get series of their own, for each call.
const ERRORS_MAX: usize = 8;

/// Stands for every operation, model or provider that has no series of its own.
const OTHER: &str = "other";

/// Stands for every operation at a relay.
const PASSAGE: &str = "passage";

/// Seconds, as OpenTelemetry's GenAI conventions want them.
const DURATION_S: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 20.48, 81.92,
    327.68,
];

/// Tokens, as the same conventions want them.
const TOKENS: [f64; 10] = [
    1.0,
    16.0,
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
];

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabels {
    role: &'static str,
    operation: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct RoleLabels {
    role: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LinkLabels {
    peer: String,
    address: String,
    local: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct HeartbeatLabels {
    peer: String,
    address: String,
    local: String,
    direction: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that one call counts, found once for each exchange.
#[derive(Debug)]
struct Series {
    call: CallLabels,
    duration: Histogram,
    /// Durations of those that failed.
    failed: RwLock<Vec<(ErrorType, Histogram)>>,
    first_byte: Histogram,
    input_tokens: Histogram,
    output_tokens: Histogram,
    outcomes: [Counter; 4],
}

/// Provider and series, below model, below operation. A model has few providers.
type Found = HashMap<Box<str>, HashMap<Box<str>, Vec<(Box<str>, Arc<Series>)>>>;

pub(super) struct Metrics {
    registry: Mutex<Registry>,
    process: Process,
    pub(super) lines_dropped: Counter,
    exchanges: Family<OutcomeLabels, Counter>,
    passages: [Counter; 4],
    running: Family<RoleLabels, Gauge>,
    running_as: [Gauge; 3],
    duration: Histograms<DurationLabels>,
    first_byte: Histograms<CallLabels>,
    tokens: Histograms<TokenLabels>,
    found: [RwLock<Found>; 3],
    named: RwLock<HashSet<Box<str>>>,
    link_up: Family<LinkLabels, Gauge>,
    link_rtt: Family<LinkLabels, Gauge<f64, AtomicU64>>,
    link_sent: Family<LinkLabels, Counter>,
    link_lost: Family<LinkLabels, Counter>,
    link_state: Family<LinkLabels, Gauge>,
    link_flaps: Family<LinkLabels, Counter>,
    link_delivery: Family<LinkLabels, Gauge>,
    heartbeats: Family<HeartbeatLabels, Counter>,
    heartbeat_loss: Family<HeartbeatLabels, Gauge<f64, AtomicU64>>,
}

/// An exchange that runs. Dropped, it no longer counts.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The series of one link.
#[derive(Clone, Debug)]
pub struct LinkSeries {
    /// 1 while the link is up.
    pub up: Gauge,
    /// Smoothed round trip in seconds.
    pub rtt: Gauge<f64, AtomicU64>,
    /// Packets sent.
    pub sent: Counter,
    /// Packets lost.
    pub lost: Counter,
    /// 0 up, 1 suspect, 2 down, 3 draining.
    pub state: Gauge,
    /// Times that the path went down.
    pub flaps: Counter,
    /// Bytes a second that the path was seen to carry towards the peer.
    pub delivery: Gauge,
    /// Heartbeats sent and heard.
    pub heartbeats: [Counter; 2],
    /// Share of heartbeats lost on the way out and in.
    pub heartbeat_loss: [Gauge<f64, AtomicU64>; 2],
}

const fn place(role: Role) -> usize {
    match role {
        Role::Ingress => 0,
        Role::Relay => 1,
        Role::Egress => 2,
    }
}

const fn outcome_place(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Whole => 0,
        Outcome::Cancelled => 1,
        Outcome::Broken => 2,
        Outcome::Refused => 3,
    }
}

impl Metrics {
    pub(super) fn new() -> Self {
        let running = Family::<RoleLabels, Gauge>::default();
        let running_as = [Role::Ingress, Role::Relay, Role::Egress].map(|role| {
            running.get_or_create_owned(&RoleLabels {
                role: role.as_str(),
            })
        });
        let exchanges = Family::<OutcomeLabels, Counter>::default();
        let passages = Outcome::ALL.map(|outcome| {
            exchanges.get_or_create_owned(&OutcomeLabels {
                role: Role::Relay.as_str(),
                operation: PASSAGE.to_owned(),
                outcome: outcome.as_str(),
            })
        });
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            process: Process::default(),
            lines_dropped: Counter::default(),
            exchanges,
            passages,
            running,
            running_as,
            duration: Family::new_with_constructor(|| Histogram::new(DURATION_S)),
            first_byte: Family::new_with_constructor(|| Histogram::new(DURATION_S)),
            tokens: Family::new_with_constructor(|| Histogram::new(TOKENS)),
            found: std::array::from_fn(|_| RwLock::default()),
            named: RwLock::default(),
            link_up: Family::default(),
            link_rtt: Family::default(),
            link_sent: Family::default(),
            link_lost: Family::default(),
            link_state: Family::default(),
            link_flaps: Family::default(),
            link_delivery: Family::default(),
            heartbeats: Family::default(),
            heartbeat_loss: Family::default(),
        };
        metrics.register_all();
        metrics
    }

    fn register_all(&self) {
        let mut registry = self.registry.lock();
        let all = &mut *registry;
        all.register(
            "gen_ai_server_request_duration_seconds",
            "Duration of exchanges",
            self.duration.clone(),
        );
        all.register(
            "gen_ai_server_time_to_first_token_seconds",
            "Time to an answer's first byte",
            self.first_byte.clone(),
        );
        all.register(
            "gen_ai_client_token_usage",
            "Tokens of an exchange, as the provider reported them",
            self.tokens.clone(),
        );
        all.register(
            "vector_exchanges",
            "Exchanges that have ended",
            self.exchanges.clone(),
        );
        all.register(
            "vector_exchanges_in_flight",
            "Exchanges that run",
            self.running.clone(),
        );
        self.register_links(all);
        all.register(
            "vector_log_lines_dropped",
            "Log lines that did not fit",
            self.lines_dropped.clone(),
        );
        self.process.register(all);
    }

    fn register_links(&self, all: &mut Registry) {
        all.register(
            "vector_link_up",
            "1 while a link is up",
            self.link_up.clone(),
        );
        all.register(
            "vector_link_rtt_seconds",
            "Round trip of a link",
            self.link_rtt.clone(),
        );
        all.register(
            "vector_link_packets_sent",
            "Packets sent on a link",
            self.link_sent.clone(),
        );
        all.register(
            "vector_link_packets_lost",
            "Packets lost on a link",
            self.link_lost.clone(),
        );
        all.register(
            "vector_link_state",
            "0 up, 1 suspect, 2 down, 3 draining",
            self.link_state.clone(),
        );
        all.register(
            "vector_link_flaps",
            "Times that a link's path went down",
            self.link_flaps.clone(),
        );
        all.register(
            "vector_link_delivery_bytes_per_second",
            "The most that a link's path was seen to carry towards the peer lately",
            self.link_delivery.clone(),
        );
        all.register(
            "vector_link_heartbeats",
            "Heartbeats sent (out) and heard (in) beside a link",
            self.heartbeats.clone(),
        );
        all.register(
            "vector_link_heartbeat_loss_ratio",
            "Share of recent heartbeats that were lost on the way",
            self.heartbeat_loss.clone(),
        );
    }

    pub(super) fn register(&self, name: &str, help: &str, metric: impl Metric) {
        let name = format!("vector_{name}");
        self.registry.lock().register(name, help, metric);
    }

    pub(super) fn in_flight(&self, role: Role) -> InFlight {
        let gauge = self.running_as[place(role)].clone();
        gauge.inc();
        InFlight(gauge)
    }

    pub(super) fn running(&self, role: Role) -> u64 {
        u64::try_from(self.running_as[place(role)].get()).unwrap_or_default()
    }

    pub(super) fn exchange(&self, ended: &Exchange<'_>) {
        let series = self.series(ended);
        series.outcomes[outcome_place(ended.outcome)].inc();
        let seconds = ended.duration.as_secs_f64();
        match ErrorType::of(ended) {
            ErrorType::None => series.duration.observe(seconds),
            error => self.failed(&series, error, seconds),
        }
        if let Some(first_byte) = ended.first_byte {
            series
                .first_byte
                .observe(Duration::as_secs_f64(&first_byte));
        }
        let reported = ended.usage.filter(|usage| usage.reported);
        if let (Role::Egress, Some(usage)) = (ended.role, reported) {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a histogram of tokens may round above 2^53"
            )]
            let counts = (usage.input_tokens as f64, usage.output_tokens as f64);
            series.input_tokens.observe(counts.0);
            series.output_tokens.observe(counts.1);
        }
    }

    /// A passage counts among the exchanges of its role; its operation is nothing that a relay looks at.
    pub(super) fn passage(&self, ended: &Passage<'_>) {
        self.passages[outcome_place(ended.outcome)].inc();
    }

    pub(super) fn name_models<'a>(&self, models: impl Iterator<Item = &'a str>) {
        let named: HashSet<Box<str>> = models.take(CALLS_MAX).map(Box::from).collect();
        *self.named.write() = named;
    }

    pub(super) fn link(&self, peer: &str, address: &str, local: &str) -> LinkSeries {
        let labels = LinkLabels {
            peer: peer.to_owned(),
            address: address.to_owned(),
            local: local.to_owned(),
        };
        let of = |direction| HeartbeatLabels {
            peer: peer.to_owned(),
            address: address.to_owned(),
            local: local.to_owned(),
            direction,
        };
        let ways = [of("out"), of("in")];
        LinkSeries {
            state: self.link_state.get_or_create_owned(&labels),
            flaps: self.link_flaps.get_or_create_owned(&labels),
            delivery: self.link_delivery.get_or_create_owned(&labels),
            heartbeats: ways
                .each_ref()
                .map(|way| self.heartbeats.get_or_create_owned(way)),
            heartbeat_loss: ways
                .each_ref()
                .map(|way| self.heartbeat_loss.get_or_create_owned(way)),
            up: self.link_up.get_or_create_owned(&labels),
            rtt: self.link_rtt.get_or_create_owned(&labels),
            sent: self.link_sent.get_or_create_owned(&labels),
            lost: self.link_lost.get_or_create_owned(&labels),
        }
    }

    pub(super) fn watch_disk(&self, folder: std::path::PathBuf) {
        self.process.watch_disk(folder);
    }

    pub(super) fn text(&self) -> String {
        self.process.look();
        let mut text = String::new();
        let registry = self.registry.lock();
        // Writing to a text cannot fail.
        let _infallible = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }

    /// The duration of one that failed.
    fn failed(&self, series: &Series, error: ErrorType, seconds: f64) {
        let of = |failed: &[(ErrorType, Histogram)], error| {
            let found = failed.iter().find(|(known, _)| *known == error);
            found.map(|(_, duration)| duration.clone())
        };
        if let Some(duration) = of(&series.failed.read(), error) {
            return duration.observe(seconds);
        }
        let mut failed = series.failed.write();
        let error = if failed.len() < ERRORS_MAX {
            error
        } else {
            ErrorType::Other
        };
        let duration = of(&failed, error).unwrap_or_else(|| {
            let labels = DurationLabels::of(&series.call, error);
            let duration = self.duration.get_or_create_owned(&labels);
            failed.push((error, duration.clone()));
            duration
        });
        duration.observe(seconds);
    }

    fn series(&self, ended: &Exchange<'_>) -> Arc<Series> {
        let (role, operation, provider) = (ended.role, ended.operation, ended.upstream);
        let found = &self.found[place(role)];
        let look = |found: &Found, model: &str| {
            let providers = found.get(operation)?.get(model)?;
            let (_, series) = providers.iter().find(|(name, _)| **name == *provider)?;
            Some(Arc::clone(series))
        };
        let model = ended.model;
        if let Some(series) = look(&found.read(), model) {
            return series;
        }
        let named = model.is_empty() || self.named.read().contains(model);
        let model = if named { model } else { OTHER };
        if let Some(series) = look(&found.read(), model) {
            return series;
        }
        let mut found = found.write();
        let calls = found
            .values()
            .flat_map(HashMap::values)
            .map(Vec::len)
            .sum::<usize>();
        let (operation, model, provider) = if calls < CALLS_MAX {
            (operation, model, provider)
        } else {
            (OTHER, OTHER, OTHER)
        };
        let below = found.entry(operation.into()).or_default();
        let providers = below.entry(model.into()).or_default();
        if let Some((_, series)) = providers.iter().find(|(name, _)| **name == *provider) {
            return Arc::clone(series);
        }
        let series = Arc::new(self.make(CallLabels {
            role: role.as_str(),
            gen_ai_operation_name: gen_ai_operation(operation).to_owned(),
            vector_operation: operation.to_owned(),
            gen_ai_provider_name: provider.to_owned(),
            gen_ai_request_model: model.to_owned(),
        }));
        providers.push((provider.into(), Arc::clone(&series)));
        series
    }

    fn make(&self, call: CallLabels) -> Series {
        let tokens = |kind| {
            self.tokens.get_or_create_owned(&TokenLabels {
                gen_ai_operation_name: call.gen_ai_operation_name.clone(),
                vector_operation: call.vector_operation.clone(),
                gen_ai_provider_name: call.gen_ai_provider_name.clone(),
                gen_ai_request_model: call.gen_ai_request_model.clone(),
                gen_ai_token_type: kind,
            })
        };
        let duration = DurationLabels::of(&call, ErrorType::None);
        Series {
            duration: self.duration.get_or_create_owned(&duration),
            failed: RwLock::default(),
            first_byte: self.first_byte.get_or_create_owned(&call),
            input_tokens: tokens("input"),
            output_tokens: tokens("output"),
            outcomes: Outcome::ALL.map(|outcome| {
                self.exchanges.get_or_create_owned(&OutcomeLabels {
                    role: call.role,
                    operation: call.vector_operation.clone(),
                    outcome: outcome.as_str(),
                })
            }),
            call,
        }
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::{id::ExchangeId, tunnel::v1::Usage};

    use super::*;

    fn end(metrics: &Metrics, model: &str) {
        end_with(metrics, model, (200, Outcome::Whole));
    }

    fn end_with(metrics: &Metrics, model: &str, (status, outcome): (u16, Outcome)) {
        let usage = Usage {
            input_tokens: 7,
            output_tokens: 9,
            reported: true,
            ..Usage::default()
        };
        metrics.exchange(&Exchange {
            role: Role::Egress,
            exchange: ExchangeId::fresh(),
            key: "",
            account: "",
            model,
            operation: "chat.completions.create",
            egress: "",
            upstream: "openai",
            credential: "",
            attempts: 1,
            status,
            request_bytes: 0,
            response_bytes: 0,
            first_byte: None,
            duration: Duration::from_millis(3),
            outcome,
            reason: "",
            usage: Some(&usage),
        });
    }

    #[test]
    fn calls_have_the_conventions_labels() {
        let metrics = Metrics::new();
        metrics.name_models(["gpt-known"].into_iter());
        end(&metrics, "gpt-known");
        end_with(&metrics, "gpt-known", (429, Outcome::Refused));
        end_with(&metrics, "gpt-known", (200, Outcome::Broken));
        for status in 500..600 {
            end_with(&metrics, "gpt-known", (status, Outcome::Whole));
        }
        let text = metrics.text();
        let call = r#"gen_ai_operation_name="chat",vector_operation="chat.completions.create",gen_ai_provider_name="openai",gen_ai_request_model="gpt-known""#;
        let duration = |error: &str, count: u32| {
            format!(
                r#"gen_ai_server_request_duration_seconds_count{{role="egress",{call},error_type="{error}"}} {count}"#
            )
        };
        for wanted in [
            format!(r#"gen_ai_client_token_usage_count{{{call},gen_ai_token_type="output"}} 103"#),
            duration("", 1),
            duration("429", 1),
            duration("broken", 1),
            duration("505", 1),
            duration("_OTHER", 94),
        ] {
            assert!(text.contains(&wanted), "{wanted} in {text}");
        }
        assert_eq!(text.matches("_seconds_count{").count(), 10 + 1, "{text}");
        let operations = ["completions.create", "embeddings.create", "images.generate"];
        let named = operations.map(gen_ai_operation);
        assert_eq!(named, ["text_completion", "embeddings", "images.generate"]);
    }

    #[test]
    fn strangers_do_not_make_series() {
        let metrics = Metrics::new();
        metrics.name_models(["gpt-known"].into_iter());
        end(&metrics, "gpt-known");
        for number in 0..100 {
            end(&metrics, &format!("nonsense-{number}"));
        }
        let running = metrics.in_flight(Role::Ingress);
        let text = metrics.text();
        for wanted in [
            r#"vector_exchanges_total{role="egress",operation="chat.completions.create",outcome="whole"} 101"#,
            r#"gen_ai_request_model="gpt-known",error_type=""} 1"#,
            r#"gen_ai_request_model="other",error_type=""} 100"#,
            r#"vector_exchanges_in_flight{role="ingress"} 1"#,
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(wanted), "{wanted} in {text}");
        }
        assert!(!text.contains("nonsense"));
        drop(running);
        assert!(
            metrics
                .text()
                .contains(r#"vector_exchanges_in_flight{role="ingress"} 0"#)
        );
    }
}
