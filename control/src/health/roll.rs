//! What every replica says of the nodes that it hears, so that all agree on which may be used.
//!
//! One key for each replica, `/roll/ID`, under a session of its own: it goes when the replica has been dead for the
//! session's time. Written when something changes and at most every [`PACE`], so a quiet network costs no writes
//! whatever its size; about 40 bytes for each node. What all say together ([`agreed`]) is what snapshots follow from, and
//! nobody's own memory.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Fleet, START_GRACE, Usable};
use crate::coordinate::{
    self, Batch, Compare, Revision, Session, Store, Transaction, Watch, Write,
};

const ROLLS: &str = "/roll/";

/// A change is written at once, the next ones together after this.
const PACE: Duration = Duration::from_millis(50);

/// After a failure of the store.
const RETRY: Duration = Duration::from_millis(250);

/// Why a replica may not join, or cannot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Usage and claims would be kept in two places that know nothing of each other.
    #[error(
        "the control at {replica} runs on the same etcd but keeps its ledger elsewhere ({theirs}; here {ours}): several \
         replicas need one ledger, so set [ledger] postgres alike on each. One that has just ended counts for another 10 s"
    )]
    OtherLedger {
        /// Where the other one listens.
        replica: String,
        /// Its ledger.
        theirs: String,
        /// Ours.
        ours: String,
    },
    /// Who starts compares its ledger with those of the others, which holds as long as nobody else starts.
    #[error(
        "this replica stood still for so long that another one's turn to start has come: start it again"
    )]
    Overtaken,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] coordinate::Error),
}

/// What one replica says.
#[derive(Clone, PartialEq, Message)]
pub struct Roll {
    /// Where it listens, for people.
    #[prost(string, tag = "1")]
    pub replica: String,
    /// It has been there long enough for its nodes to have found it.
    #[prost(bool, tag = "2")]
    pub settled: bool,
    /// Which ledger it writes to.
    #[prost(string, tag = "3")]
    pub ledger: String,
    /// Whom it hears, by id.
    #[prost(message, repeated, tag = "4")]
    pub nodes: Vec<Heard>,
}

/// A node with a stream that is open, or was until a moment ago.
#[derive(Clone, PartialEq, Message)]
pub struct Heard {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// It says that it is going down.
    #[prost(bool, tag = "2")]
    pub draining: bool,
}

/// What every replica says now.
///
/// # Errors
/// When the store fails.
pub async fn rolls(store: &dyn Store) -> Result<Vec<Roll>, coordinate::Error> {
    Ok(Agreement::read(store).await?.rolls.into_values().collect())
}

/// What every replica says, read once and then kept current by what a watch tells.
#[derive(Clone, Debug)]
pub struct Agreement {
    rolls: BTreeMap<String, Roll>,
    read: Revision,
}

impl Agreement {
    /// What they say now.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn read(store: &dyn Store) -> Result<Self, coordinate::Error> {
        let listed = store.list(ROLLS).await?;
        let mut agreement = Self {
            rolls: BTreeMap::new(),
            read: listed.revision,
        };
        for entry in &listed.entries {
            agreement.set(&entry.key, Some(&entry.value));
        }
        Ok(agreement)
    }

    /// Follows one commit.
    pub fn take(&mut self, batch: &Batch) {
        if batch.revision > self.read {
            for event in &batch.events {
                self.set(&event.key, event.value.as_ref());
            }
        }
    }

    /// Which nodes may be used.
    #[must_use]
    pub fn usable(&self) -> Usable {
        together(self.rolls.values())
    }

    fn set(&mut self, key: &str, value: Option<&Bytes>) {
        if !key.starts_with(ROLLS) {
            return;
        }
        // What a newer version writes in another way is not ours to judge.
        match value.map(|value| Roll::decode(value.clone())) {
            Some(Ok(roll)) => drop(self.rolls.insert(key.to_owned(), roll)),
            Some(Err(_)) | None => drop(self.rolls.remove(key)),
        }
    }
}

/// Which nodes may be used, as all replicas see it.
///
/// # Errors
/// When the store fails.
pub async fn agreed(store: &dyn Store) -> Result<Usable, coordinate::Error> {
    Ok(Agreement::read(store).await?.usable())
}

