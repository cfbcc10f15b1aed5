//! Chooses which of a provider's keys a call uses, and learns from the answers how each of them fares.
//!
//! Least loaded (calls in flight by weight) among those that are ready and within their limits. A 429 rests a key for as
//! long as the provider asks; a key that the provider refuses is put out and tried again once a minute, since a
//! balance is topped up without telling us. Nothing here waits, and no key is ever logged. Time is an argument.

// What a key is, and how it is kept.
mod secret;

mod headroom;

mod retry_after;

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use vector_proto::control::v1;

use headroom::Bucket;
pub use secret::Secret;

/// First rest after a 429 that names no time; doubles with each further one.
const REST_FIRST: Duration = Duration::from_secs(1);

/// Longest rest that we choose ourselves.
const REST_LONGEST: Duration = Duration::from_secs(60);

/// How long a key that the provider refuses stays out before one call tries it again.
const OUT: Duration = Duration::from_secs(60);

/// What a client is told to wait when all keys have as many calls in flight as they may.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// Why no key could be taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoKey {
    /// The provider has no key here, or not the one that the call needs.
    #[error("no such credential")]
    Unknown,
    /// All that would do rest, are out or have no headroom.
    #[error("every credential rests for {0:?}")]
    Resting(Duration),
}

/// How a key fares, apart from what it is.
#[derive(Debug)]
struct Load {
    in_flight: AtomicU32,
    /// In the pool's clock; 0: ready.
    rests_until_us: AtomicU64,
    /// 429s in a row without a time of the provider's own.
    strikes: AtomicU32,
    /// HTTP status that put it to rest or out; 0 for none.
    blamed: AtomicU32,
}

impl Load {
    const fn new() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            rests_until_us: AtomicU64::new(0),
            strikes: AtomicU32::new(0),
            blamed: AtomicU32::new(0),
        }
    }
}

/// One key of a provider.
pub struct Key {
    name: Arc<str>,
    secret: Secret,
    bearer: HeaderValue,
    bare: HeaderValue,
    extra: Vec<(HeaderName, HeaderValue)>,
    weight: u64,
    concurrency: u32,
    disabled: bool,
    requests: Bucket,
    tokens: Bucket,
    load: Arc<Load>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("load", &self.load)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// Builds a key from what control sent. `None`, with a warning, if a header could not carry it.
    fn new(sent: &v1::Credential, before: Option<&Self>) -> Option<Self> {
        let secret = Secret::new(&sent.secret);
        let (Some(bearer), Some(bare)) = (secret.header("Bearer "), secret.header("")) else {
            tracing::warn!(
                credential = sent.name,
                "the credential cannot be sent in a header; it is left out"
            );
            return None;
        };
        let same = before.filter(|before| before.secret.reveal() == secret.reveal());
        let extra = sent.headers.iter().filter_map(|(name, value)| {
            let mut value = HeaderValue::from_str(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
        });
        Some(Self {
            name: sent.name.as_str().into(),
            bearer,
            bare,
            extra: extra.collect(),
            weight: u64::from(sent.weight.max(1)),
            concurrency: sent.concurrency,
            disabled: sent.disabled,
            requests: Bucket::new(u64::from(sent.requests_per_minute)),
            tokens: Bucket::new(sent.tokens_per_minute),
            load: same.map_or_else(|| Arc::new(Load::new()), |same| Arc::clone(&same.load)),
            secret,
        })
    }

    /// The key's name, which may be logged.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Puts the key, in the form that this kind of provider reads, and the headers that go with it.
    pub fn sign(&self, kind: &str, headers: &mut HeaderMap) {
        match kind {
            "azure" => headers.insert(HeaderName::from_static("api-key"), self.bare.clone()),
            _ => headers.insert(header::AUTHORIZATION, self.bearer.clone()),
        };
        for (name, value) in &self.extra {
            headers.insert(name, value.clone());
        }
    }

    /// Microseconds until the key could take one more call.
    fn wait_us(&self, now_us: u64) -> u64 {
        let rest = self.load.rests_until_us.load(Ordering::Relaxed);
        let busy = self.concurrency != 0
            && self.load.in_flight.load(Ordering::Relaxed) >= self.concurrency;
        let busy_us = if busy { micros(BUSY_WAIT) } else { 0 };
        rest.saturating_sub(now_us)
            .max(self.requests.wait_us(1, now_us))
            .max(self.tokens.wait_us(1, now_us))
            .max(busy_us)
    }

    /// Whether this key is less loaded than another.
    fn is_freer_than(&self, other: &Self) -> bool {
        let load = |key: &Self| u64::from(key.load.in_flight.load(Ordering::Relaxed));
        load(self) * other.weight < load(other) * self.weight
    }

    fn status(&self, now_us: u64) -> v1::CredentialStatus {
        let rests_us = self
            .load
            .rests_until_us
            .load(Ordering::Relaxed)
            .saturating_sub(now_us);
        let blamed = self.load.blamed.load(Ordering::Relaxed);
        let state = match (self.disabled, blamed) {
            (true, _) => v1::CredentialState::Disabled,
            (false, 401..=403) => v1::CredentialState::Out,
            (false, _) if rests_us > 0 => v1::CredentialState::Resting,
            (false, _) => v1::CredentialState::Ready,
        };
        v1::CredentialStatus {
            credential: self.name.to_string(),
            state: state.into(),
            rests_ms: rests_us.div_ceil(1_000),
            in_flight: u64::from(self.load.in_flight.load(Ordering::Relaxed)),
            reason: match blamed {
                0 => String::new(),
                status => format!("the provider answered {status}"),
            },
        }
    }
}

type Keys = HashMap<Box<str>, Vec<Arc<Key>>>;

/// All keys of all providers that this egress may reach.
#[derive(Debug)]
pub struct Pool {
    keys: ArcSwap<Keys>,
    /// Spreads calls over keys that are equally loaded.
    turn: AtomicUsize,
    begun: Instant,
}

impl Pool {
    /// An empty pool; `now` is the zero of its clock.
    pub fn new(now: Instant) -> Self {
        Self {
            keys: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            begun: now,
        }
    }

