//! One key of a provider: what it is, and how it stands.
//!
//! How it stands outlives an update of what it is, as long as the secret is the same.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use tokio::sync::Notify;
use vector_proto::control::v1;

use super::{Secret, balance::Balance, headroom::Headroom, micros};

/// How soon to look again when all keys have as many calls in flight as they may: any of them may end.
const BUSY_WAIT: Duration = Duration::from_millis(100);

/// How often a key that is out is tried when no other is left.
const PANIC_EVERY: Duration = Duration::from_secs(5);

/// What a provider said of a key's balance.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub(super) enum Purse {
    Unknown,
    Fine,
    /// So little that others are used first.
    Low,
    Empty,
}

/// How a key stands, apart from what it is.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) in_flight: AtomicU32,
    /// In the pool's clock; 0: ready.
    pub(super) rests_until_us: AtomicU64,
    /// When it was last put to rest or out.
    pub(super) blamed_at_us: AtomicU64,
    /// 429s in a row without a time of the provider's own.
    pub(super) strikes: AtomicU32,
    /// HTTP status that put it to rest or out; 0 for none.
    pub(super) blamed: AtomicU32,
    /// When it may be tried although it is out, nothing else being left.
    pub(super) panic_at_us: AtomicU64,
    pub(super) requests: Headroom,
    pub(super) tokens: Headroom,
    /// Tokens of a call beyond those that its prompt's length stands for, as a decayed average.
    pub(super) beyond_prompt: AtomicU64,
    purse: AtomicU8,
    pub(super) balance: Mutex<Option<(Balance, u64)>>,
}

impl Standing {
    fn new() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            rests_until_us: AtomicU64::new(0),
            blamed_at_us: AtomicU64::new(0),
            strikes: AtomicU32::new(0),
            blamed: AtomicU32::new(0),
            panic_at_us: AtomicU64::new(0),
            requests: Headroom::default(),
            tokens: Headroom::default(),
            beyond_prompt: AtomicU64::new(0),
            purse: AtomicU8::new(Purse::Unknown as u8),
            balance: Mutex::new(None),
        }
    }

    pub(super) fn purse(&self) -> Purse {
        match self.purse.load(Ordering::Relaxed) {
            1 => Purse::Fine,
            2 => Purse::Low,
            3 => Purse::Empty,
            _ => Purse::Unknown,
        }
    }

    /// Whether the provider refuses it: 401, 402 or 403.
    pub(super) fn is_refused(&self) -> bool {
        (401..=403).contains(&self.blamed.load(Ordering::Relaxed))
    }

    /// Takes in a balance. True if the key's use changes by it.
    pub(super) fn has(&self, balance: Balance, now_us: u64) -> bool {
        let purse = if balance.micros <= 0 {
            Purse::Empty
        } else if balance.is_low() {
            Purse::Low
        } else {
            Purse::Fine
        };
        *self.balance.lock() = Some((balance, now_us));
        let changed = self.purse.swap(purse as u8, Ordering::Relaxed) != purse as u8;
        if purse != Purse::Empty && self.blamed.load(Ordering::Relaxed) == 402 {
            // It was topped up: no call has to find that out.
            self.blamed.store(0, Ordering::Relaxed);
            self.rests_until_us.store(0, Ordering::Relaxed);
        }
        changed
    }
}

/// One key of a provider.
pub struct Key {
    pub(super) name: Arc<str>,
    /// Of the name, for affinity.
    pub(super) hash: u64,
    secret: Secret,
    bearer: HeaderValue,
    bare: HeaderValue,
    extra: Vec<(HeaderName, HeaderValue)>,
    weight: u64,
    pub(super) limits: Limits,
    pub(super) disabled: bool,
    pub(super) standing: Arc<Standing>,
    /// Told when it can be used and could not, or the other way round.
    pub(super) news: Arc<Notify>,
}

/// This egress's part of a key's limits; 0 for none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limits {
    pub(super) requests: u64,
    pub(super) tokens: u64,
    pub(super) concurrency: u64,
    /// The egress nodes are more than a limit can be parted among, and this one goes without.
    pub(super) nothing: bool,
    pub(super) holders: u64,
}

