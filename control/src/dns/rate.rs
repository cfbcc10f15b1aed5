//! Keeps the zone from being a weapon: answers over UDP go where the query says that it came from, and anybody can say that.
//!
//! Each network (an IPv4 /24, an IPv6 /56) has a bucket. Beyond it every second query gets an empty answer that says "cut", so
//! that a resolver asks again over TCP, where nobody can pretend; the others get none. There are so many buckets and no more:
//! networks that fall into the same one share it.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    time::{Duration, Instant},
};

/// Queries a second of one network, and at once: of a resolver that many people use.
const RATE: u32 = 200;
const BURST: u32 = 400;

const BUCKETS: usize = 16_384;

/// What a query gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Allowed {
    Answer,
    /// Only that there would be one, over TCP.
    Cut,
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: u32,
    filled: Duration,
    cut: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Rates {
    buckets: Vec<Bucket>,
    began: Instant,
    hasher: RandomState,
}

impl Rates {
    pub(super) fn new(now: Instant) -> Self {
        let full = Bucket {
            left: BURST,
            filled: Duration::ZERO,
            cut: false,
        };
        Self {
            buckets: vec![full; BUCKETS],
            began: now,
            hasher: RandomState::new(),
        }
    }

    pub(super) fn take(&mut self, from: IpAddr, now: Instant) -> Allowed {
        let network = match from {
            IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
            IpAddr::V6(address) => u64::try_from(address.to_bits() >> 72).unwrap_or(u64::MAX),
        };
        let place = self.hasher.hash_one((from.is_ipv4(), network));
        let place = usize::try_from(place % BUCKETS as u64).unwrap_or(0);
        let since = now.saturating_duration_since(self.began);
        let bucket = &mut self.buckets[place];
        let passed = since.saturating_sub(bucket.filled);
        let more = u32::try_from(passed.as_millis() * u128::from(RATE) / 1_000).unwrap_or(u32::MAX);
        if more > 0 {
            bucket.left = bucket.left.saturating_add(more).min(BURST);
            bucket.filled = since;
        }
        if bucket.left > 0 {
            bucket.left -= 1;
            return Allowed::Answer;
        }
        bucket.cut = !bucket.cut;
        if bucket.cut {
            Allowed::Cut
        } else {
            Allowed::Nothing
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_rate_and_half_of_the_rest_is_sent_to_tcp() {
        let began = Instant::now();
        let mut rates = Rates::new(began);
        let asks = |rates: &mut Rates, text: &str, after: u64, times: u32| {
            let (from, now) = (text.parse().unwrap(), began + Duration::from_millis(after));
            let mut counts = [0; 3];
            for _ in 0..times {
                counts[rates.take(from, now) as usize] += 1;
            }
            counts
        };
        assert_eq!(asks(&mut rates, "192.0.2.1", 0, BURST), [BURST, 0, 0]);
        assert_eq!(
            asks(&mut rates, "192.0.2.200", 0, 10),
            [0, 5, 5],
            "of the same network"
        );
        assert_eq!(asks(&mut rates, "192.0.3.1", 0, 10), [10, 0, 0]);
        assert_eq!(asks(&mut rates, "192.0.2.1", 100, 30), [20, 5, 5]);
        assert_eq!(
            asks(&mut rates, "192.0.2.1", 60_000, BURST + 2),
            [BURST, 1, 1]
        );
    }
}
