//! A key in use by one call, and what the call learns of it.
//!
//! What a call says of a key counts only if the key was not judged anew since the call began: ten calls that are answered
//! 429 together are one strike, and a late 200 does not wake a key that was put to rest meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use http::HeaderMap;

use super::{
    OUT, REST_FIRST, REST_LONGEST,
    key::{Key, prompt_tokens},
    learned, micros, retry_after,
};

/// A key in use by one call. Dropped, the key is less loaded again.
#[derive(Debug)]
pub struct Permit {
    key: Arc<Key>,
    begun: Instant,
    taken_us: u64,
    prompt_bytes: Option<u64>,
    /// Tokens that were taken beforehand.
    estimate: u64,
    /// The estimate stands: the provider took the call. Otherwise it goes back.
    kept: AtomicBool,
}

impl Permit {
    pub(super) fn new(
        key: &Arc<Key>,
        begun: Instant,
        prompt_bytes: Option<u64>,
        now_us: u64,
    ) -> Self {
        let standing = &key.standing;
        let estimate = key.estimate(prompt_bytes);
        standing.in_flight.fetch_add(1, Ordering::Relaxed);
        standing.requests.take(key.limits.requests, 1, now_us);
        standing.tokens.take(key.limits.tokens, estimate, now_us);
        if standing.is_refused() {
            // It was out: this call tries it, and the others wait for what comes of it.
            let until = now_us + micros(REST_FIRST);
            standing.rests_until_us.fetch_max(until, Ordering::Relaxed);
        }
        Self {
            key: Arc::clone(key),
            begun,
            taken_us: now_us,
            prompt_bytes,
            estimate,
            kept: AtomicBool::new(false),
        }
    }

    /// The key.
    pub fn key(&self) -> &Arc<Key> {
        &self.key
    }

    /// The provider took the key, and may have said what is left of its limits.
    pub fn accepted(&self, headers: &HeaderMap, now: Instant) {
        self.kept.store(true, Ordering::Relaxed);
        self.hear(headers, now);
        let standing = &self.key.standing;
        if standing.blamed.load(Ordering::Relaxed) == 0 || self.is_older_than_blame() {
            return;
        }
        standing.blamed.store(0, Ordering::Relaxed);
        standing.rests_until_us.store(0, Ordering::Relaxed);
        let halved = standing.strikes.load(Ordering::Relaxed) / 2;
        standing.strikes.store(halved, Ordering::Relaxed);
        self.key.news.notify_one();
        tracing::info!(credential = %self.key.name, "credential is in use again");
    }

    /// The provider limits the key (429). Returns how long it rests.
    pub fn limited(&self, headers: &HeaderMap, now: Instant, date: SystemTime) -> Duration {
        self.hear(headers, now);
        let standing = &self.key.standing;
        let now_us = self.micros(now);
        let asked = retry_after::read(headers, date);
        let known = self.is_older_than_blame();
        let rest = asked.unwrap_or_else(|| {
            let blamed_us = standing.blamed_at_us.load(Ordering::Relaxed);
            if now_us.saturating_sub(blamed_us) > 2 * micros(REST_LONGEST) {
                standing.strikes.store(0, Ordering::Relaxed);
            }
            let strikes = if known {
                standing.strikes.load(Ordering::Relaxed).saturating_sub(1)
            } else {
                standing.strikes.fetch_add(1, Ordering::Relaxed)
            };
            (REST_FIRST * (1 << strikes.min(6))).min(REST_LONGEST)
        });
        if standing.is_refused() && known {
            return rest;
        }
        if standing.blamed.swap(429, Ordering::Relaxed) != 429 {
            tracing::info!(credential = %self.key.name, rest_ms = rest.as_millis(), "credential rests");
        }
        self.rest(rest, now_us);
        rest
    }

    /// The provider refuses the key (401, 402 or 403): it is out until a person or a later try says otherwise.
    pub fn refused(&self, status: u16, now: Instant) {
        let status = u32::from(status);
        if self.key.standing.blamed.swap(status, Ordering::Relaxed) != status {
            tracing::warn!(credential = %self.key.name, status, "the provider refuses the credential; it is out of use");
        }
        self.rest(OUT, self.micros(now));
    }

    /// Puts what the call really used in the place of what was judged beforehand.
    pub fn used(&self, tokens: u64, now: Instant) {
        self.kept.store(true, Ordering::Relaxed);
        self.correct(tokens, now);
        let Some(prompt_bytes) = self.prompt_bytes else {
            // A conversation, or a recording: it says nothing of what a prompt leads to.
            return;
        };
        let beyond = tokens.saturating_sub(prompt_tokens(prompt_bytes));
        let average = &self.key.standing.beyond_prompt;
        let before = average.load(Ordering::Relaxed);
        let after = before - before / 8 + beyond / 8;
        average.store(after, Ordering::Relaxed);
    }

    /// The provider answered that it did nothing: what was judged beforehand goes back with the permit.
    pub fn unused(&self) {
        self.kept.store(false, Ordering::Relaxed);
    }

    /// The call never left: it is none of those that the key may make a minute.
    pub fn unsent(&self, now: Instant) {
        let at = (self.taken_us, self.micros(now));
        let limit = self.key.limits.requests;
        self.key.standing.requests.correct(limit, 1, 0, at);
    }

    fn correct(&self, tokens: u64, now: Instant) {
        let at = (self.taken_us, self.micros(now));
        let limit = self.key.limits.tokens;
        self.key
            .standing
            .tokens
            .correct(limit, self.estimate, tokens, at);
    }

    fn hear(&self, headers: &HeaderMap, now: Instant) {
        let standing = &self.key.standing;
        let now_us = self.micros(now);
        let others = u64::from(standing.in_flight.load(Ordering::Relaxed)).saturating_sub(1);
        let told = learned::levels(headers, SystemTime::now());
        if let Some(level) = told.requests {
            // Other egress nodes have calls on their way as well: as many as this one, for all that is known.
            let unseen = others * self.key.limits.holders;
            standing.requests.hear(level, unseen, now_us);
        }
        if let Some(level) = told.tokens {
            let unseen = others * self.key.limits.holders;
            let unseen = unseen.saturating_mul(self.estimate);
            standing.tokens.hear(level, unseen, now_us);
        }
    }

    fn is_older_than_blame(&self) -> bool {
        let standing = &self.key.standing;
        let blamed_us = standing.blamed_at_us.load(Ordering::Relaxed);
        standing.blamed.load(Ordering::Relaxed) != 0 && self.taken_us < blamed_us
    }

    fn rest(&self, rest: Duration, now_us: u64) {
        let standing = &self.key.standing;
        standing.blamed_at_us.store(now_us, Ordering::Relaxed);
        let until = now_us + micros(rest);
        standing.rests_until_us.fetch_max(until, Ordering::Relaxed);
        self.key.news.notify_one();
    }

    fn micros(&self, now: Instant) -> u64 {
        micros(now.saturating_duration_since(self.begun))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.key.standing.in_flight.fetch_sub(1, Ordering::Relaxed);
        if !self.kept.load(Ordering::Relaxed) {
            self.correct(0, Instant::now());
        }
    }
}
