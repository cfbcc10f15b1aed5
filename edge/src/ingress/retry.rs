//! What follows from an attempt that brought no answer: the one table of what may be sent again, and when.
//!
//! Pure. Never after the first byte of an answer. Before that, a request is sent again only if that can do no harm:
//!
//! | what happened | any request | one that may be done twice |
//! |---|---|---|
//! | no link was there, or the OPEN was lost before it was accepted | again | again |
//! | refused by an egress, no byte of it left for a provider | again | again |
//! | refused by a relay, which has no way on | again, over another path | again, over another path |
//! | refused by a provider: 401-403, 429 or 5xx | again | again |
//! | the provider took it and then broke off, or was silent too long | the client is told | again |
//! | lost after it was accepted: a path or an egress died | the client is told | again |
//! | refused for good, or the client went away | the client is told | the client is told |
//!
//! A request may be done twice if its method says so (RFC 9110, 9.2.2), or if the client does, by `x-vector-retry: unsafe`.
//! Whatever is sent again costs the budget (`budget`), unless it adds nothing to what others do ([`Failed::is_free`]).

use std::time::Duration;

use http::{HeaderMap, HeaderName};
use vector_proto::{
    refusal::{Code, Refusal},
    tunnel::v1,
};

use super::send::Denied;
use crate::tunnel::{Failure, Lost, LostReason, OpenError};

/// What the client reads when no egress can be reached.
pub(super) const NO_PATH: &str = "no node beside the provider can be reached at the moment";

/// By which a client takes it upon itself that a request is done twice, where it cannot be known whether it was done.
const RETRY: HeaderName = HeaderName::from_static("x-vector-retry");

/// Whether the client allows what the table forbids to requests that may not be done twice.
pub(super) fn client_allows(headers: &HeaderMap) -> bool {
    headers
        .get(RETRY)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"unsafe"))
}

/// Why an attempt brought no answer.
#[derive(Debug)]
pub(super) enum Failed {
    Open(OpenError),
    Refused(Box<v1::Refused>),
    Lost(Lost),
    /// The client's own doing.
    Client(Refusal),
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Next {
    /// The same egress may be tried over another path.
    OtherPath,
    /// This egress is out for this upstream.
    OtherEgress,
    /// The client is told.
    Stop,
}

/// What may be tried again. `again`: the whole request can still be sent; `twice`: it may be done twice.
pub(super) fn after(failed: &Failed, again: bool, twice: bool) -> Next {
    match failed {
        Failed::Client(_) => Next::Stop,
        // Nothing left this node, not even a byte of the body.
        Failed::Open(OpenError::NoLink) => Next::OtherPath,
        _ if !again => Next::Stop,
        Failed::Refused(refused) if !refused.retryable => Next::Stop,
        // Said by a relay. Its egress was not even asked.
        Failed::Refused(refused) if refused.untouched && is_no_path(refused) => Next::OtherPath,
        Failed::Refused(refused) if twice || !is_unknown(refused) => Next::OtherEgress,
        Failed::Refused(_) => Next::Stop,
        Failed::Lost(lost) => match lost.reason {
            LostReason::Cancelled => Next::Stop,
            LostReason::LinkDown
            | LostReason::Reset
            | LostReason::Protocol(_)
            | LostReason::Gone => {
                if !lost.accepted || twice {
                    Next::OtherPath
                } else {
                    Next::Stop
                }
            }
        },
    }
}

fn is_no_path(refused: &v1::Refused) -> bool {
    refused.code.parse() == Ok(Code::NoPath)
}

/// Whether a provider may have done what was asked, and nobody knows.
fn is_unknown(refused: &v1::Refused) -> bool {
    let code = refused.code.parse().ok();
    let silent = matches!(code, Some(Code::ProviderBroke | Code::ProviderTimeout));
    silent && !refused.untouched && refused.provider_head.is_none()
}

impl Failed {
    /// What carried the exchange is gone.
    pub(super) const fn gone() -> Self {
        Self::Lost(Lost {
            reason: LostReason::Gone,
            accepted: false,
        })
    }

    /// Whether no byte of the request left for a provider, for certain.
    pub(super) fn is_untouched(&self) -> bool {
        match self {
            Self::Open(OpenError::NoLink) => true,
            Self::Refused(refused) => refused.untouched,
            Self::Lost(lost) => !lost.accepted,
            Self::Client(_) => false,
        }
    }

