//! The window: what may be in flight, decided once a round trip from delay, rate and loss.
//!
//! **Delay.** The queue is what the least round trip of a round has above the least of the last
//! seconds. Each round the window moves halfway to a queue of a target length, as in FAST TCP.
//! The target shrinks as one's own rate grows: of two senders that see the same queue, the
//! slower wants more and the faster less, until they are equal. **Rate.** Start-up ends at what
//! the path was seen to deliver, and retreats go there at once. **Loss** counts only above the
//! path's own (see `loss`). **Others.** A queue that stays however much we retreat belongs to
//! senders that fill it; then we hold our place until loss tells all of them to yield, and look
//! again. If nothing moved at all, the path has become longer.

mod crowd;
mod retreat;
mod startup;

use std::time::{Duration, Instant};

use self::crowd::{CROWD_S, Crowd};
use super::{
    loss::{Kind, Tally, UsualLoss, Verdict},
    rate::{BaseRtt, Sample, TopRate},
};

/// Queue that a sender of [`REFERENCE_RATE`] wants, and the limits for others.
const TARGET_S: f64 = 0.008;
const TARGET_MIN_S: f64 = 0.004;
const TARGET_MAX_S: f64 = 0.020;

/// 100 Mbit/s, in bytes a second.
const REFERENCE_RATE: f64 = 12.5e6;

/// How much of the way to the target a round goes. Its effect shows two rounds later: above 1/2
/// the window would swing.
const STEP: f64 = 0.5;

/// Most that one round adds to the window, and least that it leaves of it.
const GROWTH_MAX: f64 = 0.25;
const RETREAT_MIN: f64 = 0.25;

/// How far the window goes ahead of what the path was seen to carry.
const AHEAD_MAX: f64 = 1.1;

/// Rounds without any queue after which growth doubles each round: the path has become faster.
const CALM_ROUNDS: u32 = 4;

/// Rounds without growth after a retreat from loss: the time to learn what the path loses anyway.
const HOLD_ROUNDS: u32 = 8;

/// How often the queue is emptied, so that all who share it see the path's true length.
const DRAIN_EVERY: Duration = Duration::from_secs(3);
const DRAIN_ROUNDS: u32 = 10;

/// Longest that it may take, above four round trips.
const DRAIN_PATIENCE: Duration = Duration::from_millis(100);

/// Rest after which the window is what the path was seen to carry, or the initial one.
const REST: Duration = Duration::from_secs(10);

/// Batches that a round needs for its least round trip to mean something.
const BATCHES_MIN: u32 = 4;

/// Smallest window, in packets.
const WINDOW_MIN_PACKETS: u64 = 4;

/// Largest window: above, an error in an estimate would only cost memory.
pub(super) const WINDOW_MAX_BYTES: u64 = 256 << 20;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Doubles each round, from twice the initial window on in two.
    Startup,
    /// Follows the delay.
    Cruise,
    /// Empties the queue, to see the path's length.
    Drain,
    /// Holds its place among senders that fill the queue.
    Crowd,
}

/// What was seen in the round that runs.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Delivered bytes that end it: all that was in flight when it began.
    end: u64,
    least_rtt: Option<Duration>,
    batches: u32,
    /// Bytes acknowledged while there was enough to send.
    busy: u64,
    rate: f64,
    tally: Tally,
}

/// The model of one path.
#[derive(Clone, Debug)]
pub(super) struct Model {
    mtu: u64,
    initial: u64,
    window: u64,
    phase: Phase,
    base: BaseRtt,
    top: TopRate,
    usual: UsualLoss,
    round: Round,
    /// The last batch: when, and what it acknowledged.
    batch: (Instant, u64),
    /// Waits until no more is in flight than the window allows; round trips before that are old.
    settling: bool,
    fresh_from: Instant,
    /// Start-up has just ended, and what it sent last is not yet acknowledged.
    refining: bool,
    drain_to: u64,
    drained_at: Instant,
    drain_rounds: u32,
    plateau: (f64, u32),
    /// Least round trip of the last few batches of start-up, and how many they are.
    recent: (Duration, u32),
    calm: u32,
    hold: u32,
    crowd: Crowd,
    /// Where loss began, and until when that is remembered.
    ceiling: (u64, Option<Instant>),
}

