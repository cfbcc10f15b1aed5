//! What the dialect promises: known requests and answers, and properties over random ones.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a check that cannot go on has failed"
)]

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use vector_proto::dialect::Dialect;
use vector_proto::dialect::error::{self, ErrorText};
use vector_proto::dialect::json::{Peek, Progress, Span};
use vector_proto::dialect::multipart::{Form, PART_HEADER_BYTES_MAX, boundary};
use vector_proto::dialect::operation::{self, Body, IdAt, ModelAt, Unmatched};
use vector_proto::dialect::refers;
use vector_proto::dialect::rename::{Rename, Splice, escaped};
use vector_proto::dialect::sse::{Events, Lines};
use vector_proto::dialect::usage::{Reader, StreamEnd, Usage};

mod any_cut;

#[path = "../../fuzz/checks.rs"]
#[expect(
    dead_code,
    reason = "the codec has its own properties; its check is for the corpus"
)]
mod checks;

// Operations.

/// Rows of the table. A change here is a change of what clients may call.
const OPERATIONS: usize = 389;

#[test]
fn every_row_is_read_and_finds_itself() {
    assert_eq!(operation::all().len(), OPERATIONS);
    let mut names: Vec<_> = operation::all().iter().map(|row| row.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), OPERATIONS, "a name stands for one operation");
    for row in operation::all() {
        let filled: Vec<_> = row
            .path
            .split('/')
            .map(|part| {
                if part.starts_with('{') {
                    "some-id_1"
                } else {
                    part
                }
            })
            .collect();
        let path = filled.join("/");
        let found = operation::find(row.method, &path).unwrap();
        assert_eq!(found.operation.name, row.name);
        assert_eq!(found.object.is_some(), row.object.is_some(), "{}", row.name);
        assert_eq!(
            found.model.is_some(),
            row.model == ModelAt::Path,
            "{}",
            row.name
        );
        assert!(!found.crooked);
        assert!(matches!(
            operation::find("BREW", &path),
            Err(Unmatched::Method { .. })
        ));
        assert_eq!(
            operation::find(row.method, &path[3..]).unwrap_err(),
            Unmatched::Path,
            "only under /v1"
        );
        assert_eq!(
            operation::find(row.method, &format!("{path}x/y/z/w/v")).is_ok(),
            row.model == ModelAt::Path
        );
        assert!(
            operation::find(row.method, &format!("{path}/"))
                .unwrap()
                .crooked
        );
    }
}

#[test]
fn calls_whose_model_is_not_seen_are_known() {
    let row = |name: &str| operation::all().iter().find(|row| row.name == name);
    for name in [
        "responses.connect",
        "live.sessions.fork",
        "batches.create",
        "agents.sessions.create",
        "agents.sessions.events.create",
        "agents.automations.invocations.create",
        "chatkit.sessions.create",
        "evals.runs.create",
        "fine_tuning.alpha.graders.run",
        "realtime.transcription_sessions.create",
        "videos.remix",
    ] {
        assert!(row(name).unwrap().hides_model(), "{name}");
    }
    for name in [
        "chat.completions.create",
        "realtime.connect",
        "files.create",
        "files.list",
        "batches.retrieve",
        "responses.cancel",
        "responses.delete",
        "models.list",
        "vector_stores.search",
    ] {
        assert!(!row(name).unwrap().hides_model(), "{name}");
    }
    for row in operation::all() {
        let sockets = row.websocket && row.model == ModelAt::Nowhere;
        assert!(!sockets || row.hides_model(), "{}", row.name);
        let posts = row.method == "POST" && row.model == ModelAt::Nowhere;
        assert!(!row.inert || posts, "{}: it goes without saying", row.name);
    }
}

#[test]
fn an_object_is_made_where_later_calls_look_for_it() {
    for row in operation::all() {
        let Some(makes) = row.makes else { continue };
        let named = operation::all()
            .iter()
            .any(|other| other.object == Some(makes));
        assert!(named, "{} makes {makes}, which no call names", row.name);
    }
}

