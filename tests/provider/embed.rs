//! Embeddings: unit vectors made from the input's hash, as numbers or as base64.
//!
//! The same text has the same vector, another text another one; nothing more is meant by them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::ask::Ask;
use crate::desk::Desk;
use crate::reply::{Refusal, Reply};
use crate::words;

const DIMENSIONS: u64 = 1_536;
const DIMENSIONS_MAX: u64 = 4_096;

/// Texts in one request, as the API has it.
const INPUTS_MAX: usize = 2_048;

/// `POST /v1/embeddings`
pub(crate) fn create(_: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    let body = ask.json();
    let model = ask.model()?;
    let input = body.get("input").ok_or_else(|| Refusal::missing("input"))?;
    let inputs = inputs(input);
    if inputs.is_empty() || inputs.len() > INPUTS_MAX {
        return Err(Refusal::invalid(
            "input",
            "'$.input' is invalid. Please check the API reference.",
        ));
    }
    let dimensions = body
        .get("dimensions")
        .and_then(Value::as_u64)
        .unwrap_or(DIMENSIONS)
        .clamp(1, DIMENSIONS_MAX);
    let encoded = ask.text("encoding_format") == Some("base64");
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": shown(&vector(text, dimensions), encoded)}))
        .collect();
    let tokens: u64 = inputs.iter().map(|text| words::tokens(text)).sum();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Reply::json(
        &json!({"object": "list", "data": data, "model": model, "usage": usage}),
    ))
}

/// The texts asked for: one, many, or lists of token numbers.
fn inputs(input: &Value) -> Vec<String> {
    match input {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) if items.first().is_some_and(Value::is_number) => {
            vec![input.to_string()]
        }
        Value::Array(items) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .map_or_else(|| item.to_string(), str::to_owned)
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn vector(text: &str, dimensions: u64) -> Vec<f32> {
    let seed = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut random = fastrand::Rng::with_seed(seed);
    let raw: Vec<f32> = (0..dimensions).map(|_| random.f32() - 0.5).collect();
    let length = raw.iter().map(|value| value * value).sum::<f32>().sqrt();
    raw.iter().map(|value| value / length).collect()
}

fn shown(vector: &[f32], encoded: bool) -> Value {
    if encoded {
        let bytes: Vec<u8> = vector
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        return json!(STANDARD.encode(bytes));
    }
    json!(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_of_unit_length_and_repeatable() {
        let vector = vector("猫", 256);
        assert!((vector.iter().map(|value| value * value).sum::<f32>() - 1.0).abs() < 1e-4);
        assert_eq!(vector, super::vector("猫", 256));
        assert_ne!(vector, super::vector("狗", 256));
        assert_eq!(
            shown(&vector, true).as_str().unwrap().len(),
            (256usize * 4).div_ceil(3) * 4
        );
    }
}
