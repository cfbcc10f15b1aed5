//! Properties: whatever is said, and wherever its bytes are cut, it reads the same.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;
use vector_proto::dialect::{
    json::Span,
    operation,
    rename::{Splice, escaped},
};

use super::checks;

/// JSON-like text: whole objects of the keys that matter, then bytes changed.
fn nearly_json() -> impl Strategy<Value = Vec<u8>> {
    let keys = [
        "model",
        "stream",
        "response",
        "session",
        "usage",
        "store",
        "n",
        "id",
        "choices",
        "x",
        "background",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z\"\\\\\u{1}é😀]{0,8}".prop_map(Value::from),
    ];
    let tree = leaf.prop_recursive(4, 32, 6, move |inner| {
        let key = prop::sample::select(keys.to_vec()).prop_map(str::to_owned);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    });
    (
        tree,
        any::<bool>(),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    )
        .prop_map(|(tree, pretty, changes)| {
            let text = if pretty {
                serde_json::to_vec_pretty(&tree)
            } else {
                serde_json::to_vec(&tree)
            };
            let mut text = text.unwrap();
            for (place, byte) in changes {
                let place = place.index(text.len());
                text[place] = byte;
            }
            text
        })
}

/// Text made of the pieces that a format is made of.
fn pieces(of: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(of), 0..24)
        .prop_map(|parts| parts.concat().into_bytes())
}

const SSE: &[&str] = &[
    "data",
    ": ",
    ":",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "event",
    "id",
    "{",
    "}",
    "[DONE]",
    "\"model\":\"m\"",
    "x",
    "\u{feff}",
    "{\"id\":\"a\",\"choices\":[{\"index\":0,\"finish_reason\":null}]}",
    "\"usage\":{\"input_tokens\":1}",
    ",",
    "data: {\"response\":{\"model\":\"a\",\"usage\":{\"output_tokens\":2}},\"type\":\"response.completed\"}\n\n",
];

const FORM: &[&str] = &[
    "--b",
    "\r\n",
    "\r",
    "\n",
    "--",
    "-",
    "\r\n--b",
    "\r\n--b--",
    "Content-Disposition: form-data; name=\"model\"",
    "content-disposition: form-data; name=stream",
    "\r\n\r\n",
    "Content-Disposition: form-data; name=session",
    "true",
    "x",
    "{\"model\":\"m\"}",
    "; filename=y",
    "b",
];

proptest! {
    #[test]
    fn requests_read_the_same_however_cut(body in nearly_json()) {
        checks::json(&body);
    }

    #[test]
    fn renamed_answers_differ_in_the_name_alone(body in nearly_json()) {
        checks::rename(&body);
        let event = [b"data: ", &body[..], b"\n\n"].concat();
        checks::sse(&event);
        checks::rename(&event);
    }

    #[test]
    fn streams_read_the_same_however_cut(stream in pieces(SSE)) {
        checks::sse(&stream);
        checks::rename(&stream);
    }

    #[test]
    fn forms_read_the_same_however_cut(body in pieces(FORM)) {
        checks::multipart(&body);
    }

    #[test]
    fn no_path_panics(method in "[A-Z]{0,7}", path in "(/|v1|files|models|[a-z%2.\\\\]|\\PC){0,12}") {
        let _ = operation::find(&method, &path);
        let _ = operation::find("GET", &format!("/v1/{path}"));
    }

    #[test]
    fn a_splice_changes_its_span_alone(
        body in prop::collection::vec(any::<u8>(), 1..64), ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        name in "[a-z\"\\\\é]{0,9}", size in 1_usize..9,
    ) {
        let (one, other) = (ends.0.index(body.len()), ends.1.index(body.len()));
        let (start, end) = (one.min(other), one.max(other));
        let with = escaped(&name);
        let expected = [&body[..start], &with, &body[end..]].concat();
        let mut splice = Splice::new(Span { start: start as u64, end: end as u64 }, with);
        prop_assert_eq!(splice.length(body.len() as u64), expected.len() as u64);
        let mut out = Vec::new();
        for part in body.chunks(size) {
            splice.feed(Bytes::copy_from_slice(part), &mut out);
        }
        prop_assert_eq!(out.concat(), expected);
    }
}
