//! Images: one blue pixel, as base64, as a link, or in events; made, edited or varied alike.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::words;

/// A PNG of one pixel.
const PIXEL: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGPQztkAAAINAUgHmjx0AAAAAElFTkSuQmCC";

/// Images one request may ask for, as the API has it.
const IMAGES_MAX: u64 = 10;

/// `POST /v1/images/generations`, `/edits`, `/variations`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    ask.model_or("gpt-image-1")?;
    let path = ask.head.uri.path();
    if !path.ends_with("/generations")
        && ask.form().is_some_and(|form| form.file("image").is_none())
    {
        return Err(Refusal::missing("image"));
    }
    if !path.ends_with("/variations") && ask.text("prompt").is_none() {
        return Err(Refusal::missing("prompt"));
    }
    let tokens = words::tokens(ask.text("prompt").unwrap_or(""));
    let usage = json!({
        "input_tokens": tokens, "output_tokens": 272, "total_tokens": tokens + 272,
        "input_tokens_details": {"text_tokens": tokens, "image_tokens": 0},
    });
    let created = desk::unix_ms() / 1_000;
    if ask.switch("stream") {
        let prefix = if path.ends_with("/edits") {
            "image_edit"
        } else {
            "image_generation"
        };
        let gap_ms = ask.tuned("token_ms").unwrap_or(desk.pace.token_ms);
        return Ok(Reply::events(Answer::paced(
            events(prefix, created, &usage),
            gap_ms,
        )));
    }
    let asked = ask
        .json()
        .get("n")
        .and_then(Value::as_u64)
        .or_else(|| ask.text("n")?.parse().ok());
    let image = match ask.text("response_format") {
        Some("url") => json!({"url": "https://sample.invalid/pixel.png", "revised_prompt": null}),
        _ => json!({"b64_json": PIXEL, "revised_prompt": null}),
    };
    let data = vec![image; usize::try_from(asked.unwrap_or(1).clamp(1, IMAGES_MAX)).unwrap_or(1)];
    Ok(Reply::json(&json!({
        "created": created, "data": data, "usage": usage, "output_format": "png", "quality": "low", "size": "1024x1024",
        "background": "opaque",
    })))
}

fn events(prefix: &str, created: u64, usage: &Value) -> Vec<Bytes> {
    let event = |name: &str, more: Value| {
        let mut event = json!({
            "type": format!("{prefix}.{name}"), "b64_json": PIXEL, "created_at": created, "size": "1024x1024",
            "quality": "low", "background": "opaque", "output_format": "png",
        });
        if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
            event.extend(more);
        }
        Bytes::from(format!("event: {prefix}.{name}\ndata: {event}\n\n"))
    };
    vec![
        event("partial_image", json!({"partial_image_index": 0})),
        event("completed", json!({ "usage": usage })),
    ]
}
