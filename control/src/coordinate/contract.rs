//! Everything control relies on, said once and run against every store.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{
    Answer, Batch, Candidate, Embedded, Entry, Error, Event, Listing, Revision, Session, Store,
    Transaction, VALUE_BYTES_MAX, Watch, Write, elect,
};

pub(super) async fn keeps_the_contract(store: Arc<dyn Store>) {
    compares_before_it_writes(store.as_ref()).await;
    writes_all_or_nothing(store.as_ref()).await;
    lists_one_moment(store.as_ref()).await;
    takes_many_large_values(store.as_ref()).await;
    watches_in_order(store.as_ref()).await;
    ends_sessions(store.as_ref()).await;
    elects_one(Arc::clone(&store)).await;
    candidates_follow_one_another(Arc::clone(&store)).await;
    a_candidate_whose_session_ends_stands_again(store).await;
}

fn put(key: &str, value: &'static [u8]) -> Transaction {
    Transaction::new().put(key, value)
}

async fn compares_before_it_writes(store: &dyn Store) {
    let first = store
        .commit(put("/a/1", b"1").when("/a/1", 0))
        .await
        .unwrap();
    let again = store.commit(put("/a/1", b"2").when("/a/1", 0)).await;
    assert!(
        matches!(again, Err(Error::Conflict(key)) if key == "/a/1"),
        "create must not overwrite"
    );
    let second = store
        .commit(put("/a/1", b"2").when("/a/1", first))
        .await
        .unwrap();
    assert!(first < second, "revisions must grow");
    let late = store.commit(put("/a/1", b"3").when("/a/1", first)).await;
    assert!(
        matches!(late, Err(Error::Conflict(_))),
        "a lost race must lose"
    );
    let entry = store.get("/a/1").await.unwrap().unwrap();
    assert_eq!((&entry.value[..], entry.changed), (&b"2"[..], second));
    assert_eq!(store.get("/a/none").await.unwrap(), None);
}

async fn writes_all_or_nothing(store: &dyn Store) {
    let both = Transaction::new()
        .put("/b/1", &b"x"[..])
        .put("/b/2", &b"y"[..]);
    let revision = store.commit(both).await.unwrap();
    for key in ["/b/1", "/b/2"] {
        let entry = store.get(key).await.unwrap().unwrap();
        assert_eq!(entry.changed, revision, "one transaction is one revision");
    }
    let stale = Transaction::new()
        .when("/b/2", revision - 1)
        .put("/b/1", &b"z"[..])
        .delete("/b/2");
    assert!(store.commit(stale).await.is_err());
    assert_eq!(&store.get("/b/1").await.unwrap().unwrap().value[..], b"x");
    let twice = Transaction::new().put("/b/1", &b"z"[..]).delete("/b/1");
    assert!(matches!(store.commit(twice).await, Err(Error::Refused(_))));
    let large = Transaction::new().put("/b/1", vec![0; VALUE_BYTES_MAX + 1]);
    assert!(matches!(store.commit(large).await, Err(Error::Refused(_))));
}

async fn lists_one_moment(store: &dyn Store) {
    store.commit(put("/c/b", b"")).await.unwrap();
    store.commit(put("/c/a", b"")).await.unwrap();
    let last = store.commit(put("/cc", b"")).await.unwrap();
    let listing = store.list("/c/").await.unwrap();
    let keys: Vec<&str> = listing
        .entries
        .iter()
        .map(|entry| entry.key.as_str())
        .collect();
    assert_eq!(
        keys,
        ["/c/a", "/c/b"],
        "sorted, and nothing beside the prefix"
    );
    assert!(
        listing.revision >= last,
        "a cluster's revision also grows by what others write"
    );
}

