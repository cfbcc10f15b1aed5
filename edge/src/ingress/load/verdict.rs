//! Whether a (provider, egress) pair or a model there may be used: it rests, it is ejected, or it is tried again with one
//! request at a time. And the one table of what an attempt says of whom ([`Lesson`]):
//!
//! | what happened | of whom | what follows |
//! |---|---|---|
//! | an answer began | both | both are well |
//! | all credentials there are at their limit | the pair | it rests |
//! | one credential is at its limit or out of use | nobody | nothing |
//! | the client went away, was too slow, or asked for what is not there | nobody | nothing |
//! | no way to the egress, or it was lost; the egress is full or going down | the pair | avoided for some seconds |
//! | the provider cannot be reached: name, TCP, TLS, or no byte left in time | the pair | the same, and counts as a fault |
//! | the provider took it and broke off, or was silent too long | the model | the same |
//! | the provider answered with a 5xx | the model | the same |
//! | the provider refused it otherwise, or the request's time ran out there | the model | avoided for some seconds |
//!
//! Faults in a row eject whom they are of. A pair is ejected for its models' faults, too, when two of them fail so since it
//! last answered for any: then it is the provider, as that egress reaches it. A pair's rest or ejection is that of all its
//! models.
//!
//! A rest is what the egress says of its own credentials; an ejection follows from faults that this node or another saw.
//! What this node saw later than it was told counts more. All in atomics: a race costs one attempt more or less.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use vector_proto::{
    refusal::{Blame, Code},
    tunnel::v1,
};

use super::super::retry::Failed;
use crate::tunnel::LostReason;

/// First ejection; the n-th lasts n times as long.
const EJECTION: Duration = Duration::from_secs(30);

/// Longest ejection.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// How long an egress's refusal keeps this node from asking it again unless control says the same: a credential may have been
/// added, and a refusal costs one round trip.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(2);

/// Of whom an attempt says something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::ingress) enum Scope {
    /// The provider by way of this egress, whatever the model.
    Pair,
    /// One model there.
    Model,
}

/// What an attempt says. See the module's table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::ingress) enum Lesson {
    /// An answer began after so long a time. Not `good`: one that says no, as to a model that there is not.
    Answered { first_byte: Duration, good: bool },
    /// Nothing can be served there for so long.
    Rests(Duration),
    /// To be avoided for a while.
    Avoid(Scope),
    /// The same, and it counts towards an ejection.
    Fault(Scope),
    /// Nothing.
    Nothing,
}

impl Lesson {
    /// Of an attempt that brought no answer.
    pub(in crate::ingress) fn of(failed: &Failed) -> Self {
        if let Some(rest) = failed.rest() {
            return Self::Rests(rest);
        }
        match failed {
            _ if failed.is_limited() => Self::Nothing,
            Failed::Client(_) => Self::Nothing,
            Failed::Open(_) => Self::Avoid(Scope::Pair),
            Failed::Lost(lost) => match lost.reason {
                LostReason::Cancelled => Self::Nothing,
                LostReason::LinkDown
                | LostReason::Reset
                | LostReason::Protocol(_)
                | LostReason::Gone => Self::Avoid(Scope::Pair),
            },
            Failed::Refused(refused) => Self::of_refusal(refused),
        }
    }

    fn of_refusal(refused: &v1::Refused) -> Self {
        if refused.headless {
            // Of a body that went ahead; it is asked at once without.
            return Self::Nothing;
        }
        if let Some(head) = &refused.provider_head {
            return match head.status {
                500.. => Self::Fault(Scope::Model),
                _ => Self::Avoid(Scope::Model),
            };
        }
        match refused.code.parse() {
            Ok(Code::ProviderUnreachable) => Self::Fault(Scope::Pair),
            Ok(Code::ProviderBroke | Code::ProviderTimeout) if refused.untouched => {
                Self::Fault(Scope::Pair)
            }
            Ok(Code::ProviderBroke | Code::ProviderTimeout) => Self::Fault(Scope::Model),
            Ok(Code::Deadline) => Self::Avoid(Scope::Model),
            Ok(code) if code.verdict().blame == Blame::Client => Self::Nothing,
            Ok(_) | Err(_) => Self::Avoid(Scope::Pair),
        }
    }
}

