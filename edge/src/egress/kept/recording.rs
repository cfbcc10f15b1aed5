//! One answer that is kept: written once, read by as many as come, from any byte, while it grows and after.
//!
//! Who writes never waits for who reads. Readers get what is there and then wait for more; what has left memory they read
//! from the file.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vector_proto::{id::ExchangeId, tunnel::v1};

use super::{
    sealed::Sealed,
    shelf::Shelf,
    tape::{At, Tape},
};

/// Readers of one answer at once.
const READERS_MAX: u32 = 64;

/// Largest answer that is kept. What is larger breaks off, since a recording that forgets is none.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Why a recorded answer that is too large ends.
const TOO_LARGE: &str = "the answer is too large to be kept";

/// How a recording ended.
#[derive(Clone, Debug)]
pub enum End {
    /// It is all there; the trailers say whether the provider finished it.
    Whole(v1::Trailers),
    /// There never was an answer.
    Refused(v1::Refused),
    /// It broke off here, before or in the answer.
    Lost,
}

/// What a reader gets.
#[derive(Debug)]
pub enum Next {
    /// Bytes, at least one.
    Data(Bytes),
    /// Nothing follows.
    End(End),
}

/// Why an answer cannot be written on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is larger than may be kept.
    #[error("{TOO_LARGE}")]
    TooLarge,
    /// It has ended.
    #[error("the recording has ended")]
    Ended,
    /// The disk.
    #[error("a kept answer cannot be written: {0}")]
    Disk(#[from] io::Error),
}

#[derive(Debug)]
struct State {
    head: Option<v1::ResponseHead>,
    tape: Tape,
    file: Option<Arc<Sealed>>,
    end: Option<End>,
    readers: u32,
    /// When the last reader left, or nobody had come yet.
    alone_since: Instant,
}

/// See the module's head.
#[derive(Debug)]
pub struct Recording {
    /// Whose answer.
    pub exchange: ExchangeId,
    /// Who may read it.
    pub account: Box<str>,
    /// By what else than the exchange's id it is known.
    pub print: Option<[u8; 32]>,
    shelf: Arc<Shelf>,
    state: Mutex<State>,
    news: Notify,
    /// Nobody wants it any more.
    given_up: CancellationToken,
}

/// A reader's place among [`READERS_MAX`]. Dropped, it is free again.
#[derive(Debug)]
pub struct Reading(Arc<Recording>);

impl Recording {
    /// A recording of which nothing is there.
    pub(super) fn new(
        exchange: ExchangeId,
        account: &str,
        print: Option<[u8; 32]>,
        shelf: Arc<Shelf>,
        now: Instant,
    ) -> Self {
        Self {
            exchange,
            account: account.into(),
            print,
            shelf,
            state: Mutex::new(State {
                head: None,
                tape: Tape::default(),
                file: None,
                end: None,
                readers: 0,
                alone_since: now,
            }),
            news: Notify::new(),
            given_up: CancellationToken::new(),
        }
    }

    /// A whole one that was on the shelf.
    pub(super) fn whole(
        exchange: ExchangeId,
        file: Sealed,
        about: v1::KeptAnswer,
        shelf: Arc<Shelf>,
        now: Instant,
    ) -> Self {
        let recording = Self::new(exchange, &about.account, None, shelf, now);
        {
            let mut state = recording.state.lock();
            state.head = Some(about.head.unwrap_or_default());
            state.tape = Tape::in_file(about.body_bytes);
            state.file = Some(Arc::new(file));
            state.end = Some(End::Whole(about.trailers.unwrap_or_default()));
        }
        recording
    }

    /// The answer begins.
    pub fn begin(&self, head: v1::ResponseHead) {
        self.state.lock().head.get_or_insert(head);
        self.news.notify_waiters();
    }

    /// Appends.
    ///
    /// Cancel safety: the bytes are taken in before the first wait.
    ///
    /// # Errors
    /// [`Error`], and the recording has ended.
    pub async fn push(self: &Arc<Self>, bytes: &[u8]) -> Result<(), Error> {
        let due = {
            let mut state = self.state.lock();
            if state.end.is_some() {
                return Err(Error::Ended);
            }
            if state.tape.len() + bytes.len() as u64 > ANSWER_BYTES_MAX {
                drop(state);
                self.break_off(TOO_LARGE);
                return Err(Error::TooLarge);
            }
            state.tape.push(bytes)
        };
        self.news.notify_waiters();
        if due {
            self.write_out(false).await.inspect_err(|_| {
                self.break_off("the answer could not be kept");
            })?;
        }
        Ok(())
    }

