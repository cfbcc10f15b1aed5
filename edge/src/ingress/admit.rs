//! Decides whether a request may start now: the key's models, then its rates. A key that may use certain models makes no call
//! whose model cannot be seen.
//!
//! A refusal costs nothing and names the limit. What is admitted holds a [`Permit`] until its answer is over.

use std::{sync::Arc, time::Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use vector_proto::{
    control::v1::KeyPolicy,
    dialect::operation::Operation,
    refusal::{Code, Refusal},
};

use crate::limit::{Limiter, Permit, Rate, Rates, Refused, Which};

/// Whether a key may make such a call at all, whatever the request says.
pub(super) fn check_operation(policy: &KeyPolicy, operation: &Operation) -> Result<(), Refusal> {
    if policy.models.is_empty() || !operation.hides_model() {
        return Ok(());
    }
    let message = format!(
        "This API key may use certain models only, so it may not call `{}`, whose model is not seen here.",
        operation.name
    );
    Err(Refusal::new(Code::ModelNotAllowed, message))
}

/// Lets a request start, or says what forbids it. `again`: it may ask for the answer of another that runs, and needs no place
/// beside that one's, unless it comes to [`begin`].
pub(super) fn admit(
    limiter: &Limiter,
    policy: &Arc<KeyPolicy>,
    model: Option<&str>,
    again: bool,
    now: Instant,
) -> Result<Permit, Refusal> {
    if let Some(model) = model
        && !may_use(policy, model)
    {
        let message = format!("This API key may not use the model `{model}`.");
        return Err(Refusal::new(Code::ModelNotAllowed, message).at("model"));
    }
    let permit = if again {
        limiter.check_again(policy, now)
    } else {
        limiter.check(policy, now)
    };
    permit.map_err(|refused| limited(policy, &refused))
}

/// A request turns out to need an exchange of its own.
pub(super) fn begin(permit: &Permit, policy: &KeyPolicy) -> Result<(), Refusal> {
    permit.begin().map_err(|refused| limited(policy, &refused))
}

/// Whether a key's list of models has this one.
pub(super) fn may_use(policy: &KeyPolicy, model: &str) -> bool {
    policy.models.is_empty() || policy.models.iter().any(|allowed| allowed == model)
}

fn limited(policy: &KeyPolicy, refused: &Refused) -> Refusal {
    let (code, message) = match refused.which {
        Which::Requests => {
            let limit = policy.requests_per_minute;
            (
                Code::RequestsLimited,
                format!("Rate limit reached for this API key: {limit} requests per minute"),
            )
        }
        Which::Tokens => {
            let limit = policy.tokens_per_minute;
            (
                Code::TokensLimited,
                format!("Rate limit reached for this API key: {limit} tokens per minute"),
            )
        }
        Which::Concurrency => {
            let limit = policy.concurrency;
            (
                Code::ConcurrencyLimited,
                format!("Limit reached for this API key: {limit} requests at once"),
            )
        }
        Which::Keys => (
            Code::Overloaded,
            "this node serves as many limited keys as it can hold".to_owned(),
        ),
    };
    let ms = u64::try_from(refused.retry_after.as_micros().div_ceil(1000)).unwrap_or(u64::MAX);
    Refusal::new(code, message).after_ms(ms.max(1))
}

/// Tells the client where its key's rates stand. They are narrower than the provider's, which then are not told.
pub(super) fn tell_rates(rates: &Rates, headers: &mut HeaderMap) {
    if let Some(rate) = &rates.requests {
        tell(
            rate,
            headers,
            [
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ],
        );
    }
    if let Some(rate) = &rates.tokens {
        tell(
            rate,
            headers,
            [
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ],
        );
    }
}

fn tell(rate: &Rate, headers: &mut HeaderMap, names: [&'static str; 3]) {
    let [limit, remaining, reset] = names.map(HeaderName::from_static);
    headers.insert(limit, HeaderValue::from(rate.limit));
    headers.insert(remaining, HeaderValue::from(rate.remaining));
    if let Ok(text) = HeaderValue::try_from(span(rate.reset.as_millis())) {
        headers.insert(reset, text);
    }
}

/// As OpenAI writes times: `12ms`, `1s`, `6m0s`.
fn span(ms: u128) -> String {
    match (ms / 60_000, ms / 1000 % 60, ms % 1000) {
        (0, 0, ms) => format!("{ms}ms"),
        (0, s, 0) => format!("{s}s"),
        (0, s, ms) => format!("{s}.{ms:03}s"),
        (m, s, _) => format!("{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_models_is_obeyed() {
        let policy = KeyPolicy {
            models: vec!["a".into()],
            ..KeyPolicy::default()
        };
        assert!(may_use(&policy, "a"));
        assert!(!may_use(&policy, "A"));
        assert!(may_use(&KeyPolicy::default(), "anything"));
    }

    #[test]
    fn a_refusal_names_the_limit_and_when() {
        let limiter = Limiter::new();
        let policy = Arc::new(KeyPolicy {
            key: "k".into(),
            requests_per_minute: 1,
            ..KeyPolicy::default()
        });
        let now = Instant::now();
        assert!(admit(&limiter, &policy, None, false, now).is_ok());
        let refusal = admit(&limiter, &policy, None, false, now).unwrap_err();
        assert_eq!(refusal.code, Code::RequestsLimited);
        assert!(refusal.message.contains("1 requests per minute"));
        assert_eq!(refusal.retry_after_ms, Some(60_000));
    }

    #[test]
    fn times_are_written_as_openai_does() {
        assert_eq!(span(12), "12ms");
        assert_eq!(span(1000), "1s");
        assert_eq!(span(1500), "1.500s");
        assert_eq!(span(360_000), "6m0s");
    }
}
