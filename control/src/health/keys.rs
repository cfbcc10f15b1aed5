//! Tells the ingress nodes that keys have changed, and asks which of them have put it in force.
//!
//! Each change that is asked about has a number of its own, which a node repeats once the change holds there; one of an older
//! version is told as well and says nothing. What was asked is forgotten when nobody waits for it any more.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::Notify;
use vector_proto::control::v1::{ControlEvent, KeysChanged, control_event::Event};

use super::{Fleet, Stream};

/// What the ingress nodes that are connected here made of a change, by id.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeysTold {
    /// It is in force there.
    pub confirmed: Vec<String>,
    /// They said nothing in time.
    pub silent: Vec<String>,
    /// They are of a version that never does.
    pub older: Vec<String>,
}

/// Changes that somebody waits for: one for each command that runs, with the nodes that have not answered.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    /// Numbers that were given out; never 0.
    numbers: u64,
    changes: HashMap<u64, Change>,
}

#[derive(Debug)]
struct Change {
    missing: BTreeSet<String>,
    all_heard: Arc<Notify>,
}

/// A change that is waited for. Dropped, it is not any more.
struct Waiting<'a> {
    asked: &'a Asked,
    number: u64,
    all_heard: Arc<Notify>,
}

impl Asked {
    fn begin(&self, missing: BTreeSet<String>) -> Waiting<'_> {
        let all_heard = Arc::new(Notify::new());
        if missing.is_empty() {
            all_heard.notify_one();
        }
        let mut open = self.0.lock();
        open.numbers += 1;
        let number = open.numbers;
        let change = Change {
            missing,
            all_heard: Arc::clone(&all_heard),
        };
        open.changes.insert(number, change);
        Waiting {
            asked: self,
            number,
            all_heard,
        }
    }

    /// A node says that a change holds there. What nobody waits for, or was not asked of it, is nothing.
    pub(super) fn heard(&self, node: &str, number: u64) {
        let mut open = self.0.lock();
        if let Some(change) = open.changes.get_mut(&number)
            && change.missing.remove(node)
            && change.missing.is_empty()
        {
            change.all_heard.notify_one();
        }
    }
}

impl Waiting<'_> {
    /// Who has not answered.
    fn missing(&self) -> BTreeSet<String> {
        let open = self.asked.0.lock();
        let change = open.changes.get(&self.number);
        change
            .map(|change| change.missing.clone())
            .unwrap_or_default()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.asked.0.lock().changes.remove(&self.number);
    }
}

impl Fleet {
    /// Tells every connected ingress to forget keys. Returns once every stream has it; one that
    /// does not take it is closed.
    pub async fn push_keys(&self, keys: KeysChanged) {
        let streams = self.ingress_streams();
        push(&streams, |_| keys.clone()).await;
    }

    /// Tells every connected ingress to forget keys, and waits for those that confirm it until all did or it is `given_up`.
    ///
    /// Cancel safety: whoever was told was told; nobody is waited for any more.
    pub async fn ask_keys(
        &self,
        keys: KeysChanged,
        given_up: impl Future<Output = ()>,
    ) -> KeysTold {
        let streams = self.ingress_streams();
        let confirming = streams.iter().filter(|(_, stream)| stream.hears_keys);
        let confirming: BTreeSet<String> = confirming.map(|(id, _)| id.clone()).collect();
        let waiting = self.asked.begin(confirming.clone());
        push(&streams, |stream| KeysChanged {
            asked: if stream.hears_keys { waiting.number } else { 0 },
            ..keys.clone()
        })
        .await;
        tokio::select! {
            () = waiting.all_heard.notified() => {}
            () = given_up => {}
        }
        let missing = waiting.missing();
        let older = streams.into_iter().filter(|(_, stream)| !stream.hears_keys);
        KeysTold {
            confirmed: confirming.difference(&missing).cloned().collect(),
            silent: missing.into_iter().collect(),
            older: older.map(|(id, _)| id).collect(),
        }
    }

