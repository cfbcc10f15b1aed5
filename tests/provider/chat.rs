//! Chat completions: text in the prompt's language, tool calls, structured output; whole or streamed.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::bench::Plan;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::schema;
use crate::words::{self, Words};

/// Choices one request may ask for.
const CHOICES_MAX: u64 = 8;

/// What the assistant says, or which tool it calls.
#[derive(Debug)]
pub(crate) enum Says {
    Words(Words),
    Call { name: String, arguments: String },
}

/// `POST /v1/chat/completions`
pub(crate) fn create(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let body = ask.json();
    let model = ask.model()?;
    if let Some(plan) = Plan::of(model) {
        return Ok(plan.reply());
    }
    let messages = body
        .get("messages")
        .ok_or_else(|| Refusal::missing("messages"))?;
    let messages = messages
        .as_array()
        .filter(|messages| !messages.is_empty())
        .ok_or_else(|| {
            Refusal::invalid(
                "messages",
                "Invalid 'messages': expected a list of at least one message.",
            )
        })?;
    let says = says(ask, messages);
    let prompt_tokens = messages
        .iter()
        .map(|message| 4 + words::tokens(&said(message)))
        .sum();
    let chat = Chat {
        id: desk::fresh_id("chatcmpl-"),
        created: desk::unix_ms() / 1_000,
        model,
        says: &says,
        prompt_tokens,
        tells_usage: body.pointer("/stream_options/include_usage") == Some(&json!(true)),
    };
    if ask.switch("stream") {
        let gap_ms = ask.tuned("token_ms").unwrap_or(desk.pace.token_ms);
        return Ok(Reply::events(Answer::paced(chat.chunks(), gap_ms)));
    }
    let choices = body
        .get("n")
        .and_then(Value::as_u64)
        .unwrap_or(1)
        .clamp(1, CHOICES_MAX);
    Ok(Reply::json(&chat.whole(choices)))
}

fn said(message: &Value) -> String {
    words::content(message.get("content").unwrap_or(&Value::Null))
}

/// Decides between a tool, a value that fits the asked schema, and words.
fn says(ask: &Ask, messages: &[Value]) -> Says {
    let body = ask.json();
    let role =
        |message: &Value, role: &str| message.get("role").and_then(Value::as_str) == Some(role);
    let prompt = messages
        .iter()
        .rev()
        .find(|message| role(message, "user"))
        .map(said)
        .unwrap_or_default();
    let answered = messages.last().is_some_and(|message| role(message, "tool"));
    if !answered && let Some((name, parameters)) = tool(body, &prompt) {
        return Says::Call {
            name,
            arguments: schema::instance(&parameters).to_string(),
        };
    }
    if let Some(format) = body.get("response_format") {
        match format.get("type").and_then(Value::as_str) {
            Some("json_schema") => {
                let schema = format
                    .pointer("/json_schema/schema")
                    .unwrap_or(&Value::Null);
                return Says::Words(Words::split(&schema::instance(schema).to_string()));
            }
            Some("json_object") => {
                return Says::Words(Words::split(&json!({ "prompt": prompt }).to_string()));
            }
            _ => {}
        }
    }
    let limit = ["max_completion_tokens", "max_tokens"]
        .iter()
        .find_map(|name| body.get(name)?.as_u64());
    Says::Words(Words::answer(&prompt, ask.tuned("chunks"), limit))
}

/// The tool to call: the one chosen, or the first if one is required or the prompt speaks of weather or names it.
/// Reads both shapes, chat's (`function` inside) and responses' (flat).
pub(crate) fn tool(body: &Value, prompt: &str) -> Option<(String, Value)> {
    let tools = body.get("tools")?.as_array()?;
    let inner = |tool: &Value| {
        tool.get("function")
            .cloned()
            .unwrap_or_else(|| tool.clone())
    };
    let functions: Vec<Value> = tools
        .iter()
        .filter(|tool| tool.get("type").and_then(Value::as_str) == Some("function"))
        .map(inner)
        .collect();
    let name = |function: &Value| {
        function
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned()
    };
    let choice = body.get("tool_choice").unwrap_or(&Value::Null);
    let chosen = match choice {
        Value::String(choice) if choice == "none" => None,
        Value::String(choice) if choice == "required" => functions.first(),
        Value::Object(_) => {
            let wanted = name(&inner(choice));
            functions.iter().find(|function| name(function) == wanted)
        }
        _ => {
            let weather = prompt.to_lowercase().contains("weather") || prompt.contains("天气");
            functions
                .iter()
                .find(|function| weather || prompt.contains(&name(function)))
        }
    }?;
    Some((
        name(chosen),
        chosen
            .get("parameters")
            .cloned()
            .unwrap_or_else(|| json!({"type": "object"})),
    ))
}

