//! Admitted keys on disk, so that a node that starts without control knows them.
//!
//! A log of what was learned, by digest, each record sealed with a key of this node; never a key itself. Keys are written
//! behind: one that is lost is asked for again. Changes are written before anything else happens, since a key that was
//! revoked must not come back; where that fails, the log is removed. It is written anew when it has grown too much.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
};

use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc;
use vector_proto::control::v1::{KeyPolicy, KeysChanged};

use super::{
    admit::{Admission, Digest},
    disk::{self, Frames},
};
use crate::identity::StateKeys;

const FILE: &str = "keys";

/// Keys that wait to be written. What is beyond is not written, and asked for again after a restart.
const BEHIND_MAX: usize = 4_096;

/// Keys written at once.
const WRITE_MAX: usize = 512;

/// The log is written anew when it is this large, and twice as large as when it was written anew last.
const COMPACT_BYTES_MIN: u64 = 1 << 20;

/// First byte of a record: what it says.
const ADMITTED: u8 = 1;
const CHANGED: u8 = 2;

pub(super) struct Keys {
    dir: PathBuf,
    frames: Frames,
    log: Mutex<Log>,
    behind: mpsc::Sender<Digest>,
}

#[derive(Default)]
struct Log {
    /// None: to be written anew.
    file: Option<File>,
    bytes: u64,
    /// When it was last written anew.
    bytes_then: u64,
}

/// Keys on their way to the disk.
pub(super) type Behind = mpsc::Receiver<Digest>;

impl Keys {
    /// Reads what is on disk into `admission`.
    pub(super) fn load(dir: PathBuf, keys: &StateKeys, admission: &Admission) -> (Self, Behind) {
        let (behind, queue) = mpsc::channel(BEHIND_MAX);
        let kept = Self {
            dir,
            frames: Frames::new(&*keys.key("admitted keys")),
            log: Mutex::default(),
            behind,
        };
        match kept.read(admission) {
            Ok(0) => {}
            Ok(count) => tracing::info!(keys = count, "keys known from a former start"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "the keys on disk cannot be read"),
        }
        (kept, queue)
    }

    fn read(&self, admission: &Admission) -> io::Result<usize> {
        let path = self.dir.join(FILE);
        let bytes = fs::read(&path)?;
        let mut at = 0;
        while let Some((record, taken)) = self.frames.next(&bytes[at..]) {
            match record.split_first() {
                Some((&ADMITTED, record)) => {
                    if let Some((digest, policy)) = record.split_first_chunk::<32>()
                        && let Ok(policy) = KeyPolicy::decode(policy)
                    {
                        admission.remember(*digest, policy.into());
                    }
                }
                Some((&CHANGED, record)) => {
                    if let Ok(changed) = KeysChanged::decode(record) {
                        admission.changed(&changed);
                    }
                }
                // A newer version's word.
                _ => {}
            }
            at += taken;
        }
        if at < bytes.len() && !self.frames.is_torn(&bytes[at..]) {
            // A change may have been in what cannot be read, so that no key before it can be trusted.
            tracing::warn!(path = %path.display(), "the keys on disk are damaged: each is asked for again");
            admission.forget();
            return Ok(0);
        }
        let file = fs::OpenOptions::new().write(true).open(&path)?;
        // What a crash tore was not answered for: control tells that change again.
        file.set_len(at as u64)?;
        *self.log.lock() = Log {
            file: Some(file),
            bytes: at as u64,
            bytes_then: at as u64,
        };
        Ok(admission.count())
    }

    /// Has a key written, soon.
    pub(super) fn admitted(&self, digest: Digest) {
        // Too many at once: it is asked for again.
        let _ = self.behind.try_send(digest);
    }

    /// Writes a change, durably. Blocks.
    pub(super) fn changed(&self, changed: &KeysChanged, admission: &Admission) {
        let mut log = self.log.lock();
        let mut bytes = Vec::new();
        self.push_change(changed, &mut bytes);
        if let Err(error) = self.write(&mut log, &bytes, admission) {
            self.give_up(&mut log, &error);
        }
    }

