//! What the operators want and who belongs to the network, on the store.
//!
//! Specs are kept as protobuf under plain keys:
//!
//! | key | size | written |
//! |---|---|---|
//! | `/cfg/providers/NAME` | 0.2 KiB; with 256 egress nodes some 16 KiB | by an operator's change |
//! | `/cfg/credentials/NAME`: its secret and its headers' values are sealed | 0.3 KiB; with many headers some 100 KiB; all together 32 MiB | the same, and all by a rotation of the master key |
//! | `/cfg/models/NAME`, `/cfg/default_routes/OPERATION` | 0.2 KiB; with 64 upstreams some 20 KiB | by an operator's change |
//! | `/cfg/accounts/NAME` | 0.1 KiB | the same |
//! | `/cfg-generation`: counts changes of `/cfg`; every change compares it, so that two operators never mix | 8 bytes | with each of them |
//! | `/cfg-rollout`: the change that canaries have and the other nodes have not yet, with what those have instead | to 1 MiB while it is under way, else 0.3 KiB | with each of them, and when it ends, by whichever replica is first |
//! | `/history/GENERATION`: what that change of `/cfg` replaced, without secrets; the last 100 | as the change, to 1 MiB | with each of them |
//! | `/keys/ID`: an API key: its MAC, never its text | 0.2 KiB; with lists as long as may be some 80 KiB | when one is made or switched |
//! | `/nodes/ID`: who may have a certificate | 0.1 KiB | by an enrolment, a drain |
//! | `/seen/nodes/ID`: what the node said of itself last | 0.2 KiB | by a node's start, unless it says the same; its epoch is another each time |
//! | `/revoked/ID`: which certificates of a node that was removed or enrolled anew count no more | 40 bytes; 20,000 rows | with that |
//! | `/trust/ID`: which roots a node trusts, and is known by, while the root is replaced | 0.3 KiB | then, by a node's first word and its new certificate |
//! | `/invites/HASH`: invites not used yet | 0.1 KiB; 1,000 rows | by an invite and its use |
//! | `/secrets/NAME`: sealed: pepper, CA, intermediate, next root; hashed: root's token | to 4 KiB | when a network is founded, by rotations; root's token at each start |
//! | `/operators/NAME`: operators, by the hash of a token or certificate | 0.2 KiB; 1,000 rows | when one is added or removed |
//! | `/audit/head`, `/audit/entries/N`: every change, the newest 10,000 | 0.4 KiB, to 4 KiB of details | with every change but a node's start |
//!
//! A change is checked against all that would then be there; all faults are told, each with its field.

use std::sync::Arc;

use crate::{
    coordinate::{self, Store},
    vault::{self, Vault},
};

mod audit;
pub use audit::{Actor, AuditPage};

mod backup;
pub use backup::{
    BYTES_MAX as BACKUP_BYTES_MAX, ENTRIES_MAX as BACKUP_ENTRIES_MAX, Restored, digest,
};

mod base_url;

mod bounds;

mod catalog;
pub use catalog::{Catalog, StoredCredential};

mod check;

mod change;

mod edit;
pub use edit::{Draft, Judge, Judgement, Outcome, Terms};

#[cfg(test)]
mod fixture;

mod headers;

mod history;
pub use history::Generation;

mod key;
pub use key::{Admission, ChangedKeys, StoredKey};

mod node;
pub use node::{Enrolment, Invite, NodeSpec, Seen};

mod sealed;
pub use sealed::{CA, Rewrapped, SealedUnder, SecretsStatus};

mod operator;
pub use operator::{NewOperator, Operator, OperatorRole};

mod revoke;
pub use revoke::{CERTIFICATE_LIFE_MAX, revoked_before};

mod rollout;
pub use rollout::{Rollout, Stage, Staging};

mod rotation;
pub use rotation::{Founded, SIGNING};

mod signing;

mod trust;
pub use trust::Trust;

mod undo;

mod view;
pub use view::View;

/// One thing that is wrong with what was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// The field, such as `models[gpt-4o].upstreams[0].provider`.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

/// Why the registry did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every fault of the request.
    #[error("{}", lines(.0))]
    Invalid(Vec<Fault>),
    /// There is no such thing.
    #[error("no {kind} named `{name}`")]
    Unknown {
        /// What was looked for.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// Something else stands in the way.
    #[error("{0}")]
    Refused(String),
    /// The invite is unknown, used, over, or for another node.
    #[error("{0}")]
    BadInvite(&'static str),
    /// Somebody else changed the same.
    #[error("{0}")]
    Conflict(String),
    /// What is stored cannot be read.
    #[error("stored `{0}` cannot be read")]
    Damaged(String),
    /// The store failed.
    #[error(transparent)]
    Store(coordinate::Error),
    /// Sealing failed.
    #[error(transparent)]
    Vault(#[from] vault::Error),
}

impl From<coordinate::Error> for Error {
    fn from(error: coordinate::Error) -> Self {
        match error {
            coordinate::Error::Conflict(key) => Self::Conflict(format!(
                "`{key}` was changed by somebody else: look again and repeat"
            )),
            error => Self::Store(error),
        }
    }
}

fn lines(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

/// Reads and changes what is registered.
pub struct Registry {
    store: Arc<dyn Store>,
    vault: Vault,
    pepper: parking_lot::RwLock<Arc<key::Pepper>>,
    root: parking_lot::RwLock<operator::Root>,
    /// Held while an entry is added to the audit log.
    auditing: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Registry(..)")
    }
}

impl Registry {
    /// Takes up what is stored; makes the pepper at the first start.
    ///
    /// # Errors
    /// When the store fails or the pepper cannot be opened with this master key.
    pub async fn open(store: Arc<dyn Store>, vault: Vault) -> Result<Self, Error> {
        let pepper = key::Pepper::open(store.as_ref(), &vault).await?;
        Ok(Self {
            store,
            vault,
            pepper: parking_lot::RwLock::new(Arc::new(pepper)),
            root: parking_lot::RwLock::default(),
            auditing: tokio::sync::Mutex::default(),
        })
    }

    /// Takes the pepper from the store anew: keys of a backup were made with another.
    async fn take_pepper(&self) -> Result<(), Error> {
        let pepper = key::Pepper::open(self.store.as_ref(), &self.vault).await?;
        *self.pepper.write() = Arc::new(pepper);
        Ok(())
    }

    fn pepper(&self) -> Arc<key::Pepper> {
        Arc::clone(&self.pepper.read())
    }

    /// The store below, for those who watch it.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}
