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

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
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
use crate::{
    config::Role,
    lookup::HashMap,
    telemetry::{InFlight, Telemetry},
    tunnel::Arrival,
};

/// Exchanges at once on one node. 20,000 x 40 KiB = 800 MB at the worst.
pub const EXCHANGES_MAX: usize = 20_000;

/// Of those, what one peer may have: an ingress, or a relay with all that comes over it. However many one opens, 5,000 are left
/// for the others.
pub const EXCHANGES_PER_PEER_MAX: usize = EXCHANGES_MAX / 4 * 3;

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
    _place: Seat,
    _counted: InFlight,
}

/// The places for exchanges, and who has how many of them.
#[derive(Debug)]
pub struct Seats {
    max: usize,
    per_peer_max: usize,
    taken: AtomicUsize,
    by_peer: Mutex<HashMap<Arc<str>, usize>>,
    over_share: Counter,
}

impl Default for Seats {
    fn default() -> Self {
        Self::new(EXCHANGES_MAX, EXCHANGES_PER_PEER_MAX)
    }
}

impl Seats {
    fn new(max: usize, per_peer_max: usize) -> Self {
        Self {
            max,
            per_peer_max,
            taken: AtomicUsize::new(0),
            by_peer: Mutex::default(),
            over_share: Counter::default(),
        }
    }

    /// Shows how often a peer wanted more than its share.
    pub fn register(&self, telemetry: &Telemetry) {
        let help = "Exchanges refused at the egress, as their ingress or relay had its share of it";
        telemetry.register("exchange_over_share", help, self.over_share.clone());
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    fn take(self: &Arc<Self>, peer: &Arc<str>) -> Result<Seat, String> {
        let mut by_peer = self.by_peer.lock();
        if self.taken() >= self.max {
            return Err("This egress is full.".into());
        }
        let has = by_peer.entry(Arc::clone(peer)).or_default();
        if *has >= self.per_peer_max {
            self.over_share.inc();
            let most = self.per_peer_max;
            return Err(format!(
                "`{peer}` has as many exchanges on this egress as one node may: {most}."
            ));
        }
        *has += 1;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok(Seat {
            of: Arc::clone(self),
            peer: Arc::clone(peer),
        })
    }
}

/// One of the [`Seats`]. Dropped, it is free again.
#[derive(Debug)]
pub struct Seat {
    of: Arc<Seats>,
    peer: Arc<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut by_peer = self.of.by_peer.lock();
        self.of.taken.fetch_sub(1, Ordering::Relaxed);
        match by_peer.get_mut(&self.peer) {
            Some(has) if *has > 1 => *has -= 1,
            _ => {
                by_peer.remove(&self.peer);
            }
        }
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
    stays(room)?;
    let place = seat(room, &arrival.from)?;
    enter(room, (arrival.exchange, &mut arrival.open), place, now)
}

/// Whether this egress takes anything new.
pub fn stays(room: &Room) -> Result<(), Box<v1::Refused>> {
    if room.draining.load(Ordering::Relaxed) {
        let message = "This egress is going down.";
        return Err(Box::new(untouched(Code::Draining, message, true)));
    }
    Ok(())
}

/// A seat for an exchange from this peer.
pub fn seat(room: &Room, from: &Arc<str>) -> Result<Seat, Box<v1::Refused>> {
    let place = room.seats.take(from);
    place.map_err(|full| Box::new(untouched(Code::Overloaded, full, true)))
}

/// Makes an exchange of what is asked.
pub fn enter(
    room: &Room,
    (id, open): (ExchangeId, &mut v1::Open),
    place: Seat,
    now: Instant,
) -> Result<Exchange, Box<v1::Refused>> {
    let no = |code, message: &str, retryable| Box::new(untouched(code, message, retryable));
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
        .enter(id, open.attempt, now)
        .map_err(|known| match known {
            Known::Running | Known::Ended => no(Code::Protocol, &known.to_string(), false),
            Known::Full => no(Code::Overloaded, &known.to_string(), true),
        })?;
    Ok(Exchange {
        id,
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
        _place: place,
        _counted: room.telemetry.exchange_started(Role::Egress),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_opens_without_end_leaves_places_for_the_others() {
        let seats = Arc::new(Seats::new(20, 15));
        let (greedy, modest): (Arc<str>, Arc<str>) = ("greedy".into(), "modest".into());
        let mut held: Vec<Seat> = (0..100).filter_map(|_| seats.take(&greedy).ok()).collect();
        assert_eq!(held.len(), 15);
        let why = seats.take(&greedy).err().unwrap_or_default();
        assert!(why.contains("greedy") && why.contains("15"), "{why}");
        assert_eq!(seats.over_share.get(), 86);
        let others: Vec<Seat> = (0..5).filter_map(|_| seats.take(&modest).ok()).collect();
        assert_eq!((others.len(), seats.taken()), (5, 20));
        // Now it is full for everybody.
        assert!(seats.take(&modest).is_err_and(|why| why.contains("full")));
        held.pop();
        assert!(seats.take(&greedy).is_ok(), "a place that was given back");
        drop((held, others));
        assert_eq!(seats.taken(), 0);
        assert!(seats.by_peer.lock().is_empty());
    }
}
