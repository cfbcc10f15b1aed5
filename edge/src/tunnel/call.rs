//! The ingress's end of an exchange: opens it, sends the request, reads the answer.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
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
    Failure, Lost, LostReason, OpenError, Path, Tunnel,
    end::{Attachment, End, Opening, Origin, Side},
    half::{ReadStream, ReceiveHalf, SendHalf},
    link::Link,
    pool::asks_for_known,
    repair,
    resume::open_frame,
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
        tunnel: &Tunnel,
        path: &Path,
        link: &Arc<Link>,
        exchange: ExchangeId,
        open: &v1::Open,
    ) -> Result<Self, OpenError> {
        // A silent path is worth a try: it was chosen since no other is left.
        if (link.draining() && !asks_for_known(open)) || link.is_down() {
            return Err(OpenError::NoLink);
        }
        let (stream, receive) = link
            .open_stream_now()
            .await
            .map_err(|_| OpenError::NoLink)?;
        let direct = path.relay.is_none();
        let epoch = if direct { link.epoch } else { 0 };
        let beside = v1::Open {
            egress_epoch: if open.egress_epoch == 0 { epoch } else { 0 },
            via: tunnel.via(&path.egress),
            repaired: direct && link.repairs(open),
            ..v1::Open::default()
        };
        if beside.repaired {
            repair::warm();
        }
        let payload = open.encode_to_vec();
        let (frame, begin) = open_frame(&payload, &beside);
        let origin = Origin {
            exchange,
            side: Side::Ingress,
            far: Arc::clone(&path.egress),
            attempt: open.attempt,
            epoch,
            via: Vec::new(),
            redundant: open.redundant,
            repeatable: open.repeatable,
            repaired: beside.repaired,
            ahead: open.ahead,
            stop: None,
        };
        let end = End::new(tunnel, link, origin);
        {
            let mut sending = end.sending.lock();
            if direct {
                sending.outgoing.allow(link.terms.request_credit);
            }
            sending.opening = Some(Opening {
                first: (Instant::now(), Arc::clone(link)),
                left: false,
                hedged: false,
                payload: frame.slice(begin..begin + payload.len()),
                epoch: if direct {
                    epoch
                } else {
                    tunnel.epoch_of(&path.egress)
                },
            });
            let link = Arc::clone(link);
            sending.install(Attachment { link, stream }, |_| frame);
        }
        tunnel.calls().enter(&end);
        let first = ReadStream::opened(link, receive);
        Ok(Self {
            request: RequestWriter {
                half: SendHalf::new(Arc::clone(&end)),
                ahead: 0,
            },
            response: ResponseReader {
                half: ReceiveHalf::new(end, first, None),
                ended: false,
            },
        })
    }
}

/// Sends the request's body.
#[derive(Debug)]
pub struct RequestWriter {
    pub(super) half: SendHalf,
    /// Bytes of the body that went ahead, and are not sent again.
    pub(super) ahead: u64,
}

impl RequestWriter {
    /// Sends body bytes: small ones leave with the next flush, and a full window waits for credit.
    ///
    /// Cancel safety: the bytes are taken in before the first wait.
    ///
    /// # Errors
    /// [`Lost`] when the exchange cannot go on; the answer's half then says more.
    pub async fn data(&mut self, mut bytes: Bytes) -> Result<(), Lost> {
        self.skip(&mut bytes);
        self.half.data(bytes).await.map_err(Lost::unaccepted)
    }

    /// Sends what is held.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn flush(&mut self) -> Result<(), Lost> {
        self.half.flush().await.map_err(Lost::unaccepted)
    }

    /// Ends the body and sends what is held.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn end(&mut self) -> Result<(), Lost> {
        self.half.last(codec::END);
        self.flush().await?;
        let end = &self.half.end;
        end.tunnel.send_repairs(end);
        Ok(())
    }
}

/// Reads the answer. Dropped before its end, it cancels the exchange at the egress.
#[derive(Debug)]
pub struct ResponseReader {
    pub(super) half: ReceiveHalf,
    ended: bool,
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
        std::future::poll_fn(|cx| self.poll_accepted(cx)).await
    }

    /// [`Self::accepted`] for use beside something else.
    pub(super) fn poll_accepted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        let accepted = ready!(self.half.poll_accepted(cx));
        Poll::Ready(match accepted.map_err(|reason| self.lost(reason))? {
            None => Ok(()),
            Some(payload) => Err(self.refused(payload)),
        })
    }

    /// The answer's head.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// [`Failure`]: refused, or lost on the way.
    pub async fn head(&mut self) -> Result<v1::ResponseHead, Failure> {
        let piece = self.half.piece().await;
        match piece.map_err(|reason| self.lost(reason))? {
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
        let part = match ready!(self.half.poll_piece(cx)) {
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
            accepted: self.half.end.is_taken(),
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
        let end = &self.half.end;
        if !self.ended {
            let reason = GoneReason::of_attempt(end.attempt);
            end.say_everywhere(Entry::Cancel {
                exchange: end.exchange,
                reason,
            });
        }
        // Whoever still sends the request has nobody to send it for.
        end.seal(LostReason::Cancelled);
    }
}
