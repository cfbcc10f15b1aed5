//! The one table from what went wrong to what the client reads.
//!
//! Ingress, egress and control refuse by [`Code`]; only the ingress turns one into an answer. A new
//! code does not compile without a row. Texts for the log are elsewhere: these are for the client.

use std::{fmt, str::FromStr};

/// Who has to change something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Blame {
    /// The client's request.
    Client,
    /// This network or its operator.
    Us,
    /// The provider.
    Provider,
    /// A path between our nodes.
    Network,
}

/// What follows from a [`Code`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Whose fault.
    pub blame: Blame,
    /// HTTP status.
    pub status: u16,
    /// `error.type` in OpenAI's shape.
    pub kind: &'static str,
    /// `error.code`.
    pub code: &'static str,
    /// Whether an SDK should try again by itself (`x-should-retry`).
    pub client_may_retry: bool,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $status:literal, $kind:literal, $blame:ident, $retry:literal;)*) => {
        /// Why a request is refused.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The row of the table.
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self {
                    $(Self::$name => Verdict {
                        blame: Blame::$blame, status: $status, kind: $kind, code: $code, client_may_retry: $retry,
                    },)*
                }
            }
        }

        impl FromStr for Code {
            type Err = UnknownCode;

            fn from_str(text: &str) -> Result<Self, UnknownCode> {
                match text {
                    $($code => Ok(Self::$name),)*
                    _ => Err(UnknownCode),
                }
            }
        }
    };
}

