//! Responses: create (whole, streamed, in the background), get, delete, cancel, input items.
//!
//! What is stored is the finished object; a background response shows itself queued and in progress until
//! its time has passed. Events are made from the finished object, so a replay is the stream again.

use serde_json::{Value, json};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::chat::{self, Says};
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::response_events;
use crate::schema;
use crate::shelf::{self, Kind, Object};
use crate::words::{self, Words};

/// `POST /v1/responses`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let body = ask.json();
    let model = ask.model_or("gpt-4o-mini")?;
    let input = body.get("input").ok_or_else(|| Refusal::missing("input"))?;
    let items = items(input);
    if let Some(previous) = ask.text("previous_response_id") {
        desk.shelf.find(Kind::Response, ask, previous)?;
    }
    let says = says(ask, &items);
    let value = finished(body, model, &items, &says);
    let id = value["id"].as_str().unwrap_or("").to_owned();
    let mut object = Object::new(Kind::Response, ask.caller, value.clone());
    object.extra = json!({"items": items, "cancelled": false});
    let shown = now(desk, &object);
    if body.get("store") != Some(&json!(false)) {
        desk.shelf.put(&id, object);
    }
    if ask.switch("stream") {
        let pieces = match says {
            Says::Words(words) => words.pieces,
            Says::Call { arguments, .. } => Words::split(&arguments).pieces,
        };
        return Ok(stream(desk, ask, &value, &pieces, None));
    }
    let reply = Reply::json(&shown);
    Ok(if ask.switch("background") {
        reply.at_once()
    } else {
        reply
    })
}

fn stream(desk: &Desk, ask: &Ask, value: &Value, pieces: &[String], after: Option<u64>) -> Reply {
    let gap_ms = ask.tuned("token_ms").unwrap_or(desk.pace.token_ms);
    Reply::events(Answer::paced(
        response_events::events(value, pieces, after),
        gap_ms,
    ))
}

/// The input as a list of items, each with an id.
fn items(input: &Value) -> Vec<Value> {
    let message = |content: Value| json!({"type": "message", "role": "user", "status": "completed", "content": content});
    let mut items = match input {
        Value::Array(items) => items.clone(),
        other => vec![message(
            json!([{"type": "input_text", "text": words::content(other)}]),
        )],
    };
    for item in &mut items {
        if item.is_object() && item.get("id").is_none() {
            item["id"] = json!(desk::fresh_id("msg_"));
        }
    }
    items
}

fn says(ask: &Ask, items: &[Value]) -> Says {
    let body = ask.json();
    let kind = |item: &Value, name: &str| item.get("type").and_then(Value::as_str) == Some(name);
    let user = |item: &&Value| item.get("role").and_then(Value::as_str) == Some("user");
    let prompt = items
        .iter()
        .rev()
        .find(user)
        .and_then(|item| item.get("content"))
        .map(words::content)
        .unwrap_or_default();
    let answered = items
        .last()
        .is_some_and(|item| kind(item, "function_call_output"));
    if !answered && let Some((name, parameters)) = chat::tool(body, &prompt) {
        return Says::Call {
            name,
            arguments: schema::instance(&parameters).to_string(),
        };
    }
    match body.pointer("/text/format/type").and_then(Value::as_str) {
        Some("json_schema") => {
            let schema = body.pointer("/text/format/schema").unwrap_or(&Value::Null);
            Says::Words(Words::split(&schema::instance(schema).to_string()))
        }
        Some("json_object") => Says::Words(Words::split(&json!({ "prompt": prompt }).to_string())),
        _ => {
            let limit = body.get("max_output_tokens").and_then(Value::as_u64);
            Says::Words(Words::answer(&prompt, ask.tuned("chunks"), limit))
        }
    }
}

