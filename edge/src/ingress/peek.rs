//! Learns from a request what routing needs: the model, and the objects that the call leans on.
//!
//! The body is fed chunk by chunk to a [`Scanner`] and stays as it came: never parsed whole, never re-serialised. It is waited
//! for until the model is known and [`EAGER_BYTES`] are here; a body that is over by then was read to its last byte, so that
//! a cut or malformed one is refused before any provider sees it. The rest of a longer one is read as it goes up (`upload`),
//! and is broken off where it names a second model.

use http::request::Parts;
use vector_proto::{
    dialect::{
        json::{Fields, Span},
        operation::{Match, ModelAt, Operation},
        refers,
    },
    refusal::{Code, Refusal},
};

use super::{
    head,
    scan::{Scanner, names_objects, wants_model},
    upload::{MEMORY_BYTES_MAX, Upload},
};

/// What is read of a body before it is sent on, even if the model is known sooner. Nearly every JSON body is smaller, and
/// then leaves in one piece together with its head.
const EAGER_BYTES: u64 = 64 << 10;

/// How far a body is read for the name of an object that it leans on.
const REFERENCE_BYTES: u64 = MEMORY_BYTES_MAX as u64;

/// What a request asks for.
#[derive(Debug, Default)]
pub(super) struct Ask {
    /// The model's public name.
    pub(super) model: Option<Box<str>>,
    /// Where that stands in the body.
    pub(super) span: Option<Span>,
    /// Id of an object that the call cannot do without: its path names it, or one of the fields that are there for that.
    pub(super) object: Option<Box<str>>,
    /// Ids of others that the body names, in whatever place, as far as it was read.
    pub(super) named: Vec<Box<str>>,
    /// Upper bound of the answer's tokens, if the client set one.
    pub(super) tokens_max: Option<u64>,
}

/// Reads as much as is needed.
///
/// Cancel safety: the request is over.
pub(super) async fn peek(
    parts: &Parts,
    found: &Match<'_>,
    upload: &mut Upload,
) -> Result<Ask, Refusal> {
    let operation = found.operation;
    let mut ask = Ask {
        // However it is spelt, it is the same one to its provider.
        object: found
            .object
            .filter(|_| operation.object_is_made)
            .or_else(|| head::parameter(parts.uri.query(), operation.object_query?))
            .map(|id| head::decode(id).unwrap_or_else(|| id.to_owned()).into()),
        ..Ask::default()
    };
    let mut scanner = Scanner::new(parts, operation, upload)?;
    let leans = ask.object.is_none() && leans_on_objects(operation);
    while !upload.is_whole() {
        let known = scanner
            .fields()
            .is_none_or(|fields| model(fields, operation).is_some() || !wants_model(operation));
        let far_enough = if leans && scanner.reads() {
            REFERENCE_BYTES
        } else {
            EAGER_BYTES
        };
        if known && upload.bytes() >= far_enough {
            break;
        }
        if !known && !upload.is_replayable() {
            let message = "the model is named too late in this body: put the field `model` before the large ones";
            return Err(Refusal::new(Code::BodyTooLarge, message).at("model"));
        }
        if let Some(chunk) = upload.more().await? {
            scanner.feed(&chunk)?;
        }
    }
    if upload.is_whole() && (upload.bytes() > 0 || wants_model(operation)) {
        scanner.finish()?;
    }
    if let Some(fields) = scanner.fields() {
        if fields.model_in_both && operation.model == ModelAt::Session {
            let message = "`model` is given both inside and outside of `session`";
            return Err(Refusal::new(Code::BadBody, message).at("model"));
        }
        ask.model = model(fields, operation).map(Into::into);
        ask.span = fields.model_span.filter(|_| ask.model.is_some());
        ask.tokens_max = fields.tokens_max;
        ask.named.clone_from(&fields.named);
        let first = fields.refers_to().map(Into::into);
        if leans {
            ask.object = first;
        } else if names_objects(operation) {
            ask.named.extend(first);
        }
        if fields.named_more {
            let message = format!("this call names more than {} objects", refers::IDS_MAX);
            return Err(Refusal::new(Code::BadBody, message));
        }
    }
    match operation.model {
        ModelAt::Path => ask.model = found.model.and_then(head::decode).map(Into::into),
        ModelAt::Query => ask.model = queried(parts),
        ModelAt::Session if scanner.is_blind() => ask.model = queried(parts),
        ModelAt::Nowhere | ModelAt::Body | ModelAt::Session => {}
    }
    upload.scan_on(scanner);
    Ok(ask)
}

/// The model that counts: one inside of `session` is nothing to an operation that has its own beside that.
fn model<'f>(fields: &'f Fields, operation: &Operation) -> Option<&'f str> {
    let elsewhere = fields.model_in_session && operation.model == ModelAt::Body;
    fields.model().filter(|_| !elsewhere)
}

/// The model that the query names.
fn queried(parts: &Parts) -> Option<Box<str>> {
    let model = head::parameter(parts.uri.query(), "model")?;
    head::decode(model).map(Into::into)
}

/// Whether a body of this operation may name an object that was made before.
fn leans_on_objects(operation: &Operation) -> bool {
    match operation.model {
        ModelAt::Nowhere => true,
        ModelAt::Body | ModelAt::Session => {
            operation.makes.is_some() && operation.name != "chat.completions.create"
        }
        ModelAt::Path | ModelAt::Query => false,
    }
}
