//! Moderations: flags the word "kill" and nothing else, in the API's shape.

use serde_json::{Map, Value, json};

use crate::ask::Ask;
use crate::desk::{self, Desk};
use crate::reply::{Refusal, Reply};
use crate::words;

const CATEGORIES: [&str; 13] = [
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
];

/// `POST /v1/moderations`
pub(crate) fn create(_: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let model = ask.model_or("omni-moderation-latest")?;
    let input = ask
        .json()
        .get("input")
        .ok_or_else(|| Refusal::missing("input"))?;
    let texts = match input {
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(words::content).collect()
        }
        _ => vec![words::content(input)],
    };
    let results: Vec<Value> = texts.iter().map(|text| judge(text)).collect();
    Ok(Reply::json(
        &json!({"id": desk::fresh_id("modr-"), "model": model, "results": results}),
    ))
}

fn judge(text: &str) -> Value {
    let flagged = text.to_lowercase().contains("kill");
    let each = |value: &dyn Fn(&str) -> Value| -> Map<String, Value> {
        CATEGORIES
            .iter()
            .map(|name| ((*name).to_owned(), value(name)))
            .collect()
    };
    json!({
        "flagged": flagged,
        "categories": each(&|name| json!(flagged && name == "violence")),
        "category_scores": each(&|name| json!(if flagged && name == "violence" { 0.97 } else { 0.01 })),
        "category_applied_input_types": each(&|_| json!(["text"])),
    })
}
