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

/// What this node knows of a usable path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PathState {
    /// Whether packets get through: the worse of its links.
    pub condition: Condition,
    /// Smoothed round trip.
    pub rtt: Duration,
    /// What one more exchange costs, in microseconds ([`cost`](super::cost)).
    pub cost_us: u64,
    /// Round trip and cost are those of the whole path; otherwise its relay has not told of the second link.
    pub whole: bool,
    /// Exchanges of this node on it.
    pub outstanding: u32,
}
