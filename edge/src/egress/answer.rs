//! Passes a provider's answer on as it comes, metered and with the model's public name.
//!
//! What is there is written, and flushed when the provider has nothing more right now: a short answer leaves in one
//! piece, an event of a stream at once. An answer that breaks off, or a stream that ends without the mark of
//! its end, is never given a clean one: [`v1::Trailers::broken`] says why.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use vector_proto::{
    dialect::{operation::Operation, rename::Rename},
    tunnel::v1,
};

use super::{
    Room,
    attempt::Answered,
    meter::{Ask, Meter},
    outlet::Outlet,
    provider::{Live, Upload},
    receive::Exchange,
    translate::{Content, answer_rename, response_head},
    watch::{Expired, Watch},
};
use crate::tunnel::Lost;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// The answer was passed on, whatever its status.
    Whole,
    /// The answer was cut, for this reason.
    Broken(&'static str),
    /// Nobody waits for it any more.
    Cancelled,
}

enum Step {
    Chunk(Bytes),
    /// The provider has nothing more right now.
    Idle,
    End,
    Broken(&'static str),
}

/// Passes an answer on to its end.
///
/// Cancel safety: dropping it stops the call at the provider and breaks the answer off.
pub async fn pass_on(
    room: &Room,
    exchange: &mut Exchange,
    answered: Answered,
    mut answer: Outlet,
    watch: &mut Watch,
) -> Ending {
    let Answered {
        head,
        mut live,
        permit,
    } = answered;
    let content = Content::of(&head.headers);
    let mut rename = answer_rename(&exchange.head, content).map(Box::new);
    exchange.status = head.status.as_u16();
    let ask = Ask {
        row: exchange.row,
        keeps: keeps(exchange.row, &exchange.upload),
    };
    exchange.meter.head(&head, content, &ask, Instant::now());
    if let Some(id) = exchange.meter.object() {
        room.object_made(exchange, id, false);
    }
    let credential = permit.key().name();
    answer.head(response_head(
        &head,
        rename.is_none(),
        credential,
        exchange.tries,
    ));
    exchange.meter.charge(permit);
    // Its values are slices of the connection's first read buffer, which a long stream must not keep.
    drop(head);
    watch.begin(exchange.provider.row.idle, Instant::now());
    let passed = chunks(room, exchange, &mut live, &mut rename, &mut answer, watch).await;
    let Ok(broken) = passed else {
        return Ending::Cancelled;
    };
    if broken.is_none() {
        live.finish();
    } else {
        drop(live);
    }
    let cut = broken.is_none() && exchange.meter.is_cut();
    let broken = if cut { Some("cut") } else { broken };
    exchange.meter.settle(Instant::now());
    let trailers = trailers(&exchange.meter, broken, Instant::now());
    let ending = broken.map_or(Ending::Whole, Ending::Broken);
    room.record(exchange, ending);
    match answer.finish(trailers).await {
        Err(_) => Ending::Cancelled,
        Ok(()) => ending,
    }
}

/// Passes the body on. Returns why it is cut, if it is.
async fn chunks(
    room: &Room,
    exchange: &mut Exchange,
    live: &mut Live,
    rename: &mut Option<Box<Rename>>,
    answer: &mut Outlet,
    watch: &mut Watch,
) -> Result<Option<&'static str>, Lost> {
    // The head is held until the first flush.
    let mut held = true;
    let mut renamed = Vec::new();
    while !live.is_over() {
        match next(live, watch, held).await {
            Step::Chunk(chunk) => {
                watch.moved(Instant::now());
                let news = exchange.meter.feed(&chunk);
                if news.made {
                    let id = exchange.meter.object().unwrap_or_default();
                    room.object_made(exchange, id, false);
                }
                for id in exchange.meter.told(news.told) {
                    room.object_made(exchange, id, true);
                }
                let Some(rename) = rename else {
                    meanwhile(live, watch, answer.data(chunk)).await?;
                    held = true;
                    continue;
                };
                rename.feed(chunk, &mut renamed);
                for part in renamed.drain(..) {
                    meanwhile(live, watch, answer.data(part)).await?;
                    held = true;
                }
            }
            Step::Idle => {
                meanwhile(live, watch, answer.flush()).await?;
                held = false;
            }
            Step::End => return Ok(None),
            Step::Broken(why) => return Ok(Some(why)),
        }
    }
    Ok(None)
}

/// What comes next of the body; [`Step::Idle`] if nothing is there and something is `held`.
async fn next(live: &mut Live, watch: &mut Watch, held: bool) -> Step {
    poll_fn(|cx| {
        Poll::Ready(match live.poll_data(cx) {
            Poll::Ready(Some(Ok(chunk))) => Step::Chunk(chunk),
            Poll::Ready(None) => Step::End,
            Poll::Ready(Some(Err(_))) => Step::Broken("the provider's connection broke off"),
            Poll::Pending if held => Step::Idle,
            Poll::Pending => match std::task::ready!(watch.poll(cx)) {
                Expired::Deadline => Step::Broken("deadline_exceeded"),
                Expired::Silence(_) => Step::Broken("the provider fell silent"),
            },
        })
    })
    .await
}

/// Waits for the tunnel while the request's body keeps moving. A deadline that passes meanwhile shows at the next step.
async fn meanwhile<F: Future<Output = Result<(), Lost>>>(
    live: &mut Live,
    watch: &mut Watch,
    write: F,
) -> Result<(), Lost> {
    let mut write = pin!(write);
    let written = poll_fn(|cx| {
        if let Poll::Ready(written) = write.as_mut().poll(cx) {
            return Poll::Ready(Some(written));
        }
        live.drive(cx);
        watch.poll_deadline(cx).map(|()| None)
    })
    .await;
    written.unwrap_or(Ok(()))
}

/// What was measured, as the ingress gets it.
pub fn trailers(meter: &Meter, broken: Option<&str>, now: Instant) -> v1::Trailers {
    v1::Trailers {
        usage: meter.usage(),
        first_byte_us: micros(meter.first_byte().unwrap_or_default()),
        duration_us: micros(meter.elapsed(now)),
        broken: broken.unwrap_or_default().to_owned(),
        object: meter.object().unwrap_or_default().to_owned(),
    }
}

/// Whole microseconds.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whether the provider keeps what the call makes. A chat completion is kept only if the client asks for it, and then its body says
/// so; of a body that was not gathered it is assumed, since a wrong yes costs one entry and a wrong no an object.
fn keeps(row: Option<&Operation>, upload: &Upload) -> bool {
    match (row, upload) {
        (Some(row), Upload::Gathered(body)) if row.name == "chat.completions.create" => {
            asks_to_store(body)
        }
        _ => true,
    }
}

fn asks_to_store(body: &[u8]) -> bool {
    let key = b"\"store\"";
    memchr::memmem::find_iter(body, key).any(|at| {
        let rest = body[at + key.len()..].trim_ascii_start();
        rest.strip_prefix(b":")
            .is_some_and(|value| value.trim_ascii_start().starts_with(b"true"))
    })
}

#[cfg(test)]
mod tests {
    use super::asks_to_store;

    #[test]
    fn only_a_key_asks_to_store() {
        assert!(asks_to_store(br#"{"model":"m","store" : true}"#));
        assert!(!asks_to_store(br#"{"model":"m","store":false}"#));
        assert!(!asks_to_store(br#"{"x":"say \"store\":true"}"#));
        assert!(!asks_to_store(b"{}"));
    }
}
