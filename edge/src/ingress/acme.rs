//! A certificate that the node orders for itself (RFC 8555) and proves on its own listener by TLS-ALPN-01 (RFC 8737).
//!
//! Handshakes that offer nothing but `acme-tls/1` are shown the proof and ended; every other one is shown the certificate,
//! or is refused as long as there is none. What was ordered is kept on disk, and so is when the authority may be asked again:
//! a process that is started again and again does not ask each time.

use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, ExternalAccountKey, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;

pub(super) use self::authority::Authority;
use self::{
    pace::Pause,
    store::{Issued, Store},
};
use crate::config;

mod authority;

mod pace;

mod store;

/// What an authority offers, alone, when it looks for the proof.
pub(super) const ALPN: &[u8] = b"acme-tls/1";

/// For all of one order. Authorities that need longer are asked again later.
const ORDER_TIME: Duration = Duration::from_secs(300);

/// For each of its two waits: for the proof to be seen, and for the certificate.
const POLL: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(120));

/// Longest sleep: the clock may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(3_600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the node's own, or `ingress.acme_ca`.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{path}: {why}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The authority refused, or could not be reached.
    #[error("the authority: {0}")]
    Authority(#[from] instant_acme::Error),
    /// The authority offers other proofs only.
    #[error("the authority offers no TLS-ALPN-01 for {0}")]
    NoChallenge(String),
    /// The authority looked for the proof and did not find it.
    #[error("{name} was not proved: {why}")]
    Unproved {
        /// Which.
        name: String,
        /// In the authority's words.
        why: String,
    },
    /// The proof cannot be made.
    #[error("the proof: {0}")]
    Proof(#[from] rcgen::Error),
    /// What came, or the proof, is of no use to TLS.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
    /// The order took longer than [`ORDER_TIME`].
    #[error("the order took too long")]
    Late,
}

/// The certificate in force, and the proofs that an authority may be looking for.
#[derive(Debug)]
pub(super) struct Acme {
    config: config::Acme,
    store: Store,
    authority: Authority,
    shown: ArcSwapOption<CertifiedKey>,
    proofs: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

/// Proofs that are shown as long as this lives.
struct Proving<'a>(&'a Acme);

impl Drop for Proving<'_> {
    fn drop(&mut self) {
        self.0.proofs.lock().clear();
    }
}

impl Proving<'_> {
    fn show(&self, name: &str, digest: &[u8]) -> Result<(), Error> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let pair = CertifiedKey::new(vec![certificate.der().clone()], any_supported_type(&key)?);
        let mut proofs = self.0.proofs.lock();
        proofs.insert(name.to_owned(), Arc::new(pair));
        Ok(())
    }
}

impl Acme {
    /// Takes what is on disk; the authority is not asked yet.
    ///
    /// # Errors
    /// [`Error`] when `ingress.acme_ca` or the node's own folder cannot be used.
    pub(super) fn load(config: config::Acme) -> Result<Arc<Self>, Error> {
        let authority = Authority::new(config.ca.as_deref())?;
        let store = Store::open(&config.folder)?;
        let shown = store.issued().map(|issued| issued.pair()).transpose();
        let shown = shown.unwrap_or_else(|error| {
            tracing::error!(%error, "the certificate on disk cannot be used, another is ordered");
            None
        });
        Ok(Arc::new(Self {
            config,
            store,
            authority,
            shown: ArcSwapOption::new(shown.map(Arc::new)),
            proofs: Mutex::default(),
        }))
    }

