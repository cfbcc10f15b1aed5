//! Whole answers on disk, for the day that an idempotency key lasts.
//!
//! One file an answer: the body, then what is known of it, then the length of that and a mark. It gets its name when it is
//! whole, so that a file by that name is never half an answer. Files are readable by this process's user alone, bounded in
//! bytes, and go when their time is over; when there are too many, the oldest go first. Everything here blocks.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use prost::Message as _;
use vector_proto::{id::ExchangeId, tunnel::v1};

/// Stands at a whole answer's end.
const MARK: &[u8; 8] = b"VEKEPT01";

/// Mark and length.
const FOOTER_BYTES: u64 = 12;

/// Largest description of an answer; heads are bounded by what a provider's may be.
const ABOUT_BYTES_MAX: u64 = 1 << 20;

/// The folder of answers.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    bytes_max: u64,
    bytes: AtomicU64,
}

impl Shelf {
    /// The shelf in a folder, which is made when first needed.
    pub(super) fn new(dir: PathBuf, bytes_max: u64) -> Self {
        Self {
            dir,
            bytes_max,
            bytes: AtomicU64::new(0),
        }
    }

    fn path(&self, exchange: ExchangeId, ending: &str) -> PathBuf {
        self.dir.join(format!("{exchange}.{ending}"))
    }

    /// A file for an answer that has begun.
    pub(super) fn create(&self, exchange: ExchangeId) -> io::Result<File> {
        std::fs::create_dir_all(&self.dir)?;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path(exchange, "part"))
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
        file: &File,
        about: &v1::KeptAnswer,
    ) -> io::Result<()> {
        let mut tail = about.encode_to_vec();
        let length = u32::try_from(tail.len()).map_err(io::Error::other)?;
        tail.extend_from_slice(&length.to_le_bytes());
        tail.extend_from_slice(MARK);
        file.write_all_at(&tail, about.body_bytes)?;
        file.sync_all()?;
        std::fs::rename(self.path(exchange, "part"), self.path(exchange, "kept"))?;
        File::open(&self.dir)?.sync_all()?;
        let bytes = about.body_bytes + tail.len() as u64;
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
    ) -> io::Result<Option<(File, v1::KeptAnswer)>> {
        let file = match File::open(self.path(exchange, "kept")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let about = about(&file)?;
        Ok((about.until_unix_ms > unix_ms(now)).then_some((file, about)))
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
            let over = File::open(&path)
                .and_then(|file| about(&file))
                .is_ok_and(|about| about.until_unix_ms <= unix_ms(now));
            match std::fs::metadata(&path) {
                Ok(meta) if !over => {
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

/// Reads what is known of a whole answer.
fn about(file: &File) -> io::Result<v1::KeptAnswer> {
    let broken = || io::Error::new(io::ErrorKind::InvalidData, "no whole answer");
    let length = file.metadata()?.len();
    let footer_at = length.checked_sub(FOOTER_BYTES).ok_or_else(broken)?;
    let mut footer = [0; FOOTER_BYTES as usize];
    file.read_exact_at(&mut footer, footer_at)?;
    let (size, mark) = footer.split_at(4);
    let size = u32::from_le_bytes(size.try_into().map_err(|_| broken())?);
    if mark != MARK || u64::from(size) > ABOUT_BYTES_MAX {
        return Err(broken());
    }
    let at = footer_at.checked_sub(u64::from(size)).ok_or_else(broken)?;
    let mut about = vec![0; size as usize];
    file.read_exact_at(&mut about, at)?;
    let about = v1::KeptAnswer::decode(&about[..]).map_err(|_| broken())?;
    (about.body_bytes == at).then_some(about).ok_or_else(broken)
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
        file.write_all_at(body, 0).unwrap();
        shelf.put(id, &file, &answer(body, until)).unwrap();
        id
    }

    #[test]
    fn an_answer_outlives_the_process_and_half_an_answer_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let shelf = Shelf::new(dir.path().join("answers"), 1 << 20);
        let whole = put(&shelf, b"hello", now + hour);
        let half = ExchangeId::fresh();
        shelf.create(half).unwrap().write_all_at(b"hal", 0).unwrap();
        let shelf = Shelf::new(dir.path().join("answers"), 1 << 20);
        shelf.tidy();
        let (file, about) = shelf.take_down(whole, now).unwrap().unwrap();
        assert_eq!((about.account.as_str(), about.body_bytes), ("acme", 5));
        let mut body = [0; 5];
        file.read_exact_at(&mut body, 0).unwrap();
        assert_eq!(&body, b"hello");
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
        let shelf = Shelf::new(dir.path().to_owned(), 10_000);
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
    }
}
