//! Whole answers on disk, for the day that an idempotency key lasts.
//!
//! One file an answer, sealed for this node alone (`sealed`): the body, then what is known of it. It gets its name when it is
//! whole, so that a file by that name is never half an answer. Files are readable by this process's user alone, bounded in
//! bytes, and go when their time is over or nobody can read them; when there are too many, the oldest go first. Everything
//! here blocks.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use prost::Message as _;
use vector_proto::{id::ExchangeId, tunnel::v1};

use super::sealed::{Keys, Sealed};

/// The folder of answers.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    bytes_max: u64,
    bytes: AtomicU64,
    keys: Keys,
}

impl Shelf {
    /// The shelf in a folder, which is made when first needed.
    pub(super) fn new(dir: PathBuf, bytes_max: u64, keys: Keys) -> Self {
        Self {
            dir,
            bytes_max,
            bytes: AtomicU64::new(0),
            keys,
        }
    }

    fn path(&self, exchange: ExchangeId, ending: &str) -> PathBuf {
        self.dir.join(format!("{exchange}.{ending}"))
    }

    /// A file for an answer that has begun.
    pub(super) fn create(&self, exchange: ExchangeId) -> io::Result<Sealed> {
        std::fs::create_dir_all(&self.dir)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(exchange, "part"))?;
        Sealed::begin(file, &self.keys, exchange)
    }

    /// Forgets a file that [`Self::create`] made.
    pub(super) fn discard(&self, exchange: ExchangeId) {
        // It may never have been made.
        let _ = std::fs::remove_file(self.path(exchange, "part"));
    }

    /// Puts a whole answer on the shelf, durably. `file` holds the body.
    pub(super) fn put(
        &self,
        exchange: ExchangeId,
        file: &Sealed,
        about: &v1::KeptAnswer,
    ) -> io::Result<()> {
        let bytes = file.finish(&about.encode_to_vec(), about.body_bytes)?;
        std::fs::rename(self.path(exchange, "part"), self.path(exchange, "kept"))?;
        File::open(&self.dir)?.sync_all()?;
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bytes_max {
            self.sweep(SystemTime::now());
        }
        Ok(())
    }

    /// An answer that is on the shelf and whose time is not over.
    pub(super) fn take_down(
        &self,
        exchange: ExchangeId,
        now: SystemTime,
    ) -> io::Result<Option<(Sealed, v1::KeptAnswer)>> {
        let file = match File::open(self.path(exchange, "kept")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let (file, about) = self.open(file, exchange)?;
        Ok((about.until_unix_ms > unix_ms(now)).then_some((file, about)))
    }

    /// A whole answer, and what is known of it. `InvalidData` if it is none, or another node's.
    fn open(&self, file: File, exchange: ExchangeId) -> io::Result<(Sealed, v1::KeptAnswer)> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "no whole answer");
        let sealed = Sealed::open(file, &self.keys, exchange)?;
        let about = v1::KeptAnswer::decode(sealed.about()?).map_err(|_| broken())?;
        if !sealed.holds(about.body_bytes)? {
            return Err(broken());
        }
        Ok((sealed, about))
    }

    /// Whether a file is of no use any more: its time is over, or nobody can read it.
    fn is_over(&self, path: &Path, now: SystemTime) -> bool {
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(exchange) = name.and_then(|name| name.parse().ok()) else {
            return true;
        };
        let opened = File::open(path).and_then(|file| self.open(file, exchange));
        match opened {
            Ok((_, about)) => about.until_unix_ms <= unix_ms(now),
            Err(error) => error.kind() == io::ErrorKind::InvalidData,
        }
    }

    /// Removes what a process before this one has left unfinished.
    pub(super) fn tidy(&self) {
        for path in self.files("part") {
            // Gone is what it is meant to be.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Removes what is too old, and the oldest of what is too much. Counts the rest.
    pub(super) fn sweep(&self, now: SystemTime) {
        let mut kept: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for path in self.files("kept") {
            match std::fs::metadata(&path) {
                Ok(meta) if !self.is_over(&path, now) => {
                    kept.push((meta.modified().unwrap_or(now), meta.len(), path));
                }
                _ => remove(&path),
            }
        }
        kept.sort_unstable();
        let mut bytes: u64 = kept.iter().map(|(_, bytes, _)| bytes).sum();
        // A tenth of the room is made at once, so that the next answer does not sweep again.
        let wanted = if bytes > self.bytes_max {
            self.bytes_max / 10 * 9
        } else {
            bytes
        };
        for (_, size, path) in &kept {
            if bytes <= wanted {
                break;
            }
            remove(path);
            bytes -= size;
        }
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return Vec::new();
        };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths
            .filter(|path| path.extension().is_some_and(|found| found == ending))
            .collect()
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(%error, "a kept answer cannot be removed");
    }
}

