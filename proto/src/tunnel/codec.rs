//! Frames: `kind (1 byte) · length (QUIC varint, RFC 9000 §16) · payload`.
//!
//! Pure: bytes in, pieces out, at any cut of the input. DATA payloads come out as the slices they
//! arrived in, never gathered; every other payload is gathered and bounded by its kind's limit.
//! A kind that is not in the table, or a length above its limit, is an error that ends the stream.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use crate::id::ExchangeId;

/// Largest DATA payload. Senders cut longer chunks.
pub const DATA_BYTES_MAX: usize = 1 << 20;

/// Largest OPEN, HEAD, REFUSED or TRAILERS payload: a request head of 32 KiB, twice over, with room for a
/// provider's error body of 64 KiB.
pub const HEAD_BYTES_MAX: usize = 256 << 10;

/// Largest payload of a frame about many exchanges. 64 KiB hold 2,000 entries or more.
pub const BATCH_BYTES_MAX: usize = 64 << 10;

/// Longest header of a frame: kind and an eight-byte varint.
pub const FRAME_HEADER_BYTES_MAX: usize = 9;

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// Preamble: opens an exchange ([`v1::Open`](super::v1::Open)).
    Open = 0x01,
    /// Preamble: what follows continues a running exchange ([`v1::Attach`](super::v1::Attach)).
    Attach = 0x02,
    /// Preamble: the egress has the exchange ([`v1::Accepted`](super::v1::Accepted)).
    Accepted = 0x03,
    /// Preamble or first frame of a response: no answer comes ([`v1::Refused`](super::v1::Refused)).
    Refused = 0x04,

    /// Sequence: the response's head ([`v1::ResponseHead`](super::v1::ResponseHead)); in a request's whose body went ahead, once
    /// and between any two pieces of it, what is asked ([`v1::Open`](super::v1::Open)).
    Head = 0x10,
    /// Sequence: raw bytes of a body.
    Data = 0x11,
    /// Sequence: what was measured ([`v1::Trailers`](super::v1::Trailers)).
    Trailers = 0x12,
    /// Sequence: nothing follows. Empty.
    End = 0x13,
    /// Sequence: nothing follows, and something is missing: the sender gave up. Empty.
    Cut = 0x14,

    /// Control stream: who is at this end ([`v1::Hello`](super::v1::Hello)).
    Hello = 0x20,
    /// Control stream: `(exchange, offset)*`: everything below is in the receiver's memory.
    Ack = 0x21,
    /// Control stream: `(exchange, offset)*`: the sender may run up to here.
    Credit = 0x22,
    /// Control stream: `(exchange, reason)*`: stop, the client is gone.
    Cancel = 0x23,
    /// Control stream: `(exchange, attach-seq, response-next, request-next)*`: go on over this link.
    Resume = 0x24,
    /// Control stream: `(exchange, reason)*`: not known here.
    Gone = 0x25,
    /// Control stream: one byte, 1 for «no new exchanges to this node», 0 for «again as usual».
    Drain = 0x26,
    /// Control stream: how a relay's links onward are ([`v1::Hops`](super::v1::Hops)), to those who said that they hear it.
    Hops = 0x27,
}

impl Kind {
    const fn read(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Open,
            0x02 => Self::Attach,
            0x03 => Self::Accepted,
            0x04 => Self::Refused,
            0x10 => Self::Head,
            0x11 => Self::Data,
            0x12 => Self::Trailers,
            0x13 => Self::End,
            0x14 => Self::Cut,
            0x20 => Self::Hello,
            0x21 => Self::Ack,
            0x22 => Self::Credit,
            0x23 => Self::Cancel,
            0x24 => Self::Resume,
            0x25 => Self::Gone,
            0x26 => Self::Drain,
            0x27 => Self::Hops,
            _ => return None,
        })
    }

    /// Largest payload a peer may send under this kind.
    #[must_use]
    pub const fn payload_bytes_max(self) -> usize {
        match self {
            Self::Open | Self::Refused | Self::Head | Self::Trailers => HEAD_BYTES_MAX,
            Self::Attach | Self::Accepted | Self::Hello => 4 << 10,
            Self::Data => DATA_BYTES_MAX,
            Self::End | Self::Cut => 0,
            Self::Drain => 1,
            Self::Ack | Self::Credit | Self::Cancel | Self::Resume | Self::Gone | Self::Hops => {
                BATCH_BYTES_MAX
            }
        }
    }
}

