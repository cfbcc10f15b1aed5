//! Configuration, nodes and revocations, read once and then kept current by what a watch tells.
//!
//! Each part was read at a revision of its own; what the watch tells of before that is in it already.

use vector_proto::control::v1::Revocation;

use super::{
    Catalog, Error, NodeSpec, Registry, Seen,
    catalog::{self, decode},
    node::{NODES, SEEN},
    revoke::REVOKED,
};
use crate::coordinate::{Batch, Event, Revision};

/// See the module.
#[derive(Clone, Debug)]
pub struct View {
    /// What is wanted.
    pub catalog: Catalog,
    /// Who belongs to the network, by id, with what each said of itself last.
    pub nodes: Vec<(NodeSpec, Option<Seen>)>,
    /// Certificates that count no more, by node.
    pub revoked: Vec<Revocation>,
    read: Read,
}

/// When each part was read.
#[derive(Clone, Copy, Debug)]
struct Read {
    catalog: Revision,
    seen: Revision,
    nodes: Revision,
    revoked: Revision,
}

impl Registry {
    /// All of it, now. Whoever watches from before this call and has [`View::take`] told has it current from then on.
    ///
    /// # Errors
    /// When the store fails or holds what cannot be read.
    pub async fn view(&self) -> Result<View, Error> {
        let store = &self.store;
        let listed = store.list(catalog::PREFIX).await?;
        // Before the nodes: whoever is a node then has said what it said, or the watch tells of it.
        let seen = store.list(SEEN).await?;
        let (nodes, nodes_at) = self.nodes_with(&seen).await?;
        let revoked = store.list(REVOKED).await?;
        let rows = revoked.entries.iter().map(|row| decode(&row.value));
        Ok(View {
            catalog: Catalog::read(&listed)?,
            nodes,
            revoked: rows.collect::<Result<_, _>>()?,
            read: Read {
                catalog: listed.revision,
                seen: seen.revision,
                nodes: nodes_at,
                revoked: revoked.revision,
            },
        })
    }
}

impl View {
    /// Follows one commit.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it wrote what cannot be read: then this is of no more use.
    pub fn take(&mut self, batch: &Batch) -> Result<(), Error> {
        for event in &batch.events {
            let (key, of) = (event.key.as_str(), batch.revision);
            if key.starts_with(catalog::PREFIX) {
                if of > self.read.catalog {
                    self.catalog.follow(key, event.value.as_ref(), of)?;
                }
            } else if let Some(id) = key.strip_prefix(NODES) {
                if of > self.read.nodes {
                    self.node(id, event)?;
                }
            } else if let Some(id) = key.strip_prefix(SEEN) {
                if of > self.read.seen {
                    self.seen(id, event)?;
                }
            } else if let Some(id) = key.strip_prefix(REVOKED)
                && of > self.read.revoked
            {
                self.revoked(id, event)?;
            }
        }
        Ok(())
    }

    fn place(&self, id: &str) -> Result<usize, usize> {
        self.nodes
            .binary_search_by(|(spec, _)| spec.id.as_str().cmp(id))
    }

    fn node(&mut self, id: &str, event: &Event) -> Result<(), Error> {
        match (self.place(id), &event.value) {
            (Ok(at), Some(value)) => self.nodes[at].0 = decode(value)?,
            (Ok(at), None) => drop(self.nodes.remove(at)),
            (Err(at), Some(value)) => self.nodes.insert(at, (decode(value)?, None)),
            (Err(_), None) => {}
        }
        Ok(())
    }

    /// What is said of a node is written with the node and goes with it: of one that is not there it is old.
    fn seen(&mut self, id: &str, event: &Event) -> Result<(), Error> {
        if let Ok(at) = self.place(id) {
            self.nodes[at].1 = event.value.as_ref().map(decode).transpose()?;
        }
        Ok(())
    }

    fn revoked(&mut self, id: &str, event: &Event) -> Result<(), Error> {
        let place = self
            .revoked
            .binary_search_by(|row| row.node.as_str().cmp(id));
        match (place, &event.value) {
            (Ok(at), Some(value)) => self.revoked[at] = decode(value)?,
            (Ok(at), None) => drop(self.revoked.remove(at)),
            (Err(at), Some(value)) => self.revoked.insert(at, decode(value)?),
            (Err(_), None) => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use vector_proto::control::v1::{ModelSpec, Register};

    use super::*;
    use crate::{
        coordinate::Transaction,
        registry::{catalog::GENERATION, fixture},
    };

    /// What the registry writes: a model with its generation, a node with or without what it says, or its removal.
    fn commit(chance: &mut fastrand::Rng) -> Transaction {
        let id = format!("n-{}", chance.u8(..6));
        let (node, seen) = (format!("{NODES}{id}"), format!("{SEEN}{id}"));
        let said = Register {
            epoch: chance.u64(..),
            ..Register::default()
        };
        let spec = NodeSpec {
            id: id.clone(),
            enrolled_unix_ms: chance.u64(..),
            ..NodeSpec::default()
        };
        let revoked = Revocation {
            node: id.clone(),
            before_unix_s: chance.u64(..),
        };
        match chance.u8(..4) {
            0 => {
                let model = ModelSpec {
                    name: id.clone(),
                    created_unix_s: chance.u64(..),
                    ..ModelSpec::default()
                };
                let counted = chance.u64(..).to_be_bytes().to_vec();
                let at = format!("/cfg/models/{id}");
                let put = Transaction::new().put(GENERATION, counted);
                if chance.bool() {
                    put.put(at, model.encode_to_vec())
                } else {
                    put.delete(at)
                }
            }
            1 => Transaction::new().put(node, spec.encode_to_vec()),
            2 => Transaction::new()
                .put(node, spec.encode_to_vec())
                .put(seen, said.encode_to_vec()),
            _ => Transaction::new()
                .delete(node)
                .delete(seen)
                .put(format!("{REVOKED}{id}"), revoked.encode_to_vec()),
        }
    }

    #[tokio::test]
    async fn what_is_followed_is_what_is_there() {
        for seed in 0..40 {
            let dir = tempfile::tempdir().unwrap();
            let registry = fixture::registry(dir.path()).await;
            let mut chance = fastrand::Rng::with_seed(seed);
            let store = registry.store();
            let mut watch = store.watch("/", 0).await.unwrap();
            // Read while others write: each part is of another moment.
            let ((), view) = tokio::join!(
                async {
                    for _ in 0..60 {
                        store.commit(commit(&mut chance)).await.unwrap();
                    }
                },
                async {
                    for _ in 0..seed {
                        tokio::task::yield_now().await;
                    }
                    registry.view().await.unwrap()
                }
            );
            let mut view = view;
            let last = store.list("/").await.unwrap().revision;
            loop {
                let batch = watch.next().await.unwrap();
                let before = view.clone();
                view.take(&batch).unwrap();
                // Nothing goes back to what it was before it was read.
                let read = view.read;
                if batch.revision <= read.nodes.min(read.seen) {
                    assert_eq!(view.nodes, before.nodes, "seed {seed}");
                }
                if batch.revision <= read.revoked {
                    assert_eq!(view.revoked, before.revoked, "seed {seed}");
                }
                if batch.revision <= read.catalog {
                    assert_eq!(view.catalog, before.catalog, "seed {seed}");
                }
                if batch.revision >= last {
                    break;
                }
            }
            let now = registry.view().await.unwrap();
            assert_eq!(view.catalog, now.catalog, "seed {seed}");
            assert_eq!(view.nodes, now.nodes, "seed {seed}");
            assert_eq!(view.revoked, now.revoked, "seed {seed}");
        }
    }
}
