//! What stands before the payload of a WebSocket's frame (RFC 6455, section 5.2).

/// Continues a message.
pub const CONTINUATION: u8 = 0x0;
/// Begins a message of text.
pub const TEXT: u8 = 0x1;
/// Says that nothing comes after it.
pub const CLOSE: u8 = 0x8;

/// In the first byte: the frame ends its message.
pub const LAST: u8 = 0x80;
/// In the first byte: bits that only extensions use, of which none is agreed to.
pub const RESERVED: u8 = 0x70;
/// In the second byte: a mask stands before the payload.
pub const MASKED: u8 = 0x80;

/// Longest header: two bytes, a length of eight and a mask of four.
const BYTES_MAX: usize = 14;

/// A frame's header.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Opcode and flags.
    pub first: u8,
    /// The mask, if there is one.
    pub mask: Option<[u8; 4]>,
    /// Length of the payload.
    pub payload: u64,
    /// Length of the header.
    pub bytes: usize,
}

impl Header {
    /// Reads it off the begin of a frame; `None` until it is whole.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let (&[first, second], rest) = frame.split_first_chunk()?;
        let (payload, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            length => (u64::from(length), rest),
        };
        let (mask, rest) = if second & MASKED == 0 {
            (None, rest)
        } else {
            let (mask, rest) = rest.split_first_chunk()?;
            (Some(*mask), rest)
        };
        Some(Self {
            first,
            mask,
            payload,
            bytes: frame.len() - rest.len(),
        })
    }

    /// What kind of frame it is.
    pub const fn opcode(&self) -> u8 {
        self.first & 0x0f
    }

    /// A ping, a pong or a close, which may stand between the frames of a message.
    pub const fn is_control(&self) -> bool {
        self.opcode() & 0x08 != 0
    }

    /// Whether it ends its message.
    pub const fn is_last(&self) -> bool {
        self.first & LAST != 0
    }

    /// Whether it is of an extension.
    pub const fn is_extended(&self) -> bool {
        self.first & RESERVED != 0
    }
}

/// A header that comes in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Partial {
    bytes: [u8; BYTES_MAX],
    have: usize,
}

impl Partial {
    /// Takes the next byte. With the last one, the header and its bytes are there, and the next frame's may come.
    pub fn take(&mut self, byte: u8) -> Option<(Header, Self)> {
        self.bytes[self.have] = byte;
        self.have += 1;
        let header = Header::read(self.bytes())?;
        Some((header, std::mem::take(self)))
    }

    /// What came so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.have]
    }
}
