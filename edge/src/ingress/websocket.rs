//! Carries a WebSocket: checks the upgrade, waits for the provider's, then splices raw bytes both ways.
//!
//! Frames are passed on as they are: what the client masks reaches the provider masked. Only where the provider calls the model
//! otherwise, text messages that name it are replaced (`naming`). They are read, in passing, for a key with a limit of tokens,
//! which counts while the conversation lasts. No extension is negotiated, so both ends mean the same bytes. A provider that
//! refuses does so in plain HTTP, before anything was upgraded here. When the path breaks, the connection is cut, which every
//! WebSocket library tells from a close.

// One direction's messages.
mod frames;

// The model's names in them.
mod naming;

use std::time::{Duration, Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use ring::digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio_util::sync::CancellationToken;
use vector_proto::{
    dialect::websocket::Frames as Told,
    refusal::{Code, Refusal},
    tunnel::v1,
};

use self::frames::Frames;
pub(super) use self::naming::Naming;
use super::{
    Carried,
    authenticate::{SUBPROTOCOL_KEY, subprotocols},
    record::{Outcome, Record},
    respond,
    send::{Sent, Up},
    stream::{Answer, Around},
};
use crate::{
    limit::Permit,
    tunnel::{Lost, Part, RequestWriter, ResponseReader},
};

/// From RFC 6455.
const ACCEPT_SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Read from the client at once.
const READ_BYTES: usize = 16 << 10;

/// How long the provider may still speak after the client's side ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Refuses what is no WebSocket upgrade. Returns the client's `Sec-WebSocket-Key`.
pub(super) fn check(parts: &Parts) -> Result<&HeaderValue, Refusal> {
    let bad = |message: &str| Refusal::new(Code::BadUpgrade, message);
    let headers = &parts.headers;
    if parts.version != Version::HTTP_11 || parts.method != Method::GET {
        return Err(bad("a WebSocket needs a GET request in HTTP/1.1"));
    }
    if !has_token(headers, &header::UPGRADE, "websocket")
        || !has_token(headers, &header::CONNECTION, "upgrade")
    {
        return Err(bad(
            "this operation is a WebSocket: send `Connection: Upgrade` and `Upgrade: websocket`",
        ));
    }
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(bad("Sec-WebSocket-Version has to be 13"));
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return Err(bad("Sec-WebSocket-Key has to be given once"));
    };
    if BASE64_STANDARD
        .decode(key.as_bytes())
        .map(|nonce| nonce.len())
        != Ok(16)
    {
        return Err(bad("Sec-WebSocket-Key has to be 16 bytes in base64"));
    }
    Ok(key)
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// What the client offers of subprotocols, without its key.
pub(super) fn offers(headers: &HeaderMap) -> Option<String> {
    let ours = |offer: &&str| {
        !offer.is_empty()
            && !offer.starts_with(SUBPROTOCOL_KEY)
            && !offer.starts_with("openai-organization.")
            && !offer.starts_with("openai-project.")
    };
    let offers: Vec<&str> = subprotocols(headers).filter(ours).collect();
    (!offers.is_empty()).then(|| offers.join(", "))
}

/// The answer that switches protocols.
fn switch(parts: &Parts, key: &HeaderValue, provider: v1::ResponseHead) -> Response<Answer> {
    let mut said = HeaderMap::new();
    respond::copy(&provider.headers, &mut said);
    // The provider's choice, as far as the client offered it; else the one that all of OpenAI's SDKs offer.
    let offered = |choice: &str| subprotocols(&parts.headers).any(|offer| offer == choice);
    let chosen = said
        .remove(header::SEC_WEBSOCKET_PROTOCOL)
        .filter(|choice| choice.to_str().is_ok_and(offered));
    let chosen =
        chosen.or_else(|| offered("realtime").then(|| HeaderValue::from_static("realtime")));
    // What else the handshake settles is between two ends, and there is no body.
    for name in [
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_EXTENSIONS,
        header::SEC_WEBSOCKET_VERSION,
        header::CONTENT_LENGTH,
    ] {
        said.remove(name);
    }
    let mut sum = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sum.update(key.as_bytes());
    sum.update(ACCEPT_SALT);
    let accept = BASE64_STANDARD.encode(sum.finish());
    let mut response = Response::new(Answer::Empty);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    *headers = said;
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::try_from(accept) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if let Some(chosen) = chosen {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, chosen);
    }
    response
}

