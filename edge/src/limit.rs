//! How much one key may do on this node: requests a minute, tokens a minute, requests at once.
//!
//! Rates are kept as a theoretical arrival time (GCRA): one number for each rate, no window that
//! resets, no timer. Everything here is pure: time is an argument. A key without limits costs
//! nothing and is not remembered; a remembered key is forgotten once it is idle.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use vector_proto::control::v1::KeyPolicy;

mod gcra;

use crate::lookup::HashMap;
use gcra::Gcra;

/// Parts of the map, so that keys seldom wait for each other.
const SHARDS: usize = 16;

/// Keys of one part. 16 parts x 8,192 keys x about 200 bytes = 26 MiB at the worst.
const SHARD_KEYS_MAX: usize = 8_192;

/// When to look again for a place: any of those that run may end.
const BUSY: Duration = Duration::from_secs(1);

/// What was too much.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Which {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
    /// Requests at once.
    Concurrency,
    /// Limited keys on this node.
    Keys,
}

/// A request may not start now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// What was too much.
    pub which: Which,
    /// When it may work again.
    pub retry_after: Duration,
    /// Where the rates stand, for `x-ratelimit-*`.
    pub rates: Rates,
}

/// Where one rate stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// A minute's worth.
    pub limit: u64,
    /// What may still come at once.
    pub remaining: u64,
    /// Until everything may come at once again.
    pub reset: Duration,
}

/// Where a key's rates stand; absent where there is no limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Rates {
    /// Requests a minute.
    pub requests: Option<Rate>,
    /// Tokens a minute.
    pub tokens: Option<Rate>,
}

/// Every limited key of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limiter {
    shards: Arc<[Mutex<Shard>; SHARDS]>,
    hasher: RandomState,
}

type Shard = HashMap<Box<str>, Arc<Mutex<State>>>;

#[derive(Debug, Default)]
struct State {
    requests: Gcra,
    tokens: Gcra,
    /// As the policy said last; 0 for no limit.
    concurrency: u32,
    /// Exchanges, whether or not their clients are still there.
    running: u32,
    /// Answers that are given again, or looked for. They run at no provider.
    again: u32,
}

/// What a permit takes of its key's concurrency.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
enum Place {
    /// Nothing: another permit has it.
    Nowhere,
    /// An exchange.
    Running,
    /// An answer that is given again.
    Again,
}

/// One request of a key. Dropped, it makes room.
#[derive(Debug)]
pub struct Permit {
    state: Option<Arc<Mutex<State>>>,
    /// A [`Place`]; changes only under the state's lock.
    place: AtomicU8,
    tokens_per_minute: u64,
    /// Where the rates stood when it was given, for `x-ratelimit-*`.
    pub rates: Rates,
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

impl Limiter {
    /// Remembers nobody yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            shards: Arc::new(std::array::from_fn(|_| Mutex::default())),
            hasher: RandomState::new(),
        }
    }

    /// Lets a request of this key start, or says what was too much. A refusal uses nothing up.
    ///
    /// # Errors
    /// [`Refused`] with the limit that was reached first.
    pub fn check(&self, policy: &KeyPolicy, now: Instant) -> Result<Permit, Refused> {
        self.start(policy, false, now)
    }

    /// [`Self::check`] for a request that may ask for the answer of one that runs, whose place it then needs none beside. It
    /// becomes an exchange by [`Permit::begin`].
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_again(&self, policy: &KeyPolicy, now: Instant) -> Result<Permit, Refused> {
        self.start(policy, true, now)
    }

    fn start(&self, policy: &KeyPolicy, again: bool, now: Instant) -> Result<Permit, Refused> {
        let limited = policy.requests_per_minute > 0
            || policy.tokens_per_minute > 0
            || policy.concurrency > 0;
        if !limited {
            return Ok(Permit {
                state: None,
                place: AtomicU8::new(Place::Nowhere as u8),
                tokens_per_minute: 0,
                rates: Rates::default(),
            });
        }
        let state = self.state(&policy.key, now).ok_or(Refused {
            which: Which::Keys,
            retry_after: Duration::from_secs(1),
            rates: Rates::default(),
        })?;
        let (place, rates) = state.lock().start(policy, again, now)?;
        Ok(Permit {
            state: Some(state),
            place: AtomicU8::new(place as u8),
            tokens_per_minute: policy.tokens_per_minute,
            rates,
        })
    }

    /// How many keys are remembered.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn state(&self, key: &str, now: Instant) -> Option<Arc<Mutex<State>>> {
        let place = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let mut shard = self.shards[place].lock();
        if let Some(state) = shard.get(key) {
            return Some(Arc::clone(state));
        }
        if shard.len() >= SHARD_KEYS_MAX {
            // A permit holds its state too, so one that nobody else holds is not in use.
            shard.retain(|_, state| Arc::strong_count(state) > 1 || !state.lock().idle(now));
        }
        if shard.len() >= SHARD_KEYS_MAX {
            return None;
        }
        let state = Arc::<Mutex<State>>::default();
        shard.insert(key.into(), Arc::clone(&state));
        Some(state)
    }
}

