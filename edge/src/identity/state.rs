//! The files that make a node the same node after a restart.
//!
//! `identity.pem` says that the others are there. Every file is written beside its place and renamed, so that a crash leaves
//! the old or the new one, never half. A key that control is asked to certify is on disk before it is asked, in
//! `enroll.pem`, and stays there until everything else is: a start after a crash in between finishes what was begun.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, pem::PemObject as _,
};
use zeroize::Zeroizing;

use super::{Error, tls};

/// Is there when control has said that the identity beside it counts no more.
const REMOVED: &str = "removed";

/// A key that control is asked to certify, and the request to: control knows the very same one again.
const ASKED: &str = "enroll.pem";

#[derive(Debug)]
pub(super) struct State(PathBuf);

/// How far apart epochs are that could not be kept while the clock is behind.
const UNKEPT_EPOCHS: u64 = 60_000;

/// What a former start left.
pub(super) struct Kept {
    /// PKCS#8.
    pub(super) key: Vec<u8>,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) region: String,
}

impl State {
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder);
        made.map_err(|source| Error::File {
            path: folder.to_owned(),
            source,
        })?;
        Ok(Self(folder.to_owned()))
    }

    pub(super) fn certificate(&self) -> PathBuf {
        self.0.join("identity.pem")
    }

    pub(super) fn read(&self) -> Result<Option<Kept>, Error> {
        let path = self.certificate();
        if !path.exists() {
            return Ok(None);
        }
        let chain = certificates(path)?;
        self.finish(&chain)?;
        let key_path = self.0.join("identity.key");
        let key = PrivateKeyDer::from_pem_file(&key_path).map_err(|error| Error::Stored {
            path: key_path,
            why: error.to_string(),
        })?;
        Ok(Some(Kept {
            key: key.secret_der().to_vec(),
            chain,
            roots: certificates(self.0.join("roots.pem"))?,
            region: self.text("region")?.unwrap_or_default(),
        }))
    }

    /// The key, to sign a request with.
    pub(super) fn key(&self) -> Result<rcgen::KeyPair, Error> {
        let path = self.0.join("identity.key");
        let text = self.text("identity.key")?.unwrap_or_default();
        rcgen::KeyPair::from_pem(&text).map_err(|error| Error::Stored {
            path,
            why: error.to_string(),
        })
    }

    /// The key that a former start asked control to certify, and its request, if nothing came of it yet.
    pub(super) fn asked(&self) -> Result<Option<(rcgen::KeyPair, Vec<u8>)>, Error> {
        let Some(text) = self.text(ASKED)?.map(Zeroizing::new) else {
            return Ok(None);
        };
        let key = rcgen::KeyPair::from_pem(&text);
        let csr = CertificateSigningRequestDer::from_pem_slice(text.as_bytes());
        let (Ok(key), Ok(csr)) = (key, csr) else {
            tracing::warn!(file = ASKED, "left out: it holds no key and request");
            return Ok(None);
        };
        Ok(Some((key, csr.to_vec())))
    }

    /// Keeps a key and its request, before control is asked.
    pub(super) fn write_asked(&self, key: &rcgen::KeyPair, csr: &[u8]) -> Result<(), Error> {
        let key = Zeroizing::new(key.serialize_pem());
        let text = format!("{}{}", &*key, pem("CERTIFICATE REQUEST", csr));
        self.put(ASKED, Zeroizing::new(text).as_bytes())
    }

    /// Keeps what came of [`State::write_asked`]. The certificate goes before its key, which is on disk already.
    pub(super) fn write(
        &self,
        key_pem: &str,
        chain: &[CertificateDer<'_>],
        roots: &[CertificateDer<'_>],
        region: &str,
    ) -> Result<(), Error> {
        self.write_roots(roots)?;
        self.put("region", region.as_bytes())?;
        self.write_chain(chain)?;
        self.put("identity.key", key_pem.as_bytes())?;
        self.remove(REMOVED)?;
        self.remove(ASKED)
    }

    /// Finishes an enrolment that ended between its certificate and its key.
    fn finish(&self, chain: &[CertificateDer<'static>]) -> Result<(), Error> {
        let Some((key, _)) = self.asked()? else {
            return Ok(());
        };
        if tls::Held::new(key.serialized_der(), chain.to_vec()).is_err() {
            return Ok(());
        }
        let key = Zeroizing::new(key.serialize_pem());
        if self.text("identity.key")?.as_ref() != Some(&*key) {
            self.put("identity.key", key.as_bytes())?;
        }
        self.remove(REMOVED)?;
        self.remove(ASKED)
    }

    fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.0.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(Error::File { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Whether the identity here was removed from its network.
    pub(super) fn is_removed(&self) -> bool {
        self.0.join(REMOVED).exists()
    }

    pub(super) fn mark_removed(&self) -> Result<(), Error> {
        self.put(REMOVED, b"")
    }

    pub(super) fn write_roots(&self, roots: &[CertificateDer<'_>]) -> Result<(), Error> {
        self.put("roots.pem", pems(roots).as_bytes())
    }

    pub(super) fn write_chain(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        self.put("identity.pem", pems(chain).as_bytes())
    }

    /// A number above all that this returned before, also when the clock went back. A disk that is full is no reason not to
    /// start: by the clock the number is larger all the same, and where the clock went back it is another one.
    pub(super) fn next_epoch(&self, unix_ms: u64) -> u64 {
        let last = self.text("epoch").ok().flatten();
        let last: u64 = last.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let epoch = unix_ms.max(last.saturating_add(1));
        let text = epoch.to_string();
        let Err(error) = self.put("epoch", text.as_bytes()) else {
            return epoch;
        };
        // A full disk still takes bytes in the place of as many others.
        if self.overwrite("epoch", text.as_bytes()).is_ok() {
            tracing::error!(%error, "the disk refuses new files: the epoch was written over the last one");
            return epoch;
        }
        tracing::error!(%error, "the disk refuses this start's epoch: it goes by the clock alone");
        if epoch > unix_ms {
            return epoch.saturating_add(fastrand::u64(..UNKEPT_EPOCHS));
        }
        epoch
    }

    /// The same at every start; made at the first that finds the disk willing.
    pub(super) fn reset_key(&self) -> Result<[u8; 64], Error> {
        let path = self.0.join("reset.key");
        if let Ok(bytes) = fs::read(&path)
            && let Ok(key) = bytes.try_into()
        {
            return Ok(key);
        }
        let mut key = [0; 64];
        let filled = SystemRandom::new().fill(&mut key);
        filled.map_err(|_| Error::Random)?;
        if let Err(error) = self.put("reset.key", &key) {
            tracing::error!(%error, "the disk refuses the key of resets: peers notice the next restart later");
        }
        Ok(key)
    }

    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        let path = self.0.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Writes over a file of the same length, in its place.
    fn overwrite(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.0.join(name))?;
        if file.metadata()?.len() != bytes.len() as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let (path, beside) = (self.0.join(name), self.0.join(format!("{name}.new")));
        let write = || {
            // Left by a crash, and perhaps with another mode.
            let _absent = fs::remove_file(&beside);
            let mut options = fs::OpenOptions::new();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            fs::File::open(&self.0)?.sync_all()
        };
        write().map_err(|source| {
            // What a full disk took of it is room for others.
            let _absent = fs::remove_file(&beside);
            Error::File { path, source }
        })
    }
}

fn certificates(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect::<Result<_, _>>);
    read.map_err(|error| Error::Stored {
        path,
        why: error.to_string(),
    })
}

fn pems(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let mut text = format!("-----BEGIN {label}-----\n");
    let letters = base64::engine::general_purpose::STANDARD.encode(der);
    let mut rest = letters.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}
