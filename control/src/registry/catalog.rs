//! All configuration of the network at one moment, as read from the store.

use std::{any::type_name, collections::BTreeMap};

use bytes::Bytes;
use prost::Message;
use vector_proto::control::v1::{
    AccountSpec, CredentialSpec, DefaultRouteSpec, ModelSpec, ProviderSpec,
};
use zeroize::Zeroizing;

use super::{Error, Registry, Rollout, rollout};
use crate::coordinate::{Listing, Revision};

/// Covers [`GENERATION`], the rollout, and everything below `/cfg/`, so that one listing is one moment.
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
    /// Its `secret` is always empty, and so are the values of its headers once they are sealed.
    #[prost(message, required, tag = "1")]
    pub spec: CredentialSpec,
    /// The secret, sealed for `PROVIDER/NAME`.
    #[prost(bytes = "bytes", tag = "2")]
    pub sealed: Bytes,
    /// First and last letters, for people.
    #[prost(string, tag = "3")]
    pub hint: String,
    /// The values of its headers, sealed for `PROVIDER/NAME/headers`; empty without headers.
    #[prost(bytes = "bytes", tag = "4")]
    pub sealed_headers: Bytes,
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
    /// The change that is on its way to all nodes, or was last.
    pub rollout: Rollout,
    /// At which revision of the store it was last moved.
    pub(super) rollout_changed: Revision,
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
            catalog.follow(&entry.key, Some(&entry.value), entry.changed)?;
        }
        Ok(catalog)
    }

    /// Takes up what one key holds since a revision; `None`: it is gone.
    pub(super) fn follow(
        &mut self,
        key: &str,
        value: Option<&Bytes>,
        revision: Revision,
    ) -> Result<(), Error> {
        let changed = value.map_or(0, |_| revision);
        if key == GENERATION {
            self.generation = value.map_or(0, |value| number(value));
            self.generation_changed = changed;
        } else if key == rollout::AT {
            self.rollout = value.map(decode).transpose()?.unwrap_or_default();
            self.rollout_changed = changed;
        } else {
            self.set(key, value)?;
        }
        Ok(())
    }

    /// Sets what one key stands for; `None` takes it away.
    pub(super) fn set(&mut self, key: &str, value: Option<&Bytes>) -> Result<(), Error> {
        let path = key.strip_prefix("/cfg/");
        let Some((kind, name)) = path.and_then(|rest| rest.split_once('/')) else {
            return Ok(());
        };
        match kind {
            "providers" => put(&mut self.providers, name, value),
            "credentials" => put(&mut self.credentials, name, value),
            "models" => put(&mut self.models, name, value),
            "default_routes" => put(&mut self.default_routes, name, value),
            "accounts" => put(&mut self.accounts, name, value),
            // A newer version's kind: not ours to judge.
            _ => Ok(()),
        }
    }

    /// What one key holds.
    pub(super) fn value(&self, key: &str) -> Option<Bytes> {
        let (kind, name) = key.strip_prefix("/cfg/")?.split_once('/')?;
        let value = match kind {
            "providers" => self.providers.get(name)?.encode_to_vec(),
            "credentials" => self.credentials.get(name)?.encode_to_vec(),
            "models" => self.models.get(name)?.encode_to_vec(),
            "default_routes" => self.default_routes.get(name)?.encode_to_vec(),
            "accounts" => self.accounts.get(name)?.encode_to_vec(),
            _ => return None,
        };
        Some(value.into())
    }
}

fn put<S: Message + Default>(
    specs: &mut BTreeMap<String, S>,
    name: &str,
    value: Option<&Bytes>,
) -> Result<(), Error> {
    match value {
        Some(value) => drop(specs.insert(name.to_owned(), decode(value)?)),
        None => drop(specs.remove(name)),
    }
    Ok(())
}

impl Registry {
    /// All configuration, now.
    ///
    /// # Errors
    /// When the store fails or holds what cannot be read.
    pub async fn catalog(&self) -> Result<Catalog, Error> {
        Catalog::read(&self.store.list(PREFIX).await?)
    }

    /// A credential's secret and the values of its headers. Grep for `reveal` to see every place they are used.
    ///
    /// # Errors
    /// When it was sealed with another master key, or for another name.
    pub fn reveal(
        &self,
        credential: &StoredCredential,
    ) -> Result<(Zeroizing<String>, BTreeMap<String, String>), Error> {
        let name = StoredCredential::sealed_for(&credential.spec);
        let clear = self.vault.open_sealed(&name, &credential.sealed)?;
        let secret = std::str::from_utf8(&clear).map_err(|_| Error::Damaged(name))?;
        let secret = Zeroizing::new(secret.to_owned());
        let headers = self.reveal_headers(credential)?;
        Ok((secret, headers.into_map()))
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