    /// Writes keys as they come. Ends with the node.
    pub(super) async fn write_behind(
        self: Arc<Self>,
        mut queue: Behind,
        admission: Arc<Admission>,
    ) {
        let mut digests = Vec::new();
        while queue.recv_many(&mut digests, WRITE_MAX).await > 0 {
            let (keys, admission) = (Arc::clone(&self), Arc::clone(&admission));
            let some = std::mem::take(&mut digests);
            // A write that panicked has written nothing.
            let _ = tokio::task::spawn_blocking(move || keys.write_some(&some, &admission)).await;
        }
    }

    fn write_some(&self, digests: &[Digest], admission: &Admission) {
        let mut log = self.log.lock();
        let mut bytes = Vec::new();
        for digest in digests {
            // Looked up with the log in hand: a key that was revoked since is gone here, or its change is written behind it.
            if let Some(policy) = admission.cached(digest) {
                self.push_key(digest, &policy, &mut bytes);
            }
        }
        if let Err(error) = self.write(&mut log, &bytes, admission) {
            self.give_up(&mut log, &error);
        }
    }

    fn write(&self, log: &mut Log, bytes: &[u8], admission: &Admission) -> io::Result<()> {
        let grown = log.bytes > COMPACT_BYTES_MIN.max(2 * log.bytes_then);
        if log.file.is_none() || grown {
            self.write_anew(log, admission)?;
        }
        if let Some(file) = &log.file {
            file.write_all_at(bytes, log.bytes)?;
            file.sync_data()?;
            log.bytes += bytes.len() as u64;
        }
        Ok(())
    }

    /// All that is known now, and how far changes are known.
    fn write_anew(&self, log: &mut Log, admission: &Admission) -> io::Result<()> {
        let mut bytes = Vec::new();
        let known = KeysChanged {
            revision: admission.revision(),
            ..KeysChanged::default()
        };
        self.push_change(&known, &mut bytes);
        admission.each(|digest, policy| self.push_key(digest, policy, &mut bytes));
        disk::put(&self.dir, FILE, &bytes)?;
        let file = fs::OpenOptions::new()
            .write(true)
            .open(self.dir.join(FILE))?;
        let bytes = bytes.len() as u64;
        *log = Log {
            file: Some(file),
            bytes,
            bytes_then: bytes,
        };
        Ok(())
    }

    /// Without the log no key that was revoked can come back.
    fn give_up(&self, log: &mut Log, error: &io::Error) {
        *log = Log::default();
        let removed = fs::remove_file(self.dir.join(FILE));
        let removed = removed.is_ok() || !self.dir.join(FILE).exists();
        tracing::error!(%error, removed, "admitted keys cannot be kept on disk; after a restart they are asked for again");
    }

    fn push_key(&self, digest: &Digest, policy: &KeyPolicy, bytes: &mut Vec<u8>) {
        let mut record = Vec::with_capacity(33 + policy.encoded_len());
        record.push(ADMITTED);
        record.extend_from_slice(digest);
        record.extend_from_slice(&policy.encode_to_vec());
        self.frames.push(&record, bytes);
    }

