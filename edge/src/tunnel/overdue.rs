//! Lets go of answers that are whole at the egress and that nobody acknowledges, though their link lives.
//!
//! An ingress acknowledges what it reads, which is as much as its client takes; and one that is gone is noticed by its links.
//! Left are clients that never go on, and peers that are broken or lie: their answers would keep their windows for ever.
//! Looked at by one task for all of them, so that an answer costs no timer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use vector_proto::tunnel::codec::{Entry, GoneReason};

use super::{LostReason, Tunnel, end::End};

/// How long nothing of an answer may be acknowledged. A client may pause so long in a download, and an egress keeps at most
/// one window for it meanwhile.
pub(super) const UNACKNOWLEDGED: Duration = Duration::from_secs(15 * 60);

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(15);

/// What the last looks saw.
#[derive(Debug, Default)]
pub(super) struct Progress {
    acknowledged: u64,
    since: Option<Instant>,
}

impl Progress {
    /// How long nothing was acknowledged, as far as looks can tell.
    fn look(&mut self, acknowledged: u64, now: Instant) -> Duration {
        if self.acknowledged != acknowledged {
            self.since = None;
        }
        self.acknowledged = acknowledged;
        now.saturating_duration_since(*self.since.get_or_insert(now))
    }
}

impl Tunnel {
    /// Looks for overdue answers until cancelled.
    pub(super) async fn look_after(self, cancel: CancellationToken) {
        while cancel
            .run_until_cancelled(tokio::time::sleep(LOOK_EVERY))
            .await
            .is_some()
        {
            self.release_overdue(Instant::now());
        }
    }

    /// Lets go of what is overdue at this time.
    pub(super) fn release_overdue(&self, now: Instant) {
        for end in self.arrivals().all() {
            if !is_overdue(&end, now) {
                continue;
            }
            tracing::warn!(exchange = %end.exchange, ingress = %end.far, "answer let go: its ingress never acknowledged it");
            self.tally().unacknowledged.inc();
            end.say(Entry::Gone {
                exchange: end.exchange,
                reason: GoneReason::Unknown as u64,
            });
            end.seal(LostReason::Gone);
        }
    }
}

fn is_overdue(end: &Arc<End>, now: Instant) -> bool {
    let mut sending = end.sending.lock();
    if !sending.ended || sending.is_over() {
        return false;
    }
    let acknowledged = sending.outgoing.known();
    sending.progress.look(acknowledged, now) >= UNACKNOWLEDGED
}
