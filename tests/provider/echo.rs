//! Answers what no room answers: under `/v1` with what arrived, elsewhere with OpenAI's 404.
//!
//! The echo lets a test see that any of the API's operations passed through unharmed.

use http::StatusCode;
use http::header::CONTENT_TYPE;
use serde_json::json;

use crate::ask::{Ask, Body};
use crate::desk::Desk;
use crate::reply::{Refusal, Reply};

/// States method, path, query, content type, length and hash of what arrived.
pub(crate) fn echo(_: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let (bytes, sha256) = match &ask.body {
        Body::Counted { bytes, sha256 } => (*bytes, sha256.as_str()),
        Body::Nothing | Body::Raw(_) | Body::Json(_) | Body::Form(_) => (0, ""),
    };
    Ok(Reply::json(&json!({
        "object": "sample.echo",
        "method": ask.head.method.as_str(),
        "path": ask.head.uri.path(),
        "query": ask.head.uri.query(),
        "content_type": ask.head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()),
        "body_bytes": bytes,
        "body_sha256": sha256,
    }))
    .at_once())
}

pub(crate) fn unknown(_: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let message = format!(
        "Unknown request URL: {} {}. Please check the URL for typos.",
        ask.head.method,
        ask.head.uri.path()
    );
    Err(Refusal::new(StatusCode::NOT_FOUND, message).code("unknown_url"))
}
