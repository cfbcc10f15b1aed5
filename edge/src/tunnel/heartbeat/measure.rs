//! What heartbeats measure besides life: round trip and loss each way.

use std::time::Duration;

use vector_proto::tunnel::beat::newer;

/// What the detector measured on a path.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measures {
    /// Smoothed round trip, without the time that the other end took; `None` before the first.
    pub rtt: Option<Duration>,
    /// Mean deviation of the round trip.
    pub rtt_deviation: Duration,
    /// How late heartbeats come on average.
    pub jitter: Duration,
    /// Share of our heartbeats that did not arrive, 0 to 1.
    pub loss_out: f32,
    /// Share of the peer's heartbeats that did not arrive, 0 to 1.
    pub loss_in: f32,
    /// Both together, as far as enough heartbeats show it: that the third of five got lost says nothing yet.
    pub loss: f32,
    /// Exchanges in flight at the peer, over all its links.
    pub peer_load: u16,
    /// Times that the path went down.
    pub flaps: u64,
    /// Times that the peer was another process than before.
    pub restarts: u64,
    /// Heartbeats sent.
    pub beats_out: u64,
    /// Heartbeats heard.
    pub beats_in: u64,
}

/// Round trips above this are no measurement: a counter wrapped, or the peer makes them up.
const ROUND_TRIP_MAX: Duration = Duration::from_secs(30);

/// What two clocks may differ while the peer holds a heartbeat.
const DRIFT_MAX_US: u32 = 1_000;

/// Smoothed as RFC 6298 does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundTrip {
    pub(super) smoothed: Option<Duration>,
    pub(super) deviation: Duration,
}

impl RoundTrip {
    /// A heartbeat came back `elapsed_us` after it was sent, of which the peer held it `hold_us`.
    pub(super) fn echoed(&mut self, elapsed_us: u32, hold_us: u32) {
        if hold_us > elapsed_us.saturating_add(DRIFT_MAX_US) {
            return;
        }
        let sample = Duration::from_micros(elapsed_us.saturating_sub(hold_us).into());
        if sample > ROUND_TRIP_MAX {
            return;
        }
        let Some(smoothed) = self.smoothed else {
            (self.smoothed, self.deviation) = (Some(sample), sample / 2);
            return;
        };
        self.deviation = (self.deviation * 3 + smoothed.abs_diff(sample)) / 4;
        self.smoothed = Some((smoothed * 7 + sample) / 8);
    }

    /// When an answer counts as overdue.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.smoothed.map(|smoothed| smoothed + self.deviation * 4)
    }
}

/// Heartbeats over which a share is taken: about 20 s at 10 ms. Older ones fade.
const WINDOW_BEATS: u32 = 2_048;

/// Heartbeats that have to be known before a share of them shows anything.
const ENOUGH_BEATS: f32 = 256.0;

/// The share of heartbeats that got lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Loss {
    lost: f32,
    of: f32,
}

impl Loss {
    pub(super) fn add(&mut self, lost: u32, of: u32) {
        self.lost += lost.min(WINDOW_BEATS) as f32;
        self.of += of.min(WINDOW_BEATS) as f32;
        if self.of > WINDOW_BEATS as f32 {
            self.lost /= 2.0;
            self.of /= 2.0;
        }
    }

    pub(super) fn share(&self) -> f32 {
        if self.of == 0.0 {
            return 0.0;
        }
        self.lost / self.of
    }

    /// The same, less while it is known of few.
    pub(super) fn shown(&self) -> f32 {
        self.lost / self.of.max(ENOUGH_BEATS)
    }
}

/// What became of our heartbeats, by what the peer says of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outward {
    pub(super) loss: Loss,
    /// The newest one the peer had heard when it last said so, and how many in all.
    known: Option<(u32, u32)>,
}

impl Outward {
    pub(super) fn told(&mut self, newest: u32, received: u32) {
        if let Some((before, received_before)) = self.known {
            if !newer(newest, before) {
                return;
            }
            let sent = newest.wrapping_sub(before);
            let arrived = received.wrapping_sub(received_before);
            // More than were sent: the peer counts anew, or makes it up.
            if arrived <= sent {
                self.loss.add(sent - arrived, sent);
            }
        }
        self.known = Some((newest, received));
    }

    /// The peer counts anew.
    pub(super) fn restart(&mut self) {
        self.known = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_converges_and_fades() {
        let mut loss = Loss::default();
        for at in 0..10_000 {
            loss.add(u32::from(at % 50 == 0), 1);
        }
        assert!((loss.share() - 0.02).abs() < 0.003, "{}", loss.share());
        for _ in 0..40_000 {
            loss.add(0, 1);
        }
        assert!(loss.share() < 0.0005, "{}", loss.share());
        loss.add(u32::MAX, u32::MAX);
        assert!(loss.share() <= 1.0);
        let mut few = Loss::default();
        few.add(1, 5);
        assert!(few.shown() < 0.005, "one of five says nothing");
        few.add(19, 395);
        assert_eq!(few.shown(), few.share(), "20 of 400 do");
    }

    #[test]
    fn a_peer_that_makes_figures_up_is_not_believed() {
        let mut trip = RoundTrip::default();
        trip.echoed(50_000, 60_000);
        trip.echoed(u32::MAX, 0);
        assert_eq!(trip.smoothed, None);
        trip.echoed(50_000, 50_100);
        assert_eq!(trip.smoothed, Some(Duration::ZERO));
        let mut outward = Outward::default();
        outward.told(10, 10);
        outward.told(20, 5_000);
        assert_eq!(outward.loss.share(), 0.0);
        outward.told(30, 5_005);
        assert_eq!(outward.loss.share(), 0.5);
        outward.told(u32::MAX, 0);
        assert_eq!(outward.loss.share(), 0.5, "an older one says nothing");
    }
}
