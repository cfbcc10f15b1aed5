//! A file whose content only this node can read, whole pieces of it at a time.
//!
//! AES-256-GCM under a key of the file's own, derived (HKDF, RFC 5869) from the node's, the file's salt and the exchange: so
//! no key ever seals two things under one nonce, which is the number of the piece, and neither a piece nor a file passes for
//! another. Layout: salt, sealed pieces of [`PIECE_BYTES`] of which the last may be shorter, what is known of the whole
//! (sealed as well), the length of that, and a mark. A file without its end is none. Everything here blocks.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use bytes::Bytes;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
    rand::{SecureRandom as _, SystemRandom},
};
use vector_proto::id::ExchangeId;

use crate::identity::StateKeys;

/// What is sealed at once, and so the least that is read.
pub(super) const PIECE_BYTES: usize = 64 << 10;

/// Stands at a whole file's end. Files of the form before it, which were not sealed, had `01`.
const MARK: &[u8; 8] = b"VEKEPT02";

/// Mark and length.
const FOOTER_BYTES: u64 = 12;

/// Largest description of a file; heads are bounded by what a provider's may be.
const ABOUT_BYTES_MAX: u64 = 1 << 20;

const SALT_BYTES: usize = 32;

const TAG_BYTES: u64 = 16;

/// The first byte of a nonce, by what is sealed.
const OF_A_PIECE: u8 = 0;
const OF_THE_WHOLE: u8 = 1;

/// What the keys of files are derived from.
pub(super) struct Keys(hkdf::Salt, StateKeys);

/// A file that is being written, or whole.
pub(super) struct Sealed {
    file: File,
    key: LessSafeKey,
}

impl Keys {
    /// The keys of this node.
    pub(super) fn new(keys: &StateKeys) -> Self {
        Self(
            hkdf::Salt::new(hkdf::HKDF_SHA256, b"vector answers 1"),
            keys.clone(),
        )
    }

    fn of(&self, exchange: ExchangeId, salt: &[u8]) -> io::Result<LessSafeKey> {
        let secret = self.0.extract(&*self.1.key("answers"));
        let id = exchange.to_bytes();
        let info = [&id[..], salt];
        let key = secret.expand(&info, &AES_256_GCM);
        let key = key.map_err(|_| io::Error::other("no key can be derived"))?;
        Ok(LessSafeKey::new(UnboundKey::from(key)))
    }
}

impl Sealed {
    /// Begins a file that is empty.
    pub(super) fn begin(file: File, keys: &Keys, exchange: ExchangeId) -> io::Result<Self> {
        let mut salt = [0; SALT_BYTES];
        let filled = SystemRandom::new().fill(&mut salt);
        filled.map_err(|_| io::Error::other("no randomness"))?;
        file.write_all_at(&salt, 0)?;
        let key = keys.of(exchange, &salt)?;
        Ok(Self { file, key })
    }

    /// Opens one that was begun before.
    pub(super) fn open(file: File, keys: &Keys, exchange: ExchangeId) -> io::Result<Self> {
        let mut salt = [0; SALT_BYTES];
        file.read_exact_at(&mut salt, 0).map_err(|_| broken())?;
        let key = keys.of(exchange, &salt)?;
        Ok(Self { file, key })
    }

    /// Writes at an offset of the content that begins a piece. What is written is never written again, and only what is
    /// written last may end within a piece.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(offset.is_multiple_of(PIECE_BYTES as u64));
        let mut sealed = Vec::with_capacity(PIECE_BYTES + TAG_BYTES as usize);
        let first = offset / PIECE_BYTES as u64;
        for (number, piece) in (first..).zip(bytes.chunks(PIECE_BYTES)) {
            sealed.clear();
            sealed.extend_from_slice(piece);
            self.seal(nonce(OF_A_PIECE, number), &mut sealed)?;
            self.file.write_all_at(&sealed, place(number))?;
        }
        Ok(())
    }

    /// What stands from `offset` on in its piece, which is so long.
    pub(super) fn read(&self, offset: u64, piece_bytes: usize) -> io::Result<Bytes> {
        let number = offset / PIECE_BYTES as u64;
        let within = (offset % PIECE_BYTES as u64) as usize;
        let mut sealed = vec![0; piece_bytes + TAG_BYTES as usize];
        self.file.read_exact_at(&mut sealed, place(number))?;
        let clear = self.open_sealed(nonce(OF_A_PIECE, number), sealed)?;
        Ok(clear.slice(within.min(clear.len())..))
    }

    /// Ends a file of so many bytes of content, durably. Returns its size.
    pub(super) fn finish(&self, about: &[u8], content: u64) -> io::Result<u64> {
        let mut tail = about.to_vec();
        self.seal(nonce(OF_THE_WHOLE, 0), &mut tail)?;
        let length = u32::try_from(tail.len()).map_err(io::Error::other)?;
        tail.extend_from_slice(&length.to_le_bytes());
        tail.extend_from_slice(MARK);
        let at = size(content);
        self.file.write_all_at(&tail, at)?;
        self.file.sync_all()?;
        Ok(at + tail.len() as u64)
    }

    /// What [`Self::finish`] was given. `InvalidData` if the file is not whole, or not this node's.
    pub(super) fn about(&self) -> io::Result<Bytes> {
        let length = self.file.metadata()?.len();
        let footer_at = length.checked_sub(FOOTER_BYTES).ok_or_else(broken)?;
        let mut footer = [0; FOOTER_BYTES as usize];
        self.file.read_exact_at(&mut footer, footer_at)?;
        let (size, mark) = footer.split_at(4);
        let size = u32::from_le_bytes(size.try_into().map_err(|_| broken())?);
        if mark != MARK || u64::from(size) > ABOUT_BYTES_MAX {
            return Err(broken());
        }
        let at = footer_at.checked_sub(u64::from(size)).ok_or_else(broken)?;
        let mut about = vec![0; size as usize];
        self.file.read_exact_at(&mut about, at)?;
        self.open_sealed(nonce(OF_THE_WHOLE, 0), about)
    }

    /// Whether the file is as large as one of so much content, at least.
    pub(super) fn holds(&self, content: u64) -> io::Result<bool> {
        Ok(self.file.metadata()?.len() > size(content) + FOOTER_BYTES)
    }

    fn seal(&self, nonce: [u8; NONCE_LEN], bytes: &mut Vec<u8>) -> io::Result<()> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = self
            .key
            .seal_in_place_append_tag(nonce, Aad::empty(), bytes);
        sealed.map_err(|_| io::Error::other("it cannot be sealed"))
    }

    fn open_sealed(&self, nonce: [u8; NONCE_LEN], mut bytes: Vec<u8>) -> io::Result<Bytes> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let clear = self.key.open_in_place(nonce, Aad::empty(), &mut bytes);
        let clear = clear.map_err(|_| broken())?.len();
        bytes.truncate(clear);
        Ok(bytes.into())
    }
}