    /// Replaces what the pool holds by what control sent. A key whose secret is the same keeps its state.
    pub fn replace(&self, sent: &v1::Credentials) {
        let before = self.keys.load();
        let mut keys = Keys::new();
        for credential in &sent.credentials {
            let known = before.get(credential.provider.as_str());
            let known = known.and_then(|known| {
                known
                    .iter()
                    .find(|key| *key.name == *credential.name.as_str())
            });
            if let Some(key) = Key::new(credential, known.map(Arc::as_ref)) {
                let of = keys.entry(credential.provider.as_str().into()).or_default();
                of.push(Arc::new(key));
            }
        }
        self.keys.store(Arc::new(keys));
    }

    /// Takes the least loaded key that is ready; `avoid` only if nothing else is.
    ///
    /// # Errors
    /// [`NoKey`] when there is none now.
    pub fn take(
        &self,
        provider: &str,
        avoid: Option<&Arc<Key>>,
        now: Instant,
    ) -> Result<Permit, NoKey> {
        let pool = self.keys.load();
        let keys = pool.get(provider).ok_or(NoKey::Unknown)?;
        let now_us = self.micros(now);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (mut best, mut shortest) = (None::<&Arc<Key>>, None);
        for place in 0..keys.len() {
            let key = &keys[turn.wrapping_add(place) % keys.len()];
            if key.disabled {
                continue;
            }
            let wait_us = key.wait_us(now_us);
            if wait_us > 0 {
                shortest = Some(shortest.map_or(wait_us, |least: u64| least.min(wait_us)));
                continue;
            }
            let better = match best {
                None => true,
                Some(best) if is(best, avoid) => true,
                Some(best) => !is(key, avoid) && key.is_freer_than(best),
            };
            if better {
                best = Some(key);
            }
        }
        match (best, shortest) {
            (Some(key), _) => Ok(self.lend(key, now_us)),
            (None, Some(wait_us)) => Err(NoKey::Resting(Duration::from_micros(wait_us))),
            (None, None) => Err(NoKey::Unknown),
        }
    }

