//! Opens an exchange a second time, over another path, when its acceptance is late.
//!
//! The egress accepts at once, long before the model answers, so lateness says something about the path alone. Late is
//! what 95 of 100 acceptances on the link are not. The second OPEN is the same exchange to the same incarnation of the
//! same egress, which takes both for one. One node-wide task looks after all of them, the soonest first: an exchange costs a
//! place in a heap, and no timer.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Tunnel, end::End};

/// An acceptance is not late before this.
pub(super) const LATE_MIN: Duration = Duration::from_millis(20);

/// And it is after this, whatever was seen before.
pub(super) const LATE_MAX: Duration = Duration::from_millis(500);

/// One hedge for so many exchanges.
const EXCHANGES_A_HEDGE: u64 = 20;

/// Hedges in a row.
const BURST: u64 = 10;

/// Exchanges that may wait to be looked at; those beyond are not hedged. 16,384 x 24 bytes = 400 KiB.
const WAITING_MAX: usize = 16_384;

/// How long acceptances take on a link: what 95 of 100 stay below. Wait-free, and forgets slowly.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    /// Microseconds; 0 before the first.
    p95: AtomicU64,
}

impl Lateness {
    /// One more acceptance. Moves the estimate up nineteen times as far as down, so that it rests where
    /// one in twenty is above it. Two at once may lose one of them, which does not matter.
    pub(super) fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let known = self.p95.load(Ordering::Relaxed);
        let step = (known / 200).max(1);
        let now = match known {
            0 => took * 2,
            _ if took > known => known + step * 19,
            _ => known.saturating_sub(step).max(1),
        };
        self.p95.store(now, Ordering::Relaxed);
    }

    /// When an acceptance is late, on a link with this round trip.
    pub(super) fn limit(&self, rtt: Duration) -> Duration {
        let limit = match self.p95.load(Ordering::Relaxed) {
            0 => rtt * 2 + LATE_MIN,
            p95 => Duration::from_micros(p95).max(rtt),
        };
        limit.clamp(LATE_MIN, LATE_MAX)
    }
}

/// One whose acceptance will be late, by when that is.
#[derive(Debug)]
struct Waiting {
    at: Instant,
    end: Weak<End>,
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Waiting {}

/// Those that may have to be opened again.
#[derive(Debug)]
pub(super) struct Hedges {
    waiting: Mutex<BinaryHeap<Reverse<Waiting>>>,
    /// In twentieths of a hedge.
    allowance: AtomicU64,
    running: AtomicBool,
    some: Notify,
}

impl Default for Hedges {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            allowance: AtomicU64::new(BURST * EXCHANGES_A_HEDGE),
            running: AtomicBool::new(false),
            some: Notify::new(),
        }
    }
}

impl Hedges {
    fn earn(&self) {
        let most = BURST * EXCHANGES_A_HEDGE;
        let add = |now: u64| (now < most).then_some(now + 1);
        // Full is full.
        let _ = self
            .allowance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn spend(&self) -> bool {
        let take = |now: u64| now.checked_sub(EXCHANGES_A_HEDGE);
        self.allowance
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok()
    }

    /// Takes one in. Whether it is the first whose time will come; nothing if there is no room.
    fn wait(&self, at: Instant, end: Weak<End>) -> Option<bool> {
        let mut waiting = self.waiting.lock();
        let sooner = waiting.peek().is_none_or(|Reverse(first)| at < first.at);
        let room = waiting.len() < WAITING_MAX;
        room.then(|| {
            waiting.push(Reverse(Waiting { at, end }));
            sooner
        })
    }

    /// Those whose time has come, or when to look again.
    fn due(&self, now: Instant) -> Result<Vec<Arc<End>>, Option<Instant>> {
        let mut waiting = self.waiting.lock();
        let mut due = Vec::new();
        while let Some(Reverse(first)) = waiting.peek() {
            if first.at > now {
                let at = first.at;
                return if due.is_empty() {
                    Err(Some(at))
                } else {
                    Ok(due)
                };
            }
            let late = waiting.pop().and_then(|Reverse(late)| late.end.upgrade());
            due.extend(late.filter(|end| !end.is_accepted() && end.fate().is_none()));
        }
        if due.is_empty() { Err(None) } else { Ok(due) }
    }
}

impl Tunnel {
    /// Has an exchange that was just opened looked after, if there is another way for it.
    pub(super) fn may_hedge(&self, end: &Arc<End>, now: Instant) {
        let link = end.home();
        let hedges = self.hedges();
        hedges.earn();
        if self.way_to_egress(&end.far, Some(&link)).is_none() {
            return;
        }
        let at = now + link.lateness().limit(link.rtt());
        if hedges.wait(at, Arc::downgrade(end)) != Some(true) {
            return;
        }
        if hedges.running.swap(true, Ordering::Relaxed) {
            hedges.some.notify_one();
        } else {
            self.tasks().spawn(look_after(self.clone()));
        }
    }
}

async fn look_after(tunnel: Tunnel) {
    let hedges = tunnel.hedges();
    loop {
        match hedges.due(Instant::now()) {
            Ok(late) => {
                for end in late {
                    if hedges.spend() {
                        tunnel.hedge(&end);
                    }
                }
            }
            Err(Some(at)) => {
                // Or until one comes whose time is sooner.
                let _ = tokio::time::timeout_at(at.into(), hedges.some.notified()).await;
            }
            Err(None) => hedges.some.notified().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_is_what_one_in_twenty_is() {
        let (lateness, mut rng) = (Lateness::default(), fastrand::Rng::with_seed(5));
        for _ in 0..20_000 {
            lateness.note(Duration::from_millis(rng.u64(100..200)));
        }
        let limit = lateness.limit(Duration::from_millis(80)).as_millis();
        assert!((185..=200).contains(&limit), "{limit} ms");
        let fast = Lateness::default();
        fast.note(Duration::from_micros(50));
        assert_eq!(fast.limit(Duration::ZERO), LATE_MIN);
        assert_eq!(fast.limit(Duration::from_secs(9)), LATE_MAX);
    }

    #[test]
    fn one_in_twenty_is_hedged_and_a_few_in_a_row() {
        let hedges = Hedges::default();
        assert_eq!((0..100).filter(|_| hedges.spend()).count(), 10);
        (0..200).for_each(|_| hedges.earn());
        assert_eq!((0..100).filter(|_| hedges.spend()).count(), 10);
        (0..19).for_each(|_| hedges.earn());
        assert!(!hedges.spend());
        hedges.earn();
        assert!(hedges.spend());
    }

    #[test]
    fn who_is_late_sooner_does_not_wait_behind_who_is_late_later() {
        let (hedges, now) = (Hedges::default(), Instant::now());
        let at = |ms| now + Duration::from_millis(ms);
        assert_eq!(hedges.wait(at(500), Weak::new()), Some(true));
        assert_eq!(hedges.wait(at(20), Weak::new()), Some(true));
        assert_eq!(hedges.wait(at(30), Weak::new()), Some(false));
        let next = |ms| hedges.due(at(ms)).err().flatten();
        assert_eq!(next(0), Some(at(20)));
        assert_eq!(next(20), Some(at(30)));
        assert_eq!(next(30), Some(at(500)));
        assert_eq!(next(500), None);
        for ms in 0..WAITING_MAX as u64 {
            assert!(hedges.wait(at(ms), Weak::new()).is_some());
        }
        assert_eq!(hedges.wait(at(0), Weak::new()), None, "no room");
    }
}
