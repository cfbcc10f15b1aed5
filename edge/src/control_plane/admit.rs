//! Keys that control has admitted, and those it has not.
//!
//! An admitted key stays admitted until control says that it changed, also while control is away and after a restart
//! (`keys` has them on disk).
//! Control tells of every change on the stream, and after a reconnect of all that were missed. An
//! answer that was on its way while a key changed is used once and not kept.

use std::{
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt as _, Shared};
use parking_lot::{Mutex, RwLock};
use vector_proto::{
    control::v1,
    refusal::{Code, Refusal},
};

use super::Inner;
use crate::lookup::HashMap;

/// Keys known at once. A policy is about 300 bytes: 30 MB at the worst. Beyond, an arbitrary one makes room.
const KEYS_MAX: usize = 100_000;

/// Refused keys known at once, and for how long: a client that hammers with a bad key asks control once in a while.
const REFUSED_MAX: usize = 10_000;
const REFUSED_FOR: Duration = Duration::from_secs(2);

const SHARDS: usize = 16;

/// SHA-256 of a key.
pub(super) type Digest = [u8; 32];
type Shard = HashMap<Digest, Arc<v1::KeyPolicy>>;
type Answer = Result<Arc<v1::KeyPolicy>, Refusal>;
type Question = Shared<BoxFuture<'static, Answer>>;

#[derive(Default)]
pub(super) struct Admission {
    admitted: [RwLock<Shard>; SHARDS],
    refused: Mutex<HashMap<Digest, (Instant, Refusal)>>,
    asking: Mutex<HashMap<Digest, Question>>,
    /// Grows with every change of keys.
    generation: AtomicU64,
    /// `KeysChanged.revision` last heard.
    keys_revision: AtomicU64,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admission")
    }
}

/// Somebody who waits for an answer. When the last one leaves, the question goes with it: nobody else would drive it, and
/// strangers could leave any number behind.
struct Waiting {
    inner: Arc<Inner>,
    digest: Digest,
    question: Question,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut asking = self.inner.admission.asking.lock();
        let last = asking.get(&self.digest).is_some_and(|asked| {
            // This one's, and the map's.
            asked.ptr_eq(&self.question) && asked.strong_count() == Some(2)
        });
        let gone = last.then(|| asking.remove(&self.digest));
        drop(asking);
        drop(gone);
    }
}

impl Admission {
    pub(super) fn cached(&self, digest: &Digest) -> Option<Arc<v1::KeyPolicy>> {
        self.shard(digest).read().get(digest).cloned()
    }

    pub(super) fn known(&self, digest: &Digest, now: Instant) -> Option<Answer> {
        if let Some(policy) = self.cached(digest) {
            return Some(Ok(policy));
        }
        let refused = self.refused.lock();
        let (since, refusal) = refused.get(digest)?;
        (now.saturating_duration_since(*since) < REFUSED_FOR).then(|| Err(refusal.clone()))
    }

    /// Asks control about a key, once for all who want to know at the same time.
    pub(super) async fn ask(
        inner: Arc<Inner>,
        digest: Digest,
        ask: impl Future<Output = Result<v1::AdmitResponse, Refusal>> + Send + 'static,
    ) -> Answer {
        let question = {
            let here = Arc::clone(&inner);
            let mut asking = inner.admission.asking.lock();
            let question = asking.entry(digest).or_insert_with(|| {
                let generation = here.admission.generation.load(Ordering::Acquire);
                let whole = async move {
                    let answer = ask.await;
                    here.admission.asking.lock().remove(&digest);
                    let answer = here.admission.learn(digest, generation, answer);
                    if answer.is_ok() {
                        here.keys.admitted(digest);
                    }
                    answer
                };
                whole.boxed().shared()
            });
            question.clone()
        };
        let mut waiting = Waiting {
            inner,
            digest,
            question,
        };
        (&mut waiting.question).await
    }

    fn learn(
        &self,
        digest: Digest,
        generation: u64,
        answer: Result<v1::AdmitResponse, Refusal>,
    ) -> Answer {
        let answer = answer?;
        let Some(policy) = answer.policy else {
            let code = answer.refusal.parse().unwrap_or(Code::BadKey);
            let refusal = Refusal::new(code, text_of(code));
            self.remember_refusal(digest, &refusal);
            return Err(refusal);
        };
        let policy = Arc::new(policy);
        let mut shard = self.shard(&digest).write();
        // Checked under the shard's lock, which a change of keys takes after it counted itself.
        if self.generation.load(Ordering::Acquire) == generation {
            insert(&mut shard, digest, Arc::clone(&policy));
        }
        Ok(policy)
    }

