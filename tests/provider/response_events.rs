//! The events of a streamed response, made from the finished object. Pure.
//!
//! Order and numbering are the API's: created, in progress, item added, part added, deltas, and each closed
//! again in turn; `sequence_number` counts from zero without a gap.

use bytes::Bytes;
use serde_json::{Value, json};

/// The events of `response`, its text or arguments coming in `pieces`; those behind number `after` only.
pub(crate) fn events(response: &Value, pieces: &[String], after: Option<u64>) -> Vec<Bytes> {
    let mut script = Script { events: Vec::new() };
    let mut begun = response.clone();
    begun["status"] = json!("in_progress");
    begun["output"] = json!([]);
    begun["usage"] = Value::Null;
    script.push("response.created", json!({ "response": begun }));
    script.push("response.in_progress", json!({ "response": begun }));
    let item = &response["output"][0];
    if item["type"] == "function_call" {
        script.call(item, pieces);
    } else {
        script.message(item, pieces);
    }
    script.push(
        "response.output_item.done",
        json!({"output_index": 0, "item": item}),
    );
    let status = response["status"].as_str().unwrap_or("completed");
    script.push(
        &format!("response.{status}"),
        json!({ "response": response }),
    );
    let skip = after.map_or(0, |after| usize::try_from(after + 1).unwrap_or(usize::MAX));
    script.events.into_iter().skip(skip).collect()
}

#[derive(Debug)]
struct Script {
    events: Vec<Bytes>,
}

impl Script {
    fn push(&mut self, kind: &str, mut event: Value) {
        event["type"] = json!(kind);
        event["sequence_number"] = json!(self.events.len());
        self.events
            .push(format!("event: {kind}\ndata: {event}\n\n").into());
    }

    fn message(&mut self, item: &Value, pieces: &[String]) {
        let id = &item["id"];
        let mut begun = item.clone();
        begun["status"] = json!("in_progress");
        begun["content"] = json!([]);
        self.push(
            "response.output_item.added",
            json!({"output_index": 0, "item": begun}),
        );
        let place = |more: Value| {
            let mut event = json!({"item_id": id, "output_index": 0, "content_index": 0});
            if let (Some(event), Value::Object(more)) = (event.as_object_mut(), more) {
                event.extend(more);
            }
            event
        };
        let empty = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
        self.push(
            "response.content_part.added",
            place(json!({ "part": empty })),
        );
        for piece in pieces {
            self.push(
                "response.output_text.delta",
                place(json!({"delta": piece, "logprobs": []})),
            );
        }
        let part = &item["content"][0];
        self.push(
            "response.output_text.done",
            place(json!({"text": part["text"], "logprobs": []})),
        );
        self.push("response.content_part.done", place(json!({ "part": part })));
    }

    fn call(&mut self, item: &Value, pieces: &[String]) {
        let id = &item["id"];
        let mut begun = item.clone();
        begun["status"] = json!("in_progress");
        begun["arguments"] = json!("");
        self.push(
            "response.output_item.added",
            json!({"output_index": 0, "item": begun}),
        );
        for piece in pieces {
            let delta = json!({"item_id": id, "output_index": 0, "delta": piece});
            self.push("response.function_call_arguments.delta", delta);
        }
        let done = json!({"item_id": id, "output_index": 0, "name": item["name"], "arguments": item["arguments"]});
        self.push("response.function_call_arguments.done", done);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_and_numbered() {
        let response = json!({
            "status": "completed",
            "output": [{"id": "msg_1", "type": "message", "content": [{"type": "output_text", "text": "ab"}]}],
        });
        let pieces = ["a".to_owned(), "b".to_owned()];
        let made = events(&response, &pieces, None);
        let kinds: Vec<Value> = made
            .iter()
            .enumerate()
            .map(|(number, event)| {
                let text = std::str::from_utf8(event).unwrap();
                let event: Value =
                    serde_json::from_str(text.split_once("data: ").unwrap().1).unwrap();
                assert_eq!(event["sequence_number"], number);
                event["type"].clone()
            })
            .collect();
        assert_eq!(kinds.first().unwrap(), "response.created");
        assert_eq!(kinds.last().unwrap(), "response.completed");
        assert_eq!(
            kinds
                .iter()
                .filter(|kind| *kind == "response.output_text.delta")
                .count(),
            2
        );
        assert_eq!(events(&response, &pieces, Some(3)).len(), made.len() - 4);
    }
}
