//! Seals what must not lie on disk in clear: provider credentials and the pepper of keys.
//!
//! AES-256-GCM under one master key, which lies in a file of mode 0600 in the data directory and
//! nowhere else. What a sealed text belongs to is authenticated with it, so that one cannot be
//! moved to another name.

use std::{fs, io, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};
use zeroize::{Zeroize as _, Zeroizing};

const KEY_BYTES: usize = 32;

/// First byte of a sealed text: which form and master key it has.
const FORM: u8 = 1;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the master key cannot be read or made.
    #[error("master key: {0}")]
    File(#[from] io::Error),
    /// The file holds something else.
    #[error("master key: the file must hold exactly {KEY_BYTES} bytes")]
    Length,
    /// Not sealed by this key for this name, or damaged.
    #[error("a sealed text cannot be opened with this master key")]
    Closed,
    /// The system gives no random bytes.
    #[error("no random bytes to be had")]
    Random,
}

/// Holds the master key.
pub struct Vault {
    key: LessSafeKey,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(..)")
    }
}

impl Vault {
    /// Reads the master key; makes one when there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut bytes = match fs::read(path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fresh = Zeroizing::new(random::<KEY_BYTES>()?.to_vec());
                write_private(path, &fresh)?;
                fresh
            }
            Err(error) => return Err(error.into()),
        };
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| Error::Length)?;
        bytes.zeroize();
        Ok(Self {
            key: LessSafeKey::new(key),
        })
    }

    /// Seals `clear` for `name`.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn seal(&self, name: &str, clear: &[u8]) -> Result<Vec<u8>, Error> {
        let nonce = random::<NONCE_LEN>()?;
        let mut body = clear.to_vec();
        self.key
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_bytes()),
                &mut body,
            )
            .map_err(|_| Error::Closed)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + body.len());
        sealed.push(FORM);
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Opens what was sealed for `name`.
    ///
    /// # Errors
    /// [`Error::Closed`] for anything else.
    pub fn open_sealed(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (head, body) = sealed
            .split_at_checked(1 + NONCE_LEN)
            .ok_or(Error::Closed)?;
        if head[0] != FORM {
            return Err(Error::Closed);
        }
        let nonce = Nonce::try_assume_unique_for_key(&head[1..]).map_err(|_| Error::Closed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let clear = self
            .key
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut body)
            .map_err(|_| Error::Closed)?
            .len();
        body.truncate(clear);
        Ok(body)
    }
}

/// Bytes nobody can guess.
///
/// # Errors
/// When the system gives none.
pub fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// Letters and digits nobody can guess, without bias.
///
/// # Errors
/// When the system gives no random bytes.
pub fn random_letters(count: usize) -> Result<String, Error> {
    const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    /// The largest multiple of 62 in a byte: what is above would favour the first letters.
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(count);
    while text.len() < count {
        for byte in random::<64>()? {
            if byte < FAIR && text.len() < count {
                text.push(char::from(LETTERS[usize::from(byte % 62)]));
            }
        }
    }
    Ok(text)
}

/// Makes a file that only its owner may read, durable, and only when it is not there yet.
///
/// # Errors
/// When it is there or cannot be made.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Lower-case hex, as pins and hashes are written.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a `String` cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_only_under_its_name_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(&dir.path().join("a")).unwrap();
        let sealed = vault.seal("openai/main", b"sk-secret").unwrap();
        assert!(!sealed.windows(9).any(|part| part == b"sk-secret"));
        let again = Vault::open(&dir.path().join("a")).unwrap();
        assert_eq!(
            &again.open_sealed("openai/main", &sealed).unwrap()[..],
            b"sk-secret"
        );
        assert!(again.open_sealed("openai/other", &sealed).is_err());
        let mut damaged = sealed.clone();
        *damaged.last_mut().unwrap() ^= 1;
        assert!(again.open_sealed("openai/main", &damaged).is_err());
        assert!(again.open_sealed("openai/main", b"").is_err());
        let foreign = Vault::open(&dir.path().join("b")).unwrap();
        assert!(foreign.open_sealed("openai/main", &sealed).is_err());
    }
}
