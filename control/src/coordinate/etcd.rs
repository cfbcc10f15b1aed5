//! The store of a replicated control plane: an etcd cluster.
//!
//! Every key stands below a root, so that networks can share a cluster. What control asks is asked of one member at a time
//! and again at the next ([`member`]), so a call ends in an answer as long as a majority lives, or after its deadline.
//!
//! A commit whose answer was lost may have been done. Each commit therefore also writes a *mark*, a key of this store's own,
//! and compares the mark's last revision: asked again, the transaction fails and shows that the mark already carries the
//! commit's id. Commits of one store go one after the other for this, which people's changes never notice.
//!
//! | keys | size | written |
//! |---|---|---|
//! | `ROOT/commit/ID`: the mark of one process | 24 bytes | with each of its commits; old ones go at a start |
//! | `ROOT/elect/start`: which replica is starting, under a session | up to 100 bytes | when a replica starts |
//! | `ROOT/elect/rollout`: which replica carries a change on, under a session | up to 100 bytes | twice a rollout |
//! | `ROOT/roll/ID`: the nodes that one replica hears, under a session | 40 bytes for each node | when a node comes, goes or drains, at most 20 times a second by each replica |
//! | `ROOT/rollout/heard/NAME`: which canaries a replica has heard to have a change in force | 40 bytes for each | by each replica, as they put it in force |
//! | `ROOT/routing/published`: revision and digest in force | 40 bytes | by the first replica that has made a snapshot that is different |
//! | `ROOT/…`: what the registry keeps, each with its size and writer there | to 1 MiB | when an operator, an enrolment or a node's start changes something |
//!
//! Sessions are leases, kept alive every third of their time; they cost no writes. Nothing is written per request or heartbeat.
//! A transaction is at most 1.25 MiB and a value 1 MiB, below the 1.5 MiB that a member takes; listings and watches have
//! bounds of their own, so that whatever was written can be read.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{
    Client, Compare as EtcdCompare, CompareOp, ConnectOptions, Error as EtcdError, GetOptions,
    GetResponse, KeyValue, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;
use zeroize::Zeroizing;

use self::{follow::Follower, member::Members};
use super::{
    Answer, Entry, Error, Listing, Revision, Session, SessionId, Store, Transaction,
    VALUE_BYTES_MAX, WATCH_COMMITS_MAX, Watch, Write,
};

mod follow;

mod member;

#[cfg(test)]
mod tests;

/// A session's keys go this long after its holder was last heard of.
const SESSION_SECONDS: i64 = 10;

/// Time for a connection to a member.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// HTTP/2 pings on a connection in use. etcd hangs up on clients that ping more often than every five seconds.
const PING: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(2));

/// Keys in one page of a listing, unless they are too large for one.
const PAGE_KEYS: i64 = 1_000;

/// Largest page, which has to come within the time of one try: over 34 Mbit/s. A page of one key always fits.
const PAGE_BYTES_MAX: usize = 4 << 20;

const _: () = assert!(2 * VALUE_BYTES_MAX <= PAGE_BYTES_MAX);

/// Largest message of a watch, which tells up to a thousand commits in one. Who is further behind lists anew.
const WATCH_BYTES_MAX: usize = 16 << 20;

/// Marks of processes that are gone for this long are taken away.
const MARK_DAYS: u64 = 30;

/// Where the cluster is and how to log in.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `http://` or `https://` addresses of the members.
    pub endpoints: Vec<String>,
    /// Stands before every key, such as `/vector`.
    pub root: String,
    /// Name and password, where the cluster wants them.
    pub user: Option<(String, Zeroizing<String>)>,
    /// For `https://`: what to trust and what to show.
    pub tls: Option<etcd_client::TlsOptions>,
}

/// See the module.
pub struct Etcd {
    inner: Arc<Inner>,
}

