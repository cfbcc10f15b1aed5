//! Models: the names the provider lists. Others are served all the same.

use serde_json::{Value, json};

use crate::ask::{self, Ask};
use crate::desk::Desk;
use crate::reply::{Refusal, Reply};

const NAMES: [&str; 15] = [
    "gpt-4o-mini",
    "gpt-4o",
    "text-embedding-3-small",
    "gpt-image-1",
    "tts-1",
    "whisper-1",
    "gpt-4o-transcribe",
    "sora-2",
    "omni-moderation-latest",
    "gpt-realtime",
    "gpt-3.5-turbo-instruct",
    "bench",
    "bench-stream",
    "bench-stream-20",
    "bench-stream-100x20",
];

fn model(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "vector-sample-provider"})
}

pub(crate) fn list(_: &Desk, _: &Ask) -> Result<Reply, Refusal> {
    let data: Vec<Value> = NAMES.iter().map(|name| model(name)).collect();
    Ok(Reply::json(&json!({"object": "list", "data": data})).at_once())
}

pub(crate) fn retrieve(_: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    ask::known(ask.id(0))?;
    Ok(Reply::json(&model(ask.id(0))).at_once())
}
