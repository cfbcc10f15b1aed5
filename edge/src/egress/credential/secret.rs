//! A provider's key while this process holds it.
//!
//! It cannot be printed, compared, cloned or serialised, and its memory is wiped when the last user is gone.

use std::fmt;

use bytes::Bytes;
use http::HeaderValue;
use zeroize::Zeroizing;

/// A provider key on loan.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a key in.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The one door out. Grep for `reveal` to see every place a key is used.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The key as the value of a header, behind `scheme` (such as `Bearer `, or nothing).
    ///
    /// The value is marked sensitive, and its bytes are wiped with its last clone. `None` if a header cannot
    /// carry the key.
    pub fn header(&self, scheme: &str) -> Option<HeaderValue> {
        let mut text = Zeroizing::new(Vec::with_capacity(scheme.len() + self.0.len()));
        text.extend_from_slice(scheme.as_bytes());
        text.extend_from_slice(self.reveal().as_bytes());
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text)).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_only_through_its_door() {
        let secret = Secret::new("sk-canary");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        let header = secret.header("Bearer ").unwrap();
        assert_eq!(header.as_bytes(), b"Bearer sk-canary");
        assert!(!format!("{header:?}").contains("canary"));
        assert!(Secret::new("line\nbreak").header("").is_none());
    }
}
