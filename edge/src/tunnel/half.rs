//! The two halves of an end: what writes a sequence, and what reads one.
//!
//! Both ends of an exchange use the same two. They join the rules (`exchange`) with the streams
//! (`transport`), and talk about offsets with the peer through the link.

use std::{
    collections::VecDeque,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tokio::time::Sleep;
use vector_proto::tunnel::{
    codec::{
        self, DATA_BYTES_MAX, Decoder, Entry, FRAME_HEADER_BYTES_MAX, GoneReason, Kind, Piece,
    },
    v1,
};

use super::{
    LostReason,
    end::{End, Out, Side},
    exchange::Incoming,
    link::Link,
    transport::{self, Receiver},
};

/// Bytes that [`SendHalf::data`] holds back for company before it writes them out by itself.
const HELD_BYTES_MAX: usize = 16 << 10;

/// Pieces up to this size are copied behind their header. A token of 250 bytes is mostly a slice of an
/// 8 KiB read buffer, which the replay window would keep alive until the token is acknowledged.
const COPIED_BYTES_MAX: usize = 2 << 10;

/// Streams of one exchange that are read side by side. The oldest goes when another one comes.
const STREAMS_MAX: usize = 4;

/// How long a reader waits for another stream when none is left and nobody says why.
const ALONE: Duration = Duration::from_secs(2);

/// Writes one sequence. Dropped before the sequence is whole, it cuts it off, which the other end sees.
#[derive(Debug)]
pub(super) struct SendHalf {
    pub(super) end: Arc<End>,
    /// Frames not yet pushed into the sequence.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// The last frame is among them.
    ending: bool,
}

impl SendHalf {
    pub(super) const fn new(end: Arc<End>) -> Self {
        Self {
            end,
            held: Vec::new(),
            held_bytes: 0,
            ending: false,
        }
    }

    /// Appends a whole frame; it leaves with the next flush.
    pub(super) fn frame(&mut self, frame: Bytes) {
        self.held_bytes += frame.len();
        self.held.push(frame);
    }

    /// Appends the frame that makes the sequence whole.
    pub(super) fn last(&mut self, frame: Bytes) {
        self.frame(frame);
        self.ending = true;
    }

    /// Appends body bytes. Waits for credit when much is held.
    ///
    /// Cancel safety: the bytes are taken in before the first wait, so nothing is lost.
    pub(super) async fn data(&mut self, mut bytes: Bytes) -> Result<(), LostReason> {
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(DATA_BYTES_MAX));
            if part.len() <= COPIED_BYTES_MAX {
                let mut whole = BytesMut::with_capacity(FRAME_HEADER_BYTES_MAX + part.len());
                codec::put_header(&mut whole, Kind::Data, part.len());
                whole.extend_from_slice(&part);
                self.frame(whole.freeze());
            } else {
                self.frame(codec::data_header(part.len()));
                self.frame(part);
            }
        }
        if self.held_bytes >= HELD_BYTES_MAX {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Writes out everything that is held, as credit allows. What has no attachment at the moment
    /// stays in the window, and leaves when there is one.
    ///
    /// Cancel safety: dropping the future loses nothing; the next flush goes on.
    pub(super) async fn flush(&mut self) -> Result<(), LostReason> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LostReason>> {
        let Self {
            end,
            held,
            held_bytes,
            ending,
        } = self;
        let mut out = Out::Done;
        let room = {
            let mut sending = end.sending.lock();
            if let Some(reason) = end.fate() {
                return Poll::Ready(Err(reason));
            }
            if sending.unread {
                return Poll::Ready(Err(LostReason::Reset));
            }
            held.drain(..)
                .for_each(|frame| sending.outgoing.push(frame));
            *held_bytes = 0;
            sending.ended |= *ending;
            if sending.moving {
                end.mover.wake();
            } else {
                match sending.poll_out(cx) {
                    Poll::Ready(came) => out = came,
                    Poll::Pending => {
                        end.writer.register(cx.waker());
                        return Poll::Pending;
                    }
                }
            }
            end.poll_room(&sending, cx)
        };
        end.tunnel.came(end, out);
        room.map(Ok)
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        if self.end.fate().is_some() {
            return;
        }
        {
            let mut sending = self.end.sending.lock();
            if sending.unread {
                return;
            }
            for frame in self.held.drain(..) {
                sending.outgoing.push(frame);
            }
            if !sending.ended && !self.ending {
                sending.outgoing.push(codec::CUT);
            }
            sending.ended = true;
        }
        self.end.tunnel.see_off(&self.end);
    }
}

/// A stream that a sequence is read from.
#[derive(Debug)]
pub(super) struct ReadStream {
    pub(super) link: Arc<Link>,
    stream: Receiver,
    /// What it delivered and nobody has looked at.
    rest: Bytes,
    at: At,
}

#[derive(Debug)]
enum At {
    /// Before ACCEPTED or REFUSED.
    Preamble(Box<Decoder>),
    /// The offset of the next byte.
    Sequence(u64),
}

/// What a stream gave.
enum Read {
    Bytes(u64, Bytes),
    Refused(Bytes),
    Ended,
}

impl ReadStream {
    /// A stream that this end opened: the other end's preamble is still to come.
    pub(super) fn opened(link: &Arc<Link>, stream: Receiver) -> Self {
        Self {
            link: Arc::clone(link),
            stream,
            rest: Bytes::new(),
            at: At::Preamble(Box::default()),
        }
    }

    /// A stream whose preamble was read, and what came behind it.
    pub(super) fn attached(link: &Arc<Link>, stream: Receiver, offset: u64, rest: Bytes) -> Self {
        Self {
            link: Arc::clone(link),
            stream,
            rest,
            at: At::Sequence(offset),
        }
    }

    fn poll(&mut self, end: &Arc<End>, cx: &mut Context<'_>) -> Poll<Result<Read, LostReason>> {
        loop {
            let mut bytes = mem::take(&mut self.rest);
            if bytes.is_empty() {
                match ready!(self.stream.poll_read(cx)) {
                    Ok(Some(more)) => bytes = more,
                    Ok(None) | Err(_) => return Poll::Ready(Ok(Read::Ended)),
                }
            }
            match &mut self.at {
                At::Sequence(offset) => {
                    let at = *offset;
                    *offset += bytes.len() as u64;
                    return Poll::Ready(Ok(Read::Bytes(at, bytes)));
                }
                At::Preamble(decoder) => match decoder.next(&mut bytes)? {
                    None => {}
                    Some(Piece::Frame(Kind::Accepted, payload)) => {
                        let accepted = v1::Accepted::decode(payload)
                            .map_err(|_| codec::Error::Malformed(Kind::Accepted))?;
                        end.taken(&self.link, &accepted);
                        self.at = At::Sequence(accepted.offset);
                        self.rest = bytes;
                        if self.rest.is_empty() {
                            // Whoever waits for the acceptance alone is to see it.
                            return Poll::Ready(Ok(Read::Bytes(accepted.offset, Bytes::new())));
                        }
                    }
                    Some(Piece::Frame(Kind::Refused, payload)) => {
                        return Poll::Ready(Ok(Read::Refused(payload)));
                    }
                    Some(Piece::Frame(kind, _)) => {
                        return Poll::Ready(Err(codec::Error::OutOfPlace(kind).into()));
                    }
                    Some(Piece::Data(_)) => {
                        return Poll::Ready(Err(codec::Error::OutOfPlace(Kind::Data).into()));
                    }
                },
            }
        }
    }
}

/// Reads one sequence.
#[derive(Debug)]
pub(super) struct ReceiveHalf {
    pub(super) end: Arc<End>,
    /// Oldest first.
    streams: Vec<ReadStream>,
    incoming: Incoming,
    decoder: Decoder,
    /// Bytes in order, being decoded.
    input: Bytes,
    /// Bytes in order that came out of a filled gap.
    queue: VecDeque<Bytes>,
    /// What came instead of a sequence.
    refused: Option<Bytes>,
    /// Set while no stream is left.
    alone: Option<Pin<Box<Sleep>>>,
}

impl ReceiveHalf {
    pub(super) fn new(end: Arc<End>, stream: ReadStream) -> Self {
        Self {
            end,
            streams: vec![stream],
            incoming: Incoming::default(),
            decoder: Decoder::default(),
            input: Bytes::new(),
            queue: VecDeque::new(),
            refused: None,
            alone: None,
        }
    }

    /// The next piece of the sequence; a refusal before it comes as the frame that it is.
    ///
    /// # Errors
    /// Why no further piece comes. A sequence that was cut off is [`LostReason::Reset`].
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, LostReason>> {
        loop {
            let before = self.input.len();
            let piece = self
                .decoder
                .next(&mut self.input)
                .map_err(LostReason::Protocol)?;
            self.used((before - self.input.len()) as u64);
            match piece {
                None => {}
                Some(Piece::Frame(Kind::Cut, _)) => {
                    self.acknowledge(true);
                    return Poll::Ready(Err(LostReason::Reset));
                }
                Some(piece) => {
                    if matches!(piece, Piece::Frame(Kind::End | Kind::Refused, _)) {
                        self.end.whole.store(true, Ordering::Release);
                        self.acknowledge(true);
                    }
                    return Poll::Ready(Ok(piece));
                }
            }
            if let Some(bytes) = self.queue.pop_front() {
                self.input = bytes;
                continue;
            }
            if let Some(payload) = self.refused.take() {
                return Poll::Ready(Ok(Piece::Frame(Kind::Refused, payload)));
            }
            ready!(self.poll_read(cx))?;
        }
    }

    pub(super) async fn piece(&mut self) -> Result<Piece, LostReason> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    /// Resolves once the egress has taken the exchange, or refuses it: then with the refusal.
    pub(super) fn poll_accepted(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, LostReason>> {
        loop {
            if let Some(payload) = self.refused.take() {
                return Poll::Ready(Ok(Some(payload)));
            }
            if self.end.is_accepted() {
                return Poll::Ready(Ok(None));
            }
            ready!(self.poll_read(cx))?;
        }
    }

    /// Reads from whichever stream has something.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LostReason>> {
        loop {
            self.take_arrivals();
            let mut at = 0;
            while let Some(stream) = self.streams.get_mut(at) {
                match stream.poll(&self.end, cx)? {
                    Poll::Pending => at += 1,
                    Poll::Ready(Read::Bytes(offset, bytes)) => {
                        self.merge(offset, bytes)?;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Read::Refused(payload)) => {
                        self.streams.remove(at);
                        // Another attachment of the same exchange may still be accepted, or was.
                        if self.streams.is_empty() && !self.end.is_accepted() {
                            self.refused = Some(payload);
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Poll::Ready(Read::Ended) => {
                        self.streams.remove(at);
                    }
                }
            }
            self.end.reader.register(cx.waker());
            if let Some(reason) = self.end.fate() {
                return Poll::Ready(Err(reason));
            }
            if self.end.has_arrivals() {
                continue;
            }
            if !self.streams.is_empty() {
                return Poll::Pending;
            }
            let time = match self.end.side {
                Side::Ingress => ALONE,
                Side::Egress => self.end.tunnel.patience().grace,
            };
            let alone = self
                .alone
                .get_or_insert_with(|| Box::pin(tokio::time::sleep(time)));
            ready!(alone.as_mut().poll(cx));
            return Poll::Ready(Err(LostReason::Reset));
        }
    }

    fn take_arrivals(&mut self) {
        if !self.end.has_arrivals() {
            return;
        }
        self.alone = None;
        for stream in self.end.take_arrivals() {
            if self.streams.len() == STREAMS_MAX {
                self.streams.remove(0);
            }
            self.streams.push(stream);
        }
        // What was said over a path that died was perhaps not heard.
        let exchange = self.end.exchange;
        let (offset, credit) = self.incoming.restate();
        self.end.say(Entry::Ack { exchange, offset });
        self.end.say(Entry::Credit {
            exchange,
            offset: credit,
        });
    }

    fn merge(&mut self, at: u64, bytes: Bytes) -> Result<(), LostReason> {
        let violation = |violation| {
            tracing::warn!(peer = %self.end.far, exchange = %self.end.exchange, %violation, "peer breaks the tunnel's rules");
            LostReason::Gone
        };
        if let Some(bytes) = self.incoming.receive(at, bytes).map_err(violation)? {
            if self.input.is_empty() {
                self.input = bytes
            } else {
                self.queue.push_back(bytes)
            }
        }
        while let Some(bytes) = self.incoming.take_ahead() {
            self.queue.push_back(bytes);
        }
        self.end.set_received(self.incoming.next_offset());
        self.acknowledge(false);
        Ok(())
    }

    fn acknowledge(&mut self, all: bool) {
        if let Some(offset) = self.incoming.ack_due(all) {
            self.end.say(Entry::Ack {
                exchange: self.end.exchange,
                offset,
            });
        }
    }

    fn used(&mut self, bytes: u64) {
        if bytes > 0
            && let Some(offset) = self.incoming.consume(bytes)
        {
            self.end.say(Entry::Credit {
                exchange: self.end.exchange,
                offset,
            });
        }
    }
}

impl Drop for ReceiveHalf {
    fn drop(&mut self) {
        let end = &self.end;
        if end.side == Side::Egress && !end.whole.load(Ordering::Acquire) && end.fate().is_none() {
            end.whole.store(true, Ordering::Release);
            end.say(Entry::Gone {
                exchange: end.exchange,
                reason: GoneReason::Unread as u64,
            });
        }
    }
}

/// Reads the one frame that stands before the sequence, and what came behind it.
pub(super) async fn read_preamble(
    stream: &mut Receiver,
) -> Result<(Kind, Bytes, Bytes), PreambleError> {
    let mut decoder = Decoder::default();
    loop {
        let mut input = stream.read().await?.ok_or(codec::Error::Truncated)?;
        match decoder.next(&mut input)? {
            Some(Piece::Frame(kind, payload)) => return Ok((kind, payload, mem::take(&mut input))),
            Some(Piece::Data(_)) => return Err(codec::Error::OutOfPlace(Kind::Data).into()),
            None => {}
        }
    }
}

/// Why a stream's first frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum PreambleError {
    #[error(transparent)]
    Transport(#[from] transport::Error),
    #[error(transparent)]
    Codec(#[from] codec::Error),
}
