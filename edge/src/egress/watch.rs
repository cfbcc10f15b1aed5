//! The times that an exchange must keep: its deadline, and how long a provider may be silent.
//!
//! One timer serves both, and is only moved when it fires, so that a chunk costs a look at the clock and no more.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::time::Sleep;

/// Far enough away to never fire for an exchange without a deadline.
const NEVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// Which time was not kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expired {
    /// That of the whole exchange.
    Deadline,
    /// That of the provider's silence.
    Silence(Duration),
}

/// Keeps the times of one exchange.
#[derive(Debug)]
pub struct Watch {
    timer: Pin<Box<Sleep>>,
    deadline: Instant,
    /// When something last moved.
    since: Instant,
    silence_max: Duration,
}

impl Watch {
    /// Watches over an exchange that must end by `deadline`; silence is free until [`Self::begin`].
    pub fn new(deadline: Option<Instant>, now: Instant) -> Self {
        let deadline = deadline.unwrap_or(now + NEVER);
        Self {
            timer: Box::pin(tokio::time::sleep_until(deadline.into())),
            deadline,
            since: now,
            silence_max: NEVER,
        }
    }

    /// From now on, silence may last this long.
    pub fn begin(&mut self, silence_max: Duration, now: Instant) {
        self.since = now;
        self.silence_max = silence_max;
        let due = self.due();
        if due < self.timer.deadline().into_std() {
            self.timer.as_mut().reset(due.into());
        }
    }

    /// Something moved.
    pub fn moved(&mut self, now: Instant) {
        self.since = now;
    }

    fn due(&self) -> Instant {
        self.deadline.min(self.since + self.silence_max)
    }

    /// Ready once a time was not kept.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let due = self.due();
            if self.deadline <= now {
                return Poll::Ready(Expired::Deadline);
            }
            if due <= now {
                return Poll::Ready(Expired::Silence(self.silence_max));
            }
            self.timer.as_mut().reset(due.into());
        }
    }

    /// Ready once the deadline has passed. Silence is not the provider's while its answer cannot be written on.
    pub fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.poll(cx)) {
                Expired::Deadline => return Poll::Ready(()),
                Expired::Silence(_) => self.moved(Instant::now()),
            }
            let due = self.due();
            self.timer.as_mut().reset(due.into());
        }
    }

    /// Waits for `future` as long as the times allow. `progress` is a number that changes while something moves.
    ///
    /// Cancel safety: that of `future`.
    ///
    /// # Errors
    /// [`Expired`], and `future` is dropped.
    pub async fn within<F: Future>(
        &mut self,
        future: F,
        progress: impl Fn() -> u64,
    ) -> Result<F::Output, Expired> {
        let mut future = pin!(future);
        let mut seen = progress();
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            loop {
                let expired = ready!(self.poll(cx));
                let moved = progress();
                if expired == Expired::Deadline || moved == seen {
                    return Poll::Ready(Err(expired));
                }
                seen = moved;
                self.moved(Instant::now());
                let due = self.due();
                self.timer.as_mut().reset(due.into());
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn silence_and_deadline_are_told_apart() {
        let now = Instant::now();
        let mut silent = Watch::new(Some(now + 60 * SECOND), now);
        silent.begin(Duration::ZERO, now);
        let waited = silent.within(std::future::pending::<()>(), || 0).await;
        assert_eq!(waited, Err(Expired::Silence(Duration::ZERO)));
        let mut late = Watch::new(Some(now), now);
        let waited = late.within(std::future::pending::<()>(), || 0).await;
        assert_eq!(waited, Err(Expired::Deadline));
        let mut free = Watch::new(None, now);
        assert_eq!(free.within(async { 7 }, || 0).await, Ok(7));
    }

    #[tokio::test]
    async fn what_moves_is_not_silent() {
        let now = Instant::now();
        let mut watch = Watch::new(Some(now + 60 * SECOND), now);
        watch.begin(Duration::from_millis(1), now);
        let looks = std::cell::Cell::new(0);
        let progress = || {
            looks.set(looks.get() + 1);
            // It moves at the first three looks after the one at the start.
            looks.get().min(4)
        };
        let waited = watch.within(std::future::pending::<()>(), progress).await;
        assert_eq!(waited, Err(Expired::Silence(Duration::from_millis(1))));
        assert_eq!(looks.get(), 5);
    }
}
