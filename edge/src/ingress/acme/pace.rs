//! When an authority is asked: at two thirds of a certificate's life, and ever more rarely while it fails. Time is an argument.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::config;

/// Rest after the first failure; it doubles with each.
const REST_S: u64 = 60;

/// Longest rest of our own choice: 6 h.
const REST_MAX_S: u64 = 6 * 3_600;

/// Longest rest that an authority can ask for: a week.
const ASKED_MAX_S: u64 = 7 * 24 * 3_600;

/// Shortest time from one certificate to the next: 10 min.
const RENEWAL_REST_S: u64 = 600;

/// Why the authority is left alone for a while.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Pause {
    /// In a row.
    pub(super) failures: u32,
    /// Unix seconds.
    pub(super) until: u64,
    directory: String,
    domains: Vec<String>,
}

impl Pause {
    /// The rest after one more failure, the longer of our own and what the authority asked for.
    pub(super) fn after(
        failures: u32,
        now: u64,
        asked: Option<Duration>,
        config: &config::Acme,
    ) -> Self {
        let own = (REST_S << failures.min(16)).min(REST_MAX_S);
        let asked = asked.map_or(0, |asked| asked.as_secs().min(ASKED_MAX_S));
        let rest = own.max(asked);
        Self {
            failures: failures.saturating_add(1),
            until: now + rest + part_of(rest / 10),
            directory: config.directory.to_string(),
            domains: config.domains.clone(),
        }
    }

    /// Whether the same was asked for: other settings are tried at once.
    pub(super) fn is_for(&self, config: &config::Acme) -> bool {
        self.domains == config.domains && config.directory == *self.directory
    }
}

/// When a certificate is renewed: after two thirds of its life, and up to a thirtieth later, so that nodes that were
/// started together do not ask together. A clock that is wrong, or a certificate that is as good as over, must not make
/// the node order without a rest.
pub(super) fn renewal(from: u64, to: u64, now: u64) -> u64 {
    let life = to.saturating_sub(from);
    let due = from + life / 3 * 2 + part_of(life / 30);
    due.max(now + RENEWAL_REST_S)
}

pub(super) fn unix(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Anything up to `most`.
fn part_of(most: u64) -> u64 {
    RandomState::new().hash_one(()) % (most + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> config::Acme {
        config::Acme {
            domains: vec!["a.example".into()],
            directory: "https://ca.example/dir".parse().unwrap(),
            contact: None,
            ca: None,
            folder: "x".into(),
        }
    }

    #[test]
    fn rests_double_up_to_six_hours_and_honour_what_is_asked() {
        let rest = |failures, asked: Option<u64>| {
            let asked = asked.map(Duration::from_secs);
            Pause::after(failures, 1_000, asked, &config()).until - 1_000
        };
        assert!((60..=66).contains(&rest(0, None)));
        assert!((480..=528).contains(&rest(3, None)));
        assert!((21_600..=23_760).contains(&rest(40, None)));
        assert!((7_200..=7_920).contains(&rest(0, Some(7_200))));
        assert!((21_600..=23_760).contains(&rest(40, Some(5))));
        assert!(rest(0, Some(u64::MAX)) <= ASKED_MAX_S * 11 / 10, "bounded");
    }

    #[test]
    fn other_settings_do_not_wait() {
        let pause = Pause::after(0, 0, None, &config());
        assert!(pause.is_for(&config()));
        let domains = vec!["b.example".to_owned()];
        let other = config::Acme {
            domains,
            ..config()
        };
        assert!(!pause.is_for(&other));
    }

    #[test]
    fn renewal_is_after_two_thirds_of_a_life() {
        for _ in 0..100 {
            assert!((700..=730).contains(&renewal(100, 1_000, 0)));
        }
        assert_eq!(renewal(5, 5, 90), 690, "never at once");
    }
}