    /// Takes a key as admitted that was so before.
    pub(super) fn remember(&self, digest: Digest, policy: Arc<v1::KeyPolicy>) {
        insert(&mut self.shard(&digest).write(), digest, policy);
    }

    /// Forgets every key, and how far changes were heard.
    pub(super) fn forget(&self) {
        self.changed(&v1::KeysChanged {
            all: true,
            ..v1::KeysChanged::default()
        });
        self.keys_revision.store(0, Ordering::Release);
    }

    /// How far changes were heard.
    pub(super) fn revision(&self) -> u64 {
        self.keys_revision.load(Ordering::Acquire)
    }

    pub(super) fn count(&self) -> usize {
        self.admitted.iter().map(|shard| shard.read().len()).sum()
    }

    /// Every key that is known, shard by shard.
    pub(super) fn each(&self, mut take: impl FnMut(&Digest, &v1::KeyPolicy)) {
        for shard in &self.admitted {
            for (digest, policy) in &*shard.read() {
                take(digest, policy);
            }
        }
    }

    fn remember_refusal(&self, digest: Digest, refusal: &Refusal) {
        let now = Instant::now();
        let mut refused = self.refused.lock();
        if refused.len() >= REFUSED_MAX {
            refused.retain(|_, (since, _)| now.saturating_duration_since(*since) < REFUSED_FOR);
        }
        if refused.len() < REFUSED_MAX {
            refused.insert(digest, (now, refusal.clone()));
        }
    }

    /// Forgets keys that control says have changed.
    pub(super) fn changed(&self, changed: &v1::KeysChanged) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        for shard in &self.admitted {
            shard
                .write()
                .retain(|_, policy| !changed.all && !changed.keys.contains(&policy.key));
        }
        self.refused.lock().clear();
        self.asking.lock().clear();
        self.keys_revision
            .fetch_max(changed.revision, Ordering::AcqRel);
    }

    fn shard(&self, digest: &Digest) -> &RwLock<Shard> {
        &self.admitted[usize::from(digest[0]) % SHARDS]
    }
}

/// A full shard makes room.
fn insert(shard: &mut Shard, digest: Digest, policy: Arc<v1::KeyPolicy>) {
    if shard.len() >= KEYS_MAX / SHARDS
        && let Some(any) = shard.keys().next().copied()
    {
        shard.remove(&any);
    }
    shard.insert(digest, policy);
}

fn text_of(code: Code) -> &'static str {
    match code {
        Code::KeyDisabled => "this API key or its account is disabled",
        Code::KeyExpired => "this API key has expired",
        _ => "Incorrect API key provided",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(key: &str) -> Result<v1::AdmitResponse, Refusal> {
        let policy = v1::KeyPolicy {
            key: key.into(),
            ..v1::KeyPolicy::default()
        };
        Ok(v1::AdmitResponse {
            policy: Some(policy),
            refusal: String::new(),
        })
    }

    #[test]
    fn an_answer_that_raced_with_a_change_is_not_kept() {
        let admission = Admission::default();
        let before = admission.generation.load(Ordering::Acquire);
        admission.changed(&v1::KeysChanged {
            keys: vec!["k".into()],
            ..v1::KeysChanged::default()
        });
        assert!(admission.learn([1; 32], before, admitted("k")).is_ok());
        assert!(admission.cached(&[1; 32]).is_none());
        let now = admission.generation.load(Ordering::Acquire);
        assert!(admission.learn([1; 32], now, admitted("k")).is_ok());
        assert!(admission.cached(&[1; 32]).is_some());
    }

    #[test]
    fn a_change_forgets_the_key_and_no_other() {
        let admission = Admission::default();
        admission.learn([1; 32], 0, admitted("a")).unwrap();
        admission.learn([2; 32], 0, admitted("b")).unwrap();
        admission.changed(&v1::KeysChanged {
            keys: vec!["a".into()],
            ..v1::KeysChanged::default()
        });
        assert!(admission.cached(&[1; 32]).is_none());
        assert!(admission.cached(&[2; 32]).is_some());
        admission.changed(&v1::KeysChanged {
            all: true,
            ..v1::KeysChanged::default()
        });
        assert!(admission.cached(&[2; 32]).is_none());
    }

    #[test]
    fn a_refused_key_is_refused_from_memory_for_a_while() {
        let admission = Admission::default();
        let no = v1::AdmitResponse {
            policy: None,
            refusal: "api_key_disabled".into(),
        };
        let refusal = admission.learn([3; 32], 0, Ok(no)).unwrap_err();
        assert_eq!(refusal.code, Code::KeyDisabled);
        let now = Instant::now();
        assert!(matches!(admission.known(&[3; 32], now), Some(Err(_))));
        assert!(admission.known(&[3; 32], now + REFUSED_FOR * 2).is_none());
    }
}
