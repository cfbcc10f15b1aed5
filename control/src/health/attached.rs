//! One open stream of a node, and what the node says on it.

use std::{mem, sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use vector_proto::control::v1::Status;

use super::{Fleet, Member, Presence, Said, Signals, said};

/// Models that one node tells of at most; it tells those first that matter. Of 1,000 nodes some 45 MiB.
const MODELS_MAX: usize = 256;

/// An open stream of a node. Dropped, the node is gone.
#[derive(Debug)]
pub struct Attached {
    pub(super) fleet: Arc<Fleet>,
    pub(super) id: String,
    pub(super) number: u64,
    pub(super) end: CancellationToken,
    /// Links that were said ahead of a status, encoded as those of one.
    pub(super) ahead: Mutex<Vec<u8>>,
}

/// What may be said ahead of a status: some 70,000 links.
const AHEAD_BYTES_MAX: usize = 4 << 20;

impl Attached {
    /// Cancelled when the stream must end: a newer one is there, or the node was removed.
    #[must_use]
    pub fn end(&self) -> &CancellationToken {
        &self.end
    }

    /// The node has put this revision in force.
    pub fn applied(&self, revision: u64, now_unix_ms: u64) {
        self.note(now_unix_ms, |presence| {
            presence.revision = revision;
            presence.rejection.clear();
            false
        });
    }

    /// The node refused a snapshot and keeps an older one.
    pub fn rejected(&self, refused: u64, kept: u64, reason: String, now_unix_ms: u64) {
        self.fleet.metrics.snapshots_rejected.inc();
        self.note(now_unix_ms, |presence| {
            presence.revision = kept;
            presence.rejection = reason;
            presence.rejected = refused;
            false
        });
    }

    /// The node has put a change of keys in force.
    pub fn heard_keys(&self, asked: u64) {
        self.fleet.asked.heard(&self.id, asked);
    }

    /// The node says how it is, perhaps in pieces.
    pub fn status(&self, mut status: Status, now_unix_ms: u64) {
        let mut ahead = self.ahead.lock();
        if status.more {
            if ahead.len() < AHEAD_BYTES_MAX {
                said::append(&mut ahead, status);
            }
            return;
        }
        status.models.truncate(MODELS_MAX);
        let said = Said::new(mem::take(&mut *ahead), &status);
        drop(ahead);
        self.note(now_unix_ms, |presence| {
            presence.clock_skew_ms = skew(status.unix_ms, now_unix_ms);
            presence.said = Some(said);
            mem::replace(&mut presence.draining, status.draining) != status.draining
        });
        self.say(Signals {
            pools: status.pools,
            upstreams: status.upstreams,
            models: status.models,
        });
    }

    /// Keeps what others route by, and wakes who makes scores of it.
    fn say(&self, said: Signals) {
        let silent = said.is_empty();
        let said = (Arc::new(said), Instant::now());
        let Some(before) = self.of_member(|member| member.said.replace(said)) else {
            return;
        };
        // Most nodes have nothing to say most of the time.
        if !silent || before.is_some_and(|(before, _)| !before.is_empty()) {
            self.fleet.signals.send_modify(|count| *count += 1);
        }
    }

    fn note(&self, now_unix_ms: u64, change: impl FnOnce(&mut Presence) -> bool) {
        let tell = self.of_member(|member| {
            member.presence.last_seen_unix_ms = now_unix_ms;
            change(&mut member.presence)
        });
        if tell == Some(true) {
            self.fleet.tell();
        }
    }

    /// What `take` makes of the node; nothing when a newer stream of it is there.
    fn of_member<T>(&self, take: impl FnOnce(&mut Member) -> T) -> Option<T> {
        let mut members = self.fleet.members.lock();
        let member = members.get_mut(&self.id)?;
        let mine = member.stream.as_ref()?.number == self.number;
        mine.then(|| take(member))
    }
}

/// How far a clock is ahead of ours; older nodes do not tell theirs.
fn skew(said_unix_ms: u64, now_unix_ms: u64) -> Option<i64> {
    let apart = i128::from(said_unix_ms) - i128::from(now_unix_ms);
    (said_unix_ms > 0).then(|| i64::try_from(apart).unwrap_or(i64::MAX))
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.end.cancel();
        let gone = self.of_member(|member| {
            member.stream = None;
            member.gone_at = Some(Instant::now());
            member.presence.connected = false;
        });
        if gone.is_some() {
            self.fleet.metrics.nodes_connected.dec();
            self.fleet.tell();
        }
    }
}
