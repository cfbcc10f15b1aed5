//! Waits until something is so, where nothing tells of it: bounded, and asked again at short intervals.

use std::time::{Duration, Instant};

/// How long anything on loopback may take, on a machine that has other work.
pub const PATIENCE: Duration = Duration::from_secs(15);

const INTERVAL: Duration = Duration::from_millis(10);

/// Asks until there is a value; fails the test with `what` when there is none in time.
pub fn wait_some<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ask() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "in vain after {PATIENCE:?}: {what}"
        );
        std::thread::sleep(INTERVAL);
    }
}

/// Asks until it is so.
pub fn wait_for(what: &str, mut ask: impl FnMut() -> bool) {
    wait_some(what, || ask().then_some(()));
}