    /// Moves what is held to the file: whole pieces, and the `last` of them.
    async fn write_out(self: &Arc<Self>, last: bool) -> io::Result<()> {
        let this = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let file = match this.state.lock().file.clone() {
                Some(file) => file,
                None => Arc::new(this.shelf.create(this.exchange)?),
            };
            let due = {
                let mut state = this.state.lock();
                state.file = Some(Arc::clone(&file));
                state.tape.write(last)
            };
            if let Some((at, bytes)) = due {
                file.write(at, &bytes)?;
                this.state.lock().tape.wrote();
            }
            Ok(())
        });
        written.await.map_err(io::Error::other)?
    }

    /// Ends it. The first word counts.
    pub fn end(&self, end: End) {
        self.state.lock().end.get_or_insert(end);
        self.news.notify_waiters();
    }

    /// How it ended, once it has.
    ///
    /// Cancel safety: may be called again.
    pub async fn ended(&self) -> End {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            if let Some(end) = &self.state.lock().end {
                return end.clone();
            }
            news.await;
        }
    }

    fn break_off(&self, why: &str) {
        tracing::warn!(exchange = %self.exchange, why, "a kept answer breaks off");
        self.end(End::Whole(v1::Trailers {
            broken: why.to_owned(),
            ..v1::Trailers::default()
        }));
    }

    /// Puts a whole answer on the shelf until `until_unix_ms`. Nothing else is ever put there.
    ///
    /// # Errors
    /// The disk's.
    pub async fn put_away(self: &Arc<Self>, until_unix_ms: u64) -> io::Result<bool> {
        let about = {
            let state = self.state.lock();
            let (Some(head), Some(End::Whole(trailers))) = (&state.head, &state.end) else {
                return Ok(false);
            };
            v1::KeptAnswer {
                account: self.account.to_string(),
                head: Some(head.clone()),
                trailers: Some(trailers.clone()),
                body_bytes: state.tape.len(),
                until_unix_ms,
            }
        };
        self.write_out(true).await?;
        if !self.state.lock().tape.is_in_file() {
            // A write that failed is not made again: the file has a hole where it was to be.
            return Err(io::Error::other(
                "a part of the answer could not be written",
            ));
        }
        let this = Arc::clone(self);
        let put = tokio::task::spawn_blocking(move || {
            let file = this.state.lock().file.clone();
            let file = file.ok_or_else(|| io::Error::other("no file"))?;
            this.shelf.put(this.exchange, &file, &about)
        });
        put.await.map_err(io::Error::other)??;
        Ok(true)
    }

    /// A place among the readers, if one is free.
    pub fn read(self: &Arc<Self>) -> Option<Reading> {
        let mut state = self.state.lock();
        if state.readers >= READERS_MAX {
            return None;
        }
        state.readers += 1;
        Some(Reading(Arc::clone(self)))
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.state.lock().tape.len()
    }

    /// The head, once it is there; the end, if that comes first.
    ///
    /// Cancel safety: may be called again.
    pub async fn head(&self) -> Result<v1::ResponseHead, End> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            {
                let state = self.state.lock();
                if let Some(head) = &state.head {
                    return Ok(head.clone());
                }
                if let Some(end) = &state.end {
                    return Err(end.clone());
                }
            }
            news.await;
        }
    }

    /// What stands at `offset`, once it is there.
    ///
    /// Cancel safety: may be called again.
    ///
    /// # Errors
    /// The disk's.
    pub async fn next(&self, offset: u64) -> io::Result<Next> {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            news.as_mut().enable();
            let (file, bytes) = {
                let state = self.state.lock();
                match (state.tape.at(offset), &state.end, &state.file) {
                    (At::Memory(bytes), ..) => return Ok(Next::Data(bytes)),
                    (At::File(bytes), _, Some(file)) => (Some(Arc::clone(file)), bytes),
                    (At::File(_), _, None) => return Err(io::Error::other("no file")),
                    (At::End, Some(end), _) => return Ok(Next::End(end.clone())),
                    (At::End, None, _) => (None, 0),
                }
            };
            let Some(file) = file else {
                news.await;
                continue;
            };
            let rest = tokio::task::spawn_blocking(move || file.read(offset, bytes));
            return Ok(Next::Data(rest.await.map_err(io::Error::other)??));
        }
    }

    /// How long nobody has read it; nothing while somebody does.
    pub fn alone(&self, now: Instant) -> Option<Duration> {
        let state = self.state.lock();
        (state.readers == 0).then(|| now.saturating_duration_since(state.alone_since))
    }

    /// Nobody wants it any more: who writes it may stop.
    pub fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Resolves once nobody wants it any more.
    pub async fn given_up(&self) {
        self.given_up.cancelled().await;
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.state.get_mut().file.is_some() {
            // One that was put away has another name by now.
            self.shelf.discard(self.exchange);
        }
    }
}

