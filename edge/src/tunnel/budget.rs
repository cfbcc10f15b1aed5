//! What a node may keep for replays, over all its exchanges. At the limit senders stop reading; nothing is dropped.
//!
//! Every exchange may keep a little whatever the others do, so that a few stalled readers hold up nobody else.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use super::end::End;

/// Bytes that a node keeps for replays: what 4,000 exchanges with full first windows need.
pub(super) const REPLAY_BYTES_MAX: u64 = 1 << 30;

/// What an exchange may keep in any case. 20,000 exchanges x 16 KiB = 320 MB at the worst.
pub(super) const REPLAY_BYTES_FREE: u64 = 16 << 10;

/// Bytes by which a node may open windows beyond their first size: what a reader that stalls may leave unread in a
/// connection, beside the first windows, which the connection has room for.
pub(super) const GROWN_BYTES_MAX: u64 = 64 << 20;

/// By how much the windows of a node's exchanges are larger than at first.
#[derive(Debug, Default)]
pub(super) struct Growth(AtomicU64);

impl Growth {
    /// Grants `more` bytes, if they are left, and adds them to `grown`.
    pub(super) fn take(&self, more: u64, grown: &mut u64) -> bool {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |all| {
                Some(all + more).filter(|all| *all <= GROWN_BYTES_MAX)
            });
        *grown += if taken.is_ok() { more } else { 0 };
        taken.is_ok()
    }

    pub(super) fn give_back(&self, grown: u64) {
        if grown > 0 {
            self.0.fetch_sub(grown, Ordering::Relaxed);
        }
    }
}

#[derive(Debug)]
pub(super) struct Budget {
    most: AtomicU64,
    used: AtomicU64,
    /// Ends whose writers wait. One entry an end, at the most.
    waiting: Mutex<Vec<Weak<End>>>,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            most: AtomicU64::new(REPLAY_BYTES_MAX),
            used: AtomicU64::new(0),
            waiting: Mutex::default(),
        }
    }
}

impl Budget {
    #[cfg(test)]
    pub(super) fn limit(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(super) fn is_spent(&self) -> bool {
        self.used() > self.most.load(Ordering::Relaxed)
    }

    /// An end that was charged for `charged` bytes holds `held` now.
    pub(super) fn charge(&self, charged: &mut u64, held: u64) {
        let spent = *charged > held && self.is_spent();
        if held > *charged {
            self.used.fetch_add(held - *charged, Ordering::Relaxed);
        } else if held < *charged {
            self.used.fetch_sub(*charged - held, Ordering::Relaxed);
        }
        *charged = held;
        if spent && !self.is_spent() {
            self.wake();
        }
    }

    fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for end in waiting.iter().filter_map(Weak::upgrade) {
            end.awaits_budget.store(false, Ordering::Relaxed);
            end.writer.wake();
        }
    }

    /// Whether an end that holds `held` bytes must wait; then its writer is woken when there is room.
    pub(super) fn must_wait(&self, end: &Arc<End>, held: u64) -> bool {
        if held <= REPLAY_BYTES_FREE || !self.is_spent() {
            return false;
        }
        if !end.awaits_budget.swap(true, Ordering::Relaxed) {
            self.waiting.lock().push(Arc::downgrade(end));
        }
        // Room that came before the end was on the list would wake nobody.
        if !self.is_spent() {
            self.wake();
        }
        true
    }
}
