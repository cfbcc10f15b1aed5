//! The model of one direction of a line: when, or whether, a packet that enters now comes out.
//!
//! Pure: time is an argument and chance has a seed. A packet passes, in this order: blackhole, drop-tail queue and
//! rate, loss, delay. So one that is lost by chance has used its share of the rate.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::conditions::{Conditions, Hole, Spread};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It never comes out.
    Lost,
    /// It comes out.
    Arrives {
        /// When, on the clock that was told.
        at_ns: u64,
        /// Two of them do.
        twice: bool,
    },
}

/// What a line has done so far.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Counters {
    /// Packets that went in.
    pub in_packets: u64,
    /// Their bytes.
    pub in_bytes: u64,
    /// Packets that came out.
    pub out_packets: u64,
    /// Their bytes.
    pub out_bytes: u64,
    /// Lost each on its own.
    pub lost: u64,
    /// Lost in a burst.
    pub lost_in_burst: u64,
    /// Dropped since the queue was full.
    pub queue_full: u64,
    /// Dropped by a blackhole.
    pub blackholed: u64,
    /// Dropped as larger than the far end's MTU.
    pub too_large: u64,
    /// Dropped since the emulator held too much. Whatever was measured then is void.
    pub overload: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Held back behind later ones.
    pub reordered: u64,
    /// Under way now.
    pub in_flight: u64,
}

/// One direction of a line.
#[derive(Debug)]
pub struct Line {
    conditions: Conditions,
    /// What it has done so far; whoever takes packets out counts them here.
    pub counters: Counters,
    chance: fastrand::Rng,
    /// When the bottleneck has sent all it was given.
    free_ns: f64,
    last_ns: u64,
    burst: Burst,
    drift: Drift,
}

/// Where the chain of bursts and clear spells stands.
#[derive(Debug, Default)]
struct Burst {
    on: bool,
    until_ns: f64,
}

/// Jitter's state: a standard normal, and when it was drawn.
#[derive(Debug)]
struct Drift {
    value: f64,
    at_ns: f64,
}

