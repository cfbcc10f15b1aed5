//! Chooses which of a provider's keys a call uses, and learns from the answers how each of them fares.
//!
//! Least loaded (calls in flight by weight) among those that are ready and within their limits; the one that knows the
//! prompt, as long as it is not much busier; one whose balance is low after all others. A 429 rests a key for as long as
//! the provider asks; a key that the provider refuses is put out and tried again once a minute, or every few seconds
//! when no other is left. Nothing here waits, and no key is ever logged. Time is an argument.

// What a key is, how it stands, and how it is lent.
mod secret;

mod key;

mod permit;

// What its provider says of it.
mod headroom;

mod learned;

mod retry_after;

mod balance;

// What is shown of it.
mod gauges;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use vector_proto::control::v1;

use self::key::Purse;
pub use self::{
    balance::{Balance, Teller},
    gauges::Gauges,
    key::Key,
    permit::Permit,
    secret::Secret,
};
use crate::lookup::HashMap;

/// First rest after a 429 that names no time; doubles with each further one.
const REST_FIRST: Duration = Duration::from_secs(1);

/// Longest rest that we choose ourselves.
const REST_LONGEST: Duration = Duration::from_secs(60);

/// How long a key that the provider refuses stays out before one call tries it again.
const OUT: Duration = Duration::from_secs(60);

/// Calls in flight, in thousandths by weight, that a key may have more than the least loaded one, besides twice as many, before
/// a call that it knows the prompt of goes elsewhere.
const AFFINITY_SLACK: u64 = 4_000;

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

/// What a call wants of a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Only if nothing else is ready.
    pub avoid: Option<&'a Arc<Key>>,
    /// Calls of the same number should get the same key; 0 for any.
    pub affinity: u64,
    /// Bytes of the prompt; none for a call that uses no tokens, as far as is known before.
    pub prompt_bytes: Option<u64>,
}

type Keys = HashMap<Box<str>, Vec<Arc<Key>>>;

/// All keys of all providers that this egress may reach.
#[derive(Debug)]
pub struct Pool {
    keys: ArcSwap<Keys>,
    /// Spreads calls over keys that are equally loaded.
    turn: AtomicUsize,
    begun: Instant,
    news: Arc<Notify>,
}

impl Pool {
    /// An empty pool; `now` is the zero of its clock.
    pub fn new(now: Instant) -> Self {
        Self {
            keys: ArcSwap::default(),
            turn: AtomicUsize::new(0),
            begun: now,
            news: Arc::default(),
        }
    }

    /// Replaces what the pool holds by what control sent. A key whose secret is the same keeps its state.
    pub fn replace(&self, sent: &v1::Credentials) {
        let before = self.keys.load();
        let mut keys = Keys::default();
        for credential in &sent.credentials {
            let known = before.get(credential.provider.as_str());
            let known = known.and_then(|known| {
                known
                    .iter()
                    .find(|key| *key.name == *credential.name.as_str())
            });
            if let Some(key) = Key::new(credential, known.map(Arc::as_ref), &self.news) {
                let of = keys.entry(credential.provider.as_str().into()).or_default();
                of.push(Arc::new(key));
            }
        }
        self.keys.store(Arc::new(keys));
        self.news.notify_one();
    }

