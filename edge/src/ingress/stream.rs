//! The body of an answer: read from the tunnel as the client takes it, with nothing between.
//!
//! There is no task and no channel for an answer: hyper polls [`Answer`], which polls the exchange. A client that goes away
//! drops it, which cancels the exchange at once. An answer that breaks off never ends cleanly: an event stream gets an
//! error event, everything else a broken connection. That needs the end to be known before the last byte is given away, so the
//! last bytes of a body of known length wait for what the egress says behind them.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use vector_proto::{
    control::v1::Object,
    dialect::{Dialect, error},
    refusal::{Code, Refusal},
    tunnel::v1::Trailers,
};

use super::{
    linger::Afterwards,
    load::InFlight,
    record::{Outcome, Record},
    refuse,
    send::Up,
};
use crate::{
    control_plane::ControlPlane,
    limit::Permit,
    tunnel::{Lost, LostReason, Part, ResponseReader},
};

/// No comments, for answers that must read the same whenever they are given. Far enough away, and no overflow.
pub(super) const NO_PING: Duration = Duration::from_secs(30 * 24 * 3600);

/// A comment, which every reader of event streams skips.
const PING: &[u8] = b": ping\n\n";

/// The body of any answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// None, or no more.
    Empty,
    /// In one piece.
    Whole(Bytes),
    /// As it comes from an egress.
    Stream(Box<Stream>),
}

/// The body broke off; hyper ends the connection.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub(super) struct BrokenOff;

/// What an answer keeps hold of while it runs.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) control: ControlPlane,
    pub(super) permit: Permit,
    pub(super) ping: Duration,
    /// Set for an exchange that goes on without its client.
    pub(super) afterwards: Option<Box<Afterwards>>,
}

/// An answer that comes from an egress.
pub(super) struct Stream {
    /// Gone once the client has left an exchange that goes on.
    response: Option<ResponseReader>,
    around: Around,
    record: Record,
    /// For event streams.
    events: Option<Events>,
    /// What is still to come, if the provider said.
    left: Option<u64>,
    /// The last bytes of a body of known length, until the end is known.
    last: Option<Bytes>,
    over: bool,
    /// They end with the answer.
    held: (Up, Option<InFlight>),
}

/// What an event stream needs beside its bytes.
#[derive(Debug)]
struct Events {
    /// The last bytes that went out, to know whether an event is open.
    tail: [u8; 4],
    heard: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    /// How many began so far; counted only where it may be needed.
    begun: Option<u64>,
}

/// Most tokens that a request's length stands for where nobody told its usage: what is longer holds pictures.
const ASKED_TOKENS_MAX: u64 = 32_000;

impl Answer {
    pub(super) const fn whole(body: Bytes) -> Self {
        Self::Whole(body)
    }

