//! One request as the rooms see it: who asks, for what, with which body.
//!
//! JSON is parsed whole up to a limit, forms are read part by part (`multipart`), anything else is only
//! counted and hashed as it passes. Nothing larger than the limits is ever held.

use bytes::Bytes;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, SEC_WEBSOCKET_PROTOCOL};
use http::request::Parts;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use ring::digest::{Context, SHA256};
use serde_json::Value;

use crate::multipart::{Form, Reader};
use crate::reply::Refusal;
use crate::stats::Stats;

/// Largest JSON body. Held once as bytes and once parsed, so a request holds a few times this at the worst.
const JSON_BYTES_MAX: usize = 64 << 20;

/// How the body of an operation is read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Input {
    /// Not looked at (GET, DELETE).
    Nothing,
    /// JSON only.
    Json,
    /// A form, or JSON where the content type says so.
    Form,
    /// Counted and hashed.
    Count,
    /// The connection itself is taken over.
    Upgrade,
}

/// A body as it was read.
#[derive(Debug)]
pub(crate) enum Body {
    Nothing,
    Raw(Bytes),
    Json(Value),
    Form(Form),
    Counted { bytes: u64, sha256: String },
}

/// One request.
#[derive(Debug)]
pub(crate) struct Ask {
    /// Index of the key that asks.
    pub(crate) caller: usize,
    /// What stood in the path where the pattern has `{}`.
    pub(crate) ids: Vec<String>,
    pub(crate) head: Parts,
    pub(crate) body: Body,
}

impl Ask {
    /// The JSON body; an empty object where there was none.
    pub(crate) fn json(&self) -> &Value {
        match &self.body {
            Body::Json(value) => value,
            Body::Nothing | Body::Raw(_) | Body::Form(_) | Body::Counted { .. } => &Value::Null,
        }
    }

    /// A text field, of the JSON body or of the form.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        match &self.body {
            Body::Json(value) => value.get(name)?.as_str(),
            Body::Form(form) => form.text(name),
            Body::Nothing | Body::Raw(_) | Body::Counted { .. } => None,
        }
    }

    /// A switch, of the JSON body or of the form.
    pub(crate) fn switch(&self, name: &str) -> bool {
        match &self.body {
            Body::Json(value) => value.get(name).and_then(Value::as_bool).unwrap_or(false),
            Body::Form(form) => form
                .text(name)
                .is_some_and(|text| text.eq_ignore_ascii_case("true")),
            Body::Nothing | Body::Raw(_) | Body::Counted { .. } => false,
        }
    }

    pub(crate) fn form(&self) -> Option<&Form> {
        match &self.body {
            Body::Form(form) => Some(form),
            Body::Nothing | Body::Raw(_) | Body::Json(_) | Body::Counted { .. } => None,
        }
    }

    /// The model named in the body, which must be one that exists.
    pub(crate) fn model(&self) -> Result<&str, Refusal> {
        let model = self.text("model").filter(|model| !model.is_empty());
        let model = model.ok_or_else(|| Refusal::bad("you must provide a model parameter"))?;
        known(model)?;
        Ok(model)
    }

    /// The model named in the body, or `default` for operations that need not name one.
    pub(crate) fn model_or<'a>(&'a self, default: &'a str) -> Result<&'a str, Refusal> {
        let model = self.text("model").unwrap_or(default);
        known(model)?;
        Ok(model)
    }

    /// The `at`th id of the path.
    pub(crate) fn id(&self, at: usize) -> &str {
        self.ids.get(at).map_or("", String::as_str)
    }

    /// A parameter of the query string, as it stands there.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let pairs = self.head.uri.query()?.split('&');
        pairs
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    /// What the request says about its own pace, by header `x-sample-NAME` or `metadata.sample_NAME`.
    pub(crate) fn tuned(&self, name: &str) -> Option<u64> {
        let header = self
            .head
            .headers
            .get(format!("x-sample-{}", name.replace('_', "-")));
        if let Some(value) = header.and_then(|value| value.to_str().ok()) {
            return value.trim().parse().ok();
        }
        self.metadata(&format!("sample_{name}"))?.parse().ok()
    }

    /// A text of the body's `metadata`.
    pub(crate) fn metadata(&self, name: &str) -> Option<&str> {
        self.json().get("metadata")?.get(name)?.as_str()
    }
}

