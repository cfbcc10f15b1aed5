//! Seals what must not lie on disk in clear: provider credentials, the pepper of keys and the CA.
//!
//! Envelopes: each text is sealed with AES-256-GCM under a data key of its own, and that under the master key, which comes
//! from a file of mode 0600 or the environment and lies nowhere else. What a sealed text belongs to is authenticated with
//! it, so that one cannot be moved to another name. A new master key needs only the data keys wrapped anew
//! ([`Vault::rewrap`]); until that is done the other keys are at hand to open with, never to seal with.
//! ```text
//! 2 · id of the master key (8) · nonce (12) · data key (32) · tag (16) · nonce (12) · text · tag (16)
//! 1 · nonce (12) · text · tag (16)          older: under the master key itself; opened, not made any more
//! ```

use std::{fs, io, io::Write as _, os::unix::fs::PermissionsExt as _, path::Path};

use ring::{
    aead::NONCE_LEN,
    rand::{SecureRandom as _, SystemRandom},
};
use zeroize::Zeroizing;

use self::master::ID_BYTES;
pub use self::master::{KeyId, MasterKey};

mod master;

const KEY_BYTES: usize = 32;

/// Of AES-256-GCM.
const TAG_BYTES: usize = 16;

/// First byte of a sealed text: its form.
const DIRECT: u8 = 1;
const ENVELOPE: u8 = 2;

/// A data key that is wrapped: nonce, key, tag.
const WRAPPED_BYTES: usize = NONCE_LEN + KEY_BYTES + TAG_BYTES;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file of the master key cannot be read or made.
    #[error("master key: {0}")]
    File(#[from] io::Error),
    /// The file holds something else.
    #[error("master key: the file must hold exactly {KEY_BYTES} bytes")]
    Length,
    /// The environment holds something else.
    #[error("master key: must be {} hex digits, such as `openssl rand -hex {KEY_BYTES}` makes", 2 * KEY_BYTES)]
    Hex,
    /// Not sealed by a key that is at hand for this name, or damaged.
    #[error("a sealed text cannot be opened with this master key")]
    Closed,
    /// The system gives no random bytes.
    #[error("no random bytes to be had")]
    Random,
}

/// Which master key a sealed text needs, and in which form it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wrapping {
    /// The key; `None` when no key at hand opens a text that does not say it.
    pub key: Option<KeyId>,
    /// It is an envelope: the data key is its own.
    pub envelope: bool,
}

/// Holds the master key, and those that are opened with but never sealed with.
pub struct Vault {
    current: MasterKey,
    others: Vec<MasterKey>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(..)")
    }
}

/// The parts of an envelope.
struct Envelope<'a> {
    key: KeyId,
    wrapped: &'a [u8],
    body: &'a [u8],
}

impl<'a> Envelope<'a> {
    fn parse(sealed: &'a [u8]) -> Option<Self> {
        let rest = sealed.strip_prefix(&[ENVELOPE])?;
        let (id, rest) = rest.split_first_chunk::<ID_BYTES>()?;
        let (wrapped, body) = rest.split_at_checked(WRAPPED_BYTES)?;
        let key = KeyId(*id);
        Some(Self { key, wrapped, body })
    }

    fn write(key: KeyId, wrapped: &[u8], body: &[u8]) -> Vec<u8> {
        [&[ENVELOPE][..], &key.0, wrapped, body].concat()
    }
}

/// What a data key belongs to: never mistaken for what a text belongs to.
fn wrapped_for(name: &str) -> Vec<u8> {
    [b"data key \0", name.as_bytes()].concat()
}

