//! Repair symbols in one QUIC datagram: what mends a prompt that lost packets, without asking for them again.
//!
//! `exchange (16 bytes) · attempt · start · length · total · checksum · first (varints, RFC 9000 §16) · symbols`. A *block* is a part of
//! the sequence from the ingress, cut into source symbols of [`SYMBOL_BYTES`]; the last one counts as filled up with zeros. Of
//! a block `total` repair symbols were made by a Reed-Solomon code (terms of RFC 6363): as many symbols as the block has, of
//! either sort, are the block. A datagram that is lost or late is no matter; everything still comes over the stream as well.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::codec::{put_varint, take_varint};
use crate::id::ExchangeId;

/// Length of every symbol. Shorter ones lose less where a packet takes parts of two with it, and cost more to compute.
pub const SYMBOL_BYTES: usize = 128;

/// Last byte of a sequence that may be mended, and the largest block: 4,096 source symbols.
pub const BLOCK_BYTES_MAX: usize = 512 << 10;

/// Repair symbols of one block.
pub const SYMBOLS_MAX: usize = 1_024;

/// What stands before the symbols, at the most.
pub const HEADER_BYTES_MAX: usize = 16 + 6 * 8;

/// What a code was made of: both ends must mean the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Block {
    /// Its first byte in the sequence.
    pub start: usize,
    /// Its length in bytes.
    pub length: usize,
    /// Repair symbols that were made of it.
    pub total: usize,
    /// CRC-32 of its bytes (as gzip has it, RFC 1952): what is computed is not believed without.
    pub checksum: u32,
}

impl Block {
    /// Source symbols.
    #[must_use]
    pub const fn sources(self) -> usize {
        self.length.div_ceil(SYMBOL_BYTES)
    }

    /// First byte behind it.
    #[must_use]
    pub const fn end(self) -> usize {
        self.start + self.length
    }

    /// A block within the limits, with something in it.
    const fn is_sound(self) -> bool {
        let within = self.start <= BLOCK_BYTES_MAX && self.length <= BLOCK_BYTES_MAX - self.start;
        within && self.length > 0 && self.total > 0 && self.total <= SYMBOLS_MAX
    }
}

/// Some repair symbols of a block.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Repair {
    /// Whose sequence it mends.
    pub exchange: ExchangeId,
    /// Of which attempt.
    pub attempt: u32,
    /// What of it.
    pub block: Block,
    /// Number of the first symbol, from 0.
    pub first: usize,
    /// The symbols, one behind the other.
    pub symbols: Bytes,
}

/// A datagram that holds no repair symbols.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed repair symbols")]
pub struct Malformed;

impl Repair {
    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES_MAX + self.symbols.len());
        out.put_slice(&self.exchange.to_bytes());
        put_varint(&mut out, self.attempt.into());
        let Block {
            start,
            length,
            total,
            checksum,
        } = self.block;
        for number in [start, length, total] {
            put_varint(&mut out, number as u64);
        }
        put_varint(&mut out, checksum.into());
        put_varint(&mut out, self.first as u64);
        out.put_slice(&self.symbols);
        out.freeze()
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`Malformed`] when it is none of these, or beyond the limits.
    pub fn read(datagram: &Bytes) -> Result<Self, Malformed> {
        let (id, mut rest) = datagram.split_at_checked(16).ok_or(Malformed)?;
        let exchange = ExchangeId::try_from(id).map_err(|_| Malformed)?;
        let mut number = || take_varint(&mut rest).ok_or(Malformed);
        let size = |number: u64| usize::try_from(number).map_err(|_| Malformed);
        let short = |number: u64| u32::try_from(number).map_err(|_| Malformed);
        let attempt = short(number()?)?;
        let block = Block {
            start: size(number()?)?,
            length: size(number()?)?,
            total: size(number()?)?,
            checksum: short(number()?)?,
        };
        let first = size(number()?)?;
        let symbols = datagram.slice(datagram.len() - rest.len()..);
        let count = symbols.len() / SYMBOL_BYTES;
        let whole = count > 0 && symbols.len().is_multiple_of(SYMBOL_BYTES);
        let within = block.is_sound() && first < block.total && count <= block.total - first;
        if !(whole && within) {
            return Err(Malformed);
        }
        Ok(Self {
            exchange,
            attempt,
            block,
            first,
            symbols,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repair() -> Repair {
        Repair {
            exchange: ExchangeId::fresh(),
            attempt: 3,
            block: Block {
                start: 70_000,
                length: 100_001,
                total: 40,
                checksum: 0xfeed_beef,
            },
            first: 30,
            symbols: Bytes::from(vec![7; 10 * SYMBOL_BYTES]),
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let repair = repair();
        assert_eq!(Repair::read(&repair.to_bytes()), Ok(repair.clone()));
        assert_eq!(repair.block.sources(), 782);
        assert_eq!(repair.block.end(), 170_001);
    }

    #[test]
    fn what_is_cut_or_beyond_the_limits_is_refused() {
        let whole = repair().to_bytes();
        for cut in 0..whole.len() {
            let read = Repair::read(&whole.slice(..cut));
            let symbols = read.map_or(0, |read| read.symbols.len() / SYMBOL_BYTES);
            assert!(symbols < 10, "cut at {cut}");
        }
        let refused = |change: fn(&mut Repair)| {
            let mut changed = repair();
            change(&mut changed);
            assert_eq!(Repair::read(&changed.to_bytes()), Err(Malformed));
        };
        refused(|it| it.block.start = BLOCK_BYTES_MAX - 100_000);
        refused(|it| it.block.start = usize::MAX >> 3);
        refused(|it| it.block.length = 0);
        refused(|it| it.block.length = BLOCK_BYTES_MAX + 1);
        refused(|it| it.block.total = SYMBOLS_MAX + 1);
        refused(|it| it.first = 31);
        refused(|it| it.first = 40);
        refused(|it| it.symbols = Bytes::new());
        refused(|it| it.symbols = Bytes::from_static(&[1; 200]));
    }
}
