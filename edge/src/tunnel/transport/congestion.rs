//! Congestion control for long paths that lose packets: rate, delay and loss, behind quinn's trait.
//!
//! quinn's cubic gives up 94 % of a 150 ms path to 0.1 % of random loss, and its BBR computes a
//! pacing rate that nothing uses. [`Config`] makes a controller for each connection. The only
//! lever that quinn gives is the window; its pacer sends at 1.25 windows a round trip. Rules
//! (`model`, `loss`), measuring (`rate`), short bursts (`sprint`) and the leased line (`line`) are
//! apart.

mod line;
mod loss;
mod model;
mod rate;
mod sprint;

#[cfg(test)]
mod tests;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use quinn_proto::{
    RttEstimator,
    congestion::{Controller as Control, ControllerFactory},
};

pub use self::line::Line;
use self::{
    line::Share,
    model::{Model, WINDOW_MAX_BYTES},
    rate::Sampler,
    sprint::Sprint,
};

/// Loss and queue that a leased line does not show while nobody else is on it.
const LINE_LOSS_MAX: f64 = 0.20;
const LINE_QUEUE_MAX: Duration = Duration::from_millis(50);

/// How long such a thing must last before the line is no longer believed, and for how long not.
const LINE_DOUBT: Duration = Duration::from_secs(1);
const LINE_DISTRUST: Duration = Duration::from_secs(10);

/// Makes controllers.
#[derive(Clone, Debug)]
pub struct Config {
    initial_window: u64,
    line: Option<Arc<Line>>,
    /// Is told how fast the path delivers, in bytes a second.
    told: Option<Arc<AtomicU64>>,
}

impl Config {
    /// Controllers that begin with so many bytes in flight, on a leased line if there is one.
    #[must_use]
    pub const fn new(initial_window: u64, line: Option<Arc<Line>>) -> Self {
        Self {
            initial_window,
            line,
            told: None,
        }
    }

    /// The same, for one connection that wants to know how fast its path delivers, in bytes a second.
    #[must_use]
    pub fn telling(&self, told: Arc<AtomicU64>) -> Self {
        Self {
            told: Some(told),
            ..self.clone()
        }
    }

    fn controller(&self, now: Instant, mtu: u16) -> Controller {
        Controller {
            initial: self.initial_window,
            srtt: Duration::ZERO,
            sampler: Sampler::new(now),
            model: Model::new(now, mtu, self.initial_window),
            sprint: Sprint::new(),
            leased: self.line.clone().map(|line| Leased::new(line, now)),
            told: self.told.clone(),
        }
    }
}

impl ControllerFactory for Config {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Control> {
        Box::new(self.controller(now, current_mtu))
    }
}

/// The controller of one connection.
#[derive(Clone, Debug)]
struct Controller {
    initial: u64,
    srtt: Duration,
    sampler: Sampler,
    model: Model,
    sprint: Sprint,
    leased: Option<Leased>,
    told: Option<Arc<AtomicU64>>,
}

impl Controller {
    fn acked(&mut self, sent: Instant, bytes: u64, srtt: Duration) {
        self.srtt = srtt;
        self.sampler.on_ack(sent, bytes);
    }
}

impl Control for Controller {
    fn on_sent(&mut self, now: Instant, bytes: u64, _last_packet_number: u64) {
        self.sprint.on_sent(bytes);
        if let Some(rested) = self.sampler.on_sent(now, self.srtt) {
            self.model.on_rested(rested);
        }
    }