/// Joins both ends, if the provider switched protocols; otherwise what it said is a plain answer. Messages that name the model
/// are changed as `naming` has it.
pub(super) fn join(
    parts: &Parts,
    key: &HeaderValue,
    (upgrade, naming): (OnUpgrade, Option<Naming>),
    sent: Sent,
    around: Box<Around>,
) -> Carried {
    match sent {
        Sent {
            head,
            response,
            up: Up::Open(up),
            in_flight,
            kept: _,
        } if head.status == u32::from(StatusCode::SWITCHING_PROTOCOLS.as_u16()) => {
            let answer = switch(parts, key, head);
            let socket = Socket {
                upgrade,
                up,
                down: response,
                around: *around,
                in_flight,
                naming,
            };
            Carried::Socket(answer, Box::new(socket))
        }
        sent => Carried::Sent(parts.method.clone(), Box::new(sent), around),
    }
}

/// Both ends of a WebSocket, and what is held while it lasts.
pub(super) struct Socket {
    upgrade: OnUpgrade,
    up: RequestWriter,
    down: ResponseReader,
    around: Around,
    in_flight: Option<super::load::InFlight>,
    naming: Option<Naming>,
}

/// The bytes of one direction.
enum Passing<'n> {
    /// They stay as they are.
    Same,
    /// Names in them are changed.
    Named(Box<Frames>, &'n Naming, Direction),
}

enum Direction {
    Up,
    Down,
}

impl<'n> Passing<'n> {
    fn of(naming: Option<&'n Naming>, direction: Direction) -> Self {
        naming.map_or(Self::Same, |naming| {
            Self::Named(Box::default(), naming, direction)
        })
    }

    /// What leaves when these bytes have come; maybe nothing, while a message is not whole.
    fn pass(&mut self, bytes: Bytes) -> Bytes {
        let Self::Named(frames, naming, direction) = self else {
            return bytes;
        };
        let mut out = BytesMut::with_capacity(bytes.len());
        let replace = |text: Bytes| match direction {
            Direction::Up => naming.upward(&text),
            Direction::Down => naming.downward(text),
        };
        frames.feed(&bytes, replace, &mut out);
        out.freeze()
    }

    /// What is left of a side that broke off.
    fn rest(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        if let Self::Named(frames, ..) = self {
            frames.finish(&mut out);
        }
        out.freeze()
    }
}

/// Counts a conversation's tokens for its key, as they are told.
struct Tally<'a> {
    permit: &'a Permit,
    frames: Option<Box<Told>>,
    counted: u64,
}

impl<'a> Tally<'a> {
    fn new(permit: &'a Permit) -> Self {
        Self {
            permit,
            frames: permit.counts_tokens().then(Box::default),
            counted: 0,
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let Some(frames) = &mut self.frames else {
            return;
        };
        frames.feed(bytes);
        if let Some(usage) = frames.usage() {
            let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
            self.reach(tokens);
        }
    }

    fn reach(&mut self, tokens: u64) {
        if let Some(more) = tokens.checked_sub(self.counted).filter(|more| *more > 0) {
            self.counted = tokens;
            self.permit.used_tokens(more, Instant::now());
        }
    }
}

impl Socket {
    /// Carries bytes until either side ends, or `kill`.
    pub(super) async fn splice(mut self, mut record: Record, kill: CancellationToken) {
        let Ok(upgraded) = self.upgrade.await else {
            return;
        };
        let (reader, writer) = tokio::io::split(TokioIo::new(upgraded));
        let mut up_bytes = 0;
        let outcome = {
            let passing = |direction| Passing::of(self.naming.as_ref(), direction);
            let up = up(reader, self.up, passing(Direction::Up), &mut up_bytes);
            let tally = Tally::new(&self.around.permit);
            let passing = passing(Direction::Down);
            let down = down(&mut self.down, writer, &mut record, tally, passing);
            let mut down = std::pin::pin!(down);
            tokio::select! {
                outcome = &mut down => outcome,
                // A client that said its last words may still read the provider's.
                () = up => tokio::time::timeout(LAST_WORDS, down).await.unwrap_or(Outcome::Cancelled),
                () = kill.cancelled() => Outcome::Broken,
            }
        };
        record.request_bytes = up_bytes;
        record.tell(outcome);
        drop(self.in_flight);
    }
}

/// Client to provider, to the client's end.
async fn up(
    mut client: ReadHalf<TokioIo<Upgraded>>,
    mut provider: RequestWriter,
    mut passing: Passing<'_>,
    bytes: &mut u64,
) {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        buffer.reserve(READ_BYTES);
        match client.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => *bytes += read as u64,
        }
        let passed = passing.pass(buffer.split().freeze());
        if forward(&mut provider, passed).await.is_err() {
            return;
        }
    }
    if forward(&mut provider, passing.rest()).await.is_err() {
        return;
    }
    // The answer's half tells how it ended.
    let _ended = provider.end().await;
}