    pub(super) fn stream(stream: Stream) -> Self {
        Self::Stream(Box::new(stream))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Whole(body) => {
                let body = std::mem::take(body);
                *self = Self::Empty;
                Poll::Ready((!body.is_empty()).then(|| Ok(Frame::data(body))))
            }
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(body) => body.is_empty(),
            Self::Stream(stream) => stream.over,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(body) => SizeHint::with_exact(body.len() as u64),
            Self::Stream(stream) if stream.over => SizeHint::with_exact(0),
            Self::Stream(stream) => stream
                .left
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

impl Stream {
    pub(super) fn new(
        response: ResponseReader,
        held: (Up, Option<InFlight>),
        record: Record,
        around: Around,
        length: Option<u64>,
        events: bool,
    ) -> Self {
        let events = events.then(|| Events {
            tail: *b"\n\n\n\n",
            heard: Instant::now(),
            timer: None,
            begun: around.permit.counts_tokens().then_some(0),
        });
        Self {
            response: Some(response),
            around,
            record,
            events,
            left: length,
            last: None,
            over: false,
            held,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        loop {
            let Some(response) = self.response.as_mut().filter(|_| !self.over) else {
                return Poll::Ready(None);
            };
            match response.poll_next(cx) {
                Poll::Ready(Ok(Part::Data(bytes))) => {
                    if let Some(bytes) = self.pass(bytes) {
                        return Poll::Ready(Some(Ok(Frame::data(bytes))));
                    }
                }
                Poll::Ready(Ok(Part::Trailers(trailers))) => self.learn(trailers),
                Poll::Ready(Ok(Part::End)) if self.record.broken.is_some() => {
                    return Poll::Ready(Some(self.break_off(Code::ProviderBroke)));
                }
                Poll::Ready(Ok(Part::End)) => return Poll::Ready(self.end().map(Ok)),
                Poll::Ready(Err(lost)) => {
                    self.record.broken = Some(lost.to_string().into());
                    return Poll::Ready(Some(self.break_off(code(&lost))));
                }
                Poll::Pending => return self.poll_ping(cx),
            }
        }
    }

    /// Gives bytes on, unless they are the last of a body of known length.
    fn pass(&mut self, bytes: Bytes) -> Option<Bytes> {
        self.record.saw_first_byte();
        self.record.response_bytes += bytes.len() as u64;
        if let Some(events) = &mut self.events {
            events.saw(&bytes);
        }
        let Some(left) = &mut self.left else {
            return Some(bytes);
        };
        let more = left.checked_sub(bytes.len() as u64);
        if more == Some(0) && self.last.is_none() {
            self.last = Some(bytes);
            return None;
        }
        match more {
            Some(more) => *left = more,
            // More than was promised: hyper cuts it, and the connection ends.
            None => *left = 0,
        }
        Some(bytes)
    }

    fn learn(&mut self, trailers: Trailers) {
        if !trailers.broken.is_empty() {
            self.record.broken = Some(trailers.broken.into());
        }
        if let Some(usage) = &trailers.usage {
            let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
            self.around.permit.used_tokens(tokens, Instant::now());
            let first_byte = self.record.first_byte.unwrap_or_default();
            let took = self.record.start.elapsed().saturating_sub(first_byte);
            // What comes in one piece was made before its first byte.
            if let (Some(in_flight), true) = (&self.held.1, self.events.is_some()) {
                in_flight.streamed(usage.output_tokens, took);
            }
        }
        self.record.usage = trailers.usage;
        if !trailers.object.is_empty() {
            self.remember(trailers.object);
        }
    }

    fn remember(&self, id: String) {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.around.control.remember_object(Object {
            id,
            account: self
                .record
                .policy
                .as_ref()
                .map(|policy| policy.account.clone())
                .unwrap_or_default(),
            provider: self
                .record
                .provider
                .as_deref()
                .unwrap_or_default()
                .to_owned(),
            credential: self.record.credential.clone(),
            operation: self.record.operation.to_owned(),
            model: self.record.model.as_deref().unwrap_or_default().to_owned(),
            made_unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            told: false,
        });
    }

    fn end(&mut self) -> Option<Frame<Bytes>> {
        self.over = true;
        // With the length not reached, hyper breaks the connection by itself: that is no whole answer.
        let short = self.last.is_none() && self.left.is_some_and(|left| left > 0);
        self.record.tell(if short {
            Outcome::Broken
        } else {
            Outcome::Whole
        });
        self.last.take().map(Frame::data)
    }

    /// Ends a cut answer so that nobody takes it for a whole one.
    fn break_off(&mut self, code: Code) -> Result<Frame<Bytes>, BrokenOff> {
        self.over = true;
        self.record.code = Some(code);
        self.record.tell(Outcome::Broken);
        let Some(events) = &self.events else {
            return Err(BrokenOff);
        };
        let message = match code {
            Code::ProviderBroke => "The provider's answer broke off before its end.",
            _ => "The connection to the provider was lost before the answer's end.",
        };
        let refusal = Refusal::new(code, message);
        let event = error::sse_chunk(Dialect::OpenAi, &refuse::text(&refusal));
        if events.is_between() {
            return Ok(Frame::data(event));
        }
        // The open event is closed first; what it holds cannot be read as a whole one.
        let mut closed = Vec::with_capacity(event.len() + 2);
        closed.extend_from_slice(b"\n\n");
        closed.extend_from_slice(&event);
        Ok(Frame::data(closed.into()))
    }

    /// Nothing comes at the moment: is it time for a sign of life?
    fn poll_ping(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(events) = &mut self.events else {
            return Poll::Pending;
        };
        if events.poll_ping(self.around.ping, cx) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PING)))));
        }
        Poll::Pending
    }
}

impl Stream {
    /// Tokens that were used without anybody saying so. A client that leaves before its usage is told, or never asks for it,
    /// must not get around its key's limit: an event counts as a token then, which is what most providers send, and four bytes
    /// of the request as another.
    fn told(&self) -> u64 {
        let begun = self.events.as_ref().and_then(|events| events.begun);
        let record = &self.record;
        match begun {
            Some(begun @ 1..)
                if record.usage.is_none()
                    && record.replays.is_none()
                    && record.request_bytes > 0 =>
            {
                (record.request_bytes / 4).min(ASKED_TOKENS_MAX) + begun
            }
            _ => 0,
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let told = self.told();
        let afterwards = self.around.afterwards.take().filter(|_| !self.over);
        if let (Some(afterwards), Some(response)) = (afterwards, self.response.take()) {
            return afterwards.watch(response, self.around.permit.hand_over(), told);
        }
        if told > 0 {
            self.around.permit.used_tokens(told, Instant::now());
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.record.id)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

const fn code(lost: &Lost) -> Code {
    match lost.reason {
        LostReason::Protocol(_) => Code::Protocol,
        LostReason::LinkDown | LostReason::Reset | LostReason::Cancelled | LostReason::Gone => {
            Code::PathBroken
        }
    }
}

impl Events {
    fn saw(&mut self, bytes: &[u8]) {
        self.heard = Instant::now();
        if let Some(begun) = &mut self.begun {
            *begun += memchr::memmem::find_iter(bytes, b"data:").count() as u64;
        }
        let new = &bytes[bytes.len().saturating_sub(4)..];
        self.tail.rotate_left(new.len());
        self.tail[4 - new.len()..].copy_from_slice(new);
    }

    /// Whether no event is open.
    fn is_between(&self) -> bool {
        between(&self.tail)
    }

    /// True when a comment is due. Otherwise the task is woken when one may be.
    fn poll_ping(&mut self, every: Duration, cx: &mut Context<'_>) -> bool {
        let Self {
            tail: _,
            heard,
            timer,
            begun: _,
        } = self;
        let timer = timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until((*heard + every).into())));
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let quiet = now >= *heard + every;
            // An open event is looked at again after as long a time.
            let from = if quiet { now } else { *heard };
            timer.as_mut().reset((from + every).into());
            if quiet && between(&self.tail) {
                *heard = now;
                return true;
            }
        }
        false
    }
}

/// Whether the bytes that went out last ended an event.
fn between(tail: &[u8; 4]) -> bool {
    tail.ends_with(b"\n\n") || tail == b"\r\n\r\n" || tail.ends_with(b"\r\r")
}
