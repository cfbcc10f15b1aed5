//! Who made which object, as far as this node has heard lately. Control knows the rest.

use std::sync::Arc;

use crate::lookup::HashMap;
use parking_lot::Mutex;
use vector_proto::control::v1;

/// Objects of one generation; two are kept. An entry is about 300 bytes: 30 MB at the worst.
const GENERATION_MAX: usize = 50_000;

type Known = HashMap<Key, Arc<v1::Object>>;

/// Account and object id, always together: an object is nobody else's.
type Key = (Box<str>, Box<str>);

#[derive(Debug, Default)]
pub(super) struct Objects {
    generations: Mutex<(Known, Known)>,
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
}