impl State {
    fn start(
        &mut self,
        policy: &KeyPolicy,
        again: bool,
        now: Instant,
    ) -> Result<(Place, Rates), Refused> {
        self.concurrency = policy.concurrency;
        let per_minute = u64::from(policy.requests_per_minute);
        let refuse = |state: &Self, which, retry_after| {
            Err(Refused {
                which,
                retry_after,
                rates: state.rates(policy, now),
            })
        };
        let place = match (self.is_full(), again) {
            (false, _) => Place::Running,
            (true, true) if self.again < self.concurrency => Place::Again,
            (true, _) => return refuse(self, Which::Concurrency, BUSY),
        };
        // Tokens are known when they were used: a request may start while the rate is not overdrawn.
        let wait = self.tokens.wait(policy.tokens_per_minute, 1, now);
        if policy.tokens_per_minute > 0 && !wait.is_zero() {
            return refuse(self, Which::Tokens, wait);
        }
        if per_minute > 0 {
            let wait = self.requests.wait(per_minute, 1, now);
            if !wait.is_zero() {
                return refuse(self, Which::Requests, wait);
            }
            self.requests.take(per_minute, 1, now);
        }
        *self.count(place) += 1;
        Ok((place, self.rates(policy, now)))
    }

    /// Whether no further exchange may run.
    const fn is_full(&self) -> bool {
        self.concurrency > 0 && self.running >= self.concurrency
    }

    /// How many have such a place. Called for those that have one.
    const fn count(&mut self, place: Place) -> &mut u32 {
        match place {
            Place::Again => &mut self.again,
            Place::Running | Place::Nowhere => &mut self.running,
        }
    }

    fn rates(&self, policy: &KeyPolicy, now: Instant) -> Rates {
        let rate = |gcra: &Gcra, limit: u64| {
            (limit > 0).then(|| Rate {
                limit,
                remaining: gcra.remaining(limit, now),
                reset: gcra.reset(now),
            })
        };
        Rates {
            requests: rate(&self.requests, u64::from(policy.requests_per_minute)),
            tokens: rate(&self.tokens, policy.tokens_per_minute),
        }
    }

    fn idle(&self, now: Instant) -> bool {
        let rested = self.requests.reset(now).is_zero() && self.tokens.reset(now).is_zero();
        self.running == 0 && self.again == 0 && rested
    }
}

impl Place {
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Running,
            2 => Self::Again,
            _ => Self::Nowhere,
        }
    }
}

impl Permit {
    /// The request becomes an exchange of its own, if it is none yet.
    ///
    /// # Errors
    /// [`Refused`] when as many run as may.
    pub fn begin(&self) -> Result<(), Refused> {
        let Some(state) = &self.state else {
            return Ok(());
        };
        let mut state = state.lock();
        if self.place() != Place::Again {
            return Ok(());
        }
        if state.is_full() {
            return Err(Refused {
                which: Which::Concurrency,
                retry_after: BUSY,
                rates: self.rates,
            });
        }
        self.moves(&mut state, Place::Running);
        Ok(())
    }

    /// The request is given an answer that another has paid for: it needs no exchange's place.
    pub fn gives_again(&self) {
        let Some(state) = &self.state else { return };
        let mut state = state.lock();
        let room = state.concurrency == 0 || state.again < state.concurrency;
        if self.place() == Place::Running && room {
            self.moves(&mut state, Place::Again);
        }
    }

    /// Gives its place to a permit for what goes on without the client.
    #[must_use]
    pub fn hand_over(&self) -> Self {
        let _lock = self.state.as_ref().map(|state| state.lock());
        Self {
            state: self.state.clone(),
            place: AtomicU8::new(self.place.swap(Place::Nowhere as u8, Ordering::Relaxed)),
            tokens_per_minute: self.tokens_per_minute,
            rates: self.rates,
        }
    }

    /// Nothing of the request was sent: it is none of those that its key may make a minute. `began`: when it was let start.
    pub fn unsent(&self, began: Instant, now: Instant) {
        if let (Some(state), Some(rate)) = (&self.state, &self.rates.requests) {
            let full_at = began + rate.reset;
            state.lock().requests.give_back(rate.limit, full_at, now);
        }
    }

