//! What every request finds on the desk: keys, pace, shelf, faults and counters.
//!
//! One desk a process. Each part keeps its own bounds; see `shelf`, `fault` and `stats`.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fault::Faults;
use crate::shelf::Shelf;
use crate::stats::Stats;

/// How long things take when a request does not say otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) first_ms: u64,
    pub(crate) token_ms: u64,
    pub(crate) task_ms: u64,
}

/// All that outlives a request.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) keys: Vec<String>,
    pub(crate) pace: Pace,
    pub(crate) shelf: Shelf,
    pub(crate) faults: Faults,
    pub(crate) stats: Arc<Stats>,
}

impl Desk {
    pub(crate) fn new(keys: Vec<String>, pace: Pace) -> Arc<Self> {
        let stats = Arc::new(Stats::new(keys.len()));
        Arc::new(Self {
            keys,
            pace,
            shelf: Shelf::default(),
            faults: Faults::default(),
            stats,
        })
    }
}

/// Milliseconds since 1970, as the objects' times are kept.
pub(crate) fn unix_ms() -> u64 {
    u64::try_from(unix_ns() / 1_000_000).unwrap_or(u64::MAX)
}

/// Nanoseconds since 1970, as the counters state moments.
pub(crate) fn unix_ns() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos())
}

/// A fresh id: `prefix` and 24 random hex digits.
pub(crate) fn fresh_id(prefix: &str) -> String {
    format!(
        "{prefix}{:016x}{:08x}",
        fastrand::u64(..),
        fastrand::u32(..)
    )
}
