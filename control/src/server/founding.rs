//! What all replicas of control share: the master key and the CA. Made by the first, found by the others.
//!
//! The master key is brought by configuration: the same file on every replica. With it, `/secrets/ca` in etcd opens, which
//! holds the root and its key; that it opens is the proof of the master key. A replica whose master key or CA is another
//! one is refused before it has served anything. Replicas start one after the other ([`Turn`]) so that two first ones do
//! not make two of everything. That alone proves nothing, since a turn may be lost unnoticed: each write is a compare-and-put
//! of its own key, and that of the roll, which has none before, compares the turn. A control that is alone has its CA in files, and in its
//! store too once the root was replaced.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prost::Message as _;
use zeroize::Zeroizing;

use super::Error;
use crate::{
    config::Config,
    coordinate::{self, Compare, Leadership, Session, Store, Transaction, elect},
    identity::{self, Authority, Root},
    registry::{CA, Founded},
    vault::{self, MasterKey, Vault},
};

/// Everything sealed, and what is hashed beside it.
const SECRETS: &str = "/secrets/";

/// Where in etcd the replicas take turns.
const TURN: &str = "start";

/// A replica that waits for its turn says so after this.
const PATIENCE: Duration = Duration::from_secs(2);

/// The right to start; nobody else does meanwhile.
pub(super) struct Turn {
    store: Arc<dyn Store>,
    session: Session,
    mine: Leadership,
}

impl Turn {
    /// Waits until no other replica is starting.
    pub(super) async fn wait(store: &Arc<dyn Store>, who: &str) -> Result<Self, coordinate::Error> {
        let session = store.session().await?;
        let mut turn = elect(store.as_ref(), TURN, session, who);
        let mine = match tokio::time::timeout(PATIENCE, &mut turn).await {
            Ok(mine) => mine?,
            Err(_) => {
                tracing::info!("another replica is starting, or died on the way: waiting for it");
                turn.await?
            }
        };
        Ok(Self {
            store: Arc::clone(store),
            session,
            mine,
        })
    }

    /// Holds for as long as nobody else has had a turn.
    pub(super) fn fence(&self) -> Compare {
        self.mine.fence()
    }

    /// Lets the next one start. Unsaid, the session says it when its time is over.
    pub(super) async fn over(self) {
        if let Err(error) = self.store.end(self.session).await {
            tracing::warn!(%error, "the next replica has to wait for this session to end");
        }
    }
}

/// The master key and the CA, made at the very first start and never again.
pub(super) async fn open(
    config: &Config,
    store: &dyn Store,
    now: Duration,
) -> Result<(Vault, Authority), Error> {
    let file = &config.master_key_file;
    let sealed = !store.list(SECRETS).await?.entries.is_empty();
    if sealed && config.master_key.is_none() && !file.exists() {
        return Err(Error::NoMasterKey(file.clone()));
    }
    let vault = vault(config)?;
    let folder = folder(config);
    let authority = match store.get(CA).await? {
        Some(entry) => shared(config, &vault, &entry.value)?,
        None if config.etcd.is_none() => Authority::open(&folder, &config.trust_domain, now)?,
        None => found(config, store, &vault, now).await?,
    };
    Ok((vault, authority))
}

/// Makes the CA of all replicas, from the files of this one if it has one there.
///
/// A new one is written down only once it is in the store. Otherwise a replica whose turn was lost has files of a CA that
/// nobody else knows, and is taken for one of another network ever after.
async fn found(
    config: &Config,
    store: &dyn Store,
    vault: &Vault,
    now: Duration,
) -> Result<Authority, Error> {
    let (folder, domain) = (folder(config), &config.trust_domain);
    let is_new = Root::pin_in(&folder)?.is_none();
    let authority = if is_new {
        Authority::of(Root::make(domain, now)?, domain)
    } else {
        Authority::open(&folder, domain, now)?
    };
    let signing = authority.signing();
    let (key, root) = signing.root().export();
    let founded = Founded {
        key: key.to_vec(),
        root,
        trust_domain: domain.clone(),
        former: Vec::new(),
    };
    let clear = Zeroizing::new(founded.encode_to_vec());
    let sealed = vault.seal(CA, &clear)?;
    let put = Transaction::new().when(CA, 0).put(CA, sealed);
    store.commit(put).await?;
    if is_new {
        signing.root().put_in(&folder)?;
    }
    Ok(authority)
}

/// Where a replica has the CA in files, if it has.
pub(super) fn folder(config: &Config) -> PathBuf {
    config.data_dir.join("ca")
}

