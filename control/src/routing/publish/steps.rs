//! How the newest snapshot came about, for nodes that have an earlier one.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use vector_proto::control::{
    delta,
    v1::{Snapshot, SnapshotPart, control_event::Event},
};

use crate::routing::{seal::Sealed, ways::Ways};

/// A snapshot, or a long delta, goes to a node in pieces of this size: what a stream has once needed for a message it keeps
/// for ever, and other words get in between.
const PART_BYTES: usize = 8 << 10;

/// Steps that are kept for nodes that are behind: more than a node falls behind while it is connected.
const STEPS_MAX: usize = 64;

/// From one snapshot to the next one that this replica has published.
#[derive(Clone, Debug)]
struct Step {
    from: u64,
    /// A `SnapshotDelta`.
    encoded: Bytes,
}

/// Oldest first: each step begins where the one before it ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps(VecDeque<Step>);

impl Steps {
    /// These and one more, as far back as they are of use: together they are shorter than the whole.
    pub(super) fn then(&self, (old, ways): (&Snapshot, &Arc<Ways>), new: &Sealed) -> Self {
        let mut steps = self.0.clone();
        if old.revision == 0 {
            return Self(steps);
        }
        let mut different = delta::difference(old, &new.snapshot);
        if !Arc::ptr_eq(ways, &new.ways) {
            let paths = delta::difference_of_paths(&ways.paths, &new.ways.paths);
            (different.paths_at, different.paths) = paths;
        }
        steps.push_back(Step {
            from: old.revision,
            encoded: different.encode_to_vec().into(),
        });
        let mut bytes: usize = steps.iter().map(|step| step.encoded.len()).sum();
        while steps.len() > STEPS_MAX || bytes > new.encoded.len() {
            match steps.pop_front() {
                Some(step) => bytes -= step.encoded.len(),
                None => break,
            }
        }
        Self(steps)
    }

    /// What a node is told that has been told of `revision`, one after the other: the steps from there on, or the whole.
    /// `in_parts`: it takes a delta in pieces.
    pub(super) fn news_since<'a>(
        &'a self,
        revision: u64,
        in_parts: bool,
        encoded: &'a Bytes,
    ) -> impl Iterator<Item = Event> + 'a {
        let known = self.0.iter().position(|step| step.from == revision);
        let steps = self.0.iter().skip(known.unwrap_or(self.0.len()));
        let whole = known.is_none().then_some(encoded);
        let steps = steps.flat_map(move |step| {
            let long = in_parts && step.encoded.len() > PART_BYTES;
            let (short, long) = match long {
                true => (None, Some(&step.encoded)),
                false => (Some(Event::SnapshotDelta(step.encoded.clone())), None),
            };
            short
                .into_iter()
                .chain(long.into_iter().flat_map(|long| parts(long, true)))
        });
        steps.chain(whole.into_iter().flat_map(|whole| parts(whole, false)))
    }
}

fn parts(encoded: &Bytes, delta: bool) -> impl Iterator<Item = Event> + '_ {
    (0..encoded.len()).step_by(PART_BYTES).map(move |from| {
        let to = encoded.len().min(from + PART_BYTES);
        Event::SnapshotPart(SnapshotPart {
            bytes: encoded.len() as u64,
            offset: from as u64,
            data: encoded.slice(from..to),
            delta,
        })
    })
}
