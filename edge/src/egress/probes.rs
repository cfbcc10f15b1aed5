//! Asks providers that nobody has an answer of whether they are there, where the operator wants that.
//!
//! A cheap request (`GET {base}/models`, with a credential within its limits) goes out once in the provider's interval, and only
//! while none of its answers, but for 5xx, came for that long: there is no traffic, nobody routes here any more, or whatever is
//! sent fails. So ingress nodes learn that it is back without a client's request, and that it is gone before one. One at a time
//! for each provider; nothing of it is recorded, nor held against the credential.

use std::{
    future::poll_fn,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use vector_proto::control::v1;

use super::{
    Room,
    credential::{Permit, Wish},
    provider::{Provider, UploadBody},
    translate::Draft,
};
use crate::lookup::HashMap;

/// How often it is looked whether a provider is due.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Time for one probe, its connection included.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What is read of an answer. A longer one is cut: some list a thousand models.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// What came of the probes of those providers that are silent, by name.
#[derive(Debug, Default)]
pub(super) struct Probes(Mutex<HashMap<Arc<str>, Probed>>);

#[derive(Clone, Copy, Debug)]
struct Probed {
    next: Instant,
    /// In a row.
    failed: u32,
    /// When the last one worked, and how long it took.
    worked: Option<(Instant, Duration)>,
}

impl Probes {
    /// Adds what is known of the pool's provider.
    pub(super) fn tell(&self, pool: &mut v1::PoolStatus, now: Instant) {
        let probed = self.0.lock().get(pool.provider.as_str()).copied();
        let Some(probed) = probed else { return };
        pool.probes_failed = probed.failed;
        if let Some((at, took)) = probed.worked {
            let ago = now.saturating_duration_since(at).as_millis();
            pool.probed_ms_ago = Some(u64::try_from(ago).unwrap_or(u64::MAX));
            pool.probe_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        }
    }

    /// Which of all providers are to be asked now. What is known of the others is forgotten: their traffic tells.
    fn due(&self, providers: Vec<Arc<Provider>>, now: Instant) -> Vec<(Arc<Provider>, Duration)> {
        let silent = |provider: Arc<Provider>| {
            let every = provider.row.probe?;
            (provider.origin.silent_for(now) >= every).then_some((provider, every))
        };
        let mut silent: Vec<_> = providers.into_iter().filter_map(silent).collect();
        let mut known = self.0.lock();
        known.retain(|name, _| {
            let mut silent = silent.iter();
            silent.any(|(provider, _)| provider.row.name == *name)
        });
        silent.retain(|(provider, _)| {
            let probed = known.get(&provider.row.name);
            probed.is_none_or(|probed| probed.next <= now)
        });
        silent
    }

    /// Takes in what came of one. True if that is another word than before.
    fn note(&self, provider: &Provider, took: Option<Duration>, next: Instant) -> bool {
        let mut known = self.0.lock();
        let probed = known.entry(Arc::clone(&provider.row.name));
        let probed = probed.or_insert(Probed {
            next,
            failed: 0,
            worked: None,
        });
        probed.next = next;
        let Some(took) = took else {
            probed.failed = probed.failed.saturating_add(1);
            return probed.failed == 1;
        };
        let before = (probed.failed, probed.worked.is_some());
        probed.failed = 0;
        probed.worked = Some((Instant::now(), took));
        before != (0, true)
    }
}

/// Asks all that are due, and waits for what comes of it.
///
/// Cancel safety: probes that run are dropped, and are due again.
pub(super) async fn look(room: &Room) {
    let due = room.probes.due(room.providers.all(), Instant::now());
    let asked = due.iter().map(|(provider, every)| async move {
        // One that rests is none: whoever is at its limit is not asked for more.
        let Some(permit) = key(room, provider) else {
            return;
        };
        let begun = Instant::now();
        let asked = tokio::time::timeout(ANSWER_TIME, ask(provider, &permit)).await;
        let works = asked.unwrap_or(false);
        if !works {
            tracing::debug!(provider = %provider.row.name, "a probe failed");
        }
        let next = Instant::now() + every.mul_f64(0.9 + 0.2 * fastrand::f64());
        let took = works.then(|| begun.elapsed());
        if room.probes.note(provider, took, next) {
            room.keys.is_news();
        }
    });
    join_all(asked).await;
}

fn key(room: &Room, provider: &Provider) -> Option<Permit> {
    let (name, now) = (&provider.row.name, Instant::now());
    // One that is out is tried with a call that says whether it is well.
    match room.keys.rests(name, None, now) {
        Some(_) => None,
        None => room.keys.take(name, Wish::default(), now).ok(),
    }
}

/// Whether the provider answers, and with no fault of its own.
async fn ask(provider: &Provider, permit: &Permit) -> bool {
    let mut fresh = false;
    loop {
        let Ok(ready) = provider.checkout(fresh).await else {
            return false;
        };
        let (origin, kind) = (&provider.origin, &provider.row.kind);
        let path = Bytes::from(format!("{}/models", origin.prefix()));
        let body = UploadBody::Whole(None);
        let key = permit.key();
        let draft = Draft::get(path);
        let Ok(request) = draft.request(origin, kind, key, ready.speaks_h2(), body) else {
            return false;
        };
        let (head, mut live) = match ready.send(request).await {
            Ok(answer) => answer,
            // The provider may have closed it just then.
            Err(error) if error.reused && !fresh => {
                fresh = true;
                continue;
            }
            Err(_) => return false,
        };
        let mut left = ANSWER_BYTES_MAX;
        while let Some(chunk) = poll_fn(|cx| live.poll_data(cx)).await {
            match chunk.ok().and_then(|chunk| left.checked_sub(chunk.len())) {
                Some(less) => left = less,
                None => return head.status.as_u16() < 500,
            }
        }
        live.finish();
        return head.status.as_u16() < 500;
    }
}
