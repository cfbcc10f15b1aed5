//! Lets a large body go ahead of what is asked, to the egress that answered the same key last.
//!
//! Most clients name the model behind their prompt, so that a request can be routed only once all of it is here; by then the
//! long line to the egress could have carried it. A guess that is wrong costs bandwidth and nothing else: nothing is executed
//! before routing, and every check before it, said so (`tunnel::ahead`), and a request whose body went elsewhere is sent as if
//! none had. Whoever's body went for nothing gets no guess until the next answer, so that who is refused over and over sends
//! nothing ahead.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use vector_proto::{
    control::v1::KeyPolicy,
    dialect::operation::{Body, Operation},
    id::ExchangeId,
    tunnel::v1,
};

use super::{Ingress, record::Record, replay::Wish, upload::Upload};
use crate::{
    lookup::HashMap,
    tunnel::{self, Call, Path, Tunnel},
};

/// Smaller bodies come in one piece mostly, or in two.
pub(super) const LARGE_BYTES: u64 = 16 << 10;

/// How long a body may be on its way ahead; less than any egress waits. Who sends so slowly gains nothing by it.
const AHEAD_TIME: Duration = Duration::from_secs(10);

/// Keys whose last path is remembered: 4,096 x about 150 bytes = 600 KiB.
const KEYS_MAX: usize = 4_096;

/// Over which path each key was answered last.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<HashMap<Box<str>, Path>>);

impl Guesses {
    fn of(&self, key: &str) -> Option<Path> {
        self.0.lock().get(key).cloned()
    }

    /// An answer came over `path`.
    pub(super) fn answered(&self, key: &str, operation: &Operation, path: &Path) {
        if operation.body == Body::None {
            // What asks about things goes wherever they are.
            return;
        }
        let mut paths = self.0.lock();
        if let Some(known) = paths.get_mut(key) {
            if known != path {
                known.clone_from(path);
            }
            return;
        }
        if paths.len() >= KEYS_MAX
            && let Some(some) = paths.keys().next().cloned()
        {
            paths.remove(&some);
        }
        paths.insert(key.into(), path.clone());
    }

    fn forget(&self, key: &str, path: &Path) {
        let mut paths = self.0.lock();
        if paths.get(key) == Some(path) {
            paths.remove(key);
        }
    }
}

impl Ingress {
    /// Lets a body go ahead, if it may be large and its key has been answered before. A request that may be answered by an
    /// exchange of before is not guessed.
    pub(super) fn guess(
        &self,
        upload: &mut Upload,
        policy: &Arc<KeyPolicy>,
        operation: &Operation,
        wish: Wish<'_>,
        record: &Record,
    ) {
        let fresh = matches!(wish, Wish::Plain | Wish::First) && !operation.websocket;
        let large = upload.total().is_none_or(|bytes| bytes >= LARGE_BYTES);
        if !(fresh && large) || upload.is_whole() {
            return;
        }
        if let Some(path) = self.guesses.of(&policy.key) {
            upload.goes_ahead(Box::new(Going {
                guesses: Arc::clone(&self.guesses),
                tunnel: self.tunnel.clone(),
                policy: Arc::clone(policy),
                exchange: record.id,
                until: record.start + self.config.request,
                path,
                stage: Stage::Waits,
            }));
        }
    }
}

/// A body that goes ahead, or may. Dropped, it is given up.
#[derive(Debug)]
pub(super) struct Going {
    guesses: Arc<Guesses>,
    tunnel: Tunnel,
    policy: Arc<KeyPolicy>,
    exchange: ExchangeId,
    /// When the request's time is over.
    until: Instant,
    path: Path,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Until the body is known to be large.
    Waits,
    /// Since then.
    Goes(Box<tunnel::Ahead>, Instant),
    /// It went, and came to nothing.
    Left,
    /// It is asked for, or does not go.
    Over,
}