impl Vault {
    /// With one key: reads it; makes it when there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or made, or holds something else.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self::new(MasterKey::read_or_make(path)?, Vec::new()))
    }

    /// Seals with `current`, opens with all.
    #[must_use]
    pub fn new(current: MasterKey, others: Vec<MasterKey>) -> Self {
        Self { current, others }
    }

    /// The key that is sealed with, then the others.
    pub fn keys(&self) -> impl Iterator<Item = KeyId> {
        self.all().map(|key| key.id)
    }

    fn all(&self) -> impl Iterator<Item = &MasterKey> {
        std::iter::once(&self.current).chain(&self.others)
    }

    fn held(&self, id: KeyId) -> Result<&MasterKey, Error> {
        self.all().find(|key| key.id == id).ok_or(Error::Closed)
    }

    /// Seals `clear` for `name`.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn seal(&self, name: &str, clear: &[u8]) -> Result<Vec<u8>, Error> {
        let data_key = Zeroizing::new(random::<KEY_BYTES>()?);
        let wrapped = self.current.seal(&wrapped_for(name), &data_key[..])?;
        let body = MasterKey::new(&data_key[..])?.seal(name.as_bytes(), clear)?;
        Ok(Envelope::write(self.current.id, &wrapped, &body))
    }

    /// Opens what was sealed for `name`.
    ///
    /// # Errors
    /// [`Error::Closed`] for anything else.
    pub fn open_sealed(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
        if let Some(envelope) = Envelope::parse(sealed) {
            let data_key = self
                .held(envelope.key)?
                .open(&wrapped_for(name), envelope.wrapped)?;
            return MasterKey::new(&data_key)?.open(name.as_bytes(), envelope.body);
        }
        self.direct(name, sealed).map(|(_, clear)| clear)
    }

    /// Opens the older form, which does not say its key.
    fn direct(&self, name: &str, sealed: &[u8]) -> Result<(KeyId, Zeroizing<Vec<u8>>), Error> {
        let body = sealed.strip_prefix(&[DIRECT]).ok_or(Error::Closed)?;
        self.all()
            .find_map(|key| Some((key.id, key.open(name.as_bytes(), body).ok()?)))
            .ok_or(Error::Closed)
    }

    /// Which key a sealed text needs.
    #[must_use]
    pub fn wrapping(&self, name: &str, sealed: &[u8]) -> Wrapping {
        match Envelope::parse(sealed) {
            Some(envelope) => Wrapping {
                key: Some(envelope.key),
                envelope: true,
            },
            None => Wrapping {
                key: self.direct(name, sealed).ok().map(|(key, _)| key),
                envelope: false,
            },
        }
    }

    /// What was sealed for `name`, under the key that is sealed with now; `None` when it is already. Of an envelope
    /// only the data key is opened.
    ///
    /// # Errors
    /// [`Error::Closed`] when no key at hand opens it.
    pub fn rewrap(&self, name: &str, sealed: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let Some(envelope) = Envelope::parse(sealed) else {
            let (_, clear) = self.direct(name, sealed)?;
            return self.seal(name, &clear).map(Some);
        };
        if envelope.key == self.current.id {
            return Ok(None);
        }
        let belongs = wrapped_for(name);
        let data_key = self.held(envelope.key)?.open(&belongs, envelope.wrapped)?;
        let wrapped = self.current.seal(&belongs, &data_key)?;
        Ok(Some(Envelope::write(
            self.current.id,
            &wrapped,
            envelope.body,
        )))
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
    write_new(path, bytes, 0o600)
}

