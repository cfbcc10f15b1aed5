//! The ingress's end of an exchange: opens it, sends the request, reads the answer.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use prost::Message as _;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        codec::{self, Entry, GoneReason, Kind, Piece},
        v1,
    },
};

use super::{
    Failure, Lost, LostReason, OpenError,
    half::{ReceiveHalf, SendHalf, read_preamble},
    link::{Link, Shared, Target},
    transport::Receiver,
};

/// One attempt of an exchange, in two halves so that upload and answer run at once.
#[derive(Debug)]
pub struct Call {
    /// Sends the body.
    pub request: RequestWriter,
    /// Reads the answer.
    pub response: ResponseReader,
}

impl Call {
    /// Opens an exchange over `link`. Nothing leaves before the first flush.
    ///
    /// Cancel safety: dropping the future opens nothing.
    pub(super) async fn open(
        link: &Arc<Link>,
        exchange: ExchangeId,
        open: &v1::Open,
    ) -> Result<Self, OpenError> {
        if !link.usable() {
            return Err(OpenError::NoLink);
        }
        let (send, receive) = link.open_stream().await.map_err(|_| OpenError::NoLink)?;
        let shared = Shared::new(exchange, None);
        link.register(exchange, Target::Here(Arc::clone(&shared)));
        link.count(true);
        let preamble = codec::message(Kind::Open, open);
        let reader = Reader::Waiting(receive);
        Ok(Self {
            request: RequestWriter(SendHalf::new(
                Arc::clone(&shared),
                Arc::clone(link),
                send,
                preamble,
            )),
            response: ResponseReader {
                shared,
                link: Arc::clone(link),
                reader,
                accepted: false,
                ended: false,
            },
        })
    }
}

/// Sends the request's body.
#[derive(Debug)]
pub struct RequestWriter(SendHalf);

impl RequestWriter {
    /// Sends body bytes: small ones leave with the next flush, and a full window waits for credit.
    ///
    /// Cancel safety: the bytes are taken in before the first wait.
    ///
    /// # Errors
    /// [`Lost`] when the exchange cannot go on; the answer's half then says more.
    pub async fn data(&mut self, bytes: Bytes) -> Result<(), Lost> {
        self.0.data(bytes).await.map_err(Lost::unaccepted)
    }

    /// Sends what is held.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn flush(&mut self) -> Result<(), Lost> {
        self.0.flush().await.map_err(Lost::unaccepted)
    }

    /// Ends the body and sends what is held.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn end(&mut self) -> Result<(), Lost> {
        self.0.frame(codec::END);
        self.flush().await?;
        self.0.finish();
        Ok(())
    }
}

/// Reads the answer. Dropped before its end, it cancels the exchange at the egress.
#[derive(Debug)]
pub struct ResponseReader {
    shared: Arc<Shared>,
    link: Arc<Link>,
    reader: Reader,
    accepted: bool,
    ended: bool,
}

#[derive(Debug)]
enum Reader {
    /// Before the preamble.
    Waiting(Receiver),
    /// In the sequence.
    Reading(Box<ReceiveHalf>),
    /// Taken for a moment, or of no further use.
    Nothing,
}

/// What an answer consists of behind its head.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// Body bytes, not empty.
    Data(Bytes),
    /// What the egress measured.
    Trailers(v1::Trailers),
    /// The answer is whole. Stays so.
    End,
}

