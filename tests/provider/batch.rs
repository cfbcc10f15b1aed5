//! Batches: in progress for a moment, then completed with an output file of one line.

use serde_json::{Value, json};

use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::file;
use crate::reply::{Refusal, Reply};
use crate::shelf::{Kind, Object};

/// `POST /v1/batches`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let text = |name: &'static str| ask.text(name).ok_or_else(|| Refusal::missing(name));
    let input = text("input_file_id")?;
    desk.shelf.find(Kind::File, ask, input)?;
    let output = file::keep(
        desk,
        ask,
        &file::about("output.jsonl", "batch_output", LINE.len() as u64, None),
        LINE.into(),
    );
    let id = desk::fresh_id("batch_");
    let created = desk::unix_ms() / 1_000;
    let value = json!({
        "id": id, "object": "batch", "endpoint": text("endpoint")?, "errors": null, "input_file_id": input,
        "completion_window": text("completion_window")?, "status": "validating", "output_file_id": null,
        "error_file_id": null, "created_at": created, "expires_at": created + 86_400, "completed_at": null,
        "request_counts": {"total": 1, "completed": 0, "failed": 0},
        "metadata": ask.json().get("metadata").unwrap_or(&Value::Null),
    });
    let mut object = Object::new(Kind::Batch, ask.caller, value.clone());
    object.extra = output["id"].clone();
    desk.shelf.put(&id, object);
    Ok(Reply::json(&value).at_once())
}

/// The one line of every output file.
const LINE: &str = concat!(
    r#"{"id":"batch_req_sample","custom_id":"sample","response":{"status_code":200,"request_id":"req_sample","body":{}},"error":null}"#,
    "\n",
);

pub(crate) fn list(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    Ok(desk
        .shelf
        .list(Kind::Batch, ask, |object| now(desk, object)))
}

pub(crate) fn retrieve(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::Batch, ask, ask.id(0))?;
    Ok(Reply::json(&now(desk, &object)).at_once())
}

/// `POST /v1/batches/{}/cancel`
pub(crate) fn cancel(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.change(Kind::Batch, ask, ask.id(0), |object| {
        object.value["status"] = json!("cancelled")
    })?;
    Ok(Reply::json(&object.value).at_once())
}

/// A batch as it stands at this moment.
fn now(desk: &Desk, object: &Object) -> Value {
    let mut value = object.value.clone();
    if value["status"] == "cancelled" {
        return value;
    }
    let age_ms = desk::unix_ms().saturating_sub(object.created_ms);
    if age_ms < desk.pace.task_ms {
        value["status"] = json!("in_progress");
        return value;
    }
    value["status"] = json!("completed");
    value["completed_at"] = json!((object.created_ms + desk.pace.task_ms) / 1_000);
    value["output_file_id"] = object.extra.clone();
    value["request_counts"]["completed"] = json!(1);
    value
}
