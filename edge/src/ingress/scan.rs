//! How a request's body is read as it streams by: by which of the scanners of `vector_proto::dialect`, and what it may not be.
//!
//! Pure. `peek` reads with it what routing needs; then it goes with the body (`upload`), so that what was decided by the first
//! bytes also holds for those that come later.

use http::{header, request::Parts};
use vector_proto::{
    dialect::{
        json::{Fields, Malformed, Peek, Progress},
        multipart::Form,
        operation::{Body, ModelAt, Operation},
    },
    refusal::{Code, Refusal},
};

use super::upload::Upload;

/// Whether the body names the model.
pub(super) const fn wants_model(operation: &Operation) -> bool {
    matches!(operation.model, ModelAt::Body | ModelAt::Session)
}

/// Operations whose bodies name no objects, so that none are looked for.
const NAMELESS: &[&str] = &[
    "completions.create",
    "embeddings.create",
    "moderations.create",
    "images.generate",
];

/// Whether ids of objects are looked for in the body.
pub(super) fn names_objects(operation: &Operation) -> bool {
    !NAMELESS.contains(&operation.name)
}

/// How the body is read.
#[derive(Debug)]
pub(super) enum Scanner {
    /// Not at all.
    Blind,
    Json(Box<Peek>),
    Multipart(Box<Form>),
}

impl Scanner {
    /// For a body of this type; refuses one that the operation does not have.
    pub(super) fn new(
        parts: &Parts,
        operation: &Operation,
        upload: &Upload,
    ) -> Result<Self, Refusal> {
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

    /// What was found so far.
    pub(super) fn fields(&self) -> Option<&Fields> {
        match self {
            Self::Blind => None,
            Self::Json(peek) => Some(peek.fields()),
            Self::Multipart(form) => Some(form.fields()),
        }
    }

    /// Whether it can find a reference.
    pub(super) const fn reads(&self) -> bool {
        matches!(self, Self::Json(_))
    }

    /// Reads what came next.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
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

    /// Whether the body is not read at all.
    pub(super) const fn is_blind(&self) -> bool {
        matches!(self, Self::Blind)
    }

    /// What was found is acted on from now on: what comes must not name another model.
    pub(super) fn settle(&mut self) {
        match self {
            Self::Blind => {}
            Self::Json(peek) => peek.settle(),
            Self::Multipart(form) => form.settle(),
        }
    }

    /// The body is over.
    pub(super) fn finish(&self) -> Result<(), Refusal> {
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
