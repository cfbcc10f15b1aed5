//! A way from this node to an egress.

use std::{sync::Arc, time::Duration};

use super::Condition;

/// A way from this node to an egress: one link, or two over a relay.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Path {
    /// Where it ends.
    pub egress: Arc<str>,
    /// The node between, if any.
    pub relay: Option<Arc<str>>,
}

impl Path {
    /// A path of one link.
    #[must_use]
    pub const fn direct(egress: Arc<str>) -> Self {
        Self {
            egress,
            relay: None,
        }
    }

    /// The node at the other end of the path's first link.
    #[must_use]
    pub const fn first_hop(&self) -> &Arc<str> {
        match &self.relay {
            Some(relay) => relay,
            None => &self.egress,
        }
    }
}

/// What this node sees of a usable path's first link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PathState {
    /// Whether packets get through.
    pub condition: Condition,
    /// Smoothed round trip of the first link.
    pub rtt: Duration,
    /// Exchanges of this node on it.
    pub outstanding: u32,
}
