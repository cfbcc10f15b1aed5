//! The two halves of an end: what writes a sequence, and what reads one.
//!
//! Both ends of an exchange use the same two. They join the rules (`exchange`) with the streams
//! (`transport`), and talk about offsets with the peer through the link.

mod mending;
mod preamble;
mod stream;

use std::{
    collections::VecDeque,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use tokio::time::Sleep;
use vector_proto::{
    refusal::Code,
    tunnel::{
        codec::{
            self, DATA_BYTES_MAX, Decoder, Entry, FRAME_HEADER_BYTES_MAX, GoneReason, Kind, Piece,
        },
        v1,
    },
};

use self::{mending::Mending, stream::Read};
pub(super) use self::{
    preamble::{PreambleError, read_preamble},
    stream::ReadStream,
};
use super::{
    LostReason,
    double::SMALL_BYTES_MAX,
    end::{End, Out, Side},
    exchange::{INITIAL_CREDIT_BYTES, Incoming, REQUEST_CREDIT_BYTES},
    repair::{Mender, is_block},
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

    /// What was appended last says what is asked.
    pub(super) fn asked(&self) {
        let pushed = self.end.sending.lock().outgoing.end();
        let end = pushed + self.held_bytes as u64;
        self.end.asked.store(end, Ordering::Release);
    }

    /// Appends the frame that makes the sequence whole.
    pub(super) fn last(&mut self, frame: Bytes) {
        self.frame(frame);
        self.ending = true;
    }

    /// Appends body bytes. Waits for credit when much is held.
    ///
    /// Cancel safety: the bytes are taken in before the first wait, so nothing is lost.
    pub(super) async fn data(&mut self, bytes: Bytes) -> Result<(), LostReason> {
        self.body(bytes);
        if self.held_bytes >= HELD_BYTES_MAX {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// Appends body bytes, however much is held; they leave with the next flush.
    pub(super) fn body(&mut self, mut bytes: Bytes) {
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
    }

    /// Writes out everything that is held, as credit allows. What has no attachment at the moment
    /// stays in the window, and leaves when there is one.
    ///
    /// Cancel safety: dropping the future loses nothing; the next flush goes on.
    pub(super) async fn flush(&mut self) -> Result<(), LostReason> {
        std::future::poll_fn(|cx| self.poll_flush(cx)).await
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LostReason>> {
        let Self {
            end,
            held,
            held_bytes,
            ending,
        } = self;
        let (mut out, mut left) = (Out::Done, None);
        let (room, double, block) = {
            let mut sending = end.sending.lock();
            if let Some(reason) = end.fate() {
                return Poll::Ready(Err(reason));
            }
            if sending.unread {
                return Poll::Ready(Err(LostReason::Reset));
            }
            held.drain(..)
                .for_each(|frame| sending.outgoing.push(frame));
            let small = mem::take(held_bytes) <= SMALL_BYTES_MAX;
            sending.ended |= *ending;
            if let Some(opening) = &mut sending.opening
                && !mem::replace(&mut opening.left, true)
            {
                let now = Instant::now();
                opening.first.0 = now;
                left = Some(now);
            }
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
            let double = small && end.wants_twin(&sending);
            if sending.twin.is_some() {
                end.tunnel.tally().doubled.inc();
            }
            let block = is_block(end, &sending);
            (end.poll_room(&mut sending, cx), double, block)
        };
        end.tunnel.came(end, out);
        if let Some(now) = left {
            end.tunnel.may_hedge(end, now);
        }
        if double {
            end.tunnel.double(end);
        }
        if block {
            end.tunnel.send_repairs(end);
        }
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
    /// What was said on one stream while another one was left.
    said_no: Option<Bytes>,
    /// Set while no stream is left.
    alone: Option<Pin<Box<Sleep>>>,
    /// By how much the window is larger than at first.
    grown: u64,
    /// Only while it may help.
    mending: Option<Box<Mending>>,
}

impl ReceiveHalf {
    pub(super) fn new(end: Arc<End>, stream: ReadStream, mender: Option<Mender>) -> Self {
        let credit = match end.side {
            Side::Ingress => INITIAL_CREDIT_BYTES,
            Side::Egress => REQUEST_CREDIT_BYTES,
        };
        Self {
            end,
            streams: vec![stream],
            incoming: Incoming::new(credit),
            decoder: Decoder::default(),
            input: Bytes::new(),
            queue: VecDeque::new(),
            refused: None,
            said_no: None,
            alone: None,
            grown: 0,
            mending: mender.map(|mender| Box::new(Mending::with(mender))),
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
                        self.mending = None;
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
            if self.take_arrivals()? {
                return Poll::Ready(Ok(()));
            }
            let mut at = 0;
            while let Some(stream) = self.streams.get_mut(at) {
                match stream.poll(&self.end, cx)? {
                    Poll::Pending => at += 1,
                    Poll::Ready(Read::Bytes(offset, bytes)) => {
                        let before = self.incoming.next_offset();
                        self.merge(offset, bytes)?;
                        if at > 0 && self.incoming.next_offset() > before {
                            self.end.tunnel.tally().doubles_first.inc();
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Read::Refused(payload)) => {
                        self.streams.remove(at);
                        let before = self.said_no.take();
                        self.said_no = Some(before.filter(|no| !is_of_path(no)).unwrap_or(payload));
                        if self.is_refused() {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Poll::Ready(gone @ (Read::Ended | Read::Broken)) => {
                        self.streams.remove(at);
                        // Where a connection broke, whoever moves what was on it opens it again, and a copy's way is no matter.
                        let moves = matches!(gone, Read::Broken)
                            && self.said_no.as_ref().is_some_and(is_of_path);
                        if !moves && self.is_refused() {
                            return Poll::Ready(Ok(()));
                        }
                        // What is left to read comes over the one that remains.
                        if let [only] = &self.streams[..]
                            && only.link.carries()
                        {
                            self.end.set_home(&only.link);
                        }
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
            if let Poll::Ready(mended) = self.poll_mend(cx) {
                return Poll::Ready(mended);
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
            return Poll::Ready(match self.is_refused() {
                true => Ok(()),
                false => Err(LostReason::Reset),
            });
        }
    }

    /// Whether a refusal stands. Another attachment of the same exchange may still be accepted, or was.
    fn is_refused(&mut self) -> bool {
        let last = self.streams.is_empty() && !self.end.has_arrivals();
        if last && !self.end.is_accepted() {
            self.refused = self.said_no.take();
        }
        self.refused.is_some()
    }

    /// Takes streams and repair symbols that came. Whether there are new bytes thereby.
    fn take_arrivals(&mut self) -> Result<bool, LostReason> {
        if !self.end.has_arrivals() {
            return Ok(false);
        }
        let (streams, repairs) = self.end.take_arrivals();
        let before = self.incoming.next_offset();
        self.repair(&repairs)?;
        let came = self.incoming.next_offset() > before;
        if streams.is_empty() {
            return Ok(came);
        }
        self.alone = None;
        for stream in streams {
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
        Ok(came)
    }

    fn merge(&mut self, at: u64, bytes: Bytes) -> Result<(), LostReason> {
        self.note(at, &bytes);
        self.take_in(at, bytes)?;
        self.mend_if_last()
    }

    fn take_in(&mut self, at: u64, bytes: Bytes) -> Result<(), LostReason> {
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

    pub(super) fn acknowledge(&mut self, all: bool) {
        if let Some(offset) = self.incoming.ack_due(Instant::now(), all) {
            self.end.say(Entry::Ack {
                exchange: self.end.exchange,
                offset,
            });
        }
    }

    fn used(&mut self, bytes: u64) {
        if bytes > 0
            && let Some(offset) = self.incoming.consume(bytes, |more| {
                self.end.tunnel.growth().take(more, &mut self.grown)
            })
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
        end.tunnel.growth().give_back(self.grown);
        if end.side == Side::Egress && !end.whole.load(Ordering::Acquire) && end.fate().is_none() {
            end.whole.store(true, Ordering::Release);
            end.say(Entry::Gone {
                exchange: end.exchange,
                reason: GoneReason::Unread as u64,
            });
        }
    }
}

/// Whether a refusal is of the way that a copy of an OPEN took, and says nothing of the exchange: the egress has another copy,
/// or a relay has no way to it.
fn is_of_path(refused: &Bytes) -> bool {
    let code = v1::Refused::decode(&refused[..]).map(|refused| refused.code.parse());
    matches!(code, Ok(Ok(Code::Protocol | Code::NoPath)))
}