/// How a pair or a model stands, best first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(in crate::ingress) enum Standing {
    /// Use it.
    Good,
    /// Use it with one request, which tells whether it is well again.
    HalfOpen,
    /// Use it only if there is nothing else.
    Ejected,
    /// Nothing can be served there for so many microseconds.
    Rests(u64),
}

#[derive(Debug, Default)]
pub(super) struct Verdict {
    failures: AtomicU32,
    failed_us: AtomicU64,
    ejections: AtomicU32,
    /// 0: not ejected. Past: half open.
    ejected_until_us: AtomicU64,
    trial: AtomicBool,
    succeeded_us: AtomicU64,
    /// As the egress said to this node, and when.
    rests_until_us: AtomicU64,
    rested_us: AtomicU64,
    /// As control said, and when.
    told_us: AtomicU64,
    told_rests_until_us: AtomicU64,
    told_ejected_until_us: AtomicU64,
}

impl Verdict {
    pub(super) fn standing(&self, now_us: u64) -> Standing {
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let told = get(&self.told_us);
        let told_rests = get(&self.told_rests_until_us);
        if told_rests > now_us {
            return Standing::Rests(told_rests - now_us);
        }
        let rests_until = get(&self.rests_until_us);
        let unconfirmed = get(&self.rested_us) + UNCONFIRMED_MAX.as_micros() as u64;
        if rests_until > now_us && unconfirmed > now_us {
            return Standing::Rests(rests_until - now_us);
        }
        match get(&self.ejected_until_us) {
            0 => {}
            until if until > now_us => return Standing::Ejected,
            _ if self.trial.load(Ordering::Relaxed) => return Standing::Ejected,
            _ => return Standing::HalfOpen,
        }
        if get(&self.told_ejected_until_us) > now_us && get(&self.succeeded_us) <= told {
            return Standing::Ejected;
        }
        Standing::Good
    }

    /// Ejected by this node, half open or not.
    pub(super) fn is_ejected(&self, now_us: u64) -> bool {
        matches!(
            self.standing(now_us),
            Standing::Ejected | Standing::HalfOpen
        )
    }

    /// Ejected, and that is over: the next answer or failure decides.
    pub(super) fn is_on_trial(&self, now_us: u64) -> bool {
        let until = self.ejected_until_us.load(Ordering::Relaxed);
        until != 0 && until <= now_us
    }

    /// Time until this node tries it again.
    pub(super) fn ejected_us(&self, now_us: u64) -> u64 {
        self.ejected_until_us
            .load(Ordering::Relaxed)
            .saturating_sub(now_us)
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// When the last fault was; 0 for never.
    pub(super) fn failed_us(&self) -> u64 {
        self.failed_us.load(Ordering::Relaxed)
    }

    /// When the last answer began; 0 for never.
    pub(super) fn succeeded_us(&self) -> u64 {
        self.succeeded_us.load(Ordering::Relaxed)
    }

    /// There were so many faults at least, though not all of them were counted here.
    pub(super) fn fails(&self, failures: u32, now_us: u64) {
        self.failures.fetch_max(failures, Ordering::Relaxed);
        self.failed_us.store(now_us, Ordering::Relaxed);
    }

    /// The egress itself found it well at that moment. True if it was ejected for what was before, and no longer is.
    pub(super) fn found_well(&self, at_us: u64) -> bool {
        if at_us <= self.failed_us() || self.ejected_until_us.load(Ordering::Relaxed) == 0 {
            return false;
        }
        self.failures.store(0, Ordering::Relaxed);
        self.ejected_until_us.store(0, Ordering::Relaxed);
        true
    }

    /// Counts a fault; answers how many there are in a row.
    pub(super) fn failed(&self, now_us: u64) -> u32 {
        self.failed_us.store(now_us, Ordering::Relaxed);
        self.failures
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1)
    }

