//! Everything that a stranger may send: each gets a clear error or a closed connection, and nothing else suffers.

use super::{
    world::{World, config, refused},
    *,
};

#[tokio::test]
async fn smuggling_forms_get_400_and_no_second_request_is_served() {
    let world = World::start().await;
    let smuggled = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n";
    let auth = format!("Authorization: Bearer {}\r\n", world.key);
    for head in [
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n",
        "POST /v1/chat/completions HTTP/1.1\nHost: x\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\nX-A: b\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nHost: x\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nHost: y\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\n",
        "POST http://y/v1/chat/completions HTTP/1.1\r\nHost: x\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent_Length: 4\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A : b\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: b\r\n folded\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n",
        "POST /v1/chat/completions HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551616\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: b\rContent-Length: 4\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: b\r\r\n",
        "POST /v1/chat/completions\rX HTTP/1.1\r\nHost: x\r\n",
    ] {
        let answer = world
            .raw(format!(
                "{head}{auth}Connection: close\r\n\r\n{smuggled}{smuggled}"
            ))
            .await;
        refused(&answer, 400, "bad_request_head");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{head}: {answer}");
    }
}

/// The connection is one that a client would keep.
#[tokio::test]
async fn a_body_framed_wrongly_is_the_last_of_its_connection() {
    let mut world = World::start().await;
    let auth = format!("Authorization: Bearer {}\r\n", world.key);
    let smuggled = format!("GET /v1/models HTTP/1.1\r\nHost: x\r\n{auth}\r\n");
    let chat = r#"{"model":"echo"}"#;
    let long = "x".repeat(20_000);
    let huge = "f".repeat(17);
    for body in [
        format!("10\n{chat}\r\n0\r\n\r\n"),
        format!("10;x\n{chat}\r\n0\r\n\r\n"),
        format!("10\rx\n{chat}\r\n0\r\n\r\n"),
        format!("10\r\n{chat}\n0\r\n\r\n"),
        format!("10\r\n{chat}\r\n0\n\n"),
        format!("0x10\r\n{chat}\r\n0\r\n\r\n"),
        format!("+10\r\n{chat}\r\n0\r\n\r\n"),
        format!(" 10\r\n{chat}\r\n0\r\n\r\n"),
        format!("{huge}\r\n{chat}\r\n0\r\n\r\n"),
        format!("-1\r\n{chat}\r\n0\r\n\r\n"),
        // More than its size says.
        format!("10\r\n{chat}xx\r\n0\r\n\r\n"),
        format!("10\r\n{chat}{smuggled}0\r\n\r\n"),
        format!("10;{long}\r\n{chat}\r\n0\r\n\r\n"),
        // Behind trailers that end for one parser and not for the other.
        format!("10\r\n{chat}\r\n0\r\nX: y\n\n{smuggled}"),
        format!("10\r\n{chat}\r\n0\r\nX: y\rz\r\n\r\n"),
        format!("10\r\n{chat}\r\n0\r\n\n"),
        format!("10\r\n{chat}\r\n0\r\nX\r\n\r\n"),
    ] {
        let answer = world
            .raw(format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n{auth}Content-Type: application/json\r\n\
                 Transfer-Encoding: chunked\r\n\r\n{body}{smuggled}{smuggled}"
            ))
            .await;
        refused(&answer, 400, "invalid_body");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{body}: {answer}");
        assert!(world.events.try_recv().is_err(), "{body}: nobody got it");
    }
}

/// A request over HTTP/2, byte by byte, since no client would send it.
fn http2(headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let [.., a, b, c] = payload.len().to_be_bytes();
        [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let mut block = Vec::new();
    for (name, value) in headers {
        // A literal that is not indexed, with a new name.
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &block),
        frame(0, 1, 1, body.as_bytes()),
    ]
    .concat()
}

/// The first frame that says what came of the request: its kind, and its payload.
async fn outcome(socket: &mut TcpStream) -> (u8, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        socket.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).await.unwrap();
        // HEADERS, RST_STREAM or GOAWAY.
        if matches!(head[3], 1 | 3 | 7) {
            return (head[3], payload);
        }
    }
}