impl Going {
    /// Waits for what comes next, while what came goes ahead. Nothing that happens there holds it up.
    ///
    /// Cancel safety: that of what is waited for.
    pub(super) async fn beside<T>(&mut self, next: impl Future<Output = T>) -> T {
        let mut next = pin!(next);
        poll_fn(|cx| {
            if let Stage::Goes(ahead, _) = &mut self.stage {
                ahead.poll(cx);
            }
            next.as_mut().poll(cx)
        })
        .await
    }

    /// More has come. `before`: all that came so far, if that is in memory; `large`: the body is.
    ///
    /// Cancel safety: the request is over.
    pub(super) async fn came(&mut self, before: Option<&[Bytes]>, chunk: &Bytes, large: bool) {
        if let Stage::Goes(_, since) = &self.stage
            && since.elapsed() >= AHEAD_TIME
        {
            // A place at the egress is not for who sends so slowly.
            self.stage = Stage::Left;
        }
        match (&mut self.stage, before) {
            (Stage::Goes(ahead, _), _) => ahead.push(chunk),
            (Stage::Waits, Some(chunks)) if large => self.open(chunks).await,
            (Stage::Waits, None) => self.stage = Stage::Over,
            (Stage::Waits | Stage::Left | Stage::Over, _) => {}
        }
        if let Stage::Goes(ahead, _) = &mut self.stage {
            poll_fn(|cx| {
                ahead.poll(cx);
                Poll::Ready(())
            })
            .await;
        }
    }

    async fn open(&mut self, chunks: &[Bytes]) {
        let now = Instant::now();
        let left = self.until.saturating_duration_since(now);
        let open = v1::Open {
            exchange: Bytes::copy_from_slice(&self.exchange.to_bytes()),
            egress: self.path.egress.as_ref().to_owned(),
            deadline_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
            attempt: 1,
            ..v1::Open::default()
        };
        let opened = self.tunnel.go_ahead(&self.path, self.exchange, open).await;
        self.stage = opened.map_or(Stage::Over, |mut ahead| {
            chunks.iter().for_each(|chunk| ahead.push(chunk));
            Stage::Goes(Box::new(ahead), now)
        });
    }

    /// Where it goes, as long as that is good for anything.
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.stage {
            Stage::Goes(ahead, _) if !ahead.is_lost() => Some(&self.path),
            _ => None,
        }
    }

    /// Whether the first attempt's number is taken.
    pub(super) const fn is_opened(&self) -> bool {
        matches!(self.stage, Stage::Goes(..) | Stage::Left)
    }

    /// Asks for what `open` says. `None` where it was refused or lost meanwhile.
    pub(super) fn begin(mut self, open: &v1::Open) -> Option<Call> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Goes(ahead, _) => ahead.begin(open),
            Stage::Waits | Stage::Left | Stage::Over => None,
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        if self.is_opened() {
            self.guesses.forget(&self.policy.key, &self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_paths_is_bounded_and_forgets_what_came_to_nothing() {
        let guesses = Guesses::default();
        let chat = operation_of("POST", "/v1/chat/completions");
        let path = |egress: &str| Path::direct(egress.into());
        for key in 0..KEYS_MAX + 100 {
            guesses.answered(&key.to_string(), chat, &path("e"));
        }
        assert_eq!(guesses.0.lock().len(), KEYS_MAX);
        guesses.answered("k", chat, &path("e"));
        guesses.answered("k", chat, &path("f"));
        assert_eq!(guesses.of("k"), Some(path("f")));
        let list = operation_of("GET", "/v1/files");
        guesses.answered("k", list, &path("g"));
        // Another answer has come since.
        guesses.forget("k", &path("e"));
        assert_eq!(guesses.of("k"), Some(path("f")));
        guesses.forget("k", &path("f"));
        assert_eq!(guesses.of("k"), None);
        assert_eq!(guesses.0.lock().len(), KEYS_MAX - 1);
    }

    fn operation_of(method: &str, path: &str) -> &'static Operation {
        let found = vector_proto::dialect::operation::find(method, path);
        found.unwrap().operation
    }
}
