//! What one exchange came to: filled in along the road, told once at its end.
//!
//! The one line that the log has of every exchange, and the metrics, come from here and nowhere else. Content, keys and
//! addresses of clients never get in. A record that is dropped untold belongs to a client that went away.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use vector_proto::{control::v1::KeyPolicy, id::ExchangeId, refusal::Code, tunnel::v1};

use super::route::Target;
use crate::{
    config::Role,
    telemetry::{Exchange, InFlight, Telemetry},
};

pub(super) use crate::telemetry::Outcome;

/// One exchange. See the module's head.
#[derive(Debug)]
pub(super) struct Record {
    telemetry: Telemetry,
    pub(super) id: ExchangeId,
    pub(super) start: Instant,
    pub(super) operation: &'static str,
    pub(super) policy: Option<Arc<KeyPolicy>>,
    pub(super) model: Option<Box<str>>,
    pub(super) provider: Option<Arc<str>>,
    /// Which of the target's upstreams that is.
    pub(super) upstream: usize,
    pub(super) egress: Option<Arc<str>>,
    pub(super) credential: String,
    pub(super) attempts: u32,
    pub(super) status: u16,
    pub(super) code: Option<Code>,
    pub(super) request_bytes: u64,
    pub(super) response_bytes: u64,
    pub(super) first_byte: Option<Duration>,
    /// The exchange whose answer is given again here.
    pub(super) replays: Option<ExchangeId>,
    /// The client is a page in a browser.
    pub(super) browser: bool,
    pub(super) usage: Option<v1::Usage>,
    /// Why the answer was cut.
    pub(super) broken: Option<Box<str>>,
    told: bool,
    /// Stands for the exchange in traces, while those are on.
    pub(super) span: tracing::Span,
    _running: InFlight,
}

impl Record {
    pub(super) fn new(telemetry: Telemetry, start: Instant) -> Self {
        let running = telemetry.exchange_started(Role::Ingress);
        Self {
            telemetry,
            id: ExchangeId::fresh(),
            start,
            operation: "none",
            policy: None,
            model: None,
            provider: None,
            upstream: 0,
            egress: None,
            credential: String::new(),
            attempts: 0,
            status: 0,
            code: None,
            request_bytes: 0,
            response_bytes: 0,
            first_byte: None,
            replays: None,
            browser: false,
            usage: None,
            broken: None,
            told: false,
            span: tracing::Span::none(),
            _running: running,
        }
    }

    /// A call that names no model is of that of the object it is about, as is what it makes of that.
    pub(super) fn is_about(&mut self, target: &Target) {
        if let (None, Some(names)) = (&self.model, &target.names) {
            self.model = Some(names.public.clone());
        }
    }

    /// Begins the exchange's span below the client's own, and returns what the next node's is to stand below.
    pub(super) fn trace(&mut self, came: &str) -> String {
        self.span = self.telemetry.span(Role::Ingress, self.id, came);
        self.telemetry.traceparent(&self.span, came)
    }

    /// Marks the first byte of the answer, once.
    pub(super) fn saw_first_byte(&mut self) {
        if self.first_byte.is_none() {
            self.first_byte = Some(self.start.elapsed());
        }
    }

    /// The end: to the log and the metrics, once.
    pub(super) fn tell(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let policy = self.policy.as_deref();
        let code = self.code.map_or("", |code| code.verdict().code);
        self.telemetry.exchange_ended(&Exchange {
            role: Role::Ingress,
            exchange: self.id,
            key: policy.map_or("", |policy| &policy.key),
            account: policy.map_or("", |policy| &policy.account),
            model: self.model.as_deref().unwrap_or_default(),
            operation: self.operation,
            egress: self.egress.as_deref().unwrap_or_default(),
            upstream: self.provider.as_deref().unwrap_or_default(),
            credential: &self.credential,
            attempts: self.attempts,
            status: self.status,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            first_byte: self.first_byte,
            duration: self.start.elapsed(),
            outcome,
            reason: self.broken.as_deref().unwrap_or(code),
            usage: self.usage.as_ref(),
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.status == 0 {
            self.status = Code::Cancelled.verdict().status;
        }
        self.tell(Outcome::Cancelled);
    }
}