/// What follows from all rolls: a node that anybody hears may be used; one that says to anybody that it goes, goes.
fn together<'a>(rolls: impl Iterator<Item = &'a Roll> + Clone) -> Usable {
    let mut usable = Usable {
        all: !rolls.clone().any(|roll| roll.settled),
        ..Usable::default()
    };
    for node in rolls.flat_map(|roll| &roll.nodes) {
        usable.ids.insert(node.id.clone());
        if node.draining {
            usable.draining.insert(node.id.clone());
        }
    }
    usable
}

/// Keeps this replica's roll.
pub struct Rolls {
    store: Arc<dyn Store>,
    fleet: Arc<Fleet>,
    /// As it was last written.
    written: Roll,
    key: String,
    session: Option<Session>,
    settles: Instant,
}

impl std::fmt::Debug for Rolls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rolls({})", self.key)
    }
}

impl Rolls {
    /// Joins the other replicas, if they keep the same ledger: while `turn` holds, so that none has joined unseen.
    ///
    /// # Errors
    /// [`Error::OtherLedger`] when they do not, [`Error::Overtaken`] when it does not hold.
    pub async fn join(
        store: Arc<dyn Store>,
        fleet: Arc<Fleet>,
        (replica, ledger): (String, String),
        (started, turn): (Instant, Compare),
    ) -> Result<Self, Error> {
        if let Some(other) = rolls(store.as_ref())
            .await?
            .into_iter()
            .find(|other| other.ledger != ledger)
        {
            return Err(Error::OtherLedger {
                replica: other.replica,
                theirs: other.ledger,
                ours: ledger,
            });
        }
        let mut joined = Self {
            store,
            fleet,
            written: Roll {
                replica,
                ledger,
                ..Roll::default()
            },
            key: format!("{ROLLS}{}", Uuid::now_v7()),
            session: None,
            settles: started + START_GRACE,
        };
        match joined.write(joined.written.clone(), Some(turn)).await {
            Ok(()) => Ok(joined),
            Err(coordinate::Error::Conflict(_)) => Err(Error::Overtaken),
            Err(error) => Err(error.into()),
        }
    }

    /// What people and other replicas know this one by.
    #[must_use]
    pub fn replica(&self) -> &str {
        &self.written.replica
    }

