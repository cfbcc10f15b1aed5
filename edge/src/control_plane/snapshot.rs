//! Snapshots: checked by digest, the last two kept on disk, the newest good one read back at start.

use std::{fs, io, path::Path};

use prost::Message as _;
use ring::digest::{SHA256, digest};
use vector_proto::control::v1;

use super::{
    disk,
    routes::{Fault, Routes},
};

/// Names in the node's state folder: the last one, and the one before it.
const FILE: &str = "snapshot.bin";
const OLDER: &str = "snapshot.old";

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

/// The newest good one on disk, or routes that lead nowhere.
#[must_use]
pub fn load(state_dir: &Path, region: &str) -> Routes {
    // A crash may have left it, whole or not; what it was to replace is still there.
    let _absent = fs::remove_file(state_dir.join(format!("{FILE}.new")));
    if let Some(routes) = read(&state_dir.join(FILE), region) {
        return routes;
    }
    let Some(routes) = read(&state_dir.join(OLDER), region) else {
        return Routes::nowhere(region);
    };
    tracing::warn!(
        revision = routes.revision,
        "routing by the snapshot before the last"
    );
    routes
}

fn read(path: &Path, region: &str) -> Option<Routes> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a snapshot on disk cannot be read");
            return None;
        }
    };
    let routes = v1::Snapshot::decode(&bytes[..])
        .map_err(|error| error.to_string())
        .and_then(|snapshot| check(&snapshot, region).map_err(|error| error.to_string()));
    routes
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), error, "a snapshot on disk is damaged"),
        )
        .ok()
}

/// Keeps a snapshot on disk, whole or not at all, and the one before it.
///
/// # Errors
/// What the file system says.
pub fn save(state_dir: &Path, snapshot: &v1::Snapshot) -> io::Result<()> {
    let (file, older) = (state_dir.join(FILE), state_dir.join(OLDER));
    // A second name for the last one: it is there the whole time, whenever this ends.
    if file.exists() {
        let _absent = fs::remove_file(&older);
        fs::hard_link(&file, &older)?;
    }
    disk::put(state_dir, FILE, &snapshot.encode_to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(revision: u64) -> v1::Snapshot {
        let mut snapshot = v1::Snapshot {
            revision,
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
        let revision = || load(dir.path(), "eu").revision;
        assert_eq!(revision(), 0);
        for number in 7..=9 {
            save(dir.path(), &sealed(number)).unwrap();
            assert_eq!(revision(), number);
        }
        // A crash in the middle of the next one.
        let new = dir.path().join("snapshot.bin.new");
        fs::write(&new, b"half").unwrap();
        assert_eq!((revision(), new.exists()), (9, false));
        let bytes = fs::read(dir.path().join(FILE)).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(dir.path().join(FILE), damaged).unwrap();
            assert_eq!(revision(), 8, "byte {at}");
            fs::write(dir.path().join(FILE), &bytes[..at]).unwrap();
            assert_eq!(revision(), 8, "cut at {at}");
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(revision(), 8);
        fs::write(dir.path().join(OLDER), b"").unwrap();
        assert_eq!(revision(), 0);
        save(dir.path(), &sealed(10)).unwrap();
        assert_eq!(revision(), 10);
    }

    #[test]
    fn a_changed_snapshot_is_rejected() {
        let mut snapshot = sealed(9);
        snapshot.revision = 10;
        assert_eq!(check(&snapshot, "eu").err(), Some(Rejection::Digest));
    }
}