/// More than one message of gRPC holds: whatever may be written can be read again.
async fn takes_many_large_values(store: &dyn Store) {
    let before = store.list("/l/").await.unwrap().revision;
    let value = |at: u8| bytes::Bytes::from(vec![at; VALUE_BYTES_MAX]);
    let keys: Vec<String> = (0..6).map(|at| format!("/l/{at}")).collect();
    for (at, key) in (0..).zip(&keys) {
        let one = Transaction::new().put(key, value(at));
        store.commit(one).await.unwrap();
    }
    let small = (0..100).map(|at| format!("/l/small-{at:02}"));
    let all = small.fold(Transaction::new(), |all, key| all.put(key, &b"x"[..]));
    store.commit(all).await.unwrap();
    let listing = store.list("/l/").await.unwrap();
    assert_eq!(listing.entries.len(), 106);
    for (at, (entry, key)) in (0..).zip(listing.entries.iter().zip(&keys)) {
        assert!(entry.key == *key && entry.value == value(at), "{key}");
    }
    let mut watch = store.watch("/l/", before).await.unwrap();
    for (at, key) in (0..).zip(&keys) {
        let event = watch.next().await.unwrap().events.remove(0);
        assert!(event.key == *key && event.value == Some(value(at)), "{key}");
    }
}

async fn watches_in_order(store: &dyn Store) {
    let from = store.list("/d/").await.unwrap().revision;
    let first = store.commit(put("/d/1", b"1")).await.unwrap();
    let mut watch = store.watch("/d/", from).await.unwrap();
    store.commit(put("/elsewhere", b"")).await.unwrap();
    let second = store
        .commit(Transaction::new().delete("/d/1").put("/d/2", &b"2"[..]))
        .await
        .unwrap();
    let event = |key: &str, value: Option<&'static [u8]>| Event {
        key: key.to_owned(),
        value: value.map(Into::into),
    };
    assert_eq!(
        watch.next().await.unwrap(),
        Batch {
            revision: first,
            events: vec![event("/d/1", Some(b"1"))]
        },
        "what came before the watch is told first"
    );
    assert_eq!(
        watch.next().await.unwrap(),
        Batch {
            revision: second,
            events: vec![event("/d/1", None), event("/d/2", Some(b"2"))]
        },
        "one commit is one batch, and others' keys are not told"
    );
}

async fn ends_sessions(store: &dyn Store) {
    let session = store.session().await.unwrap();
    let mut mine = Transaction::new();
    mine.writes.push(Write::Put {
        key: "/e/mine".to_owned(),
        value: b"1"[..].into(),
        session: Some(session.id),
    });
    let revision = store.commit(mine.clone()).await.unwrap();
    let mut watch = store.watch("/e/", revision).await.unwrap();
    store.end(session).await.unwrap();
    assert_eq!(
        store.get("/e/mine").await.unwrap(),
        None,
        "a session's keys go with it"
    );
    assert_eq!(watch.next().await.unwrap().events[0].value, None);
    assert!(matches!(store.commit(mine).await, Err(Error::SessionEnded)));
}

async fn elects_one(store: Arc<dyn Store>) {
    let (a, b) = (
        store.session().await.unwrap(),
        store.session().await.unwrap(),
    );
    let first = elect(store.as_ref(), "reaper", a, "a").await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    let waits = Arc::clone(&store);
    waiting.spawn(async move { elect(waits.as_ref(), "reaper", b, "b").await.unwrap() });
    let fenced = |term: &super::Leadership| Transaction {
        compares: vec![term.fence()],
        ..put("/f", b"1")
    };
    store.commit(fenced(&first)).await.unwrap();
    store.end(a).await.unwrap();
    let second = waiting.join_next().await.unwrap().unwrap();
    assert!(second.term > first.term, "terms must grow");
    let late = store.commit(fenced(&first)).await;
    assert!(
        matches!(late, Err(Error::Conflict(_))),
        "who was overtaken may not write"
    );
    store.commit(fenced(&second)).await.unwrap();
}

async fn candidates_follow_one_another(store: Arc<dyn Store>) {
    let stand = |who: &str| Candidate::new(Arc::clone(&store), "candidates", who.to_owned());
    let first = stand("a");
    let term = first.won().await.term;
    let (second, third) = (stand("b"), stand("c"));
    let kept = store.get("/elect/candidates").await.unwrap().unwrap();
    assert_eq!((&kept.value[..], kept.changed), (&b"a"[..], term));
    assert_eq!((second.leadership(), third.leadership()), (None, None));
    first.resign().await;
    let next = tokio::select! {
        won = second.won() => won,
        won = third.won() => won,
    };
    assert!(next.term > term);
    // Whoever it was, the other comes next, without a word of the one before.
    let (gone, left) = if second.leadership().is_some() {
        (second, third)
    } else {
        (third, second)
    };
    drop(gone);
    assert!(left.won().await.term > next.term);
    left.resign().await;
    assert_eq!(store.get("/elect/candidates").await.unwrap(), None);
}