/// Since 1970.
pub(super) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since: Duration = since.unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::StateKeys;

    fn keys() -> Keys {
        Keys::new(&StateKeys::of(b"test"))
    }

    fn answer(body: &[u8], until: SystemTime) -> v1::KeptAnswer {
        v1::KeptAnswer {
            account: "acme".into(),
            body_bytes: body.len() as u64,
            until_unix_ms: unix_ms(until),
            ..v1::KeptAnswer::default()
        }
    }

    fn put(shelf: &Shelf, body: &[u8], until: SystemTime) -> ExchangeId {
        let id = ExchangeId::fresh();
        let file = shelf.create(id).unwrap();
        file.write(0, body).unwrap();
        shelf.put(id, &file, &answer(body, until)).unwrap();
        id
    }

    #[test]
    fn an_answer_outlives_the_process_and_half_an_answer_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let shelf = Shelf::new(dir.path().join("answers"), 1 << 20, keys());
        let whole = put(&shelf, b"hello", now + hour);
        let half = ExchangeId::fresh();
        shelf.create(half).unwrap().write(0, b"hal").unwrap();
        let shelf = Shelf::new(dir.path().join("answers"), 1 << 20, keys());
        shelf.tidy();
        let (file, about) = shelf.take_down(whole, now).unwrap().unwrap();
        assert_eq!((about.account.as_str(), about.body_bytes), ("acme", 5));
        assert_eq!(file.read(0, 5).unwrap(), &b"hello"[..]);
        assert!(shelf.take_down(half, now).unwrap().is_none());
        assert_eq!(shelf.files("part").len(), 0);
        assert!(
            shelf.take_down(whole, now + 2 * hour).unwrap().is_none(),
            "over"
        );
        shelf.sweep(now + 2 * hour);
        assert_eq!(shelf.files("kept").len(), 0);
    }

    #[test]
    fn what_is_too_much_goes_oldest_first_and_what_is_damaged_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let shelf = Shelf::new(dir.path().to_owned(), 10_000, keys());
        let ids: Vec<ExchangeId> = (0..12)
            .map(|_| put(&shelf, &[7; 1_000], now + hour))
            .collect();
        assert!(shelf.bytes.load(Ordering::Relaxed) <= 10_000);
        assert!(shelf.take_down(ids[0], now).unwrap().is_none());
        assert!(shelf.take_down(ids[11], now).unwrap().is_some());
        let path = shelf.path(ids[11], "kept");
        let length = std::fs::metadata(&path).unwrap().len();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length - 1)
            .unwrap();
        assert!(shelf.take_down(ids[11], now).is_err());
        shelf.sweep(now);
        assert!(!path.exists(), "nobody can read it");
    }

    #[test]
    fn what_another_key_sealed_or_none_is_refused_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let shelf = Shelf::new(dir.path().to_owned(), 1 << 20, keys());
        let mine = put(&shelf, b"hello", now + hour);
        // As they were before they were sealed.
        let plain = shelf.path(ExchangeId::fresh(), "kept");
        std::fs::write(&plain, [&[7; 100][..], b"\x04\0\0\0VEKEPT01"].concat()).unwrap();
        let raw = std::fs::read(shelf.path(mine, "kept")).unwrap();
        assert!(
            !raw.windows(5).any(|part| part == b"hello")
                && !raw.windows(4).any(|part| part == b"acme")
        );
        shelf.sweep(now);
        assert!(shelf.take_down(mine, now).unwrap().is_some() && !plain.exists());
        let other = Shelf::new(
            dir.path().to_owned(),
            1 << 20,
            Keys::new(&StateKeys::of(b"other")),
        );
        assert!(other.take_down(mine, now).is_err());
        other.sweep(now);
        assert!(shelf.take_down(mine, now).unwrap().is_none());
    }
}
