//! One HTTP/1.1 connection to a provider, driven by whoever uses it.
//!
//! The connection has no task of its own: the exchange that uses it polls it, so a request and its answer cross no
//! task and no thread, and dropping the exchange closes the socket at once. While it is idle nobody polls
//! it; [`H1::is_alive`] asks the socket before it is used again.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;

use super::{dial, stream::Stream, upload::UploadBody};

/// Largest head of an answer, and what is read ahead of a body: 10,000 connections x 64 KiB = 640 MB at the worst,
/// 8 KiB each as a rule.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// A connection and its sending half.
pub(super) struct H1 {
    pub(super) sender: SendRequest<UploadBody>,
    connection: Connection<TokioIo<Stream>, UploadBody>,
    /// The connection has ended and must not be polled again.
    over: bool,
    /// It has carried an exchange before.
    pub(super) reused: bool,
    pub(super) idle_since: Instant,
}

impl H1 {
    /// Makes ready to speak over a fresh stream.
    pub(super) async fn begin(stream: Stream) -> Result<Box<Self>, dial::Error> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Box::new(Self {
            sender,
            connection,
            over: false,
            reused: false,
            idle_since: Instant::now(),
        }))
    }

    /// Moves bytes both ways as far as they go. What goes wrong shows in the answer.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if !self.over {
            self.over = Pin::new(&mut self.connection).poll(cx).is_ready();
        }
    }

    /// Whether an idle connection is still open, as far as this end can know.
    pub(super) fn is_alive(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.over && !self.sender.is_closed()
    }

    /// Whether the exchange has left it ready for another.
    pub(super) fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        self.drive(cx);
        let ready = matches!(self.sender.poll_ready(cx), Poll::Ready(Ok(())));
        ready && !self.over
    }
}

impl std::fmt::Debug for H1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("H1")
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