    /// Orders whenever it is time, until `stop`.
    pub(super) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let ask = async {
            loop {
                let now = pace::unix(SystemTime::now());
                let due = self.due(now);
                if due > now {
                    let wait = Duration::from_secs(due - now);
                    tokio::time::sleep(wait.min(LOOK_EVERY)).await;
                    continue;
                }
                self.renew().await;
            }
        };
        let _stopped = stop.run_until_cancelled(ask).await;
    }

    /// When the authority is asked next, in Unix seconds.
    pub(super) fn due(&self, now: u64) -> u64 {
        let usable = self.shown.load().is_some();
        let wanted = self.store.issued().filter(|_| usable);
        let wanted = wanted.filter(|issued| issued.is_for(&self.config));
        let due = wanted.map_or(now, |issued| issued.renewal());
        let pause = self
            .store
            .pause()
            .filter(|pause| pause.is_for(&self.config));
        due.max(pause.map_or(0, |pause| pause.until))
    }

    /// Orders once, and keeps what came of it.
    ///
    /// Cancel safety: an order that was begun is left to the authority, where it expires.
    async fn renew(&self) {
        let order = tokio::time::timeout(ORDER_TIME, Box::pin(self.order()));
        let ordered = order.await.unwrap_or(Err(Error::Late));
        let kept = ordered.and_then(|issued| {
            let pair = issued.pair()?;
            self.shown.store(Some(Arc::new(pair)));
            self.store.keep(issued)
        });
        let Err(error) = kept else {
            tracing::info!(domains = ?self.config.domains, "certificate issued");
            return;
        };
        let now = pace::unix(SystemTime::now());
        let before = self
            .store
            .pause()
            .filter(|pause| pause.is_for(&self.config));
        let failures = before.map_or(0, |pause| pause.failures);
        let pause = Pause::after(failures, now, self.authority.retry_after(), &self.config);
        tracing::error!(%error, next_try_s = pause.until - now, "no certificate was issued");
        if let Err(error) = self.store.rest(pause) {
            tracing::error!(%error, "the time of the next try cannot be kept on disk");
        }
    }

    async fn order(&self) -> Result<Issued, Error> {
        let account = self.account().await?;
        let names = self.config.domains.iter().cloned();
        let names: Vec<_> = names.map(Identifier::Dns).collect();
        let mut order = account.new_order(&NewOrder::new(&names)).await?;
        let proving = Proving(self);
        self.prove(&mut order, &proving).await?;
        let ready = order.poll_ready(&POLL).await;
        drop(proving);
        if !matches!(ready, Ok(OrderStatus::Ready)) {
            unproved(&mut order).await?;
            ready?;
            return Err(instant_acme::Error::Str("the order is invalid").into());
        }
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&POLL).await?;
        Issued::new(&self.config, key, chain)
    }

    /// Shows the proof of every name that the authority wants one of, and says so.
    async fn prove(&self, order: &mut Order, proving: &Proving<'_>) -> Result<(), Error> {
        let mut names = order.authorizations();
        while let Some(name) = names.next().await {
            let mut name = name?;
            if name.status == AuthorizationStatus::Valid {
                continue;
            }
            let text = name.identifier().to_string();
            let challenge = name.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.ok_or_else(|| Error::NoChallenge(text.clone()))?;
            proving.show(&text, challenge.key_authorization().digest().as_ref())?;
            challenge.set_ready().await?;
        }
        Ok(())
    }

    /// The account on disk, or a new one.
    async fn account(&self) -> Result<Account, Error> {
        let directory = self.config.directory.to_string();
        let builder = Account::builder_with_http(Box::new(self.authority.clone()));
        if let Some(kept) = self.store.account(&directory)? {
            return Ok(builder.from_credentials(kept).await?);
        }
        let contact: Vec<_> = self.config.contact.as_deref().into_iter().collect();
        let wanted = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let nobody: Option<&ExternalAccountKey> = None;
        let (account, credentials) = builder.create(&wanted, directory.clone(), nobody).await?;
        self.store.keep_account(directory, credentials)?;
        Ok(account)
    }
}

/// Says which name was not proved, as the authority tells it.
async fn unproved(order: &mut Order) -> Result<(), Error> {
    let mut names = order.authorizations();
    while let Some(name) = names.next().await {
        let mut name = name?;
        let text = name.identifier().to_string();
        let state = name.refresh().await?;
        let found = state.challenges.iter().find_map(|each| each.error.as_ref());
        if let Some(problem) = found {
            return Err(Error::Unproved {
                name: text,
                why: problem.to_string(),
            });
        }
    }
    Ok(())
}

impl ResolvesServerCert for Acme {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let looks = hello.alpn().is_some_and(|offers| offers.eq([ALPN]));
        if looks {
            let name = hello.server_name()?.to_lowercase();
            return self.proofs.lock().get(&name).cloned();
        }
        self.shown.load_full()
    }
}