async fn forward(provider: &mut RequestWriter, bytes: Bytes) -> Result<(), Lost> {
    if bytes.is_empty() {
        return Ok(());
    }
    provider.data(bytes).await?;
    provider.flush().await
}

/// Provider to client, to the provider's end.
async fn down(
    provider: &mut ResponseReader,
    mut client: WriteHalf<TokioIo<Upgraded>>,
    record: &mut Record,
    mut tally: Tally<'_>,
    mut passing: Passing<'_>,
) -> Outcome {
    loop {
        match provider.next().await {
            Ok(Part::Data(bytes)) => {
                record.saw_first_byte();
                record.response_bytes += bytes.len() as u64;
                tally.hear(&bytes);
                let bytes = passing.pass(bytes);
                if client.write_all(&bytes).await.is_err() || client.flush().await.is_err() {
                    return Outcome::Cancelled;
                }
            }
            Ok(Part::Trailers(trailers)) => {
                if let Some(usage) = &trailers.usage {
                    tally.reach(usage.input_tokens.saturating_add(usage.output_tokens));
                }
                record.usage = trailers.usage;
                if !trailers.broken.is_empty() {
                    record.broken = Some(trailers.broken.into());
                    return Outcome::Broken;
                }
            }
            Ok(Part::End) => {
                let left = client.write_all(&passing.rest()).await.is_ok();
                return if left && client.shutdown().await.is_ok() {
                    Outcome::Whole
                } else {
                    Outcome::Cancelled
                };
            }
            Err(lost) => {
                record.broken = Some(lost.to_string().into());
                return Outcome::Broken;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use vector_proto::tunnel::fields::Block;

    use super::*;

    fn upgrade() -> http::request::Builder {
        Request::get("/v1/realtime?model=m")
            .header("connection", "keep-alive, Upgrade")
            .header("upgrade", "WebSocket")
            .header("sec-websocket-version", "13")
            .header(
                "sec-websocket-protocol",
                "realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1",
            )
    }

    fn parts(builder: http::request::Builder) -> Parts {
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_a_proper_upgrade_passes() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        assert!(check(&parts(upgrade().header("sec-websocket-key", key))).is_ok());
        assert!(check(&parts(upgrade())).is_err());
        assert!(check(&parts(upgrade().header("sec-websocket-key", "short"))).is_err());
        assert!(
            check(&parts(
                upgrade()
                    .header("sec-websocket-key", key)
                    .header("sec-websocket-key", key)
            ))
            .is_err()
        );
        assert!(
            check(&parts(
                upgrade()
                    .version(Version::HTTP_2)
                    .header("sec-websocket-key", key)
            ))
            .is_err()
        );
        assert!(check(&parts(Request::get("/v1/realtime"))).is_err());
    }

    #[test]
    fn the_accept_value_is_that_of_rfc_6455() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let response = switch(&parts(upgrade()), &key, v1::ResponseHead::default());
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(response.headers()["sec-websocket-protocol"], "realtime");
    }

    #[test]
    fn what_the_provider_says_besides_its_handshake_is_passed_on() {
        let said: Block = [
            ("sec-websocket-accept", "of another connection"),
            ("sec-websocket-extensions", "permessage-deflate"),
            ("sec-websocket-protocol", "never-offered"),
            ("content-length", "7"),
            ("upgrade", "h2c"),
            ("x-request-id", "req_1"),
            ("openai-version", "2020-10-01"),
        ]
        .into_iter()
        .map(|(name, value)| (name, value.as_bytes()))
        .collect();
        let provider = v1::ResponseHead {
            headers: said.finish(),
            ..v1::ResponseHead::default()
        };
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        let response = switch(&parts(upgrade()), &key, provider);
        let mut headers: Vec<_> = response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        headers.sort_unstable();
        let expected = [
            ("connection", "Upgrade"),
            ("openai-version", "2020-10-01"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ("sec-websocket-protocol", "realtime"),
            ("upgrade", "websocket"),
            ("x-upstream-request-id", "req_1"),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn the_key_is_not_offered_on() {
        assert_eq!(
            offers(&parts(upgrade()).headers).as_deref(),
            Some("realtime, openai-beta.realtime-v1")
        );
    }
}
