//! API keys: made once, shown once, known again by a MAC.
//!
//! What is stored is HMAC-SHA256 under a pepper of the SHA-256 of the key's 48 letters. Letters are
//! random (190 bits), so no slow hash is needed; the pepper, sealed in the store, makes a copy of the
//! store alone worthless. Comparing takes the same time for every answer, unknown keys included.

use bytes::Bytes;
use prost::Message;
use ring::{
    digest::{SHA256, digest},
    hmac,
};
use vector_proto::{
    control::v1::{AccountSpec, KeyPolicy, KeySpec, KeyView},
    id::ApiKey,
    refusal::Code,
};
use zeroize::Zeroizing;

use super::{
    Actor, Error, Registry,
    audit::change,
    bounds,
    catalog::{Kind, decode},
    check::{self, Faults},
};
use crate::{
    coordinate::{Entry, Revision, Store, Transaction},
    vault::{self, Vault},
};

const PREFIX: &str = "/keys/";

/// Version of the pepper that new keys are made with.
const PEPPER_VERSION: u32 = 1;

pub(super) const PEPPER_KEY: &str = "/secrets/pepper-1";

/// A single push names at most this many keys; beyond it says "all".
const CHANGED_MAX: usize = 1_000;

/// A key at rest.
#[derive(Clone, PartialEq, Message)]
pub struct StoredKey {
    /// What it may do.
    #[prost(message, required, tag = "1")]
    pub spec: KeySpec,
    /// See the module.
    #[prost(bytes = "bytes", tag = "2")]
    pub mac: Bytes,
    /// Which pepper `mac` was made with.
    #[prost(uint32, tag = "3")]
    pub pepper: u32,
    /// Switched off.
    #[prost(bool, tag = "4")]
    pub disabled: bool,
    /// When it was made.
    #[prost(uint64, tag = "5")]
    pub created_unix_ms: u64,
}

impl StoredKey {
    fn view(self, id: &str) -> KeyView {
        KeyView {
            id: id.to_owned(),
            spec: Some(self.spec),
            disabled: self.disabled,
            created_unix_ms: self.created_unix_ms,
            heard: None,
        }
    }
}

/// What a presented key is worth.
#[derive(Clone, Debug, PartialEq)]
pub enum Admission {
    /// It may be used, within this.
    Granted(KeyPolicy),
    /// It may not.
    Refused(Code),
}

/// Keys that changed after a revision.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ChangedKeys {
    /// Their ids.
    pub ids: Vec<String>,
    /// Too many to name.
    pub all: bool,
    /// Up to here.
    pub revision: Revision,
}

/// The secret that MACs of keys are made with.
pub(super) struct Pepper(hmac::Key);

impl Pepper {
    pub(super) async fn open(store: &dyn Store, vault: &Vault) -> Result<Self, Error> {
        let sealed = match store.get(PEPPER_KEY).await? {
            Some(entry) => entry.value,
            None => {
                let sealed: Bytes = vault.seal(PEPPER_KEY, &vault::random::<32>()?)?.into();
                let put = Transaction::new()
                    .when(PEPPER_KEY, 0)
                    .put(PEPPER_KEY, sealed.clone());
                store.commit(put).await?;
                sealed
            }
        };
        let clear = vault.open_sealed(PEPPER_KEY, &sealed)?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &clear)))
    }

    pub(super) fn mac(&self, letters_sha256: &[u8]) -> Bytes {
        Bytes::copy_from_slice(hmac::sign(&self.0, letters_sha256).as_ref())
    }

    /// In constant time.
    pub(super) fn knows(&self, letters_sha256: &[u8], mac: &[u8]) -> bool {
        hmac::verify(&self.0, letters_sha256, mac).is_ok()
    }
}

impl Registry {
    /// Makes a key and answers its text, which is kept nowhere.
    ///
    /// # Errors
    /// [`Error::Invalid`] for bad fields or an unknown account.
    pub async fn create_key(
        &self,
        by: &Actor,
        spec: KeySpec,
        now_unix_ms: u64,
    ) -> Result<(KeyView, Zeroizing<String>), Error> {
        let mut faults = Faults::default();
        check::key(&spec, &mut faults);
        bounds::key(&spec, &mut faults);
        if spec.expires_unix_ms != 0 && spec.expires_unix_ms <= now_unix_ms {
            faults.push("expires_unix_ms".to_owned(), "is in the past");
        }
        let account = self.store.get(&Kind::Account.key(&spec.account)).await?;
        if account.is_none() {
            faults.push(
                "account".to_owned(),
                format!("there is no account `{}`", spec.account),
            );
        }
        if !faults.0.is_empty() {
            return Err(Error::Invalid(faults.0));
        }
        let id = vault::random_letters(ApiKey::ID_CHARS)?;
        let secret = Zeroizing::new(vault::random_letters(ApiKey::SECRET_CHARS)?);
        let text = Zeroizing::new(ApiKey::assemble(&id, &secret));
        let key = ApiKey::parse(&text).map_err(|_| Error::Damaged("key".to_owned()))?;
        let stored = StoredKey {
            spec,
            mac: self
                .pepper()
                .mac(digest(&SHA256, key.reveal().as_bytes()).as_ref()),
            pepper: PEPPER_VERSION,
            disabled: false,
            created_unix_ms: now_unix_ms,
        };
        let at = format!("{PREFIX}{id}");
        let put = Transaction::new()
            .when(at.clone(), 0)
            .put(at, stored.encode_to_vec());
        let details = vec![format!("account: {}", stored.spec.account)];
        self.commit(by, &[change("create", "key", &id, details)], put)
            .await?;
        Ok((stored.view(&id), text))
    }