impl ResponseReader {
    /// Returns once the egress has taken the exchange.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`Failure`]: refused, or lost on the way.
    pub async fn accepted(&mut self) -> Result<(), Failure> {
        let Reader::Waiting(stream) = &mut self.reader else {
            return Ok(());
        };
        let read = read_preamble(stream).await;
        let (kind, payload, rest) =
            read.map_err(|error| self.lost(error.into_reason(&self.shared)))?;
        match kind {
            Kind::Accepted => {
                let accepted = v1::Accepted::decode(payload).map_err(|_| self.malformed(kind))?;
                self.accepted = true;
                self.shared.outgoing.lock().allow(accepted.request_credit);
                let Reader::Waiting(stream) = std::mem::replace(&mut self.reader, Reader::Nothing)
                else {
                    return Ok(());
                };
                let half = ReceiveHalf::new(
                    Arc::clone(&self.shared),
                    Arc::clone(&self.link),
                    stream,
                    rest,
                );
                self.reader = Reader::Reading(Box::new(half.map_err(|reason| self.lost(reason))?));
                Ok(())
            }
            Kind::Refused => Err(self.refused(payload)),
            _ => Err(self
                .lost(LostReason::Protocol(codec::Error::OutOfPlace(kind)))
                .into()),
        }
    }

    /// The answer's head.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`Failure`]: refused, or lost on the way.
    pub async fn head(&mut self) -> Result<v1::ResponseHead, Failure> {
        self.accepted().await?;
        let Reader::Reading(half) = &mut self.reader else {
            return Err(self.lost(LostReason::Gone).into());
        };
        match half.piece().await.map_err(|reason| self.lost(reason))? {
            Piece::Frame(Kind::Head, payload) => {
                v1::ResponseHead::decode(payload).map_err(|_| self.malformed(Kind::Head).into())
            }
            Piece::Frame(Kind::Refused, payload) => Err(self.refused(payload)),
            Piece::Frame(kind, _) => Err(self
                .lost(LostReason::Protocol(codec::Error::OutOfPlace(kind)))
                .into()),
            Piece::Data(_) => Err(self
                .lost(LostReason::Protocol(codec::Error::OutOfPlace(Kind::Data)))
                .into()),
        }
    }

    /// The next part, after [`Self::head`].
    ///
    /// Cancel safety: dropping it loses nothing.
    ///
    /// # Errors
    /// [`Lost`] when the answer breaks off.
    pub async fn next(&mut self) -> Result<Part, Lost> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`Self::next`] for use in a body.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Part, Lost>> {
        if self.ended {
            return Poll::Ready(Ok(Part::End));
        }
        let Reader::Reading(half) = &mut self.reader else {
            return Poll::Ready(Err(self.lost(LostReason::Gone)));
        };
        let part = match ready!(half.poll_piece(cx)) {
            Ok(Piece::Data(bytes)) => Part::Data(bytes),
            Ok(Piece::Frame(Kind::Trailers, payload)) => Part::Trailers(
                v1::Trailers::decode(payload).map_err(|_| self.malformed(Kind::Trailers))?,
            ),
            Ok(Piece::Frame(Kind::End, _)) => {
                self.ended = true;
                Part::End
            }
            Ok(Piece::Frame(kind, _)) => {
                return Poll::Ready(Err(
                    self.lost(LostReason::Protocol(codec::Error::OutOfPlace(kind)))
                ));
            }
            Err(reason) => return Poll::Ready(Err(self.lost(reason))),
        };
        Poll::Ready(Ok(part))
    }

    fn lost(&self, reason: LostReason) -> Lost {
        Lost {
            reason,
            accepted: self.accepted,
        }
    }

    fn malformed(&self, kind: Kind) -> Lost {
        self.lost(LostReason::Protocol(codec::Error::Malformed(kind)))
    }

    fn refused(&mut self, payload: Bytes) -> Failure {
        match v1::Refused::decode(payload) {
            Ok(refused) => {
                self.ended = true;
                Failure::Refused(Box::new(refused))
            }
            Err(_) => self.malformed(Kind::Refused).into(),
        }
    }
}

impl Drop for ResponseReader {
    fn drop(&mut self) {
        let exchange = self.shared.exchange;
        if !self.ended {
            self.link.say(Entry::Cancel {
                exchange,
                reason: GoneReason::ClientGone as u64,
            });
        }
        self.link.forget(exchange);
        self.link.count(false);
    }
}