/// What a peer got wrong. The stream that carried it is of no further use.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// A kind this version does not know.
    #[error("frame of unknown kind {0:#04x}")]
    UnknownKind(u8),
    /// A length above the kind's limit.
    #[error("{kind:?} frame of {len} bytes, above the limit of {max}")]
    TooLong {
        /// Kind of the frame.
        kind: Kind,
        /// Length that was announced.
        len: u64,
        /// Length that is allowed.
        max: usize,
    },
    /// The stream ended inside of a frame.
    #[error("stream ended inside of a frame")]
    Truncated,
    /// A frame that does not belong here.
    #[error("{0:?} frame out of place")]
    OutOfPlace(Kind),
    /// A payload that is not what its kind says.
    #[error("malformed {0:?} payload")]
    Malformed(Kind),
}

/// Writes the header of a frame whose payload of `len` bytes follows.
pub fn put_header(out: &mut BytesMut, kind: Kind, len: usize) {
    out.put_u8(kind as u8);
    put_varint(out, len as u64);
}

/// Writes a whole frame around a message.
pub fn put_message(out: &mut BytesMut, kind: Kind, message: &impl prost::Message) {
    let len = message.encoded_len();
    out.reserve(FRAME_HEADER_BYTES_MAX + len);
    put_header(out, kind, len);
    // `reserve` made room, and a BytesMut grows anyway, so encoding cannot run out of space.
    let _ = message.encode(out);
}

/// One frame around a message, as bytes of its own.
#[must_use]
pub fn message(kind: Kind, message: &impl prost::Message) -> Bytes {
    let mut out = BytesMut::new();
    put_message(&mut out, kind, message);
    out.freeze()
}

/// The header of a DATA frame whose payload of `len` bytes follows.
#[must_use]
pub fn data_header(len: usize) -> Bytes {
    let mut out = BytesMut::with_capacity(FRAME_HEADER_BYTES_MAX);
    put_header(&mut out, Kind::Data, len);
    out.freeze()
}

/// The whole END frame.
pub const END: Bytes = Bytes::from_static(&[Kind::End as u8, 0]);

/// The whole CUT frame.
pub const CUT: Bytes = Bytes::from_static(&[Kind::Cut as u8, 0]);

/// Writes a QUIC varint. Values above 2^62 - 1 are cut to it; nothing here counts that far.
pub fn put_varint(out: &mut BytesMut, value: u64) {
    match value {
        0..=0x3f => out.put_u8(value as u8),
        0x40..=0x3fff => out.put_u16(value as u16 | 0x4000),
        0x4000..=0x3fff_ffff => out.put_u32(value as u32 | 0x8000_0000),
        _ => out.put_u64(value.min((1 << 62) - 1) | 0xc000_0000_0000_0000),
    }
}

/// Reads a QUIC varint off the front, or leaves the input as it is when there is not enough of it.
pub fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let first = *input.first()?;
    let len = 1_usize << (first >> 6);
    let (bytes, rest) = input.split_at_checked(len)?;
    let value = bytes[1..]
        .iter()
        .fold(u64::from(first & 0x3f), |value, &byte| {
            value << 8 | u64::from(byte)
        });
    *input = rest;
    Some(value)
}

/// What a [`Decoder`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// A whole frame that is not DATA.
    Frame(Kind, Bytes),
    /// Some bytes of a DATA payload, not empty.
    Data(Bytes),
}

/// Cuts a stream of bytes into [`Piece`]s.
///
/// Feed each chunk until [`Decoder::next`] returns `None`; then it is used up.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

