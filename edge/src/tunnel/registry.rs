//! The exchanges that have an end on this node, by id.
//!
//! Node-wide, so that an exchange is found whichever link speaks of it. Sharded, since every exchange enters
//! and leaves once and a single lock would meet all of them.

use std::sync::Arc;

use parking_lot::Mutex;
use vector_proto::id::ExchangeId;

use super::end::End;
use crate::lookup::HashMap;

/// Locks that share the work. A power of two.
const SHARDS: usize = 16;

/// Ends by id. At most as many as the roles admit: 20,000 exchanges on an egress, clients' requests on an ingress.
#[derive(Debug, Default)]
pub(super) struct Registry {
    shards: [Mutex<HashMap<ExchangeId, Arc<End>>>; SHARDS],
}

impl Registry {
    fn shard(&self, exchange: ExchangeId) -> &Mutex<HashMap<ExchangeId, Arc<End>>> {
        // The last byte of a UUIDv7 is random.
        &self.shards[usize::from(exchange.to_bytes()[15]) % SHARDS]
    }

    pub(super) fn get(&self, exchange: ExchangeId) -> Option<Arc<End>> {
        self.shard(exchange).lock().get(&exchange).cloned()
    }

    /// Enters an end in place of an older one of the same exchange.
    pub(super) fn enter(&self, end: &Arc<End>) {
        self.shard(end.exchange)
            .lock()
            .insert(end.exchange, Arc::clone(end));
    }

    /// Enters an end if what is known of its exchange is still `known`; otherwise gives what is known now.
    pub(super) fn enter_unless(
        &self,
        end: &Arc<End>,
        known: Option<&Arc<End>>,
    ) -> Result<(), Arc<End>> {
        let mut shard = self.shard(end.exchange).lock();
        match shard.get(&end.exchange) {
            Some(now) if known.is_none_or(|known| !Arc::ptr_eq(known, now)) => Err(Arc::clone(now)),
            _ => {
                let before = shard.insert(end.exchange, Arc::clone(end));
                drop(shard);
                // Its drop may take other locks.
                drop(before);
                Ok(())
            }
        }
    }

    /// Removes this end, if it is the one that is known.
    pub(super) fn leave(&self, end: &Arc<End>) {
        let mut shard = self.shard(end.exchange).lock();
        let same = |known: &Arc<End>| Arc::ptr_eq(known, end);
        let gone = shard
            .get(&end.exchange)
            .is_some_and(same)
            .then(|| shard.remove(&end.exchange));
        drop(shard);
        // Its drop may take other locks.
        drop(gone);
    }

    /// All of them, for the rare case that a link comes or goes.
    pub(super) fn all(&self) -> Vec<Arc<End>> {
        let each = |shard: &Mutex<HashMap<_, Arc<End>>>| {
            shard.lock().values().cloned().collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(each).collect()
    }
}