/// The response as it will be when it is done.
fn finished(body: &Value, model: &str, items: &[Value], says: &Says) -> Value {
    let (item, said, cut) = match says {
        Says::Words(words) => (message(&words.text()), words.pieces.len() as u64, words.cut),
        Says::Call { name, arguments } => (call(name, arguments), words::tokens(arguments), false),
    };
    let heard: u64 = items
        .iter()
        .filter_map(|item| item.get("content"))
        .map(|content| 4 + words::tokens(&words::content(content)))
        .sum();
    let given = |name: &str, default: Value| body.get(name).cloned().unwrap_or(default);
    json!({
        "id": desk::fresh_id("resp_"), "object": "response", "created_at": desk::unix_ms() / 1_000,
        "status": if cut { "incomplete" } else { "completed" }, "error": null,
        "incomplete_details": if cut { json!({"reason": "max_output_tokens"}) } else { Value::Null },
        "background": given("background", json!(false)), "instructions": given("instructions", Value::Null),
        "max_output_tokens": given("max_output_tokens", Value::Null), "metadata": given("metadata", json!({})),
        "model": model, "output": [item], "parallel_tool_calls": given("parallel_tool_calls", json!(true)),
        "previous_response_id": given("previous_response_id", Value::Null),
        "reasoning": {"effort": null, "summary": null}, "service_tier": "default", "store": given("store", json!(true)),
        "temperature": given("temperature", json!(1.0)), "text": given("text", json!({"format": {"type": "text"}})),
        "tool_choice": given("tool_choice", json!("auto")), "tools": given("tools", json!([])),
        "top_p": given("top_p", json!(1.0)), "truncation": "disabled", "user": given("user", Value::Null),
        "usage": {
            "input_tokens": heard, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": heard + said,
        },
    })
}

fn message(text: &str) -> Value {
    json!({
        "id": desk::fresh_id("msg_"), "type": "message", "status": "completed", "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    })
}

fn call(name: &str, arguments: &str) -> Value {
    json!({
        "id": desk::fresh_id("fc_"), "type": "function_call", "status": "completed",
        "call_id": desk::fresh_id("call_"), "name": name, "arguments": arguments,
    })
}

/// `GET /v1/responses/{}`, with `stream=true` as events from `starting_after` on.
pub(crate) fn retrieve(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::Response, ask, ask.id(0))?;
    if ask.query("stream") == Some("true") {
        let item = &object.value["output"][0];
        let text = item
            .pointer("/content/0/text")
            .or_else(|| item.get("arguments"))
            .and_then(Value::as_str)
            .unwrap_or("");
        let after = ask
            .query("starting_after")
            .and_then(|after| after.parse().ok());
        return Ok(stream(
            desk,
            ask,
            &object.value,
            &Words::split(text).pieces,
            after,
        ));
    }
    Ok(Reply::json(&now(desk, &object)).at_once())
}

pub(crate) fn delete(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    desk.shelf.take(Kind::Response, ask, ask.id(0))?;
    Ok(shelf::deleted(ask.id(0), "response"))
}

/// `POST /v1/responses/{}/cancel`, for background responses only.
pub(crate) fn cancel(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::Response, ask, ask.id(0))?;
    if object.value["background"] != true {
        return Err(Refusal::bad("Cannot cancel a synchronous response."));
    }
    let running =
        ["queued", "in_progress"].contains(&now(desk, &object)["status"].as_str().unwrap_or(""));
    let object = desk
        .shelf
        .change(Kind::Response, ask, ask.id(0), |object| {
            if running {
                object.extra["cancelled"] = json!(true);
            }
        })?;
    Ok(Reply::json(&now(desk, &object)).at_once())
}

pub(crate) fn input_items(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let object = desk.shelf.find(Kind::Response, ask, ask.id(0))?;
    Ok(shelf::page(
        object.extra["items"]
            .as_array()
            .cloned()
            .unwrap_or_default(),
        false,
    ))
}

/// A response as it stands at this moment.
fn now(desk: &Desk, object: &Object) -> Value {
    let mut value = object.value.clone();
    let age_ms = desk::unix_ms().saturating_sub(object.created_ms);
    let status = if object.extra["cancelled"] == true {
        "cancelled"
    } else if value["background"] != true || age_ms >= desk.pace.task_ms {
        return value;
    } else if age_ms < desk.pace.task_ms / 4 {
        "queued"
    } else {
        "in_progress"
    };
    value["status"] = json!(status);
    value["output"] = json!([]);
    value["usage"] = Value::Null;
    value
}