#[derive(Debug)]
enum State {
    Header {
        bytes: [u8; FRAME_HEADER_BYTES_MAX],
        have: usize,
    },
    Data {
        left: usize,
    },
    Payload {
        kind: Kind,
        len: usize,
        gathered: BytesMut,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Header {
            bytes: [0; FRAME_HEADER_BYTES_MAX],
            have: 0,
        }
    }
}

impl Decoder {
    /// The next piece, or `None` when `input` is used up.
    ///
    /// # Errors
    /// [`Error`] on an unknown kind or a length above its limit; the decoder is of no further use then.
    pub fn next(&mut self, input: &mut Bytes) -> Result<Option<Piece>, Error> {
        loop {
            match &mut self.state {
                State::Header { .. } => match self.header(input)? {
                    Some((Kind::Data, 0)) => {}
                    Some((Kind::Data, left)) => self.state = State::Data { left },
                    Some((kind, len)) => {
                        self.state = State::Payload {
                            kind,
                            len,
                            gathered: BytesMut::new(),
                        }
                    }
                    None => return Ok(None),
                },
                State::Data { left } => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let data = input.split_to(input.len().min(*left));
                    *left -= data.len();
                    if *left == 0 {
                        self.state = State::default();
                    }
                    return Ok(Some(Piece::Data(data)));
                }
                State::Payload {
                    kind,
                    len,
                    gathered,
                } => {
                    let kind = *kind;
                    let Some(payload) = gather(gathered, *len, input) else {
                        return Ok(None);
                    };
                    self.state = State::default();
                    return Ok(Some(Piece::Frame(kind, payload)));
                }
            }
        }
    }

    /// Whether the input so far ends between two frames, as a stream's end must.
    #[must_use]
    pub const fn at_boundary(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    fn header(&mut self, input: &mut Bytes) -> Result<Option<(Kind, usize)>, Error> {
        let State::Header { bytes, have } = &mut self.state else {
            return Ok(None);
        };
        while !input.is_empty() {
            bytes[*have] = input[0];
            *have += 1;
            input.advance(1);
            let Some(kind) = Kind::read(bytes[0]) else {
                return Err(Error::UnknownKind(bytes[0]));
            };
            let mut rest = &bytes[1..*have];
            if let Some(len) = take_varint(&mut rest) {
                let max = kind.payload_bytes_max();
                let fits = usize::try_from(len).ok().filter(|&len| len <= max);
                let len = fits.ok_or(Error::TooLong { kind, len, max })?;
                self.state = State::default();
                return Ok(Some((kind, len)));
            }
        }
        Ok(None)
    }
}

fn gather(gathered: &mut BytesMut, len: usize, input: &mut Bytes) -> Option<Bytes> {
    if gathered.is_empty() && input.len() >= len {
        return Some(input.split_to(len));
    }
    let more = input.split_to(input.len().min(len - gathered.len()));
    gathered.extend_from_slice(&more);
    (gathered.len() == len).then(|| gathered.split().freeze())
}

/// What a control stream says about one exchange.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Entry {
    /// Everything of the sequence below `offset` is in the receiver's memory.
    Ack {
        /// Which exchange.
        exchange: ExchangeId,
        /// First byte that is not yet there.
        offset: u64,
    },
    /// The sender of the sequence may run up to `offset`.
    Credit {
        /// Which exchange.
        exchange: ExchangeId,
        /// First byte that may not yet be sent.
        offset: u64,
    },
    /// Stop: nobody waits for the answer.
    Cancel {
        /// Which exchange.
        exchange: ExchangeId,
        /// [`GoneReason`] as a number in the lowest byte, above it the last attempt that is meant; 0: all.
        reason: u64,
    },
    /// Go on over this link.
    Resume {
        /// Which exchange.
        exchange: ExchangeId,
        /// Number of the new attachment.
        attach_seq: u64,
        /// First byte of the response that the ingress lacks.
        response_next: u64,
        /// First byte of the request that the ingress may still send.
        request_next: u64,
    },
    /// The exchange is not, or no longer, known here.
    Gone {
        /// Which exchange.
        exchange: ExchangeId,
        /// [`GoneReason`] as a number.
        reason: u64,
    },
}