    /// Whether it makes a difference when the exchange ends, or what it uses.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        let holds = |state: &Arc<Mutex<State>>| state.lock().concurrency > 0;
        self.counts_tokens() || self.state.as_ref().is_some_and(holds)
    }

    fn place(&self) -> Place {
        Place::of(self.place.load(Ordering::Relaxed))
    }

    fn moves(&self, state: &mut State, to: Place) {
        let from = state.count(self.place());
        *from = from.saturating_sub(1);
        *state.count(to) += 1;
        self.place.store(to as u8, Ordering::Relaxed);
    }

    /// Whether [`Self::used_tokens`] makes a difference.
    #[must_use]
    pub fn counts_tokens(&self) -> bool {
        self.state.is_some() && self.tokens_per_minute > 0
    }

    /// Counts what the request used. More than the rate allows makes later requests wait.
    pub fn used_tokens(&self, tokens: u64, now: Instant) {
        if let Some(state) = self.state.as_ref().filter(|_| self.counts_tokens()) {
            state
                .lock()
                .tokens
                .take(self.tokens_per_minute, tokens, now);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let (Some(state), place @ (Place::Running | Place::Again)) = (&self.state, self.place())
        {
            let mut state = state.lock();
            let count = state.count(place);
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(requests: u32, tokens: u64, concurrency: u32) -> KeyPolicy {
        KeyPolicy {
            key: "k".into(),
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            concurrency,
            ..KeyPolicy::default()
        }
    }

    #[test]
    fn a_key_without_limits_is_not_remembered() {
        let limiter = Limiter::new();
        assert!(limiter.check(&policy(0, 0, 0), Instant::now()).is_ok());
        assert_eq!(limiter.keys(), 0);
    }

    #[test]
    fn a_dropped_permit_makes_room_and_a_refusal_uses_nothing() {
        let (limiter, now) = (Limiter::new(), Instant::now());
        let policy = policy(10, 0, 1);
        let first = limiter.check(&policy, now).unwrap();
        assert_eq!(first.rates.requests.unwrap().remaining, 9);
        let refused = limiter.check(&policy, now).unwrap_err();
        assert_eq!(refused.which, Which::Concurrency);
        assert_eq!(refused.rates.requests.unwrap().remaining, 9);
        drop(first);
        assert_eq!(
            limiter
                .check(&policy, now)
                .unwrap()
                .rates
                .requests
                .unwrap()
                .remaining,
            8
        );
    }

    #[test]
    fn what_goes_on_without_its_client_keeps_its_place_and_a_retry_shares_it() {
        let (limiter, now) = (Limiter::new(), Instant::now());
        let policy = policy(0, 0, 1);
        let first = limiter.check(&policy, now).unwrap();
        let left = first.hand_over();
        drop(first);
        let full = |refused: Result<_, Refused>| refused.map(|_: Permit| ()).unwrap_err().which;
        assert_eq!(full(limiter.check(&policy, now)), Which::Concurrency);
        let retry = limiter.check_again(&policy, now).unwrap();
        assert_eq!(retry.begin().unwrap_err().which, Which::Concurrency);
        assert_eq!(full(limiter.check_again(&policy, now)), Which::Concurrency);
        drop(left);
        assert!(retry.begin().is_ok());
        assert_eq!(full(limiter.check(&policy, now)), Which::Concurrency);
        retry.gives_again();
        drop((limiter.check(&policy, now).unwrap(), retry));
        let state = limiter.state("k", now).unwrap();
        let state = state.lock();
        assert_eq!((state.running, state.again), (0, 0));
    }

    #[test]
    fn a_minute_of_requests_may_come_at_once_and_then_one_by_one() {
        let (limiter, now) = (Limiter::new(), Instant::now());
        let policy = policy(60, 0, 0);
        let count = (0..100)
            .filter(|_| limiter.check(&policy, now).is_ok())
            .count();
        assert_eq!(count, 60);
        let refused = limiter.check(&policy, now).unwrap_err();
        assert_eq!(
            (refused.which, refused.retry_after),
            (Which::Requests, Duration::from_secs(1))
        );
        assert!(limiter.check(&policy, now + refused.retry_after).is_ok());
    }

    #[test]
    fn a_request_that_was_not_sent_is_none_of_a_minutes() {
        let (limiter, now) = (Limiter::new(), Instant::now());
        let policy = policy(1, 0, 0);
        limiter.check(&policy, now).unwrap().unsent(now, now);
        let second = limiter.check(&policy, now).unwrap();
        assert!(limiter.check(&policy, now).is_err());
        // Half of it has come back by itself.
        second.unsent(now, now + Duration::from_secs(30));
        let later = now + Duration::from_secs(30);
        assert!(limiter.check(&policy, later).is_ok());
        assert!(limiter.check(&policy, later).is_err());
    }

    #[test]
    fn tokens_are_paid_afterwards() {
        let (limiter, now) = (Limiter::new(), Instant::now());
        let policy = policy(0, 600, 0);
        let permit = limiter.check(&policy, now).unwrap();
        permit.used_tokens(1_200, now);
        let refused = limiter.check(&policy, now).unwrap_err();
        assert_eq!(refused.which, Which::Tokens);
        // 600 too many, and one more to start with, at ten a second.
        assert_eq!(refused.retry_after, Duration::from_millis(60_100));
        assert!(limiter.check(&policy, now + refused.retry_after).is_ok());
    }

    #[test]
    fn idle_keys_make_room_for_others() {
        let (limiter, now) = (Limiter::new(), Instant::now());
        let mut policy = policy(60, 0, 1);
        for number in 0..SHARDS * SHARD_KEYS_MAX + 10_000 {
            policy.key = number.to_string();
            // Each is a minute after the one before it, so all before are idle.
            let later = now + Duration::from_secs(60) * u32::try_from(number).unwrap();
            assert!(limiter.check(&policy, later).is_ok(), "{number}");
        }
        assert!(limiter.keys() <= SHARDS * SHARD_KEYS_MAX);
    }
}
