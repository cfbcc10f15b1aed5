//! What an answer shows: usage, its end, the public name, errors in each dialect.

use bytes::Bytes;
use serde_json::{Value, json};
use vector_proto::dialect::Dialect;
use vector_proto::dialect::error::{self, ErrorText};
use vector_proto::dialect::operation;
use vector_proto::dialect::rename::Rename;
use vector_proto::dialect::sse::{Events, Lines};
use vector_proto::dialect::usage::{Reader, StreamEnd, Usage};

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