/// Brings the root in `folder` to the one that there is, so that a copy of the folder is worth something. One that holds none
/// stays so.
pub(super) fn keep_root(folder: &Path, root: &Root) -> Result<(), identity::Error> {
    match Root::pin_in(folder)? {
        Some(pin) if pin != root.facts().pin => root.replace_in(folder),
        _ => Ok(()),
    }
}

/// The master key, and those that only open.
fn vault(config: &Config) -> Result<Vault, vault::Error> {
    let current = match &config.master_key {
        Some(text) => MasterKey::parse(text.reveal())?,
        None => MasterKey::read_or_make(&config.master_key_file)?,
    };
    let files = &config.other_master_key_files;
    let texts = &config.other_master_keys;
    let others = files
        .iter()
        .map(|path| MasterKey::read(path))
        .chain(texts.iter().map(|text| MasterKey::parse(text.reveal())))
        .collect::<Result<_, _>>()?;
    Ok(Vault::new(current, others))
}

/// The CA that the first replica has made.
fn shared(config: &Config, vault: &Vault, sealed: &[u8]) -> Result<Authority, Error> {
    let other = || Error::OtherMasterKey(config.master_key_file.clone());
    let clear = vault.open_sealed(CA, sealed).map_err(|_| other())?;
    let founded = Founded::decode(&clear[..]).map_err(|_| other())?;
    if founded.trust_domain != config.trust_domain {
        return Err(Error::OtherDomain {
            theirs: founded.trust_domain.clone(),
            ours: config.trust_domain.clone(),
        });
    }
    let root = Root::import(&founded.key, &founded.root)?;
    let folder = folder(config);
    // What it has may be from before the root was replaced; then that is written anew later.
    let is_ours = |own: &String| *own == root.facts().pin || founded.former.contains(own);
    if Root::pin_in(&folder)?.is_some_and(|own| !is_ours(&own)) {
        return Err(Error::OtherAuthority(folder));
    }
    Ok(Authority::of(root, &config.trust_domain))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::coordinate::{Embedded, Gate};

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    /// A replica with a folder of its own and the master key that both have.
    fn replica(dir: &Path, name: &str) -> Config {
        let (data, key) = (dir.join(name), dir.join("master.key"));
        fs::create_dir_all(&data).unwrap();
        let text = format!(
            "[control]\ndata_dir = {data:?}\nmaster_key_file = {key:?}\n\n[etcd]\nendpoints = [\"http://127.0.0.1:1\"]\n"
        );
        Config::read(&text, &|_| None).unwrap()
    }

    #[tokio::test]
    async fn a_first_start_that_another_one_overtakes_leaves_no_ca_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store")).await.unwrap());
        let (winner, loser) = (replica(dir.path(), "winner"), replica(dir.path(), "loser"));
        MasterKey::read_or_make(&winner.master_key_file).unwrap();
        let gate = Gate::before(&store);
        let (lost, won) = tokio::join!(open(&loser, &gate, NOW), async {
            gate.reached().await;
            let won = open(&winner, store.as_ref(), NOW).await.unwrap();
            gate.open();
            won
        });
        let lost = lost.unwrap_err();
        assert!(
            matches!(lost, Error::Store(coordinate::Error::Conflict(_))),
            "{lost}"
        );
        let pin = won.1.pin();
        assert_eq!(Root::pin_in(&folder(&loser)).unwrap(), None);
        assert_eq!(Root::pin_in(&folder(&winner)).unwrap(), Some(pin.clone()));

        let again = open(&loser, store.as_ref(), NOW).await.unwrap();
        assert_eq!(again.1.pin(), pin);
    }

    #[tokio::test]
    async fn a_ca_that_was_in_files_before_stays_there_when_the_start_is_overtaken() {
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(Embedded::open(&dir.path().join("store")).await.unwrap());
        let (winner, loser) = (replica(dir.path(), "winner"), replica(dir.path(), "loser"));
        MasterKey::read_or_make(&winner.master_key_file).unwrap();
        let own = Authority::open(&folder(&loser), &loser.trust_domain, NOW).unwrap();
        let gate = Gate::before(&store);
        let (lost, _) = tokio::join!(open(&loser, &gate, NOW), async {
            gate.reached().await;
            open(&winner, store.as_ref(), NOW).await.unwrap();
            gate.open();
        });
        lost.unwrap_err();
        assert_eq!(Root::pin_in(&folder(&loser)).unwrap(), Some(own.pin()));
        let refused = open(&loser, store.as_ref(), NOW).await.unwrap_err();
        assert!(matches!(refused, Error::OtherAuthority(_)), "{refused}");
    }
}