impl Model {
    pub(super) fn new(now: Instant, mtu: u16, initial: u64) -> Self {
        Self {
            mtu: u64::from(mtu).max(1),
            initial,
            window: initial,
            phase: Phase::Startup,
            base: BaseRtt::new(now),
            top: TopRate::default(),
            usual: UsualLoss::default(),
            round: Round::default(),
            batch: (now, 0),
            settling: false,
            fresh_from: now,
            refining: false,
            drain_to: 0,
            drained_at: now,
            drain_rounds: 0,
            plateau: (0.0, 0),
            recent: (Duration::MAX, 0),
            calm: 0,
            hold: 0,
            crowd: Crowd::default(),
            ceiling: (0, None),
        }
    }

    pub(super) fn window(&self) -> u64 {
        let window = match self.phase {
            Phase::Drain => self.drain_to,
            Phase::Startup | Phase::Cruise | Phase::Crowd => self.window,
        };
        window.clamp(self.least(), WINDOW_MAX_BYTES)
    }

    /// Nothing was measured yet, or it is to be measured anew.
    pub(super) fn is_starting(&self) -> bool {
        self.phase == Phase::Startup
    }

    /// Round trip without a queue; nothing before the first sample.
    pub(super) fn base_rtt(&self) -> Option<Duration> {
        self.base.get()
    }

    /// The most that the path delivered lately, in bytes a second.
    pub(super) const fn rate(&self) -> f64 {
        self.top.get()
    }

    pub(super) fn set_mtu(&mut self, mtu: u16) {
        self.mtu = u64::from(mtu).max(1);
    }

    /// The window becomes this: another rule held it so far.
    pub(super) fn take_over(&mut self, now: Instant, window: u64) {
        self.window = window.max(self.least());
        self.phase = Phase::Cruise;
        self.settle(now);
    }

    fn least(&self) -> u64 {
        self.mtu.saturating_mul(WINDOW_MIN_PACKETS)
    }

    /// Sending begins again after a rest.
    pub(super) fn on_rested(&mut self, rested: Duration) {
        if rested < REST || self.phase == Phase::Startup {
            return;
        }
        let seen = self.carries(self.top.get());
        self.window = self.window.min(seen.max(self.initial));
        if self.window < self.initial {
            self.phase = Phase::Startup;
            self.plateau = (0.0, 0);
        }
        self.calm = CALM_ROUNDS;
        self.crowd = Crowd::default();
    }

    pub(super) fn on_batch(&mut self, now: Instant, sample: &Sample, in_flight: u64) {
        self.batch = (now, sample.acked);
        if self.phase == Phase::Crowd || self.crowd.rounds > 0 {
            self.base.keep(now);
        }
        if self.base.get().is_none() {
            self.begin(sample.rtt);
        }
        self.base.add(now, sample.rtt, sample.app_limited);
        self.top.add(sample);
        if self.refining {
            self.refine();
        }
        if self.settling && in_flight <= self.window() {
            self.settling = false;
            self.fresh_from = now;
            self.round.tally = Tally::default();
        }
        let fresh = !self.settling && sample.sent >= self.fresh_from;
        self.refining &= !fresh;
        let round = &mut self.round;
        round.tally.acked = round.tally.acked.saturating_add(sample.acked);
        if !sample.app_limited {
            round.busy = round.busy.saturating_add(sample.acked);
        }
        round.rate = round.rate.max(sample.rate.unwrap_or(0.0));
        if fresh {
            round.batches = round.batches.saturating_add(1);
            let least = round
                .least_rtt
                .map_or(sample.rtt, |least| least.min(sample.rtt));
            round.least_rtt = Some(least);
        }
        match self.phase {
            Phase::Startup => self.start_up(now, sample),
            Phase::Drain => self.drain(now),
            Phase::Cruise | Phase::Crowd => {}
        }
        if sample.prior_delivered >= self.round.end {
            self.end_round(now, sample.delivered);
        }
    }

