//! What is kept of an authority: the account, the certificate with its key, and when it may be asked again.
//!
//! Each is one file, readable by this process's user alone and replaced as a whole, so that key and chain always go together.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use instant_acme::AccountCredentials;
use parking_lot::Mutex;
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tempfile::NamedTempFile;

use super::{
    Error,
    pace::{self, Pause},
};
use crate::config;

const ACCOUNT: &str = "account.json";
const CERTIFICATE: &str = "certificate.json";
const PAUSE: &str = "pause.json";

/// A certificate with its key, and what it was ordered for.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct Issued {
    directory: String,
    domains: Vec<String>,
    /// PEM, leaf first.
    chain: String,
    /// PEM.
    key: String,
    /// Unix seconds.
    renewal: u64,
}

#[derive(Deserialize, Serialize)]
struct KeptAccount {
    directory: String,
    credentials: AccountCredentials,
}

/// The folder, and what was last read of it or written to it.
pub(super) struct Store {
    folder: PathBuf,
    issued: Mutex<Option<Issued>>,
    pause: Mutex<Option<Pause>>,
}

// Neither shows a key.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Issued {
    /// # Errors
    /// [`Error`] when the two are of no use.
    pub(super) fn new(config: &config::Acme, key: String, chain: String) -> Result<Self, Error> {
        let mut issued = Self {
            directory: config.directory.to_string(),
            domains: config.domains.clone(),
            chain,
            key,
            renewal: 0,
        };
        let pair = issued.pair()?;
        let leaf = pair.end_entity_cert()?;
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf)
            .map_err(|error| bad("the certificate", &error))?;
        let life = leaf.validity();
        let seconds = |time: x509_parser::time::ASN1Time| time.timestamp().max(0).unsigned_abs();
        let now = pace::unix(SystemTime::now());
        issued.renewal = pace::renewal(seconds(life.not_before), seconds(life.not_after), now);
        Ok(issued)
    }

    /// As rustls wants it.
    ///
    /// # Errors
    /// [`Error`] when the two do not go together.
    pub(super) fn pair(&self) -> Result<CertifiedKey, Error> {
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect();
        let chain = chain.map_err(|error| bad("the certificate", &error))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| bad("its key", &error))?;
        let pair = CertifiedKey::new(chain, any_supported_type(&key)?);
        pair.keys_match()?;
        Ok(pair)
    }

    /// Whether it is what the settings ask for.
    pub(super) fn is_for(&self, config: &config::Acme) -> bool {
        self.domains == config.domains && config.directory == *self.directory
    }

    pub(super) fn renewal(&self) -> u64 {
        self.renewal
    }
}

impl Store {
    /// # Errors
    /// [`Error`] when the folder cannot be made or a file in it cannot be read.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        made.map_err(|source| file(folder.to_owned(), source))?;
        Ok(Self {
            folder: folder.to_owned(),
            issued: Mutex::new(read(&folder.join(CERTIFICATE))?),
            pause: Mutex::new(read(&folder.join(PAUSE))?),
        })
    }

    pub(super) fn issued(&self) -> Option<Issued> {
        self.issued.lock().clone()
    }

    pub(super) fn pause(&self) -> Option<Pause> {
        self.pause.lock().clone()
    }

    /// Keeps a certificate, which ends the rest. In memory it is kept in any case.
    pub(super) fn keep(&self, issued: Issued) -> Result<(), Error> {
        let written = self.write(CERTIFICATE, &issued);
        *self.issued.lock() = Some(issued);
        *self.pause.lock() = None;
        written?;
        let path = self.folder.join(PAUSE);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(file(path, source)),
            _ => Ok(()),
        }
    }

    /// Keeps how long the authority is left alone. In memory it is kept in any case.
    pub(super) fn rest(&self, pause: Pause) -> Result<(), Error> {
        let written = self.write(PAUSE, &pause);
        *self.pause.lock() = Some(pause);
        written
    }

    pub(super) fn account(&self, directory: &str) -> Result<Option<AccountCredentials>, Error> {
        let kept: Option<KeptAccount> = read(&self.folder.join(ACCOUNT))?;
        let kept = kept.filter(|kept| kept.directory == directory);
        Ok(kept.map(|kept| kept.credentials))
    }

    pub(super) fn keep_account(
        &self,
        directory: String,
        credentials: AccountCredentials,
    ) -> Result<(), Error> {
        let kept = KeptAccount {
            directory,
            credentials,
        };
        self.write(ACCOUNT, &kept)
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let path = self.folder.join(name);
        let written = || {
            let mut beside = NamedTempFile::new_in(&self.folder)?;
            beside.write_all(&serde_json::to_vec(value)?)?;
            beside.as_file().sync_all()?;
            beside.persist(&path)?;
            fs::File::open(&self.folder)?.sync_all()
        };
        written().map_err(|source| file(path.clone(), source))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(file(path.to_owned(), source)),
    };
    let value = serde_json::from_slice(&text).map_err(|error| Error::Content {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    Ok(Some(value))
}

fn file(path: PathBuf, source: io::Error) -> Error {
    Error::File { path, source }
}

fn bad(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::Content {
        path: what.into(),
        why: error.to_string(),
    }
}