    /// The open streams of ingress nodes, by id.
    fn ingress_streams(&self) -> Vec<(String, Stream)> {
        let members = self.members.lock();
        let open = members.iter().filter_map(|(id, member)| {
            let stream = member.stream.clone().filter(|stream| stream.ingress)?;
            Some((id.clone(), stream))
        });
        open.collect()
    }
}

async fn push(streams: &[(String, Stream)], keys: impl Fn(&Stream) -> KeysChanged) {
    let pushes = streams.iter().map(|(_, stream)| {
        stream.push(ControlEvent {
            event: Some(Event::KeysChanged(keys(stream))),
        })
    });
    futures_util::future::join_all(pushes).await;
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::{mpsc, oneshot};
    use vector_proto::control::v1::Register;

    use super::*;
    use crate::health::Attached;

    struct Node {
        attached: Attached,
        queue: mpsc::Receiver<Box<ControlEvent>>,
    }

    impl Node {
        fn connect(fleet: &Arc<Fleet>, id: &str, (ingress, hears_keys): (bool, bool)) -> Self {
            let (events, queue) = mpsc::channel(4);
            let register = Register {
                hears_keys,
                ..Register::default()
            };
            let attached = fleet.attach(id, ingress, &register, 1, events);
            Self { attached, queue }
        }

        /// The number that the next change is to be answered with.
        async fn asked(&mut self) -> u64 {
            match self.queue.recv().await.unwrap().event {
                Some(Event::KeysChanged(changed)) => changed.asked,
                other => panic!("{other:?}"),
            }
        }
    }

    fn keys() -> KeysChanged {
        KeysChanged {
            keys: vec!["k".to_owned()],
            ..KeysChanged::default()
        }
    }

    #[tokio::test]
    async fn who_confirms_is_told_from_who_is_silent_and_from_who_never_does() {
        let fleet = Arc::new(Fleet::new(Arc::default()));
        let mut good = Node::connect(&fleet, "good", (true, true));
        let mut mute = Node::connect(&fleet, "mute", (true, true));
        let mut old = Node::connect(&fleet, "old", (true, false));
        let mut egress = Node::connect(&fleet, "egress", (false, true));
        let (give_up, given_up) = oneshot::channel::<()>();
        let answers = async {
            let asked = good.asked().await;
            assert_eq!((mute.asked().await, old.asked().await), (asked, 0));
            // What was not asked, or not of them, is nothing.
            mute.attached.heard_keys(asked + 1);
            egress.attached.heard_keys(asked);
            old.attached.heard_keys(asked);
            good.attached.heard_keys(asked);
            good.attached.heard_keys(asked);
            give_up.send(()).unwrap();
            asked
        };
        let asking = fleet.ask_keys(keys(), async { given_up.await.unwrap() });
        let (told, first) = tokio::join!(asking, answers);
        let names = |name: &str| vec![name.to_owned()];
        let expected = KeysTold {
            confirmed: names("good"),
            silent: names("mute"),
            older: names("old"),
        };
        assert_eq!(told, expected);
        assert!(egress.queue.try_recv().is_err(), "keys are the ingress's");
        assert!(fleet.asked.0.lock().changes.is_empty(), "and forgotten");

        // A late answer to the first is none to the second.
        drop(mute);
        let answers = async {
            let asked = good.asked().await;
            assert_ne!(asked, first);
            good.attached.heard_keys(first);
            assert_eq!(fleet.asked.0.lock().changes[&asked].missing.len(), 1);
            good.attached.heard_keys(asked);
        };
        // Never given up: it ends because all have answered.
        let (told, ()) = tokio::join!(fleet.ask_keys(keys(), pending()), answers);
        assert_eq!((told.confirmed, told.silent), (names("good"), vec![]));
    }

    #[tokio::test]
    async fn nobody_is_waited_for_where_nobody_confirms() {
        let fleet = Arc::new(Fleet::new(Arc::default()));
        let _old = Node::connect(&fleet, "old", (true, false));
        assert_eq!(fleet.ask_keys(keys(), pending()).await.older, ["old"]);
    }
}
