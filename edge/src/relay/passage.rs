//! What one passage of an exchange came to: told once, at its end.
//!
//! An exchange that is moved, hedged or doubled may pass a relay more than once; each passage has its line. What of it a relay
//! knows is where it came from, where it went, and how many bytes that was: it opens no body frame.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use prometheus_client::metrics::{counter::Counter, family::Family};
use tracing::Span;
use vector_proto::id::ExchangeId;

use super::Relay;
use crate::{
    config::Role,
    telemetry::{self, InFlight, Outcome, Telemetry},
    tunnel::{
        inbound::{Preamble, Transit},
        transport,
    },
};

/// Bytes that this relay passed on.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    family: Family<[(&'static str, &'static str); 1], Counter>,
    /// Away from who sent the passage, and back to it.
    ways: [Counter; 2],
}

impl Default for Bytes {
    fn default() -> Self {
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        let ways = ["on", "back"].map(|way| family.get_or_create_owned(&[("direction", way)]));
        Self { family, ways }
    }
}

impl Bytes {
    pub(super) fn show(&self, telemetry: &Telemetry) {
        telemetry.register(
            "relay_bytes",
            "Bytes that a relay passed on, and back",
            self.family.clone(),
        );
    }
}

/// One passage. See the module's head.
#[derive(Debug)]
pub(super) struct Passage {
    telemetry: Telemetry,
    exchange: ExchangeId,
    begun: Instant,
    from: Arc<str>,
    to: Arc<str>,
    /// On, and back.
    pub(super) bytes: [AtomicU64; 2],
    counted: [Counter; 2],
    /// It began here; otherwise it was carried on, in one direction or in both.
    opens: bool,
    outcome: Outcome,
    reason: Box<str>,
    span: Span,
    _running: InFlight,
}

impl Passage {
    pub(super) fn new(relay: &Relay, transit: &Transit) -> Self {
        let telemetry = relay.telemetry.clone();
        let came = traceparent(&transit.preamble);
        let span = came.map_or_else(Span::none, |came| {
            telemetry.span(Role::Relay, transit.exchange, came)
        });
        Self {
            exchange: transit.exchange,
            begun: Instant::now(),
            from: Arc::clone(&transit.link.peer),
            to: "".into(),
            bytes: Default::default(),
            opens: matches!(transit.preamble, Preamble::Open(_)),
            counted: relay.bytes.ways.clone(),
            // As long as nobody says otherwise: this node stops.
            outcome: Outcome::Cancelled,
            reason: "".into(),
            span,
            _running: telemetry.exchange_started(Role::Relay),
            telemetry,
        }
    }

    /// Where it goes; what the next node's span is to stand below goes with it.
    pub(super) fn leaves(&mut self, to: &Arc<str>, preamble: &mut Preamble) {
        self.to = Arc::clone(to);
        if let Preamble::Open(open) = preamble
            && let Some(request) = &mut open.request
        {
            request.traceparent = self.telemetry.traceparent(&self.span, &request.traceparent);
        }
    }

    pub(super) fn refused(&mut self, code: &str) {
        (self.outcome, self.reason) = (Outcome::Refused, code.into());
    }

    /// How the directions on and back ended. A stream is reset where the exchange was cancelled, or goes on elsewhere.
    pub(super) fn ended(
        &mut self,
        on: Result<(), transport::Error>,
        back: Result<(), transport::Error>,
    ) {
        let whole = back.is_ok() || (!self.opens && on.is_ok());
        self.outcome = if whole {
            Outcome::Whole
        } else {
            Outcome::Cancelled
        };
        let mut lost = [on, back].into_iter().filter_map(Result::err);
        let lost = lost.find(|error| !matches!(error, transport::Error::Reset(_)));
        if let (false, Some(error)) = (whole, lost) {
            (self.outcome, self.reason) = (Outcome::Broken, error.to_string().into());
        }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let [on, back] = self
            .bytes
            .each_ref()
            .map(|bytes| bytes.load(Ordering::Relaxed));
        self.counted[0].inc_by(on);
        self.counted[1].inc_by(back);
        self.telemetry.passage_ended(&telemetry::Passage {
            exchange: self.exchange,
            from: &self.from,
            to: &self.to,
            bytes_on: on,
            bytes_back: back,
            duration: self.begun.elapsed(),
            outcome: self.outcome,
            reason: &self.reason,
        });
    }
}

/// An exchange that is carried on has its spans already.
fn traceparent(preamble: &Preamble) -> Option<&str> {
    match preamble {
        Preamble::Open(open) => Some(&open.request.as_ref()?.traceparent),
        Preamble::Attach(_) => None,
    }
}
