//! A store for tests of who is first: its commits wait at a gate, so that somebody else can be in between.

use std::sync::Arc;

use tokio::sync::Notify;

use super::{Answer, Entry, Listing, Revision, Session, Store, Transaction, Watch};

/// The same store, but each commit waits before it is done.
pub(crate) struct Gate {
    store: Arc<dyn Store>,
    reached: Notify,
    open: Notify,
}

impl Gate {
    pub(crate) fn before(store: &Arc<dyn Store>) -> Self {
        Self {
            store: Arc::clone(store),
            reached: Notify::new(),
            open: Notify::new(),
        }
    }

    /// Waits until a commit is at the gate.
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Lets one commit pass.
    pub(crate) fn open(&self) {
        self.open.notify_one();
    }
}

impl Store for Gate {
    fn get(&self, key: &str) -> Answer<'_, Option<Entry>> {
        self.store.get(key)
    }

    fn list(&self, prefix: &str) -> Answer<'_, Listing> {
        self.store.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, Revision> {
        Box::pin(async move {
            self.reached.notify_one();
            self.open.notified().await;
            self.store.commit(transaction).await
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Answer<'_, Watch> {
        self.store.watch(prefix, after)
    }

    fn session(&self) -> Answer<'_, Session> {
        self.store.session()
    }

    fn end(&self, session: Session) -> Answer<'_, ()> {
        self.store.end(session)
    }
}