impl Line {
    /// A line without traffic. The same seed and packets give the same fates.
    pub fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            counters: Counters::default(),
            chance: fastrand::Rng::with_seed(seed),
            free_ns: 0.0,
            last_ns: 0,
            burst: Burst::default(),
            drift: Drift {
                value: 0.0,
                at_ns: f64::MIN,
            },
        }
    }

    /// What it does now.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    /// Changes what it does. Packets under way keep their time; a hole swallows them too.
    pub fn change(&mut self, conditions: Conditions) {
        self.conditions = conditions;
        self.burst.until_ns = 0.0;
    }

    /// Forgets what was counted, apart from what is under way.
    pub fn reset_counters(&mut self) {
        self.counters = Counters {
            in_flight: self.counters.in_flight,
            ..Counters::default()
        };
    }

    /// How long a packet that enters now would wait for the bottleneck.
    pub fn backlog(&self, now_ns: u64) -> Duration {
        Duration::from_nanos((self.free_ns - now_ns as f64).max(0.0) as u64)
    }

    /// A packet of so many bytes enters. `now_ns` never decreases.
    pub fn admit(&mut self, now_ns: u64, bytes: usize) -> Fate {
        self.counters.in_packets += 1;
        self.counters.in_bytes += bytes as u64;
        if self.conditions.hole != Hole::Off {
            self.counters.blackholed += 1;
            return Fate::Lost;
        }
        let Some(sent_ns) = self.serialise(now_ns as f64, bytes) else {
            self.counters.queue_full += 1;
            return Fate::Lost;
        };
        let lost = self.chance(self.conditions.loss);
        if self.burst_takes(sent_ns) {
            self.counters.lost_in_burst += 1;
            return Fate::Lost;
        }
        if lost {
            self.counters.lost += 1;
            return Fate::Lost;
        }
        let delay_ns = (ns(self.conditions.delay) + self.jitter_ns(sent_ns)).max(0.0);
        let mut at_ns = (sent_ns + delay_ns) as u64;
        if self.chance(self.conditions.reorder) {
            self.counters.reordered += 1;
            at_ns += ns(self.conditions.reorder_by) as u64;
        } else if self.conditions.keep_order {
            at_ns = at_ns.max(self.last_ns);
            self.last_ns = at_ns;
        }
        let twice = self.chance(self.conditions.duplicate);
        self.counters.duplicated += u64::from(twice);
        Fate::Arrives { at_ns, twice }
    }

    /// A packet leaves the line's far end: whether it may, as a hole swallows what is under way.
    pub fn release(&mut self, bytes: usize) -> bool {
        self.counters.in_flight = self.counters.in_flight.saturating_sub(1);
        if self.conditions.is_hole() {
            self.counters.blackholed += 1;
            return false;
        }
        self.counters.out_packets += 1;
        self.counters.out_bytes += bytes as u64;
        true
    }

    /// When the bottleneck has sent the packet; nothing if its queue is full.
    fn serialise(&mut self, now_ns: f64, bytes: usize) -> Option<f64> {
        if self.conditions.rate <= 0.0 {
            return Some(now_ns);
        }
        let start_ns = self.free_ns.max(now_ns);
        if start_ns - now_ns > ns(self.conditions.queue) {
            return None;
        }
        self.free_ns = start_ns + bytes as f64 * 8e9 / self.conditions.rate;
        Some(self.free_ns)
    }

    /// An Ornstein-Uhlenbeck process seen through the wanted distribution, so that neighbours fare alike.
    fn jitter_ns(&mut self, now_ns: f64) -> f64 {
        let spread_ns = ns(self.conditions.jitter);
        if spread_ns == 0.0 {
            return 0.0;
        }
        let lasts_ns = ns(self.conditions.jitter_lasts);
        let keep = if lasts_ns > 0.0 {
            ((self.drift.at_ns - now_ns) / lasts_ns).exp()
        } else {
            0.0
        };
        self.drift.value = keep * self.drift.value + (1.0 - keep * keep).sqrt() * self.normal();
        self.drift.at_ns = now_ns;
        match self.conditions.spread {
            Spread::Normal => spread_ns * self.drift.value.clamp(-3.0, 3.0),
            Spread::Uniform => spread_ns * (2.0 * normal_share_below(self.drift.value) - 1.0),
        }
    }

    /// A chain of two states in continuous time: bursts last as long however many packets fall into them, so that
    /// sparse and dense flows meet the same weather.
    fn burst_takes(&mut self, now_ns: f64) -> bool {
        if self.conditions.burst_loss <= 0.0 {
            return false;
        }
        let share = self.conditions.burst_loss / self.conditions.burst_density;
        let on_ns = ns(self.conditions.burst);
        let off_ns = on_ns * (1.0 - share) / share;
        if now_ns - self.burst.until_ns > 100.0 * (on_ns + off_ns) {
            // Long unseen: begin where such a chain is found at any time.
            self.burst.on = self.chance(share);
            let mean_ns = if self.burst.on { on_ns } else { off_ns };
            self.burst.until_ns = now_ns + self.spell_ns(mean_ns);
        }
        while now_ns >= self.burst.until_ns {
            self.burst.on = !self.burst.on;
            let mean_ns = if self.burst.on { on_ns } else { off_ns };
            self.burst.until_ns += self.spell_ns(mean_ns);
        }
        self.burst.on && self.chance(self.conditions.burst_density)
    }

    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.chance.f64() < share
    }

    /// Exponentially distributed.
    fn spell_ns(&mut self, mean_ns: f64) -> f64 {
        -mean_ns * (1.0 - self.chance.f64()).ln()
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.chance.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.chance.f64()).cos()
    }
}

fn ns(time: Duration) -> f64 {
    time.as_nanos() as f64
}

/// The share of a standard normal below `x`: Abramowitz and Stegun 26.2.17, wrong by less than 1e-7.
fn normal_share_below(x: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let factors = [
        0.319_381_530,
        -0.356_563_782,
        1.781_477_937,
        -1.821_255_978,
        1.330_274_429,
    ];
    let sum = factors
        .iter()
        .rev()
        .fold(0.0, |sum, factor| t * (factor + sum));
    let tail = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * sum;
    if x > 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests;