struct Chat<'a> {
    id: String,
    created: u64,
    model: &'a str,
    says: &'a Says,
    prompt_tokens: u64,
    /// Whether the chunks of a stream speak of usage: null in each, the numbers in one of their own.
    tells_usage: bool,
}

impl Chat<'_> {
    fn usage(&self, choices: u64) -> Value {
        let said = match self.says {
            Says::Words(words) => words.pieces.len() as u64,
            Says::Call { arguments, .. } => words::tokens(arguments),
        };
        let completion_tokens = said * choices;
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        })
    }

    fn finish_reason(&self) -> &'static str {
        match self.says {
            Says::Words(words) if words.cut => "length",
            Says::Words(_) => "stop",
            Says::Call { .. } => "tool_calls",
        }
    }

    fn whole(&self, choices: u64) -> Value {
        let message = match self.says {
            Says::Words(words) => {
                json!({"role": "assistant", "content": words.text(), "refusal": null, "annotations": []})
            }
            Says::Call { name, arguments } => json!({
                "role": "assistant", "content": null, "refusal": null, "annotations": [],
                "tool_calls": [{
                    "id": desk::fresh_id("call_"), "type": "function", "function": {"name": name, "arguments": arguments},
                }],
            }),
        };
        let choices_made: Vec<Value> = (0..choices)
            .map(|index| {
                json!({"index": index, "message": message, "logprobs": null, "finish_reason": self.finish_reason()})
            })
            .collect();
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": choices_made, "usage": self.usage(choices),
            "service_tier": "default", "system_fingerprint": "fp_sample",
        })
    }

    /// The events of a stream: role, pieces, and one last chunk with the reason, usage if asked, and the end mark.
    fn chunks(&self) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        match self.says {
            Says::Words(words) => {
                chunks.push(
                    self.delta(&json!({"role": "assistant", "content": "", "refusal": null})),
                );
                chunks.extend(
                    words
                        .pieces
                        .iter()
                        .map(|piece| self.delta(&json!({ "content": piece }))),
                );
            }
            Says::Call { name, arguments } => {
                let call = json!({
                    "index": 0, "id": desk::fresh_id("call_"), "type": "function",
                    "function": {"name": name, "arguments": ""},
                });
                chunks.push(
                    self.delta(
                        &json!({"role": "assistant", "content": null, "tool_calls": [call]}),
                    ),
                );
                chunks.extend(Words::split(arguments).pieces.iter().map(|piece| {
                    self.delta(
                        &json!({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}),
                    )
                }));
            }
        }
        let mut last = self.event(&json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": self.finish_reason()}]), Value::Null);
        if self.tells_usage {
            last.push_str(&self.event(&json!([]), self.usage(1)));
        }
        last.push_str("data: [DONE]\n\n");
        chunks.push(last.into());
        chunks
    }

    fn delta(&self, delta: &Value) -> Bytes {
        let choices =
            json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": null}]);
        self.event(&choices, Value::Null).into()
    }

    fn event(&self, choices: &Value, usage: Value) -> String {
        let mut event = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "service_tier": "default", "system_fingerprint": "fp_sample", "choices": choices,
        });
        if self.tells_usage {
            event["usage"] = usage;
        }
        format!("data: {event}\n\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_called_when_it_should_be() {
        let tools = json!([{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]);
        let call = |choice: Value, prompt: &str| {
            tool(&json!({"tools": tools, "tool_choice": choice}), prompt).map(|tool| tool.0)
        };
        assert_eq!(
            call(Value::Null, "how is the weather?").as_deref(),
            Some("look_up")
        );
        assert_eq!(call(Value::Null, "上海天气"), Some("look_up".to_owned()));
        assert_eq!(call(json!("auto"), "hello"), None);
        assert_eq!(call(json!("none"), "weather"), None);
        assert_eq!(call(json!("required"), "hello").as_deref(), Some("look_up"));
        assert_eq!(
            call(
                json!({"type": "function", "function": {"name": "look_up"}}),
                ""
            )
            .as_deref(),
            Some("look_up")
        );
    }
}
