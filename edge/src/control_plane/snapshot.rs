//! Snapshots: checked by digest, the last two kept on disk, the newest good one read back at start.

use std::{collections::VecDeque, fs, io, path::Path};

use bytes::Bytes;
use prost::Message as _;
use ring::digest::{SHA256, digest};
use vector_proto::control::{
    delta::{self, Misfit},
    v1,
};

use super::{
    disk,
    routes::{Fault, Routes},
};

/// Names in the node's state folder: the last one, and the one before it.
const FILE: &str = "snapshot.bin";
const OLDER: &str = "snapshot.old";

/// Largest snapshot that a node takes: 1,000 nodes and 24,000 paths are about 3 MiB.
pub const SNAPSHOT_BYTES_MAX: usize = 64 << 20;

/// A digest of SHA-256 as a field of a snapshot: tag, length, and itself.
const DIGEST_FIELD_BYTES: usize = 2 + 32;

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

/// A snapshot that is good for this node.
#[derive(Debug)]
pub struct Checked {
    /// What the node routes by.
    pub routes: Routes,
    /// As control made it, for the disk and for the next delta.
    pub encoded: Bytes,
}

/// Checks a snapshot and compiles it for this node.
///
/// # Errors
/// [`Rejection`]; the snapshot in force stays.
pub fn check(snapshot: &v1::Snapshot, region: &str) -> Result<Checked, Rejection> {
    let encoded: Bytes = snapshot.encode_to_vec().into();
    // The digest is the last field, and covers all before it.
    let bare = encoded.len().checked_sub(DIGEST_FIELD_BYTES);
    let bare = bare.filter(|_| snapshot.digest.len() == SHA256.output_len());
    match bare {
        Some(bare) if digest(&SHA256, &encoded[..bare]).as_ref() == &snapshot.digest[..] => {
            let routes = Routes::compile(snapshot, region)?;
            Ok(Checked { routes, encoded })
        }
        _ => Err(Rejection::Digest),
    }
}

/// A snapshot, or a delta, on its way in pieces.
#[derive(Debug, Default)]
pub struct Parts {
    held: Vec<u8>,
    delta: bool,
}

/// What the pieces were of.
#[derive(Debug, PartialEq)]
pub enum Put {
    /// All of the routes.
    Snapshot(v1::Snapshot),
    /// What is different.
    Delta(v1::SnapshotDelta),
}

/// Why pieces make no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum BadParts {
    /// One that does not follow the one before it.
    #[error("a piece at byte {offset} of {bytes} came after {held} bytes")]
    Order {
        /// Where it says that it stands.
        offset: u64,
        /// Of how much.
        bytes: u64,
        /// What was there.
        held: usize,
    },
    /// More than a node takes.
    #[error("{0} bytes are more than the {SNAPSHOT_BYTES_MAX} that a node takes")]
    TooLarge(u64),
    /// Together they are none.
    #[error("not to be read: {0}")]
    Unreadable(#[from] prost::DecodeError),
}

impl Parts {
    /// Takes the next piece. Answers what they were of with the last one.
    ///
    /// # Errors
    /// [`BadParts`]; nothing is kept then.
    pub fn take(&mut self, part: &v1::SnapshotPart) -> Result<Option<Put>, BadParts> {
        if part.offset == 0 || part.delta != self.delta {
            self.held.clear();
            self.delta = part.delta;
        }
        let mut held = std::mem::take(&mut self.held);
        if part.bytes > SNAPSHOT_BYTES_MAX as u64 {
            return Err(BadParts::TooLarge(part.bytes));
        }
        let after = held.len() as u64 + part.data.len() as u64;
        if part.offset != held.len() as u64 || after > part.bytes || part.data.is_empty() {
            return Err(BadParts::Order {
                offset: part.offset,
                bytes: part.bytes,
                held: held.len(),
            });
        }
        held.extend_from_slice(&part.data);
        if after < part.bytes {
            self.held = held;
            return Ok(None);
        }
        Ok(Some(match part.delta {
            true => Put::Delta(v1::SnapshotDelta::decode(&held[..])?),
            false => Put::Snapshot(v1::Snapshot::decode(&held[..])?),
        }))
    }
}

/// Deltas that wait for one snapshot to be put in force. A node that is further behind is told the whole.
const DELTAS_MAX: usize = 64;

/// What came of routes while others were put in force.
#[derive(Debug, Default)]
pub struct News {
    whole: Option<v1::Snapshot>,
    deltas: VecDeque<v1::SnapshotDelta>,
    /// It came, and could not be read.
    unreadable: Option<String>,
}

