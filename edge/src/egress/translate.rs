//! Turns an exchange into a request that the provider understands, and its answer's head into ours.
//!
//! Requests are built from scratch: method, path below the base URL, headers from a list, our key. Bodies are never
//! parsed here; only the model's name is replaced where the ingress found it. Other dialects get their own
//! files here.

// What is passed on of a head.
mod headers;

// The model's name outside of the body.
mod path;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header, uri::Parts};
use vector_proto::{
    dialect::{
        json::Span,
        operation::{ModelAt, Operation},
        rename::{Rename, Splice, escaped},
    },
    id::ExchangeId,
    tunnel::{
        fields::Fields,
        v1::{self, RequestHead},
    },
};

use super::{credential::Key, provider::Origin};

/// Header of ours by which a provider's support finds a call.
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-client-request-id");

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The ingress sent a head that no request can be built from.
#[derive(Debug, thiserror::Error)]
pub enum BadHead {
    /// The method.
    #[error("`{0}` is not a method")]
    Method(String),
    /// The path leaves the base URL, or is none.
    #[error("the path cannot be sent to a provider")]
    Path,
}

/// The parts of a request that every attempt has in common.
#[derive(Debug)]
pub struct Draft {
    method: Method,
    /// Path and query as the provider has them.
    target: Bytes,
    headers: HeaderMap,
}

impl Draft {
    /// Builds what is common. `row`: of the operation, if this version knows it.
    ///
    /// # Errors
    /// [`BadHead`] when the ingress sent something that is no request.
    pub fn new(
        head: &RequestHead,
        row: Option<&Operation>,
        exchange: ExchangeId,
        origin: &Origin,
    ) -> Result<Self, BadHead> {
        let method = Method::from_bytes(head.method.as_bytes())
            .map_err(|_| BadHead::Method(head.method.clone()))?;
        // A call about an object may have the names of the model that this was made with, and its path names none.
        let nameless = row.is_some_and(|row| row.model == ModelAt::Nowhere);
        let target = path::target(origin.prefix(), head, !nameless).ok_or(BadHead::Path)?;
        let mut headers = headers::request(&head.headers, &head.account);
        let mut text = [0_u8; 36];
        let id = uuid::Uuid::from_bytes(exchange.to_bytes())
            .as_hyphenated()
            .encode_lower(&mut text);
        if let Ok(id) = HeaderValue::from_str(id) {
            // A client's own is what it will name to the provider.
            headers
                .entry(CLIENT_REQUEST_ID)
                .or_insert_with(|| id.clone());
            headers.insert(REQUEST_ID, id);
        }
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        Ok(Self {
            method,
            target,
            headers,
        })
    }

    /// A `GET` of our own, of a path below the provider's host.
    pub fn get(target: Bytes) -> Self {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        Self {
            method: Method::GET,
            target,
            headers,
        }
    }

    /// The request of one attempt.
    ///
    /// # Errors
    /// [`BadHead`] when the path is none.
    pub fn request<B>(
        &self,
        origin: &Origin,
        kind: &str,
        key: &Key,
        over_h2: bool,
        body: B,
    ) -> Result<Request<B>, BadHead> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        let mut parts = Parts::default();
        parts.path_and_query = Some(
            http::uri::PathAndQuery::from_maybe_shared(self.target.clone())
                .map_err(|_| BadHead::Path)?,
        );
        let mut headers = self.headers.clone();
        if over_h2 {
            parts.scheme = Some(http::uri::Scheme::HTTPS);
            parts.authority = Some(origin.authority().clone());
        } else {
            headers.insert(header::HOST, origin.host().clone());
        }
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| BadHead::Path)?;
        key.sign(kind, &mut headers);
        *request.headers_mut() = headers;
        Ok(request)
    }

    /// Whether sending it twice has no second effect.
    pub fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }
}

/// How the model's name in the request's body changes, if it does.
pub fn splice(head: &RequestHead) -> Option<Splice> {
    if !renames(head) || head.model_end <= head.model_start {
        return None;
    }
    let multipart = Fields::of(&head.headers).any(|(name, value)| {
        name.eq_ignore_ascii_case(b"content-type")
            && value
                .get(..10)
                .is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/"))
    });
    let name = if multipart {
        Bytes::copy_from_slice(head.upstream_model.as_bytes())
    } else {
        escaped(&head.upstream_model)
    };
    let span = Span {
        start: head.model_start,
        end: head.model_end,
    };
    Some(Splice::new(span, name))
}

/// Whether the provider calls the model otherwise than the client.
pub fn renames(head: &RequestHead) -> bool {
    !head.model.is_empty() && !head.upstream_model.is_empty() && head.model != head.upstream_model
}

/// What an answer's body is, as far as this network reads it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// One JSON value.
    Json,
    /// Server-sent events.
    Events,
    /// Anything else; passed on unread.
    Other,
}

impl Content {
    /// Reads it off an answer's head.
    pub fn of(headers: &HeaderMap) -> Self {
        let encoded = headers
            .get(header::CONTENT_ENCODING)
            .is_some_and(|coding| coding != "identity");
        let Some(kind) = headers.get(header::CONTENT_TYPE).filter(|_| !encoded) else {
            return Self::Other;
        };
        let kind = kind.as_bytes().split(|byte| *byte == b';').next();
        match kind.unwrap_or_default().trim_ascii() {
            kind if kind.eq_ignore_ascii_case(b"application/json") => Self::Json,
            kind if kind.eq_ignore_ascii_case(b"text/event-stream") => Self::Events,
            _ => Self::Other,
        }
    }
}

/// Puts the public name back into an answer, if the provider's is another.
pub fn answer_rename(head: &RequestHead, content: Content) -> Option<Rename> {
    if !renames(head) {
        return None;
    }
    match content {
        Content::Json => Some(Rename::json(&head.model)),
        Content::Events => Some(Rename::sse(&head.model)),
        Content::Other => None,
    }
}

/// An answer's head as the tunnel carries it. `length_holds`: the body leaves as long as it came.
pub fn response_head(
    head: &http::response::Parts,
    length_holds: bool,
    credential: &str,
    attempts: u32,
) -> v1::ResponseHead {
    v1::ResponseHead {
        status: u32::from(head.status.as_u16()),
        headers: headers::response(&head.headers, length_holds),
        credential: credential.to_owned(),
        upstream_attempts: attempts,
        ..v1::ResponseHead::default()
    }
}
