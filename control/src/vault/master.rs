//! A master key: where it comes from, and how it is named.
//!
//! Its name is a hash that tells nothing of it, so that a sealed text can say which key it needs.

use std::{fmt, fs, io, path::Path};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest::{Context, SHA256},
};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Error, KEY_BYTES, random, write_private};

/// Bytes of a key's name.
pub(super) const ID_BYTES: usize = 8;

/// Apart from every other hash of ours.
const ID_CONTEXT: &[u8] = b"vector master key 1";

/// Names a master key without telling anything of it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyId(pub(super) [u8; ID_BYTES]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&super::hex(&self.0))
    }
}

/// One master key. Its bytes are wiped once the cipher has them.
pub struct MasterKey {
    pub(super) id: KeyId,
    key: LessSafeKey,
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

impl MasterKey {
    /// Reads a key that must be there.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::new(&Zeroizing::new(fs::read(path)?))
    }

    /// Reads a key; makes one when there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds something else.
    pub fn read_or_make(path: &Path) -> Result<Self, Error> {
        match Self::read(path) {
            Err(Error::File(error)) if error.kind() == io::ErrorKind::NotFound => {
                let fresh = Zeroizing::new(random::<KEY_BYTES>()?);
                write_private(path, &fresh[..])?;
                Self::new(&fresh[..])
            }
            read => read,
        }
    }

    /// Reads a key as the environment has it: 64 hex digits.
    ///
    /// # Errors
    /// [`Error::Hex`] for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let digits = text.trim().as_bytes();
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        if digits.len() != 2 * KEY_BYTES {
            return Err(Error::Hex);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(Error::Hex);
            *byte = u8::try_from(digit(0)? << 4 | digit(1)?).map_err(|_| Error::Hex)?;
        }
        Self::new(&bytes[..])
    }

    pub(super) fn new(bytes: &[u8]) -> Result<Self, Error> {
        let key = UnboundKey::new(&AES_256_GCM, bytes).map_err(|_| Error::Length)?;
        let mut sum = Context::new(&SHA256);
        sum.update(ID_CONTEXT);
        sum.update(bytes);
        let mut id = [0; ID_BYTES];
        id.copy_from_slice(&sum.finish().as_ref()[..ID_BYTES]);
        Ok(Self {
            id: KeyId(id),
            key: LessSafeKey::new(key),
        })
    }

    /// Seals `clear` with what it belongs to: a nonce, and the sealed text with its tag.
    pub(super) fn seal(&self, belongs: &[u8], clear: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce = random::<NONCE_LEN>()?;
        let mut body = Zeroizing::new(clear.to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(belongs),
                &mut body,
            )
            .map_err(|_| Error::Closed)?;
        Ok([&nonce[..], &body, tag.as_ref()].concat())
    }

    /// Opens what [`MasterKey::seal`] has made.
    pub(super) fn open(&self, belongs: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(Error::Closed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Closed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let clear = self
            .key
            .open_in_place(nonce, Aad::from(belongs), &mut body)
            .map_err(|_| Error::Closed)?
            .len();
        body[clear..].zeroize();
        body.truncate(clear);
        Ok(body)
    }
}
