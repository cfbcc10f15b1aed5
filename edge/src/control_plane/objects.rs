//! Who made which object, as far as this node has heard lately. Control knows the rest.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::lookup::HashMap;
use parking_lot::Mutex;
use vector_proto::control::v1;

/// Objects of one generation; two are kept. An entry is about 300 bytes: 30 MB at the worst.
const GENERATION_MAX: usize = 50_000;

/// Ids that are remembered as unknown: 3 MB at the worst.
const UNKNOWN_MAX: usize = 10_000;

/// For how long: what is asked about with each call of a conversation should not cost each the time that control waits for word
/// of it, and what is made meanwhile should be found soon.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);

type Known = HashMap<Key, Arc<v1::Object>>;

/// Account and object id, always together: an object is nobody else's.
type Key = (Box<str>, Box<str>);

#[derive(Debug, Default)]
pub(super) struct Objects {
    generations: Mutex<(Known, Known)>,
    /// Of which control knew nothing, and when.
    unknown: Mutex<HashMap<Key, Instant>>,
}

impl Objects {
    pub(super) fn get(&self, account: &str, object: &str) -> Option<Arc<v1::Object>> {
        let key: Key = (account.into(), object.into());
        let generations = self.generations.lock();
        generations
            .0
            .get(&key)
            .or_else(|| generations.1.get(&key))
            .cloned()
    }

    /// Whether control knew nothing of it a moment ago.
    pub(super) fn is_unknown(&self, account: &str, object: &str, now: Instant) -> bool {
        let key: Key = (account.into(), object.into());
        let asked = self.unknown.lock().get(&key).copied();
        asked.is_some_and(|asked| now.saturating_duration_since(asked) < UNKNOWN_FOR)
            && self.get(account, object).is_none()
    }

    /// Control knows nothing of it.
    pub(super) fn unknown(&self, account: &str, object: &str, now: Instant) {
        let mut unknown = self.unknown.lock();
        if unknown.len() >= UNKNOWN_MAX {
            unknown.clear();
        }
        unknown.insert((account.into(), object.into()), now);
    }

    pub(super) fn remember(&self, object: v1::Object) -> Arc<v1::Object> {
        let key: Key = (object.account.as_str().into(), object.id.as_str().into());
        let object = Arc::new(object);
        let mut generations = self.generations.lock();
        if generations.0.len() >= GENERATION_MAX {
            generations.1 = std::mem::take(&mut generations.0);
        }
        generations.0.insert(key, Arc::clone(&object));
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_its_accounts_alone_and_memory_is_bounded() {
        let objects = Objects::default();
        for number in 0..GENERATION_MAX * 3 {
            objects.remember(v1::Object {
                id: format!("o{number}"),
                account: "a".into(),
                ..v1::Object::default()
            });
        }
        assert!(
            objects
                .get("a", &format!("o{}", GENERATION_MAX * 3 - 1))
                .is_some()
        );
        assert!(
            objects
                .get("b", &format!("o{}", GENERATION_MAX * 3 - 1))
                .is_none()
        );
        assert!(objects.get("a", "o0").is_none());
    }

    #[test]
    fn what_is_unknown_is_so_for_a_moment_and_until_it_is_known() {
        let (objects, start) = (Objects::default(), Instant::now());
        let later = start + UNKNOWN_FOR;
        for number in 0..UNKNOWN_MAX + 2 {
            objects.unknown("a", &format!("o{number}"), start);
        }
        assert!(objects.unknown.lock().len() <= UNKNOWN_MAX);
        let newest = format!("o{}", UNKNOWN_MAX + 1);
        assert!(objects.is_unknown("a", &newest, start));
        assert!(!objects.is_unknown("b", &newest, start));
        assert!(!objects.is_unknown("a", &newest, later));
        objects.remember(v1::Object {
            id: newest.clone(),
            account: "a".into(),
            ..v1::Object::default()
        });
        assert!(!objects.is_unknown("a", &newest, start));
    }
}
