//! One line with a queue: rate, delay, tail drop, loss by chance, in bursts or by a policer.

use std::time::{Duration, Instant};

/// Bytes of IP and UDP headers that a datagram takes on the line.
const HEADER_BYTES: usize = 28;

/// What the line is like. Every field may change while the world runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    /// Megabits a second, headers included.
    pub(crate) mbps: f64,
    /// Round trip of an empty line. Half of it lies before the receiver, half on the way back.
    pub(crate) rtt: Duration,
    /// What the queue holds, as time; what finds it full is dropped.
    pub(crate) queue: Duration,
    /// Share of packets lost by chance, after the queue.
    pub(crate) loss: f64,
    /// Everything sent within the second duration, once in the first, is lost.
    pub(crate) burst: Option<(Duration, Duration)>,
    /// A token bucket before the line: megabits a second, and bytes it may hold.
    pub(crate) policer: Option<(f64, f64)>,
}

impl Line {
    /// 100 Mbit/s with a queue of 50 ms.
    pub(crate) const fn new(rtt_ms: u64, loss: f64) -> Self {
        Self {
            mbps: 100.0,
            rtt: Duration::from_millis(rtt_ms),
            queue: Duration::from_millis(50),
            loss,
            burst: None,
            policer: None,
        }
    }
}

/// The line at work.
#[derive(Debug)]
pub(crate) struct Link {
    line: Line,
    busy_until: Instant,
    began: Instant,
    tokens: f64,
    filled_at: Instant,
    /// Wait in the queue of every packet since the last [`Link::forget`], in microseconds.
    waits_us: Vec<u32>,
    dropped: u64,
}

impl Link {
    pub(crate) fn new(line: Line, now: Instant) -> Self {
        Self {
            line,
            busy_until: now,
            began: now,
            tokens: line.policer.map_or(0.0, |(_, burst)| burst),
            filled_at: now,
            waits_us: Vec::new(),
            dropped: 0,
        }
    }

    /// The line changes; what is in its queue drains at the new rate.
    pub(crate) fn change(&mut self, now: Instant, line: Line) {
        let left = self.busy_until.saturating_duration_since(now);
        self.busy_until = now + left.mul_f64(self.line.mbps / line.mbps);
        self.line = line;
    }

    pub(crate) const fn line(&self) -> &Line {
        &self.line
    }

    /// When a datagram sent now arrives; `None` when it is lost.
    pub(crate) fn carry(
        &mut self,
        now: Instant,
        bytes: usize,
        rng: &mut fastrand::Rng,
    ) -> Option<Instant> {
        let bits = ((bytes + HEADER_BYTES) * 8) as f64;
        let wait = self.busy_until.saturating_duration_since(now);
        if wait > self.line.queue || !self.police(now, bits) {
            self.dropped += 1;
            return None;
        }
        self.waits_us.push(wait.as_micros() as u32);
        self.busy_until = now + wait + Duration::from_secs_f64(bits / (self.line.mbps * 1e6));
        if rng.f64() < self.line.loss || self.in_burst(now) {
            self.dropped += 1;
            return None;
        }
        Some(self.busy_until + self.line.rtt / 2)
    }

    fn police(&mut self, now: Instant, bits: f64) -> bool {
        let Some((mbps, burst)) = self.line.policer else {
            return true;
        };
        let since = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        self.tokens = (self.tokens + since * mbps * 1e6 / 8.0).min(burst);
        let passes = self.tokens >= bits / 8.0;
        if passes {
            self.tokens -= bits / 8.0;
        }
        passes
    }

    fn in_burst(&self, now: Instant) -> bool {
        self.line.burst.is_some_and(|(every, long)| {
            let phase = (now - self.began).as_nanos() % every.as_nanos();
            phase < long.as_nanos()
        })
    }

    /// Begins a new measurement.
    pub(crate) fn forget(&mut self) {
        self.waits_us.clear();
        self.dropped = 0;
    }

    /// Mean and 95th percentile of the wait in the queue, in milliseconds, and the share lost.
    pub(crate) fn measured(&mut self) -> (f64, f64, f64) {
        let count = self.waits_us.len().max(1);
        self.waits_us.sort_unstable();
        let sum: u64 = self.waits_us.iter().map(|wait| u64::from(*wait)).sum();
        let p95 = self.waits_us.get(count * 95 / 100).copied().unwrap_or(0);
        let lost = self.dropped as f64 / (count as f64 + self.dropped as f64);
        (sum as f64 / count as f64 / 1e3, f64::from(p95) / 1e3, lost)
    }
}
