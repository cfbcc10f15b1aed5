//! Snapshots: checked by digest, kept on disk, read back at start.

use std::{fs, io, path::Path};

use prost::Message as _;
use ring::digest::{SHA256, digest};
use vector_proto::control::v1;

use super::routes::{Fault, Routes};

/// Name in the node's state folder.
const FILE: &str = "snapshot.bin";

/// Largest snapshot that a node takes: 1,000 nodes and 24,000 paths are about 3 MiB.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;

/// Why a snapshot is not put in force.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// Its bytes are not those that control made.
    #[error("the digest does not match")]
    Digest,
    /// It cannot be used.
    #[error(transparent)]
    Fault(#[from] Fault),
}

/// Checks a snapshot and compiles it for this node.
///
/// # Errors
/// [`Rejection`]; the snapshot in force stays.
pub fn check(snapshot: &v1::Snapshot, region: &str) -> Result<Routes, Rejection> {
    let mut bare = snapshot.clone();
    let claimed = std::mem::take(&mut bare.digest);
    if digest(&SHA256, &bare.encode_to_vec()).as_ref() != &claimed[..] {
        return Err(Rejection::Digest);
    }
    Ok(Routes::compile(snapshot, region)?)
}

/// What is on disk, or routes that lead nowhere.
#[must_use]
pub fn load(state_dir: &Path, region: &str) -> Routes {
    let path = state_dir.join(FILE);
    let empty = Routes::nowhere(region);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return empty,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the snapshot on disk cannot be read");
            return empty;
        }
    };
    let routes = v1::Snapshot::decode(&bytes[..])
        .map_err(|error| error.to_string())
        .and_then(|snapshot| check(&snapshot, region).map_err(|error| error.to_string()));
    routes.unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), error, "the snapshot on disk is damaged");
        empty
    })
}

/// Keeps a snapshot on disk, whole or not at all.
///
/// # Errors
/// What the file system says.
pub fn save(state_dir: &Path, snapshot: &v1::Snapshot) -> io::Result<()> {
    let new = state_dir.join("snapshot.new");
    fs::write(&new, snapshot.encode_to_vec())?;
    fs::rename(&new, state_dir.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> v1::Snapshot {
        let mut snapshot = v1::Snapshot {
            revision: 9,
            ..v1::Snapshot::default()
        };
        snapshot.digest = digest(&SHA256, &snapshot.encode_to_vec())
            .as_ref()
            .to_vec()
            .into();
        snapshot
    }

    #[test]
    fn the_last_good_snapshot_survives_a_restart_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path(), "eu").revision, 0);
        save(dir.path(), &sealed()).unwrap();
        assert_eq!(load(dir.path(), "eu").revision, 9);
        let mut bytes = fs::read(dir.path().join(FILE)).unwrap();
        bytes[1] ^= 1;
        fs::write(dir.path().join(FILE), bytes).unwrap();
        assert_eq!(load(dir.path(), "eu").revision, 0);
    }

    #[test]
    fn a_changed_snapshot_is_rejected() {
        let mut snapshot = sealed();
        snapshot.revision = 10;
        assert_eq!(check(&snapshot, "eu").err(), Some(Rejection::Digest));
    }
}
