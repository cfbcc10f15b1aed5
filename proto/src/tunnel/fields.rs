//! Header fields as heads carry them: one block of bytes instead of a message for each field.
//!
//! `(name length, name, value length, value)*`, lengths as QUIC varints (RFC 9000, section 16). Writing a block takes one
//! allocation and reading one takes none: values come out as slices of it.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::codec::{put_varint, take_varint};

/// Writes a block.
#[derive(Debug, Default)]
pub struct Block(BytesMut);

impl Block {
    /// An empty block with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        Self(BytesMut::with_capacity(bytes))
    }

    /// Appends a field.
    pub fn push(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), value] {
            put_varint(&mut self.0, part.len() as u64);
            self.0.put_slice(part);
        }
    }

    /// The block, ready for a head.
    pub fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

impl<'f> FromIterator<(&'f str, &'f [u8])> for Block {
    fn from_iter<I: IntoIterator<Item = (&'f str, &'f [u8])>>(fields: I) -> Self {
        let mut block = Self::default();
        fields
            .into_iter()
            .for_each(|(name, value)| block.push(name, value));
        block
    }
}

/// Reads a block: names and values in order. What is malformed ends it, and everything behind it is lost.
#[derive(Debug)]
pub struct Fields<'b> {
    block: &'b Bytes,
    at: usize,
}

impl<'b> Fields<'b> {
    /// Reads from the start.
    pub const fn of(block: &'b Bytes) -> Self {
        Self { block, at: 0 }
    }

    /// The next part and where it stands.
    fn part(&mut self) -> Option<(usize, usize)> {
        let mut rest = self.block.get(self.at..)?;
        let before = rest.len();
        let len = usize::try_from(take_varint(&mut rest)?).ok()?;
        let from = self.at + (before - rest.len());
        let to = from.checked_add(len)?;
        if to > self.block.len() {
            return None;
        }
        self.at = to;
        Some((from, to))
    }
}

impl<'b> Iterator for Fields<'b> {
    type Item = (&'b [u8], Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        let name = self.part()?;
        let value = self.part()?;
        Some((
            &self.block[name.0..name.1],
            self.block.slice(value.0..value.1),
        ))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            fields in prop::collection::vec(("[a-z-]{0,70}", prop::collection::vec(any::<u8>(), 0..20_000)), 0..12),
        ) {
            let borrowed = fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            let block = borrowed.collect::<Block>().finish();
            let read: Vec<_> = Fields::of(&block)
                .map(|(name, value)| (String::from_utf8(name.to_vec()).unwrap(), value.to_vec()))
                .collect();
            prop_assert_eq!(read, fields);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let block = Bytes::from(bytes);
            prop_assert!(Fields::of(&block).count() <= block.len());
        }
    }
}
