//! Keeps the table current: read once, then again whenever nodes come, go or say something else.
//!
//! While the store is away, the last table stays: clients are better sent where an ingress was than nowhere.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::table::Table;
use crate::{
    coordinate::{self, Batch},
    health,
    registry::{self, Registry},
};

/// Nodes that come or go within this time make one table.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(500);

/// Until cancelled.
pub(super) async fn follow(
    registry: Arc<Registry>,
    private: bool,
    table: watch::Sender<Option<Arc<Table>>>,
    cancel: CancellationToken,
) {
    loop {
        let ended = tokio::select! {
            () = cancel.cancelled() => return,
            ended = until_lost(&registry, private, &table) => ended,
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "the zone's addresses stay as they are, will try again");
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn until_lost(
    registry: &Registry,
    private: bool,
    table: &watch::Sender<Option<Arc<Table>>>,
) -> Result<(), registry::Error> {
    let store = registry.store();
    let from = store.list("/nodes/").await?.revision;
    let mut watch = store.watch("/", from).await?;
    loop {
        let usable = health::agreed(store.as_ref()).await?;
        let now = Table::of(&registry.nodes().await?, &usable, private);
        table.send_if_modified(|before| {
            let other = before.as_deref() != Some(&now);
            if other {
                *before = Some(Arc::new(now));
            }
            other
        });
        loop {
            match watch.next().await {
                Ok(batch) if is_of_nodes(&batch) => break,
                Ok(_) => {}
                Err(coordinate::Error::Compacted) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

fn is_of_nodes(batch: &Batch) -> bool {
    let mut keys = batch.events.iter().map(|event| event.key.as_str());
    keys.any(|key| {
        ["/nodes/", "/seen/", "/roll/"]
            .iter()
            .any(|of| key.starts_with(of))
    })
}