    /// Loss was found; `persistent` says that nothing came through for several round trips.
    pub(super) fn on_loss(&mut self, now: Instant, sent: Instant, lost: u64, persistent: bool) {
        // What was sent before the last retreat was answered by it.
        if !self.settling && sent >= self.fresh_from {
            let acked = if self.batch.0 == now { self.batch.1 } else { 0 };
            self.round.tally.lose(lost, acked, self.mtu);
        }
        if persistent {
            // Starts anew, from a little more than a TCP would.
            self.window = self.window.min(self.initial / 16).max(self.least());
            self.phase = Phase::Startup;
            self.plateau = (0.0, 0);
            self.crowd = Crowd::default();
            self.settle(now);
        }
    }

    /// A router marked packets instead of dropping them (ECN): there is a queue.
    pub(super) fn on_mark(&mut self, now: Instant) {
        if self.settling || now < self.fresh_from {
            return;
        }
        if self.phase == Phase::Startup {
            self.end_startup(now);
        } else {
            self.scale(1.0 - STEP / 4.0);
            self.settle(now);
        }
        self.hold = HOLD_ROUNDS;
    }

    /// Queue, in seconds, of the round that runs; nothing while there is too little to tell.
    fn queue(&self) -> Option<(f64, f64)> {
        let rtt = self.round.least_rtt?;
        let base = self.base.get()?;
        (self.round.batches >= BATCHES_MIN)
            .then(|| (rtt.saturating_sub(base).as_secs_f64(), rtt.as_secs_f64()))
    }

    /// Bytes in flight that carry so many bytes a second with the queue one wants.
    fn carries(&self, rate: f64) -> u64 {
        let base = self.base.get().map_or(0.0, |base| base.as_secs_f64());
        let rate = rate / (1.0 - self.usual.share());
        (rate * (base + target(rate))) as u64
    }

    fn scale(&mut self, by: f64) {
        let scaled = (self.window as f64 * by) as u64;
        self.window = scaled.clamp(self.least(), WINDOW_MAX_BYTES);
    }

    /// The window shrank: what comes back now was sent under the old one.
    fn settle(&mut self, now: Instant) {
        self.settling = true;
        self.fresh_from = now;
        self.round.least_rtt = None;
        self.round.batches = 0;
    }

    fn drain(&mut self, now: Instant) {
        let lasted = now.saturating_duration_since(self.drained_at);
        let base = self.base.get().unwrap_or_default();
        let patience = base.saturating_mul(4).saturating_add(DRAIN_PATIENCE);
        if self.round.batches < BATCHES_MIN && lasted < patience {
            return;
        }
        self.phase = Phase::Cruise;
        self.hold = self.hold.max(2);
        self.calm = 0;
        self.settle(now);
    }

    /// What the losses of the round that ends can teach.
    fn kind(&self, queue: Option<(f64, f64)>) -> Kind {
        if queue.is_some_and(|(queue, _)| queue > CROWD_S) || self.phase == Phase::Crowd {
            Kind::Full
        } else if self.hold > 0 || matches!(self.phase, Phase::Startup | Phase::Drain) {
            Kind::Gentle
        } else {
            Kind::Plain
        }
    }

