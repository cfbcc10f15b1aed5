//! Ends answers over HTTP/2 of which their client takes nothing.
//!
//! A client may answer pings for ever and never open the window of a stream: hyper then holds the answer, and with it the
//! exchange, for as long. It asks a body for the next piece once the client has made room for the one before, so an answer that
//! gave a piece and was not asked again waits for its client. Pieces are small, so that to take slowly is not to take nothing.
//! HTTP/1.1 is watched by `wire`. There is a timer only while a stream waits for its client.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::stream::{Answer, BrokenOff};

/// Largest piece that hyper is given at once: a client that takes less than this in a minute, 273 bytes a second, takes nothing.
const PIECE_BYTES: usize = 16 << 10;

tokio::task_local! {
    /// Of the stream whose task this is.
    static PULSE: Arc<Pulse>;
}

/// What a stream's body tells its task: pieces that were asked for, and given. They are equal while the client is waited for.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    asked: AtomicU64,
    given: AtomicU64,
}

impl Pulse {
    /// The one that the task which runs this looks at.
    pub(super) fn of_this_stream() -> Arc<Self> {
        PULSE.try_with(Arc::clone).unwrap_or_default()
    }

    /// Number of the piece that the client is to take, if that is what the stream waits for.
    fn waits_for_client(&self) -> Option<u64> {
        let given = self.given.load(Ordering::Relaxed);
        (given > 0 && given == self.asked.load(Ordering::Relaxed)).then_some(given)
    }
}

/// An answer in small pieces, which tells its stream's task when one was asked for and given.
#[derive(Debug)]
pub(super) struct Paced {
    answer: Answer,
    /// Of the piece in hand.
    rest: Bytes,
    pulse: Arc<Pulse>,
}

impl Paced {
    pub(super) fn new(answer: Answer, pulse: Arc<Pulse>) -> Self {
        Self {
            answer,
            rest: Bytes::new(),
            pulse,
        }
    }

    fn cut(&mut self, mut bytes: Bytes) -> Frame<Bytes> {
        self.rest = bytes.split_off(bytes.len().min(PIECE_BYTES));
        self.pulse.given.fetch_add(1, Ordering::Relaxed);
        Frame::data(bytes)
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let given = self.pulse.given.load(Ordering::Relaxed);
        self.pulse.asked.store(given + 1, Ordering::Relaxed);
        if !self.rest.is_empty() {
            let rest = std::mem::take(&mut self.rest);
            return Poll::Ready(Some(Ok(self.cut(rest))));
        }
        match Pin::new(&mut self.answer).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) => Poll::Ready(Some(Ok(self.cut(bytes)))),
                Err(other) => Poll::Ready(Some(Ok(other))),
            },
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() {
            self.answer.size_hint()
        } else {
            SizeHint::default()
        }
    }
}

/// One stream's future, which ends when its client takes nothing for too long: hyper then resets the stream, and the exchange is
/// cancelled as if the client had gone.
pub(super) struct Watched<F> {
    stream: Pin<Box<F>>,
    pulse: Arc<Pulse>,
    limit: Duration,
    /// The piece that is waited for, and until when.
    stall: Option<(u64, Pin<Box<Sleep>>)>,
}

impl<F> Watched<F> {
    pub(super) fn new(stream: F, limit: Duration) -> Self {
        Self {
            stream: Box::pin(stream),
            pulse: Arc::default(),
            limit,
            stall: None,
        }
    }

    fn poll_stall(&mut self, piece: u64, cx: &mut Context<'_>) -> Poll<()> {
        let limit = self.limit;
        let (waited_for, timer) = self
            .stall
            .get_or_insert_with(|| (piece, Box::pin(tokio::time::sleep(limit))));
        if *waited_for != piece {
            *waited_for = piece;
            timer.as_mut().reset(Instant::now() + limit);
        }
        timer.as_mut().poll(cx)
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let stream = this.stream.as_mut();
        let pulse = Arc::clone(&this.pulse);
        if PULSE.sync_scope(pulse, || stream.poll(cx)).is_ready() {
            return Poll::Ready(());
        }
        let Some(piece) = this.pulse.waits_for_client() else {
            return Poll::Pending;
        };
        let stalled = this.poll_stall(piece, cx);
        if stalled.is_ready() {
            tracing::debug!("a client takes nothing of its answer: the stream is reset");
        }
        stalled
    }
}
