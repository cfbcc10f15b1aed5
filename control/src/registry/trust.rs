//! Which roots a node trusts, and by which others know it: what the steps of a rotation are judged by, at every replica.
//!
//! Written while the root is being replaced, when a node says something else than before: twice for each node in a rotation.

use bytes::Bytes;
use prost::Message;

use super::{Error, Registry, catalog::decode, node::NODES};
use crate::coordinate::Transaction;

const TRUST: &str = "/trust/";

/// Roots that a node may name. There are two at the most.
const ROOTS_MAX: usize = 8;

/// As a node says it.
#[derive(Clone, Eq, Message, PartialEq)]
pub struct Trust {
    /// Pins of the roots that it trusts.
    #[prost(string, repeated, tag = "1")]
    pub roots: Vec<String>,
    /// Those of them that its own certificate comes from.
    #[prost(string, repeated, tag = "2")]
    pub proven_by: Vec<String>,
}

impl Registry {
    /// Keeps what a node says. Writes nothing when it says the same as before.
    ///
    /// # Errors
    /// [`Error::Refused`] for an absurd number of roots; [`Error::Unknown`] when there is no such node.
    pub async fn keep_trust(&self, id: &str, trust: &Trust) -> Result<(), Error> {
        if trust.roots.len().max(trust.proven_by.len()) > ROOTS_MAX {
            return Err(Error::Refused(format!(
                "a node trusts {ROOTS_MAX} roots at the most"
            )));
        }
        let at = at(id);
        let value: Bytes = trust.encode_to_vec().into();
        let before = self.store.get(&at).await?;
        if before.is_some_and(|entry| entry.value == value) {
            return Ok(());
        }
        let node = self.node_entry(id).await?;
        let put = Transaction::new()
            .when(node.key, node.changed)
            .put(at, value);
        self.store.commit(put).await?;
        Ok(())
    }

    /// What every node said last, as far as it did while a root was being replaced; by id.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn trust(&self) -> Result<Vec<(String, Option<Trust>)>, Error> {
        let said = self.store.list(TRUST).await?.entries;
        let said_by = |id: &str| -> Result<Option<Trust>, Error> {
            let found = said.binary_search_by(|entry| entry.key[TRUST.len()..].cmp(id));
            found.ok().map(|at| decode(&said[at].value)).transpose()
        };
        let nodes = self.store.list(NODES).await?.entries;
        let ids = nodes.iter().map(|entry| &entry.key[NODES.len()..]);
        ids.map(|id| Ok((id.to_owned(), said_by(id)?))).collect()
    }
}

pub(super) fn at(id: &str) -> String {
    format!("{TRUST}{id}")
}