struct Inner {
    members: Members,
    root: String,
    /// The mark's key, and the revision at which it was last written. Held through a commit.
    mark: tokio::sync::Mutex<(String, Revision)>,
    sessions: Mutex<HashMap<SessionId, CancellationToken>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Etcd {
    /// Connects, and finds out whether the cluster answers.
    ///
    /// # Errors
    /// When no majority answers in time or it does not let us in.
    pub async fn open(settings: Settings) -> Result<Self, Error> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        if let Some((user, password)) = settings.user {
            // The client keeps a copy of its own, to log in anew.
            options = options.with_user(user, password.as_str());
        }
        if let Some(tls) = settings.tls {
            options = options.with_tls(tls);
        }
        let root = settings.root.trim_end_matches('/').to_owned();
        let mark = format!("{root}/commit/{}", Uuid::now_v7());
        let store = Self {
            inner: Arc::new(Inner {
                members: Members::new(settings.endpoints, options),
                mark: tokio::sync::Mutex::new((mark, 0)),
                root,
                sessions: Mutex::default(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
            }),
        };
        store.take_old_marks_away().await?;
        Ok(store)
    }

    /// The ids of marks are UUIDv7: they tell their age.
    async fn take_old_marks_away(&self) -> Result<(), Error> {
        let oldest = Uuid::now_v7()
            .get_timestamp()
            .map_or(0, |time| time.to_unix().0);
        let oldest = oldest.saturating_sub(MARK_DAYS * 86_400);
        for mark in self.list("/commit/").await?.entries {
            let id = mark
                .key
                .rsplit('/')
                .next()
                .and_then(|id| id.parse::<Uuid>().ok());
            let made = id
                .and_then(|id| id.get_timestamp())
                .map(|time| time.to_unix().0);
            if made.is_some_and(|made| made < oldest) {
                let gone = Transaction::new()
                    .when(&*mark.key, mark.changed)
                    .delete(&*mark.key);
                match self.commit(gone).await {
                    // Another replica was faster.
                    Ok(_) | Err(Error::Conflict(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Etcd({:?} below `{}`)",
            self.inner.members, self.inner.root
        )
    }
}

impl Store for Etcd {
    fn get(&self, key: &str) -> Answer<'_, Option<Entry>> {
        let key = self.inner.full(key);
        Box::pin(async move {
            let ask = |mut client: Client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            };
            let mut found = self.inner.members.call(ask).await?;
            Ok(found.take_kvs().pop().map(|kv| self.inner.entry(kv)))
        })
    }

    fn list(&self, prefix: &str) -> Answer<'_, Listing> {
        let prefix = self.inner.full(prefix);
        Box::pin(async move { self.inner.list(&prefix).await })
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, Revision> {
        Box::pin(async move {
            transaction.check()?;
            self.inner.commit(&transaction).await
        })
    }

    fn watch(&self, prefix: &str, after: Revision) -> Answer<'_, Watch> {
        let prefix = self.inner.full(prefix);
        Box::pin(async move {
            let (live, receiver) = mpsc::channel(WATCH_COMMITS_MAX);
            let inner = Arc::clone(&self.inner);
            let follower = Follower {
                inner,
                prefix,
                after,
                live,
            };
            let stream = follower.open().await?;
            self.inner.tasks.spawn(follower.run(stream));
            Ok(Watch::new(
                std::collections::VecDeque::new(),
                after,
                receiver,
            ))
        })
    }

    fn session(&self) -> Answer<'_, Session> {
        Box::pin(async move {
            let grant =
                |mut client: Client| async move { client.lease_grant(SESSION_SECONDS, None).await };
            // Asked twice, the lease that nobody knows of ends by itself.
            let id = self.inner.members.call(grant).await?.id();
            let stop = self.inner.stop.child_token();
            self.inner.sessions.lock().insert(id, stop.clone());
            let inner = Arc::clone(&self.inner);
            self.inner.tasks.spawn(async move {
                stop.run_until_cancelled(Box::pin(inner.keep_alive(id)))
                    .await;
                inner.sessions.lock().remove(&id);
            });
            Ok(Session { id })
        })
    }

    fn end(&self, session: Session) -> Answer<'_, ()> {
        Box::pin(async move {
            if let Some(stop) = self.inner.sessions.lock().remove(&session.id) {
                stop.cancel();
            }
            let revoke = |mut client: Client| async move { client.lease_revoke(session.id).await };
            match self.inner.members.call(revoke).await {
                Ok(_) | Err(Error::SessionEnded) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
}

impl Inner {
    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.root)
    }

    fn entry(&self, kv: KeyValue) -> Entry {
        let changed = kv.mod_revision();
        let (key, value) = kv.into_key_value();
        let key = String::from_utf8_lossy(&key);
        Entry {
            key: key.strip_prefix(&self.root).unwrap_or(&key).to_owned(),
            value: Bytes::from(value),
            changed,
        }
    }

    /// Pages of one moment: the revision of the first is asked for by all. A page that is too large is asked for again
    /// with half its keys, and those behind it have no more: large values stand side by side.
    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        let end = past(prefix);
        let (mut from, mut listing) = (prefix.as_bytes().to_vec(), None::<Listing>);
        let mut keys = PAGE_KEYS;
        loop {
            let at = listing.as_ref().map_or(0, |listing| listing.revision);
            let mut page = match self.page((&from, &end), at, keys).await {
                // Compacted between two pages: begin anew.
                Err(Error::Compacted) if listing.is_some() => {
                    (from, listing) = (prefix.as_bytes().to_vec(), None);
                    continue;
                }
                Ok(None) if keys > 1 => {
                    keys /= 2;
                    continue;
                }
                page => page?.ok_or_else(|| {
                    Error::Unavailable("etcd: a value is larger than any of ours".to_owned())
                })?,
            };
            let revision = page.header().map_or(0, |header| header.revision());
            let mut whole = listing.take().unwrap_or(Listing {
                entries: Vec::new(),
                revision,
            });
            let (more, kvs) = (page.more(), page.take_kvs());
            if let Some(last) = kvs.last() {
                from = [last.key(), b"\0"].concat();
            }
            whole
                .entries
                .extend(kvs.into_iter().map(|kv| self.entry(kv)));
            if !more {
                return Ok(whole);
            }
            listing = Some(whole);
        }
    }

    /// One page of a listing; `None` when it is too large.
    async fn page(
        &self,
        (from, end): (&[u8], &[u8]),
        at: Revision,
        keys: i64,
    ) -> Result<Option<GetResponse>, Error> {
        let ask = |client: Client| {
            let (from, end) = (from.to_vec(), end.to_vec());
            async move {
                let options = GetOptions::new()
                    .with_range(end)
                    .with_limit(keys)
                    .with_revision(at)
                    .with_sort(SortTarget::Key, SortOrder::Ascend);
                let kv = client.kv_client();
                let mut kv = kv.max_decoding_message_size(PAGE_BYTES_MAX);
                match kv.get(from, Some(options)).await {
                    Err(error) if member::is_too_large(&error) => Ok(None),
                    page => page.map(Some),
                }
            }
        };
        self.members.call(ask).await
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Revision, Error> {
        let mut mark = self.mark.lock().await;
        let id = Uuid::now_v7().into_bytes().to_vec();
        loop {
            let (key, last) = (mark.0.clone(), mark.1);
            let ask = |mut client: Client| {
                let txn = self.txn(transaction, (&key, last), &id);
                async move { client.txn(txn).await }
            };
            let done = self.members.call(ask).await?;
            if done.succeeded() {
                mark.1 = done.header().map_or(0, |header| header.revision());
                return Ok(mark.1);
            }
            let (marked, found) = self.shown(&done);
            let now = marked.as_ref().map_or(0, |entry| entry.changed);
            if let Some(entry) = marked.filter(|entry| entry.value == id) {
                mark.1 = entry.changed;
                return Ok(entry.changed);
            }
            if now == last {
                let conflict = transaction.compares.iter().find(|compare| {
                    let changed = found.get(&compare.key).copied().unwrap_or(0);
                    changed != compare.changed
                });
                let key = conflict.map_or_else(String::new, |compare| compare.key.clone());
                return Err(Error::Conflict(key));
            }
            // An earlier commit, given up as lost, was done after all.
            mark.1 = now;
        }
    }

    fn txn(&self, transaction: &Transaction, (mark, last): (&str, Revision), id: &[u8]) -> Txn {
        let unchanged =
            |key: String, changed| EtcdCompare::mod_revision(key, CompareOp::Equal, changed);
        let mut compares = vec![unchanged(mark.to_owned(), last)];
        let mut shows = vec![TxnOp::get(mark, None)];
        for compare in &transaction.compares {
            let key = self.full(&compare.key);
            shows.push(TxnOp::get(
                key.clone(),
                Some(GetOptions::new().with_keys_only()),
            ));
            compares.push(unchanged(key, compare.changed));
        }
        let mut writes = vec![TxnOp::put(mark, id, None)];
        writes.extend(transaction.writes.iter().map(|write| match write {
            Write::Put {
                key,
                value,
                session,
            } => {
                let options = session.map(|session| PutOptions::new().with_lease(session));
                TxnOp::put(self.full(key), value.to_vec(), options)
            }
            Write::Delete { key } => TxnOp::delete(self.full(key), None),
        }));
        Txn::new().when(compares).and_then(writes).or_else(shows)
    }

    /// What a transaction that was not done shows instead: the mark, and when the compared keys were last changed.
    fn shown(&self, done: &TxnResponse) -> (Option<Entry>, HashMap<String, Revision>) {
        let mut shown = done
            .op_responses()
            .into_iter()
            .map(|response| match response {
                TxnOpResponse::Get(mut found) => found.take_kvs().pop().map(|kv| self.entry(kv)),
                _ => None,
            });
        let mark = shown.next().flatten();
        let found = shown
            .flatten()
            .map(|entry| (entry.key, entry.changed))
            .collect();
        (mark, found)
    }

    /// Returns when the lease is gone.
    async fn keep_alive(&self, id: SessionId) {
        let every = Duration::from_secs(SESSION_SECONDS.unsigned_abs()) / 3;
        loop {
            tokio::time::sleep(every).await;
            let ask =
                |mut client: Client| async move { client.lease_keep_alive(id).await.map(drop) };
            match self.members.call(ask).await {
                Ok(()) => {}
                Err(Error::SessionEnded) => {
                    tracing::warn!(session = id, "etcd no longer knows this session");
                    return;
                }
                Err(error) => tracing::warn!(session = id, %error, "session not kept alive"),
            }
        }
    }
}

/// The first key behind all that begin with `prefix`: for texts, whose bytes are never 0xff.
fn past(prefix: &str) -> Vec<u8> {
    [prefix.as_bytes(), &[0xff]].concat()
}

impl From<EtcdError> for Error {
    fn from(error: EtcdError) -> Self {
        Self::Unavailable(format!("etcd: {error}"))
    }
}
