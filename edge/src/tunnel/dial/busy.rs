//! How many connections a path has: one, and more while it is busy.
//!
//! One task at a time drives a connection, so one connection is never faster than one core. Each exchange counts on the
//! connection that carries it; when one of them has come to [`EXCHANGES`] and the others are as full, another is dialled.
//! The newest is let go again when the rest could do its work for a while.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::tunnel::{link::Link, vitals::CROWD};

/// Exchanges on each connection above which there is another.
const EXCHANGES: u32 = CROWD;

/// Connections of one path at most.
const CONNECTIONS_MAX: usize = 4;

/// How long the others must have been able to do the work of the newest.
const CALM: Duration = Duration::from_secs(60);

/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The connections of one path.
#[derive(Debug)]
pub(super) struct Busy {
    connections: Mutex<Connections>,
    more: Notify,
}

#[derive(Debug)]
struct Connections {
    taken: [bool; CONNECTIONS_MAX],
    /// Oldest first.
    links: Vec<Arc<Link>>,
}

/// A connection beside the first. Its number is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    busy: Arc<Busy>,
    pub(super) number: usize,
}

impl Busy {
    /// Of a path whose first connection is up.
    pub(super) fn new(first: &Arc<Link>) -> Arc<Self> {
        let mut taken = [false; CONNECTIONS_MAX];
        taken[0] = true;
        let links = vec![Arc::clone(first)];
        Arc::new(Self {
            connections: Mutex::new(Connections { taken, links }),
            more: Notify::new(),
        })
    }

    /// Returns once there is reason to look for a [`Self::seat`].
    ///
    /// Cancel safety: dropping the future forgets nothing.
    pub(super) async fn crowded(&self, first: &Link) {
        tokio::select! {
            () = first.vitals().crowded() => {}
            () = self.more.notified() => {}
        }
    }

    /// A place for another connection, if all there are, and those that are being dialled, are busy.
    pub(super) fn seat(self: &Arc<Self>) -> Option<Seat> {
        let mut connections = self.connections.lock();
        let taken = connections.taken.iter().filter(|taken| **taken).count();
        if !wants_more(taken, exchanges(&connections.links)) {
            return None;
        }
        let number = connections.taken.iter().position(|taken| !taken)?;
        connections.taken[number] = true;
        Some(Seat {
            busy: Arc::clone(self),
            number,
        })
    }
}

impl Seat {
    /// Its connection is up.
    pub(super) fn take(&self, link: &Arc<Link>) {
        self.busy.connections.lock().links.push(Arc::clone(link));
    }

    /// Its connection takes no more exchanges.
    pub(super) fn leave(&self, link: &Arc<Link>) {
        let mut connections = self.busy.connections.lock();
        connections.links.retain(|other| !Arc::ptr_eq(other, link));
    }

    /// Returns once its connection, which is up, is no longer needed. Passes on that it is crowded.
    pub(super) async fn unneeded(&self, link: &Arc<Link>) {
        let mut since = None;
        loop {
            tokio::select! {
                () = link.vitals().crowded() => self.busy.more.notify_one(),
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = Instant::now();
                    if !self.is_spare(link) {
                        since = None;
                    } else if now.saturating_duration_since(*since.get_or_insert(now)) >= CALM {
                        return;
                    }
                }
            }
        }
    }

    fn is_spare(&self, link: &Arc<Link>) -> bool {
        let connections = self.busy.connections.lock();
        let links = &connections.links;
        links.last().is_some_and(|last| Arc::ptr_eq(last, link))
            && spares_one(links.len(), exchanges(links))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.busy.connections.lock().taken[self.number] = false;
        // It may have been lost, and those that are left as busy as before.
        self.busy.more.notify_one();
    }
}

fn exchanges(links: &[Arc<Link>]) -> u32 {
    links.iter().map(|link| link.vitals().exchanges()).sum()
}

const fn wants_more(connections: usize, exchanges: u32) -> bool {
    connections < CONNECTIONS_MAX && exchanges >= EXCHANGES * connections as u32
}

/// Whether all but one would be half full at most.
const fn spares_one(connections: usize, exchanges: u32) -> bool {
    connections > 1 && exchanges <= EXCHANGES / 2 * (connections as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_for_every_two_thousand_and_four_at_most() {
        let most = |exchanges| {
            let mut connections = 1;
            while wants_more(connections, exchanges) {
                connections += 1;
            }
            connections
        };
        assert_eq!([0, 1_999, 2_000, 4_000, 6_000].map(most), [1, 1, 2, 3, 4]);
        assert_eq!(most(1_000_000), 4);
    }

    #[test]
    fn what_was_just_dialled_is_not_let_go_at_once() {
        for connections in 1..CONNECTIONS_MAX {
            let exchanges = EXCHANGES * connections as u32;
            assert!(wants_more(connections, exchanges));
            assert!(!spares_one(connections + 1, exchanges));
        }
        assert!(spares_one(2, 1_000) && !spares_one(2, 1_001) && !spares_one(1, 0));
    }
}
