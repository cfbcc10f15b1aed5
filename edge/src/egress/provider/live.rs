//! An exchange with a provider: the request goes out, the answer is read piece by piece.
//!
//! Dropping any of this stops the exchange at the provider at once: an HTTP/1.1 connection is closed, an HTTP/2 stream
//! reset. Only an answer that was read to its end gives its connection back.

use std::{
    error::Error as _,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use h2::Reason;
use http::{Request, response};
use http_body::Body as _;
use hyper::body::Incoming;
use vector_proto::refusal::Code;

use super::{
    origin::{Origin, Wire},
    upload::UploadBody,
};
use crate::tunnel::{Lost, LostReason};

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SendError {
    /// What hyper says.
    #[source]
    pub error: hyper::Error,
    /// The connection had served before, so the provider may have closed it just then.
    pub reused: bool,
}

impl SendError {
    /// The provider did nothing: no byte of the request was written, or it refused the stream (RFC 9113, 8.7), or went away
    /// before it (6.8).
    pub fn is_unsent(&self) -> bool {
        self.error.is_canceled() || self.is_refused_stream()
    }

    fn is_refused_stream(&self) -> bool {
        let cause = self.error.source();
        let cause = cause.and_then(|cause| cause.downcast_ref::<h2::Error>());
        cause.is_some_and(|error| {
            let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
            // h2 gives a provider's GOAWAY only to streams above the last one that it names. The others go on.
            error.is_remote() && (refused || error.is_go_away())
        })
    }

    /// Why the request could not be sent, where that is nobody's doing here: it broke off, or its ingress breaks the rules.
    pub fn of_upload(&self) -> (Code, String) {
        let cause = self.error.source();
        match cause.and_then(|cause| cause.downcast_ref::<Lost>()) {
            Some(Lost {
                reason: LostReason::Protocol(error),
                ..
            }) => (Code::Protocol, error.to_string()),
            _ => {
                let message = "The request broke off before its end.";
                (Code::Cancelled, message.into())
            }
        }
    }

    /// The connection went away, rather than the answer being wrong.
    pub fn is_lost(&self) -> bool {
        !self.error.is_parse() && !self.error.is_user()
    }
}

/// A connection that was taken, before the request goes out.
#[derive(Debug)]
pub struct Ready {
    pub(super) wire: Wire,
    pub(super) origin: Arc<Origin>,
}

impl Ready {
    /// Whether the request is to be in HTTP/2's form.
    pub fn speaks_h2(&self) -> bool {
        matches!(self.wire, Wire::H2(_))
    }

    /// Whether the connection has served before.
    pub fn is_reused(&self) -> bool {
        match &self.wire {
            Wire::H1 { connection, .. } => connection.reused,
            Wire::H2(_) => true,
        }
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// [`SendError`] when none comes.
    pub async fn send(
        mut self,
        request: Request<UploadBody>,
    ) -> Result<(response::Parts, Live), SendError> {
        let reused = self.is_reused();
        let answered = match &mut self.wire {
            Wire::H1 { connection, .. } => {
                let mut response = pin!(connection.sender.send_request(request));
                poll_fn(|cx| {
                    connection.drive(cx);
                    response.as_mut().poll(cx)
                })
                .await
            }
            Wire::H2(lease) => lease.sender.send_request(request).await,
        };
        let (head, body) = answered
            .map_err(|error| SendError { error, reused })?
            .into_parts();
        Ok((head, Live { from: self, body }))
    }
}

/// An answer that is being read.
#[derive(Debug)]
pub struct Live {
    from: Ready,
    body: Incoming,
}

impl Live {
    /// The next bytes of the body; `None` at its proper end. Trailers are dropped.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Bytes>>> {
        loop {
            let mut polled = Pin::new(&mut self.body).poll_frame(cx);
            if polled.is_pending()
                && let Wire::H1 { connection, .. } = &mut self.from.wire
            {
                // The poll said that there is room; now the connection may fill it.
                connection.drive(cx);
                polled = Pin::new(&mut self.body).poll_frame(cx);
            }
            return match std::task::ready!(polled) {
                None => Poll::Ready(None),
                Some(Err(error)) => Poll::Ready(Some(Err(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => continue,
                    Ok(data) => Poll::Ready(Some(Ok(data))),
                    Err(_trailers) => continue,
                },
            };
        }
    }

    /// Keeps the request's body moving while the answer cannot be written on.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let Wire::H1 { connection, .. } = &mut self.from.wire {
            connection.drive(cx);
        }
    }

    /// Whether nothing more can come, as far as is known without reading.
    pub fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Gives the connection back. Only after the end of the body.
    pub fn finish(self) {
        let Self { from, body } = self;
        drop(body);
        if let Wire::H1 { mut connection, .. } = from.wire
            && connection.is_reusable(&mut Context::from_waker(Waker::noop()))
        {
            from.origin.give_back(connection);
        }
    }
}
