//! The two halves of an exchange on its attachment: what writes a sequence, and what reads one.
//!
//! Both ends of an exchange use the same two. They join the rules (`exchange`) with the stream
//! (`transport`), and talk about offsets with the peer through the link.

use std::{
    collections::VecDeque,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use vector_proto::tunnel::codec::{
    self, DATA_BYTES_MAX, Decoder, Entry, FRAME_HEADER_BYTES_MAX, Kind, Piece,
};

use super::{
    LostReason,
    exchange::Incoming,
    link::{Link, Shared, poll_room},
    transport::{self, Receiver, Sender},
};

/// Bytes that [`SendHalf::data`] holds back for company before it writes them out by itself.
const HELD_BYTES_MAX: usize = 16 << 10;

/// Pieces up to this size are copied behind their header. A token of 250 bytes is mostly a slice of an
/// 8 KiB read buffer, which the replay window would keep alive until the token is acknowledged.
const COPIED_BYTES_MAX: usize = 2 << 10;

/// Writes one sequence.
#[derive(Debug)]
pub(super) struct SendHalf {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    stream: Sender,
    /// Frames not yet pushed into the sequence.
    held: Vec<Bytes>,
    held_bytes: usize,
    /// Handed out by the sequence (or the preamble), not yet taken by the stream.
    leaving: Vec<Bytes>,
}

impl SendHalf {
    /// `preamble` goes first and is not part of the sequence.
    pub(super) fn new(
        shared: Arc<Shared>,
        link: Arc<Link>,
        stream: Sender,
        preamble: Bytes,
    ) -> Self {
        Self {
            shared,
            link,
            stream,
            held: Vec::new(),
            held_bytes: 0,
            leaving: vec![preamble],
        }
    }

    /// Appends a whole frame; it leaves with the next flush.
    pub(super) fn frame(&mut self, frame: Bytes) {
        self.held_bytes += frame.len();
        self.held.push(frame);
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

    /// Writes out everything that is held, as credit allows.
    ///
    /// Cancel safety: dropping the future loses nothing; the next flush goes on.
    pub(super) async fn flush(&mut self) -> Result<(), LostReason> {
        loop {
            if let Some(reason) = self.shared.fate() {
                return Err(reason);
            }
            let blocked = self.hand_out();
            if !self.leaving.is_empty() {
                self.stream
                    .write(&mut self.leaving)
                    .await
                    .map_err(|error| lost(&self.shared, &error))?;
                self.leaving.clear();
            }
            let Some(end) = blocked else { return Ok(()) };
            let shared = &self.shared;
            std::future::poll_fn(|cx| poll_room(shared, cx, |outgoing| outgoing.sendable(end)))
                .await?;
        }
    }

    /// Says that nothing follows on this stream.
    pub(super) fn finish(&mut self) {
        self.stream.finish();
    }

    /// Moves what credit allows to `leaving`. Returns how far it came when credit stops it.
    fn hand_out(&mut self) -> Option<u64> {
        if self.held.is_empty() && !self.leaving.is_empty() {
            // Only a preamble, or the rest of an interrupted write.
            self.leaving.retain(|chunk| !chunk.is_empty());
        }
        self.held_bytes = 0;
        let mut outgoing = self.shared.outgoing.lock();
        self.held.drain(..).for_each(|frame| outgoing.push(frame));
        while let Some(slice) = outgoing.next_slice() {
            self.leaving.push(slice);
        }
        outgoing.blocked_at()
    }
}

/// Reads one sequence.
#[derive(Debug)]
pub(super) struct ReceiveHalf {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Arc<Link>,
    stream: Receiver,
    incoming: Incoming,
    /// Offset of the next byte that the stream delivers.
    offset: u64,
    decoder: Decoder,
    /// Bytes in order, being decoded.
    input: Bytes,
    /// Bytes in order that came out of a filled gap.
    queue: VecDeque<Bytes>,
}

impl ReceiveHalf {
    /// `rest` is what the stream had delivered behind its preamble.
    pub(super) fn new(
        shared: Arc<Shared>,
        link: Arc<Link>,
        stream: Receiver,
        rest: Bytes,
    ) -> Result<Self, LostReason> {
        let mut half = Self {
            shared,
            link,
            stream,
            incoming: Incoming::default(),
            offset: 0,
            decoder: Decoder::default(),
            input: Bytes::new(),
            queue: VecDeque::new(),
        };
        half.merge(rest)?;
        Ok(half)
    }

    /// The next piece of the sequence.
    ///
    /// # Errors
    /// Why no further piece comes. A stream that ends before the sequence does is [`LostReason::Reset`].
    pub(super) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, LostReason>> {
        loop {
            let before = self.input.len();
            let piece = self
                .decoder
                .next(&mut self.input)
                .map_err(LostReason::Protocol)?;
            self.used((before - self.input.len()) as u64);
            if let Some(piece) = piece {
                if matches!(piece, Piece::Frame(Kind::End, _)) {
                    self.acknowledge(true);
                }
                return Poll::Ready(Ok(piece));
            }
            if let Some(bytes) = self.queue.pop_front() {
                self.input = bytes;
                continue;
            }
            match self.stream.poll_read(cx) {
                Poll::Ready(Ok(Some(bytes))) => self.merge(bytes)?,
                Poll::Ready(Ok(None)) => {
                    return Poll::Ready(Err(self.shared.fate().unwrap_or(LostReason::Reset)));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(&self.shared, &error))),
                Poll::Pending => {
                    self.shared.reader.register(cx.waker());
                    return match self.shared.fate() {
                        Some(reason) => Poll::Ready(Err(reason)),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }

    pub(super) async fn piece(&mut self) -> Result<Piece, LostReason> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    fn merge(&mut self, bytes: Bytes) -> Result<(), LostReason> {
        let at = self.offset;
        self.offset += bytes.len() as u64;
        let violation = |violation| {
            tracing::warn!(peer = %self.link.peer, exchange = %self.shared.exchange, %violation, "peer breaks the tunnel's rules");
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
        self.acknowledge(false);
        Ok(())
    }

    fn acknowledge(&mut self, all: bool) {
        if let Some(offset) = self.incoming.ack_due(all) {
            self.link.say(Entry::Ack {
                exchange: self.shared.exchange,
                offset,
            });
        }
    }

    fn used(&mut self, bytes: u64) {
        if bytes > 0
            && let Some(offset) = self.incoming.consume(bytes)
        {
            self.link.say(Entry::Credit {
                exchange: self.shared.exchange,
                offset,
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

impl PreambleError {
    pub(super) fn into_reason(self, shared: &Shared) -> LostReason {
        match self {
            Self::Transport(error) => lost(shared, &error),
            Self::Codec(codec::Error::Truncated) => shared.fate().unwrap_or(LostReason::Reset),
            Self::Codec(error) => LostReason::Protocol(error),
        }
    }
}

/// What was said about the exchange counts more than how its stream ended.
fn lost(shared: &Shared, error: &transport::Error) -> LostReason {
    shared.fate().unwrap_or(match error {
        transport::Error::ConnectionLost(_) => LostReason::LinkDown,
        transport::Error::Reset(_) | transport::Error::Full => LostReason::Reset,
    })
}
