//! Learns from a request what routing needs: the model, and the objects that the call leans on.
//!
//! The body is fed chunk by chunk to the scanners of `vector_proto::dialect` and stays as it came: never parsed whole, never
//! re-serialised. Reading stops once the model is known and [`EAGER_BYTES`] are here; a body that is over by then was read to
//! its last byte, so that a cut or malformed one is refused before any provider sees it.

use http::{header, request::Parts};
use vector_proto::{
    dialect::{
        json::{Fields, Malformed, Peek, Progress, Span},
        multipart::Form,
        operation::{Body, Match, ModelAt, Operation},
        refers,
    },
    refusal::{Code, Refusal},
};

use super::{
    head,
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
            .is_none_or(|fields| fields.model().is_some() || !wants_model(operation));
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
    if upload.is_whole() {
        scanner.finish(upload.bytes(), operation)?;
    }
    if let Some(fields) = scanner.fields() {
        ask.model = fields.model().map(Into::into);
        ask.span = fields.model_span;
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
        ModelAt::Session if matches!(scanner, Scanner::Blind) => ask.model = queried(parts),
        ModelAt::Nowhere | ModelAt::Body | ModelAt::Session => {}
    }
    Ok(ask)
}

/// The model that the query names.
fn queried(parts: &Parts) -> Option<Box<str>> {
    let model = head::parameter(parts.uri.query(), "model")?;
    head::decode(model).map(Into::into)
}

const fn wants_model(operation: &Operation) -> bool {
    matches!(operation.model, ModelAt::Body | ModelAt::Session)
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

/// Operations whose bodies name no objects, so that none are looked for.
const NAMELESS: &[&str] = &[
    "completions.create",
    "embeddings.create",
    "moderations.create",
    "images.generate",
];

fn names_objects(operation: &Operation) -> bool {
    !NAMELESS.contains(&operation.name)
}

/// How the body is read.
enum Scanner {
    /// Not at all.
    Blind,
    Json(Box<Peek>),
    Multipart(Box<Form>),
}

impl Scanner {
    fn new(parts: &Parts, operation: &Operation, upload: &Upload) -> Result<Self, Refusal> {
        let content_type = match parts.headers.get(header::CONTENT_TYPE) {
            Some(value) => value
                .to_str()
                .map_err(|_| Refusal::new(Code::BadHead, "Content-Type is not text"))?,
            None => "",
        };
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        let json = essence.is_empty() || essence.eq_ignore_ascii_case("application/json");
        let multipart = essence.eq_ignore_ascii_case("multipart/form-data");
        let empty = upload.is_whole() && upload.bytes() == 0;
        match operation.body {
            Body::None => Ok(Self::Blind),
            Body::Json | Body::Form if empty && !wants_model(operation) => Ok(Self::Blind),
            Body::Json | Body::Form if json => {
                Ok(Self::Json(Box::new(match names_objects(operation) {
                    true => Peek::deep(),
                    false => Peek::new(),
                })))
            }
            Body::Multipart | Body::Form if multipart => match Form::new(content_type) {
                Some(form) => Ok(Self::Multipart(Box::new(form))),
                None => Err(Refusal::new(
                    Code::BadBody,
                    "Content-Type names no boundary that could part the form",
                )),
            },
            // A call's session description, bare: only the query can name a model.
            Body::Multipart
                if operation.model == ModelAt::Session
                    && essence.eq_ignore_ascii_case("application/sdp") =>
            {
                Ok(Self::Blind)
            }
            Body::Json => Err(wrong_type("application/json")),
            Body::Multipart => Err(wrong_type("multipart/form-data")),
            Body::Form => Err(wrong_type("application/json or multipart/form-data")),
        }
    }

    fn fields(&self) -> Option<&Fields> {
        match self {
            Self::Blind => None,
            Self::Json(peek) => Some(peek.fields()),
            Self::Multipart(form) => Some(form.fields()),
        }
    }

    /// Whether it can find a reference.
    const fn reads(&self) -> bool {
        matches!(self, Self::Json(_))
    }

    fn feed(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        let progress = match self {
            Self::Blind => return Ok(()),
            Self::Json(peek) => peek.feed(chunk),
            Self::Multipart(form) => form.feed(chunk),
        };
        match progress {
            Progress::NeedMore | Progress::Enough | Progress::Done => Ok(()),
            Progress::Malformed(why) => Err(malformed(why)),
        }
    }

    /// The body is over.
    fn finish(&self, bytes: u64, operation: &Operation) -> Result<(), Refusal> {
        if bytes == 0 && !wants_model(operation) {
            return Ok(());
        }
        match self {
            Self::Blind => Ok(()),
            Self::Json(peek) => peek.finish(),
            Self::Multipart(form) => form.finish(),
        }
        .map_err(malformed)
    }
}

fn malformed(why: Malformed) -> Refusal {
    let Malformed { at, why } = why;
    Refusal::new(
        Code::BadBody,
        format!("We could not parse the body of your request: {why} (at byte {at})"),
    )
}

fn wrong_type(wanted: &str) -> Refusal {
    Refusal::new(
        Code::BadContentType,
        format!("this operation takes Content-Type {wanted}"),
    )
}
