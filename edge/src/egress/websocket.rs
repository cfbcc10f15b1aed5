//! Joins a client's WebSocket to one of the provider's: frames pass as raw bytes in both directions, and are read in passing for
//! what was consumed and made.
//!
//! The handshake with the provider is our own, with our key in a header; of the client's subprotocols those that carry a key are
//! left out. Nothing is held back on the way: every read is flushed.

use std::{pin::pin, time::Instant};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use vector_proto::tunnel::{fields::Fields, v1};

use super::{
    Room,
    answer::{Ending, trailers},
    attempt::{self, Fault, Turns},
    credential::Permit,
    provider::UploadBody,
    receive::Exchange,
    translate::{Draft, response_head},
    watch::Watch,
};
use crate::tunnel::{Answer, Lost, RequestBody};

/// Read from the provider at once.
const READ_BYTES: usize = 16 << 10;

/// What is kept of an answer that is no upgrade.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Appended to a key before it is hashed: RFC 6455, section 1.3.
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A provider's answer to the handshake.
#[derive(Debug)]
enum Joined {
    Upgraded(Response<Incoming>),
    /// It answered something else, which is passed on.
    Answered(http::response::Parts, Bytes),
}

/// Carries a WebSocket from its handshake to its end.
///
/// Cancel safety: dropping it closes the provider's end.
pub async fn carry(
    room: &Room,
    exchange: &mut Exchange,
    body: RequestBody,
    mut answer: Answer,
    watch: &mut Watch,
) -> Result<Ending, (Box<v1::Refused>, Answer)> {
    let mut turns = Turns::default();
    let (permit, response) = loop {
        let permit = match turns.key(room, exchange) {
            Ok(permit) => permit,
            Err(refused) => return Err((refused, answer)),
        };
        let fault = match join(room, exchange, &permit, watch).await {
            Ok(Joined::Upgraded(response)) => break (permit, response),
            Ok(Joined::Answered(head, said)) if attempt::is_refusal(head.status) => {
                attempt::refused(exchange, &head, said, &permit)
            }
            Ok(Joined::Answered(head, said)) => {
                return Ok(pass(room, exchange, (&head, said), &permit, answer).await);
            }
            Err(fault) => fault,
        };
        // Of the conversation itself nothing has left.
        if let Err(refused) = turns.failed(room, exchange, (permit, fault), true) {
            return Err((refused, answer));
        }
    };
    let (head, rest) = response.into_parts();
    let upgraded = hyper::upgrade::on(Response::from_parts(head.clone(), rest)).await;
    let Ok(upgraded) = upgraded else {
        let fault = Fault::of_handshake("The provider's connection broke off.");
        return Err((Box::new(fault.refusal(false, exchange.tries)), answer));
    };
    permit.accepted(&HeaderMap::new(), Instant::now());
    exchange.status = 101;
    exchange.meter.upgraded(exchange.row, Instant::now());
    answer.head(&response_head(
        &head,
        true,
        permit.key().name(),
        exchange.tries,
    ));
    exchange.meter.charge(permit);
    Ok(splice(room, exchange, upgraded, body, answer).await)
}

/// Makes the handshake with the provider.
async fn join(
    room: &Room,
    exchange: &Exchange,
    permit: &Permit,
    watch: &mut Watch,
) -> Result<Joined, Fault> {
    let provider = &exchange.provider;
    watch.begin(provider.row.connect, Instant::now());
    let stream = watch
        .within(provider.origin.websocket(provider.row.connect), || 0)
        .await
        .map_err(|expired| Fault::of_time(expired, false))?
        .map_err(|error| {
            tracing::info!(exchange = %exchange.id, provider = %provider.row.name, %error, "no connection to the provider");
            Fault::of_dial(&error)
        })?;
    let draft = Draft::new(&exchange.head, exchange.row, exchange.id, &provider.origin)
        .map_err(|error| Fault::of_head(&error))?;
    let (kind, key) = (&provider.row.kind, permit.key());
    let mut request = draft
        .request(&provider.origin, kind, key, false, UploadBody::Whole(None))
        .map_err(|error| Fault::of_head(&error))?;
    let nonce = STANDARD.encode(fastrand::u128(..).to_be_bytes());
    ask_to_upgrade(request.headers_mut(), &exchange.head.headers, &nonce);
    watch.begin(provider.row.first_byte, Instant::now());
    let answered = async {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        room.tasks.spawn(connection.with_upgrades());
        sender.send_request(request).await
    };
    let response = watch
        .within(answered, || 0)
        .await
        .map_err(|expired| Fault::of_time(expired, true))?
        .map_err(|_| Fault::of_handshake("The provider broke off the WebSocket's handshake."))?;
    provider.origin.heard(response.status().as_u16());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (head, body) = response.into_parts();
        let body = http_body_util::Limited::new(body, ERROR_BYTES_MAX);
        let body = watch.within(body.collect(), || 0).await;
        let said = body.ok().and_then(Result::ok);
        let said = said.map(http_body_util::Collected::to_bytes);
        return Ok(Joined::Answered(head, said.unwrap_or_default()));
    }
    let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|value| value.as_bytes() != accept(&nonce).as_bytes()) {
        let message = "The provider's answer breaks the rules of WebSocket.";
        return Err(Fault::of_handshake(message));
    }
    Ok(Joined::Upgraded(response))
}

