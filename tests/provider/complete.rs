//! Completions, the older sibling of chat: a prompt in, text out; whole or streamed.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::words::{self, Words};

/// Tokens when the request sets no limit, as the API has it.
const TOKENS: u64 = 16;

/// `POST /v1/completions`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let body = ask.json();
    let model = ask.model()?;
    let prompt = match body.get("prompt") {
        Some(Value::Array(prompts)) => prompts
            .first()
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned(),
        prompt => prompt.and_then(Value::as_str).unwrap_or("").to_owned(),
    };
    let limit = body
        .get("max_tokens")
        .and_then(Value::as_u64)
        .unwrap_or(TOKENS);
    let words = Words::answer(&prompt, ask.tuned("chunks"), Some(limit));
    let (id, created) = (desk::fresh_id("cmpl-"), desk::unix_ms() / 1_000);
    let (prompt_tokens, completion_tokens) = (words::tokens(&prompt), words.pieces.len() as u64);
    let usage = json!({
        "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    });
    let reason = if words.cut { "length" } else { "stop" };
    let object = |text: &str, reason: Value, usage: &Value| {
        json!({
            "id": id, "object": "text_completion", "created": created, "model": model,
            "choices": [{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}], "usage": usage,
        })
    };
    if !ask.switch("stream") {
        return Ok(Reply::json(&object(&words.text(), json!(reason), &usage)));
    }
    let mut chunks: Vec<String> = words
        .pieces
        .iter()
        .map(|piece| format!("data: {}\n\n", object(piece, Value::Null, &Value::Null)))
        .collect();
    let usage = if body.pointer("/stream_options/include_usage") == Some(&json!(true)) {
        usage
    } else {
        Value::Null
    };
    chunks.push(format!(
        "data: {}\n\ndata: [DONE]\n\n",
        object("", json!(reason), &usage)
    ));
    let gap_ms = ask.tuned("token_ms").unwrap_or(desk.pace.token_ms);
    Ok(Reply::events(Answer::paced(
        chunks.into_iter().map(Into::into),
        gap_ms,
    )))
}
