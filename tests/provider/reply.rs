//! An answer before it is sent: status, headers, body, and how long to wait first.
//!
//! Every answer carries the headers OpenAI's carry. A [`Refusal`] is an error in OpenAI's shape.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::answer::{Answer, Outgoing};
use crate::stats::Mark;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");

/// Headers that every answer of the provider carries, with values that never change.
const ALWAYS: [(HeaderName, HeaderValue); 9] = {
    const fn header(name: &'static str, value: &'static str) -> (HeaderName, HeaderValue) {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    }
    [
        (SERVER, HeaderValue::from_static("vector-sample-provider")),
        header("openai-version", "2020-10-01"),
        header("openai-organization", "sample"),
        header("x-ratelimit-limit-requests", "10000"),
        header("x-ratelimit-limit-tokens", "2000000"),
        header("x-ratelimit-remaining-requests", "9999"),
        header("x-ratelimit-remaining-tokens", "1999900"),
        header("x-ratelimit-reset-requests", "6ms"),
        header("x-ratelimit-reset-tokens", "3ms"),
    ]
};

/// What a room answers.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) content_type: HeaderValue,
    pub(crate) answer: Answer,
    /// Milliseconds to wait before the first byte; the desk's pace if not given.
    pub(crate) first_ms: Option<u64>,
    /// Chunks after which the connection is cut.
    pub(crate) cut_after: Option<u32>,
}

impl Reply {
    pub(crate) fn new(content_type: HeaderValue, answer: Answer) -> Self {
        Self {
            status: StatusCode::OK,
            headers: Vec::new(),
            content_type,
            answer,
            first_ms: None,
            cut_after: None,
        }
    }

    pub(crate) fn json(value: &Value) -> Self {
        Self::new(JSON, Answer::Whole(value.to_string().into()))
    }

    /// JSON that is there already.
    pub(crate) fn prepared(bytes: Bytes) -> Self {
        Self::new(JSON, Answer::Whole(bytes))
    }

    pub(crate) fn text(text: String) -> Self {
        Self::new(
            HeaderValue::from_static("text/plain; charset=utf-8"),
            Answer::Whole(text.into()),
        )
    }

    /// Server-sent events, each chunk as it is to be written.
    pub(crate) fn events(answer: Answer) -> Self {
        Self::new(EVENTS, answer)
    }

    /// Without the wait before the first byte: what real providers look up rather than think about.
    pub(crate) fn at_once(mut self) -> Self {
        self.first_ms = Some(0);
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    /// Declares a length, true or not.
    pub(crate) fn declare(&mut self, bytes: u64) {
        self.headers.push((CONTENT_LENGTH, bytes.into()));
    }

    pub(crate) fn is_events(&self) -> bool {
        self.content_type == EVENTS
    }

    /// The response as hyper sends it.
    pub(crate) fn send(self, began: Instant, mark: Option<Mark>) -> Response<Outgoing> {
        let mut response = Response::new(Outgoing::new(self.answer, self.cut_after, mark));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.reserve(ALWAYS.len() + self.headers.len() + 4);
        headers.extend(ALWAYS);
        if self.status != StatusCode::SWITCHING_PROTOCOLS {
            headers.insert(CONTENT_TYPE, self.content_type);
        }
        headers.insert(HeaderName::from_static("x-request-id"), request_id());
        let elapsed = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        headers.insert(
            HeaderName::from_static("openai-processing-ms"),
            elapsed.into(),
        );
        headers.extend(self.headers);
        response
    }
}

/// A fresh `req_…` id, without a trip through a formatter.
fn request_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = *b"req_00000000000000000000000000000000";
    let mut bits = fastrand::u128(..);
    for place in text.iter_mut().skip(4) {
        *place = DIGITS[usize::from((bits & 15) as u8)];
        bits >>= 4;
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("req_0"))
}

/// An error as OpenAI states it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind: "invalid_request_error",
            param: None,
            code: None,
        }
    }

    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn missing(param: &'static str) -> Self {
        Self::bad(format!("Missing required parameter: '{param}'."))
            .code("missing_required_parameter")
            .param(param)
    }

    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self::bad(message).code("invalid_value").param(param)
    }

    /// What is asked for is not here, or belongs to another key: the answer is the same.
    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("No {what} found with id '{id}'."),
        )
        .param("id")
    }

    pub(crate) fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    pub(crate) fn param(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    pub(crate) fn kind(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn reply(&self) -> Reply {
        let error = json!({"message": self.message, "type": self.kind, "param": self.param, "code": self.code});
        let mut reply = Reply::json(&json!({ "error": error })).at_once();
        reply.status = self.status;
        reply
    }
}
