//! How long a direction may be silent: three intervals and a margin for jitter, then five.
//!
//! The margin is the 99.9th percentile of how late heartbeats come, over the last few thousand;
//! that part of phi-accrual detection is worth having at these intervals, the rest is not.

use std::time::{Duration, Instant};

use vector_proto::tunnel::beat::Hearing;

/// Missed intervals after which a direction is suspect.
const SUSPECT_INTERVALS: u32 = 3;

/// Missed intervals after which it counts as dead.
const DEAD_INTERVALS: u32 = 5;

/// Silence below which no direction counts as dead, however short the intervals: a burst of loss
/// this long is common.
const DEAD_MIN: Duration = Duration::from_millis(50);

/// Until the first packet: the two ends of a connection do not come up at the same moment.
const FIRST_PACKET: Duration = Duration::from_secs(2);

/// Smallest margin: what timers of a quiet machine are late.
const MARGIN_MIN: Duration = Duration::from_millis(2);

/// Largest margin before a direction is suspect. A path that jitters more gives false alarms rather
/// than late ones: they are cheap.
const MARGIN_MAX: Duration = Duration::from_millis(20);

/// Largest margin before it counts as dead, which is less cheap. What a path jitters above
/// [`MARGIN_MAX`] counts twice here.
const DEAD_MARGIN_MAX: Duration = Duration::from_millis(100);

const BUCKET: Duration = Duration::from_millis(1);

/// Milliseconds up to the lateness that gives [`DEAD_MARGIN_MAX`], and one for all above.
const BUCKETS: usize = 61;

/// Samples after which the older half of the window is dropped: 40 s at 10 ms, and enough for the
/// quantile to leave out a few outliers.
const HALF_WINDOW: u16 = 4_096;

/// Gaps of more heartbeats than this are an outage, which says nothing about jitter.
const GAP_BEATS_MAX: u32 = 8;

/// Watches one direction, towards this end.
#[derive(Clone, Debug)]
pub(super) struct Silence {
    /// Last sign of life, or the start.
    life: Instant,
    heard: bool,
    /// What the peer announced.
    pub(super) interval: Duration,
    /// Arrival of the last heartbeat, unless its gap to the next will say nothing.
    last_beat: Option<Instant>,
    lateness: Lateness,
}

impl Silence {
    pub(super) fn new(interval: Duration, now: Instant) -> Self {
        Self {
            life: now,
            heard: false,
            interval,
            last_beat: None,
            lateness: Lateness::default(),
        }
    }

    /// Starts again on another connection, over the same path.
    pub(super) fn restart(&mut self, now: Instant) {
        self.life = now;
        self.heard = false;
        self.last_beat = None;
    }

    /// A heartbeat came, `step` after the one before it.
    pub(super) fn beat(&mut self, now: Instant, step: u32, interval: Duration) {
        if let Some(last) = self.last_beat.filter(|_| step <= GAP_BEATS_MAX) {
            let gap = now.saturating_duration_since(last);
            self.lateness.add(gap.saturating_sub(self.interval * step));
        }
        self.last_beat = Some(now);
        self.interval = interval;
        self.life(now);
    }

    /// Some packet came.
    pub(super) fn life(&mut self, at: Instant) {
        self.life = self.life.max(at);
        self.heard = true;
    }

    /// Nobody looked for so long: that was no silence.
    pub(super) fn forgive(&mut self, late: Duration, now: Instant) {
        self.life = (self.life + late).min(now);
        self.last_beat = None;
    }

    pub(super) fn hearing(&self, now: Instant) -> Hearing {
        if now >= self.dead_at() {
            Hearing::Silent
        } else if now >= self.suspect_at() {
            Hearing::Unsure
        } else if self.heard {
            Hearing::Hears
        } else {
            Hearing::Waiting
        }
    }

    /// Whether a heartbeat should have been here by now.
    pub(super) fn overdue(&self, now: Instant) -> bool {
        now > self.life + self.interval + MARGIN_MIN
    }

    pub(super) fn suspect_at(&self) -> Instant {
        self.after(suspect_after(self.interval), self.margin())
    }

    pub(super) fn dead_at(&self) -> Instant {
        let beyond = self.lateness.high.saturating_sub(MARGIN_MAX);
        let margin = (self.lateness.high + beyond).clamp(MARGIN_MIN, DEAD_MARGIN_MAX);
        self.after(dead_after(self.interval), margin)
    }

