//! All that a snapshot follows from, and what is in force, kept current by one watch.
//!
//! The watch tells commits in order, so what is in force is never newer here than what it followed from, but for what this
//! replica has put itself. What is put compares it, so a replica that is behind puts nothing.

use crate::{
    coordinate::{Batch, Revision, Watch},
    health::Agreement,
    registry::{self, Registry, View},
};

use super::{PUBLISHED, force::InForce};

/// See the module.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) view: View,
    pub(super) agreement: Agreement,
    pub(super) in_force: InForce,
    read: Revision,
}

/// What a commit asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wake {
    Now,
    Soon,
    Nothing,
}

impl Known {
    /// All of it, and the watch that is to be followed.
    pub(super) async fn read(registry: &Registry) -> Result<(Self, Watch), registry::Error> {
        let store = registry.store();
        // Whatever happens after this revision is heard of; whatever happened before is read below.
        let listed = store.list(PUBLISHED).await?;
        let watch = store.watch("/", listed.revision).await?;
        let entry = listed.entries.iter().find(|entry| entry.key == PUBLISHED);
        let in_force = entry.map_or_else(InForce::default, |entry| {
            InForce::read(&entry.value, entry.changed)
        });
        let known = Self {
            view: registry.view().await?,
            agreement: Agreement::read(store.as_ref()).await?,
            in_force,
            read: listed.revision,
        };
        Ok((known, watch))
    }

    /// Follows one commit.
    pub(super) fn take(&mut self, batch: &Batch) -> Result<Wake, registry::Error> {
        self.view.take(batch)?;
        self.agreement.take(batch);
        let by_another = self.put_by_another(batch);
        let any = |prefix: &str| {
            let mut events = batch.events.iter();
            events.any(|event| event.key.starts_with(prefix))
        };
        Ok(if any("/cfg") || any("/nodes/") || by_another {
            Wake::Now
        } else if any("/seen/") || any("/roll/") {
            Wake::Soon
        } else {
            Wake::Nothing
        })
    }

    fn put_by_another(&mut self, batch: &Batch) -> bool {
        let Some(event) = batch.events.iter().find(|event| event.key == PUBLISHED) else {
            return false;
        };
        // Ours is known before the watch tells of it.
        if batch.revision <= self.in_force.changed.max(self.read) {
            return false;
        }
        self.in_force = event.value.as_ref().map_or_else(InForce::default, |value| {
            InForce::read(value, batch.revision)
        });
        true
    }
}