/// Why an exchange is cancelled or gone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u64)]
pub enum GoneReason {
    /// Never heard of it.
    Unknown = 0,
    /// The client went away.
    ClientGone = 1,
    /// Its time was over.
    Deadline = 2,
    /// It ended, and its answer was acknowledged.
    Ended = 3,
    /// No attachment for longer than the grace period.
    Orphaned = 4,
    /// The next hop of a relay died.
    HopDown = 5,
    /// The exchange runs, but the request's body is not read any further.
    Unread = 6,
}

impl Entry {
    const fn kind(&self) -> Kind {
        match self {
            Self::Ack { .. } => Kind::Ack,
            Self::Credit { .. } => Kind::Credit,
            Self::Cancel { .. } => Kind::Cancel,
            Self::Resume { .. } => Kind::Resume,
            Self::Gone { .. } => Kind::Gone,
        }
    }

    /// The exchange that this is about.
    #[must_use]
    pub const fn exchange(&self) -> ExchangeId {
        match *self {
            Self::Ack { exchange, .. }
            | Self::Credit { exchange, .. }
            | Self::Cancel { exchange, .. }
            | Self::Resume { exchange, .. }
            | Self::Gone { exchange, .. } => exchange,
        }
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_slice(&self.exchange().to_bytes());
        match *self {
            Self::Ack { offset, .. } | Self::Credit { offset, .. } => put_varint(out, offset),
            Self::Cancel { reason, .. } | Self::Gone { reason, .. } => put_varint(out, reason),
            Self::Resume {
                attach_seq,
                response_next,
                request_next,
                ..
            } => {
                put_varint(out, attach_seq);
                put_varint(out, response_next);
                put_varint(out, request_next);
            }
        }
    }

    fn take(kind: Kind, input: &mut &[u8]) -> Option<Self> {
        let (id, rest) = input.split_at_checked(16)?;
        let exchange = ExchangeId::try_from(id).ok()?;
        *input = rest;
        let first = take_varint(input)?;
        Some(match kind {
            Kind::Ack => Self::Ack {
                exchange,
                offset: first,
            },
            Kind::Credit => Self::Credit {
                exchange,
                offset: first,
            },
            Kind::Cancel => Self::Cancel {
                exchange,
                reason: first,
            },
            Kind::Gone => Self::Gone {
                exchange,
                reason: first,
            },
            Kind::Resume => Self::Resume {
                exchange,
                attach_seq: first,
                response_next: take_varint(input)?,
                request_next: take_varint(input)?,
            },
            _ => return None,
        })
    }
}

/// Writes entries as frames, one frame for neighbours of the same kind.
pub fn put_entries(out: &mut BytesMut, entries: &[Entry]) {
    const ENTRY_BYTES_MAX: usize = 16 + 3 * 8;
    let mut payload = BytesMut::new();
    for run in entries.chunk_by(|a, b| a.kind() == b.kind()) {
        for part in run.chunks(BATCH_BYTES_MAX / ENTRY_BYTES_MAX) {
            payload.clear();
            part.iter().for_each(|entry| entry.put(&mut payload));
            put_header(out, part[0].kind(), payload.len());
            out.put_slice(&payload);
        }
    }
}

/// Reads the payload of a frame about many exchanges.
///
/// # Errors
/// [`Error::Malformed`] when it is not a whole number of entries, [`Error::OutOfPlace`] for other kinds.
pub fn entries(kind: Kind, payload: &[u8]) -> Result<Vec<Entry>, Error> {
    if !matches!(
        kind,
        Kind::Ack | Kind::Credit | Kind::Cancel | Kind::Resume | Kind::Gone
    ) {
        return Err(Error::OutOfPlace(kind));
    }
    let mut input = payload;
    let mut found = Vec::with_capacity(payload.len() / 17);
    while !input.is_empty() {
        found.push(Entry::take(kind, &mut input).ok_or(Error::Malformed(kind))?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
