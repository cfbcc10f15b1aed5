//! How a link's path is, for whoever chooses among links or moves exchanges away.
//!
//! The detector writes it, everyone else reads. Each link has its own, which ends with it; what was learned of the path goes
//! on to the next link over it with the detector (`dial`). Reading the condition or the cost is one atomic load, since they
//! are asked with every request.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::cost::Hop;
pub use super::heartbeat::Measures;

/// Whether packets get through, as far as both ends know. The worst is the largest.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Condition {
    /// Both directions carry packets.
    #[default]
    Up = 0,
    /// A direction is silent, or was until just now: no new exchanges if another link is up, and
    /// what runs is worth sending twice.
    Suspect = 1,
    /// A direction is dead: move away what runs.
    Down = 2,
}

impl Condition {
    /// As metrics and logs call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// Exchanges on one link that are many. A connection is driven on one core at a time, and of that so many answers of fifty
/// pieces a second take about a fifth.
pub(super) const CROWD: u32 = 2_000;

/// How the path of a link is.
#[derive(Debug, Default)]
pub struct Vitals {
    condition: AtomicU8,
    changes: watch::Sender<Condition>,
    measures: Mutex<Measures>,
    /// Of them: the round trip above, and what an exchange costs below. 0 before the first.
    cost: AtomicU64,
    /// And what the peer has in flight.
    peer_load: AtomicU32,
    /// Exchanges on the link.
    exchanges: AtomicU32,
    /// The detector beats fast already; nobody need wake it.
    awake: AtomicBool,
    wake: Notify,
    crowded: Notify,
    /// Stops the detector that writes now.
    writer: Mutex<CancellationToken>,
}

impl Vitals {
    /// The condition now. [`Condition::Up`] where no detector runs.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match self.condition.load(Ordering::Acquire) {
            0 => Condition::Up,
            1 => Condition::Suspect,
            _ => Condition::Down,
        }
    }

    /// Tells every change of the condition from now on. One that lasts shorter than the receiver
    /// takes to look is not seen.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Condition> {
        self.changes.subscribe()
    }

    /// What was measured last.
    #[must_use]
    pub fn measures(&self) -> Measures {
        *self.measures.lock()
    }

    /// Exchanges on the link.
    #[must_use]
    pub fn exchanges(&self) -> u32 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// A new detector takes over from the one before it, whose token is cancelled.
    pub(super) fn take_over(&self) -> CancellationToken {
        let mut writer = self.writer.lock();
        writer.cancel();
        *writer = CancellationToken::new();
        writer.clone()
    }

    /// The detector's verdict.
    pub fn set(&self, condition: Condition) {
        self.condition.store(condition as u8, Ordering::Release);
        self.changes.send_if_modified(|known| {
            let differs = *known != condition;
            *known = condition;
            differs
        });
    }

    /// The detector's figures.
    pub fn measured(&self, measures: Measures) {
        *self.measures.lock() = measures;
        let hop = Hop::measured(&measures);
        let cost = hop.map_or(0, |hop| {
            u64::from(hop.rtt_us) << 32 | u64::from(hop.cost_us())
        });
        self.cost.store(cost, Ordering::Relaxed);
        let load = measures.peer_load.into();
        self.peer_load.store(load, Ordering::Relaxed);
    }

    /// Round trip, and what one exchange costs, in microseconds; nothing before they were measured.
    #[must_use]
    pub fn cost_us(&self) -> Option<(u32, u32)> {
        match self.cost.load(Ordering::Relaxed) {
            0 => None,
            cost => Some(((cost >> 32) as u32, cost as u32)),
        }
    }

    /// Exchanges in flight at the peer, over all its links, as it says.
    #[must_use]
    pub fn peer_load(&self) -> u32 {
        self.peer_load.load(Ordering::Relaxed)
    }

    /// An exchange began on the link. Wakes the detector if it beats slowly.
    pub fn began(&self) {
        let before = self.exchanges.fetch_add(1, Ordering::Relaxed);
        if before.wrapping_add(1).is_multiple_of(CROWD) {
            self.crowded.notify_one();
        }
        if !self.awake.load(Ordering::Relaxed) {
            self.awake.store(true, Ordering::Relaxed);
            self.wake.notify_one();
        }
    }

    /// `count` exchanges on the link ended.
    pub fn ended(&self, count: u32) {
        self.exchanges.fetch_sub(count, Ordering::Relaxed);
    }

    /// The detector goes back to beating slowly: the next exchange must wake it.
    pub fn doze(&self) {
        self.awake.store(false, Ordering::Relaxed);
    }

    /// Returns once the exchanges have become [`CROWD`], or a multiple of it.
    ///
    /// Cancel safety: dropping the future forgets nothing.
    pub(super) async fn crowded(&self) {
        self.crowded.notified().await;
    }

    /// Returns once an exchange began after [`Self::doze`].
    ///
    /// Cancel safety: dropping the future forgets nothing.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_is_told_once() {
        let vitals = Vitals::default();
        let mut watch = vitals.watch();
        vitals.set(Condition::Up);
        assert!(!watch.has_changed().unwrap());
        vitals.set(Condition::Down);
        assert!(watch.has_changed().unwrap());
        assert_eq!(*watch.borrow_and_update(), Condition::Down);
        assert_eq!(vitals.condition(), Condition::Down);
        vitals.set(Condition::Down);
        assert!(!watch.has_changed().unwrap());
    }

    #[tokio::test]
    async fn the_first_exchange_wakes_the_detector_and_the_next_does_not() {
        let vitals = Vitals::default();
        vitals.began();
        vitals.woken().await;
        vitals.began();
        vitals.ended(2);
        assert_eq!(vitals.exchanges(), 0);
        let again = tokio::time::timeout(Duration::ZERO, vitals.woken()).await;
        assert!(again.is_err(), "woken though it is awake");
        vitals.doze();
        vitals.began();
        vitals.woken().await;
    }
}
