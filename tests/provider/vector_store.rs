//! Vector stores: names and lists of files; a search finds the first line of each.

use serde_json::{Value, json};

use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::shelf::{self, Kind, Object};

/// Files one store may have.
const FILES_MAX: usize = 500;

/// `POST /v1/vector_stores`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let id = desk::fresh_id("vs_");
    let value = json!({
        "id": id, "object": "vector_store", "created_at": desk::unix_ms() / 1_000, "name": ask.text("name"),
        "usage_bytes": 0, "status": "completed", "expires_after": null, "expires_at": null,
        "last_active_at": desk::unix_ms() / 1_000, "metadata": ask.json().get("metadata").unwrap_or(&Value::Null),
    });
    let mut object = Object::new(Kind::VectorStore, ask.caller, value);
    let files = ask
        .json()
        .get("file_ids")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    object.extra = files.into_iter().take(FILES_MAX).collect();
    let shown = now(&object);
    desk.shelf.put(&id, object);
    Ok(Reply::json(&shown).at_once())
}

pub(crate) fn list(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    Ok(desk.shelf.list(Kind::VectorStore, ask, now))
}

pub(crate) fn retrieve(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    Ok(Reply::json(&now(&found(desk, ask)?)).at_once())
}

/// `POST /v1/vector_stores/{}`
pub(crate) fn update(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk
        .shelf
        .change(Kind::VectorStore, ask, ask.id(0), |object| {
            for name in ["name", "metadata", "expires_after"] {
                if let Some(value) = ask.json().get(name) {
                    object.value[name] = value.clone();
                }
            }
        })?;
    Ok(Reply::json(&now(&object)).at_once())
}

pub(crate) fn delete(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    desk.shelf.take(Kind::VectorStore, ask, ask.id(0))?;
    Ok(shelf::deleted(ask.id(0), "vector_store.deleted"))
}

/// `POST /v1/vector_stores/{}/search`
pub(crate) fn search(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let query = ask
        .json()
        .get("query")
        .ok_or_else(|| Refusal::missing("query"))?;
    let mut data = Vec::new();
    for id in files(&found(desk, ask)?) {
        let file = desk.shelf.find(Kind::File, ask, &id)?;
        let text = String::from_utf8_lossy(&file.content)
            .lines()
            .next()
            .unwrap_or("")
            .to_owned();
        data.push(json!({
            "file_id": id, "filename": file.value["filename"], "score": 0.9, "attributes": {},
            "content": [{"type": "text", "text": text}],
        }));
    }
    Ok(Reply::json(&json!({
        "object": "vector_store.search_results.page", "search_query": [query], "data": data, "has_more": false,
        "next_page": null,
    })))
}

/// `POST /v1/vector_stores/{}/files`
pub(crate) fn add_file(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let file = ask
        .text("file_id")
        .ok_or_else(|| Refusal::missing("file_id"))?;
    desk.shelf.find(Kind::File, ask, file)?;
    let object = desk
        .shelf
        .change(Kind::VectorStore, ask, ask.id(0), |object| {
            if let Some(files) = object
                .extra
                .as_array_mut()
                .filter(|files| files.len() < FILES_MAX)
            {
                files.push(json!(file));
            }
        })?;
    Ok(Reply::json(&shown_file(&object, file)).at_once())
}

pub(crate) fn list_files(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let store = found(desk, ask)?;
    Ok(shelf::page(
        files(&store)
            .iter()
            .map(|file| shown_file(&store, file))
            .collect(),
        false,
    ))
}

pub(crate) fn retrieve_file(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let store = found(desk, ask)?;
    let file = files(&store).into_iter().find(|file| file == ask.id(1));
    let file = file.ok_or_else(|| Refusal::not_found("file", ask.id(1)))?;
    Ok(Reply::json(&shown_file(&store, &file)).at_once())
}

pub(crate) fn remove_file(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    retrieve_file(desk, ask)?;
    desk.shelf
        .change(Kind::VectorStore, ask, ask.id(0), |object| {
            if let Some(files) = object.extra.as_array_mut() {
                files.retain(|file| file.as_str() != Some(ask.id(1)));
            }
        })?;
    Ok(shelf::deleted(ask.id(1), "vector_store.file.deleted"))
}

fn found(desk: &Desk, ask: &Ask) -> Result<Object, Refusal> {
    desk.shelf.find(Kind::VectorStore, ask, ask.id(0))
}

fn files(store: &Object) -> Vec<String> {
    store
        .extra
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn shown_file(store: &Object, file: &str) -> Value {
    json!({
        "id": file, "object": "vector_store.file", "created_at": store.created_ms / 1_000, "usage_bytes": 1_024,
        "vector_store_id": store.value["id"], "status": "completed", "last_error": null, "attributes": {},
    })
}

fn now(store: &Object) -> Value {
    let mut value = store.value.clone();
    let count = files(store).len();
    value["file_counts"] =
        json!({"in_progress": 0, "completed": count, "failed": 0, "cancelled": 0, "total": count});
    value
}
