//! Turns an egress's answer into the client's: status and headers at once, the body as it comes (`stream`).
//!
//! All of a provider's headers are passed on but those that concern one hop, the provider's own site, or this network. The
//! client's `x-request-id` is the exchange's id; the provider's own comes as `x-upstream-request-id`.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use vector_proto::{id::ExchangeId, tunnel::fields::Fields};

use super::{
    admit,
    record::{Outcome, Record},
    send::Sent,
    stream::{self, Answer},
};
use crate::tunnel::Part;

pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const UPSTREAM_REQUEST_ID: HeaderName = HeaderName::from_static("x-upstream-request-id");
const EGRESS: HeaderName = HeaderName::from_static("x-vector-egress");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-vector-attempts");
const REPLAYED: HeaderName = HeaderName::from_static("x-vector-replayed");
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers with what an egress sends.
///
/// Cancel safety: the exchange is cancelled at its egress.
pub(super) async fn respond(
    method: &Method,
    sent: Sent,
    mut record: Record,
    around: stream::Around,
) -> Response<Answer> {
    let Sent {
        head,
        mut response,
        up,
        in_flight,
        kept: _,
    } = sent;
    let status = status(head.status);
    record.status = status.as_u16();
    record.credential = head.credential;
    record.replays = ExchangeId::try_from(&head.replays[..]).ok();
    let mut headers = HeaderMap::with_capacity(Fields::of(&head.headers).count() + 6);
    copy(&head.headers, &mut headers);
    admit::tell_rates(&around.permit.rates, &mut headers);
    stamp(&mut headers, &record);
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], HeaderValue::as_bytes);
    let events =
        content_type.len() >= 17 && content_type[..17].eq_ignore_ascii_case(b"text/event-stream");
    if events {
        headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-cache"));
        headers.remove(header::CONTENT_LENGTH);
    }
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    let bodiless = method == Method::HEAD
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let body = if bodiless || length == Some(0) {
        finish(&mut response, &mut record).await;
        Answer::Empty
    } else {
        Answer::stream(stream::Stream::new(
            response,
            (up, in_flight),
            record,
            around,
            length,
            events,
        ))
    };
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    *answer.headers_mut() = headers;
    answer
}

/// Reads an answer without a body to its end, so that it is not taken for cancelled.
async fn finish(response: &mut crate::tunnel::ResponseReader, record: &mut Record) {
    let outcome = loop {
        match response.next().await {
            Ok(Part::Data(_)) => {}
            Ok(Part::Trailers(trailers)) => record.usage = trailers.usage,
            Ok(Part::End) => break Outcome::Whole,
            Err(_) => break Outcome::Broken,
        }
    };
    record.tell(outcome);
}

/// A provider's status, if it is one that can stand in a final answer.
pub(super) fn status(status: u32) -> StatusCode {
    let known = u16::try_from(status).ok().filter(|status| *status >= 200);
    known
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::BAD_GATEWAY)
}

/// Takes over a provider's headers.
pub(super) fn copy(from: &Bytes, to: &mut HeaderMap) {
    for (name, value) in Fields::of(from) {
        if !travels(name) {
            continue;
        }
        let Some(name) = usual(name).or_else(|| HeaderName::from_bytes(name).ok()) else {
            continue;
        };
        let Ok(value) = HeaderValue::from_maybe_shared(value) else {
            continue;
        };
        if name == header::CONTENT_LENGTH || name == header::CONTENT_TYPE {
            to.insert(name, value);
        } else {
            to.append(name, value);
        }
    }
}

