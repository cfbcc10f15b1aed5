//! What a client gets of what an egress sends, whole or broken.

use super::{
    world::{World, config, refused},
    *,
};

#[tokio::test]
async fn an_answer_arrives_as_it_was_sent() {
    let mut world = World::start().await;
    let answer = world.chat("echo").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.ends_with("\r\n\r\n{\"model\":\"echo\",\"messages\":[]}"),
        "{answer}"
    );
    for wanted in [
        "x-upstream-request-id: req_upstream",
        "x-vector-egress: egress-",
        "x-vector-attempts: 1",
        "x-request-id: 0",
    ] {
        assert!(answer.contains(wanted), "{wanted} in {answer}");
    }
    assert!(!answer.contains("set-cookie"), "{answer}");
    let event = world.events.recv().await.unwrap();
    assert!(
        event.ends_with("chat.completions.create /chat/completions echo"),
        "{event}"
    );
}

#[tokio::test]
async fn a_public_name_reaches_the_egress_as_the_upstreams() {
    let mut world = World::start().await;
    world.chat("public").await;
    assert!(
        world
            .events
            .recv()
            .await
            .unwrap()
            .ends_with("/chat/completions inner redundant")
    );
}

#[tokio::test]
async fn a_stream_arrives_with_its_headers() {
    let world = World::start().await;
    let answer = world.chat("sse").await;
    for wanted in [
        "x-accel-buffering: no",
        "cache-control: no-cache",
        "data: {\"n\":2}\n\n",
        "data: [DONE]\n\n",
    ] {
        assert!(answer.contains(wanted), "{wanted} in {answer}");
    }
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_cut_stream_ends_with_an_error_event_and_no_done() {
    let world = World::start().await;
    let answer = world.chat("break").await;
    assert!(answer.contains("data: {\"n\":0}\n\n"), "{answer}");
    assert!(
        answer.contains("data: {\"error\":{\"message\":"),
        "{answer}"
    );
    assert!(answer.contains("\"provider_broke\""), "{answer}");
    assert!(!answer.contains("[DONE]"), "{answer}");
    let answer = world.chat("break-open").await;
    assert!(
        answer.contains("\n\ndata: {\"error\":"),
        "an open event is closed first: {answer}"
    );
}

#[tokio::test]
async fn a_cut_answer_of_known_length_never_looks_whole() {
    let world = World::start().await;
    let answer = world.chat("break-json").await;
    assert!(
        !answer.contains("1234"),
        "the last bytes must not arrive: {answer}"
    );
}

#[tokio::test]
async fn the_next_candidate_is_asked_and_the_last_refusal_passed_on() {
    let mut world = World::start().await;
    let answer = world.chat("refuse-first").await;
    let first = world.events.recv().await.unwrap();
    let second = world.events.recv().await.unwrap();
    assert_ne!(
        first.split_once(' ').unwrap().0,
        second.split_once(' ').unwrap().0,
        "two egress nodes"
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("x-vector-attempts: 2"), "{answer}");
    let answer = world.chat("refuse").await;
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(
        answer.contains("slow down") && answer.contains("retry-after: 7\r\n"),
        "{answer}"
    );
    assert!(answer.contains("x-vector-attempts: 2"), "{answer}");
}

#[tokio::test]
async fn what_was_accepted_and_lost_is_not_sent_twice() {
    let mut world = World::start().await;
    refused(&world.chat("lost").await, 502, "path_broken");
    world.events.recv().await.unwrap();
    assert!(world.events.try_recv().is_err(), "one attempt only");
}

#[tokio::test]
async fn a_client_that_leaves_cancels() {
    let mut world = World::start().await;
    for model in ["hang", "hang-stream"] {
        let mut socket = world.connect().await;
        let body = format!(r#"{{"model":"{model}"}}"#);
        socket
            .write_all(world.post("/v1/chat/completions", &body).as_bytes())
            .await
            .unwrap();
        if model == "hang-stream" {
            let mut first = [0; 15];
            socket.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200 OK");
        } else {
            while world.events.recv().await.unwrap() != "hanging" {}
        }
        drop(socket);
        while world.events.recv().await.unwrap() != "cancelled" {}
    }
}

#[tokio::test]
async fn a_silent_stream_gives_signs_of_life() {
    let world = World::with(config::Ingress {
        ping: Duration::from_millis(20),
        ..config()
    })
    .await;
    let mut socket = world.connect().await;
    socket
        .write_all(
            world
                .post("/v1/chat/completions", r#"{"model":"hang-stream"}"#)
                .as_bytes(),
        )
        .await
        .unwrap();
    let mut out = String::new();
    let mut buffer = [0; 1024];
    while out.matches(": ping\n\n").count() < 2 {
        let read = socket.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "{out}");
        out.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
}

#[tokio::test]
async fn models_are_listed_for_the_key_that_asks() {
    let world = World::start().await;
    let answer = world
        .raw(format!("{}\r\n", world.head("GET", "/v1/models")))
        .await;
    let body: serde_json::Value =
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let ids: Vec<_> = body["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["echo", "house/voice", "public", "wide"]);
    let limited = world
        .head("GET", "/v1/models")
        .replace(&world.key, &world.limited_key);
    let answer = world.raw(format!("{limited}\r\n")).await;
    assert!(
        answer.contains("\"echo\"") && !answer.contains("\"public\""),
        "{answer}"
    );
    let limited = world
        .head("GET", "/v1/models/public")
        .replace(&world.key, &world.limited_key);
    refused(
        &world.raw(format!("{limited}\r\n")).await,
        404,
        "model_not_found",
    );
}

#[tokio::test]
async fn an_object_is_found_again() {
    let mut world = World::start().await;
    world
        .raw(world.post("/v1/responses", r#"{"model":"echo"}"#))
        .await;
    let answer = world
        .raw(format!("{}\r\n", world.head("GET", "/v1/responses/resp_1")))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    world.events.recv().await.unwrap();
    assert!(
        world
            .events
            .recv()
            .await
            .unwrap()
            .contains("responses.retrieve /responses/resp_1")
    );
}

/// The request for a WebSocket.
fn upgrade(model: &str, key: &str) -> String {
    format!(
        "GET /v1/realtime?model={model} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{key}\r\n\r\n"
    )
}

#[tokio::test]
async fn a_conversation_counts_for_the_keys_tokens_while_it_lasts() {
    let world = World::start().await;
    let mut socket = world.connect().await;
    let request = upgrade("socket-told", &world.metered_key);
    socket.write_all(request.as_bytes()).await.unwrap();
    let (mut seen, mut part) = (Vec::new(), [0; 1024]);
    while !seen.ends_with(b"}}}") {
        let count = socket.read(&mut part).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&part[..count]);
    }
    let request = world.post("/v1/chat/completions", r#"{"model":"echo","messages":[]}"#);
    let answer = world
        .raw(request.replace(&world.key, &world.metered_key))
        .await;
    refused(&answer, 429, "tokens_limit_exceeded");
}

#[tokio::test]
async fn a_websocket_is_spliced() {
    let world = World::start().await;
    let mut socket = world.connect().await;
    let request = upgrade("socket", &world.key);
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut out = String::new();
    let mut buffer = [0; 1024];
    while !out.contains("\r\n\r\n") {
        let read = socket.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "{out}");
        out.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert!(out.starts_with("HTTP/1.1 101"), "{out}");
    assert!(out.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{out}");
    assert!(
        out.contains("sec-websocket-protocol: realtime\r\n"),
        "{out}"
    );
    for message in [&b"any bytes\n"[..], &[0x81, 0, b'\n', b'\n']] {
        socket.write_all(message).await.unwrap();
        let mut back = vec![0; message.len()];
        socket.read_exact(&mut back).await.unwrap();
        assert_eq!(back, message);
    }
    socket.shutdown().await.unwrap();
    assert_eq!(
        socket.read(&mut buffer).await.unwrap(),
        0,
        "the other side ends too"
    );
}

#[tokio::test]
async fn draining_lets_what_runs_finish() {
    let mut world = World::start().await;
    let mut socket = world.connect().await;
    socket
        .write_all(
            world
                .post("/v1/chat/completions", r#"{"model":"hang"}"#)
                .as_bytes(),
        )
        .await
        .unwrap();
    while world.events.recv().await.unwrap() != "hanging" {}
    world.drain.cancel();
    let drained = world.handle.drained();
    tokio::pin!(drained);
    tokio::select! {
        biased;
        () = &mut drained => panic!("something still runs"),
        () = tokio::task::yield_now() => {}
    }
    drop(socket);
    drained.await;
}

#[tokio::test]
async fn anybody_may_ask_which_edges_there_are() {
    let world = World::start().await;
    let ask = |method: &str| {
        format!(
            "{method} /.well-known/vector-edges HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
    };
    let answer = world.raw(ask("GET")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for wanted in [
        "content-type: application/json",
        "access-control-allow-origin: *",
        r#""region":"eu""#,
        r#""load":0"#,
    ] {
        assert!(answer.contains(wanted), "{wanted} in {answer}");
    }
    let refused = world.raw(ask("POST")).await;
    assert!(refused.starts_with("HTTP/1.1 405 "), "{refused}");
}

#[tokio::test]
async fn a_stream_that_its_client_leaves_counts_for_the_keys_tokens() {
    let mut world = World::start().await;
    let request = world
        .post(
            "/v1/chat/completions",
            r#"{"model":"talk-stream","messages":[]}"#,
        )
        .replace(&world.key, &world.metered_key);
    let mut socket = world.connect().await;
    socket.write_all(request.as_bytes()).await.unwrap();
    let (mut seen, mut part) = (Vec::new(), [0; 4096]);
    while !seen.ends_with(b"data: {}\n\n\r\n") {
        let count = socket.read(&mut part).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&part[..count]);
    }
    drop(socket);
    assert!(world.events.recv().await.unwrap().ends_with("talk-stream"));
    assert_eq!(world.events.recv().await.unwrap(), "cancelled");
    let answer = world.raw(request).await;
    refused(&answer, 429, "tokens_limit_exceeded");
}

/// The answer to a request on a connection that is to be kept, with its end if it was not.
async fn kept_open(world: &World, socket: &mut TcpStream) -> (String, bool) {
    let head = world
        .head("GET", "/v1/models")
        .replace("Connection: close\r\n", "");
    socket
        .write_all(format!("{head}\r\n").as_bytes())
        .await
        .unwrap();
    let (mut seen, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let count = socket.read(&mut part).await.unwrap();
        seen.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        if count == 0 {
            return (text, true);
        }
        let closes = text.contains("connection: close\r\n");
        if !closes && text.ends_with('}') {
            return (text, false);
        }
    }
}

#[tokio::test]
async fn a_drained_ingress_serves_everybody_and_has_them_come_anew() {
    let world = World::start().await;
    let mut socket = world.connect().await;
    let (answer, ended) = kept_open(&world, &mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && !ended, "{answer}");
    world.handle.set_draining(true);
    let (answer, ended) = kept_open(&world, &mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && ended, "{answer}");
    let mut socket = world.connect().await;
    let (answer, ended) = kept_open(&world, &mut socket).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && ended, "{answer}");
    world.handle.set_draining(false);
    let mut socket = world.connect().await;
    for _ in 0..2 {
        let (answer, ended) = kept_open(&world, &mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && !ended, "{answer}");
    }
}

#[tokio::test]
async fn who_came_before_the_door_was_closed_is_served() {
    let world = World::start().await;
    // All of them are in the kernel's queue, and have said nothing, when the door is told to close.
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(std::net::TcpStream::connect(world.address).unwrap());
    }
    world.handle.set_draining(true);
    world.drain.cancel();
    for socket in sockets {
        socket.set_nonblocking(true).unwrap();
        let mut socket = TcpStream::from_std(socket).unwrap();
        let (answer, ended) = kept_open(&world, &mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 200 ") && ended, "{answer}");
    }
    world.handle.drained().await;
}

#[tokio::test]
async fn who_comes_before_the_first_link_waits_for_it() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let world = World::unlinked(config(), Arc::clone(&gate)).await;
    let open = async {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        gate.notify_one();
    };
    let (answer, ()) = tokio::join!(world.chat("echo"), open);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
