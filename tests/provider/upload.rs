//! Uploads: a file in parts, put together when complete.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::file;
use crate::multipart::HELD_BYTES_MAX;
use crate::reply::{Refusal, Reply};
use crate::shelf::{Kind, Object};

/// Seconds an upload stays open.
const OPEN_S: u64 = 3_600;

/// `POST /v1/uploads`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let body = ask.json();
    let text = |name: &'static str| ask.text(name).ok_or_else(|| Refusal::missing(name));
    let bytes = body
        .get("bytes")
        .and_then(Value::as_u64)
        .ok_or_else(|| Refusal::missing("bytes"))?;
    let created = desk::unix_ms() / 1_000;
    let id = desk::fresh_id("upload_");
    let value = json!({
        "id": id, "object": "upload", "bytes": bytes, "created_at": created, "expires_at": created + OPEN_S,
        "filename": text("filename")?, "purpose": text("purpose")?, "mime_type": text("mime_type")?,
        "status": "pending", "file": null,
    });
    desk.shelf
        .put(&id, Object::new(Kind::Upload, ask.caller, value.clone()));
    Ok(Reply::json(&value).at_once())
}

/// `POST /v1/uploads/{}/parts`
pub(crate) fn part(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    pending(desk, ask)?;
    let data = ask
        .form()
        .and_then(|form| form.file("data"))
        .ok_or_else(|| Refusal::missing("data"))?;
    let id = desk::fresh_id("part_");
    let value = json!({
        "id": id, "object": "upload.part", "created_at": desk::unix_ms() / 1_000, "upload_id": ask.id(0),
    });
    let mut object = Object::new(Kind::UploadPart, ask.caller, value.clone());
    object.extra = json!({ "bytes": data.bytes });
    if data.is_whole() {
        object.content = Bytes::copy_from_slice(&data.held);
    }
    desk.shelf.put(&id, object);
    Ok(Reply::json(&value).at_once())
}

/// `POST /v1/uploads/{}/complete`
pub(crate) fn complete(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let upload = pending(desk, ask)?.value;
    let ids = ask
        .json()
        .get("part_ids")
        .and_then(Value::as_array)
        .ok_or_else(|| Refusal::missing("part_ids"))?;
    let (mut bytes, mut content) = (0, Vec::new());
    for id in ids {
        let part = desk
            .shelf
            .find(Kind::UploadPart, ask, id.as_str().unwrap_or(""))?;
        bytes += part.extra.get("bytes").and_then(Value::as_u64).unwrap_or(0);
        if content.len() + part.content.len() <= HELD_BYTES_MAX {
            content.extend_from_slice(&part.content);
        }
    }
    if Some(bytes) != upload.get("bytes").and_then(Value::as_u64) {
        return Err(Refusal::invalid(
            "part_ids",
            format!("The parts have {bytes} bytes, which is not what was announced."),
        ));
    }
    let text = |name: &str| {
        upload
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let file = file::keep(
        desk,
        ask,
        &file::about(&text("filename"), &text("purpose"), bytes, None),
        content.into(),
    );
    set(desk, ask, |value| {
        value["status"] = json!("completed");
        value["file"] = file;
    })
}

/// `POST /v1/uploads/{}/cancel`
pub(crate) fn cancel(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    pending(desk, ask)?;
    set(desk, ask, |value| value["status"] = json!("cancelled"))
}

fn set(desk: &Desk, ask: &Ask, change: impl FnOnce(&mut Value)) -> Result<Reply, Refusal> {
    let object = desk.shelf.change(Kind::Upload, ask, ask.id(0), |object| {
        change(&mut object.value)
    })?;
    Ok(Reply::json(&object.value).at_once())
}

fn pending(desk: &Desk, ask: &Ask) -> Result<Object, Refusal> {
    let upload = desk.shelf.find(Kind::Upload, ask, ask.id(0))?;
    if upload.value.get("status") != Some(&json!("pending")) {
        return Err(Refusal::bad("The upload is not pending."));
    }
    Ok(upload)
}