impl News {
    pub(super) fn whole(snapshot: v1::Snapshot) -> Self {
        Self {
            whole: Some(snapshot),
            ..Self::default()
        }
    }

    pub(super) fn unreadable(why: String) -> Self {
        Self {
            unreadable: Some(why),
            ..Self::default()
        }
    }

    pub(super) fn then(&mut self, delta: v1::SnapshotDelta) {
        if self.deltas.len() == DELTAS_MAX {
            // The rest then fits nothing.
            (self.whole, _) = (None, self.deltas.pop_front());
        }
        self.deltas.push_back(delta);
    }

    /// Revision and digest of what comes out of it; or why nothing does.
    pub(super) fn target(&self) -> Result<(u64, Bytes), &str> {
        if let Some(why) = &self.unreadable {
            return Err(why);
        }
        let whole = self.whole.as_ref();
        let whole = whole.map(|snapshot| (snapshot.revision, snapshot.digest.clone()));
        let last = self.deltas.back();
        let last = last.map(|delta| (delta.revision, delta.digest.clone()));
        Ok(last.or(whole).unwrap_or_default())
    }

    /// The snapshot that it makes, of its own whole one or of the one in force, as [`Checked::encoded`] has it; empty
    /// stands for none. Steps that the one in force has made already, told by another replica, are passed over.
    ///
    /// # Errors
    /// [`Misfit`]: the whole snapshot is needed.
    pub(super) fn after(self, in_force: &Bytes) -> Result<v1::Snapshot, Misfit> {
        let target = self.deltas.back().map(|delta| delta.digest.clone());
        let mut held = match self.whole {
            Some(whole) => whole,
            None => v1::Snapshot::decode(in_force.clone()).map_err(|_| Misfit::Other)?,
        };
        for delta in self.deltas {
            if (held.revision, &held.digest) == (delta.from, &delta.from_digest) {
                held = delta::apply(held, delta)?;
            }
        }
        match target {
            Some(target) if target != held.digest => Err(Misfit::Other),
            _ => Ok(held),
        }
    }
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
    let checked = v1::Snapshot::decode(&bytes[..])
        .map_err(|error| error.to_string())
        .and_then(|snapshot| check(&snapshot, region).map_err(|error| error.to_string()));
    checked
        .map(|checked| checked.routes)
        .inspect_err(
            |error| tracing::warn!(path = %path.display(), error, "a snapshot on disk is damaged"),
        )
        .ok()
}