#[test]
fn every_object_has_a_maker_or_is_asked_for_by_default() {
    let all = operation::all();
    let mut nobodys: Vec<&str> = Vec::new();
    for row in all.iter().filter(|row| !row.local) {
        let Some(object) = row.object else {
            assert!(!row.object_is_made, "{}", row.name);
            continue;
        };
        let made = all.iter().any(|other| other.makes == Some(object));
        assert_eq!(made, row.object_is_made, "{}", row.name);
        if !made {
            nobodys.push(object);
        }
    }
    nobodys.sort_unstable();
    nobodys.dedup();
    assert_eq!(
        nobodys,
        [
            "chatkit/threads",
            "fine_tuning/checkpoints",
            "organization/users",
            "safety/alerts",
            "safety/cases"
        ],
        "these, and no others, come to be without a call that the table knows"
    );
}

#[test]
fn every_place_of_an_id_is_one_that_is_looked_at() {
    for row in operation::all() {
        assert!(row.tells.len() <= 32, "{}: a bit each", row.name);
        for path in &row.tells {
            let steps = path.steps();
            assert!((1..=8).contains(&steps.len()), "{}: {steps:?}", row.name);
            assert!(steps.iter().all(|step| !step.is_empty()), "{steps:?}");
        }
        assert!(
            row.tells.is_empty() || !row.name.contains(".list"),
            "{}: a list may show what other accounts have",
            row.name
        );
    }
}

#[track_caller]
fn found(method: &str, path: &str) -> (&'static str, Option<String>, Option<String>) {
    let found = operation::find(method, path).unwrap();
    (
        found.operation.name,
        found.object.map(str::to_owned),
        found.model.map(str::to_owned),
    )
}

#[test]
fn paths_say_what_they_mean() {
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        found("POST", "/v1/chat/completions"),
        ("chat.completions.create", None, None)
    );
    assert_eq!(
        found("GET", "/v1/files/file-1/content"),
        ("files.retrieve_content", some("file-1"), None)
    );
    assert_eq!(
        found("GET", "/v1/threads/t/runs/r/steps/s"),
        ("threads.runs.steps.retrieve", some("t"), None)
    );
    assert_eq!(
        found("POST", "/v1/threads/runs"),
        ("threads.create_and_run", None, None)
    );
    assert_eq!(found("HEAD", "/v1//models/"), ("models.list", None, None));
    assert_eq!(
        found("GET", "/v1/models/org/m:x%2Fy"),
        ("models.retrieve", None, some("org/m:x%2Fy"))
    );
    assert_eq!(
        found("GET", "/v1/realtime"),
        ("realtime.connect", None, None)
    );
    assert_eq!(operation::canonical("/v1//files///a/"), "/v1/files/a");
    let row = |method, path| operation::find(method, path).unwrap().operation;
    assert_eq!(
        row("POST", "/v1/threads/runs").id_at,
        IdAt::Field("thread_id")
    );
    assert_eq!(row("POST", "/v1/realtime/calls").id_at, IdAt::Location);
    assert_eq!(row("GET", "/v1/realtime").object_query, Some("call_id"));
    assert_eq!(row("POST", "/v1/videos/v/remix").makes, Some("videos"));
    assert_eq!(row("POST", "/v1/images/edits").body, Body::Form);
    assert_eq!(row("POST", "/v1/containers/c/files").body, Body::Form);
    assert!(row("GET", "/v1/models").local && !row("DELETE", "/v1/models/ft:x").local);
    assert!(row("GET", "/v1/realtime").websocket && !row("GET", "/v1/realtime").idempotent());
    assert!(row("DELETE", "/v1/files/x").idempotent() && !row("POST", "/v1/files").idempotent());
}

#[test]
fn tricky_paths_match_nothing() {
    let long = format!("/v1/files/{}", "x".repeat(513));
    let paths = [
        "",
        "/",
        "v1/models",
        "/v1",
        "/v1x/models",
        "/v2/models",
        "/v1/unknown",
        "/v1/files/..",
        "/v1/files/../content",
        "/v1/files/.",
        "/v1/files/%2e%2e",
        "/v1/files/a%2Fb",
        "/v1/files/a%5cb",
        "/v1/files/a%00",
        "/v1/files/a%zz",
        "/v1/files/a%",
        "/v1/files/a\\b",
        "/v1/files/a b",
        "/v1/files/%252e",
        "/v1/files/ü",
        "/v1/models/a/../b",
        "/v1/models/a//b",
        "/v1/chat/completions/x/y",
        &long,
    ];
    for path in paths {
        assert_eq!(
            operation::find("GET", path).unwrap_err(),
            Unmatched::Path,
            "{path}"
        );
    }
    let refused = operation::find("PUT", "/v1/files/x").unwrap_err();
    assert_eq!(
        refused,
        Unmatched::Method {
            allow: "GET, HEAD, DELETE"
        }
    );
}

