//! What the operators want and who belongs to the network, on the store.
//!
//! Specs are kept as protobuf under plain keys:
//! ```text
//! /cfg/providers/NAME  /cfg/credentials/NAME  /cfg/models/NAME  /cfg/default_routes/OPERATION  /cfg/accounts/NAME
//! /cfg-generation      counts changes of /cfg; every change compares it, so that two operators never mix
//! /keys/ID             an API key: its MAC, never its text
//! /nodes/ID            who may have a certificate          /seen/nodes/ID   what the node said of itself last
//! /revoked/ID          which certificates of a node that was removed or enrolled anew count no more
//! /invites/HASH        invites not used yet                /secrets/NAME    sealed: pepper, CA, intermediate; hashed: root's token
//! /cfg-rollout         the change that canaries have and the other nodes have not yet, with what those have instead
//! /history/GENERATION  what that change of /cfg replaced, without secrets; the last 100
//! /operators/NAME      operators, by the hash of a token or certificate     /audit/...       every change
//! ```
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
pub use sealed::{Rewrapped, SealedUnder, SecretsStatus};

mod operator;
pub use operator::{NewOperator, Operator, OperatorRole};

mod revoke;
pub use revoke::{CERTIFICATE_LIFE_MAX, revoked_before};

mod rollout;
pub use rollout::{Rollout, Stage, Staging};

mod signing;
pub use signing::AT as INTERMEDIATE;

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
