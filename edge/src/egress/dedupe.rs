//! Lets an exchange run at most once on this egress.
//!
//! An id is entered before the exchange is accepted and stays known for [`REMEMBERED`] after its end, so that a
//! late copy of its OPEN cannot execute it again. An attempt that ended in a refusal gave no answer: a later
//! attempt of the same exchange may then run. A copy that came over another path while the exchange runs does not get so
//! far: the tunnel makes it another attachment (`tunnel::accept`); any other is refused here. Time is an argument.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::lookup::HashMap;
use parking_lot::Mutex;
use vector_proto::id::ExchangeId;

/// How long an id stays known after its exchange ended, at least.
pub const REMEMBERED: Duration = Duration::from_secs(60);

/// The remembered ids turn over in buckets of this length.
const BUCKET: Duration = Duration::from_secs(15);

/// Buckets that together hold [`REMEMBERED`], and the one that is being filled.
const BUCKETS: usize = 5;

/// Ids remembered after their end. 2,000,000 x 24 bytes = 48 MB at the worst, reached above 26,000 exchanges a second.
pub const REMEMBERED_MAX: usize = 2_000_000;

const _: () = assert!(BUCKET.as_secs() * (BUCKETS as u64 - 1) >= REMEMBERED.as_secs());

/// Why an exchange may not run now.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Known {
    /// It runs at this moment.
    #[error("the exchange is running already")]
    Running,
    /// It has ended, with an answer or by being cancelled.
    #[error("the exchange has been executed already")]
    Ended,
    /// No more ids can be remembered, so running it could not be kept to once.
    #[error("too many exchanges ended within the last minute")]
    Full,
}

/// How an exchange ended, as far as running it again is concerned.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// Attempt of this number was refused; a later one may run.
    Refused(u32),
    Executed,
}

impl End {
    /// Four bytes, so that an entry of a bucket is twenty.
    const fn pack(self) -> u32 {
        match self {
            Self::Refused(attempt) if attempt < u32::MAX => attempt,
            Self::Refused(_) | Self::Executed => u32::MAX,
        }
    }
}

#[derive(Debug)]
struct Table {
    running: HashMap<ExchangeId, u32>,
    /// Newest first: when it was begun, and what ended since.
    ended: VecDeque<(Instant, HashMap<[u8; 16], u32>)>,
    remembered: usize,
}

impl Table {
    fn turn(&mut self, now: Instant) {
        let begun = self.ended.front().map(|(begun, _)| *begun);
        if begun.is_none_or(|begun| now.saturating_duration_since(begun) >= BUCKET) {
            self.ended.push_front((now, HashMap::default()));
        }
        while self.ended.len() > 1
            && let Some((_, oldest)) = self.ended.pop_back_if(|(begun, _)| {
                now.saturating_duration_since(*begun) >= BUCKET * BUCKETS as u32
            })
        {
            self.remembered -= oldest.len();
        }
    }

    fn enter(&mut self, id: ExchangeId, attempt: u32, now: Instant) -> Result<(), Known> {
        self.turn(now);
        if self.running.contains_key(&id) {
            return Err(Known::Running);
        }
        let key = id.to_bytes();
        let end = self.ended.iter().find_map(|(_, bucket)| bucket.get(&key));
        if end.is_some_and(|end| attempt <= *end) {
            return Err(Known::Ended);
        }
        if self.remembered + self.running.len() >= REMEMBERED_MAX {
            return Err(Known::Full);
        }
        self.running.insert(id, attempt);
        Ok(())
    }

    fn leave(&mut self, id: ExchangeId, end: End, now: Instant) {
        self.turn(now);
        self.running.remove(&id);
        if let Some((_, newest)) = self.ended.front_mut()
            && newest.insert(id.to_bytes(), end.pack()).is_none()
        {
            self.remembered += 1;
        }
    }
}

/// The ids that run here or ended lately.
#[derive(Debug)]
pub struct Dedupe {
    table: Mutex<Table>,
}

impl Default for Dedupe {
    fn default() -> Self {
        Self {
            table: Mutex::new(Table {
                running: HashMap::default(),
                ended: VecDeque::with_capacity(BUCKETS + 1),
                remembered: 0,
            }),
        }
    }
}

impl Dedupe {
    /// Enters an exchange, which then runs until the returned [`Running`] is dropped.
    ///
    /// # Errors
    /// [`Known`] when this attempt, or a later one, was entered before.
    pub fn enter(
        self: &Arc<Self>,
        id: ExchangeId,
        attempt: u32,
        now: Instant,
    ) -> Result<Running, Known> {
        self.table.lock().enter(id, attempt, now)?;
        Ok(Running {
            of: Arc::clone(self),
            id,
            end: End::Executed,
            attempt,
        })
    }

    /// Whether an exchange runs at this moment.
    pub fn runs(&self, id: ExchangeId) -> bool {
        self.table.lock().running.contains_key(&id)
    }

    /// How many exchanges run.
    pub fn running(&self) -> usize {
        self.table.lock().running.len()
    }
}

/// An exchange that runs. Dropped, it has ended and stays known for a while.
#[derive(Debug)]
pub struct Running {
    of: Arc<Dedupe>,
    id: ExchangeId,
    end: End,
    attempt: u32,
}

impl Running {
    /// The attempt ends without an answer, so another attempt of the exchange may run here.
    pub fn refused(&mut self) {
        self.end = End::Refused(self.attempt);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let now = Instant::now();
        self.of.table.lock().leave(self.id, self.end, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Arc<Dedupe> {
        Arc::new(Dedupe::default())
    }

    #[test]
    fn a_copy_runs_neither_beside_nor_after_the_first() {
        let (dedupe, id, now) = (table(), ExchangeId::fresh(), Instant::now());
        let running = dedupe.enter(id, 1, now).unwrap();
        assert!(dedupe.runs(id));
        assert_eq!(dedupe.enter(id, 1, now).err(), Some(Known::Running));
        assert_eq!(dedupe.enter(id, 2, now).err(), Some(Known::Running));
        drop(running);
        assert_eq!(dedupe.enter(id, 1, now).err(), Some(Known::Ended));
        assert_eq!(dedupe.enter(id, 2, now).err(), Some(Known::Ended));
        assert_eq!(dedupe.running(), 0);
    }

    #[test]
    fn after_a_refusal_only_a_later_attempt_runs() {
        let (dedupe, id, now) = (table(), ExchangeId::fresh(), Instant::now());
        dedupe.enter(id, 1, now).unwrap().refused();
        assert_eq!(dedupe.enter(id, 1, now).err(), Some(Known::Ended));
        let second = dedupe.enter(id, 2, now).unwrap();
        drop(second);
        assert_eq!(dedupe.enter(id, 3, now).err(), Some(Known::Ended));
    }

    #[test]
    fn an_id_is_known_for_a_minute_and_then_forgotten() {
        let (dedupe, id, now) = (table(), ExchangeId::fresh(), Instant::now());
        drop(dedupe.enter(id, 1, now));
        for seconds in [1, 20, 59] {
            let later = now + Duration::from_secs(seconds);
            assert_eq!(dedupe.enter(id, 1, later).err(), Some(Known::Ended));
        }
        let much_later = now + Duration::from_secs(100);
        let mut table = dedupe.table.lock();
        assert_eq!(table.enter(id, 1, much_later), Ok(()));
        assert_eq!(table.remembered, 0);
    }
}
