//! How fast the path delivers: rate samples and their filters.
//!
//! A packet's sample is what was delivered between its sending and its acknowledgement, over the
//! longer of the sending and the acknowledging interval, so that acknowledgements that arrive in
//! a bunch do not look like speed (draft-ietf-ccwg-bbr, "delivery rate sampling"). quinn tells a
//! controller no packet numbers with an acknowledgement, but when the packet was sent, so
//! snapshots are found by time.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Snapshots kept. They are at least 1/64 of a round trip apart: four round trips in flight.
const SNAPSHOTS_MAX: usize = 256;

/// Part of a round trip that one snapshot stands for.
const SNAPSHOTS_PER_ROUND: u32 = 64;

/// Rounds after which a maximum that was not seen again is forgotten, at the latest twice this.
const RATE_ROUNDS: u32 = 5;

/// Busy time after which a minimum that was not seen again is forgotten, at the latest twice this.
const BASE_WINDOW: Duration = Duration::from_secs(5);

/// How long the minimum is kept while others keep a queue.
const BASE_KEPT: Duration = Duration::from_secs(60);

/// What was delivered when a packet was sent.
#[derive(Clone, Copy, Debug)]
struct Snapshot {
    sent: Instant,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    app_limited: bool,
}

/// What one batch of acknowledgements tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// When the newest packet of the batch was sent.
    pub(super) sent: Instant,
    /// Its round trip, the peer's delay included.
    pub(super) rtt: Duration,
    /// Bytes that the batch acknowledged.
    pub(super) acked: u64,
    /// Bytes a second; nothing where the interval is too short to tell.
    pub(super) rate: Option<f64>,
    /// The sender had less to send than it could have sent.
    pub(super) app_limited: bool,
    /// What was delivered when the newest packet was sent, and what is now.
    pub(super) prior_delivered: u64,
    pub(super) delivered: u64,
}

/// Turns sendings and acknowledgements into samples.
#[derive(Clone, Debug)]
pub(super) struct Sampler {
    snapshots: VecDeque<Snapshot>,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    app_limited: bool,
    idle: bool,
    batch: Option<(Instant, u64)>,
}

impl Sampler {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            snapshots: VecDeque::new(),
            delivered: 0,
            delivered_at: now,
            first_sent: now,
            app_limited: true,
            idle: true,
            batch: None,
        }
    }

    /// Something was sent. Returns how long the path was idle before it.
    pub(super) fn on_sent(&mut self, now: Instant, srtt: Duration) -> Option<Duration> {
        let mut rested = None;
        if self.idle {
            self.idle = false;
            rested = Some(now.saturating_duration_since(self.delivered_at));
            self.delivered_at = now;
            self.first_sent = now;
        } else if let Some(last) = self.snapshots.back() {
            let apart = now.saturating_duration_since(last.sent);
            if apart < srtt / SNAPSHOTS_PER_ROUND {
                return None;
            }
        }
        if self.snapshots.back().is_some_and(|last| last.sent > now) {
            self.snapshots.clear(); // A clock that went back: what was noted is of no use.
        }
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(Snapshot {
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            app_limited: self.app_limited,
        });
        rested
    }

    /// One packet was acknowledged.
    pub(super) fn on_ack(&mut self, sent: Instant, bytes: u64) {
        self.delivered = self.delivered.saturating_add(bytes);
        let (newest, acked) = self.batch.get_or_insert((sent, 0));
        *newest = sent.max(*newest);
        *acked = acked.saturating_add(bytes);
    }

    /// The batch is complete. Nothing when it acknowledged nothing that counts.
    pub(super) fn on_batch(
        &mut self,
        now: Instant,
        in_flight: u64,
        app_limited: bool,
    ) -> Option<Sample> {
        self.app_limited = app_limited;
        self.idle = in_flight == 0;
        let (sent, acked) = self.batch.take()?;
        let before = self
            .snapshots
            .partition_point(|snapshot| snapshot.sent <= sent);
        // What was sent before the newest acknowledged packet tells nothing new.
        if before > 1 {
            self.snapshots.drain(..before - 1);
        }
        let found = self
            .snapshots
            .front()
            .filter(|snapshot| snapshot.sent <= sent);
        let mut sample = Sample {
            sent,
            rtt: now.saturating_duration_since(sent),
            acked,
            rate: None,
            app_limited,
            prior_delivered: 0,
            delivered: self.delivered,
        };
        if let Some(snapshot) = found {
            let sending = sent.saturating_duration_since(snapshot.first_sent);
            let acking = now.saturating_duration_since(snapshot.delivered_at);
            let interval = sending.max(acking);
            let bytes = self.delivered.saturating_sub(snapshot.delivered);
            // An interval below the round trip would count a burst as speed.
            if interval >= sample.rtt && !interval.is_zero() {
                sample.rate = Some(bytes as f64 / interval.as_secs_f64());
            }
            sample.app_limited |= snapshot.app_limited;
            sample.prior_delivered = snapshot.delivered;
        }
        self.delivered_at = now;
        self.first_sent = sent;
        Some(sample)
    }
}

/// The greatest rate of the last five to ten rounds, in bytes a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TopRate {
    earlier: f64,
    current: f64,
    rounds: u32,
}

impl TopRate {
    pub(super) const fn get(&self) -> f64 {
        self.earlier.max(self.current)
    }

    pub(super) fn add(&mut self, sample: &Sample) {
        if let Some(rate) = sample.rate
            && (!sample.app_limited || rate > self.get())
        {
            self.current = self.current.max(rate);
        }
    }

    /// A round with enough to send is over.
    pub(super) fn end_round(&mut self) {
        self.rounds += 1;
        if self.rounds >= RATE_ROUNDS {
            *self = Self {
                earlier: self.current,
                current: 0.0,
                rounds: 0,
            };
        }
    }
}

/// The least round trip of the last five to ten busy seconds: the path without a queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct BaseRtt {
    earlier: Option<Duration>,
    current: Option<Duration>,
    since: Instant,
    seen_at: Instant,
}

impl BaseRtt {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            earlier: None,
            current: None,
            since: now,
            seen_at: now,
        }
    }

    pub(super) fn get(&self) -> Option<Duration> {
        [self.earlier, self.current].into_iter().flatten().min()
    }

    /// Since when no sample came close to the minimum.
    pub(super) fn unseen(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.seen_at)
    }

    /// Takes a round trip. One of a path that has little to send may lower the minimum, but does
    /// not let it expire: it contains the peer's delay of acknowledgements.
    pub(super) fn add(&mut self, now: Instant, rtt: Duration, app_limited: bool) {
        if !app_limited && now.saturating_duration_since(self.since) >= BASE_WINDOW {
            self.earlier = self.current.take();
            self.since = now;
        }
        self.current = Some(self.current.map_or(rtt, |current| current.min(rtt)));
        let close = self.get().unwrap_or(rtt);
        let near = close.saturating_add(close / 64 + Duration::from_micros(500));
        if rtt <= near {
            self.seen_at = now;
        }
    }

    /// While others keep a queue, nobody sees the path's length: what was known stays known, for
    /// a time.
    pub(super) fn keep(&mut self, now: Instant) {
        if self.unseen(now) < BASE_KEPT {
            self.since = now;
        }
    }

    /// The path is another: forgets what was.
    pub(super) fn replace(&mut self, now: Instant, rtt: Duration) {
        *self = Self {
            current: Some(rtt),
            ..Self::new(now)
        };
    }
}
