//! Names of things: each a newtype whose only way in is a check, so that one in hand is well formed.

use std::{borrow::Borrow, fmt, str::FromStr};

use uuid::Uuid;

/// Names one exchange in every log, header and ledger row: a UUIDv7.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ExchangeId(u128);

impl ExchangeId {
    /// A fresh id of this moment.
    #[must_use]
    pub fn fresh() -> Self {
        Self(Uuid::now_v7().as_u128())
    }

    /// The 16 bytes that travel.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads the 16 bytes that travel.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl TryFrom<&[u8]> for ExchangeId {
    type Error = BadId;

    fn try_from(bytes: &[u8]) -> Result<Self, BadId> {
        bytes
            .try_into()
            .map(Self::from_bytes)
            .map_err(|_| BadId::Exchange)
    }
}

impl FromStr for ExchangeId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        Uuid::parse_str(text)
            .map(|uuid| Self(uuid.as_u128()))
            .map_err(|_| BadId::Exchange)
    }
}

impl fmt::Display for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Uuid::from_u128(self.0).as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names a node, provider, account or credential: 1 to 63 of `a-z 0-9 -`, not at the ends a `-`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name(Box<str>);

/// Names one node for its whole life.
pub type NodeId = Name;

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        let inside = matches!(text.len(), 1..=63) && text.bytes().all(legal);
        if inside && !text.starts_with('-') && !text.ends_with('-') {
            Ok(Self(text.into()))
        } else {
            Err(BadId::Name(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

const CHECK_CHARS: usize = 6;

/// An API key as clients present it: `sk-` and 48 letters or digits, of which the first ten are its id
/// and the last six a checksum of the 42 before.
///
/// The text is borrowed from the request and never copied; it has no `Display` and no `Debug` of itself.
#[derive(Clone, Copy)]
pub struct ApiKey<'a>(&'a str);

impl<'a> ApiKey<'a> {
    /// Letters of the id part.
    pub const ID_CHARS: usize = 10;
    /// Letters of the secret part.
    pub const SECRET_CHARS: usize = 32;
    /// Letters of the checksum.
    pub const CHECK_CHARS: usize = CHECK_CHARS;
    /// Letters after `sk-`.
    pub const CHARS: usize = Self::ID_CHARS + Self::SECRET_CHARS + Self::CHECK_CHARS;

    /// Reads a presented key, with or without `sk-` in front, and checks its checksum.
    ///
    /// # Errors
    /// [`BadId::Key`] when it is not of this form, which catches most typing mistakes without a look-up.
    pub fn parse(text: &'a str) -> Result<Self, BadId> {
        let text = text.strip_prefix("sk-").unwrap_or(text);
        if text.len() != Self::CHARS || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(BadId::Key);
        }
        let (payload, check) = text.split_at(Self::ID_CHARS + Self::SECRET_CHARS);
        if Self::checksum(payload) == check.as_bytes() {
            Ok(Self(text))
        } else {
            Err(BadId::Key)
        }
    }

    /// Makes the text of a key from its id and secret part.
    #[must_use]
    pub fn assemble(id: &str, secret: &str) -> String {
        let payload = format!("{id}{secret}");
        let check = Self::checksum(&payload);
        format!("sk-{payload}{}", String::from_utf8_lossy(&check))
    }

    /// The public part, which names the key everywhere.
    #[must_use]
    pub fn id(self) -> &'a str {
        &self.0[..Self::ID_CHARS]
    }

    /// The 48 letters without `sk-`: what is hashed, so that both accepted forms are one key.
    /// The one door out. Grep for `reveal` to see every place a key is used.
    #[must_use]
    pub fn reveal(self) -> &'a str {
        self.0
    }

    fn checksum(payload: &str) -> [u8; CHECK_CHARS] {
        const LETTERS: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut left = u64::from(crc32(payload.as_bytes()));
        let mut check = [b'0'; CHECK_CHARS];
        for place in check.iter_mut().rev() {
            *place = LETTERS[(left % 62) as usize];
            left /= 62;
        }
        check
    }
}

impl fmt::Debug for ApiKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({})", self.id())
    }
}

/// What each byte adds to a CRC-32 (IEEE 802.3).
const CRC32: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (crc >> 8) ^ CRC32[usize::from(crc.to_le_bytes()[0] ^ byte)]
    })
}

/// Why a text is not the name it should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadId {
    /// Not a UUID.
    #[error("an exchange id is a UUID")]
    Exchange,
    /// Not a name.
    #[error("`{0}` is not a name: 1 to 63 of a-z, 0-9 and -, without a - at either end")]
    Name(String),
    /// Not an API key.
    #[error("not an API key of this network")]
    Key,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_own_text_and_no_other() {
        let secret = "s".repeat(ApiKey::SECRET_CHARS);
        let text = ApiKey::assemble("0123456789", &secret);
        assert_eq!(text.len(), 51);
        assert_eq!(ApiKey::parse(&text).unwrap().id(), "0123456789");
        assert_eq!(ApiKey::parse(&text[3..]).unwrap().id(), "0123456789");
        let mut typo = text.into_bytes();
        typo[20] = b'x';
        assert_eq!(
            ApiKey::parse(std::str::from_utf8(&typo).unwrap()).err(),
            Some(BadId::Key)
        );
        assert!(ApiKey::parse("sk-").is_err());
        assert!(ApiKey::parse("").is_err());
    }

    #[test]
    fn crc32_has_the_published_check_value() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn names_are_strict() {
        assert!("egress-us-1".parse::<Name>().is_ok());
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
