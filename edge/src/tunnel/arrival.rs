//! The egress's end of an exchange: takes or refuses it, reads the request, writes the answer.

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        codec::{self, Kind, Piece},
        v1,
    },
};

use super::{
    Lost, LostReason,
    end::{Attachment, End},
    exchange::REQUEST_CREDIT_BYTES,
    half::{ReadStream, ReceiveHalf, SendHalf},
    link::Link,
    repair::{self, Mender},
    transport::{Receiver, Sender},
};

/// An exchange that has arrived and is neither accepted nor refused.
pub struct Arrival {
    /// Which exchange.
    pub exchange: ExchangeId,
    /// The node it came from: the ingress, or the relay before this node.
    pub from: Arc<str>,
    /// What is asked.
    pub open: v1::Open,
    pub(super) end: Arc<End>,
    pub(super) link: Arc<Link>,
    pub(super) send: Sender,
    pub(super) receive: Receiver,
    pub(super) rest: Bytes,
}

impl Arrival {
    /// Refuses: nothing was executed.
    pub async fn refuse(mut self, refused: v1::Refused) {
        // If the refusal cannot be said, the link is gone and the ingress knows.
        let _ = self
            .send
            .write(&mut [codec::message(Kind::Refused, &refused)])
            .await;
        self.send.finish();
        self.end.tunnel.forget(&self.end);
    }

    /// Takes the exchange and says so at once. From now on it outlives the link it came over.
    ///
    /// Cancel safety: dropped half-way, the ingress sees the answer cut off.
    ///
    /// # Errors
    /// [`Lost`] when the exchange was cancelled.
    pub async fn accept(self) -> Result<(RequestBody, Answer), Lost> {
        let Self {
            end,
            link,
            send,
            receive,
            rest,
            open,
            ..
        } = self;
        let accepted = v1::Accepted {
            epoch: end.epoch(),
            request_credit: REQUEST_CREDIT_BYTES,
            offset: 0,
        };
        let mut body = ReadStream::attached(&link, receive, 0, rest);
        let place = open.repaired.then(|| end.tunnel.mending().take()).flatten();
        let mender = place.map(Mender::new);
        if mender.is_some() {
            repair::warm();
            body = body.scattered();
            link.give_early_repairs(&end);
        }
        let body = ReceiveHalf::new(Arc::clone(&end), body, mender);
        {
            let mut sending = end.sending.lock();
            let at = Attachment { link, stream: send };
            sending.install(at, |_| codec::message(Kind::Accepted, &accepted));
        }
        end.set_accepted();
        let mut answer = Answer(SendHalf::new(end));
        answer.flush().await?;
        Ok((
            RequestBody {
                half: body,
                before: VecDeque::new(),
                ended: false,
            },
            answer,
        ))
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrival({} from {})", self.exchange, self.from)
    }
}

/// The request's body.
#[derive(Debug)]
pub struct RequestBody {
    pub(super) half: ReceiveHalf,
    /// What came before what is asked.
    pub(super) before: VecDeque<Bytes>,
    pub(super) ended: bool,
}

impl RequestBody {
    /// The next bytes; `None` at the end.
    ///
    /// Cancel safety: dropping it loses nothing.
    ///
    /// # Errors
    /// [`Lost`] when the upload breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Lost> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`] for use in a body.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Lost>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        if let Some(bytes) = self.before.pop_front() {
            return Poll::Ready(Ok(Some(bytes)));
        }
        Poll::Ready(match ready!(self.half.poll_piece(cx)) {
            Ok(Piece::Data(bytes)) => Ok(Some(bytes)),
            Ok(Piece::Frame(Kind::End, _)) => {
                self.ended = true;
                Ok(None)
            }
            Ok(Piece::Frame(kind, _)) => Err(Lost::accepted(LostReason::Protocol(
                codec::Error::OutOfPlace(kind),
            ))),
            Err(reason) => Err(Lost::accepted(reason)),
        })
    }
}

/// Writes the answer. Dropped unfinished, it breaks the answer off.
#[derive(Debug)]
pub struct Answer(SendHalf);

impl Answer {
    /// Refuses instead of answering.
    pub async fn refuse(mut self, refused: v1::Refused) {
        self.0.last(codec::message(Kind::Refused, &refused));
        // It fails only if nobody waits for it any more.
        let _ = self.flush().await;
    }

    /// Begins the answer; leaves with the next flush.
    pub fn head(&mut self, head: &v1::ResponseHead) {
        self.0.frame(codec::message(Kind::Head, head));
    }

    /// Appends body bytes: small ones leave with the next flush, and a full window waits for credit.
    ///
    /// Cancel safety: the bytes are taken in before the first wait.
    ///
    /// # Errors
    /// [`Lost`] when the exchange was cancelled, or its ingress is gone.
    pub async fn data(&mut self, bytes: Bytes) -> Result<(), Lost> {
        self.0.data(bytes).await.map_err(Lost::accepted)
    }

    /// Sends what is held.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn flush(&mut self) -> Result<(), Lost> {
        self.0.flush().await.map_err(Lost::accepted)
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn finish(mut self, trailers: &v1::Trailers) -> Result<(), Lost> {
        self.0.frame(codec::message(Kind::Trailers, trailers));
        self.0.last(codec::END);
        self.flush().await
    }

    /// Resolves once nobody waits for the answer: cancelled by the ingress, or without a way to it for too long.
    #[must_use]
    pub fn canceller(&self) -> Cancelled {
        Cancelled(self.0.end.stop.clone().unwrap_or_default())
    }
}

/// Tells whether, and waits until, nobody waits for an answer any more.
#[derive(Clone, Debug)]
pub struct Cancelled(CancellationToken);

impl Cancelled {
    /// Whether it is so already.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves once it is so. Cancel safety: may be dropped and called again.
    pub fn cancelled(&self) -> impl Future<Output = ()> + '_ {
        self.0.cancelled()
    }

    /// As [`Self::cancelled`], borrowing nothing.
    pub fn into_future(self) -> impl Future<Output = ()> + 'static {
        self.0.cancelled_owned()
    }
}