/// Makes a file, durable, and only when it is not there yet: whole under its name or not at all, wherever it is cut short. A
/// process that is killed leaves at most a file beside it, `.new-` and some letters, which nobody reads.
///
/// # Errors
/// When it is there or cannot be made.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist_noclobber(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
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

    const NAME: &str = "openai/main";
    const CLEAR: &[u8] = b"sk-secret";

    fn key(byte: u8) -> MasterKey {
        MasterKey::new(&[byte; KEY_BYTES]).unwrap()
    }

    fn vault(current: u8, others: &[u8]) -> Vault {
        Vault::new(key(current), others.iter().map(|byte| key(*byte)).collect())
    }

    /// As it was sealed before there were envelopes.
    fn direct(master: u8) -> Vec<u8> {
        let body = key(master).seal(NAME.as_bytes(), CLEAR).unwrap();
        [&[DIRECT][..], &body].concat()
    }

    #[test]
    fn what_is_sealed_opens_only_under_its_name_and_key() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(&dir.path().join("a")).unwrap();
        let sealed = vault.seal(NAME, CLEAR).unwrap();
        assert!(!sealed.windows(CLEAR.len()).any(|part| part == CLEAR));
        let again = Vault::open(&dir.path().join("a")).unwrap();
        assert_eq!(&again.open_sealed(NAME, &sealed).unwrap()[..], CLEAR);
        assert!(again.open_sealed("openai/other", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(again.open_sealed(NAME, &damaged).is_err(), "byte {at}");
            assert!(again.open_sealed(NAME, &sealed[..at]).is_err(), "{at}");
        }
        let foreign = Vault::open(&dir.path().join("b")).unwrap();
        assert!(foreign.open_sealed(NAME, &sealed).is_err());
    }

    #[test]
    fn a_new_master_key_wraps_anew_and_the_old_one_may_go() {
        let old = vault(1, &[]).seal(NAME, CLEAR).unwrap();
        let both = vault(2, &[1]);
        assert_eq!(&both.open_sealed(NAME, &old).unwrap()[..], CLEAR);
        let new = both.rewrap(NAME, &old).unwrap().unwrap();
        assert_eq!(both.rewrap(NAME, &new).unwrap(), None, "twice is once");
        assert_eq!(both.wrapping(NAME, &new).key, Some(key(2).id));
        assert_eq!(&vault(2, &[]).open_sealed(NAME, &new).unwrap()[..], CLEAR);
        assert!(vault(1, &[]).open_sealed(NAME, &new).is_err());
        assert!(vault(2, &[]).rewrap(NAME, &old).is_err());
        assert!(both.rewrap("openai/other", &old).is_err());
        // The text itself was not touched, only its key.
        assert!(old.ends_with(&new[new.len() - CLEAR.len() - TAG_BYTES..]));
    }

    #[test]
    fn the_older_form_still_opens_and_becomes_an_envelope() {
        let both = vault(2, &[1]);
        for master in [1, 2] {
            let old = direct(master);
            assert_eq!(&both.open_sealed(NAME, &old).unwrap()[..], CLEAR);
            let told = Wrapping {
                key: Some(key(master).id),
                envelope: false,
            };
            assert_eq!(both.wrapping(NAME, &old), told);
            let new = both.rewrap(NAME, &old).unwrap().unwrap();
            assert_eq!(&vault(2, &[]).open_sealed(NAME, &new).unwrap()[..], CLEAR);
        }
        assert_eq!(both.wrapping(NAME, &direct(3)).key, None);
        assert!(both.open_sealed("openai/other", &direct(1)).is_err());
    }

    /// Says to this very program that it is the one to be killed, and where.
    const CUT_SHORT: &str = "VECTOR_TEST_CUT_SHORT";

    #[test]
    fn a_file_that_was_cut_short_is_not_there() {
        if let Some(dir) = std::env::var_os(CUT_SHORT) {
            let _ = Vault::open(&Path::new(&dir).join("master.key"));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        // Whoever writes the first byte of any file is killed by the kernel.
        let name = "vault::tests::a_file_that_was_cut_short_is_not_there";
        let killed = std::process::Command::new("bash")
            .args(["-c", "ulimit -c 0 -f 0; exec \"$0\" --exact \"$1\""])
            .arg(std::env::current_exe().unwrap())
            .arg(name)
            .env(CUT_SHORT, dir.path())
            .output()
            .unwrap();
        assert!(!killed.status.success(), "{killed:?}");
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "it had begun: {left:?}");
        let path = dir.path().join("master.key");
        let sealed = Vault::open(&path).unwrap().seal(NAME, CLEAR).unwrap();
        let again = Vault::open(&path).unwrap();
        assert_eq!(&again.open_sealed(NAME, &sealed).unwrap()[..], CLEAR);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let there = write_private(&path, b"another").unwrap_err();
        assert_eq!(there.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn keys_are_read_from_text() {
        let text = "0a".repeat(KEY_BYTES);
        assert_eq!(
            MasterKey::parse(&format!("{text}\n")).unwrap().id,
            key(10).id
        );
        for bad in ["", "0a", &"0g".repeat(KEY_BYTES), &"é".repeat(KEY_BYTES)] {
            assert!(MasterKey::parse(bad).is_err(), "{bad}");
        }
    }
}
