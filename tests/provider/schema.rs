//! Makes a value that fits a JSON schema, for tools and structured output. Pure.
//!
//! Covers what the SDKs generate: objects, arrays, enums, constants, unions, references, formats and bounds.
//! Depth is bounded, so a schema that refers to itself ends.

use serde_json::{Map, Value, json};

/// Levels of nesting; below, optional things are left out and lists are empty.
const DEPTH_MAX: usize = 12;

/// A value that fits `schema`.
pub(crate) fn instance(schema: &Value) -> Value {
    make(schema, schema, "", 0)
}

fn make(root: &Value, schema: &Value, name: &str, depth: usize) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
        let found = target
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer));
        return found.map_or(Value::Null, |found| make(root, found, name, depth + 1));
    }
    if let Some(value) = schema.get("const").or_else(|| schema.get("enum")?.get(0)) {
        return value.clone();
    }
    for union in ["anyOf", "oneOf", "allOf"] {
        if let Some(options) = schema.get(union).and_then(Value::as_array) {
            let deep = depth > DEPTH_MAX / 2;
            let null = options
                .iter()
                .find(|option| deep && option.get("type") == Some(&json!("null")));
            return null
                .or(options.first())
                .map_or(Value::Null, |option| make(root, option, name, depth + 1));
        }
    }
    match kind(schema) {
        "object" => object(root, schema, depth),
        "array" => array(root, schema, name, depth),
        "integer" => json!(schema.get("minimum").and_then(Value::as_i64).unwrap_or(7)),
        "number" => json!(schema.get("minimum").and_then(Value::as_f64).unwrap_or(7.5)),
        "boolean" => json!(true),
        "null" => Value::Null,
        _ => string(schema, name),
    }
}

/// The type a schema states or implies; of several, the first that is not null.
fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => kinds
            .iter()
            .filter_map(Value::as_str)
            .find(|kind| *kind != "null")
            .unwrap_or("null"),
        _ if schema.get("properties").is_some() => "object",
        _ if schema.get("items").is_some() => "array",
        _ => "string",
    }
}

fn object(root: &Value, schema: &Value, depth: usize) -> Value {
    let mut made = Map::new();
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, property) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        if depth < DEPTH_MAX / 2 || required.contains(&name.as_str()) {
            made.insert(name.clone(), make(root, property, name, depth + 1));
        }
    }
    Value::Object(made)
}

fn array(root: &Value, schema: &Value, name: &str, depth: usize) -> Value {
    let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
    let count = if depth < DEPTH_MAX / 2 {
        least.max(1)
    } else {
        least
    };
    let item = schema
        .get("items")
        .map_or(json!("sample"), |items| make(root, items, name, depth + 1));
    Value::Array((0..count.min(64)).map(|_| item.clone()).collect())
}

fn string(schema: &Value, name: &str) -> Value {
    let text = match schema.get("format").and_then(Value::as_str) {
        Some("date") => "2026-01-31",
        Some("date-time") => "2026-01-31T12:00:00Z",
        Some("time") => "12:00:00",
        Some("email") => "sample@example.com",
        Some("uri") => "https://example.com/",
        Some("uuid") => "018f3c1e-7c00-7000-8000-000000000000",
        _ if ["location", "city", "place"].contains(&name) => "Shanghai",
        _ => "sample",
    };
    let least = schema
        .get("minLength")
        .and_then(Value::as_u64)
        .map_or(0, |least| usize::try_from(least.min(4_096)).unwrap_or(0));
    json!(format!("{text:x<least$}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_fit_their_schemas() {
        let schema = json!({
            "type": "object", "required": ["city", "steps", "kind"],
            "properties": {
                "city": {"type": "string"},
                "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}, "minItems": 2},
                "kind": {"enum": ["a", "b"]},
                "note": {"type": ["string", "null"], "minLength": 8},
            },
            "$defs": {"step": {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}},
        });
        let made = instance(&schema);
        assert_eq!(
            made,
            json!({"city": "Shanghai", "steps": [{"n": 3}, {"n": 3}], "kind": "a", "note": "samplexx"})
        );
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let node = json!({"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]});
        assert!(instance(&node).is_object());
    }
}