/// Where a piece stands.
const fn place(number: u64) -> u64 {
    SALT_BYTES as u64 + number * (PIECE_BYTES as u64 + TAG_BYTES)
}

/// Where the pieces of so much content end.
const fn size(content: u64) -> u64 {
    SALT_BYTES as u64 + content + content.div_ceil(PIECE_BYTES as u64) * TAG_BYTES
}

fn nonce(of: u8, number: u64) -> [u8; NONCE_LEN] {
    let mut nonce = [0; NONCE_LEN];
    nonce[0] = of;
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "no whole answer of this node's")
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl std::fmt::Debug for Sealed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sealed({:?})", self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &[u8]) -> Keys {
        Keys::new(&StateKeys::of(secret))
    }

    #[test]
    fn nobody_but_the_node_reads_it_and_nothing_of_it_can_be_changed_or_moved() {
        let (mine, id) = (keys(b"mine"), ExchangeId::fresh());
        let clear = b"the answer is 42 ".repeat(PIECE_BYTES / 8);
        let (file, at_rest) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let sealed = Sealed::begin(file.try_clone().unwrap(), &mine, id).unwrap();
        sealed.write(0, &clear[..2 * PIECE_BYTES]).unwrap();
        let rest = &clear[2 * PIECE_BYTES..];
        sealed.write(2 * PIECE_BYTES as u64, rest).unwrap();
        let bytes = sealed.finish(b"about acme", clear.len() as u64).unwrap();
        let mut raw = vec![0; usize::try_from(bytes).unwrap()];
        file.read_exact_at(&mut raw, 0).unwrap();
        for word in [&b"answer"[..], b"acme"] {
            assert!(!raw.windows(word.len()).any(|part| part == word));
        }
        let open = |keys: &Keys, id| Sealed::open(file.try_clone().unwrap(), keys, id).unwrap();
        let again = open(&mine, id);
        assert_eq!(again.about().unwrap(), &b"about acme"[..]);
        assert_eq!(again.read(9, PIECE_BYTES).unwrap(), clear[9..PIECE_BYTES]);
        let last = 2 * PIECE_BYTES as u64;
        assert_eq!(again.read(last + 7, rest.len()).unwrap(), rest[7..]);
        for stranger in [open(&keys(b"other"), id), open(&mine, ExchangeId::fresh())] {
            assert!(stranger.about().is_err() && stranger.read(0, PIECE_BYTES).is_err());
        }
        let check = |raw: &[u8], whole: bool, piece: bool| {
            at_rest.write_all_at(raw, 0).unwrap();
            at_rest.set_len(raw.len() as u64).unwrap();
            let opened = Sealed::open(at_rest.try_clone().unwrap(), &mine, id).unwrap();
            assert_eq!(opened.about().is_ok(), whole);
            assert_eq!(opened.read(0, PIECE_BYTES).is_ok(), piece);
        };
        check(&raw, true, true);
        check(&raw[..raw.len() - 1], false, true);
        for (at, whole, piece) in [
            (0, false, false),
            (40, true, false),
            (raw.len() - 20, false, true),
        ] {
            let mut changed = raw.clone();
            changed[at] ^= 1;
            check(&changed, whole, piece);
        }
        let mut swapped = raw.clone();
        let step = PIECE_BYTES + TAG_BYTES as usize;
        swapped[SALT_BYTES..SALT_BYTES + 2 * step].rotate_left(step);
        check(&swapped, true, false);
    }
}
