//! Turns a refusal into an answer: ours in the client's dialect, a provider's as the provider said it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use vector_proto::{
    dialect::{
        Dialect,
        error::{self, ErrorText},
    },
    refusal::{Code, Refusal},
    tunnel::v1,
};

use super::{
    record::{Outcome, Record},
    respond,
    send::Denied,
    stream::Answer,
};

const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Answers with a refusal and tells its record.
pub(super) fn refuse(denied: Denied, mut record: Record) -> Response<Answer> {
    let mut response = match denied {
        Denied::Ours(refusal) => ours(&refusal, &mut record),
        Denied::Provider(refused) => provider(*refused, &mut record),
    };
    respond::stamp(response.headers_mut(), &record);
    record.status = response.status().as_u16();
    record.tell(Outcome::Refused);
    response
}

fn ours(refusal: &Refusal, record: &mut Record) -> Response<Answer> {
    let verdict = refusal.code.verdict();
    record.code = Some(refusal.code);
    let body = body(refusal);
    record.response_bytes = body.len() as u64;
    let mut response = Response::new(Answer::whole(body));
    *response.status_mut() =
        StatusCode::from_u16(verdict.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    if let Some(ms) = refusal.retry_after_ms {
        retry_after(headers, ms);
    }
    if refusal.code == Code::BadHead {
        // Whoever read this head otherwise reads what follows it otherwise, too.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if !verdict.client_may_retry {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    response
}

/// A refusal's body.
pub(super) fn body(refusal: &Refusal) -> Bytes {
    error::body(Dialect::OpenAi, &text(refusal))
}

/// A refusal's parts, as a dialect wants them.
pub(super) fn text(refusal: &Refusal) -> ErrorText<'_> {
    let verdict = refusal.code.verdict();
    ErrorText {
        status: verdict.status,
        message: &refusal.message,
        kind: verdict.kind,
        param: refusal.param,
        code: Some(verdict.code),
    }
}

fn provider(refused: v1::Refused, record: &mut Record) -> Response<Answer> {
    let head = refused.provider_head.unwrap_or_default();
    record.code = refused.code.parse().ok().or(Some(Code::ProviderRefused));
    record.response_bytes = refused.provider_body.len() as u64;
    let mut response = Response::new(Answer::whole(refused.provider_body));
    *response.status_mut() = respond::status(head.status);
    let headers = response.headers_mut();
    respond::copy(&head.headers, headers);
    // The body is here whole, whatever the provider said of its length.
    headers.remove(header::CONTENT_LENGTH);
    if refused.retry_after_ms > 0 {
        // The provider spoke of one credential, and this is about all of them.
        retry_after(headers, refused.retry_after_ms);
    }
    response
}

/// In whole seconds for everybody, rounded up, and in milliseconds for who reads them.
fn retry_after(headers: &mut HeaderMap, ms: u64) {
    headers.insert(header::RETRY_AFTER, HeaderValue::from(ms.div_ceil(1000)));
    headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
}
