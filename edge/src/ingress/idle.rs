//! Knows when nobody uses an HTTP/2 connection, so that it can be ended: those of HTTP/1.1 are watched by `wire`.
//!
//! A request costs a counter up and down and a look at the clock. The timer is one for each connection, looked at when it fires.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// The requests of one connection.
#[derive(Debug)]
pub(super) struct Streams {
    open: AtomicUsize,
    begun: Instant,
    /// When the last one ended, counted from `begun`.
    quiet_since_ms: AtomicU64,
}

/// One request of a connection. Dropped with its answer, it has ended.
#[derive(Debug)]
pub(super) struct Open(Arc<Streams>);

impl Streams {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: AtomicUsize::new(0),
            begun: Instant::now(),
            quiet_since_ms: AtomicU64::new(0),
        })
    }

    pub(super) fn open(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(self))
    }

    /// Resolves once there has been no request for so long.
    ///
    /// Cancel safety: may be called again.
    pub(super) async fn idle(&self, limit: Duration) {
        loop {
            let left = self.left(limit, Instant::now());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// How long it may still be used before it is to be looked at again.
    fn left(&self, limit: Duration, now: Instant) -> Duration {
        if self.open.load(Ordering::Relaxed) > 0 {
            return limit;
        }
        let quiet_since = Duration::from_millis(self.quiet_since_ms.load(Ordering::Relaxed));
        (quiet_since + limit).saturating_sub(now.saturating_duration_since(self.begun))
    }

    fn ended(&self, now: Instant) {
        let since = now.saturating_duration_since(self.begun);
        let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.quiet_since_ms.store(ms, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.ended(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_idle_once_its_last_answer_is_long_over() {
        let limit = Duration::from_secs(75);
        let streams = Streams::new();
        let after = |seconds| streams.begun + Duration::from_secs(seconds);
        let left = |seconds| streams.left(limit, after(seconds)).as_secs();
        assert_eq!((left(0), left(70), left(75)), (75, 5, 0));
        for _ in 0..2 {
            streams.open.fetch_add(1, Ordering::Relaxed);
        }
        streams.ended(after(100));
        assert_eq!(left(1_000), 75, "one is still answered");
        streams.ended(after(1_000));
        assert_eq!((left(1_000), left(1_070), left(1_075)), (75, 5, 0));
    }
}
