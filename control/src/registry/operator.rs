//! The operator's token: kept as a hash, compared in constant time.
//!
//! The first start makes one and writes it to a file for the operator. Later starts take up the file when
//! it is there (so a new token is a new file and a restart), and otherwise keep the hash they have.

use std::{fs, io, path::Path};

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::{Error, Registry};
use crate::{coordinate::Transaction, vault};

pub(super) const AT: &str = "/secrets/operator";

/// In front of every operator's token.
const PREFIX: &str = "vadm_";

/// Shortest secret a file may give.
const SECRET_BYTES_MIN: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Operator {
    hash: [u8; 32],
}

impl Registry {
    /// Takes up the operator's token, making one at the first start. True when it was made now.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds no good token.
    pub async fn open_operator(&self, file: &Path, pin: &str) -> Result<bool, Error> {
        let told = |error: io::Error| Error::Refused(format!("{}: {error}", file.display()));
        let stored = self.store.get(AT).await?;
        let before = stored.as_ref().map_or(0, |entry| entry.changed);
        let text = match fs::read_to_string(file) {
            Ok(text) => Some(Zeroizing::new(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(told(error)),
        };
        let (hash, made) = match (text, stored) {
            (Some(text), _) => {
                let secret = secret_of(&text).filter(|secret| secret.len() >= SECRET_BYTES_MIN);
                let secret = secret.ok_or_else(|| {
                    Error::Refused(format!(
                        "{}: holds no token such as vadm_...",
                        file.display()
                    ))
                })?;
                (hash(secret), false)
            }
            (None, Some(entry)) => {
                let kept = <[u8; 32]>::try_from(&entry.value[..]);
                (kept.map_err(|_| Error::Damaged(AT.to_owned()))?, false)
            }
            (None, None) => {
                let secret = Zeroizing::new(vault::hex(&vault::random::<32>()?));
                let text = Zeroizing::new(format!("{PREFIX}{}.{pin}\n", *secret));
                vault::write_private(file, text.as_bytes()).map_err(told)?;
                (hash(&secret), true)
            }
        };
        let put = Transaction::new().when(AT, before).put(AT, hash.to_vec());
        self.store.commit(put).await?;
        self.operator.write().hash = hash;
        Ok(made)
    }

    /// Whether this is the operator's token, with or without the pin behind it.
    #[must_use]
    pub fn is_operator(&self, token: &str) -> bool {
        let presented = hash(secret_of(token).unwrap_or_default());
        bool::from(presented.ct_eq(&self.operator.read().hash))
    }
}

/// The secret in `vadm_SECRET` or `vadm_SECRET.PIN`.
fn secret_of(token: &str) -> Option<&str> {
    let rest = token.trim().strip_prefix(PREFIX)?;
    Some(rest.split_once('.').map_or(rest, |(secret, _)| secret))
}

fn hash(secret: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret.as_bytes()).as_ref());
    bytes
}
