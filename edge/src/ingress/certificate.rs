//! The certificate that clients see: read from files, and again whenever they change, without a restart.
//!
//! A pair that cannot be used is told in the log and the last good one stays. Files are looked at every [`LOOK_EVERY`], and at
//! once on SIGHUP, so that any tool that renews certificates works, hook or no hook.

use std::{
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring::{default_provider, sign::any_supported_type},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::acme::{self, Acme};
use crate::config::{Tls, TlsFiles};

/// How often the files' times are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {why}")]
    Pem {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The two do not go together, or rustls cannot use them.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// Where the certificate in force comes from.
#[derive(Debug)]
pub(super) enum Source {
    Files(Arc<Certificate>),
    Acme(Arc<Acme>),
}

impl Source {
    /// Reads what is there.
    ///
    /// # Errors
    /// [`super::Error`] when it cannot be used.
    pub(super) fn load(wanted: Tls) -> Result<Self, super::Error> {
        Ok(match wanted {
            Tls::Files(files) => Self::Files(Certificate::load(files)?),
            Tls::Acme(config) => Self::Acme(Acme::load(config)?),
        })
    }

    /// TLS settings that show its certificate, whichever it then is.
    ///
    /// # Errors
    /// Never with the provider that is compiled in.
    pub(super) fn tls(&self) -> Result<Arc<ServerConfig>, Error> {
        let shown: Arc<dyn ResolvesServerCert> = match self {
            Self::Files(files) => Arc::<Certificate>::clone(files),
            Self::Acme(acme) => Arc::<Acme>::clone(acme),
        };
        let mut tls = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(shown);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if matches!(self, Self::Acme(_)) {
            tls.alpn_protocols.push(acme::ALPN.to_vec());
        }
        Ok(Arc::new(tls))
    }

    /// Keeps it fresh until `stop`.
    pub(super) async fn keep(self, stop: CancellationToken) {
        match self {
            Self::Files(files) => files.watch(stop).await,
            Self::Acme(acme) => acme.keep(stop).await,
        }
    }
}

/// The certificate in force, of two files.
#[derive(Debug)]
pub(super) struct Certificate {
    files: TlsFiles,
    /// The files' times when they were read first.
    loaded: Times,
    look_every: Duration,
    key: ArcSwap<CertifiedKey>,
}

/// When each file was changed last.
type Times = [Option<SystemTime>; 2];

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error`] when they cannot be used.
    pub(super) fn load(files: TlsFiles) -> Result<Arc<Self>, Error> {
        let loaded = times(&files);
        let key = ArcSwap::from_pointee(read(&files)?);
        Ok(Arc::new(Self {
            files,
            loaded,
            look_every: LOOK_EVERY,
            key,
        }))
    }

    /// Reads the files again whenever they change, until `stop`.
    pub(super) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut seen = self.loaded;
        let mut hangups = signal(SignalKind::hangup())
            .inspect_err(|error| tracing::warn!(%error, "no SIGHUP"))
            .ok();
        loop {
            let hangup = async {
                match &mut hangups {
                    Some(hangups) => hangups.recv().await,
                    None => std::future::pending().await,
                }
            };
            let asked = tokio::select! {
                () = stop.cancelled() => return,
                _ = hangup => true,
                () = tokio::time::sleep(self.look_every) => false,
            };
            let times = times(&self.files);
            if !asked && times == seen {
                continue;
            }
            seen = times;
            self.renew();
        }
    }

    fn renew(&self) {
        match read(&self.files) {
            Ok(key) => {
                self.key.store(Arc::new(key));
                tracing::info!(file = %self.files.cert.display(), "certificate renewed");
            }
            Err(error) => {
                tracing::error!(%error, "the new certificate cannot be used, the last good one stays")
            }
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

fn times(files: &TlsFiles) -> Times {
    [&files.cert, &files.key].map(|path| fs::metadata(path).and_then(|about| about.modified()).ok())
}

fn read(files: &TlsFiles) -> Result<CertifiedKey, Error> {
    let open = |path: &PathBuf| {
        fs::read(path).map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })
    };
    let pem = |path: &PathBuf, why: String| Error::Pem {
        path: path.clone(),
        why,
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&open(&files.cert)?).collect();
    let chain = chain.map_err(|error| pem(&files.cert, error.to_string()))?;
    if chain.is_empty() {
        return Err(pem(&files.cert, "no certificate in it".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(&open(&files.key)?)
        .map_err(|error| pem(&files.key, error.to_string()))?;
    let key = CertifiedKey::new(chain, any_supported_type(&key)?);
    key.keys_match()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use tokio_util::task::TaskTracker;

    use super::*;

    #[tokio::test]
    async fn files_are_read_again_when_they_change_and_when_somebody_asks() {
        const NEVER: Duration = Duration::from_secs(3_600);
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        for look_every in [Duration::from_millis(1), NEVER] {
            write(&files, "a.example");
            let mut certificate = Certificate::load(files.clone()).unwrap();
            Arc::get_mut(&mut certificate).unwrap().look_every = look_every;
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            // The first change comes before anybody looks. Minutes apart, however coarse the file system's clock is.
            for minute in 1..=2 {
                let changed = write(&files, "b.example");
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(60 * minute);
                for path in [&files.cert, &files.key] {
                    let file = fs::File::options().write(true).open(path).unwrap();
                    file.set_modified(time).unwrap();
                }
                if tasks.is_empty() {
                    tasks.spawn(Arc::clone(&certificate).watch(stop.clone()));
                    // It listens once it was polled.
                    tokio::task::yield_now().await;
                }
                if look_every == NEVER {
                    let me = std::process::id().to_string();
                    let hangup = std::process::Command::new("kill")
                        .args(["-s", "HUP", &me])
                        .status();
                    assert!(hangup.unwrap().success());
                }
                while certificate.key.load().cert[0][..] != changed[..] {
                    tokio::task::yield_now().await;
                }
            }
            stop.cancel();
            tasks.close();
            tasks.wait().await;
        }
    }

    fn write(files: &TlsFiles, name: &str) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        fs::write(&files.cert, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().to_vec()
    }

    #[test]
    fn a_new_pair_is_taken_and_a_bad_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let files = TlsFiles {
            cert: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
        };
        assert!(
            Certificate::load(files.clone()).is_err(),
            "nothing there yet"
        );
        let first = write(&files, "a.example");
        let certificate = Certificate::load(files.clone()).unwrap();
        let shown = || certificate.key.load().cert[0].to_vec();
        assert_eq!(shown(), first);
        let second = write(&files, "b.example");
        certificate.renew();
        assert_eq!(shown(), second);
        fs::write(&files.cert, "not a certificate").unwrap();
        certificate.renew();
        assert_eq!(shown(), second, "the last good one stays");
        let other = rcgen::generate_simple_self_signed(vec!["c.example".to_owned()]).unwrap();
        fs::write(&files.cert, other.cert.pem()).unwrap();
        certificate.renew();
        assert_eq!(shown(), second, "a certificate of another key is no use");
    }
}