/// Every name is a model, except those that say they are none.
pub(crate) fn known(model: &str) -> Result<(), Refusal> {
    if model.starts_with("no-such") {
        let message =
            format!("The model `{model}` does not exist or you do not have access to it.");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message).code("model_not_found"));
    }
    Ok(())
}

/// The key a request carries: as a bearer token, or among a WebSocket's subprotocols.
pub(crate) fn key(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(AUTHORIZATION) {
        return value.to_str().ok()?.strip_prefix("Bearer ").map(str::trim);
    }
    let offered = headers.get(SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    offered
        .split(',')
        .find_map(|protocol| protocol.trim().strip_prefix("openai-insecure-api-key."))
}

/// Reads a body as its operation wants it. JSON is left as bytes: `parse` comes after the prepared answers.
pub(crate) async fn read(
    input: Input,
    head: &Parts,
    body: Incoming,
    stats: &Stats,
) -> Result<Body, Refusal> {
    let content_type = head
        .headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or("");
    match input {
        Input::Nothing | Input::Upgrade => Ok(Body::Nothing),
        Input::Json => read_json(content_type, body, stats).await,
        Input::Form => match Reader::new(content_type) {
            Some(reader) => read_form(reader, body, stats).await,
            None => read_json(content_type, body, stats).await,
        },
        Input::Count => read_count(body, stats).await,
    }
}

/// Parses what [`read`] left as bytes.
pub(crate) fn parse(body: Body) -> Result<Body, Refusal> {
    match body {
        Body::Raw(bytes) if bytes.is_empty() => Ok(Body::Nothing),
        Body::Raw(bytes) => serde_json::from_slice(&bytes).map(Body::Json).map_err(|_| {
            Refusal::bad(
                "We could not parse the JSON body of your request. (HINT: This likely means you aren't using your \
                 HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not valid JSON.)",
            )
        }),
        other => Ok(other),
    }
}

fn lost(_: hyper::Error) -> Refusal {
    Refusal::bad("the request's body broke off")
}

async fn read_json(content_type: &str, mut body: Incoming, stats: &Stats) -> Result<Body, Refusal> {
    if !content_type.is_empty() && !content_type.starts_with("application/json") {
        let message = format!(
            "Unsupported content type: '{content_type}'. This API method only accepts 'application/json' requests, \
             but you specified the header 'Content-Type: {content_type}'. Please try again with a supported content type."
        );
        return Err(Refusal::bad(message).code("unsupported_content_type"));
    }
    let mut whole = Bytes::new();
    let mut more = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(lost)?.into_data() else {
            continue;
        };
        stats.received(data.len());
        if whole.len() + more.len() + data.len() > JSON_BYTES_MAX {
            return Err(Refusal::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "the request's body is too large",
            ));
        }
        if whole.is_empty() {
            whole = data;
        } else {
            more.extend_from_slice(&data);
        }
    }
    if more.is_empty() {
        return Ok(Body::Raw(whole));
    }
    Ok(Body::Raw([&whole[..], &more[..]].concat().into()))
}

async fn read_form(mut reader: Reader, mut body: Incoming, stats: &Stats) -> Result<Body, Refusal> {
    let fault = |error| Refusal::bad(format!("Could not parse multipart form: {error}"));
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(lost)?.into_data() else {
            continue;
        };
        stats.received(data.len());
        reader.push(&data).map_err(fault)?;
    }
    reader.finish().map(Body::Form).map_err(fault)
}

async fn read_count(mut body: Incoming, stats: &Stats) -> Result<Body, Refusal> {
    let mut digest = Context::new(&SHA256);
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(lost)?.into_data() else {
            continue;
        };
        stats.received(data.len());
        bytes += data.len() as u64;
        digest.update(&data);
    }
    Ok(Body::Counted {
        bytes,
        sha256: hex(digest.finish().as_ref()),
    })
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