    fn end_round(&mut self, now: Instant, delivered: u64) {
        let queue = self.queue();
        let round = std::mem::take(&mut self.round);
        self.round.end = delivered;
        if self.settling {
            // The measurement goes on in the next round.
            self.round.least_rtt = round.least_rtt;
            self.round.batches = round.batches;
        }
        let busy = round.busy.saturating_mul(2) >= round.tally.acked;
        let verdict = self.usual.judge(&round.tally, self.kind(queue), self.mtu);
        if !busy {
            return;
        }
        self.top.end_round();
        match self.phase {
            Phase::Startup => self.judge_startup(now, verdict),
            Phase::Cruise => self.cruise(now, queue, &round, verdict),
            Phase::Crowd => self.hold_place(now, queue, verdict),
            Phase::Drain => {}
        }
    }

    fn cruise(&mut self, now: Instant, queue: Option<(f64, f64)>, round: &Round, loss: Verdict) {
        self.drain_rounds = self.drain_rounds.saturating_add(1);
        if self.yielded(now, queue, round.rate, loss) {
            return;
        }
        let Some((queue, rtt)) = queue else {
            return;
        };
        let target = target(self.window as f64 / rtt);
        if queue > target {
            self.calm = 0;
            if self.crowded(now, queue, rtt) {
                return;
            }
            self.shorten(now, (queue, rtt, target), round.rate);
        } else {
            self.crowd.rounds = 0;
            if self.hold > 0 {
                self.hold -= 1;
            } else {
                self.grow(now, queue, rtt, target);
            }
        }
        self.drain_if_due(now, queue, rtt);
    }

    /// The queue is longer than we want.
    fn shorten(&mut self, now: Instant, (queue, rtt, target): (f64, f64, f64), rate: f64) {
        let window = self.window as f64;
        let mut wanted = window * (1.0 - (STEP * (queue - target) / rtt).min(STEP));
        if queue > 2.0 * target && rate > 0.0 {
            // Far above: what the path delivered in this round is known, so go there at once.
            wanted = wanted.min(self.carries(rate) as f64);
        }
        let first = self.crowd.rounds <= 1;
        let floor = if first {
            window * RETREAT_MIN
        } else {
            self.crowd.floor as f64
        };
        self.scale(wanted.max(floor).min(window) / window.max(1.0));
        if self.crowd.rounds == 1 {
            self.crowd.floor = self.window / 2;
        }
        if (self.window as f64) < window * 0.9 {
            self.settle(now);
        }
    }

    /// The queue is shorter than we want.
    fn grow(&mut self, now: Instant, queue: f64, rtt: f64, target: f64) {
        self.calm = if queue < target / 4.0 {
            self.calm.saturating_add(1)
        } else {
            0
        };
        let fast = self.calm.saturating_sub(CALM_ROUNDS).min(8);
        let step = STEP * (target - queue) / rtt * f64::from(1_u32 << fast);
        let most = self.carries(self.top.get()) as f64 * AHEAD_MAX;
        if (self.window as f64) < most {
            self.scale(1.0 + step.min(GROWTH_MAX));
        }
        let (ceiling, until) = self.ceiling;
        if until.is_some_and(|until| now < until) {
            self.window = self.window.min(ceiling.max(self.least()));
            self.calm = 0;
        }
    }

    fn drain_if_due(&mut self, now: Instant, queue: f64, rtt: f64) {
        let since = now.saturating_duration_since(self.drained_at);
        if since < DRAIN_EVERY || self.drain_rounds < DRAIN_ROUNDS || self.crowd.rounds > 0 {
            return;
        }
        if self.base.unseen(now) < DRAIN_EVERY {
            return;
        }
        let part = (1.0 - 2.0 * queue / rtt.max(f64::MIN_POSITIVE)).clamp(0.5, 0.95);
        self.drain_to = (self.window as f64 * part) as u64;
        self.drained_at = now;
        self.drain_rounds = 0;
        self.phase = Phase::Drain;
        self.settle(now);
    }
}

/// The queue that a sender of so many bytes a second wants, in seconds.
fn target(rate: f64) -> f64 {
    let wanted = TARGET_S * (REFERENCE_RATE / rate.max(1.0)).sqrt();
    wanted.clamp(TARGET_MIN_S, TARGET_MAX_S)
}
