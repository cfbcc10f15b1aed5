//! What a request's body shows, as JSON and as a form.

use serde_json::json;
use vector_proto::dialect::json::{Peek, Progress, Span};
use vector_proto::dialect::multipart::{Form, PART_HEADER_BYTES_MAX, boundary};
use vector_proto::dialect::refers;

#[track_caller]
fn refused(body: &str, at: u64, why: &str) {
    let mut peek = Peek::new();
    let fault = match peek.feed(body.as_bytes()) {
        Progress::Malformed(fault) => fault,
        _ => peek.finish().unwrap_err(),
    };
    assert_eq!(peek.finish(), Err(fault), "a fault stays");
    assert_eq!((fault.at, fault.why.contains(why)), (at, true), "{fault}");
}

#[test]
fn a_request_shows_its_fields() {
    let body = r#"{"messages":[{"model":"no"}],"model":"a\"b","stream":true,"max_tokens":5,"max_completion_tokens":9,
        "stream_options":{"include_usage":true},"store":false,"n":3,"conversation":{"id":"conv_1"}} "#;
    let mut peek = Peek::new();
    assert_eq!(peek.feed(body.as_bytes()), Progress::Done);
    let fields = peek.fields();
    assert_eq!(fields.model(), Some("a\"b"));
    assert_eq!(fields.model_span, Some(Span { start: 38, end: 42 }));
    assert_eq!(
        (fields.stream, fields.store, fields.include_usage),
        (Some(true), Some(false), Some(true))
    );
    assert_eq!(
        (fields.tokens_max, fields.choices, fields.refers_to()),
        (Some(9), Some(3), Some("conv_1"))
    );
    assert!(fields.stream_options && peek.finish().is_ok());
}

/// The ids that a body names, and the one that it leans on.
#[track_caller]
fn named(body: &str) -> (Vec<String>, Option<String>) {
    let mut peek = Peek::deep();
    assert_eq!(peek.feed(body.as_bytes()), Progress::Done);
    let fields = peek.fields();
    let named = fields.named.iter().map(|id| id.to_string()).collect();
    (named, fields.refers_to().map(str::to_owned))
}

#[test]
fn ids_are_found_wherever_a_body_names_them() {
    let chat = r#"{"model":"m","file_id":{"type":"string"},"metadata":{"file_id":"no","x":[{"file_id":"no"}]},"audio":{"voice":"alloy","id":"no"},
        "messages":[{"content":[{"type":"file","file":{"file_id":"file-1"}},{"text":"\"file_id\":\"no\""}]}],
        "tools":[{"function":{"parameters":{"properties":{"file_id":{"type":"string"},"video":{"id":7}}}}}]}"#;
    assert_eq!(named(chat), (vec!["file-1".to_owned()], None));
    let response = r#"{"previous_response_id":"resp_1","conversation":"conv_1","input":[{"content":[{"file_id":"file-1"}]},{"content":"x"}],
        "tools":[{"vector_store_ids":["vs_1","vs_2",{"file_id":"file-2"},["vs_3"]]},{"container":{"type":"auto","file_ids":["file-3"]}},
        {"container":"cntr_1"},{"id":"no"}]}"#;
    let (found, leans) = named(response);
    assert_eq!(
        found,
        [
            "conv_1", "file-1", "vs_1", "vs_2", "file-2", "vs_3", "file-3", "cntr_1"
        ]
    );
    assert_eq!(leans.as_deref(), Some("resp_1"));
    let video = r#"{"video":{"id":"video_1"},"characters":[{"id":"char_1"},{"id":"char_2"}],"id":"no","prompt":"x"}"#;
    assert_eq!(named(video).0, ["video_1", "char_1", "char_2"]);
    let escaped = r#"{"a":[{"file\u005fid":"file\u002d1"},{"file_id":"two words"}]}"#;
    assert_eq!(named(escaped).0, ["file-1"]);
    let mut plain = Peek::new();
    plain.feed(chat.as_bytes());
    assert!(plain.fields().named.is_empty());
    let many: Vec<String> = (0..3000).map(|at| format!("file-{at}")).collect();
    let mut peek = Peek::deep();
    peek.feed(json!({"file_ids": many}).to_string().as_bytes());
    assert_eq!(
        (peek.fields().named.len(), peek.fields().named_more),
        (refers::IDS_MAX, true)
    );
}

