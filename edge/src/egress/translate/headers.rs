//! Which headers pass, in both directions.
//!
//! To the provider by the list that the ingress goes by as well (`vector_proto::dialect::header`). To the client all but what belongs to the
//! connection or to the operator's account with the provider.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use vector_proto::{
    dialect::header::travels,
    tunnel::fields::{Block, Fields},
};

/// Usual size of a field.
const FIELD_BYTES: usize = 48;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Answer headers that do not pass: those of one connection, those that would bind the client to the provider's
/// host, and those that tell whose account served.
const HELD_BACK: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "set-cookie",
    "alt-svc",
    "strict-transport-security",
    "report-to",
    "nel",
    "openai-organization",
    "openai-project",
];

/// What a provider gets of the client's headers.
///
/// An idempotency key is bound to the account: two accounts share a credential, and must never share an answer.
pub(super) fn request(given: &Bytes, account: &str) -> HeaderMap {
    // Room for what is passed on and for what is added, so that the map never grows.
    let mut headers = HeaderMap::with_capacity(Fields::of(given).count() + 8);
    for (name, value) in Fields::of(given) {
        let Ok(name) = HeaderName::from_bytes(name) else {
            continue;
        };
        if name == IDEMPOTENCY_KEY {
            let mut bound = account.as_bytes().to_vec();
            bound.push(b':');
            bound.extend_from_slice(&value);
            if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(bound)) {
                headers.insert(name, value);
            }
        } else if travels(name.as_str())
            && let Ok(value) = HeaderValue::from_maybe_shared(value)
        {
            headers.append(name, value);
        }
    }
    headers
}

/// What the client gets of a provider's headers.
pub(super) fn response(given: &HeaderMap, length_holds: bool) -> Bytes {
    let named = given
        .get(header::CONNECTION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let hop = |name: &str| {
        named
            .split(',')
            .any(|hop| hop.trim().eq_ignore_ascii_case(name))
    };
    let mut headers = Block::with_capacity(given.len() * FIELD_BYTES);
    for (name, value) in given {
        let text = name.as_str();
        if HELD_BACK.contains(&text) || (name == header::CONTENT_LENGTH && !length_holds) {
            continue;
        }
        if !named.is_empty() && hop(text) {
            continue;
        }
        headers.push(text, value.as_bytes());
    }
    headers.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(fields: &[(&str, &str)]) -> Bytes {
        let fields = fields.iter();
        let block: Block = fields
            .map(|(name, value)| (*name, value.as_bytes()))
            .collect();
        block.finish()
    }

    #[test]
    fn only_the_list_reaches_a_provider() {
        let sent = request(
            &given(&[
                ("Content-Type", "application/json"),
                ("user-agent", "OpenAI/Python 2.0"),
                ("openai-beta", "assistants=v2"),
                ("range", "bytes=0-9"),
                ("last-event-id", "7"),
                ("content-disposition", "attachment"),
                ("x-openai-experiment", "a"),
                ("authorization", "Bearer sk-client"),
                ("x-api-key", "sk-client"),
                ("cookie", "a=b"),
                ("host", "edge"),
                ("connection", "close"),
                ("transfer-encoding", "chunked"),
                ("content-length", "7"),
                ("x-forwarded-for", "192.0.2.1"),
                ("openai-organization", "org-of-the-client"),
                ("openai-project", "proj-of-the-client"),
                ("x-stainless-lang", "python"),
                ("traceparent", "00-1-1-00"),
                ("bad name", "x"),
                ("accept", "bad\nvalue"),
            ]),
            "acme",
        );
        let mut names: Vec<&str> = sent.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "content-disposition",
                "content-type",
                "last-event-id",
                "openai-beta",
                "range",
                "user-agent",
                "x-openai-experiment"
            ]
        );
    }

    #[test]
    fn two_accounts_never_share_an_idempotency_key() {
        let fields = given(&[("Idempotency-Key", "k1")]);
        let one = request(&fields, "acme");
        let other = request(&fields, "emca");
        assert_eq!(one["idempotency-key"], "acme:k1");
        assert_ne!(one["idempotency-key"], other["idempotency-key"]);
    }

    #[test]
    fn answers_keep_what_sdks_read_and_lose_what_is_the_operators() {
        let mut head = HeaderMap::new();
        for (name, value) in [
            ("x-request-id", "req_1"),
            ("openai-processing-ms", "7"),
            ("x-ratelimit-remaining-requests", "9"),
            ("retry-after-ms", "10"),
            ("x-should-retry", "false"),
            ("content-length", "5"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("set-cookie", "__cf_bm=1"),
            ("openai-organization", "operator"),
        ] {
            head.insert(name, value.parse().unwrap());
        }
        let names = |length_holds| {
            let passed = response(&head, length_holds);
            let mut names: Vec<String> = Fields::of(&passed)
                .map(|(name, _)| String::from_utf8(name.to_vec()).unwrap())
                .collect();
            names.sort_unstable();
            names
        };
        let kept = [
            "content-length",
            "openai-processing-ms",
            "retry-after-ms",
            "x-ratelimit-remaining-requests",
            "x-request-id",
            "x-should-retry",
        ];
        assert_eq!(names(true), kept);
        assert_eq!(names(false), kept[1..]);
    }
}
