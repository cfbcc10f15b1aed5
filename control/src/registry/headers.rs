//! The extra headers of a credential, such as `api-key` or an organisation's token: their values are secrets as its own is.
//!
//! In a record the names lie in clear, with empty values; the values lie beside them, sealed under a name of their own, so
//! that neither can stand in the other's place. A value that is left empty in an update is the one that is stored, as an
//! empty secret is: whoever puts back what a list shows changes nothing.
//! Records from before that hold the values in clear. They are read all the same, and sealed with the next rotation.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use vector_proto::control::v1::CredentialSpec;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Error, Registry, StoredCredential, check::Faults};

/// Longer ones are cut or refused on the way.
pub(super) const NAME_BYTES_MAX: usize = 128;
pub(super) const VALUE_BYTES_MAX: usize = 4_096;

/// Values by name, in clear. They are wiped when they go.
#[derive(Clone, Default, Eq, PartialEq)]
pub(super) struct Headers(BTreeMap<String, String>);

/// As they are before they are sealed.
#[derive(Clone, PartialEq, Message)]
struct Sealable {
    #[prost(btree_map = "string, string", tag = "1")]
    headers: BTreeMap<String, String>,
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        self.0.values_mut().for_each(String::zeroize);
    }
}

impl Headers {
    /// Takes the values out of a spec, which keeps the names.
    pub(super) fn take(spec: &mut CredentialSpec) -> Self {
        let values = spec.headers.iter_mut();
        Self(
            values
                .map(|(name, value)| (name.clone(), std::mem::take(value)))
                .collect(),
        )
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    /// For the one egress that is told of them.
    pub(super) fn into_map(mut self) -> BTreeMap<String, String> {
        std::mem::take(&mut self.0)
    }

    /// Gives what was left empty the value that it has already.
    fn fill(&mut self, credential: &str, known: Option<&Self>, faults: &mut Faults) {
        for (name, value) in self.0.iter_mut().filter(|(_, value)| value.is_empty()) {
            match known.and_then(|known| known.0.get(name)) {
                Some(known) => value.clone_from(known),
                None => faults.push(
                    field(credential, name),
                    "has no value, and none is stored for this provider",
                ),
            }
        }
    }
}

/// What a fault of a header is told for. The name itself may be what is too long.
pub(super) fn field(credential: &str, header: &str) -> String {
    let shown: String = header.chars().take(NAME_BYTES_MAX).collect();
    format!("credentials[{credential}].headers.{shown}")
}

impl StoredCredential {
    /// What the sealed values of its headers belong to. No secret is sealed for it: names have no slash.
    pub(super) fn headers_sealed_for(spec: &CredentialSpec) -> String {
        format!("{}/headers", Self::sealed_for(spec))
    }

    /// Its headers lie in clear, as they did before they were sealed.
    pub(super) fn has_clear_headers(&self) -> bool {
        self.sealed_headers.is_empty() && !self.spec.headers.is_empty()
    }

    /// Names of its headers, parted by spaces.
    pub(super) fn header_names(&self) -> String {
        let names: Vec<&str> = self.spec.headers.keys().map(String::as_str).collect();
        names.join(" ")
    }

    /// Whether a header has another value than in `other`, or is not there.
    pub(super) fn has_other_headers(&self, other: &Self) -> bool {
        self.sealed_headers != other.sealed_headers || self.spec.headers != other.spec.headers
    }

    /// What operators see of it: no secret, and of headers the names.
    #[must_use]
    pub fn shown(&self) -> CredentialSpec {
        let mut spec = self.spec.clone();
        drop(Headers::take(&mut spec));
        spec
    }
}

impl Registry {
    /// The headers of a credential, with their values.
    ///
    /// # Errors
    /// When they were sealed with another master key, or for another name.
    pub(super) fn reveal_headers(&self, stored: &StoredCredential) -> Result<Headers, Error> {
        if stored.sealed_headers.is_empty() {
            return Ok(Headers(stored.spec.headers.clone()));
        }
        let name = StoredCredential::headers_sealed_for(&stored.spec);
        let clear = self.vault.open_sealed(&name, &stored.sealed_headers)?;
        let opened = Sealable::decode(&clear[..]).map_err(|_| Error::Damaged(name))?;
        Ok(Headers(opened.headers))
    }

    /// Takes up headers as they were given for a credential that was `before`; what is left empty becomes what is stored.
    /// Answers what is to be sealed: nothing where all is as it was, since the same plan twice is no change.
    pub(super) fn take_up_headers(
        &self,
        stored: &mut StoredCredential,
        before: Option<&StoredCredential>,
        mut given: Headers,
        faults: &mut Faults,
    ) -> Option<Headers> {
        let before = before.filter(|before| before.spec.provider == stored.spec.provider);
        // Those that no key at hand opens are as good as lost.
        let known = before.and_then(|before| self.reveal_headers(before).ok());
        given.fill(&stored.spec.name, known.as_ref(), faults);
        match before {
            Some(before) if known.is_some_and(|known| known == given) => {
                stored.spec.headers.clone_from(&before.spec.headers);
                stored.sealed_headers = before.sealed_headers.clone();
                None
            }
            _ => Some(given),
        }
    }

    /// Seals the headers of a record that holds them in clear; answers whether it did.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub(super) fn seal_clear_headers(&self, stored: &mut StoredCredential) -> Result<bool, Error> {
        if !stored.has_clear_headers() {
            return Ok(false);
        }
        let headers = Headers::take(&mut stored.spec);
        self.seal_headers(stored, headers)?;
        Ok(true)
    }

    /// Seals headers into a record.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub(super) fn seal_headers(
        &self,
        stored: &mut StoredCredential,
        headers: Headers,
    ) -> Result<(), Error> {
        // The names are kept.
        drop(Headers::take(&mut stored.spec));
        stored.sealed_headers = if headers.0.is_empty() {
            Bytes::new()
        } else {
            let mut sealable = Sealable {
                headers: headers.into_map(),
            };
            let clear = Zeroizing::new(sealable.encode_to_vec());
            sealable.headers.values_mut().for_each(String::zeroize);
            let name = StoredCredential::headers_sealed_for(&stored.spec);
            self.vault.seal(&name, &clear)?.into()
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
