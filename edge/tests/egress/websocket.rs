//! A WebSocket joined to the provider's, with our key, and metered in passing.

use super::*;

/// Says every frame of five bytes back; when the client is done, two responses end.
async fn converse(caller: &mut Caller) {
    let mut frame = [0; 5];
    while caller.socket.read_exact(&mut frame).await.is_ok() {
        caller.socket.write_all(&frame).await.unwrap();
    }
    for (input, output) in [(20, 3), (30, 4)] {
        let message = format!(
            r#"{{"type":"response.done","response":{{"usage":{{"input_tokens":{input},"output_tokens":{output}}}}}}}"#
        );
        caller
            .socket
            .write_all(&[0x81, message.len() as u8])
            .await
            .unwrap();
        caller.say(&message).await;
    }
}

/// Answers a handshake as RFC 6455 wants it.
async fn upgrade(caller: &mut Caller, head: &str) {
    use base64::Engine as _;
    let nonce = head
        .lines()
        .find_map(|line| line.strip_prefix("sec-websocket-key: "));
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(nonce.unwrap().as_bytes());
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let accept = base64::engine::general_purpose::STANDARD.encode(hash.finish());
    caller
        .say(&format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-protocol: realtime\r\nsec-websocket-accept: {accept}\r\n\r\n"))
        .await;
}

fn realtime() -> v1::RequestHead {
    let mut request = chat(0);
    request.method = "GET".into();
    request.path = "/realtime?model=gpt-public".into();
    request.operation = "realtime.connect".into();
    request.upstream_model = "up-7".into();
    request.websocket = true;
    request.body_bytes = None;
    request.headers = headers(&[(
        "sec-websocket-protocol",
        "realtime, openai-insecure-api-key.sk-client",
    )]);
    request
}

#[tokio::test]
async fn a_limited_key_is_not_the_end_of_a_handshake() {
    let address = provider(move |_, mut caller: Caller| async move {
        let (head, _) = caller.request().await.unwrap();
        if head.contains("secret-one") {
            return caller.answer(429, "retry-after: 7\r\n", "{}").await;
        }
        upgrade(&mut caller, &head).await;
        converse(&mut caller).await;
    })
    .await;
    let town = Town::new(&url(address), &["one", "two"]).await;
    let open = v1::Open {
        request: Some(realtime()),
        ..v1::Open::default()
    };
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.flush().await.unwrap();
    let head = call.response.head().await.unwrap();
    assert_eq!((head.status, head.credential.as_str()), (101, "two"));
    assert_eq!(head.upstream_attempts, 2);
    let status = town.egress.status();
    assert_eq!(status[0].state(), control::CredentialState::Resting);
}

#[tokio::test]
async fn a_conversation_that_is_left_counts_for_its_key() {
    let address = provider(move |_, mut caller: Caller| async move {
        let (head, _) = caller.request().await.unwrap();
        upgrade(&mut caller, &head).await;
        let message = r#"{"type":"response.done","response":{"usage":{"input_tokens":1900,"output_tokens":100}}}"#;
        let head = [0x81, message.len() as u8];
        caller.socket.write_all(&head).await.unwrap();
        caller.say(message).await;
        // Until it is left.
        let _ = caller.socket.read(&mut [0; 1]).await;
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let limited = control::Credential {
        name: "one".into(),
        provider: "acme".into(),
        secret: "secret-one".into(),
        tokens_per_minute: 1_000,
        ..control::Credential::default()
    };
    town.egress.take_credentials(&control::Credentials {
        revision: 2,
        credentials: vec![limited],
        ..control::Credentials::default()
    });
    let open = v1::Open {
        request: Some(realtime()),
        ..v1::Open::default()
    };
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.flush().await.unwrap();
    assert_eq!(call.response.head().await.unwrap().status, 101);
    let said = call.response.next().await.unwrap();
    assert!(matches!(said, vector_edge::tunnel::Part::Data(_)));
    drop(call);
    assert_eq!(town.told.record().await.outcome, "cancelled");
    let refused = town.ask(chat(2), b"{}").await.unwrap_err();
    assert_eq!(refused.code, "no_credential");
}

#[tokio::test]
async fn a_websocket_is_joined_with_our_key() {
    let (seen, mut heads) = mpsc::channel(1);
    let address = provider(move |_, mut caller: Caller| {
        let seen = seen.clone();
        async move {
            let (head, _) = caller.request().await.unwrap();
            upgrade(&mut caller, &head).await;
            seen.send(head).await.unwrap();
            converse(&mut caller).await;
        }
    })
    .await;
    let town = Town::new(&url(address), &["one"]).await;
    let request = realtime();
    let open = v1::Open {
        request: Some(request),
        ..v1::Open::default()
    };
    let mut call = town.open(ExchangeId::fresh(), open).await;
    call.request.flush().await.unwrap();
    let head = call.response.head().await.unwrap();
    assert_eq!(head.status, 101);
    let protocol = value_of(&head.headers, "sec-websocket-protocol");
    assert_eq!(protocol.as_deref(), Some("realtime"));
    for frame in [b"\x81\x03hey", b"\x81\x03you"] {
        call.request.data(Bytes::from_static(frame)).await.unwrap();
        call.request.flush().await.unwrap();
        let part = call.response.next().await.unwrap();
        assert!(matches!(part, vector_edge::tunnel::Part::Data(bytes) if bytes == frame[..]));
    }
    call.request.end().await.unwrap();
    let trailers = read_rest(&mut call).await;
    assert_eq!(trailers.broken, "");
    let usage = trailers.usage.unwrap();
    assert_eq!((usage.input_tokens, usage.output_tokens), (50, 7));
    let head = heads.recv().await.unwrap();
    assert!(
        head.starts_with("GET /v1/realtime?model=up-7 HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.contains("authorization: Bearer secret-one\r\n"));
    assert!(head.contains("sec-websocket-protocol: realtime\r\n") && !head.contains("sk-client"));
    assert_eq!(town.told.record().await.status, 101);
}

#[tokio::test]
async fn what_a_conversation_makes_is_remembered() {
    let address = provider(move |_, mut caller: Caller| async move {
        let (head, _) = caller.request().await.unwrap();
        upgrade(&mut caller, &head).await;
        for message in [
            r#"{"type":"response.created","response":{"id":"resp_1"}}"#,
            r#"{"type":"response.completed","response":{"id":"resp_1"}}"#,
            r#"{"type":"response.created","response":{"id":"resp_2"}}"#,
        ] {
            let head = [0x81, message.len() as u8];
            caller.socket.write_all(&head).await.unwrap();
            caller.say(message).await;
        }
    })
    .await;
    for (operation, expected) in [
        ("responses.connect", &["resp_1", "resp_2"][..]),
        // Nothing can be asked of those later.
        ("realtime.connect", &[]),
    ] {
        let town = Town::new(&url(address), &["one"]).await;
        let request = v1::RequestHead {
            operation: operation.into(),
            ..realtime()
        };
        let open = v1::Open {
            request: Some(request),
            ..v1::Open::default()
        };
        let mut call = town.open(ExchangeId::fresh(), open).await;
        call.request.flush().await.unwrap();
        assert_eq!(call.response.head().await.unwrap().status, 101);
        read_rest(&mut call).await;
        let objects = town.told.objects.lock().clone();
        let made: Vec<&str> = objects.iter().map(|object| object.id.as_str()).collect();
        assert_eq!(made, expected);
        let ours = |object: &control::Object| object.credential == "one" && !object.told;
        assert!(objects.iter().all(ours), "{objects:?}");
    }
}