    /// Whether the next attempt costs nothing of the budget, which keeps a failing network from being hit twice as hard:
    /// nobody had the request, or who had it died, and all that it was doing with it. A node that refuses did something.
    pub(super) fn is_free(&self, attempt: u32) -> bool {
        match self {
            Self::Open(OpenError::NoLink) => true,
            Self::Lost(lost) => !lost.accepted || attempt == 1,
            Self::Refused(refused) => {
                let elsewhere = matches!(refused.code.parse(), Ok(Code::NoPath | Code::Draining));
                refused.untouched && (elsewhere || attempt == 1)
            }
            Self::Client(_) => false,
        }
    }

    /// Whether it may be for its body's going ahead that it was refused, and not for itself: it is asked once more without.
    pub(super) fn is_of_ahead(&self) -> bool {
        let Self::Refused(refused) = self else {
            return false;
        };
        // A relay of before leaves out what it does not know of an OPEN, and its egress finds no request in it.
        refused.headless || (refused.untouched && refused.code.parse() == Ok(Code::Protocol))
    }

    /// Whether the request is nowhere any more, by the word of who had it.
    pub(super) fn is_back(&self) -> bool {
        match self {
            Self::Open(OpenError::NoLink) => true,
            Self::Refused(refused) => !is_unknown(refused),
            Self::Lost(_) | Self::Client(_) => false,
        }
    }

    /// How long the egress has nothing to serve it with.
    pub(super) fn rest(&self) -> Option<Duration> {
        let Self::Refused(refused) = self else {
            return None;
        };
        (self.is_limited() && refused.retry_after_ms > 0)
            .then(|| Duration::from_millis(refused.retry_after_ms))
    }

    /// Whether credentials are at their limit: one or, if it rests, all that the egress has.
    pub(super) fn is_limited(&self) -> bool {
        let Self::Refused(refused) = self else {
            return false;
        };
        match &refused.provider_head {
            Some(head) => head.status == 429,
            None => refused.code.parse() == Ok(Code::NoCredential),
        }
    }