#[test]
fn ids_are_found_in_the_fields_of_a_form() {
    let mut form = Form::new("multipart/form-data; boundary=b").unwrap();
    let mut body = String::new();
    for (name, value) in [
        ("video[id]", "video_1"),
        ("images[0][file_id]", "file-1"),
        ("file_ids[]", "file-2"),
        ("consent", "cons_1"),
        ("metadata[file_id]", "no"),
        ("id", "no"),
        ("prompt", "no"),
        ("file_id\"; filename=\"x", "no"),
    ] {
        body +=
            &format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
    }
    assert_eq!(
        form.feed(format!("{body}--b--\r\n").as_bytes()),
        Progress::Done
    );
    let named: Vec<&str> = form.fields().named.iter().map(|id| &**id).collect();
    assert_eq!(named, ["video_1", "file-1", "file-2", "cons_1"]);
}

#[test]
fn malformed_json_is_named_with_its_place() {
    refused("", 0, "empty");
    refused("[]", 0, "not a JSON object");
    refused(r#"{"a" 1}"#, 5, "colon");
    refused(r#"{"a":1 "b":2}"#, 7, "comma");
    refused(r#"{"a":[1}"#, 7, "bracket");
    refused(r#"{"a":nil}"#, 6, "word");
    refused(r#"{"a":}"#, 5, "value");
    refused("{\u{1}}", 1, "key");
    refused(r#"{"model":"x""#, 12, "ends in the middle");
    refused(r#"{"model":"x"}}"#, 13, "more follows");
    refused(r#"{"model":"x","mod\u0065l":"y"}"#, 14, "twice");
    refused(r#"{"model":{}}"#, 9, "not a string");
    refused(r#"{"model":7}"#, 9, "not a string");
    refused(&format!(r#"{{"a":{}"#, "[".repeat(64)), 5 + 63, "deeper");
}

#[test]
fn reading_stops_when_enough_is_known() {
    let mut peek = Peek::new();
    let enough = peek.feed_until(br#"{"model":"m","x":garbage"#, |fields| {
        fields.model().is_some()
    });
    assert_eq!(
        (enough, peek.fields().model()),
        (Progress::Enough, Some("m"))
    );
}

/// What comes of a body whose first part is settled before the second is fed.
fn settled(first: &str, second: &str) -> Result<(), &'static str> {
    let mut peek = Peek::deep();
    assert_eq!(peek.feed(first.as_bytes()), Progress::NeedMore);
    peek.settle();
    match peek.feed(second.as_bytes()) {
        Progress::Malformed(fault) => Err(fault.why),
        _ => peek.finish().map_err(|fault| fault.why),
    }
}

#[test]
fn behind_what_is_settled_no_other_model_is_taken() {
    let twice = Err("`model` is given twice");
    let first = r#"{"model":"a","x":["#;
    assert_eq!(settled(first, r#"{"model":"b"}],"y":"model"}"#), Ok(()));
    assert_eq!(settled(first, r#"],"model":"a"}"#), twice);
    assert_eq!(settled(first, r#"],"mod\u0065l":null}"#), twice);
    assert_eq!(settled(first, r#"],"session":{"model":"b"}}"#), twice);
    let session = r#"{"session":{"model":"a","x":["#;
    assert_eq!(settled(session, r#"]},"x":{"model":"b"}}"#), Ok(()));
    assert_eq!(settled(session, r#"],"model":"b"}}"#), twice);
    assert_eq!(settled(session, r#"]},"model":"b"}"#), twice);
    assert_eq!(settled(session, r#"]},"session":{"model":"b"}}"#), twice);
    // Nothing was said that another could contradict.
    assert_eq!(settled(r#"{"x":["#, r#"],"model":"b"}"#), Ok(()));
}

// Multipart requests.

#[test]
fn a_boundary_is_found_in_its_spellings() {
    assert_eq!(boundary("multipart/form-data; boundary=abc"), Some("abc"));
    assert_eq!(
        boundary("multipart/form-data; charset=utf-8; Boundary=\"a b;c\""),
        Some("a b;c")
    );
    assert_eq!(
        boundary("multipart/form-data;boundary=abc ; x=y"),
        Some("abc")
    );
    for missing in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "x; y=\"boundary=z",
    ] {
        assert_eq!(boundary(missing), None, "{missing}");
    }
    assert_eq!(boundary(&format!("x; boundary={}", "a".repeat(201))), None);
}

#[test]
fn an_overlong_part_header_is_refused() {
    let mut form = Form::new("multipart/form-data; boundary=b").unwrap();
    let body = format!("--b\r\nX: {}", "y".repeat(PART_HEADER_BYTES_MAX));
    let Progress::Malformed(fault) = form.feed(body.as_bytes()) else {
        panic!("accepted")
    };
    assert!(fault.why.contains("16 KiB"));
}

#[test]
fn a_form_without_its_closing_boundary_was_cut() {
    let mut form = Form::new("multipart/form-data; boundary=b").unwrap();
    let body = b"--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b\r\n";
    assert_eq!(form.feed(body), Progress::NeedMore);
    assert_eq!(
        (form.fields().model(), form.finish().is_err()),
        (Some("whisper-1"), true)
    );
}

/// One part of a form.
fn part(name: &str, value: &str) -> String {
    format!("--b\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n")
}

#[test]
fn a_form_names_its_model_once() {
    let fault = |parts: &[String], settles: bool| {
        let mut form = Form::new("multipart/form-data; boundary=b").unwrap();
        for one in parts {
            if let Progress::Malformed(fault) = form.feed(one.as_bytes()) {
                return Some(fault.why);
            }
            if settles && form.fields().model().is_some() {
                form.settle();
            }
        }
        None
    };
    let [model, other] = [part("model", "a"), part("\"model\"", "b")];
    let file = part("file; filename=x", "model");
    let session = |body: &str| part("session", body);
    let named = session(r#"{"model":"a"}"#);
    for settles in [false, true] {
        let fault = |parts: &[&String]| {
            let parts: Vec<String> = parts.iter().map(|part| (*part).clone()).collect();
            fault(&parts, settles)
        };
        assert_eq!(fault(&[&model, &file, &file]), None);
        assert!(fault(&[&model, &file, &other, &file]).is_some());
        assert!(fault(&[&named, &file, &named, &file]).is_some());
        for broken in [
            r#"{"model":"a","model":"b"}"#,
            r#"{"model":"a""#,
            r#"{"x"}"#,
        ] {
            assert!(fault(&[&session(broken), &file]).is_some(), "{broken}");
        }
        for other in ["abc", "", "[1]", "7"] {
            assert_eq!(fault(&[&session(other), &file]), None, "{other}");
        }
    }
    let both = [&named, &file, &other, &file].map(Clone::clone);
    assert!(fault(&both, true).is_some());
}

#[test]
fn headers_that_are_no_text_hide_no_model() {
    let mut form = Form::new("multipart/form-data; boundary=b").unwrap();
    let head =
        b"--b\r\nContent-Disposition: form-data; name=\"model\"\r\nX: \xfc\r\n\r\nm\r\n--b--\r\n";
    assert_eq!(form.feed(head), Progress::Done);
    assert_eq!(form.fields().model(), Some("m"));
}