    /// Takes the key of this name, which alone can reach the object that the call names.
    ///
    /// # Errors
    /// [`NoKey`] when it is gone, or cannot be used now.
    pub fn take_named(&self, provider: &str, name: &str, now: Instant) -> Result<Permit, NoKey> {
        let pool = self.keys.load();
        let keys = pool.get(provider).ok_or(NoKey::Unknown)?;
        let key = keys
            .iter()
            .find(|key| *key.name == *name && !key.disabled)
            .ok_or(NoKey::Unknown)?;
        let now_us = self.micros(now);
        match key.wait_us(now_us) {
            0 => Ok(self.lend(key, now_us)),
            wait_us => Err(NoKey::Resting(Duration::from_micros(wait_us))),
        }
    }

    /// The state of every key, for control and the operator.
    pub fn status(&self, now: Instant) -> Vec<v1::CredentialStatus> {
        let now_us = self.micros(now);
        let keys = self.keys.load();
        let mut status: Vec<_> = keys
            .values()
            .flatten()
            .map(|key| key.status(now_us))
            .collect();
        status.sort_unstable_by(|one, other| one.credential.cmp(&other.credential));
        status
    }

    fn lend(&self, key: &Arc<Key>, now_us: u64) -> Permit {
        key.load.in_flight.fetch_add(1, Ordering::Relaxed);
        key.requests.take(1, now_us);
        if (401..=403).contains(&key.load.blamed.load(Ordering::Relaxed)) {
            // It was out: this call tries it, and the others wait for what comes of it.
            let until = now_us + micros(REST_FIRST);
            key.load.rests_until_us.store(until, Ordering::Relaxed);
        }
        Permit {
            key: Arc::clone(key),
            begun: self.begun,
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.begun))
    }
}

