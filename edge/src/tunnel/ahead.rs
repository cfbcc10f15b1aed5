//! A body that goes ahead of what is asked, to the egress that will most likely be asked.
//!
//! The exchange is opened as any other and goes the same ways when its path dies: only its OPEN asks for nothing, and a HEAD
//! frame does in its place, wherever the body has come to by then. Until it is there nothing is executed, so that giving the
//! exchange up costs nobody anything but the bytes. A later attempt takes its place at the egress at once.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        codec::{self, Kind, Piece},
        v1,
    },
};

use super::{
    Call, Condition, Lost, LostReason, Path, RequestBody, RequestWriter, Tunnel,
    end::End,
    exchange::{INITIAL_CREDIT_BYTES, REQUEST_CREDIT_BYTES},
};

/// What of an egress's credit is left to the head, so that it never waits behind the body: what a head of 32 KiB takes at the
/// most.
const HEAD_ROOM_BYTES: u64 = 64 << 10;
const _: () = assert!(HEAD_ROOM_BYTES < INITIAL_CREDIT_BYTES);

/// What one piece costs beside its bytes: a client may send them one by one.
const PIECE_BYTES: u64 = 64;

/// Pieces below this size are gathered where they wait for a head, or their bookkeeping would be more than they are.
const GATHERED_BYTES_MAX: usize = 256;

impl Tunnel {
    /// Bytes that may go ahead over a path: none where it leads over a relay, is not well, or its egress does not take them.
    fn room_ahead(&self, path: &Path) -> Option<u64> {
        let link = self.link(&path.egress)?;
        let good = path.relay.is_none()
            && link.terms.ahead
            && link.condition() == Condition::Up
            // Within a node nothing is saved.
            && *link.peer != *link.me
            && !self.budget().is_spent();
        good.then(|| link.terms.request_credit.max(INITIAL_CREDIT_BYTES) - HEAD_ROOM_BYTES)
    }

    /// Opens an exchange for a body that goes ahead, if the path is good for it. `open` asks for nothing.
    ///
    /// Cancel safety: dropping the future opens nothing.
    pub async fn go_ahead(
        &self,
        path: &Path,
        exchange: ExchangeId,
        open: v1::Open,
    ) -> Option<Ahead> {
        let room = self.room_ahead(path)?;
        let open = v1::Open {
            ahead: true,
            ..open
        };
        let call = self.open(path, exchange, &open).await.ok()?;
        self.tally().ahead.inc();
        Some(Ahead {
            call: Some(call),
            room,
            accepted: false,
            flushed: false,
        })
    }
}

/// An exchange whose body goes ahead. Dropped, it is given up.
#[derive(Debug)]
pub struct Ahead {
    /// Gone once it is lost, refused or begun.
    call: Option<Call>,
    /// What may still go ahead.
    room: u64,
    accepted: bool,
    /// Nothing is held back.
    flushed: bool,
}

impl Ahead {
    /// Takes in what comes next of the body, as far as it may go ahead. It leaves with [`Self::poll`].
    pub fn push(&mut self, bytes: &Bytes) {
        let Some(call) = &mut self.call else { return };
        let most = usize::try_from(self.room.saturating_sub(PIECE_BYTES)).unwrap_or(usize::MAX);
        let part = bytes.slice(..bytes.len().min(most));
        if part.len() < bytes.len() {
            // What follows would leave a gap.
            self.room = 0;
        }
        self.room = self.room.saturating_sub(part.len() as u64 + PIECE_BYTES);
        call.request.ahead += part.len() as u64;
        call.request.half.body(part);
        self.flushed = false;
    }