#[tokio::test]
async fn smuggling_forms_over_http2_get_nowhere() {
    let mut world = World::start().await;
    let auth = format!("Bearer {}", world.key);
    let good = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "x"),
        (":path", "/v1/chat/completions"),
        ("authorization", auth.as_str()),
        ("content-type", "application/json"),
    ];
    let body = r#"{"model":"echo"}"#;
    // Literals of HPACK's static table: `:status` 200 and 400.
    let (ok, bad) = (0x88, 0x8c);
    let mut socket = world.connect().await;
    let sized = [&good[..], &[("content-length", "16"), ("te", "trailers")]].concat();
    socket.write_all(&http2(&sized, body)).await.unwrap();
    let (kind, payload) = outcome(&mut socket).await;
    assert_eq!((kind, payload[0]), (1, ok));
    world.events.recv().await.unwrap();
    for form in [
        &[("content-length", "5")][..],
        &[("content-length", "50")],
        &[("content-length", "+16")],
        &[("content-length", "16"), ("content-length", "16")],
        &[("connection", "close")],
        &[("connection", "x-a"), ("x-a", "b")],
        &[("keep-alive", "timeout=5")],
        &[("proxy-connection", "keep-alive")],
        &[("transfer-encoding", "chunked")],
        &[("te", "gzip")],
        &[("upgrade", "h2c")],
        &[("X-A", "b")],
        &[("x-a", "b\r\nx-b: c")],
        &[("x a", "b")],
        &[("host", "y")],
        &[(":path", "/v1/models")],
    ] {
        let mut socket = world.connect().await;
        let bytes = http2(&[&good[..], form].concat(), body);
        socket.write_all(&bytes).await.unwrap();
        let (kind, payload) = outcome(&mut socket).await;
        assert!(kind != 1 || payload[0] == bad, "{form:?}: {payload:x?}");
        assert!(world.events.try_recv().is_err(), "{form:?}: nobody got it");
    }
}

#[tokio::test]
async fn garbage_and_too_large_heads_are_refused() {
    let world = World::start().await;
    refused(
        &world.raw("\u{1}\u{2}\u{3}\r\n\r\n").await,
        400,
        "bad_request_head",
    );
    let many = "X-A: b\r\n".repeat(120);
    let answer = world
        .raw(format!("GET /v1/models HTTP/1.1\r\nHost: x\r\n{many}\r\n"))
        .await;
    refused(&answer, 431, "headers_too_large");
    let long = format!(
        "GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: {}\r\n\r\n",
        "b".repeat(40 << 10)
    );
    refused(&world.raw(long).await, 431, "headers_too_large");
}

