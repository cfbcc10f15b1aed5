//! Fine-tuning jobs: running for a moment, then succeeded with a model that exists as every model does.

use serde_json::{Value, json};

use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::shelf::{self, Kind, Object};

/// `POST /v1/fine_tuning/jobs`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let model = ask.model()?;
    let training = ask
        .text("training_file")
        .ok_or_else(|| Refusal::missing("training_file"))?;
    let id = desk::fresh_id("ftjob-");
    let value = json!({
        "id": id, "object": "fine_tuning.job", "model": model, "created_at": desk::unix_ms() / 1_000,
        "finished_at": null, "fine_tuned_model": null, "organization_id": "org-sample", "result_files": [],
        "status": "queued", "validation_file": null, "training_file": training, "trained_tokens": null, "seed": 1,
        "error": null, "hyperparameters": {"n_epochs": 1, "batch_size": 1, "learning_rate_multiplier": 1.0},
    });
    desk.shelf
        .put(&id, Object::new(Kind::TuningJob, ask.caller, value.clone()));
    Ok(Reply::json(&value).at_once())
}

pub(crate) fn list(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    Ok(desk
        .shelf
        .list(Kind::TuningJob, ask, |object| now(desk, object)))
}

pub(crate) fn retrieve(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::TuningJob, ask, ask.id(0))?;
    Ok(Reply::json(&now(desk, &object)).at_once())
}

pub(crate) fn cancel(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk
        .shelf
        .change(Kind::TuningJob, ask, ask.id(0), |object| {
            object.value["status"] = json!("cancelled")
        })?;
    Ok(Reply::json(&object.value).at_once())
}

pub(crate) fn events(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::TuningJob, ask, ask.id(0))?;
    let event = json!({
        "id": "ftevent-sample", "object": "fine_tuning.job.event", "created_at": object.created_ms / 1_000,
        "level": "info", "message": "Created fine-tuning job", "type": "message",
    });
    Ok(shelf::page(vec![event], false))
}

pub(crate) fn checkpoints(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    desk.shelf.find(Kind::TuningJob, ask, ask.id(0))?;
    Ok(shelf::page(Vec::new(), false))
}

/// A job as it stands at this moment.
fn now(desk: &Desk, object: &Object) -> Value {
    let mut value = object.value.clone();
    if value["status"] == "cancelled" {
        return value;
    }
    let age_ms = desk::unix_ms().saturating_sub(object.created_ms);
    if age_ms < desk.pace.task_ms {
        value["status"] = json!("running");
        return value;
    }
    value["status"] = json!("succeeded");
    value["finished_at"] = json!((object.created_ms + desk.pace.task_ms) / 1_000);
    value["fine_tuned_model"] = json!(format!(
        "ft:{}:sample",
        value["model"].as_str().unwrap_or("")
    ));
    value["trained_tokens"] = json!(1_000);
    value
}