/// A store that remembers which sessions were begun, and says so when it may.
struct Noted {
    store: Arc<dyn Store>,
    sessions: Mutex<Vec<Session>>,
    answers: Semaphore,
}

impl Store for Noted {
    fn get(&self, key: &str) -> Answer<'_, Option<Entry>> {
        self.store.get(key)
    }

    fn list(&self, prefix: &str) -> Answer<'_, Listing> {
        self.store.list(prefix)
    }

    fn commit(&self, transaction: Transaction) -> Answer<'_, Revision> {
        self.store.commit(transaction)
    }

    fn watch(&self, prefix: &str, after: Revision) -> Answer<'_, Watch> {
        self.store.watch(prefix, after)
    }

    fn session(&self) -> Answer<'_, Session> {
        Box::pin(async move {
            let session = self.store.session().await?;
            self.sessions.lock().push(session);
            self.answers.acquire().await.unwrap().forget();
            Ok(session)
        })
    }

    fn end(&self, session: Session) -> Answer<'_, ()> {
        self.store.end(session)
    }
}

async fn a_candidate_whose_session_ends_stands_again(store: Arc<dyn Store>) {
    let noted = Arc::new(Noted {
        store: Arc::clone(&store),
        sessions: Mutex::default(),
        answers: Semaphore::new(Semaphore::MAX_PERMITS),
    });
    let sessions = Arc::clone(&noted);
    let first = Candidate::new(noted, "lost", "a".to_owned());
    let won = first.won().await;
    let second = Candidate::new(Arc::clone(&store), "lost", "b".to_owned());
    let session = sessions.sessions.lock().last().copied().unwrap();
    store.end(session).await.unwrap();
    first.lost(&won).await;
    let next = tokio::select! {
        won = second.won() => won,
        won = first.won() => won,
    };
    assert!(next.term > won.term);
    // Whoever it was, the other stands too: also the one that has lost.
    let (leads, waits) = if second.leadership().is_some() {
        (second, first)
    } else {
        (first, second)
    };
    leads.resign().await;
    assert!(waits.won().await.term > next.term);
    waits.resign().await;
}

#[tokio::test]
async fn a_candidate_that_is_stopped_at_once_leaves_no_session() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).await.unwrap();
    let noted = Arc::new(Noted {
        store: Arc::new(store),
        sessions: Mutex::default(),
        answers: Semaphore::new(0),
    });
    let store: Arc<dyn Store> = Arc::clone(&noted) as _;
    let candidate = Candidate::new(store, "brief", "a".to_owned());
    while noted.sessions.lock().is_empty() {
        tokio::task::yield_now().await;
    }
    // The session is there, and the candidate is not told before it has been stopped.
    let told = async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        noted.answers.add_permits(1);
    };
    tokio::join!(candidate.resign(), told);
    let left = noted.list("/sessions/").await.unwrap();
    assert_eq!(left.entries, []);
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(&dir.path().join("store")).await.unwrap();
    keeps_the_contract(Arc::new(store)).await;
}

#[tokio::test]
async fn the_embedded_store_keeps_its_keys_and_forgets_its_sessions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Embedded::open(&path).await.unwrap();
    let session = store.session().await.unwrap();
    let mut both = Transaction::new().put("/kept", &b"1"[..]);
    both.writes.push(Write::Put {
        key: "/leased".to_owned(),
        value: b"1"[..].into(),
        session: Some(session.id),
    });
    let revision = store.commit(both).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).await.unwrap();
    assert_eq!(store.get("/kept").await.unwrap().unwrap().changed, revision);
    assert_eq!(store.get("/leased").await.unwrap(), None);
    assert!(store.commit(put("/kept", b"2")).await.unwrap() > revision);
}
