//! What follows from an attempt that brought no answer: the one table of what may be tried again.
//!
//! Pure. A request is sent again only if that can do no harm: nothing of it was taken, the egress says so itself, or the
//! operation may be done twice. What the client is told when nothing is left to try is here too.

use vector_proto::{
    refusal::{Code, Refusal},
    tunnel::v1,
};

use super::send::Denied;
use crate::tunnel::{Failure, Lost, LostReason, OpenError};

/// What the client reads when no egress can be reached.
pub(super) const NO_PATH: &str = "no node beside the provider can be reached at the moment";

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

/// What may be tried again. `again`: the whole request can still be sent; `idempotent`: sending it twice does no harm.
pub(super) fn after(failed: &Failed, again: bool, idempotent: bool) -> Next {
    match failed {
        Failed::Client(_) => Next::Stop,
        // Nothing left this node, not even a byte of the body.
        Failed::Open(OpenError::NoLink) => Next::OtherPath,
        _ if !again => Next::Stop,
        Failed::Refused(refused) if refused.retryable => Next::OtherEgress,
        Failed::Refused(_) => Next::Stop,
        Failed::Lost(lost) => match lost.reason {
            LostReason::Cancelled => Next::Stop,
            LostReason::LinkDown
            | LostReason::Reset
            | LostReason::Protocol(_)
            | LostReason::Gone => {
                if !lost.accepted || idempotent {
                    Next::OtherPath
                } else {
                    Next::Stop
                }
            }
        },
    }
}

impl Failed {
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

    #[test]
    fn each_failure_has_one_way_on() {
        use Next::{OtherEgress, OtherPath, Stop};
        let (again, gone) = (true, false);
        let (idempotent, once) = (true, false);
        for (failed, again, idempotent, next) in [
            (Failed::Open(OpenError::NoLink), gone, once, OtherPath),
            (refused(true), again, once, OtherEgress),
            (refused(true), gone, once, Stop),
            (refused(false), again, idempotent, Stop),
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
