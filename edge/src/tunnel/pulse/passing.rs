//! What a relay knows of those for whom it stands ready.
//!
//! Its links onward have a fast rhythm while an ingress behind it is busy, although nothing passes yet: whoever loses its
//! direct path to an egress asks next whether the relay still hears that egress, and is to get an answer as fresh as its own.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::tunnel::link::Link;

/// How long after an ingress was busy.
const LINGER: Duration = Duration::from_secs(1);

/// With more links onward, of which each costs 100 heartbeats a second both ways, their rhythm is that of what passes.
const ONWARD_MAX: u32 = 64;

/// Of all links of a node.
#[derive(Debug)]
pub(super) struct Passing {
    start: Instant,
    /// When an ingress was heard to be busy last, in microseconds since the start; 0 for never.
    busy_us: AtomicU64,
    /// Links that this node dialled.
    onward: AtomicU32,
}

/// One link's part in it. Only a relay has any.
#[derive(Debug)]
pub(super) struct Onward {
    passing: Arc<Passing>,
    dialled: bool,
}

impl Default for Passing {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            busy_us: AtomicU64::new(0),
            onward: AtomicU32::new(0),
        }
    }
}

impl Passing {
    fn at(&self, now: Instant) -> u64 {
        let us = now.saturating_duration_since(self.start).as_micros();
        u64::try_from(us).unwrap_or(u64::MAX).max(1)
    }
}

impl Onward {
    pub(super) fn of(link: &Link, passing: &Arc<Passing>) -> Option<Self> {
        link.tunnel.transits()?;
        let dialled = !link.is_accepted();
        if dialled {
            passing.onward.fetch_add(1, Ordering::Relaxed);
        }
        Some(Self {
            passing: Arc::clone(passing),
            dialled,
        })
    }

    /// The peer has exchanges under way, wherever.
    pub(super) fn heard(&self, now: Instant) {
        if !self.dialled {
            let now_us = self.passing.at(now);
            self.passing.busy_us.store(now_us, Ordering::Relaxed);
        }
    }

    /// Whether this link is to be as awake as if something passed.
    pub(super) fn wakes(&self, now: Instant) -> bool {
        let passing = &self.passing;
        let busy_us = passing.busy_us.load(Ordering::Relaxed);
        self.dialled
            && busy_us > 0
            && passing.onward.load(Ordering::Relaxed) <= ONWARD_MAX
            && passing.at(now) <= busy_us.saturating_add(LINGER.as_micros() as u64)
    }
}

impl Drop for Onward {
    fn drop(&mut self) {
        if self.dialled {
            self.passing.onward.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_onward_are_awake_while_somebody_behind_is_busy() {
        let passing = Arc::<Passing>::default();
        let part = |dialled| Onward {
            passing: Arc::clone(&passing),
            dialled,
        };
        passing.onward.store(1, Ordering::Relaxed);
        let (behind, onward) = (part(false), part(true));
        let now = passing.start + LINGER;
        assert!(!onward.wakes(now));
        onward.heard(now);
        assert!(!onward.wakes(now), "an egress that is busy is no reason");
        behind.heard(now);
        assert!(onward.wakes(now + LINGER) && !behind.wakes(now));
        assert!(!onward.wakes(now + LINGER + Duration::from_millis(1)));
        passing.onward.store(ONWARD_MAX + 1, Ordering::Relaxed);
        assert!(!onward.wakes(now));
    }
}
