//! Asks providers what is left of each key's balance, where they tell.
//!
//! A key is asked for when it is first seen, then every few minutes, and more often while it is low or refused, so that it is
//! used again soon after somebody pays. Nothing depends on an answer: a key that nobody can be asked about is used as before.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use serde_json::Value;

use super::{
    Room,
    credential::{Key, Teller},
    provider::{Provider, UploadBody},
    translate::Draft,
};

/// How often a key is asked for, give or take a fifth.
const EVERY: Duration = Duration::from_secs(300);

/// How often while it is low, empty or refused, or the last question brought nothing.
const EVERY_SOON: Duration = Duration::from_secs(60);

/// How often it is looked whether a key is due.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Time for one question.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Largest answer: those in use have a few hundred bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Keys of one look; those that are left are due at the next.
const ASKED_MAX: usize = 32;

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
enum NoBalance {
    #[error("the provider cannot be reached")]
    Unreachable,
    #[error("the provider answered {0}")]
    Status(u16),
    #[error("the provider's answer cannot be read")]
    Unreadable,
}

/// A key, by provider and name.
type Id = (Arc<str>, Arc<str>);

/// When each key is due.
#[derive(Debug, Default)]
pub(super) struct Due(HashMap<Id, Instant>);

impl Due {
    /// One that is out is due soon, whenever it was asked for before.
    fn at(&self, id: &Id, key: &Key, now: Instant) -> Instant {
        let at = self.0.get(id).copied().unwrap_or(now);
        if key.is_out() {
            at.min(now + EVERY_SOON)
        } else {
            at
        }
    }
}

/// What is asked of one key.
struct Question {
    id: Id,
    provider: Arc<Provider>,
    teller: Teller,
    prefix: String,
    key: Arc<Key>,
}

/// Asks for all keys that are due, side by side: one provider that says nothing holds up no other.
///
/// Cancel safety: questions that run are dropped, and asked again at the next look.
pub(super) async fn look(room: &Room, due: &mut Due) {
    let now = Instant::now();
    let mut seen = HashMap::new();
    let mut questions = Vec::new();
    for provider in room.providers.all() {
        let Some((teller, prefix)) = teller(&provider) else {
            continue;
        };
        for key in room.keys.keys_of(&provider.row.name) {
            let id = (Arc::clone(&provider.row.name), Arc::clone(key.name()));
            let at = due.at(&id, &key, now);
            if at > now || questions.len() == ASKED_MAX {
                seen.insert(id, at);
                continue;
            }
            let (provider, prefix) = (Arc::clone(&provider), prefix.clone());
            questions.push(Question {
                id,
                provider,
                teller,
                prefix,
                key,
            });
        }
    }
    let answered = questions.into_iter().map(|question| question.put(room));
    seen.extend(join_all(answered).await);
    due.0 = seen;
}

impl Question {
    /// Keeps what is answered. Tells when the key is due again.
    async fn put(self, room: &Room) -> (Id, Instant) {
        let Self {
            id,
            provider,
            teller,
            prefix,
            key,
        } = self;
        let soon = match ask(&provider, teller, &prefix, &key).await {
            Ok(Some(balance)) => {
                room.keys.has(&key, balance, Instant::now());
                balance.is_low() || key.is_out()
            }
            Ok(None) => key.is_out(),
            Err(error) => {
                tracing::debug!(provider = %id.0, credential = %id.1, %error, "no balance");
                true
            }
        };
        let every = if soon { EVERY_SOON } else { EVERY };
        let every = every.mul_f64(0.8 + 0.4 * fastrand::f64());
        (id, Instant::now() + every)
    }
}

/// Who tells, and what stands before the paths.
fn teller(provider: &Provider) -> Option<(Teller, String)> {
    let wanted = provider.row.balance.trim();
    if wanted.is_empty() {
        let host = provider.row.base_url.host()?;
        return Some((Teller::of_host(host)?, String::new()));
    }
    let (name, prefix) = wanted.split_once(' ').unwrap_or((wanted, ""));
    Some((
        Teller::named(name)?,
        prefix.trim_end_matches('/').to_owned(),
    ))
}

async fn ask(
    provider: &Provider,
    teller: Teller,
    prefix: &str,
    key: &Key,
) -> Result<Option<super::credential::Balance>, NoBalance> {
    let mut answers = Vec::with_capacity(2);
    for path in teller.paths() {
        let answer =
            tokio::time::timeout(ANSWER_TIME, get(provider, key, format!("{prefix}{path}")));
        answers.push(answer.await.map_err(|_| NoBalance::Unreachable)??);
    }
    Ok(teller.read(&answers))
}

async fn get(provider: &Provider, key: &Key, path: String) -> Result<Value, NoBalance> {
    let ready = provider
        .checkout(false)
        .await
        .map_err(|_| NoBalance::Unreachable)?;
    let (origin, kind) = (&provider.origin, &provider.row.kind);
    let request = Draft::get(Bytes::from(path))
        .request(
            origin,
            kind,
            key,
            ready.speaks_h2(),
            UploadBody::Whole(None),
        )
        .map_err(|_| NoBalance::Unreadable)?;
    let (head, mut live) = ready
        .send(request)
        .await
        .map_err(|_| NoBalance::Unreachable)?;
    let mut body = BytesMut::new();
    while let Some(chunk) = poll_fn(|cx| live.poll_data(cx)).await {
        let chunk = chunk.map_err(|_| NoBalance::Unreachable)?;
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(NoBalance::Unreadable);
        }
        body.extend_from_slice(&chunk);
    }
    live.finish();
    if !head.status.is_success() {
        return Err(NoBalance::Status(head.status.as_u16()));
    }
    serde_json::from_slice(&body).map_err(|_| NoBalance::Unreadable)
}