    pub(super) fn margin(&self) -> Duration {
        self.lateness.high.clamp(MARGIN_MIN, MARGIN_MAX)
    }

    pub(super) fn jitter(&self) -> Duration {
        self.lateness.mean
    }

    fn after(&self, silence: Duration, margin: Duration) -> Instant {
        let first = if self.heard {
            Duration::ZERO
        } else {
            FIRST_PACKET
        };
        self.life + silence + margin + first
    }
}

pub(super) fn suspect_after(interval: Duration) -> Duration {
    interval * SUSPECT_INTERVALS
}

pub(super) fn dead_after(interval: Duration) -> Duration {
    (interval * DEAD_INTERVALS).max(DEAD_MIN)
}

/// How late heartbeats come: a histogram over two halves of a window, of which the older is
/// dropped when the newer is full.
#[derive(Clone, Debug)]
struct Lateness {
    newer: [u16; BUCKETS],
    older: [u16; BUCKETS],
    newer_count: u16,
    older_count: u16,
    /// The 99.9th percentile.
    high: Duration,
    mean: Duration,
}

impl Default for Lateness {
    fn default() -> Self {
        Self {
            newer: [0; BUCKETS],
            older: [0; BUCKETS],
            newer_count: 0,
            older_count: 0,
            high: Duration::ZERO,
            mean: Duration::ZERO,
        }
    }
}

impl Lateness {
    fn add(&mut self, late: Duration) {
        if self.newer_count == HALF_WINDOW {
            self.older = std::mem::replace(&mut self.newer, [0; BUCKETS]);
            self.older_count = std::mem::take(&mut self.newer_count);
        }
        let bucket = (late.as_micros() / BUCKET.as_micros()).min(BUCKETS as u128 - 1) as usize;
        self.newer[bucket] += 1;
        self.newer_count += 1;
        self.mean = (self.mean * 15 + late) / 16;
        self.high = self.quantile();
    }

    /// Upper edge of the bucket that holds the 99.9th percentile.
    fn quantile(&self) -> Duration {
        let above_max = (u32::from(self.newer_count) + u32::from(self.older_count)) / 1_000;
        let mut above = 0;
        for bucket in (0..BUCKETS).rev() {
            above += u32::from(self.newer[bucket]) + u32::from(self.older[bucket]);
            if above > above_max {
                return BUCKET * (bucket as u32 + 1);
            }
        }
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_is_the_thousandth_latest_and_forgets() {
        let mut lateness = Lateness::default();
        let mut add = |count: u32, micros: u64| {
            for _ in 0..count {
                lateness.add(Duration::from_micros(micros));
            }
            lateness.high.as_millis()
        };
        assert_eq!(add(4_000, 100), 1);
        // Four in four thousand are left out, the fifth is not.
        assert_eq!(add(4, 7_900), 1);
        assert_eq!(add(1, 7_900), 8);
        assert_eq!(add(10, 90_000), BUCKETS as u128);
        assert_eq!(add(2 * u32::from(HALF_WINDOW), 100), 1);
    }

    #[test]
    fn margins_follow_jitter_within_limits() {
        let margins = |late_ms: u64| {
            let start = Instant::now();
            let mut silence = Silence::new(Duration::from_millis(10), start);
            silence.beat(start, 1, Duration::from_millis(10));
            let now = start + Duration::from_millis(10 + late_ms);
            silence.beat(now, 1, Duration::from_millis(10));
            let after = |at: Instant| (at - now).as_millis();
            (after(silence.suspect_at()), after(silence.dead_at()))
        };
        assert_eq!(margins(0), (32, 52));
        assert_eq!(margins(11), (42, 62));
        assert_eq!(margins(29), (50, 90));
        assert_eq!(margins(500), (50, 150));
    }

    #[test]
    fn lost_beats_and_outages_are_no_jitter() {
        let interval = Duration::from_millis(10);
        let mut now = Instant::now();
        let mut silence = Silence::new(interval, now);
        for step in [1, 2, 1, 5, 1, 3, 700, 1] {
            now += interval * step;
            silence.beat(now, step, interval);
        }
        assert_eq!(silence.margin(), MARGIN_MIN);
        assert_eq!(silence.jitter(), Duration::ZERO);
    }
}
