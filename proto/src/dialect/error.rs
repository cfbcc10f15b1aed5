//! An error in the client's own dialect, as a whole body or as an event inside a stream.
//!
//! Official SDKs raise their typed errors only for these shapes. A stream that breaks must carry such an event,
//! because an end without one reads like a finished answer.

use bytes::Bytes;

use super::text::escape_into;

/// Whose protocol a client speaks.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Dialect {
    /// OpenAI's API.
    #[default]
    OpenAi,
    /// Anthropic's Messages API.
    Anthropic,
    /// Google's Gemini API.
    Gemini,
}

/// What an error says to the client. Nothing here may hold a key, a prompt or an inner address.
#[derive(Clone, Copy, Debug)]
pub struct ErrorText<'a> {
    /// The HTTP status that goes with it; Gemini repeats it in the body.
    pub status: u16,
    /// A sentence for a person.
    pub message: &'a str,
    /// The class: `invalid_request_error`, `rate_limit_error`, `api_error`, ...
    pub kind: &'a str,
    /// The field at fault; `None` is `null`.
    pub param: Option<&'a str>,
    /// The fault's code, such as `model_not_found`; `None` is `null`.
    pub code: Option<&'a str>,
}

/// The error as a whole JSON body.
pub fn body(dialect: Dialect, error: &ErrorText<'_>) -> Bytes {
    let mut out = Vec::with_capacity(128 + error.message.len());
    write(&mut out, dialect, error);
    out.into()
}

/// The error as one event of a stream, blank line included. What follows it must be the stream's end, and for OpenAI no
/// `[DONE]`.
pub fn sse_chunk(dialect: Dialect, error: &ErrorText<'_>) -> Bytes {
    let mut out = Vec::with_capacity(144 + error.message.len());
    if dialect == Dialect::Anthropic {
        out.extend_from_slice(b"event: error\n");
    }
    out.extend_from_slice(b"data: ");
    write(&mut out, dialect, error);
    out.extend_from_slice(b"\n\n");
    out.into()
}

fn write(out: &mut Vec<u8>, dialect: Dialect, error: &ErrorText<'_>) {
    match dialect {
        Dialect::OpenAi => {
            field(out, "{\"error\":{\"message\":", Some(error.message));
            field(out, ",\"type\":", Some(error.kind));
            field(out, ",\"param\":", error.param);
            field(out, ",\"code\":", error.code);
        }
        Dialect::Anthropic => {
            field(
                out,
                "{\"type\":\"error\",\"error\":{\"type\":",
                Some(anthropic_kind(error)),
            );
            field(out, ",\"message\":", Some(error.message));
        }
        Dialect::Gemini => {
            out.extend_from_slice(b"{\"error\":{\"code\":");
            out.extend_from_slice(error.status.to_string().as_bytes());
            field(out, ",\"message\":", Some(error.message));
            field(out, ",\"status\":", Some(gemini_status(error.status)));
        }
    }
    out.extend_from_slice(b"}}");
}

fn field(out: &mut Vec<u8>, lead: &str, value: Option<&str>) {
    out.extend_from_slice(lead.as_bytes());
    match value {
        Some(text) => {
            out.push(b'"');
            escape_into(out, text);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}

/// Anthropic's word for a status; its SDK's users match on it.
fn anthropic_kind<'a>(error: &ErrorText<'a>) -> &'a str {
    match error.status {
        400 | 405 | 422 => "invalid_request_error",
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        503 | 529 => "overloaded_error",
        500..=599 => "api_error",
        _ => error.kind,
    }
}

/// Google's canonical status word for an HTTP status.
fn gemini_status(status: u16) -> &'static str {
    match status {
        400 | 405 | 413 | 422 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        402 | 429 => "RESOURCE_EXHAUSTED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        408 | 504 => "DEADLINE_EXCEEDED",
        409 => "ABORTED",
        499 => "CANCELLED",
        501 => "UNIMPLEMENTED",
        502 | 503 => "UNAVAILABLE",
        500..=599 => "INTERNAL",
        _ => "UNKNOWN",
    }
}
