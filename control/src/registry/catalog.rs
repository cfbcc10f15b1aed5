//! All configuration of the network at one moment, as read from the store.

use std::{any::type_name, collections::BTreeMap};

use bytes::Bytes;
use prost::Message;
use vector_proto::control::v1::{
    AccountSpec, CredentialSpec, DefaultRouteSpec, ModelSpec, ProviderSpec,
};
use zeroize::Zeroizing;

use super::{Error, Registry};
use crate::coordinate::{Listing, Revision};

/// Covers [`GENERATION`] and everything below `/cfg/`, so that one listing is one moment.
pub(super) const PREFIX: &str = "/cfg";

/// Counts changes of the configuration.
pub(super) const GENERATION: &str = "/cfg-generation";

/// A kind of thing that has specs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Provider,
    Credential,
    Model,
    DefaultRoute,
    Account,
}

impl Kind {
    /// The word in `Change.kind`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Credential => "credential",
            Self::Model => "model",
            Self::DefaultRoute => "default_route",
            Self::Account => "account",
        }
    }

    /// The key of one of them.
    pub(super) fn key(self, name: &str) -> String {
        format!("/cfg/{}s/{name}", self.as_str())
    }
}

/// A credential at rest.
#[derive(Clone, PartialEq, Message)]
pub struct StoredCredential {
    /// Its `secret` is always empty.
    #[prost(message, required, tag = "1")]
    pub spec: CredentialSpec,
    /// The secret, sealed for `PROVIDER/NAME`.
    #[prost(bytes = "bytes", tag = "2")]
    pub sealed: Bytes,
    /// First and last letters, for people.
    #[prost(string, tag = "3")]
    pub hint: String,
}

impl StoredCredential {
    /// What the sealed secret belongs to.
    pub(super) fn sealed_for(spec: &CredentialSpec) -> String {
        format!("{}/{}", spec.provider, spec.name)
    }
}

/// See the module. Everything by its name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Catalog {
    /// Counts changes; 0 before the first.
    pub generation: u64,
    /// At which revision of the store the generation was set.
    pub(super) generation_changed: Revision,
    /// Upstream APIs.
    pub providers: BTreeMap<String, ProviderSpec>,
    /// Their keys, sealed.
    pub credentials: BTreeMap<String, StoredCredential>,
    /// Public names.
    pub models: BTreeMap<String, ModelSpec>,
    /// By operation.
    pub default_routes: BTreeMap<String, DefaultRouteSpec>,
    /// Who pays.
    pub accounts: BTreeMap<String, AccountSpec>,
}

impl Catalog {
    pub(super) fn read(listing: &Listing) -> Result<Self, Error> {
        let mut catalog = Self::default();
        for entry in &listing.entries {
            if entry.key == GENERATION {
                catalog.generation = number(&entry.value);
                catalog.generation_changed = entry.changed;
                continue;
            }
            let Some((kind, name)) = entry
                .key
                .strip_prefix("/cfg/")
                .and_then(|rest| rest.split_once('/'))
            else {
                continue;
            };
            let (name, value) = (name.to_owned(), &entry.value);
            match kind {
                "providers" => drop(catalog.providers.insert(name, decode(value)?)),
                "credentials" => drop(catalog.credentials.insert(name, decode(value)?)),
                "models" => drop(catalog.models.insert(name, decode(value)?)),
                "default_routes" => drop(catalog.default_routes.insert(name, decode(value)?)),
                "accounts" => drop(catalog.accounts.insert(name, decode(value)?)),
                // A newer version's kind: not ours to judge.
                _ => {}
            }
        }
        Ok(catalog)
    }
}

impl Registry {
    /// All configuration, now.
    ///
    /// # Errors
    /// When the store fails or holds what cannot be read.
    pub async fn catalog(&self) -> Result<Catalog, Error> {
        Catalog::read(&self.store.list(PREFIX).await?)
    }

    /// A credential's secret. Grep for `reveal` to see every place one is used.
    ///
    /// # Errors
    /// When it was sealed with another master key, or for another name.
    pub fn reveal(&self, credential: &StoredCredential) -> Result<Zeroizing<String>, Error> {
        let name = StoredCredential::sealed_for(&credential.spec);
        let clear = self.vault.open_sealed(&name, &credential.sealed)?;
        String::from_utf8(clear.to_vec())
            .map(Zeroizing::new)
            .map_err(|_| Error::Damaged(name))
    }
}

/// Reads a stored message.
pub(super) fn decode<M: Message + Default>(value: &Bytes) -> Result<M, Error> {
    M::decode(value.clone()).map_err(|_| Error::Damaged(type_name::<M>().to_owned()))
}

/// Reads a stored number; anything else counts as 0.
pub(super) fn number(value: &[u8]) -> u64 {
    value.try_into().map(u64::from_be_bytes).unwrap_or_default()
}
