//! A leased line of known rate, shared by all connections of a node that are busy on it.
//!
//! The line's owner knows its rate, so nothing has to be found out: each busy connection takes an
//! equal share at once, without slow start, and gives it back when it rests.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

/// Part of the line that is shared out; the rest is for headers, acknowledgements and heartbeats.
const USED: f64 = 0.9;

/// A line of known rate.
#[derive(Debug)]
pub struct Line {
    bytes_per_second: f64,
    busy: AtomicU32,
}

impl Line {
    /// A line of so many megabits a second.
    #[must_use]
    pub fn new(mbps: u32) -> Arc<Self> {
        Arc::new(Self {
            bytes_per_second: f64::from(mbps) * 1e6 / 8.0,
            busy: AtomicU32::new(0),
        })
    }
}

/// One connection's part of the line. Gives itself back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    line: Arc<Line>,
    busy: bool,
}

impl Share {
    pub(super) const fn new(line: Arc<Line>) -> Self {
        Self { line, busy: false }
    }

    /// Bytes a second that this connection may send now.
    pub(super) fn rate(&self) -> f64 {
        let others = self.line.busy.load(Ordering::Relaxed);
        let sharing = if self.busy {
            others
        } else {
            others.saturating_add(1)
        };
        self.line.bytes_per_second * USED / f64::from(sharing.max(1))
    }

    /// Takes or gives back the place among those that share.
    pub(super) fn set_busy(&mut self, busy: bool) {
        if busy == self.busy {
            return;
        }
        self.busy = busy;
        if busy {
            self.line.busy.fetch_add(1, Ordering::Relaxed);
        } else {
            self.line.busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Clone for Share {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.line))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set_busy(false);
    }
}