    /// What the client is told.
    pub(super) fn into_denied(self) -> Denied {
        let (code, message) = match self {
            Self::Client(refusal) => return Denied::Ours(refusal),
            Self::Refused(refused) if refused.provider_head.is_some() => {
                return Denied::Provider(refused);
            }
            Self::Refused(refused) => return Denied::Ours(refusal(*refused)),
            Self::Open(OpenError::NoLink) => (Code::NoPath, NO_PATH),
            Self::Lost(lost) => match lost.reason {
                LostReason::Protocol(_) => (
                    Code::Protocol,
                    "two nodes of the network did not understand each other",
                ),
                LostReason::LinkDown
                | LostReason::Reset
                | LostReason::Cancelled
                | LostReason::Gone
                    if lost.accepted =>
                {
                    (
                        Code::PathBroken,
                        "the path broke before the answer began; the provider may have done the work",
                    )
                }
                LostReason::LinkDown
                | LostReason::Reset
                | LostReason::Cancelled
                | LostReason::Gone => (Code::NoPath, "the path broke before the request was taken"),
            },
        };
        Denied::Ours(Refusal::new(code, message))
    }
}

/// An egress's refusal in our own words.
fn refusal(refused: v1::Refused) -> Refusal {
    let code = refused.code.parse().unwrap_or(Code::ProviderUnreachable);
    let text = Refusal::new(code, refused.message);
    match refused.retry_after_ms {
        0 => text,
        ms => text.after_ms(ms),
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(refused) => Self::Refused(refused),
            Failure::Lost(lost) => Self::Lost(lost),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(reason: LostReason, accepted: bool) -> Failed {
        Failed::Lost(Lost { reason, accepted })
    }

    fn refused(retryable: bool) -> Failed {
        Failed::Refused(Box::new(v1::Refused {
            retryable,
            ..v1::Refused::default()
        }))
    }

    /// A provider that took too long, or was not even sent to.
    fn silent(untouched: bool) -> Failed {
        Failed::Refused(Box::new(v1::Refused {
            code: "provider_timeout".into(),
            retryable: true,
            untouched,
            ..v1::Refused::default()
        }))
    }

    /// A relay without a link to the egress, or somebody who sent a byte of it and says the same.
    fn no_path(untouched: bool) -> Failed {
        Failed::Refused(Box::new(v1::Refused {
            code: "no_path".into(),
            retryable: true,
            untouched,
            ..v1::Refused::default()
        }))
    }

    #[test]
    fn a_refusal_says_how_long_it_lasts() {
        let of = |code: &str, status: u32, retry_after_ms| {
            let head = v1::ResponseHead {
                status,
                ..v1::ResponseHead::default()
            };
            Failed::Refused(Box::new(v1::Refused {
                code: code.into(),
                retry_after_ms,
                provider_head: (status != 0).then_some(head),
                ..v1::Refused::default()
            }))
        };
        for (failed, rest_ms) in [
            (of("no_credential", 0, 50), Some(50)),
            (of("no_credential", 0, 0), None),
            (of("provider_refused", 429, 70), Some(70)),
            (of("provider_refused", 503, 70), None),
            (lost(LostReason::LinkDown, true), None),
        ] {
            let rest = rest_ms.map(Duration::from_millis);
            assert_eq!(failed.rest(), rest, "{failed:?}");
        }
    }

    #[test]
    fn what_adds_nothing_costs_nothing() {
        let untouched = |code: Code| {
            Failed::Refused(Box::new(v1::Refused {
                code: code.to_string(),
                untouched: true,
                ..v1::Refused::default()
            }))
        };
        for (failed, first, later) in [
            (Failed::Open(OpenError::NoLink), true, true),
            (untouched(Code::NoPath), true, true),
            (untouched(Code::Draining), true, true),
            (untouched(Code::Overloaded), true, false),
            (refused(true), false, false),
            (lost(LostReason::LinkDown, false), true, true),
            // All requests of an egress that dies at once are asked again once, however many they are.
            (lost(LostReason::LinkDown, true), true, false),
        ] {
            let free = (failed.is_free(1), failed.is_free(2));
            assert_eq!(free, (first, later), "{failed:?}");
        }
    }

    #[test]
    fn the_client_says_when_twice_is_no_harm() {
        let mut headers = HeaderMap::new();
        assert!(!client_allows(&headers));
        headers.insert(RETRY, http::HeaderValue::from_static("yes"));
        assert!(!client_allows(&headers));
        headers.insert(RETRY, http::HeaderValue::from_static("Unsafe"));
        assert!(client_allows(&headers));
    }

    #[test]
    fn each_failure_has_one_way_on() {
        use Next::{OtherEgress, OtherPath, Stop};
        let (again, gone) = (true, false);
        let (idempotent, once) = (true, false);
        for (failed, again, idempotent, next) in [
            (Failed::Open(OpenError::NoLink), gone, once, OtherPath),
            (refused(true), again, once, OtherEgress),
            (refused(true), gone, once, Stop),
            (silent(false), again, once, Stop),
            (silent(false), again, idempotent, OtherEgress),
            (silent(true), again, once, OtherEgress),
            (refused(false), again, idempotent, Stop),
            (no_path(true), again, once, OtherPath),
            (no_path(true), gone, once, Stop),
            (no_path(false), again, once, OtherEgress),
            (lost(LostReason::LinkDown, false), again, once, OtherPath),
            (lost(LostReason::LinkDown, false), gone, once, Stop),
            (lost(LostReason::LinkDown, true), again, once, Stop),
            (
                lost(LostReason::LinkDown, true),
                again,
                idempotent,
                OtherPath,
            ),
            (lost(LostReason::Reset, true), again, once, Stop),
            (lost(LostReason::Gone, true), again, idempotent, OtherPath),
            (lost(LostReason::Cancelled, false), again, idempotent, Stop),
            (
                Failed::Client(Refusal::new(Code::BodyTooSlow, "")),
                again,
                idempotent,
                Stop,
            ),
        ] {
            assert_eq!(
                after(&failed, again, idempotent),
                next,
                "{failed:?} {again} {idempotent}"
            );
        }
    }

    #[test]
    fn the_client_reads_whose_fault_it_was() {
        let code = |failed: Failed| match failed.into_denied() {
            Denied::Ours(refusal) => refusal.code,
            Denied::Provider(_) => Code::ProviderRefused,
        };
        assert_eq!(code(lost(LostReason::LinkDown, true)), Code::PathBroken);
        assert_eq!(code(lost(LostReason::LinkDown, false)), Code::NoPath);
        assert_eq!(code(Failed::Open(OpenError::NoLink)), Code::NoPath);
        let said = v1::Refused {
            code: "no_credential".into(),
            retry_after_ms: 7,
            ..v1::Refused::default()
        };
        let Denied::Ours(refusal) = Failed::Refused(Box::new(said.clone())).into_denied() else {
            panic!("ours")
        };
        assert_eq!(
            (refusal.code, refusal.retry_after_ms),
            (Code::NoCredential, Some(7))
        );
        let said = v1::Refused {
            provider_head: Some(v1::ResponseHead::default()),
            ..said
        };
        assert_eq!(code(Failed::Refused(Box::new(said))), Code::ProviderRefused);
    }
}