    /// Drives what was taken in, and hears what the egress says. Whoever calls it waits for something else.
    pub fn poll(&mut self, cx: &mut Context<'_>) {
        let Some(call) = &mut self.call else { return };
        let mut lost = false;
        if !self.accepted {
            match call.response.poll_accepted(cx) {
                Poll::Ready(Ok(())) => self.accepted = true,
                Poll::Ready(Err(_)) => lost = true,
                Poll::Pending => {}
            }
        }
        if !lost && !self.flushed {
            match call.request.half.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.flushed = true,
                Poll::Ready(Err(_)) => lost = true,
                Poll::Pending => {}
            }
        }
        if lost {
            self.give_up();
        }
    }

    /// Whether it was refused, or is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        let end = self.call.as_ref().map(|call| &call.response.half.end);
        end.is_none_or(|end| end.fate().is_some())
    }

    /// Asks, with the next flush, for what `open` says: from here on it is a call as any other. What went ahead of the body is
    /// not sent again, although it is given to it again.
    #[must_use]
    pub fn begin(mut self, open: &v1::Open) -> Option<Call> {
        if self.is_lost() {
            return None;
        }
        let mut call = self.call.take()?;
        let end = Arc::clone(&call.response.half.end);
        end.tunnel.tally().ahead_begun.inc();
        end.begin(open);
        call.request.ask(open);
        Some(call)
    }

    fn give_up(&mut self) {
        let Some(Call { request, response }) = self.call.take() else {
            return;
        };
        let end = Arc::clone(&response.half.end);
        end.tunnel.tally().ahead_missed.inc();
        // Cancels it. After that, what has not left would only be in the way of others.
        drop(response);
        {
            let mut sending = end.sending.lock();
            if let Some(at) = &mut sending.at {
                at.stream.reset();
            }
            sending.detach();
        }
        drop(request);
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl RequestWriter {
    /// Says among the body what is asked; it leaves with the next flush.
    pub fn ask(&mut self, open: &v1::Open) {
        self.half.frame(codec::message(Kind::Head, open));
        self.half.asked();
    }

    /// Cuts off what went ahead.
    pub(super) fn skip(&mut self, bytes: &mut Bytes) {
        let known = usize::try_from(self.ahead).unwrap_or(usize::MAX);
        let known = known.min(bytes.len());
        bytes.advance(known);
        self.ahead -= known as u64;
    }
}

impl RequestBody {
    /// Waits for what is asked, and keeps what comes of the body before it; then it is a body as any other.
    ///
    /// Cancel safety: what came may be lost with it; the exchange is over.
    ///
    /// # Errors
    /// [`Lost`] when the exchange was given up, or the peer breaks the rules.
    pub async fn head(&mut self) -> Result<v1::Open, Lost> {
        let broken = |error| Lost::accepted(LostReason::Protocol(error));
        let mut bytes = 0;
        let mut small = BytesMut::new();
        loop {
            match self.half.piece().await.map_err(Lost::accepted)? {
                Piece::Data(piece) => {
                    bytes += piece.len() as u64;
                    if bytes > REQUEST_CREDIT_BYTES {
                        let max = REQUEST_CREDIT_BYTES as usize;
                        let kind = Kind::Data;
                        let len = bytes;
                        return Err(broken(codec::Error::TooLong { kind, len, max }));
                    }
                    if piece.len() < GATHERED_BYTES_MAX {
                        small.extend_from_slice(&piece);
                        continue;
                    }
                    self.wait(&mut small);
                    self.before.push_back(piece);
                }
                Piece::Frame(Kind::Head, payload) => {
                    self.wait(&mut small);
                    let open = v1::Open::decode(payload);
                    let open = open.map_err(|_| broken(codec::Error::Malformed(Kind::Head)))?;
                    // Nobody else waits for it meanwhile.
                    let begins = self.half.end.begin(&open);
                    // As ACCEPTED is said of others before anything is executed.
                    self.half.acknowledge(true);
                    let cancelled = Lost::accepted(LostReason::Cancelled);
                    return begins.then_some(open).ok_or(cancelled);
                }
                Piece::Frame(kind, _) => return Err(broken(codec::Error::OutOfPlace(kind))),
            }
        }
    }

    /// Lets go of the rest without a word, for an exchange that is refused: its ingress hears that, and a word about the body
    /// could come when the next attempt sends it.
    pub fn leave(self) {
        self.half.end.whole.store(true, Ordering::Release);
    }

    fn wait(&mut self, small: &mut BytesMut) {
        if !small.is_empty() {
            self.before.push_back(small.split().freeze());
        }
    }
}

impl End {
    /// Whether small pieces go over two paths.
    pub(super) fn is_redundant(&self) -> bool {
        self.redundant.load(Ordering::Relaxed)
    }

    /// Whether it may be done twice.
    pub(super) fn is_repeatable(&self) -> bool {
        self.repeatable.load(Ordering::Relaxed)
    }

    /// What is asked is there. `false`: it was given up before.
    fn begin(&self, open: &v1::Open) -> bool {
        self.redundant.store(open.redundant, Ordering::Relaxed);
        self.repeatable.store(open.repeatable, Ordering::Relaxed);
        self.headless.swap(false, Ordering::AcqRel)
    }

    /// Lets go of an exchange by which nothing was asked, and never will be. `false`: it was.
    pub(super) fn give_up(self: &Arc<Self>) -> bool {
        let headless = self.headless.swap(false, Ordering::AcqRel);
        if headless {
            self.seal(LostReason::Cancelled);
        }
        headless
    }
}