    /// Ejects it. False if it is ejected already.
    pub(super) fn eject(&self, now_us: u64) -> bool {
        let before = self.ejected_until_us.load(Ordering::Relaxed);
        if before > now_us {
            return false;
        }
        let long_ago = before + EJECTION_MAX.as_micros() as u64 <= now_us;
        let times = if long_ago {
            1
        } else {
            self.ejections.load(Ordering::Relaxed).saturating_add(1)
        };
        self.ejections.store(times, Ordering::Relaxed);
        let lasts = EJECTION.saturating_mul(times).min(EJECTION_MAX);
        let until = now_us + lasts.as_micros() as u64;
        self.ejected_until_us.store(until, Ordering::Relaxed);
        true
    }

    /// An answer began. True if the pair was ejected and no longer is.
    pub(super) fn succeeded(&self, now_us: u64) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.succeeded_us.store(now_us, Ordering::Relaxed);
        self.rests_until_us.store(0, Ordering::Relaxed);
        let until = self.ejected_until_us.load(Ordering::Relaxed);
        // A late answer of before the ejection says nothing of what came after.
        let well = until != 0 && until <= now_us;
        if well {
            self.ejected_until_us.store(0, Ordering::Relaxed);
        }
        well
    }

    /// Claims the trial of a half-open pair.
    pub(super) fn begin_trial(&self, now_us: u64) -> bool {
        self.is_on_trial(now_us) && !self.trial.swap(true, Ordering::Relaxed)
    }

    pub(super) fn end_trial(&self) {
        self.trial.store(false, Ordering::Relaxed);
    }

    pub(super) fn rests(&self, rest: Duration, now_us: u64) {
        let rest_us = u64::try_from(rest.as_micros()).unwrap_or(u64::MAX);
        let until = now_us.saturating_add(rest_us);
        self.rests_until_us.store(until, Ordering::Relaxed);
        self.rested_us.store(now_us, Ordering::Relaxed);
    }

    pub(super) fn told(&self, rests_ms: u64, ejected_ms: u64, now_us: u64) {
        let until = |ms: u64| match ms {
            0 => 0,
            ms => now_us.saturating_add(ms.saturating_mul(1_000)),
        };
        self.told_us.store(now_us, Ordering::Relaxed);
        self.told_rests_until_us
            .store(until(rests_ms), Ordering::Relaxed);
        self.told_ejected_until_us
            .store(until(ejected_ms), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::refusal::Refusal;

    use super::*;
    use crate::tunnel::{Lost, OpenError};

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn each_failure_speaks_of_a_pair_or_of_a_model_or_of_nobody() {
        use Lesson::{Avoid, Fault, Nothing, Rests};
        use Scope::{Model, Pair};
        let refused = |code: &str, status: u32, retry_after_ms, untouched| {
            let head = v1::ResponseHead {
                status,
                ..v1::ResponseHead::default()
            };
            Failed::Refused(Box::new(v1::Refused {
                code: code.into(),
                retry_after_ms,
                untouched,
                provider_head: (status != 0).then_some(head),
                ..v1::Refused::default()
            }))
        };
        let lost = |reason| {
            Failed::Lost(Lost {
                reason,
                accepted: true,
            })
        };
        let rest = Duration::from_millis(70);
        for (failed, lesson) in [
            (refused("no_credential", 0, 70, true), Rests(rest)),
            (refused("provider_refused", 429, 70, false), Rests(rest)),
            (refused("provider_refused", 429, 0, false), Nothing),
            (refused("no_credential", 0, 0, true), Nothing),
            (refused("object_not_found", 0, 0, true), Nothing),
            (refused("cancelled", 0, 0, false), Nothing),
            (Failed::Client(Refusal::new(Code::BodyTooSlow, "")), Nothing),
            (lost(LostReason::Cancelled), Nothing),
            (Failed::Open(OpenError::NoLink), Avoid(Pair)),
            (lost(LostReason::LinkDown), Avoid(Pair)),
            (lost(LostReason::Gone), Avoid(Pair)),
            (refused("overloaded", 0, 0, true), Avoid(Pair)),
            (refused("draining", 0, 0, true), Avoid(Pair)),
            (refused("of a later version", 0, 0, true), Avoid(Pair)),
            (refused("provider_unreachable", 0, 0, true), Fault(Pair)),
            (refused("provider_unreachable", 0, 0, false), Fault(Pair)),
            (refused("provider_timeout", 0, 0, true), Fault(Pair)),
            (refused("provider_timeout", 0, 0, false), Fault(Model)),
            (refused("provider_broke", 0, 0, false), Fault(Model)),
            (refused("provider_refused", 503, 70, false), Fault(Model)),
            (refused("provider_refused", 403, 0, false), Avoid(Model)),
            (refused("deadline_exceeded", 0, 0, false), Avoid(Model)),
        ] {
            assert_eq!(Lesson::of(&failed), lesson, "{failed:?}");
        }
    }

    #[test]
    fn an_ejected_pair_is_tried_by_one_at_a_time_and_longer_ejected_each_time() {
        let verdict = Verdict::default();
        let mut now = SECOND_US;
        for times in 1..=3 {
            assert!(verdict.eject(now));
            assert!(!verdict.eject(now), "once is enough");
            assert_eq!(verdict.standing(now), Standing::Ejected);
            now += times * EJECTION.as_micros() as u64;
            assert_eq!(verdict.standing(now), Standing::HalfOpen);
            assert!(verdict.begin_trial(now));
            assert!(!verdict.begin_trial(now));
            assert_eq!(verdict.standing(now), Standing::Ejected, "one at a time");
            verdict.end_trial();
        }
        assert!(verdict.succeeded(now));
        assert_eq!(verdict.standing(now), Standing::Good);
        assert!(!verdict.begin_trial(now));
    }

    #[test]
    fn an_answer_of_before_the_ejection_does_not_end_it() {
        let verdict = Verdict::default();
        verdict.eject(SECOND_US);
        assert!(!verdict.succeeded(2 * SECOND_US));
        assert_eq!(verdict.standing(2 * SECOND_US), Standing::Ejected);
    }

    #[test]
    fn a_refusal_counts_for_a_moment_and_as_long_as_control_says_the_same() {
        let verdict = Verdict::default();
        verdict.rests(Duration::from_secs(33), 0);
        assert_eq!(verdict.standing(SECOND_US), Standing::Rests(32 * SECOND_US));
        assert_eq!(
            verdict.standing(3 * SECOND_US),
            Standing::Good,
            "nobody confirmed it"
        );
        verdict.told(30_000, 0, 3 * SECOND_US);
        assert_eq!(
            verdict.standing(4 * SECOND_US),
            Standing::Rests(29 * SECOND_US)
        );
        verdict.told(0, 0, 5 * SECOND_US);
        assert_eq!(verdict.standing(5 * SECOND_US), Standing::Good);
    }

    #[test]
    fn what_this_node_saw_later_counts_more_than_what_it_was_told() {
        let verdict = Verdict::default();
        verdict.told(0, 30_000, SECOND_US);
        assert_eq!(verdict.standing(2 * SECOND_US), Standing::Ejected);
        verdict.succeeded(3 * SECOND_US);
        assert_eq!(verdict.standing(3 * SECOND_US), Standing::Good);
        verdict.eject(4 * SECOND_US);
        verdict.told(0, 0, 5 * SECOND_US);
        assert_eq!(
            verdict.standing(5 * SECOND_US),
            Standing::Ejected,
            "told to be well"
        );
    }
}