/// Puts the handshake's headers.
fn ask_to_upgrade(headers: &mut HeaderMap, given: &Bytes, nonce: &str) {
    headers.remove(header::ACCEPT_ENCODING);
    // A compressed conversation could not be metered.
    headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        header::SEC_WEBSOCKET_VERSION,
        HeaderValue::from_static("13"),
    );
    if let Ok(nonce) = HeaderValue::from_str(nonce) {
        headers.insert(header::SEC_WEBSOCKET_KEY, nonce);
    }
    let protocols = subprotocols(given);
    if let Ok(value) = HeaderValue::from_str(&protocols)
        && !protocols.is_empty()
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
}

/// The client's subprotocols without those that carry a key or name an account with the provider.
fn subprotocols(given: &Bytes) -> String {
    let fields =
        Fields::of(given).filter(|(name, _)| name.eq_ignore_ascii_case(b"sec-websocket-protocol"));
    let mut kept = Vec::new();
    for (_, value) in fields {
        let text = std::str::from_utf8(&value).unwrap_or_default();
        let offered = text.split(',').map(str::trim);
        let offered = offered.filter(|name| {
            let secret = name.starts_with("openai-insecure-api-key")
                || name.starts_with("openai-organization")
                || name.starts_with("openai-project")
                || name.starts_with("sk-");
            !name.is_empty() && !secret
        });
        kept.extend(offered.map(str::to_owned));
    }
    kept.join(", ")
}

/// What the provider must answer to a nonce.
fn accept(nonce: &str) -> String {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(nonce.as_bytes());
    hash.update(ACCEPT_SUFFIX);
    STANDARD.encode(hash.finish())
}

/// Passes on an answer that is no upgrade.
async fn pass(
    room: &Room,
    exchange: &mut Exchange,
    (head, said): (&http::response::Parts, Bytes),
    permit: &Permit,
    mut answer: Answer,
) -> Ending {
    exchange.status = head.status.as_u16();
    exchange.meter.response_bytes = said.len() as u64;
    answer.head(&response_head(
        head,
        false,
        permit.key().name(),
        exchange.tries,
    ));
    let written = answer.data(said).await;
    let trailers = trailers(&exchange.meter, None, Instant::now());
    if written.is_ok() {
        room.record(exchange, Ending::Whole);
    }
    match (written, answer.finish(&trailers).await) {
        (Ok(()), Ok(())) => Ending::Whole,
        _ => Ending::Cancelled,
    }
}

/// Passes bytes both ways until the provider's end is over.
async fn splice(
    room: &Room,
    exchange: &mut Exchange,
    upgraded: Upgraded,
    body: RequestBody,
    mut answer: Answer,
) -> Ending {
    let (read, write) = tokio::io::split(TokioIo::new(upgraded));
    let ended = {
        let mut down = pin!(downward(read, &mut answer, room, exchange));
        let mut up = pin!(upward(body, write));
        let mut sending = true;
        loop {
            tokio::select! {
                ended = &mut down => break ended,
                over = &mut up, if sending => match over {
                    // The client is done, or the provider no longer reads: what it still says is passed on.
                    Ok(()) => sending = false,
                    Err(lost) => break Err(lost),
                },
            }
        }
    };
    let Ok(broken) = ended else {
        return Ending::Cancelled;
    };
    let trailers = trailers(&exchange.meter, broken, Instant::now());
    let ending = broken.map_or(Ending::Whole, Ending::Broken);
    room.record(exchange, ending);
    match answer.finish(&trailers).await {
        Err(_) => Ending::Cancelled,
        Ok(()) => ending,
    }
}

async fn downward(
    mut read: ReadHalf<TokioIo<Upgraded>>,
    answer: &mut Answer,
    room: &Room,
    exchange: &mut Exchange,
) -> Result<Option<&'static str>, Lost> {
    answer.flush().await?;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_BYTES);
        match read.read_buf(&mut buffer).await {
            Ok(0) => return Ok(None),
            Ok(_) => {
                let bytes = buffer.split().freeze();
                exchange.meter.feed(&bytes);
                let news = exchange.meter.in_messages();
                for id in &news.made {
                    room.object_made(exchange, id, false);
                }
                for id in &news.told {
                    room.object_made(exchange, id, true);
                }
                answer.data(bytes).await?;
                answer.flush().await?;
            }
            Err(_) => return Ok(Some("the provider's connection broke off")),
        }
    }
}

/// Ends early if the provider no longer reads: then its own end says why.
async fn upward(
    mut body: RequestBody,
    mut write: WriteHalf<TokioIo<Upgraded>>,
) -> Result<(), Lost> {
    while let Some(bytes) = body.next().await? {
        if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
            return Ok(());
        }
    }
    // A peer that is gone needs no good-bye.
    let _ = write.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use vector_proto::tunnel::fields::Block;

    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        assert_eq!(
            accept("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn no_key_leaves_among_the_subprotocols() {
        let offered = b"realtime, openai-insecure-api-key.sk-client, openai-beta.realtime-v1";
        let block: Block = [("Sec-WebSocket-Protocol", &offered[..])]
            .into_iter()
            .collect();
        assert_eq!(
            subprotocols(&block.finish()),
            "realtime, openai-beta.realtime-v1"
        );
    }
}
