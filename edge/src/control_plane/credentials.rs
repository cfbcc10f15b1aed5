//! What this egress may call providers with, sealed on disk, so that it can after a start without control.
//!
//! AES-256-GCM under a key that is derived from the node's own private key: a copy of this file alone opens nothing, and
//! another node's key does not open it. `egress.keep_credentials = false` keeps them in memory only.

use std::{fmt, fs, io, ops::Deref, path::Path};

use prost::Message as _;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};
use vector_proto::control::v1::Credentials;
use zeroize::{Zeroize as _, Zeroizing};

use super::disk;
use crate::identity::StateKeys;

const FILE: &str = "credentials";

/// Which form the file has; authenticated with it.
const FORM: &[u8] = b"vector credentials 1";

/// What control has sent, wiped when newer ones are here.
pub struct Held(Credentials);

impl Held {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self(credentials)
    }
}

impl Deref for Held {
    type Target = Credentials;

    fn deref(&self) -> &Credentials {
        &self.0
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} credentials)", self.credentials.len())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for credential in &mut self.0.credentials {
            credential.secret.zeroize();
            credential.headers.values_mut().for_each(String::zeroize);
        }
    }
}

/// Where they are kept.
pub(super) struct Safe {
    key: LessSafeKey,
}

impl Safe {
    /// `None` only without AES, which there always is.
    pub(super) fn new(keys: &StateKeys) -> Option<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &*keys.key("credentials")).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
        })
    }

    /// Puts them away, whole or not at all. Blocks.
    pub(super) fn put(&self, dir: &Path, credentials: &Credentials) -> io::Result<()> {
        let failed = |_| io::Error::other("they cannot be sealed");
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        let mut body = Zeroizing::new(credentials.encode_to_vec());
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(FORM),
                &mut body,
            )
            .map_err(failed)?;
        disk::put(dir, FILE, &[&nonce[..], &body, tag.as_ref()].concat())
    }

    /// What is there, if it is this node's.
    pub(super) fn take(&self, dir: &Path) -> Option<Credentials> {
        let path = dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), %error, "the credentials on disk cannot be read");
                }
                return None;
            }
        };
        let opened = self.open(&bytes);
        if opened.is_none() {
            tracing::warn!(path = %path.display(), "the credentials on disk are damaged or another node's");
        }
        opened
    }

    fn open(&self, bytes: &[u8]) -> Option<Credentials> {
        let (nonce, body) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = Zeroizing::new(body.to_vec());
        let clear = self
            .key
            .open_in_place(nonce, Aad::from(FORM), &mut body)
            .ok()?;
        Credentials::decode(&*clear).ok()
    }
}

/// Takes away what a former start has kept.
pub(super) fn remove(dir: &Path) {
    match fs::remove_file(dir.join(FILE)) {
        Ok(()) => tracing::info!("credentials are not kept on disk any more"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::error!(%error, "the credentials on disk cannot be removed"),
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1::Credential;

    use super::*;

    #[test]
    fn only_the_node_that_put_them_away_gets_them_back_and_nobody_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let safe = |secret: &[u8]| Safe::new(&StateKeys::of(secret)).unwrap();
        assert_eq!(safe(b"a").take(dir.path()), None);
        let held = Credentials {
            revision: 3,
            credentials: vec![Credential {
                name: "main".into(),
                secret: "sk-upstream-secret".into(),
                ..Credential::default()
            }],
            ..Credentials::default()
        };
        safe(b"a").put(dir.path(), &held).unwrap();
        let bytes = fs::read(dir.path().join(FILE)).unwrap();
        for word in [&b"sk-upstream-secret"[..], b"main"] {
            assert!(!bytes.windows(word.len()).any(|part| part == word));
        }
        assert_eq!(safe(b"a").take(dir.path()), Some(held));
        assert_eq!(safe(b"b").take(dir.path()), None);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            fs::write(dir.path().join(FILE), changed).unwrap();
            assert_eq!(safe(b"a").take(dir.path()), None, "byte {at}");
        }
        remove(dir.path());
        assert!(!dir.path().join(FILE).exists());
    }
}
