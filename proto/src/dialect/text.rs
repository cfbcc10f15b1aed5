//! A short string kept in place, and JSON's string escapes in both directions.
//!
//! Names and ids are read on every request; they live in a fixed buffer, so reading one allocates nothing.

use std::fmt;

/// Longest name or id, in bytes, before and after its escapes are resolved.
pub const TEXT_BYTES_MAX: usize = 256;

/// Up to [`TEXT_BYTES_MAX`] bytes in place; longer input is remembered as too long.
#[derive(Clone)]
pub(super) struct Text {
    bytes: [u8; TEXT_BYTES_MAX],
    length: usize,
    too_long: bool,
}

impl Text {
    pub(super) fn new() -> Self {
        Self {
            bytes: [0; TEXT_BYTES_MAX],
            length: 0,
            too_long: false,
        }
    }

    pub(super) fn clear(&mut self) {
        self.length = 0;
        self.too_long = false;
    }

    pub(super) fn push(&mut self, more: &[u8]) {
        match self.bytes.get_mut(self.length..self.length + more.len()) {
            Some(room) if !self.too_long => {
                room.copy_from_slice(more);
                self.length += more.len();
            }
            _ => self.too_long = true,
        }
    }

    /// `None` if more was pushed than there is room for.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        (!self.too_long).then(|| &self.bytes[..self.length])
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        self.bytes()
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Text").field(&self.as_str()).finish()
    }
}

/// Resolves a JSON string's escapes into `out`. `None` if an escape is wrong, the text is not UTF-8, or it is too
/// long.
pub(super) fn unescape(raw: &[u8], out: &mut Text) -> Option<()> {
    out.clear();
    let mut rest = raw;
    while let Some(found) = memchr::memchr(b'\\', rest) {
        out.push(&rest[..found]);
        let (kind, after) = rest[found + 1..].split_first()?;
        rest = after;
        let plain = match kind {
            b'"' | b'\\' | b'/' => *kind,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let (letter, after) = unicode(rest)?;
                out.push(letter.encode_utf8(&mut [0; 4]).as_bytes());
                rest = after;
                continue;
            }
            _ => return None,
        };
        out.push(&[plain]);
    }
    out.push(rest);
    out.as_str().map(|_| ())
}

/// Reads what follows `\u`, both halves of a surrogate pair.
fn unicode(raw: &[u8]) -> Option<(char, &[u8])> {
    let (first, rest) = unit(raw)?;
    if !(0xd800..0xdc00).contains(&first) {
        return char::from_u32(first).map(|letter| (letter, rest));
    }
    let (second, rest) = unit(rest.strip_prefix(b"\\u")?)?;
    let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
    char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + low).map(|letter| (letter, rest))
}

fn unit(raw: &[u8]) -> Option<(u32, &[u8])> {
    let (digits, rest) = raw.split_at_checked(4)?;
    let value = digits.iter().try_fold(0, |sum, digit| {
        Some(sum << 4 | char::from(*digit).to_digit(16)?)
    })?;
    Some((value, rest))
}

/// Appends `text` as the inside of a JSON string.
pub(super) fn escape_into(out: &mut Vec<u8>, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => {
                let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
                out.extend_from_slice(&[
                    b'\\',
                    b'u',
                    b'0',
                    b'0',
                    digit(byte >> 4),
                    digit(byte & 15),
                ]);
            }
            _ => out.push(byte),
        }
    }
}
