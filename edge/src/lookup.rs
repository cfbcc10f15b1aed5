//! Maps that are looked into with every request.
//!
//! The standard library's hasher resists a stranger who chooses the keys of a map, at about 60 ns a look. Strangers'
//! words are only looked for here, or entered in bounded numbers; foldhash is seeded anew with every process all the same.

/// A map with a fast hasher. Made by `default`, or collected.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
