//! Decides whether an exchange that arrives may run here, before it is accepted.
//!
//! A refusal here cost nothing, and no byte of the request has reached a provider. What passes is an [`Exchange`]: everything that
//! is known of it, and everything that gives itself back when it ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use vector_proto::{
    dialect::operation::Operation,
    id::ExchangeId,
    refusal::Code,
    tunnel::v1::{self, RequestHead},
};

use super::{
    Room,
    dedupe::{Known, Running},
    meter::Meter,
    provider::{Provider, Upload},
};
use crate::{config::Role, telemetry::InFlight, tunnel::Arrival};

/// Exchanges at once on one node. 20,000 x 40 KiB = 800 MB at the worst.
pub const EXCHANGES_MAX: usize = 20_000;

/// An exchange on its road through this room.
#[derive(Debug)]
pub struct Exchange {
    /// Which.
    pub id: ExchangeId,
    /// What is asked.
    pub head: RequestHead,
    /// Which try of the exchange this is.
    pub attempt: u32,
    /// When it must have ended.
    pub deadline: Option<Instant>,
    /// Its row in the table of operations.
    pub row: Option<&'static Operation>,
    /// Who is called.
    pub provider: Arc<Provider>,
    /// The request's body, once it is taken over.
    pub upload: Upload,
    /// What is measured.
    pub meter: Meter,
    /// Name of the credential that was used last.
    pub credential: Option<Arc<str>>,
    /// Calls made to the provider.
    pub tries: u32,
    /// Status of the answer, 0 for none.
    pub status: u16,
    /// What it consumed is in the hands of [`Reports`](super::Reports).
    pub recorded: bool,
    /// Its entry among those that run.
    pub running: Running,
    _slot: Slot,
    _counted: InFlight,
}

/// A place among [`EXCHANGES_MAX`]. Dropped, it is free again.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        let before = taken.fetch_add(1, Ordering::Relaxed);
        // Made before the check, so that a refused one gives its place back.
        let slot = Self(Arc::clone(taken));
        (before < EXCHANGES_MAX).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A refusal of an exchange of which no byte has reached a provider.
pub fn untouched(code: Code, message: impl Into<String>, retryable: bool) -> v1::Refused {
    v1::Refused {
        code: code.to_string(),
        message: message.into(),
        retryable,
        untouched: true,
        ..v1::Refused::default()
    }
}

/// Takes an exchange in, or says why not.
pub fn receive(
    room: &Room,
    arrival: &mut Arrival,
    now: Instant,
) -> Result<Exchange, Box<v1::Refused>> {
    let no = |code, message: &str, retryable| Box::new(untouched(code, message, retryable));
    if room.draining.load(Ordering::Relaxed) {
        return Err(no(Code::Draining, "This egress is going down.", true));
    }
    let slot = Slot::take(&room.taken);
    let slot = slot.ok_or_else(|| no(Code::Overloaded, "This egress is full.", true))?;
    let open = &mut arrival.open;
    if open.egress_epoch != 0 && open.egress_epoch != room.epoch {
        let message = "The egress was restarted after the exchange began.";
        return Err(no(Code::PathBroken, message, false));
    }
    let head = open.request.take();
    let head = head.ok_or_else(|| no(Code::Protocol, "The exchange has no request.", false))?;
    let provider = room.providers.named(&head.provider).ok_or_else(|| {
        let message = format!(
            "This egress does not reach the provider `{}`.",
            head.provider
        );
        no(Code::NoRoute, &message, true)
    })?;
    let deadline = match open.deadline_ms {
        0 => None,
        ms => Some(now + Duration::from_millis(ms)),
    };
    let running = room
        .dedupe
        .enter(arrival.exchange, open.attempt, now)
        .map_err(|known| match known {
            Known::Running | Known::Ended => no(Code::Protocol, &known.to_string(), false),
            Known::Full => no(Code::Overloaded, &known.to_string(), true),
        })?;
    Ok(Exchange {
        id: arrival.exchange,
        row: room.operations.get(head.operation.as_str()).copied(),
        head,
        attempt: open.attempt,
        deadline,
        provider,
        upload: Upload::None,
        meter: Meter::start(now),
        credential: None,
        tries: 0,
        status: 0,
        recorded: false,
        running,
        _slot: slot,
        _counted: room.telemetry.exchange_started(Role::Egress),
    })
}