/// Keeps a snapshot on disk, whole or not at all, and the one before it. A disk that refuses it changes neither.
///
/// # Errors
/// What the file system says.
pub fn save(state_dir: &Path, encoded: &[u8]) -> io::Result<()> {
    let (file, older) = (state_dir.join(FILE), state_dir.join(OLDER));
    disk::put_after(state_dir, FILE, encoded, || {
        if !file.exists() {
            return Ok(());
        }
        // A second name for the last one: it is there the whole time, whenever this ends.
        let link = state_dir.join(format!("{OLDER}.new"));
        let _absent = fs::remove_file(&link);
        fs::hard_link(&file, &link)?;
        fs::rename(&link, &older)
    })
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
            save(dir.path(), &sealed(number).encode_to_vec()).unwrap();
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
        save(dir.path(), &sealed(10).encode_to_vec()).unwrap();
        assert_eq!(revision(), 10);
    }

    #[test]
    fn a_disk_that_refuses_the_next_snapshot_leaves_the_last_two_alone() {
        let dir = tempfile::tempdir().unwrap();
        for number in 7..=8 {
            save(dir.path(), &sealed(number).encode_to_vec()).unwrap();
        }
        // A folder stands where the file would be written.
        let new = dir.path().join("snapshot.bin.new");
        fs::create_dir(&new).unwrap();
        save(dir.path(), &sealed(9).encode_to_vec()).unwrap_err();
        fs::remove_dir(&new).unwrap();
        assert_eq!(load(dir.path(), "eu").revision, 8);
        fs::write(dir.path().join(FILE), b"damaged").unwrap();
        assert_eq!(load(dir.path(), "eu").revision, 7);
    }

    #[test]
    fn pieces_make_a_snapshot_in_their_order_and_in_no_other() {
        let whole = Bytes::from(sealed(7).encode_to_vec());
        let part = |from: usize, to: usize| v1::SnapshotPart {
            bytes: whole.len() as u64,
            offset: from as u64,
            data: whole.slice(from..to),
            delta: false,
        };
        let mut parts = Parts::default();
        assert!(matches!(parts.take(&part(0, 5)), Ok(None)));
        assert!(
            matches!(parts.take(&part(0, 9)), Ok(None)),
            "it begins anew"
        );
        let last = part(9, whole.len());
        assert_eq!(parts.take(&last).unwrap(), Some(Put::Snapshot(sealed(7))));
        for bad in [
            part(9, 12),
            part(0, 0),
            v1::SnapshotPart {
                bytes: 4,
                ..part(0, 5)
            },
        ] {
            let refused = parts.take(&bad);
            assert!(
                matches!(refused, Err(BadParts::Order { .. })),
                "{refused:?}"
            );
        }
        let huge = v1::SnapshotPart {
            bytes: u64::MAX,
            ..part(0, 5)
        };
        assert!(matches!(parts.take(&huge), Err(BadParts::TooLarge(_))));
        let noise = v1::SnapshotPart {
            bytes: 1,
            offset: 0,
            data: Bytes::from_static(&[255]),
            delta: false,
        };
        assert!(matches!(parts.take(&noise), Err(BadParts::Unreadable(_))));
    }

    #[test]
    fn pieces_of_a_delta_make_a_delta_and_end_those_of_a_snapshot() {
        let delta = v1::SnapshotDelta {
            from: 7,
            revision: 8,
            ..v1::SnapshotDelta::default()
        };
        let (snapshot, encoded) = (sealed(7).encode_to_vec(), delta.encode_to_vec());
        let part = |of: &Vec<u8>, from: usize, to: usize, delta: bool| v1::SnapshotPart {
            bytes: of.len() as u64,
            offset: from as u64,
            data: Bytes::copy_from_slice(&of[from..to]),
            delta,
        };
        let mut parts = Parts::default();
        let mut take = |part| parts.take(&part);
        assert!(matches!(take(part(&snapshot, 0, 2, false)), Ok(None)));
        assert!(matches!(take(part(&encoded, 0, 2, true)), Ok(None)));
        let whole = take(part(&encoded, 2, encoded.len(), true));
        assert_eq!(whole.unwrap(), Some(Put::Delta(delta)));
        // One is not continued by the other.
        assert!(matches!(take(part(&snapshot, 0, 2, false)), Ok(None)));
        let other = take(part(&encoded, 2, encoded.len(), true));
        assert!(matches!(other, Err(BadParts::Order { .. })), "{other:?}");
    }

    #[test]
    fn deltas_are_for_what_control_has_put_in_force_and_for_nothing_else() {
        let delta = |from, to| delta::difference(&sealed(from), &sealed(to));
        let encoded = |revision| check(&sealed(revision), "eu").unwrap().encoded;
        let news = |deltas: &[(u64, u64)]| {
            let mut news = News::default();
            for &(from, to) in deltas {
                news.then(delta(from, to));
            }
            news
        };
        let three = [(7, 8), (8, 9), (9, 10)];
        assert_eq!(news(&three).target().unwrap().0, 10);
        for held in [7, 8, 9] {
            assert_eq!(
                news(&three).after(&encoded(held)),
                Ok(sealed(10)),
                "from {held}"
            );
        }
        let cut = encoded(7).slice(..3);
        for held in [encoded(6), Bytes::new(), cut] {
            assert_eq!(news(&three).after(&held), Err(Misfit::Other));
        }
        assert_eq!(
            news(&[(7, 8), (9, 10)]).after(&encoded(7)),
            Err(Misfit::Other)
        );
        let mut whole = News::whole(sealed(7));
        whole.then(delta(7, 8));
        assert_eq!(whole.after(&Bytes::new()), Ok(sealed(8)));
        assert_eq!(News::unreadable("bad".into()).target(), Err("bad"));
    }

    #[test]
    fn a_node_that_is_far_behind_asks_for_the_whole() {
        let mut news = News::whole(sealed(1));
        for revision in 1..=DELTAS_MAX as u64 + 1 {
            news.then(delta::difference(&sealed(revision), &sealed(revision + 1)));
        }
        assert_eq!(news.deltas.len(), DELTAS_MAX);
        assert_eq!(news.after(&Bytes::new()), Err(Misfit::Other));
    }

    #[test]
    fn a_changed_snapshot_is_rejected() {
        let mut snapshot = sealed(9);
        assert!(check(&snapshot, "eu").is_ok());
        snapshot.revision = 10;
        assert_eq!(check(&snapshot, "eu").err(), Some(Rejection::Digest));
        snapshot.digest = Bytes::new();
        assert_eq!(check(&snapshot, "eu").err(), Some(Rejection::Digest));
    }
}
