//! Short bursts on a path that nobody has measured: sent faster than start-up's window alone would have them.
//!
//! A prompt of some hundred KiB has left before its first acknowledgement is back, so it teaches nothing of the path's rate,
//! and the next one would leave at the pace of the first guess again, for weeks. As long as little is in flight, the pacer is
//! therefore shown a larger window. A burst that met a queue, or lost much, gives that up for those that follow; each that met
//! neither brings some of it back.

use std::time::Duration;

/// What may leave at that pace before anything is acknowledged: a long prompt of 256 KiB and what mends it.
const SHORT_BYTES: u64 = 320 << 10;

/// The window that is shown, at most, in windows of start-up: twice 70 Mbit/s.
const PACE_MAX: f64 = 2.0;

/// How much of it a good burst brings back.
const PACE_STEP: f64 = 0.25;

/// A burst of less says nothing.
const TELLING_BYTES: u64 = 32 << 10;

/// A queue is what the least round trip of so many batches has above the path's own: acknowledgements that wait for company,
/// or are lost on their way back, make single ones long.
const QUEUE_BATCHES: u32 = 8;

/// Queue, and part of the bytes lost, that a burst is too fast from.
const QUEUE_MAX: Duration = Duration::from_millis(10);
const LOST_MAX: f64 = 0.125;

/// The pace of short bursts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sprint {
    pace: f64,
    in_flight: u64,
    /// Of the burst that runs.
    acked: u64,
    lost: u64,
    queue: Option<Duration>,
    /// Of the batches that are not yet enough: how many, and their least.
    batches: (u32, Duration),
}

impl Sprint {
    pub(super) const fn new() -> Self {
        Self {
            pace: PACE_MAX,
            in_flight: 0,
            acked: 0,
            lost: 0,
            queue: None,
            batches: (0, Duration::MAX),
        }
    }

    /// The window to show for start-up's `window`.
    pub(super) fn window(&self, window: u64) -> u64 {
        if self.in_flight < SHORT_BYTES {
            (window as f64 * self.pace) as u64
        } else {
            window
        }
    }

    pub(super) const fn on_sent(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_add(bytes);
    }

    pub(super) fn on_loss(&mut self, bytes: u64, persistent: bool) {
        self.lost = self.lost.saturating_add(bytes);
        if persistent {
            self.pace = 1.0;
        }
    }

    /// A batch of acknowledgements; `queue` is what its round trip had above the path's own.
    pub(super) fn on_batch(&mut self, acked: u64, queue: Duration) {
        self.acked = self.acked.saturating_add(acked);
        let (count, least) = &mut self.batches;
        *least = queue.min(*least);
        *count += 1;
        if *count == QUEUE_BATCHES {
            self.queue = self.queue.max(Some(*least));
            self.batches = (0, Duration::MAX);
        }
    }

    /// All that is known is acknowledged or lost but for so much. A burst is over with the last of it.
    pub(super) fn left(&mut self, in_flight: u64) {
        self.in_flight = in_flight;
        if in_flight > 0 {
            return;
        }
        // Of few acknowledgements in all, these are the only ones that tell.
        let few = (self.batches.0 > 1).then_some(self.batches.1);
        let queue = self.queue.or(few).unwrap_or_default();
        let sent = self.acked.saturating_add(self.lost);
        if sent >= TELLING_BYTES {
            let lossy = self.lost as f64 > sent as f64 * LOST_MAX;
            self.pace = if lossy || queue > QUEUE_MAX {
                1.0
            } else {
                (self.pace + PACE_STEP).min(PACE_MAX)
            };
        }
        *self = Self {
            pace: self.pace,
            ..Self::new()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u64 = 1 << 20;

    fn burst(sprint: &mut Sprint, (acked, lost): (u64, u64), queue_ms: u64) -> u64 {
        sprint.on_sent(acked + lost);
        sprint.on_loss(lost, false);
        for _ in 0..QUEUE_BATCHES {
            let batch = acked / u64::from(QUEUE_BATCHES);
            sprint.on_batch(batch, Duration::from_millis(queue_ms));
        }
        sprint.left(0);
        sprint.window(WINDOW)
    }

    #[test]
    fn a_burst_leaves_fast_as_long_as_it_is_short() {
        let mut sprint = Sprint::new();
        assert_eq!(sprint.window(WINDOW), 2 * WINDOW);
        sprint.on_sent(SHORT_BYTES - 1);
        assert_eq!(sprint.window(WINDOW), 2 * WINDOW);
        sprint.on_sent(1);
        assert_eq!(sprint.window(WINDOW), WINDOW);
        sprint.left(100_000);
        assert_eq!(sprint.window(WINDOW), 2 * WINDOW);
    }

    #[test]
    fn a_few_acknowledgements_that_all_were_late_are_one() {
        let mut sprint = Sprint::new();
        sprint.on_sent(60_000);
        (0..3).for_each(|_| sprint.on_batch(20_000, Duration::from_millis(25)));
        sprint.left(0);
        assert_eq!(sprint.window(WINDOW), WINDOW);
    }

    #[test]
    fn acknowledgements_that_were_late_are_no_queue() {
        let mut sprint = Sprint::new();
        sprint.on_sent(200_000);
        for at in 0..100 {
            let late = at % 10 == 0;
            sprint.on_batch(2_000, Duration::from_millis(if late { 25 } else { 2 }));
        }
        sprint.left(0);
        assert_eq!(sprint.window(WINDOW), 2 * WINDOW);
    }

    #[test]
    fn a_queue_or_much_loss_ends_it_and_good_bursts_bring_it_back() {
        for (bytes, queue_ms) in [((100_000, 0), 11), ((100_000, 20_000), 0)] {
            let mut sprint = Sprint::new();
            assert_eq!(burst(&mut sprint, (100_000, 3_000), 10), 2 * WINDOW);
            assert_eq!(burst(&mut sprint, bytes, queue_ms), WINDOW);
            assert_eq!(burst(&mut sprint, (2_000, 1_000), 90), WINDOW, "too little");
            let back = burst(&mut sprint, (100_000, 0), 0);
            assert_eq!(back, WINDOW + WINDOW / 4);
            sprint.on_loss(0, true);
            assert_eq!(sprint.window(WINDOW), WINDOW, "nothing came through");
        }
    }
}