// JSON requests.

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
        let double = session(r#"{"model":"a","model":"b"}"#);
        assert!(fault(&[&double, &file]).is_some());
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

// Answers.

#[track_caller]
fn read(mut reader: Reader, text: &str) -> (Option<Usage>, Option<String>, StreamEnd) {
    reader.feed(text.as_bytes());
    (
        reader.usage().copied(),
        reader.id().map(str::to_owned),
        reader.end(),
    )
}

#[test]
fn usage_is_read_in_each_vocabulary() {
    let chat = r#"{"id":"chatcmpl-1","choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":9,"completion_tokens":12,
        "total_tokens":21,"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":1},
        "completion_tokens_details":{"reasoning_tokens":4,"audio_tokens":2}}}"#;
    let expected = Usage {
        input_tokens: 9,
        cached_input_tokens: 3,
        input_audio_tokens: 1,
        output_tokens: 12,
        reasoning_tokens: 4,
        output_audio_tokens: 2,
        total_tokens: 21,
        ..Usage::default()
    };
    assert_eq!(
        read(Reader::json(), chat),
        (Some(expected), Some("chatcmpl-1".into()), StreamEnd::Clean)
    );
    let cut = &chat[..chat.len() - 1];
    assert_eq!(read(Reader::json(), cut).2, StreamEnd::Cut);
    let seconds = read(
        Reader::json(),
        r#"{"text":"x","usage":{"type":"duration","seconds":12.5}}"#,
    )
    .0
    .unwrap();
    assert_eq!((seconds.audio_ms, seconds.total_tokens), (12_500, 0));
    let image = r#"{"usage":{"input_tokens":5,"input_tokens_details":{"image_tokens":2},"output_tokens":9,
        "output_tokens_details":{"image_tokens":9}}}"#;
    let image = read(Reader::json(), image).0.unwrap();
    assert_eq!(
        (
            image.input_image_tokens,
            image.output_image_tokens,
            image.total_tokens
        ),
        (2, 9, 14)
    );
    let embedding =
        r#"{"data":[{"embedding":[0.1,-2e3]}],"usage":{"prompt_tokens":8,"total_tokens":8}}"#;
    assert_eq!(read(Reader::json(), embedding).0.unwrap().input_tokens, 8);
    let run = Reader::json().with_id_field("thread_id");
    assert_eq!(
        read(run, r#"{"id":"run_1","thread_id":"thread_1"}"#)
            .1
            .as_deref(),
        Some("thread_1")
    );
}

/// The further ids that an answer tells of, however it is cut.
#[track_caller]
fn told(method: &str, path: &str, events: bool, text: &str) -> Vec<String> {
    let tells = &operation::find(method, path).unwrap().operation.tells;
    let read = |cut: usize| {
        let reader = if events {
            Reader::sse()
        } else {
            Reader::json()
        };
        let mut reader = reader.with_tells(tells);
        reader.feed(&text.as_bytes()[..cut]);
        reader.feed(&text.as_bytes()[cut..]);
        reader.told().iter().map(|id| id.to_string()).collect()
    };
    let whole: Vec<String> = read(text.len());
    for cut in 0..text.len() {
        assert_eq!(read(cut), whole, "cut at {cut}");
    }
    whole
}