#[tokio::test]
async fn a_slow_head_is_not_waited_for() {
    let world = World::with(config::Ingress {
        header_read: Duration::from_millis(50),
        ..config()
    })
    .await;
    for begin in ["", "GET /v1/mod", "GET /v1/models HTTP/1.1\r\nHost: x\r\n"] {
        let answer = world.raw(begin).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_slow_body_is_not_waited_for() {
    let world = World::with(config::Ingress {
        body_idle: Duration::from_millis(50),
        ..config()
    })
    .await;
    let head = world.head("POST", "/v1/chat/completions");
    let answer = world
        .raw(format!(
            "{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{\"mod"
        ))
        .await;
    refused(&answer, 408, "request_timeout");
}

#[tokio::test]
async fn a_body_has_no_more_time_than_its_request() {
    let world = World::with(config::Ingress {
        request: Duration::from_millis(50),
        ..config()
    })
    .await;
    let head = world.head("POST", "/v1/chat/completions");
    let large = format!("{{\"model\":\"echo\",\"x\":\"{}", "y".repeat(1 << 20));
    for (more, begin) in [("", "{\"mod"), ("Idempotency-Key: a\r\n", &*large)] {
        let answer = world
            .raw(format!(
                "{head}{more}Content-Type: application/json\r\nContent-Length: 2000000\r\n\r\n{begin}"
            ))
            .await;
        refused(&answer, 408, "request_timeout");
        assert!(
            answer.contains("within the time that the request has"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn keys_are_asked_for_and_checked() {
    let world = World::start().await;
    let with = |line: &str| {
        format!("GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{line}\r\n")
    };
    refused(&world.raw(with("")).await, 401, "missing_api_key");
    refused(
        &world
            .raw(with("Authorization: Bearer sk-nonsense\r\n"))
            .await,
        401,
        "invalid_api_key",
    );
    let stranger = ApiKey::assemble("stranger00", &"t".repeat(ApiKey::SECRET_CHARS));
    let answer = world
        .raw(with(&format!("Authorization: Bearer {stranger}\r\n")))
        .await;
    refused(&answer, 401, "invalid_api_key");
    assert!(!answer.contains(&stranger), "a key is never repeated");
}

#[tokio::test]
async fn bodies_that_are_not_what_they_say_are_refused() {
    let world = World::start().await;
    let post = |body: &str| world.post("/v1/chat/completions", body);
    refused(
        &world.raw(post(r#"{"model":"echo","#)).await,
        400,
        "invalid_body",
    );
    refused(
        &world.raw(post(r#"{"model":"echo"]"#)).await,
        400,
        "invalid_body",
    );
    refused(&world.raw(post("")).await, 400, "invalid_body");
    refused(&world.raw(post("[]")).await, 400, "invalid_body");
    refused(
        &world.raw(post(r#"{"model":"a","model":"b"}"#)).await,
        400,
        "invalid_body",
    );
    refused(
        &world.raw(post(r#"{"model":7}"#)).await,
        400,
        "invalid_body",
    );
    refused(
        &world.raw(post(r#"{"messages":[]}"#)).await,
        400,
        "model_missing",
    );
    let typed = |kind: &str, target: &str, body: &str| {
        let head = world.head("POST", target);
        format!(
            "{head}Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let answer = world
        .raw(typed("text/plain", "/v1/chat/completions", "{}"))
        .await;
    refused(&answer, 415, "unsupported_content_type");
    let answer = world
        .raw(typed("application/json", "/v1/audio/transcriptions", "{}"))
        .await;
    refused(&answer, 415, "unsupported_content_type");
    let cut = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\necho";
    let answer = world
        .raw(typed(
            "multipart/form-data; boundary=b",
            "/v1/audio/transcriptions",
            cut,
        ))
        .await;
    refused(&answer, 400, "invalid_body");
    let answer = world
        .raw(typed(
            "multipart/form-data",
            "/v1/audio/transcriptions",
            cut,
        ))
        .await;
    refused(&answer, 400, "invalid_body");
    let head = world.head("POST", "/v1/chat/completions");
    let chunked =
        format!("{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    let answer = world.raw(chunked).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_above_the_limit_is_refused_whether_announced_or_not() {
    let world = World::with(config::Ingress {
        body_bytes_max: 1000,
        ..config()
    })
    .await;
    let big = format!(r#"{{"model":"echo","x":"{}"}}"#, "y".repeat(2000));
    refused(
        &world.raw(world.post("/v1/chat/completions", &big)).await,
        413,
        "request_too_large",
    );
    let head = world.head("POST", "/v1/chat/completions");
    let chunked = format!(
        "{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{big}\r\n0\r\n\r\n",
        big.len()
    );
    refused(&world.raw(chunked).await, 413, "request_too_large");
}

#[tokio::test]
async fn unknown_paths_methods_models_and_objects_are_named() {
    let world = World::start().await;
    let get = |target: &str| format!("{}\r\n", world.head("GET", target));
    refused(&world.raw(get("/v1/nothing")).await, 404, "unknown_url");
    refused(
        &world.raw(get("/v1/files/../models")).await,
        404,
        "unknown_url",
    );
    refused(
        &world.raw(get("/v1/embeddings")).await,
        405,
        "method_not_allowed",
    );
    refused(
        &world.raw(get("/v1/files/file-1")).await,
        404,
        "object_not_found",
    );
    refused(&world.raw(get("/v1/files")).await, 503, "no_route");
    refused(
        &world.raw(get("/v1/realtime?model=m")).await,
        400,
        "bad_websocket_upgrade",
    );
    let body = r#"{"model":"echo","previous_response_id":"resp_of_somebody_else"}"#;
    refused(
        &world.raw(world.post("/v1/responses", body)).await,
        404,
        "object_not_found",
    );
}

#[tokio::test]
async fn a_limited_key_is_told_its_limits() {
    let world = World::start().await;
    let chat = |model: &str| {
        let body = format!(r#"{{"model":"{model}"}}"#);
        world
            .post("/v1/chat/completions", &body)
            .replace(&world.key, &world.limited_key)
    };
    refused(&world.raw(chat("other")).await, 403, "model_not_allowed");
    let image = world
        .post("/v1/images/generations", "{}")
        .replace(&world.key, &world.limited_key);
    refused(&world.raw(image).await, 400, "model_missing");
    let answer = world.raw(chat("echo")).await;
    assert!(
        answer.contains("x-ratelimit-remaining-requests: 0"),
        "{answer}"
    );
    let answer = world.raw(chat("echo")).await;
    refused(&answer, 429, "rate_limit_exceeded");
    assert!(answer.contains("\r\nretry-after: 30\r\n"), "{answer}");
}

#[tokio::test]
async fn a_key_for_certain_models_makes_no_call_whose_model_is_not_seen() {
    let mut world = World::start().await;
    let limited = |request: String| request.replace(&world.key, &world.limited_key);
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for (request, operation) in [
        (
            world.head("GET", "/v1/responses") + upgrade,
            "responses.connect",
        ),
        (
            world.post("/v1/batches", r#"{"input_file_id":"file-1"}"#),
            "batches.create",
        ),
        (
            world.post("/v1/batches?model=echo", r#"{"model":"echo"}"#),
            "batches.create",
        ),
        (world.post("/v1/videos/video_1/remix", "{}"), "videos.remix"),
    ] {
        let answer = world.raw(limited(request)).await;
        refused(&answer, 403, "model_not_allowed");
        assert!(answer.contains(&format!("`{operation}`")), "{answer}");
    }
    // Nothing of its two requests a minute is used up by then. What stores something is none of it,
    let file = limited(world.post("/v1/files", "{}"));
    refused(&world.raw(file).await, 415, "unsupported_content_type");
    // and no object stands for a model.
    let body = r#"{"previous_response_id":"resp_1"}"#;
    let leans = limited(world.post("/v1/responses", body));
    refused(&world.raw(leans).await, 400, "model_missing");
    assert!(world.events.try_recv().is_err(), "nobody got anything");
    // Any other key may.
    let batch = world.post("/v1/batches", "{}");
    refused(&world.raw(batch).await, 503, "no_route");
}

#[tokio::test]
async fn a_refused_upgrade_ends_the_connection() {
    let world = World::start().await;
    let auth = format!("Authorization: Bearer {}\r\n", world.key);
    let second = "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n";
    for (head, status) in [
        (format!("GET /v1/models HTTP/1.1\r\n{auth}"), 200),
        ("GET /v1/models HTTP/1.1\r\n".into(), 401),
        // These are answered before anybody asks for a key.
        ("GET /.well-known/vector-edges HTTP/1.1\r\n".into(), 200),
        ("POST /.well-known/vector-edges HTTP/1.1\r\n".into(), 405),
        (
            "OPTIONS /v1/models HTTP/1.1\r\nAccess-Control-Request-Method: GET\r\n".into(),
            204,
        ),
    ] {
        let answer = world
            .raw(format!(
                "{head}Host: x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n{second}"
            ))
            .await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} "))
                && answer.contains("connection: close"),
            "{head}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{head}: {answer}");
    }
}
