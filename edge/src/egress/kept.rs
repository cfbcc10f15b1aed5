//! Answers that outlive their clients, so that a retry gets the answer that was paid for and no second call is made.
//!
//! Two kinds: those of requests with an idempotency key are recorded from their start and, once whole, kept on disk until
//! the key's day is over (`shelf`); those whose client left before they began are *adopted*, known by a fingerprint of the
//! request, and go when nobody was attached for a short while. A running one does not survive this process: its replay is
//! then refused, and nothing is executed again.
//!
//! Bounded: running recordings by [`RUNNING_MAX`], each by `recording::ANSWER_BYTES_MAX`, readers by
//! `recording::READERS_MAX`, disk by the shelf. An exchange that is not kept costs one atomic load here.

mod recording;

mod sealed;

mod shelf;

mod tape;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use vector_proto::{id::ExchangeId, tunnel::v1};

pub use self::recording::{End, Error, Next, Reading, Recording};
use self::{
    sealed::Keys,
    shelf::{Shelf, unix_ms},
};
use crate::{identity::StateKeys, lookup::HashMap};

/// Recordings in memory at once. 4,096 x 128 KiB = 512 MiB at the worst.
pub const RUNNING_MAX: usize = 4_096;

/// Longest time that a whole answer is kept, whatever is asked: a day and the slack of two clocks.
const KEPT_MAX: Duration = Duration::from_secs(25 * 3600);

/// Longest time that an adopted exchange goes on with nobody attached, whatever is asked.
const WINDOW_MAX: Duration = Duration::from_secs(60);

/// Shortest: so often it is looked whether somebody is attached.
const WINDOW_MIN: Duration = Duration::from_millis(1);

/// How often the shelf is looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// No more can be kept at the moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this egress keeps as many answers as it can")]
pub struct Full;

#[derive(Debug, Default)]
struct Table {
    by_exchange: HashMap<ExchangeId, Arc<Recording>>,
    by_print: HashMap<[u8; 32], ExchangeId>,
}

/// The answers that this egress keeps.
#[derive(Debug)]
pub struct Kept {
    table: Mutex<Table>,
    /// Entries of the table that are adopted.
    adopted: AtomicUsize,
    shelf: Arc<Shelf>,
}

/// A recording's place in the table, held by whoever writes it. Dropped, the recording has ended and the place is free.
#[derive(Debug)]
pub struct Place {
    of: Arc<Kept>,
    recording: Arc<Recording>,
}

impl Kept {
    /// Keeps whole answers in this folder, up to so many bytes, sealed.
    pub fn new(dir: PathBuf, bytes_max: u64, keys: &StateKeys) -> Self {
        Self {
            table: Mutex::default(),
            adopted: AtomicUsize::new(0),
            shelf: Arc::new(Shelf::new(dir, bytes_max, Keys::new(keys))),
        }
    }

    /// Begins to record an exchange.
    ///
    /// # Errors
    /// [`Full`].
    pub fn begin(
        self: &Arc<Self>,
        exchange: ExchangeId,
        account: &str,
        now: Instant,
    ) -> Result<Place, Full> {
        self.enter(exchange, account, None, now)
    }

    /// Takes over an exchange whose client has left. The caller knows that it runs.
    ///
    /// # Errors
    /// [`Full`].
    pub fn adopt(
        self: &Arc<Self>,
        exchange: ExchangeId,
        account: &str,
        print: [u8; 32],
        now: Instant,
    ) -> Result<Place, Full> {
        self.enter(exchange, account, Some(print), now)
    }

    fn enter(
        self: &Arc<Self>,
        exchange: ExchangeId,
        account: &str,
        print: Option<[u8; 32]>,
        now: Instant,
    ) -> Result<Place, Full> {
        let shelf = Arc::clone(&self.shelf);
        let recording = Arc::new(Recording::new(exchange, account, print, shelf, now));
        let mut table = self.table.lock();
        if table.by_exchange.len() >= RUNNING_MAX || table.by_exchange.contains_key(&exchange) {
            return Err(Full);
        }
        table.by_exchange.insert(exchange, Arc::clone(&recording));
        if let Some(print) = print {
            table.by_print.insert(print, exchange);
            self.adopted.fetch_add(1, Ordering::AcqRel);
        }
        Ok(Place {
            of: Arc::clone(self),
            recording,
        })
    }

    /// The recording of an exchange that was adopted.
    pub fn adopted(&self, exchange: ExchangeId) -> Option<Arc<Recording>> {
        if self.adopted.load(Ordering::Acquire) == 0 {
            return None;
        }
        let table = self.table.lock();
        let found = table.by_exchange.get(&exchange);
        found.filter(|found| found.print.is_some()).cloned()
    }

    /// The answer that a replay asks for, if it is here and the asking account's.
    pub async fn find(&self, asked: &v1::Replay) -> Option<Arc<Recording>> {
        let known = {
            let table = self.table.lock();
            let id = match ExchangeId::try_from(&asked.exchange[..]) {
                Ok(id) => Some(id),
                Err(_) => <[u8; 32]>::try_from(&asked.print[..])
                    .ok()
                    .and_then(|print| table.by_print.get(&print).copied()),
            };
            let id = id?;
            table.by_exchange.get(&id).cloned().ok_or(id)
        };
        let found = match known {
            Ok(recording) => recording,
            Err(id) => self.take_down(id).await?,
        };
        (*found.account == *asked.account).then_some(found)
    }