#[test]
fn an_answer_tells_of_what_else_its_credential_has() {
    let none: [&str; 0] = [];
    let batch = r#"{"id":"batch_1","metadata":{"output_file_id":"no","x":{"error_file_id":"no"}},"errors":[{"output_file_id":"no"}],
        "input_file_id":"no","output_file_id":"file-\u006fut","error_file_id":null,"request_counts":{"total":1}}"#;
    for path in ["/v1/batches/batch_1", "/v1/batches/batch_1/cancel"] {
        let method = if path.ends_with("l") { "POST" } else { "GET" };
        assert_eq!(told(method, path, false, batch), ["file-out"]);
    }
    assert_eq!(told("GET", "/v1/files/file-1", false, batch), none);
    let list = format!(r#"{{"object":"list","data":[{batch}]}}"#);
    assert_eq!(told("GET", "/v1/batches", false, &list), none);
    let job = r#"{"id":"ftjob-1","result_files":["file-a","file-b","file-a",7,["no"],{"result_files":["no"]}],"training_file":"no"}"#;
    assert_eq!(
        told("GET", "/v1/fine_tuning/jobs/ftjob-1", false, job),
        ["file-a", "file-b"]
    );
    let upload = r#"{"id":"upload_1","status":"completed","file":{"id":"file-whole"}}"#;
    let complete = "/v1/uploads/upload_1/complete";
    assert_eq!(told("POST", complete, false, upload), ["file-whole"]);
    let annotation =
        r#"{"type":"container_file_citation","container_id":"cntr_2","file_id":"cfile_1"}"#;
    let response = format!(
        r#"{{"id":"resp_1","tools":[{{"container":"no","container_id":"no"}}],"output":[
        {{"type":"code_interpreter_call","container_id":"cntr_1","outputs":[{{"container_id":"no"}}]}},
        {{"type":"message","content":[{{"type":"output_text","text":"\"container_id\":\"no\"","annotations":[{annotation}]}}]}},
        {{"type":"shell_call","environment":{{"type":"container_reference","container_id":"cntr_3"}}}}],
        "usage":{{"input_tokens":5,"output_tokens":3}}}}"#
    );
    let ids = ["cntr_1", "cntr_2", "cntr_3"];
    assert_eq!(told("POST", "/v1/responses", false, &response), ids);
    let flat = response.replace('\n', "");
    let stream = format!(
        "data: {{\"type\":\"response.output_item.added\",\"item\":{{\"container_id\":\"cntr_1\"}}}}\n\n\
         data: {{\"type\":\"response.completed\",\"response\":{flat}}}\n\n"
    );
    assert_eq!(told("POST", "/v1/responses", true, &stream), ids);
    let mut reader = Reader::sse().with_tells(
        &operation::find("POST", "/v1/responses")
            .unwrap()
            .operation
            .tells,
    );
    reader.feed(stream.as_bytes());
    assert_eq!(
        (reader.usage().unwrap().total_tokens, reader.end()),
        (8, StreamEnd::Clean),
        "what is looked for besides hides nothing"
    );
    let many: Vec<String> = (0..100).map(|at| format!("\"file-{at}\"")).collect();
    let many = format!(r#"{{"result_files":[{}]}}"#, many.join(","));
    assert_eq!(
        told("GET", "/v1/fine_tuning/jobs/j", false, &many).len(),
        32
    );
}

fn chunk(index: u8, reason: &str) -> String {
    let choice = format!(
        r#"{{"index":{index},"delta":{{"content":"\"usage\""}},"finish_reason":{reason}}}"#
    );
    format!(
        "data: {{\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"choices\":[{choice}],\"usage\":null}}\n\n"
    )
}