    /// Waits until some key came into use or went out of it.
    ///
    /// Cancel safety: nothing is lost.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// Takes the best key that is ready.
    ///
    /// # Errors
    /// [`NoKey`] when there is none now.
    pub fn take(&self, provider: &str, wish: Wish<'_>, now: Instant) -> Result<Permit, NoKey> {
        let pool = self.keys.load();
        let keys = pool.get(provider).ok_or(NoKey::Unknown)?;
        let now_us = self.micros(now);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (mut best, mut shortest) = (None::<Found<'_>>, None);
        let mut known = None::<Found<'_>>;
        for place in 0..keys.len() {
            let key = &keys[turn.wrapping_add(place) % keys.len()];
            if key.disabled {
                continue;
            }
            let wait_us = key.wait_us(key.estimate(wish.prompt_bytes), now_us);
            if wait_us > 0 {
                shortest = Some(shortest.map_or(wait_us, |least: u64| least.min(wait_us)));
                continue;
            }
            let found = Found::of(key, &wish);
            if best.is_none_or(|best| found.is_before(&best)) {
                best = Some(found);
            }
            if known.is_none_or(|known| found.match_rank > known.match_rank) {
                known = Some(found);
            }
        }
        let known = known.filter(|known| {
            wish.affinity != 0 && best.is_some_and(|best| known.may_stand_for(&best))
        });
        match (known.or(best), shortest) {
            (Some(found), _) => Ok(Permit::new(
                found.key,
                self.begun,
                wish.prompt_bytes,
                now_us,
            )),
            (None, Some(wait_us)) => self.none_ready(keys, wish.prompt_bytes, (wait_us, now_us)),
            (None, None) => Err(NoKey::Unknown),
        }
    }

    /// How long no key of a provider is ready for a call with such a prompt; None if one is, or there is none at all.
    pub fn rests(
        &self,
        provider: &str,
        prompt_bytes: Option<u64>,
        now: Instant,
    ) -> Option<Duration> {
        let (pool, now_us) = (self.keys.load(), self.micros(now));
        let keys = pool.get(provider)?.iter().filter(|key| !key.disabled);
        let shortest = keys.map(|key| key.wait_us(key.estimate(prompt_bytes), now_us));
        shortest
            .min()
            .filter(|wait_us| *wait_us > 0)
            .map(Duration::from_micros)
    }

    /// When no key is ready: if all are out, the least bad one is tried now and then, since a balance is topped up and a
    /// permission given without telling us. One that rests is left alone: its provider said until when.
    fn none_ready(
        &self,
        keys: &[Arc<Key>],
        prompt_bytes: Option<u64>,
        at: (u64, u64),
    ) -> Result<Permit, NoKey> {
        let (mut wait_us, now_us) = at;
        let on = || keys.iter().filter(|key| !key.disabled);
        if on().all(|key| key.is_out()) {
            let soonest = on().min_by_key(|key| key.panic_us(now_us));
            if let Some(key) = soonest {
                let panic_us = key.panic_us(now_us);
                if panic_us == 0 && key.claim_panic(now_us) {
                    return Ok(Permit::new(key, self.begun, prompt_bytes, now_us));
                }
                wait_us = wait_us.min(panic_us.max(1));
            }
        }
        self.news.notify_one();
        Err(NoKey::Resting(Duration::from_micros(wait_us)))
    }

    /// Takes the key of this name, which alone can reach the object that the call names.
    ///
    /// # Errors
    /// [`NoKey`] when it is gone, or cannot be used now.
    pub fn take_named(
        &self,
        provider: &str,
        name: &str,
        wish: Wish<'_>,
        now: Instant,
    ) -> Result<Permit, NoKey> {
        let pool = self.keys.load();
        let keys = pool.get(provider).ok_or(NoKey::Unknown)?;
        let key = keys
            .iter()
            .find(|key| *key.name == *name && !key.disabled)
            .ok_or(NoKey::Unknown)?;
        let now_us = self.micros(now);
        match key.wait_us(key.estimate(wish.prompt_bytes), now_us) {
            0 => Ok(Permit::new(key, self.begun, wish.prompt_bytes, now_us)),
            wait_us => Err(NoKey::Resting(Duration::from_micros(wait_us))),
        }
    }

    /// The state of every key, for control and the operator.
    pub fn status(&self, now: Instant) -> Vec<v1::CredentialStatus> {
        let now_us = self.micros(now);
        let keys = self.keys.load();
        let mut status: Vec<_> = keys
            .iter()
            .flat_map(|(provider, keys)| keys.iter().map(move |key| key.status(provider, now_us)))
            .collect();
        status.sort_unstable_by(|one, other| one.credential.cmp(&other.credential));
        status
    }

    /// How the keys of each provider stand together.
    pub fn pools(&self, now: Instant) -> Vec<v1::PoolStatus> {
        let now_us = self.micros(now);
        let keys = self.keys.load();
        let mut pools: Vec<_> = keys
            .iter()
            .map(|(provider, keys)| pool_status(provider, keys, now_us))
            .collect();
        pools.sort_unstable_by(|one, other| one.provider.cmp(&other.provider));
        pools
    }

    /// Something else is new of a provider.
    pub fn is_news(&self) {
        self.news.notify_one();
    }

    /// The keys of a provider that are switched on, to ask for their balances.
    pub fn keys_of(&self, provider: &str) -> Vec<Arc<Key>> {
        let pool = self.keys.load();
        let keys = pool.get(provider).into_iter().flatten();
        keys.filter(|key| !key.disabled).cloned().collect()
    }

    /// A provider told what is left of a key's balance.
    pub fn has(&self, key: &Key, balance: Balance, now: Instant) {
        if key.standing.has(balance, self.micros(now)) {
            let low = matches!(key.standing.purse(), Purse::Low | Purse::Empty);
            if low {
                tracing::warn!(credential = %key.name, balance_micros = balance.micros, currency = %balance.currency, "the credential's balance is low");
            } else {
                tracing::info!(credential = %key.name, balance_micros = balance.micros, currency = %balance.currency, "the credential's balance is fine");
            }
            self.news.notify_one();
        }
    }

    fn micros(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.begun))
    }
}

