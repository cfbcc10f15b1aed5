//! What was made and can be asked for again: files, responses, videos, and so on.
//!
//! Objects belong to the key that made them; to another key they are not there, as at OpenAI. Bounded in
//! number and in bytes held: the oldest goes when a new one needs its place.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use crate::ask::Ask;
use crate::desk;
use crate::reply::{Refusal, Reply};

/// Objects kept. With bodies of a few KiB that is some tens of MiB.
const OBJECTS_MAX: usize = 10_000;

/// Content kept over all objects; what is beyond is only counted.
const CONTENT_BYTES_MAX: usize = 256 << 20;

/// Objects one list answers with at most.
const LIST_MAX: usize = 100;

/// What kind of thing an object is; ids are only found under their own kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    File,
    Response,
    Upload,
    UploadPart,
    Batch,
    TuningJob,
    VectorStore,
    Video,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Response => "response",
            Self::Upload => "upload",
            Self::UploadPart => "upload part",
            Self::Batch => "batch",
            Self::TuningJob => "fine-tuning job",
            Self::VectorStore => "vector store",
            Self::Video => "video",
        }
    }
}

/// One thing that was made.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) owner: usize,
    pub(crate) created_ms: u64,
    /// As the API shows it, times apart.
    pub(crate) value: Value,
    /// Content or other lists that the API shows elsewhere.
    pub(crate) content: Bytes,
    pub(crate) extra: Value,
}

impl Object {
    pub(crate) fn new(kind: Kind, owner: usize, value: Value) -> Self {
        Self {
            kind,
            owner,
            created_ms: desk::unix_ms(),
            value,
            content: Bytes::new(),
            extra: Value::Null,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    objects: HashMap<String, Object>,
    order: VecDeque<String>,
    content_bytes: usize,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<Inner>);

impl Inner {
    fn remove(&mut self, id: &str) -> Option<Object> {
        let object = self.objects.remove(id)?;
        self.content_bytes -= object.content.len();
        Some(object)
    }
}

impl Shelf {
    /// Puts an object there, in place of the oldest if there are too many.
    pub(crate) fn put(&self, id: &str, mut object: Object) {
        let inner = &mut *self.0.lock();
        if inner.content_bytes + object.content.len() > CONTENT_BYTES_MAX {
            object.content = Bytes::new();
        }
        inner.remove(id);
        inner.content_bytes += object.content.len();
        inner.objects.insert(id.to_owned(), object);
        inner.order.push_back(id.to_owned());
        while inner.order.len() > OBJECTS_MAX {
            if let Some(oldest) = inner.order.pop_front() {
                inner.remove(&oldest);
            }
        }
    }

    /// The object a request names, if it belongs to whoever asks.
    pub(crate) fn find(&self, kind: Kind, ask: &Ask, id: &str) -> Result<Object, Refusal> {
        let inner = self.0.lock();
        let found = inner
            .objects
            .get(id)
            .filter(|object| object.kind == kind && object.owner == ask.caller);
        found
            .cloned()
            .ok_or_else(|| Refusal::not_found(kind.name(), id))
    }

    /// Changes an object in place.
    pub(crate) fn change(
        &self,
        kind: Kind,
        ask: &Ask,
        id: &str,
        change: impl FnOnce(&mut Object),
    ) -> Result<Object, Refusal> {
        let mut inner = self.0.lock();
        let found = inner
            .objects
            .get_mut(id)
            .filter(|object| object.kind == kind && object.owner == ask.caller);
        let object = found.ok_or_else(|| Refusal::not_found(kind.name(), id))?;
        change(object);
        Ok(object.clone())
    }

    /// Takes an object away.
    pub(crate) fn take(&self, kind: Kind, ask: &Ask, id: &str) -> Result<Object, Refusal> {
        self.find(kind, ask, id)?;
        let mut inner = self.0.lock();
        inner.order.retain(|other| other != id);
        inner
            .remove(id)
            .ok_or_else(|| Refusal::not_found(kind.name(), id))
    }

    /// The caller's objects of a kind, newest first, as `limit`, `after` and `order` ask.
    pub(crate) fn list(&self, kind: Kind, ask: &Ask, show: impl Fn(&Object) -> Value) -> Reply {
        let inner = self.0.lock();
        let mut all: Vec<(&String, &Object)> = inner
            .order
            .iter()
            .filter_map(|id| Some((id, inner.objects.get(id)?)))
            .filter(|(_, object)| object.kind == kind && object.owner == ask.caller)
            .collect();
        if ask.query("order") != Some("asc") {
            all.reverse();
        }
        let from = ask
            .query("after")
            .and_then(|after| all.iter().position(|(id, _)| *id == after))
            .map_or(0, |at| at + 1);
        let limit = ask
            .query("limit")
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(20)
            .clamp(1, LIST_MAX);
        let shown: Vec<Value> = all
            .iter()
            .skip(from)
            .take(limit)
            .map(|(_, object)| show(object))
            .collect();
        page(shown, all.len() > from + limit)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().objects.len()
    }
}

/// A list in OpenAI's shape.
pub(crate) fn page(data: Vec<Value>, has_more: bool) -> Reply {
    let id = |object: Option<&Value>| {
        object
            .and_then(|object| object.get("id"))
            .cloned()
            .unwrap_or(Value::Null)
    };
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    Reply::json(&serde_json::json!({
        "object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more,
    }))
    .at_once()
}

/// The answer to a deletion.
pub(crate) fn deleted(id: &str, object: &str) -> Reply {
    Reply::json(&serde_json::json!({"id": id, "object": object, "deleted": true})).at_once()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Body;

    fn asked_by(caller: usize) -> Ask {
        let head = http::Request::new(()).into_parts().0;
        Ask {
            caller,
            ids: Vec::new(),
            head,
            body: Body::Nothing,
        }
    }

    #[test]
    fn objects_are_found_by_their_owner_under_their_kind_only() {
        let shelf = Shelf::default();
        shelf.put("a", Object::new(Kind::File, 0, Value::Null));
        assert!(shelf.find(Kind::File, &asked_by(0), "a").is_ok());
        assert!(shelf.find(Kind::File, &asked_by(1), "a").is_err());
        assert!(shelf.find(Kind::Video, &asked_by(0), "a").is_err());
        assert!(shelf.take(Kind::File, &asked_by(1), "a").is_err());
        assert!(shelf.take(Kind::File, &asked_by(0), "a").is_ok());
        assert_eq!(shelf.len(), 0);
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let shelf = Shelf::default();
        for number in 0..=OBJECTS_MAX {
            shelf.put(&number.to_string(), Object::new(Kind::File, 0, Value::Null));
        }
        assert_eq!(shelf.len(), OBJECTS_MAX);
        assert!(shelf.find(Kind::File, &asked_by(0), "0").is_err());
        assert!(shelf.find(Kind::File, &asked_by(0), "1").is_ok());
    }
}