    /// Says whom this replica hears until cancelled. The roll is left where it is then: it goes with the session, which
    /// gives nodes time to find another replica.
    pub async fn run(mut self, cancel: CancellationToken) {
        loop {
            let ended = tokio::select! {
                () = cancel.cancelled() => return,
                ended = self.keep() => ended,
            };
            if let Err(error) = ended {
                tracing::warn!(%error, "the other replicas cannot be told which nodes are here, will try again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Until the session or the store is gone.
    async fn keep(&mut self) -> Result<(), coordinate::Error> {
        let from = self.store.list(&self.key).await?;
        let mut watch = self.store.watch(&self.key, from.revision).await?;
        let mut changes = self.fleet.changes();
        let (mut roll, mut until) = self.now();
        if from.entries.is_empty() || roll != self.written {
            self.write(roll, None).await?;
        }
        loop {
            tokio::select! {
                _ = changes.changed() => {}
                () = at(until) => {}
                lost = lost(&mut watch) => {
                    lost?;
                    tracing::warn!("the session in the store has ended; beginning another");
                    return Ok(());
                }
            }
            (roll, until) = self.now();
            if roll != self.written {
                self.write(roll, None).await?;
                tokio::time::sleep(PACE).await;
            }
        }
    }

    fn now(&self) -> (Roll, Option<Instant>) {
        let now = Instant::now();
        let (nodes, until) = self.fleet.heard(now);
        let settled = now >= self.settles;
        let roll = Roll {
            settled,
            nodes,
            ..self.written.clone()
        };
        let settles = (!settled).then_some(self.settles);
        (roll, [until, settles].into_iter().flatten().min())
    }

    /// Says this, if `only` holds.
    async fn write(&mut self, roll: Roll, only: Option<Compare>) -> Result<(), coordinate::Error> {
        let session = match self.session {
            Some(session) => session,
            None => *self.session.insert(self.store.session().await?),
        };
        let mut put = Transaction::new();
        put.compares.extend(only);
        put.writes.push(Write::Put {
            key: self.key.clone(),
            value: roll.encode_to_vec().into(),
            session: Some(session.id),
        });
        let done = self.store.commit(put).await;
        if matches!(done, Err(coordinate::Error::SessionEnded)) {
            self.session = None;
        }
        done?;
        self.written = roll;
        Ok(())
    }
}

/// Returns when the key is gone, or nobody can say whether it is.
async fn lost(watch: &mut Watch) -> Result<(), coordinate::Error> {
    loop {
        match watch.next().await {
            Ok(batch) if batch.events.iter().all(|event| event.value.is_some()) => {}
            Ok(_) | Err(coordinate::Error::Compacted) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::coordinate::{Embedded, Leadership, elect};

    fn roll(settled: bool, nodes: &[(&str, bool)]) -> Roll {
        Roll {
            settled,
            nodes: nodes
                .iter()
                .map(|&(id, draining)| Heard {
                    id: id.to_owned(),
                    draining,
                })
                .collect(),
            ..Roll::default()
        }
    }

    #[test]
    fn whoever_is_heard_anywhere_may_be_used() {
        let rolls = [
            roll(true, &[("a", false), ("b", true)]),
            roll(false, &[("b", false), ("c", false)]),
        ];
        let usable = together(rolls.iter());
        assert!(!usable.all, "somebody has been there for long enough");
        assert!(usable.ids.iter().eq(["a", "b", "c"]));
        assert!(usable.draining.iter().eq(["b"]));
        assert!(together([roll(false, &[])].iter()).all);
        assert!(together([].iter()).all, "nobody has said anything yet");
    }

    struct Town {
        store: Arc<dyn Store>,
        fleet: Arc<Fleet>,
        _dir: tempfile::TempDir,
    }

    async fn town() -> Town {
        let dir = tempfile::tempdir().unwrap();
        Town {
            store: Arc::new(Embedded::open(&dir.path().join("store")).await.unwrap()),
            fleet: Arc::new(Fleet::new(Arc::default())),
            _dir: dir,
        }
    }

    impl Town {
        async fn join(&self, ledger: &str) -> Result<Rolls, Error> {
            let (session, turn) = self.turn().await;
            let joined = self.join_in(turn, ledger).await;
            self.store.end(session).await.unwrap();
            joined
        }

        async fn turn(&self) -> (Session, Leadership) {
            let session = self.store.session().await.unwrap();
            let turn = elect(self.store.as_ref(), "start", session, "here").await;
            (session, turn.unwrap())
        }

        async fn join_in(&self, turn: Leadership, ledger: &str) -> Result<Rolls, Error> {
            let me = ("here".to_owned(), ledger.to_owned());
            let (store, fleet) = (Arc::clone(&self.store), Arc::clone(&self.fleet));
            Rolls::join(store, fleet, me, (Instant::now(), turn.fence())).await
        }

        /// Waits until the rolls are so.
        async fn until(&self, good: impl Fn(&[Roll]) -> bool) {
            let from = self.store.list(ROLLS).await.unwrap().revision;
            let mut watch = self.store.watch(ROLLS, from).await.unwrap();
            while !good(&rolls(self.store.as_ref()).await.unwrap()) {
                watch.next().await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_lost_session_is_begun_anew_and_says_the_same() {
        let town = town().await;
        let mine = town.join("l").await.unwrap();
        let session = mine.session.unwrap();
        let cancel = CancellationToken::new();
        let mut running = tokio::task::JoinSet::new();
        running.spawn(mine.run(cancel.clone()));
        let (events, _queue) = mpsc::channel(1);
        let register = vector_proto::control::v1::Register::default();
        let _here = town.fleet.attach("a", true, &register, 0, events);
        let there = |rolls: &[Roll]| rolls.len() == 1 && rolls[0].nodes.len() == 1;
        town.until(there).await;
        town.store.end(session).await.unwrap();
        town.until(there).await;
        cancel.cancel();
        running.join_next().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_replica_with_another_ledger_is_turned_away() {
        let town = town().await;
        let _one = town.join("sqlite 1").await.unwrap();
        assert!(
            town.join("sqlite 1").await.is_ok(),
            "the same, started again"
        );
        let told = town.join("sqlite 2").await.unwrap_err().to_string();
        assert!(
            told.contains("at here") && told.contains("postgres"),
            "{told}"
        );
    }

    #[tokio::test]
    async fn a_replica_that_was_overtaken_while_it_started_does_not_join() {
        let town = town().await;
        let (session, late) = town.turn().await;
        // It stood still: its session is over, another has its turn, and has not joined yet.
        town.store.end(session).await.unwrap();
        let (_, next) = town.turn().await;
        let told = town.join_in(late, "sqlite 1").await.unwrap_err();
        assert!(matches!(told, Error::Overtaken), "{told}");
        assert!(rolls(town.store.as_ref()).await.unwrap().is_empty());
        town.join_in(next, "sqlite 2").await.unwrap();
    }
}