impl std::ops::Deref for Reading {
    type Target = Recording;

    fn deref(&self) -> &Recording {
        &self.0
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.readers -= 1;
        state.alone_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::{super::sealed::Keys, *};
    use crate::identity::StateKeys;

    fn keys() -> Keys {
        Keys::new(&StateKeys::of(b"test"))
    }

    fn recording(dir: &std::path::Path) -> Arc<Recording> {
        let shelf = Arc::new(Shelf::new(dir.to_owned(), 1 << 30, keys()));
        let id = ExchangeId::fresh();
        Arc::new(Recording::new(id, "acme", None, shelf, Instant::now()))
    }

    async fn read(recording: &Recording, from: u64) -> (Vec<u8>, End) {
        let mut out = Vec::new();
        loop {
            match recording.next(from + out.len() as u64).await.unwrap() {
                Next::Data(bytes) => out.extend_from_slice(&bytes),
                Next::End(end) => return (out, end),
            }
        }
    }

    #[tokio::test]
    async fn readers_from_any_byte_get_the_same_while_it_grows_and_after() {
        let dir = tempfile::tempdir().unwrap();
        let recording = recording(dir.path());
        let mut random = fastrand::Rng::with_seed(7);
        let body: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
            .take(400_000)
            .collect();
        recording.begin(v1::ResponseHead::default());
        let write = async {
            for chunk in body.chunks(7_001) {
                recording.push(chunk).await.unwrap();
                tokio::task::yield_now().await;
            }
            recording.end(End::Whole(v1::Trailers::default()));
        };
        let (all, some, ()) = tokio::join!(read(&recording, 0), read(&recording, 123_456), write);
        assert!(all.0 == body && some.0 == body[123_456..]);
        assert!(matches!(all.1, End::Whole(_)));
        assert!(recording.put_away(u64::MAX).await.unwrap());
        assert!(read(&recording, 399_999).await.0 == body[399_999..]);
        let now = std::time::SystemTime::now();
        let (file, about) = recording
            .shelf
            .take_down(recording.exchange, now)
            .unwrap()
            .unwrap();
        let shelf = Arc::clone(&recording.shelf);
        let again = Recording::whole(recording.exchange, file, about, shelf, Instant::now());
        assert!(read(&again, 1).await.0 == body[1..]);
    }

    #[tokio::test]
    async fn what_is_too_large_breaks_off_and_is_no_clean_end() {
        let dir = tempfile::tempdir().unwrap();
        let recording = recording(dir.path());
        recording.state.lock().tape = Tape::in_file(ANSWER_BYTES_MAX);
        let pushed = recording.push(b"x").await;
        assert!(matches!(pushed, Err(Error::TooLarge)));
        let Next::End(End::Whole(trailers)) = recording.next(ANSWER_BYTES_MAX).await.unwrap()
        else {
            panic!("it has ended")
        };
        assert_eq!(trailers.broken, TOO_LARGE);
        assert!(matches!(recording.push(b"x").await, Err(Error::Ended)));
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_never_put_away() {
        let dir = tempfile::tempdir().unwrap();
        let recording = recording(dir.path());
        recording.begin(v1::ResponseHead::default());
        let path = dir.path().join("full");
        std::fs::write(&path, [0; 32]).unwrap();
        let full = File::open(&path).unwrap();
        let full = Sealed::open(full, &keys(), recording.exchange).unwrap();
        recording.state.lock().file = Some(Arc::new(full));
        let pushed = recording.push(&[7; 100_000]).await;
        assert!(matches!(pushed, Err(Error::Disk(_))), "{pushed:?}");
        // There is room again.
        let file = recording.shelf.create(recording.exchange).unwrap();
        recording.state.lock().file = Some(Arc::new(file));
        assert!(recording.put_away(u64::MAX).await.is_err());
        let now = std::time::SystemTime::now();
        let found = recording.shelf.take_down(recording.exchange, now);
        assert!(found.unwrap().is_none());
    }

    #[test]
    fn readers_are_counted_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let recording = recording(dir.path());
        let now = Instant::now();
        assert!(recording.alone(now).is_some());
        let readers: Vec<Reading> = (0..READERS_MAX)
            .map(|_| recording.read().unwrap())
            .collect();
        assert!(recording.read().is_none() && recording.alone(now).is_none());
        drop(readers);
        assert!(recording.read().is_some());
    }
}