    fn push_change(&self, changed: &KeysChanged, bytes: &mut Vec<u8>) {
        let mut record = vec![CHANGED];
        record.extend_from_slice(&changed.encode_to_vec());
        self.frames.push(&record, bytes);
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node {
        admission: Arc<Admission>,
        keys: Keys,
        queue: Behind,
    }

    fn start(dir: &std::path::Path, secret: &[u8]) -> Node {
        let admission = Arc::new(Admission::default());
        let (keys, queue) = Keys::load(dir.into(), &StateKeys::of(secret), &admission);
        Node {
            admission,
            keys,
            queue,
        }
    }

    impl Node {
        fn admit(&self, digests: &[u8]) {
            for at in digests {
                let policy = KeyPolicy {
                    key: format!("k{at}"),
                    account: "a".into(),
                    ..KeyPolicy::default()
                };
                self.admission.remember([*at; 32], policy.into());
            }
            let digests: Vec<Digest> = digests.iter().map(|at| [*at; 32]).collect();
            self.keys.write_some(&digests, &self.admission);
        }

        fn change(&self, keys: &[&str], revision: u64) {
            let changed = KeysChanged {
                keys: keys.iter().map(ToString::to_string).collect(),
                revision,
                ..KeysChanged::default()
            };
            self.admission.changed(&changed);
            self.keys.changed(&changed, &self.admission);
        }

        fn knows(&self, at: u8) -> bool {
            self.admission.cached(&[at; 32]).is_some()
        }
    }

    #[test]
    fn keys_and_what_changed_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), b"s");
        node.admit(&[1, 2, 3]);
        node.change(&["k2"], 9);
        node.admit(&[4]);
        let node = start(dir.path(), b"s");
        let known: Vec<u8> = (1..=5).filter(|at| node.knows(*at)).collect();
        assert_eq!((known, node.admission.revision()), (vec![1, 3, 4], 9));
        // A key that is learned again after its change is known again.
        node.admit(&[2]);
        let node = start(dir.path(), b"s");
        assert!(node.knows(2) && node.admission.revision() == 9);
        let everything = KeysChanged {
            all: true,
            revision: 10,
            ..KeysChanged::default()
        };
        node.admission.changed(&everything);
        node.keys.changed(&everything, &node.admission);
        assert_eq!(start(dir.path(), b"s").admission.count(), 0);
    }

    #[test]
    fn a_key_that_changed_while_it_waited_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let mut node = start(dir.path(), b"s");
        node.admit(&[1]);
        node.keys.admitted([1; 32]);
        node.change(&["k1"], 5);
        let waited = node.queue.try_recv().unwrap();
        node.keys.write_some(&[waited], &node.admission);
        assert!(!start(dir.path(), b"s").knows(1));
    }

    #[test]
    fn no_damage_and_no_other_hand_makes_a_revoked_key_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let node = start(dir.path(), b"s");
        node.admit(&[1, 2]);
        node.change(&["k1"], 3);
        let changed = fs::metadata(&path).unwrap().len() as usize;
        node.admit(&[3]);
        let bytes = fs::read(&path).unwrap();
        // A crash tears what was written last, and nothing before it.
        for cut in changed..bytes.len() {
            for filled in [0, bytes.len() - cut] {
                fs::write(&path, [&bytes[..cut], &vec![0; filled]].concat()).unwrap();
                let node = start(dir.path(), b"s");
                let known = (node.knows(1), node.knows(2), node.knows(3));
                assert_eq!(known, (false, true, false), "cut at {cut}, {filled} zeros");
                node.admit(&[4]);
                assert_eq!(start(dir.path(), b"s").admission.count(), 2);
            }
        }
        for at in 0..changed {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                fs::write(&path, damaged).unwrap();
                assert_eq!(start(dir.path(), b"s").admission.count(), 0, "byte {at}");
            }
        }
        fs::write(&path, &bytes).unwrap();
        assert_eq!(start(dir.path(), b"another node").admission.count(), 0);
        assert_eq!(start(dir.path(), b"s").admission.count(), 2);
    }

    #[test]
    fn the_log_is_written_anew_before_it_is_much_larger_than_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), b"s");
        for _ in 0..120 {
            node.admit(&[1; 100]);
        }
        let bytes = fs::metadata(dir.path().join(FILE)).unwrap().len();
        assert!(bytes <= COMPACT_BYTES_MIN + 10_000, "{bytes}");
        assert!(start(dir.path(), b"s").knows(1));
    }

    #[test]
    fn where_a_change_cannot_be_written_no_key_is_left_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(dir.path(), b"s");
        node.admit(&[1, 2]);
        // Opened for reading only: every write fails.
        node.keys.log.lock().file = Some(File::open(dir.path().join(FILE)).unwrap());
        node.change(&["k1"], 4);
        assert!(!dir.path().join(FILE).exists());
        // The next write brings back what is known, and no more.
        node.admit(&[3]);
        let node = start(dir.path(), b"s");
        assert_eq!(
            (node.knows(1), node.knows(2), node.knows(3)),
            (false, true, true)
        );
        assert_eq!(node.admission.revision(), 4);
    }
}