impl Limits {
    /// The part of one of several holders. The parts of all sum up to the limits.
    fn of(sent: &v1::Credential) -> Self {
        let holders = u64::from(sent.holders.max(1));
        let holder = u64::from(sent.holder);
        let part = |limit: u64| limit / holders + u64::from(holder < limit % holders);
        let all = [
            u64::from(sent.requests_per_minute),
            sent.tokens_per_minute,
            u64::from(sent.concurrency),
        ];
        let [requests, tokens, concurrency] = all.map(part);
        Self {
            requests,
            tokens,
            concurrency,
            nothing: all.iter().any(|limit| *limit > 0 && part(*limit) == 0),
            holders,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("name", &self.name)
            .field("standing", &self.standing)
            .finish_non_exhaustive()
    }
}

impl Key {
    /// Builds a key from what control sent. `None`, with a warning, if a header could not carry it.
    pub(super) fn new(
        sent: &v1::Credential,
        before: Option<&Self>,
        news: &Arc<Notify>,
    ) -> Option<Self> {
        let secret = Secret::new(&sent.secret);
        let (Some(bearer), Some(bare)) = (secret.header("Bearer "), secret.header("")) else {
            tracing::warn!(
                credential = sent.name,
                "the credential cannot be sent in a header; it is left out"
            );
            return None;
        };
        let same = before.filter(|before| before.secret.reveal() == secret.reveal());
        // Their values are secrets as well.
        let extra = sent.headers.iter().filter_map(|(name, value)| {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            Some((name, Secret::new(value).header("")?))
        });
        Some(Self {
            name: sent.name.as_str().into(),
            hash: fnv(sent.name.as_bytes()),
            bearer,
            bare,
            extra: extra.collect(),
            weight: u64::from(sent.weight.max(1)),
            limits: Limits::of(sent),
            disabled: sent.disabled,
            standing: same.map_or_else(
                || Arc::new(Standing::new()),
                |same| Arc::clone(&same.standing),
            ),
            news: Arc::clone(news),
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

    /// What a call will use, judged before it is sent: four bytes of its prompt to a token, and what others used beyond theirs.
    pub(super) fn estimate(&self, prompt_bytes: Option<u64>) -> u64 {
        prompt_bytes.map_or(0, |bytes| {
            prompt_tokens(bytes) + self.standing.beyond_prompt.load(Ordering::Relaxed)
        })
    }

    /// Microseconds until the key could take one more call, apart from those that run.
    pub(super) fn rest_us(&self, tokens: u64, now_us: u64) -> u64 {
        let standing = &self.standing;
        let rest = standing.rests_until_us.load(Ordering::Relaxed);
        let nothing = self.limits.nothing || standing.purse() == Purse::Empty;
        // Nobody knows when; by then it is looked at again.
        let never = if nothing { micros(super::OUT) } else { 0 };
        rest.saturating_sub(now_us)
            .max(never)
            .max(standing.requests.wait_us(self.limits.requests, 1, now_us))
            .max(standing.tokens.wait_us(self.limits.tokens, tokens, now_us))
    }

    /// Microseconds until the key could take one more call.
    pub(super) fn wait_us(&self, tokens: u64, now_us: u64) -> u64 {
        let running = u64::from(self.standing.in_flight.load(Ordering::Relaxed));
        let busy = self.limits.concurrency != 0 && running >= self.limits.concurrency;
        let busy_us = if busy { micros(BUSY_WAIT) } else { 0 };
        self.rest_us(tokens, now_us).max(busy_us)
    }

    /// Whether only a person can put it right, as far as is known.
    pub(in crate::egress) fn is_out(&self) -> bool {
        self.standing.is_refused() || self.standing.purse() == Purse::Empty
    }

    /// Microseconds until it may be tried although it is out.
    pub(super) fn panic_us(&self, now_us: u64) -> u64 {
        if self.limits.nothing {
            return micros(super::OUT);
        }
        let blamed = self.standing.blamed_at_us.load(Ordering::Relaxed);
        let first = blamed + micros(PANIC_EVERY);
        let next = self.standing.panic_at_us.load(Ordering::Relaxed);
        first.max(next).saturating_sub(now_us)
    }

    /// Claims the one trial of a key that is out. False if another call was quicker.
    pub(super) fn claim_panic(&self, now_us: u64) -> bool {
        let next = &self.standing.panic_at_us;
        let seen = next.load(Ordering::Relaxed);
        let then = now_us + micros(PANIC_EVERY);
        seen <= now_us
            && next
                .compare_exchange(seen, then, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Calls in flight by weight, in thousandths.
    pub(super) fn load(&self) -> u64 {
        u64::from(self.standing.in_flight.load(Ordering::Relaxed)) * 1_000 / self.weight
    }

    pub(super) fn status(&self, provider: &str, now_us: u64) -> v1::CredentialStatus {
        let standing = &self.standing;
        let blamed = standing.blamed.load(Ordering::Relaxed);
        let rests_us = self.rest_us(1, now_us);
        let state = if self.disabled {
            v1::CredentialState::Disabled
        } else if self.is_out() {
            v1::CredentialState::Out
        } else if rests_us > 0 {
            v1::CredentialState::Resting
        } else {
            v1::CredentialState::Ready
        };
        let reason = match (blamed, standing.purse()) {
            (_, Purse::Empty) => "its balance is used up".to_owned(),
            (0, _) if self.limits.nothing => {
                "its limits are too low to be parted among the egress nodes".to_owned()
            }
            (0, _) if rests_us > 0 => "it is at its limit".to_owned(),
            (0, Purse::Low) => "its balance is low; others are used first".to_owned(),
            (0, _) => String::new(),
            (status, _) => format!("the provider answered {status}"),
        };
        let known = *standing.balance.lock();
        let balance = known.map(|(balance, at_us)| v1::Balance {
            micros: balance.micros,
            currency: balance.currency.to_string(),
            age_ms: now_us.saturating_sub(at_us) / 1_000,
        });
        v1::CredentialStatus {
            credential: self.name.to_string(),
            state: state.into(),
            rests_ms: rests_us.div_ceil(1_000),
            in_flight: u64::from(standing.in_flight.load(Ordering::Relaxed)),
            reason,
            provider: provider.to_owned(),
            balance,
        }
    }
}

/// Tokens that a prompt of this length stands for at most; one with pictures is no longer than the largest prompt.
pub(super) const fn prompt_tokens(bytes: u64) -> u64 {
    const TOKENS_MAX: u64 = 200_000;
    let tokens = bytes / 4;
    if tokens < TOKENS_MAX {
        tokens
    } else {
        TOKENS_MAX
    }
}

/// FNV-1a: the same on every node.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
