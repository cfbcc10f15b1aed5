//! Videos as tasks: queued, in progress, completed after the desk's task time; then there is content.

use http::HeaderValue;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::shelf::{self, Kind, Object};

/// Bytes of every video.
const VIDEO_BYTES: u64 = 256 << 10;

/// Seconds a finished video could be fetched at the real provider.
const KEPT_S: u64 = 3_600;

/// `POST /v1/videos`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let prompt = ask
        .text("prompt")
        .ok_or_else(|| Refusal::missing("prompt"))?;
    let model = ask.model_or("sora-2")?;
    let seconds = ask.text("seconds").unwrap_or("4");
    let size = ask.text("size").unwrap_or("720x1280");
    Ok(start(
        desk,
        ask,
        &json!({"model": model, "prompt": prompt, "seconds": seconds, "size": size, "remixed_from_video_id": null}),
    ))
}

/// `POST /v1/videos/{}/remix`
pub(crate) fn remix(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let from = desk.shelf.find(Kind::Video, ask, ask.id(0))?.value;
    let prompt = ask
        .text("prompt")
        .ok_or_else(|| Refusal::missing("prompt"))?;
    Ok(start(
        desk,
        ask,
        &json!({
            "model": from["model"], "prompt": prompt, "seconds": from["seconds"], "size": from["size"],
            "remixed_from_video_id": from["id"],
        }),
    ))
}

fn start(desk: &Desk, ask: &Ask, about: &Value) -> Reply {
    let id = desk::fresh_id("video_");
    let mut value = about.clone();
    value["id"] = json!(id);
    value["object"] = json!("video");
    value["error"] = Value::Null;
    let object = Object::new(Kind::Video, ask.caller, value);
    let shown = now(desk, &object);
    desk.shelf.put(&id, object);
    Reply::json(&shown).at_once()
}

pub(crate) fn list(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    Ok(desk
        .shelf
        .list(Kind::Video, ask, |object| now(desk, object)))
}

pub(crate) fn retrieve(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::Video, ask, ask.id(0))?;
    Ok(Reply::json(&now(desk, &object)).at_once())
}

pub(crate) fn delete(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    desk.shelf.take(Kind::Video, ask, ask.id(0))?;
    Ok(shelf::deleted(ask.id(0), "video.deleted"))
}

/// `GET /v1/videos/{}/content`
pub(crate) fn content(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::Video, ask, ask.id(0))?;
    if now(desk, &object)["status"] != "completed" {
        return Err(Refusal::bad("The video is not ready yet."));
    }
    Ok(Reply::new(
        HeaderValue::from_static("video/mp4"),
        Answer::Fill(VIDEO_BYTES),
    )
    .at_once())
}

/// A video as it stands at this moment.
fn now(desk: &Desk, object: &Object) -> Value {
    let mut value = object.value.clone();
    let task_ms = desk.pace.task_ms.max(1);
    let age_ms = desk::unix_ms().saturating_sub(object.created_ms);
    let done = age_ms >= task_ms;
    let status = if done {
        "completed"
    } else if age_ms < task_ms / 4 {
        "queued"
    } else {
        "in_progress"
    };
    let finished = (object.created_ms + task_ms) / 1_000;
    value["status"] = json!(status);
    value["progress"] = json!((age_ms * 100 / task_ms).min(100));
    value["created_at"] = json!(object.created_ms / 1_000);
    value["completed_at"] = if done { json!(finished) } else { Value::Null };
    value["expires_at"] = if done {
        json!(finished + KEPT_S)
    } else {
        Value::Null
    };
    value
}