#[test]
fn a_cut_stream_is_told_from_a_clean_one() {
    let begun = chunk(0, "null").repeat(3);
    assert_eq!(read(Reader::sse(), &begun).2, StreamEnd::Cut);
    assert_eq!(
        read(Reader::sse(), &format!("{begun}{}", chunk(0, "\"stop\""))).2,
        StreamEnd::Clean
    );
    assert_eq!(
        read(Reader::sse(), &format!("{begun}data: [DONE]\n\n")).2,
        StreamEnd::Clean
    );
    assert_eq!(
        read(Reader::sse(), &format!("{begun}data: [DON")).2,
        StreamEnd::Cut
    );
    assert_eq!(
        read(Reader::sse(), &format!("{begun}data: [DONE]]\n\n")).2,
        StreamEnd::Cut
    );
    let mut failed = Reader::sse();
    failed.feed(b"data: {\"error\":{\"message\":\"x\"}}\n\n");
    assert!(failed.failed());
    assert_eq!(failed.end(), StreamEnd::Clean);
    let mut fine = Reader::json();
    fine.feed(br#"{"id":"resp_1","error":null}"#);
    assert!(!fine.failed());
}

#[test]
fn each_choice_must_finish() {
    let both = [
        chunk(0, "null"),
        chunk(1, "null"),
        chunk(0, "null"),
        chunk(0, "\"stop\""),
    ]
    .concat();
    assert_eq!(read(Reader::sse(), &both).2, StreamEnd::Cut);
    assert_eq!(
        read(Reader::sse(), &format!("{both}{}", chunk(1, "\"length\""))).2,
        StreamEnd::Clean
    );
}

#[test]
fn a_responses_stream_tells_its_id_usage_and_end() {
    let created = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\"}}\n\n";
    assert_eq!(
        read(Reader::sse(), created),
        (None, Some("resp_1".into()), StreamEnd::Cut)
    );
    for (kind, failed) in [
        ("completed", false),
        ("incomplete", false),
        ("failed", true),
    ] {
        let last = json!({"type": format!("response.{kind}"),
            "response": {"id": "resp_1", "output": [{"usage": {}}], "usage": {"input_tokens": 5, "output_tokens": 3}}});
        let mut reader = Reader::sse();
        reader.feed(format!("{created}data: {last}\n\n").as_bytes());
        assert_eq!((reader.end(), reader.failed()), (StreamEnd::Clean, failed));
        assert_eq!(reader.usage().unwrap().total_tokens, 8);
    }
}

fn through(mut rename: Rename, parts: &[&'static str]) -> (String, usize) {
    let mut out = Vec::new();
    for part in parts {
        rename.feed(Bytes::from_static(part.as_bytes()), &mut out);
    }
    (String::from_utf8(out.concat()).unwrap(), out.len())
}

#[test]
fn an_answer_shows_the_public_name() {
    let parts = [
        "{\"id\":1, \"model\" : \"gp",
        "t-4o-2024\" ,\"choices\":[{\"model\":\"in\"}]}",
    ];
    let expected = "{\"id\":1, \"model\" : \"fast\" ,\"choices\":[{\"model\":\"in\"}]}";
    assert_eq!(through(Rename::json("fast"), &parts).0, expected);
    let nested = ["{\"type\":\"x\",\"response\":{\"id\":\"r\",\"model\":\"old\"},\"n\":1}"];
    assert!(
        through(Rename::json("fa\"st"), &nested)
            .0
            .contains("\"model\":\"fa\\\"st\"},\"n\":1}")
    );
    let stream = [
        "data: {\"id\":\"c\",\"model\":\"old\",\"x\":1}\n\ndata: {\"type\":\"y\"}\n\n",
        "data: [DONE]\n\n",
    ];
    let (text, slices) = through(Rename::sse("new"), &stream);
    assert_eq!(
        text,
        "data: {\"id\":\"c\",\"model\":\"new\",\"x\":1}\n\ndata: {\"type\":\"y\"}\n\ndata: [DONE]\n\n"
    );
    assert_eq!(slices, 4, "untouched chunks leave as they came");
}

#[test]
fn errors_have_each_dialects_shape() {
    let error = ErrorText {
        status: 429,
        message: "a \"b\"\n\u{1}ü",
        kind: "rate_limit",
        param: None,
        code: Some("c"),
    };
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let text = error.message;
    assert_eq!(
        parse(&error::body(Dialect::OpenAi, &error)),
        json!({"error": {"message": text, "type": "rate_limit", "param": null, "code": "c"}})
    );
    assert_eq!(
        parse(&error::body(Dialect::Anthropic, &error)),
        json!({"type": "error", "error": {"type": "rate_limit_error", "message": text}})
    );
    assert_eq!(
        parse(&error::body(Dialect::Gemini, &error)),
        json!({"error": {"code": 429, "message": text, "status": "RESOURCE_EXHAUSTED"}})
    );
    let chunk = error::sse_chunk(Dialect::Anthropic, &error);
    let mut shown = 0;
    Events::new(1 << 10).feed(&chunk, |event| {
        assert_eq!((event.name, event.end), (&b"error"[..], chunk.len()));
        assert_eq!(parse(event.data.unwrap())["type"], "error");
        shown += 1;
    });
    assert_eq!(shown, 1);
}

#[test]
fn an_event_of_our_own_fits_only_between_events() {
    let mut lines = Lines::new();
    let mut between = |text: &str| {
        let mut at = 0;
        while lines.next(text.as_bytes(), &mut at).is_some() {}
        lines.between_events()
    };
    assert!(
        between("")
            && !between("data: x")
            && !between("\n")
            && between("\n")
            && !between(":")
            && between("\r\n\r")
    );
}

#[test]
fn an_event_over_the_limit_is_counted_but_not_shown() {
    let mut sizes = Vec::new();
    let text = format!("data: {}\n\ndata: small\n\n", "x".repeat(200));
    Events::new(100).feed(text.as_bytes(), |event| {
        sizes.push(event.data.map(<[u8]>::len))
    });
    assert_eq!(sizes, [None, Some(5)]);
}
