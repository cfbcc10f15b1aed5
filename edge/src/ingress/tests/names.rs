//! The model's names in what a WebSocket's messages say.

use super::{world::World, *};
use crate::tunnel::{Answer, RequestBody};

/// Masks what clients say. Nothing else depends on it.
const KEY: [u8; 4] = [7, 77, 177, 17];

/// A frame of a message: `first` as RFC 6455 has it.
fn frame(first: u8, text: &str, key: Option<[u8; 4]>) -> Vec<u8> {
    let len = u8::try_from(text.len()).unwrap();
    let mut frame = vec![first, len | if key.is_some() { 0x80 } else { 0 }];
    if len > 125 {
        frame[1] = 126 | frame[1] & 0x80;
        frame.extend([0, len]);
    }
    frame.extend(key.into_iter().flatten());
    let key = key.unwrap_or_default().into_iter().cycle();
    frame.extend(text.bytes().zip(key).map(|(byte, key)| byte ^ key));
    frame
}

/// Takes the first frame off what has come.
fn take(bytes: &mut Vec<u8>, masked: bool) -> Option<(u8, String)> {
    let (first, len) = (*bytes.first()?, *bytes.get(1)?);
    assert_eq!(len & 0x80 != 0, masked, "{bytes:?}");
    let (len, at) = match len & 0x7f {
        126 => (usize::from(*bytes.get(3)?), 4),
        len => (usize::from(len), 2),
    };
    let from = at + if masked { 4 } else { 0 };
    let key: Vec<u8> = bytes.get(at..from)?.to_vec();
    let mut text = bytes.get(from..from + len)?.to_vec();
    for (byte, key) in text.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
    bytes.drain(..from + len);
    Some((first, String::from_utf8(text).unwrap()))
}

/// A provider: says what session it made, tells what it hears, and answers each `response.create` with its own name for the
/// model.
pub(super) async fn converse(
    mut body: RequestBody,
    mut answer: Answer,
    events: &mpsc::Sender<String>,
) {
    answer.head(&v1::ResponseHead {
        status: 101,
        ..v1::ResponseHead::default()
    });
    let session = r#"{"type":"session.created","session":{"model":"inner-2026-01-01","audio":{"input":{"transcription":{"model":"ear"}}}}}"#;
    // In two frames, and pieces of them.
    let frames = [
        frame(0x01, &session[..40], None),
        frame(0x80, &session[40..], None),
    ]
    .concat();
    for piece in frames.chunks(17) {
        answer.data(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    answer.flush().await.unwrap();
    let mut heard = Vec::new();
    while let Ok(Some(chunk)) = body.next().await {
        heard.extend_from_slice(&chunk);
        while let Some((first, text)) = take(&mut heard, true) {
            events.send(format!("{first:x} {text}")).await.unwrap();
            if !text.contains("response.create") {
                continue;
            }
            let said = r#"{"type":"response.created","response":{"model":"inner-2026-01-01"}}"#;
            let frame = frame(0x81, said, None);
            answer.data(frame.into()).await.unwrap();
            answer.flush().await.unwrap();
        }
    }
    answer.finish(&v1::Trailers::default()).await.unwrap();
}

/// A client's end of a conversation.
struct Client {
    socket: TcpStream,
    heard: Vec<u8>,
}

impl Client {
    async fn join(world: &World, target: &str) -> Self {
        let head = world
            .head("GET", target)
            .replace("Connection: close", "Connection: Upgrade");
        let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        let mut socket = world.connect().await;
        socket.write_all((head + upgrade).as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let end = loop {
            if let Some(at) = heard.windows(4).position(|end| end == b"\r\n\r\n") {
                break at + 4;
            }
            assert_ne!(socket.read_buf(&mut heard).await.unwrap(), 0);
        };
        assert!(heard.starts_with(b"HTTP/1.1 101 "), "{heard:?}");
        heard.drain(..end);
        Self { socket, heard }
    }

    async fn say(&mut self, first: u8, text: &str) {
        let frame = frame(first, text, Some(KEY));
        self.socket.write_all(&frame).await.unwrap();
    }

    /// The next message, however it is cut.
    async fn hear(&mut self) -> String {
        let mut message = String::new();
        loop {
            while let Some((first, text)) = take(&mut self.heard, false) {
                message.push_str(&text);
                if first & 0x80 != 0 {
                    return message;
                }
            }
            assert_ne!(self.socket.read_buf(&mut self.heard).await.unwrap(), 0);
        }
    }
}

const SESSION: &str = r#"{"type":"session.created","session":{"model":"house/voice","audio":{"input":{"transcription":{"model":"ear"}}}}}"#;

#[tokio::test]
async fn a_realtime_session_has_the_public_name_on_this_side_and_the_providers_on_that() {
    let mut world = World::start().await;
    let mut client = Client::join(&world, "/v1/realtime?model=house%2Fvoice").await;
    let went = world.events.recv().await.unwrap();
    assert!(
        went.ends_with("realtime.connect /realtime?model=voice voice"),
        "{went}"
    );
    assert_eq!(client.hear().await, SESSION);
    let update = r#"{"type":"session.update","session":{"model":"house/voice","voice":"x"}}"#;
    client.say(0x81, update).await;
    let heard = world.events.recv().await.unwrap();
    assert_eq!(
        heard,
        r#"81 {"type":"session.update","session":{"model":"voice","voice":"x"}}"#
    );
    // Another name is none of the exchange's, and what is no text is not read.
    for (first, text) in [
        (
            0x81,
            r#"{"type":"session.update","session":{"model":"other"}}"#,
        ),
        (0x82, r#"{"model":"house/voice"}"#),
        (0x89, r#"{"model":"house/voice"}"#),
    ] {
        client.say(first, text).await;
        let heard = world.events.recv().await.unwrap();
        assert_eq!(heard, format!("{first:x} {text}"));
    }
    client.say(0x81, r#"{"type":"response.create"}"#).await;
    assert_eq!(
        client.hear().await,
        r#"{"type":"response.created","response":{"model":"house/voice"}}"#
    );
}

#[tokio::test]
async fn a_conversation_of_responses_has_the_names_that_its_messages_name() {
    let mut world = World::start().await;
    let mut client = Client::join(&world, "/v1/responses").await;
    let went = world.events.recv().await.unwrap();
    assert!(went.ends_with("responses.connect /responses "), "{went}");
    // Nobody has named a model yet.
    let first = client.hear().await;
    assert!(first.contains("inner-2026-01-01"), "{first}");
    for (asked, sent, shown) in [
        ("house/voice", "voice", "house/voice"),
        ("public", "inner", "public"),
        // The provider calls it the same: what it says stands.
        ("echo", "echo", "inner-2026-01-01"),
    ] {
        let say =
            |model: &str| format!(r#"{{"type":"response.create","model":"{model}","input":"hi"}}"#);
        client.say(0x81, &say(asked)).await;
        assert_eq!(
            world.events.recv().await.unwrap(),
            format!("81 {}", say(sent))
        );
        assert_eq!(
            client.hear().await,
            format!(r#"{{"type":"response.created","response":{{"model":"{shown}"}}}}"#)
        );
    }
}

#[tokio::test]
async fn whoever_joins_a_call_hears_the_name_it_was_made_with() {
    let mut world = World::start().await;
    let mut client = Client::join(&world, "/v1/realtime?call_id=public-call-of-p").await;
    let _went = world.events.recv().await.unwrap();
    let said = client.hear().await;
    assert!(said.contains(r#""session":{"model":"public""#), "{said}");
}