    /// Keys, by id, of one account or (empty) of all.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn keys(&self, account: &str) -> Result<Vec<KeyView>, Error> {
        let mut views = Vec::new();
        for entry in self.store.list(PREFIX).await?.entries {
            let key: StoredKey = decode(&entry.value)?;
            if account.is_empty() || key.spec.account == account {
                views.push(key.view(id_of(&entry)));
            }
        }
        Ok(views)
    }

    /// Switches a key off or on again.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such key.
    pub async fn set_key_state(
        &self,
        by: &Actor,
        id: &str,
        disabled: bool,
    ) -> Result<KeyView, Error> {
        let (mut key, changed) = self.stored_key(id).await?;
        if key.disabled == disabled {
            return Ok(key.view(id));
        }
        key.disabled = disabled;
        let at = format!("{PREFIX}{id}");
        let put = Transaction::new()
            .when(at.clone(), changed)
            .put(at, key.encode_to_vec());
        let details = vec![format!("disabled: {} -> {disabled}", !disabled)];
        self.commit(by, &[change("update", "key", id, details)], put)
            .await?;
        Ok(key.view(id))
    }

    /// A key that is switched off, or on, already.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such key, [`Error::Refused`] when it is in the other state.
    pub async fn key_in_state(&self, id: &str, disabled: bool) -> Result<KeyView, Error> {
        let (key, _) = self.stored_key(id).await?;
        if key.disabled == disabled {
            return Ok(key.view(id));
        }
        let state = if key.disabled { "off" } else { "on" };
        let why = format!("key {id} is {state}: somebody else has switched it since");
        Err(Error::Refused(why))
    }

    async fn stored_key(&self, id: &str) -> Result<(StoredKey, Revision), Error> {
        let entry = self.store.get(&format!("{PREFIX}{id}")).await?;
        let entry = entry.ok_or_else(|| Error::Unknown {
            kind: "key",
            name: id.to_owned(),
        })?;
        Ok((decode(&entry.value)?, entry.changed))
    }

    /// Says what a presented key is worth. `letters_sha256` is the SHA-256 of its 48 letters.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn admit(
        &self,
        id: &str,
        letters_sha256: &[u8],
        now_unix_ms: u64,
    ) -> Result<Admission, Error> {
        let well_formed =
            id.len() == ApiKey::ID_CHARS && id.bytes().all(|b| b.is_ascii_alphanumeric());
        let entry = if well_formed {
            self.store.get(&format!("{PREFIX}{id}")).await?
        } else {
            None
        };
        let Some(entry) = entry else {
            // As long as for a key that is there.
            let _ = self.pepper().knows(letters_sha256, &[0; 32]);
            return Ok(Admission::Refused(Code::BadKey));
        };
        let key: StoredKey = decode(&entry.value)?;
        if !self.pepper().knows(letters_sha256, &key.mac) {
            return Ok(Admission::Refused(Code::BadKey));
        }
        let account = self
            .store
            .get(&Kind::Account.key(&key.spec.account))
            .await?;
        let account: Option<AccountSpec> = account.map(|entry| decode(&entry.value)).transpose()?;
        if key.disabled || account.is_none_or(|account| account.disabled) {
            return Ok(Admission::Refused(Code::KeyDisabled));
        }
        if key.spec.expires_unix_ms != 0 && key.spec.expires_unix_ms <= now_unix_ms {
            return Ok(Admission::Refused(Code::KeyExpired));
        }
        Ok(Admission::Granted(policy(id, key.spec)))
    }

    /// Keys whose answer may differ from the one given at or before `after`; 0: all.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn keys_changed_since(&self, after: Revision) -> Result<ChangedKeys, Error> {
        // Accounts first: what changes in between is then told twice, not never.
        let accounts = self.store.list("/cfg/accounts/").await?;
        let keys = self.store.list(PREFIX).await?;
        let changed_accounts: std::collections::HashSet<&str> = accounts
            .entries
            .iter()
            .filter(|entry| entry.changed > after)
            .filter_map(|entry| entry.key.strip_prefix("/cfg/accounts/"))
            .collect();
        let mut changed = ChangedKeys {
            revision: accounts.revision,
            all: after == 0,
            ids: Vec::new(),
        };
        if changed.all {
            return Ok(changed);
        }
        for entry in &keys.entries {
            let key: StoredKey = decode(&entry.value)?;
            if entry.changed > after || changed_accounts.contains(key.spec.account.as_str()) {
                changed.ids.push(id_of(entry).to_owned());
            }
        }
        if changed.ids.len() > CHANGED_MAX {
            changed.ids.clear();
            changed.all = true;
        }
        Ok(changed)
    }
}

fn id_of(entry: &Entry) -> &str {
    entry.key.strip_prefix(PREFIX).unwrap_or_default()
}

fn policy(id: &str, spec: KeySpec) -> KeyPolicy {
    KeyPolicy {
        key: id.to_owned(),
        account: spec.account,
        models: spec.models,
        addresses: spec.addresses,
        requests_per_minute: spec.requests_per_minute,
        tokens_per_minute: spec.tokens_per_minute,
        concurrency: spec.concurrency,
        expires_unix_ms: spec.expires_unix_ms,
    }
}