fn is(key: &Arc<Key>, other: Option<&Arc<Key>>) -> bool {
    other.is_some_and(|other| Arc::ptr_eq(key, other) || key.name == other.name)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A key in use by one call. Dropped, the key is less loaded again.
#[derive(Debug)]
pub struct Permit {
    key: Arc<Key>,
    begun: Instant,
}

impl Permit {
    /// The key.
    pub fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// The provider took the key.
    pub fn accepted(&self) {
        let load = &self.key.load;
        if load.blamed.load(Ordering::Relaxed) != 0 {
            load.blamed.store(0, Ordering::Relaxed);
            load.strikes.store(0, Ordering::Relaxed);
            load.rests_until_us.store(0, Ordering::Relaxed);
            tracing::info!(credential = %self.key.name, "credential is in use again");
        }
    }

    /// The provider limits the key (429). Returns how long it rests.
    pub fn limited(&self, headers: &HeaderMap, now: Instant, date: SystemTime) -> Duration {
        let load = &self.key.load;
        let asked = retry_after::read(headers, date);
        let rest = asked.unwrap_or_else(|| {
            let strikes = load.strikes.fetch_add(1, Ordering::Relaxed);
            (REST_FIRST * (1 << strikes.min(6))).min(REST_LONGEST)
        });
        if load.blamed.swap(429, Ordering::Relaxed) != 429 {
            tracing::info!(credential = %self.key.name, rest_ms = rest.as_millis(), "credential rests");
        }
        self.rest(rest, now);
        rest
    }

    /// The provider refuses the key (401, 402 or 403): it is out until a person or a later try says otherwise.
    pub fn refused(&self, status: u16, now: Instant) {
        let status = u32::from(status);
        if self.key.load.blamed.swap(status, Ordering::Relaxed) != status {
            tracing::warn!(credential = %self.key.name, status, "the provider refuses the credential; it is out of use");
        }
        self.rest(OUT, now);
    }

    /// Counts the tokens of an answer against the key's limit.
    pub fn used(&self, tokens: u64, now: Instant) {
        self.key.tokens.take(tokens, self.micros(now));
    }

    fn rest(&self, rest: Duration, now: Instant) {
        let until = self.micros(now) + micros(rest);
        let rests_until = &self.key.load.rests_until_us;
        rests_until.store(until, Ordering::Relaxed);
    }

    fn micros(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.begun))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.key.load.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(credentials: &[(&str, &str, u32)], now: Instant) -> Pool {
        let pool = Pool::new(now);
        pool.replace(&sent(credentials));
        pool
    }

    fn sent(credentials: &[(&str, &str, u32)]) -> v1::Credentials {
        let credentials = credentials
            .iter()
            .map(|(name, secret, weight)| v1::Credential {
                name: (*name).into(),
                provider: "acme".into(),
                secret: (*secret).into(),
                weight: *weight,
                ..v1::Credential::default()
            })
            .collect();
        v1::Credentials {
            revision: 1,
            credentials,
        }
    }

    #[test]
    fn calls_spread_by_weight() {
        let now = Instant::now();
        let pool = pool(&[("a", "1", 1), ("b", "2", 3)], now);
        let permits: Vec<_> = (0..40)
            .map(|_| pool.take("acme", None, now).unwrap())
            .collect();
        let of_b = permits
            .iter()
            .filter(|permit| &**permit.key().name() == "b");
        assert_eq!(of_b.count(), 30);
        drop(permits);
        assert!(pool.status(now).iter().all(|status| status.in_flight == 0));
    }

    #[test]
    fn a_limited_key_rests_and_doubles_when_no_time_is_named() {
        let now = Instant::now();
        let pool = pool(&[("a", "1", 1)], now);
        let none = HeaderMap::new();
        let mut at = now;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            let permit = pool.take("acme", None, at).unwrap();
            let rest = permit.limited(&none, at, SystemTime::UNIX_EPOCH);
            assert_eq!(rest, Duration::from_secs(seconds));
            assert_eq!(
                pool.take("acme", None, at).err(),
                Some(NoKey::Resting(rest))
            );
            at += rest;
        }
        pool.take("acme", None, at).unwrap().accepted();
        assert!(pool.take("acme", None, at).is_ok());
    }

    #[test]
    fn a_refused_key_is_out_until_one_call_succeeds_with_it() {
        let now = Instant::now();
        let pool = pool(&[("a", "1", 1), ("b", "2", 1)], now);
        let bad = pool.take_named("acme", "a", now).unwrap();
        bad.refused(401, now);
        for _ in 0..4 {
            assert_eq!(&**pool.take("acme", None, now).unwrap().key().name(), "b");
        }
        assert_eq!(pool.status(now)[0].state(), v1::CredentialState::Out);
        let later = now + OUT;
        let trial = pool.take_named("acme", "a", later).unwrap();
        assert!(pool.take_named("acme", "a", later).is_err());
        trial.accepted();
        assert!(pool.take_named("acme", "a", later).is_ok());
        assert_eq!(pool.status(later)[0].state(), v1::CredentialState::Ready);
    }

    #[test]
    fn state_outlives_an_update_unless_the_secret_is_another() {
        let now = Instant::now();
        let pool = pool(&[("a", "1", 1)], now);
        pool.take("acme", None, now).unwrap().refused(402, now);
        pool.replace(&sent(&[("a", "1", 5)]));
        assert!(pool.take("acme", None, now).is_err());
        pool.replace(&sent(&[("a", "new", 5)]));
        assert!(pool.take("acme", None, now).is_ok());
        assert_eq!(pool.take("other", None, now).err(), Some(NoKey::Unknown));
    }

    #[test]
    fn the_key_to_avoid_is_the_last_choice() {
        let now = Instant::now();
        let both = pool(&[("a", "1", 1), ("b", "2", 1)], now);
        for _ in 0..6 {
            let first = both.take("acme", None, now).unwrap();
            let second = both.take("acme", Some(first.key()), now).unwrap();
            assert_ne!(first.key().name(), second.key().name());
        }
        let one = pool(&[("a", "1", 1)], now);
        let only = one.take("acme", None, now).unwrap();
        assert!(one.take("acme", Some(only.key()), now).is_ok());
    }
}