codes! {
    // name = error.code, status, error.type, blame, the client's SDK may retry
    /// No key was presented.
    NoKey = "missing_api_key", 401, "invalid_request_error", Client, false;
    /// The key is malformed or unknown.
    BadKey = "invalid_api_key", 401, "invalid_request_error", Client, false;
    /// The key or its account is switched off.
    KeyDisabled = "api_key_disabled", 401, "invalid_request_error", Client, false;
    /// The key's time is over.
    KeyExpired = "api_key_expired", 401, "invalid_request_error", Client, false;
    /// The key may not be used from this address.
    AddressNotAllowed = "ip_not_allowed", 403, "invalid_request_error", Client, false;
    /// The key may not use this model.
    ModelNotAllowed = "model_not_allowed", 403, "invalid_request_error", Client, false;
    /// Requests a minute.
    RequestsLimited = "rate_limit_exceeded", 429, "requests", Client, true;
    /// Tokens a minute.
    TokensLimited = "tokens_limit_exceeded", 429, "tokens", Client, true;
    /// Requests at once.
    ConcurrencyLimited = "concurrency_limit_exceeded", 429, "requests", Client, true;
    /// The request names no model where the operation needs one.
    ModelMissing = "model_missing", 400, "invalid_request_error", Client, false;
    /// No such model for this key.
    ModelUnknown = "model_not_found", 404, "invalid_request_error", Client, false;
    /// The call names an object that this account did not make.
    ObjectUnknown = "object_not_found", 404, "invalid_request_error", Client, false;
    /// No such path.
    PathUnknown = "unknown_url", 404, "invalid_request_error", Client, false;
    /// The path is there, the method is not.
    MethodNotAllowed = "method_not_allowed", 405, "invalid_request_error", Client, false;
    /// The head breaks HTTP's rules or ours.
    BadHead = "bad_request_head", 400, "invalid_request_error", Client, false;
    /// The body is not what its content type says.
    BadBody = "invalid_body", 400, "invalid_request_error", Client, false;
    /// The operation takes another content type.
    BadContentType = "unsupported_content_type", 415, "invalid_request_error", Client, false;
    /// The body is larger than the operation may have.
    BodyTooLarge = "request_too_large", 413, "invalid_request_error", Client, false;
    /// The head is larger than allowed.
    HeadTooLarge = "headers_too_large", 431, "invalid_request_error", Client, false;
    /// The body came too slowly.
    BodyTooSlow = "request_timeout", 408, "invalid_request_error", Client, true;
    /// `Idempotency-Key` is no key.
    BadIdempotencyKey = "invalid_idempotency_key", 400, "invalid_request_error", Client, false;
    /// The key belongs to a request with another body.
    IdempotencyConflict = "idempotency_key_reused", 422, "invalid_request_error", Client, false;
    /// The first request with this key is on its way, and where is not known yet.
    IdempotencyBusy = "idempotency_request_in_progress", 409, "invalid_request_error", Client, true;
    /// The account holds as many idempotency keys as it may.
    IdempotencyFull = "too_many_idempotency_keys", 429, "requests", Client, false;
    /// The answer was kept and is no longer there; what it cost was spent, so nothing is done again.
    AnswerLost = "answer_lost", 409, "server_error", Us, false;
    /// No such exchange, or none whose answer is kept, or another account's.
    ExchangeUnknown = "exchange_not_found", 404, "invalid_request_error", Client, false;
    /// The answer has no byte of this offset.
    OffsetBeyond = "offset_beyond_end", 416, "invalid_request_error", Client, false;
    /// As many read this answer as may at once.
    ReplaysLimited = "replays_limited", 429, "requests", Client, true;
    /// The WebSocket upgrade is malformed or missing.
    BadUpgrade = "bad_websocket_upgrade", 400, "invalid_request_error", Client, false;
    /// Nothing routes this request: no provider is configured for it.
    NoRoute = "no_route", 503, "server_error", Us, false;
    /// A route is configured, but no egress on it can be reached now.
    NoPath = "no_path", 503, "server_error", Network, true;
    /// Every credential of the provider rests or is out of use.
    NoCredential = "no_credential", 429, "server_error", Us, true;
    /// The provider could not be reached.
    ProviderUnreachable = "provider_unreachable", 502, "server_error", Provider, true;
    /// The provider took too long.
    ProviderTimeout = "provider_timeout", 504, "server_error", Provider, true;
    /// The provider answered with an error that this network passes on.
    ProviderRefused = "provider_refused", 502, "server_error", Provider, true;
    /// The provider's answer broke off or broke HTTP's rules.
    ProviderBroke = "provider_broke", 502, "server_error", Provider, true;
    /// The path to the egress was lost, and the exchange cannot be tried again safely.
    PathBroken = "path_broken", 502, "server_error", Network, true;
    /// The exchange ran out of its time.
    Deadline = "deadline_exceeded", 504, "server_error", Us, true;
    /// The client went away.
    Cancelled = "cancelled", 499, "invalid_request_error", Client, false;
    /// This node is going down.
    Draining = "draining", 503, "server_error", Us, true;
    /// This node has all the work it can hold.
    Overloaded = "overloaded", 503, "server_error", Us, true;
    /// A key is not known here and control cannot be asked.
    ControlUnreachable = "control_unreachable", 503, "server_error", Us, true;
    /// Two nodes disagree about the protocol. Never the client's doing.
    Protocol = "protocol_error", 502, "server_error", Us, true;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verdict().code)
    }
}

/// A node of another version sent a code that is not in the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("unknown refusal code")]
pub struct UnknownCode;

/// A refusal on its way to the client: the code, and a text that names what and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Which row of the table.
    pub code: Code,
    /// A full sentence for the client.
    pub message: String,
    /// The request's field that is at fault, such as `model`.
    pub param: Option<&'static str>,
    /// When it may work again.
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal without a field and without a time.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            param: None,
            retry_after_ms: None,
        }
    }

    /// Names the field at fault.
    #[must_use]
    pub const fn at(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// Says when it may work again.
    #[must_use]
    pub const fn after_ms(mut self, retry_after_ms: u64) -> Self {
        self.retry_after_ms = Some(retry_after_ms);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back() {
        for &code in Code::ALL {
            assert_eq!(code.to_string().parse(), Ok(code));
            assert!((400..600).contains(&code.verdict().status));
        }
        assert_eq!("nonsense".parse::<Code>(), Err(UnknownCode));
    }
}
