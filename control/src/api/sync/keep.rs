//! Objects that a node tells of: kept in the order of the telling, one batch at a time, beside everything else.
//!
//! Nothing here ends a stream. What the ledger cannot do now, the node is asked to tell again later; what it will never take,
//! the node is told by item.

use std::{collections::VecDeque, future::pending, sync::Arc};

use futures_util::future::BoxFuture;
use vector_proto::control::v1::{ObjectsAnswered, ObjectsMade, RefusedItem};

use crate::ledger::{self, Ledger};

/// Batches of one node that may wait: as many as a node of ours leaves unanswered. Beyond, it is asked to come again.
const WAITING_MAX: usize = 16;

/// See the module.
pub(super) struct Keeper {
    ledger: Arc<Ledger>,
    waiting: VecDeque<ObjectsMade>,
    /// The one that is being kept.
    keeping: Option<BoxFuture<'static, ObjectsAnswered>>,
    /// Numbers of those that found no room.
    turned_away: VecDeque<u64>,
}

impl Keeper {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Self {
            ledger,
            waiting: VecDeque::new(),
            keeping: None,
            turned_away: VecDeque::new(),
        }
    }

    /// Takes a batch. Its answer comes from [`Self::answer`].
    pub(super) fn take(&mut self, made: ObjectsMade) {
        if self.waiting.len() < WAITING_MAX {
            self.waiting.push_back(made);
        } else if self.turned_away.len() < WAITING_MAX {
            self.turned_away.push_back(made.batch);
        }
        // A node that goes on all the same is none of ours, and hears nothing.
    }

    /// The next answer; waits for ever when there is nothing to answer.
    ///
    /// Cancel safety: nothing is lost, and what is being kept goes on at the next call.
    pub(super) async fn answer(&mut self) -> ObjectsAnswered {
        loop {
            if let Some(batch) = self.turned_away.pop_front() {
                return later(batch);
            }
            if self.keeping.is_none() {
                let next = self.waiting.pop_front();
                self.keeping = next.map(|made| -> BoxFuture<'static, _> {
                    Box::pin(keep(Arc::clone(&self.ledger), made))
                });
            }
            let Some(keeping) = &mut self.keeping else {
                return pending().await;
            };
            let answer = keeping.await;
            self.keeping = None;
            // An older node wants none.
            if answer.batch != 0 {
                return answer;
            }
        }
    }
}

async fn keep(ledger: Arc<Ledger>, made: ObjectsMade) -> ObjectsAnswered {
    let (batch, count) = (made.batch, made.objects.len());
    let refused = match ledger.keep_objects(made.objects).await {
        Ok(refused) => refused,
        Err(ledger::Error::Invalid(why)) => {
            (0..count).map(|at| ledger::Refused { at, why }).collect()
        }
        Err(error) => {
            // The ledger has said it, once for as long as it lasts.
            tracing::debug!(%error, objects = count, "objects are not kept now: the node tells them again");
            return later(batch);
        }
    };
    ObjectsAnswered {
        batch,
        later: false,
        refused: self::refused(&refused),
    }
}

fn later(batch: u64) -> ObjectsAnswered {
    ObjectsAnswered {
        batch,
        later: true,
        refused: Vec::new(),
    }
}

/// What is refused, as nodes are told it.
pub(in crate::api) fn refused(refused: &[ledger::Refused]) -> Vec<RefusedItem> {
    let told = refused.iter().map(|refused| RefusedItem {
        at: u32::try_from(refused.at).unwrap_or(u32::MAX),
        reason: refused.why.to_owned(),
    });
    told.collect()
}