/// Names that most answers of the large providers have and HTTP does not define: those are made from the bytes of every answer
/// otherwise, and kept in memory of their own. The provider's own request id gets another name here.
fn usual(name: &[u8]) -> Option<HeaderName> {
    macro_rules! one_of {
        ($($usual:literal)*) => {
            $(if name == $usual.as_bytes() {
                const USUAL: HeaderName = HeaderName::from_static($usual);
                return Some(USUAL);
            })*
        };
    }
    if name == REQUEST_ID.as_str().as_bytes() {
        return Some(UPSTREAM_REQUEST_ID);
    }
    one_of! {
        "openai-model"
        "openai-organization"
        "openai-processing-ms"
        "openai-project"
        "openai-version"
        "x-envoy-upstream-service-time"
        "x-ratelimit-limit-requests"
        "x-ratelimit-limit-tokens"
        "x-ratelimit-remaining-requests"
        "x-ratelimit-remaining-tokens"
        "x-ratelimit-reset-requests"
        "x-ratelimit-reset-tokens"
        "anthropic-organization-id"
        "anthropic-ratelimit-input-tokens-limit"
        "anthropic-ratelimit-input-tokens-remaining"
        "anthropic-ratelimit-input-tokens-reset"
        "anthropic-ratelimit-output-tokens-limit"
        "anthropic-ratelimit-output-tokens-remaining"
        "anthropic-ratelimit-output-tokens-reset"
        "anthropic-ratelimit-requests-limit"
        "anthropic-ratelimit-requests-remaining"
        "anthropic-ratelimit-requests-reset"
        "anthropic-ratelimit-tokens-limit"
        "anthropic-ratelimit-tokens-remaining"
        "anthropic-ratelimit-tokens-reset"
    }
    None
}

/// Whether a provider's header is passed on to the client.
fn travels(name: &[u8]) -> bool {
    match name.len() {
        2 => name != b"te",
        3 => !matches!(name, b"via" | b"nel"),
        4 => name != b"date",
        6 => !matches!(name, b"server" | b"cf-ray"),
        7 => !matches!(name, b"trailer" | b"upgrade" | b"alt-svc"),
        9 => name != b"report-to",
        10 => !matches!(name, b"connection" | b"keep-alive" | b"set-cookie"),
        15 => name != b"cf-cache-status",
        16 => name != b"proxy-connection",
        17 => name != b"transfer-encoding",
        18 => name != b"proxy-authenticate",
        25 => name != b"strict-transport-security",
        _ => !name.starts_with(b"access-control-") && !name.starts_with(b"x-vector-"),
    }
}

/// Sets what this network says of an exchange.
pub(super) fn stamp(headers: &mut HeaderMap, record: &Record) {
    headers.insert(REQUEST_ID, id_value(record.replays.unwrap_or(record.id)));
    if record.replays.is_some() {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    if let Some(egress) = &record.egress
        && let Ok(egress) = HeaderValue::from_str(egress)
    {
        headers.insert(EGRESS, egress);
        headers.insert(ATTEMPTS, HeaderValue::from(record.attempts));
    }
    if record.browser {
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            HeaderValue::from_static("*"),
        );
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("*"),
        );
    }
}

/// An exchange's id as a header's value.
fn id_value(id: ExchangeId) -> HeaderValue {
    let mut text = [0_u8; 36];
    let bytes = id.to_bytes();
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text[at] = b'-';
            at += 1;
        }
        const HEX: &[u8; 16] = b"0123456789abcdef";
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    HeaderValue::from_maybe_shared(Bytes::copy_from_slice(&text))
        .unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use vector_proto::tunnel::fields::Block;

    use super::*;

    #[test]
    fn an_id_reads_the_same_in_header_and_log() {
        let id = ExchangeId::fresh();
        assert_eq!(id_value(id).to_str().unwrap(), id.to_string());
    }

    #[test]
    fn headers_of_one_hop_stay_behind() {
        for name in [
            "connection",
            "transfer-encoding",
            "set-cookie",
            "alt-svc",
            "access-control-allow-origin",
            "date",
        ] {
            assert!(!travels(name.as_bytes()), "{name}");
        }
        for name in [
            "content-type",
            "openai-processing-ms",
            "x-ratelimit-limit-requests",
            "retry-after",
            "retry-after-ms",
            "etag",
        ] {
            assert!(travels(name.as_bytes()), "{name}");
        }
        let mut to = HeaderMap::new();
        let from = [
            ("x-request-id", &b"req_1"[..]),
            ("bad name", b"x"),
            ("x-bad", b"a\r\nb"),
        ];
        copy(&from.into_iter().collect::<Block>().finish(), &mut to);
        assert_eq!(to.len(), 1);
        assert_eq!(to["x-upstream-request-id"], "req_1");
    }

    #[test]
    fn a_nonsense_status_is_a_bad_gateway() {
        assert_eq!(status(200), StatusCode::OK);
        for nonsense in [0, 100, 101, 7, 70_000] {
            assert_eq!(status(nonsense), StatusCode::BAD_GATEWAY);
        }
    }
}
