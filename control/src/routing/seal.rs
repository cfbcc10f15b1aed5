//! What is compiled, in bytes: with its revision and its digest, as nodes are told it. Pure.
//!
//! The paths are most of a large snapshot and are encoded once for as long as they are the same; the rest is put around them,
//! so that the bytes are those of the whole message.

use std::sync::Arc;

use bytes::Bytes;
use prost::{
    Message as _,
    encoding::{DecodeContext, decode_key, skip_field},
};
use ring::digest::{SHA256, digest};
use vector_proto::control::v1::Snapshot;

use super::{compile::Compiled, ways::Ways};

/// Number of a snapshot's field `paths`.
const PATHS: u32 = 6;

/// A SHA-256 with its key and its length.
const DIGEST_FIELD_BYTES: usize = 34;

/// A snapshot with its revision and its digest, and the same in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Sealed {
    /// Itself, without its paths.
    pub(super) snapshot: Snapshot,
    pub(super) ways: Arc<Ways>,
    /// What nodes are told: encoded once for all of them.
    pub(super) encoded: Bytes,
}

/// What is compiled, in bytes, without revision and digest.
#[derive(Debug)]
pub(super) struct Bare {
    compiled: Compiled,
    pub(super) encoded: Vec<u8>,
}

impl Compiled {
    /// Bytes of the whole.
    pub(super) fn encoded_len(&self) -> usize {
        self.snapshot.encoded_len() + self.ways.encoded.len()
    }

    pub(super) fn encode(self) -> Bare {
        let paths = &self.ways.encoded;
        let mut encoded = Vec::with_capacity(self.encoded_len());
        let rest = self.snapshot.encode_to_vec();
        let (before, behind) = rest.split_at(place_of_paths(&rest));
        encoded.extend_from_slice(before);
        encoded.extend_from_slice(paths);
        encoded.extend_from_slice(behind);
        Bare {
            compiled: self,
            encoded,
        }
    }

    #[cfg(test)]
    pub(super) fn whole(&self) -> Snapshot {
        whole(&self.snapshot, &self.ways)
    }
}

/// A snapshot with its paths.
pub(super) fn whole(snapshot: &Snapshot, ways: &Ways) -> Snapshot {
    Snapshot {
        paths: ways.paths.clone(),
        ..snapshot.clone()
    }
}

/// Fields are written in the order of their numbers.
fn place_of_paths(encoded: &[u8]) -> usize {
    let mut rest = encoded;
    while !rest.is_empty() {
        let at = encoded.len() - rest.len();
        match decode_key(&mut rest) {
            Ok((number, kind)) if number < PATHS => {
                let skipped = skip_field(kind, number, &mut rest, DecodeContext::default());
                debug_assert!(skipped.is_ok(), "of our own encoding");
            }
            _ => return at,
        }
    }
    encoded.len()
}

impl Bare {
    /// What it says, whatever its revision: two with the same content are the same to every node.
    pub(super) fn content(&self) -> Vec<u8> {
        digest(&SHA256, &self.encoded).as_ref().to_vec()
    }

    /// Gives it its revision and its digest.
    pub(super) fn seal(self, revision: u64) -> Sealed {
        let Compiled { snapshot, ways } = self.compiled;
        let revised = Snapshot {
            revision,
            ..Snapshot::default()
        };
        let mut encoded = revised.encode_to_vec();
        encoded.reserve_exact(self.encoded.len() + DIGEST_FIELD_BYTES);
        encoded.extend_from_slice(&self.encoded);
        // The last field of the message: what stands before it is what it covers.
        let last = Snapshot {
            digest: Bytes::copy_from_slice(digest(&SHA256, &encoded).as_ref()),
            ..Snapshot::default()
        };
        encoded.extend_from_slice(&last.encode_to_vec());
        Sealed {
            snapshot: Snapshot {
                revision,
                digest: last.digest,
                ..snapshot
            },
            ways,
            encoded: encoded.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1::{Model, Path, Revocation};

    use super::*;

    fn compiled(snapshot: Snapshot, paths: usize) -> Compiled {
        let path = |number| Path {
            from_region: "eu".to_owned(),
            egress: format!("egress-{number}"),
            ..Path::default()
        };
        let alone = Snapshot {
            paths: (0..paths).map(path).collect(),
            ..Snapshot::default()
        };
        let ways = Ways {
            encoded: alone.encode_to_vec().into(),
            paths: alone.paths,
        };
        Compiled {
            snapshot,
            ways: ways.into(),
        }
    }

    fn snapshot() -> Snapshot {
        let model = Model {
            name: "m".to_owned(),
            ..Model::default()
        };
        Snapshot {
            models: vec![model],
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_whole_message() {
        let behind = Snapshot {
            revocations: vec![Revocation::default(); 2],
            ..snapshot()
        };
        for (snapshot, paths) in [
            (Snapshot::default(), 0),
            (snapshot(), 0),
            (Snapshot::default(), 3),
            (snapshot(), 300),
            (behind, 3),
        ] {
            let compiled = compiled(snapshot, paths);
            let (whole, length) = (compiled.whole(), compiled.encoded_len());
            let encoded = compiled.encode().encoded;
            assert_eq!(encoded, whole.encode_to_vec());
            assert_eq!(encoded.len(), length);
        }
    }

    #[test]
    fn the_digest_is_of_all_the_rest() {
        let bare = || compiled(snapshot(), 3).encode();
        let said = bare().content();
        let sealed = bare().seal(7);
        let told = whole(&sealed.snapshot, &sealed.ways);
        assert_eq!(told.revision, 7);
        assert_eq!(told.encode_to_vec(), sealed.encoded);
        let mut rest = told.clone();
        rest.digest.clear();
        let of_rest = digest(&SHA256, &rest.encode_to_vec());
        assert_eq!(of_rest.as_ref(), &told.digest[..]);
        rest.revision = 0;
        let of_rest = digest(&SHA256, &rest.encode_to_vec());
        assert_eq!(of_rest.as_ref(), said, "the content has no revision");
        assert_ne!(bare().seal(8).snapshot.digest, told.digest);
    }
}
