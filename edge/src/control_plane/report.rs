//! What this node tells control at once: objects that later calls may name.
//!
//! Told in order, in numbered batches, and told again until control has answered for them: over another stream when one
//! breaks, after a pause when control cannot keep them now. What is unanswered is bounded; the rest waits in a bounded
//! queue, and what finds no room there is counted. What is unanswered lies on disk as well, so that a process that is
//! killed tells it at its next start.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use prost::Message as _;
use tokio::sync::mpsc;
use vector_proto::control::v1::{self, ObjectsAnswered, ObjectsMade};

mod kept;
use self::kept::Kept;

/// Objects that may wait.
const OBJECTS_WAITING_MAX: usize = 10_000;

/// Largest object that is told, about twice what control takes: a larger one would cost the others of its batch.
const OBJECT_BYTES_MAX: usize = 4 << 10;

/// Objects of one message, at the worst 1 MiB. Control takes no more than 2,000 at once.
const BATCH_MAX: usize = 256;

/// Batches without an answer, of which control lets as many wait.
const UNANSWERED_MAX: usize = 16;

/// Pause before what control could not keep is told again: doubles, with jitter.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// What is counted of objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Nobody was told of them, for want of room.
    pub(super) dropped: Counter,
    /// Control will never take them.
    pub(super) refused: Counter,
    /// Told more than once.
    pub(super) again: Counter,
}

/// Where the roles put what is to be told. Never waits.
#[derive(Debug)]
pub(super) struct Reports {
    objects: mpsc::Sender<v1::Object>,
    kept: Arc<Kept>,
    /// Objects of a former start that control has not answered for.
    left: Arc<AtomicUsize>,
    pub(super) counts: Counts,
}

/// What is to be told, and what was told and not answered.
#[derive(Debug)]
pub(super) struct Outbox {
    objects: mpsc::Receiver<v1::Object>,
    /// Told over the stream that is open, by number.
    told: VecDeque<ObjectsMade>,
    /// To be told again, by number; nothing new is told before.
    again: VecDeque<ObjectsMade>,
    /// Of the newest batch.
    number: u64,
    pause: Duration,
    /// Nothing is told again before.
    not_before: Option<Instant>,
    kept: Arc<Kept>,
    /// The newest batch of what a former start left; 0: nothing.
    left_until: u64,
    left: Arc<AtomicUsize>,
    counts: Counts,
}

/// With what a former start left in the folder.
pub(super) fn queues(dir: &Path) -> (Reports, Outbox) {
    let (objects, queue) = mpsc::channel(OBJECTS_WAITING_MAX);
    let (kept, unanswered) = Kept::open(dir);
    let kept = Arc::new(kept);
    let left = Arc::new(AtomicUsize::new(unanswered.len()));
    let again: VecDeque<ObjectsMade> = unanswered
        .chunks(BATCH_MAX)
        .zip(1..)
        .map(|(objects, batch)| ObjectsMade {
            objects: objects.to_vec(),
            batch,
        })
        .collect();
    let newest = again.back().map_or(0, |last| last.batch);
    let counts = Counts::default();
    let outbox = Outbox {
        objects: queue,
        told: VecDeque::new(),
        again,
        number: newest,
        pause: PAUSE_MIN,
        not_before: None,
        kept: Arc::clone(&kept),
        left_until: newest,
        left: Arc::clone(&left),
        counts: counts.clone(),
    };
    let reports = Reports {
        objects,
        kept,
        left,
        counts,
    };
    (reports, outbox)
}

impl Reports {
    pub(super) fn object(&self, object: v1::Object) {
        if object.encoded_len() > OBJECT_BYTES_MAX {
            self.counts.refused.inc();
            tracing::error!(
                provider = object.provider,
                bytes = object.encoded_len(),
                "an object with absurd names is not told"
            );
        } else if let Ok(room) = self.objects.try_reserve() {
            self.kept.add(&object);
            room.send(object);
        } else {
            self.counts.dropped.inc();
        }
    }

    /// Whether control has answered for all that a former start left.
    pub(super) fn is_caught_up(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}

impl Outbox {
    /// Another stream: what was told over the one before may not have been heard.
    pub(super) fn reopened(&mut self) {
        while let Some(batch) = self.told.pop_back() {
            self.put_again(batch);
        }
        self.not_before = None;
    }

    /// The next batch to tell; waits until there is one, and room for its answer.
    ///
    /// Cancel safety: nothing is taken before it is returned.
    pub(super) async fn next(&mut self) -> ObjectsMade {
        if self.again.is_empty() {
            if self.told.len() >= UNANSWERED_MAX {
                // An answer makes room, and this is asked anew.
                std::future::pending::<()>().await;
            }
            let mut objects = Vec::new();
            if self.objects.recv_many(&mut objects, BATCH_MAX).await == 0 {
                std::future::pending::<()>().await;
            }
            self.number += 1;
            let batch = self.number;
            self.again.push_back(ObjectsMade { objects, batch });
        } else {
            if let Some(at) = self.not_before {
                tokio::time::sleep_until(at.into()).await;
            }
            self.counts.again.inc();
        }
        let made = self.again.pop_front().unwrap_or_default();
        self.told.push_back(made.clone());
        made
    }

    /// Control has answered.
    pub(super) fn answered(&mut self, answer: &ObjectsAnswered, now: Instant) {
        let place = self.told.iter().position(|told| told.batch == answer.batch);
        // Nothing: a stream before this one was told of it too, and has answered.
        let Some(batch) = place.and_then(|place| self.told.remove(place)) else {
            return;
        };
        if answer.later {
            self.put_again(batch);
            if self.not_before.is_none_or(|at| at <= now) {
                self.not_before = Some(now + self.pause.mul_f64(0.5 + fastrand::f64()));
                self.pause = (self.pause * 2).min(PAUSE_MAX);
            }
            return;
        }
        (self.pause, self.not_before) = (PAUSE_MIN, None);
        self.kept.answered(batch.objects.len());
        if batch.batch <= self.left_until {
            // A batch is answered once.
            self.left.fetch_sub(batch.objects.len(), Ordering::Relaxed);
        }
        for refused in &answer.refused {
            self.counts.refused.inc();
            let object = usize::try_from(refused.at).ok();
            let object = object.and_then(|at| batch.objects.get(at));
            tracing::error!(
                reason = refused.reason,
                provider = object.map(|object| object.provider.as_str()),
                operation = object.map(|object| object.operation.as_str()),
                "control will never take this object: it is left out"
            );
        }
    }

    fn put_again(&mut self, batch: ObjectsMade) {
        let at = self
            .again
            .partition_point(|other| other.batch < batch.batch);
        self.again.insert(at, batch);
    }
}

#[cfg(test)]
mod tests;