    async fn take_down(&self, id: ExchangeId) -> Option<Arc<Recording>> {
        let shelf = Arc::clone(&self.shelf);
        let taken = tokio::task::spawn_blocking(move || shelf.take_down(id, SystemTime::now()));
        let (file, about) = match taken.await.ok()? {
            Ok(taken) => taken?,
            Err(error) => {
                tracing::warn!(exchange = %id, %error, "a kept answer cannot be read");
                return None;
            }
        };
        let shelf = Arc::clone(&self.shelf);
        let whole = Recording::whole(id, file, about, shelf, Instant::now());
        Some(Arc::new(whole))
    }

    /// Looks after the shelf until `stop`.
    pub async fn tend(&self, stop: &CancellationToken) {
        let shelf = Arc::clone(&self.shelf);
        let tidied = tokio::task::spawn_blocking(move || shelf.tidy());
        let mut tick = tokio::time::interval(SWEEP_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What it could not remove is named anew by nobody.
        let _ = tidied.await;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let shelf = Arc::clone(&self.shelf);
            // A sweep that panicked is made up for by the next.
            let _ = tokio::task::spawn_blocking(move || shelf.sweep(SystemTime::now())).await;
        }
    }
}

impl Place {
    /// What is written.
    pub fn recording(&self) -> &Arc<Recording> {
        &self.recording
    }

    /// The exchange is over: a whole answer goes on the shelf for `kept`, and is found there from now on.
    pub async fn put_away(self, kept: Duration) {
        let until = SystemTime::now() + kept.min(KEPT_MAX);
        if let Err(error) = self.recording.put_away(unix_ms(until)).await {
            tracing::error!(exchange = %self.recording.exchange, %error, "an answer could not be kept");
        }
    }

    /// Keeps an adopted exchange until nobody was attached for `window`; then it is given up.
    pub async fn wait_for_readers(self, window: Duration) {
        let window = window.clamp(WINDOW_MIN, WINDOW_MAX);
        loop {
            let alone = self.recording.alone(Instant::now()).unwrap_or_default();
            match window.checked_sub(alone) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.recording.end(End::Lost);
        self.recording.give_up();
        let mut table = self.of.table.lock();
        table.by_exchange.remove(&self.recording.exchange);
        if let Some(print) = &self.recording.print {
            self.of.adopted.fetch_sub(1, Ordering::AcqRel);
            if table.by_print.get(print) == Some(&self.recording.exchange) {
                table.by_print.remove(print);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn kept() -> (tempfile::TempDir, Arc<Kept>) {
        let dir = tempfile::tempdir().unwrap();
        let kept = Arc::new(Kept::new(
            dir.path().join("answers"),
            1 << 20,
            &StateKeys::of(b"test"),
        ));
        (dir, kept)
    }

    fn asked(account: &str, exchange: ExchangeId) -> v1::Replay {
        v1::Replay {
            account: account.into(),
            exchange: exchange.to_bytes().to_vec().into(),
            ..v1::Replay::default()
        }
    }

    #[tokio::test]
    async fn an_answer_is_found_while_it_runs_and_on_the_shelf_by_its_account_alone() {
        let (_dir, kept) = kept();
        let id = ExchangeId::fresh();
        let place = kept.begin(id, "acme", Instant::now()).unwrap();
        assert!(kept.find(&asked("acme", id)).await.is_some());
        assert!(kept.find(&asked("other", id)).await.is_none());
        place.recording().begin(v1::ResponseHead::default());
        place.recording().push(b"hello").await.unwrap();
        place.recording().end(End::Whole(v1::Trailers::default()));
        place.put_away(Duration::from_secs(3600)).await;
        assert!(kept.table.lock().by_exchange.is_empty());
        let found = kept.find(&asked("acme", id)).await.unwrap();
        assert!(
            matches!(found.next(1).await.unwrap(), Next::Data(bytes) if bytes[..] == b"ello"[..])
        );
        assert!(kept.find(&asked("other", id)).await.is_none());
    }

    #[tokio::test]
    async fn what_broke_off_or_was_refused_is_not_kept() {
        let (_dir, kept) = kept();
        for end in [End::Lost, End::Refused(v1::Refused::default())] {
            let id = ExchangeId::fresh();
            let place = kept.begin(id, "acme", Instant::now()).unwrap();
            let reader = kept.find(&asked("acme", id)).await.unwrap();
            place.recording().end(end);
            place.put_away(Duration::from_secs(3600)).await;
            assert!(reader.head().await.is_err(), "who waits hears of it");
            assert!(kept.find(&asked("acme", id)).await.is_none());
        }
    }

    #[tokio::test]
    async fn an_adopted_one_waits_for_its_client_and_no_longer() {
        let (_dir, kept) = kept();
        let (id, print) = (ExchangeId::fresh(), [7; 32]);
        let place = kept.adopt(id, "acme", print, Instant::now()).unwrap();
        let by_print = v1::Replay {
            account: "acme".into(),
            print: print.to_vec().into(),
            ..v1::Replay::default()
        };
        assert_eq!(kept.adopted(id).unwrap().exchange, id);
        let reader = kept.find(&by_print).await.unwrap().read().unwrap();
        let mut waits = Box::pin(place.wait_for_readers(Duration::ZERO));
        assert!((&mut waits).now_or_never().is_none(), "somebody reads");
        drop(reader);
        waits.await;
        assert!(kept.find(&by_print).await.is_none() && kept.adopted(id).is_none());
        assert_eq!(kept.adopted.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn no_more_are_kept_than_fit() {
        let (_dir, kept) = kept();
        let now = Instant::now();
        let begin = |_| kept.begin(ExchangeId::fresh(), "acme", now).unwrap();
        let places: Vec<Place> = (0..RUNNING_MAX).map(begin).collect();
        assert!(kept.begin(ExchangeId::fresh(), "acme", now).is_err());
        drop(places);
        assert!(kept.begin(ExchangeId::fresh(), "acme", now).is_ok());
    }
}
