//! When to send: intervals follow activity and are agreed with the peer.
//!
//! Faster takes effect at once. Slower is announced first, and the old interval kept until an echo
//! shows that the peer has heard it: a peer is never left waiting for heartbeats at an interval
//! that is over.

use std::time::{Duration, Instant};

use vector_proto::tunnel::beat::newer;

/// Heartbeats are never closer than this, whatever there is to say.
const SPACING_MIN: Duration = Duration::from_millis(1);

/// The clock that heartbeats are sent by.
#[derive(Clone, Debug)]
pub(super) struct Rhythm {
    /// Number of the last heartbeat sent; 0 before the first.
    pub(super) seq: u32,
    sent: Option<Instant>,
    next: Instant,
    /// What is kept now.
    pace_ms: u16,
    /// What heartbeats say.
    pub(super) announced_ms: u16,
    /// The first heartbeat that says so.
    announced_from: u32,
}

impl Rhythm {
    pub(super) const fn new(interval_ms: u16, first: Instant) -> Self {
        Self {
            seq: 0,
            sent: None,
            next: first,
            pace_ms: interval_ms,
            announced_ms: interval_ms,
            announced_from: 1,
        }
    }

    /// Both ends agree on an interval, as far as this end knows.
    pub(super) fn agree(&mut self, interval_ms: u16, now: Instant) {
        if interval_ms != self.announced_ms {
            self.announced_ms = interval_ms;
            self.announced_from = self.seq.wrapping_add(1);
        }
        if interval_ms < self.pace_ms {
            self.pace_ms = interval_ms;
            self.hurry(now);
        }
    }

    /// The peer has heard our heartbeat `seq`.
    pub(super) fn echoed(&mut self, seq: u32) {
        if !newer(self.announced_from, seq) {
            self.pace_ms = self.announced_ms;
        }
    }

    /// Something is worth saying now.
    pub(super) fn hurry(&mut self, now: Instant) {
        let earliest = self.sent.map_or(now, |sent| sent + SPACING_MIN);
        self.next = self.next.min(earliest.max(now));
    }

    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// Takes the number of a heartbeat that is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<u32> {
        if now < self.next {
            return None;
        }
        self.seq = self.seq.wrapping_add(1);
        self.sent = Some(now);
        let pace = Duration::from_millis(self.pace_ms.into());
        // Keeps its phase, unless it is so late that it would have to catch up.
        let in_phase = self.next + pace;
        self.next = if in_phase > now { in_phase } else { now + pace };
        Some(self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn times(rhythm: &mut Rhythm, from: Instant, ms: u32) -> Vec<u32> {
        (0..ms)
            .filter(|&at| rhythm.take(from + MS * at).is_some())
            .collect()
    }

    #[test]
    fn faster_is_at_once_and_slower_when_the_peer_knows() {
        let mut now = Instant::now();
        let mut rhythm = Rhythm::new(50, now);
        assert_eq!(times(&mut rhythm, now, 200), [0, 50, 100, 150]);
        now += MS * 170;
        rhythm.agree(10, now);
        assert_eq!(times(&mut rhythm, now, 30), [0, 10, 20]);
        now += MS * 30;
        let before = rhythm.seq;
        rhythm.agree(50, now);
        assert_eq!(rhythm.announced_ms, 50);
        assert_eq!(times(&mut rhythm, now, 20), [0, 10]);
        now += MS * 20;
        // An echo of what was sent before says nothing.
        rhythm.echoed(before);
        assert_eq!(times(&mut rhythm, now, 20), [0, 10]);
        now += MS * 20;
        rhythm.echoed(before + 1);
        assert_eq!(times(&mut rhythm, now, 120), [0, 50, 100]);
    }

    #[test]
    fn a_stall_is_not_made_up_for() {
        let now = Instant::now();
        let mut rhythm = Rhythm::new(10, now);
        assert_eq!(times(&mut rhythm, now, 1), [0]);
        assert_eq!(times(&mut rhythm, now + MS * 500, 25), [0, 10, 20]);
    }

    #[test]
    fn hurrying_has_a_floor() {
        let now = Instant::now();
        let mut rhythm = Rhythm::new(10, now);
        let mut sent = 0;
        for at in 0..100 {
            let now = now + MS * at / 10;
            rhythm.hurry(now);
            sent += u32::from(rhythm.take(now).is_some());
        }
        assert_eq!(sent, 10);
    }
}