/// A key that is ready, and how it compares.
#[derive(Clone, Copy)]
struct Found<'a> {
    key: &'a Arc<Key>,
    /// Lower first: one that is neither to be avoided nor low on money.
    class: u8,
    load: u64,
    /// Highest for the key that knows the prompt (rendezvous hashing: no memory, and a key that comes or goes moves only its own).
    match_rank: u64,
}

impl<'a> Found<'a> {
    fn of(key: &'a Arc<Key>, wish: &Wish<'_>) -> Self {
        let avoided = is(key, wish.avoid);
        let low = key.standing.purse() == Purse::Low;
        Self {
            key,
            class: u8::from(low) + 2 * u8::from(avoided),
            load: key.load(),
            match_rank: mix(wish.affinity ^ key.hash),
        }
    }

    fn is_before(&self, other: &Self) -> bool {
        (self.class, self.load) < (other.class, other.load)
    }

    fn may_stand_for(&self, best: &Self) -> bool {
        self.class == best.class && self.load <= 2 * best.load + AFFINITY_SLACK
    }
}

fn pool_status(provider: &str, keys: &[Arc<Key>], now_us: u64) -> v1::PoolStatus {
    let (mut status, mut shortest) = (v1::PoolStatus::default(), u64::MAX);
    provider.clone_into(&mut status.provider);
    for key in keys.iter().filter(|key| !key.disabled) {
        let rest_us = key.rest_us(1, now_us);
        shortest = shortest.min(rest_us);
        status.keys += 1;
        status.ready += u32::from(rest_us == 0);
        status.in_flight += u64::from(key.standing.in_flight.load(Ordering::Relaxed));
    }
    let on = || keys.iter().filter(|key| !key.disabled);
    if on().all(|key| key.is_out()) {
        let panic = on().map(|key| key.panic_us(now_us)).min();
        shortest = panic.map_or(shortest, |panic| shortest.min(panic));
    }
    if status.ready == 0 && shortest != u64::MAX {
        status.rests_ms = shortest.div_ceil(1_000);
    }
    status
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
const fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

fn is(key: &Arc<Key>, other: Option<&Arc<Key>>) -> bool {
    other.is_some_and(|other| Arc::ptr_eq(key, other) || key.name == other.name)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