    fn on_ack(
        &mut self,
        _now: Instant,
        sent: Instant,
        bytes: u64,
        _app_limited: bool,
        rtt: &RttEstimator,
    ) {
        self.acked(sent, bytes, rtt.get());
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _: Option<u64>) {
        if let Some(sample) = self.sampler.on_batch(now, in_flight, app_limited) {
            self.model.on_batch(now, &sample, in_flight);
            let base = self.model.base_rtt().unwrap_or(sample.rtt);
            let queue = sample.rtt.saturating_sub(base);
            self.sprint.on_batch(sample.acked, queue);
            if let Some(told) = &self.told {
                told.store(self.model.rate() as u64, Ordering::Relaxed);
            }
            if let Some(leased) = &mut self.leased {
                leased.share.set_busy(!app_limited);
                if leased.doubts(now, sample.rtt, sample.acked, self.model.base_rtt()) {
                    let window = leased.window(self.srtt, self.model.base_rtt());
                    self.model.take_over(now, window);
                }
            }
        }
        self.sprint.left(in_flight);
        if in_flight == 0
            && let Some(leased) = &mut self.leased
        {
            leased.share.set_busy(false);
        }
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost: u64) {
        if let Some(leased) = &mut self.leased {
            leased.lost = leased.lost.saturating_add(lost);
        }
        self.sprint.on_loss(lost, persistent);
        if lost == 0 && !persistent {
            self.model.on_mark(now);
        } else {
            self.model.on_loss(now, sent, lost, persistent);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.model.set_mtu(new_mtu);
    }

    fn window(&self) -> u64 {
        let model = self.model.window();
        let Some(leased) = &self.leased else {
            return if self.model.is_starting() {
                self.sprint.window(model).min(WINDOW_MAX_BYTES)
            } else {
                model
            };
        };
        let share = leased.window(self.srtt, self.model.base_rtt());
        if leased.believed() {
            // Nothing to find out; before the first round trip is known, the initial window.
            if share > 0 { share } else { self.initial }
        } else {
            model.min(share)
        }
        .max(LEAST_BYTES)
    }

    fn clone_box(&self) -> Box<dyn Control> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.initial
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Smallest window on a leased line: four packets.
const LEAST_BYTES: u64 = 4 * 1452;

/// A share of a leased line, and whether the line is what it was said to be.
#[derive(Clone, Debug)]
struct Leased {
    share: Share,
    acked: u64,
    lost: u64,
    judged_at: Instant,
    bad: bool,
    distrusted_until: Option<Instant>,
}

impl Leased {
    const fn new(line: Arc<Line>, now: Instant) -> Self {
        Self {
            share: Share::new(line),
            acked: 0,
            lost: 0,
            judged_at: now,
            bad: true,
            distrusted_until: None,
        }
    }

    const fn believed(&self) -> bool {
        self.distrusted_until.is_none()
    }

    /// What carries the share over this round trip. A queue is not filled for its own sake.
    fn window(&self, srtt: Duration, base: Option<Duration>) -> u64 {
        let most = base.map_or(srtt, |base| base.saturating_add(LINE_QUEUE_MAX));
        let window = (self.share.rate() * srtt.min(most).as_secs_f64()) as u64;
        window.min(WINDOW_MAX_BYTES)
    }

    /// Whether belief has just ended. Judges once a [`LINE_DOUBT`].
    fn doubts(&mut self, now: Instant, rtt: Duration, acked: u64, base: Option<Duration>) -> bool {
        if self.distrusted_until.is_some_and(|until| until <= now) {
            self.distrusted_until = None;
            self.judged_at = now;
        }
        self.acked = self.acked.saturating_add(acked);
        // A queue counts when it lasts: one round trip without it clears the suspicion.
        self.bad &= base.is_some_and(|base| rtt.saturating_sub(base) > LINE_QUEUE_MAX);
        if now.saturating_duration_since(self.judged_at) < LINE_DOUBT {
            return false;
        }
        let sent = (self.acked as f64 + self.lost as f64).max(1.0);
        let lossy = self.lost as f64 / sent > LINE_LOSS_MAX;
        let ends = self.believed() && (lossy || self.bad);
        if ends {
            self.distrusted_until = now.checked_add(LINE_DISTRUST);
        }
        self.judged_at = now;
        self.bad = true;
        self.acked = 0;
        self.lost = 0;
        ends
    }
}
