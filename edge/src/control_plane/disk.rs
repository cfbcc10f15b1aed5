//! Files that survive a crash and a cut of power: the old one or the new one, never half.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use ring::hmac;

/// Bytes before a record: its length, and what seals it.
const LENGTH_BYTES: usize = 4;
const SEAL_BYTES: usize = 16;

/// Longest record; a length beyond is damage.
const RECORD_BYTES_MAX: usize = 64 << 10;

/// Writes a file of this process's user alone, durably: beside its place, and then renamed.
pub(super) fn put(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    put_after(dir, name, bytes, || Ok(()))
}

/// As [`put`], with something to be done once the new file is whole and before it takes the old one's place.
pub(super) fn put_after(
    dir: &Path,
    name: &str,
    bytes: &[u8],
    whole: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    make(dir)?;
    let beside = dir.join(format!("{name}.new"));
    // Left by a crash, and perhaps with another mode.
    let _absent = fs::remove_file(&beside);
    let write = || {
        let mut file = create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        whole()?;
        fs::rename(&beside, dir.join(name))
    };
    write().inspect_err(|_| {
        // What a full disk took of it is room for others.
        let _absent = fs::remove_file(&beside);
    })?;
    sync_dir(dir)
}

/// A new file, to be written.
pub(super) fn create(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// The folder, made when it is not there.
pub(super) fn make(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

/// Makes names in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Records in a file that only grows. Each is sealed, so that a torn end, damage, and another's words are found.
pub(super) struct Frames(hmac::Key);

impl Frames {
    pub(super) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// Adds a record.
    pub(super) fn push(&self, record: &[u8], into: &mut Vec<u8>) {
        let length = u32::try_from(record.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes();
        into.reserve(LENGTH_BYTES + SEAL_BYTES + record.len());
        into.extend_from_slice(&length);
        into.extend_from_slice(&self.seal(record));
        into.extend_from_slice(record);
    }

    /// The first record, and where the next one begins; `None` at an end, and where it is torn or damaged.
    pub(super) fn next<'b>(&self, bytes: &'b [u8]) -> Option<(&'b [u8], usize)> {
        let (length, rest) = bytes.split_at_checked(LENGTH_BYTES)?;
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        if length > RECORD_BYTES_MAX {
            return None;
        }
        let (seal, rest) = rest.split_at_checked(SEAL_BYTES)?;
        let record = rest.get(..length)?;
        (self.seal(record) == seal).then_some((record, LENGTH_BYTES + SEAL_BYTES + length))
    }

    /// Whether what follows the last good record is an end that a crash left, and not damage with more behind it.
    ///
    /// A crash leaves a beginning of what was written last, perhaps with zeros where the rest should be.
    pub(super) fn is_torn(&self, rest: &[u8]) -> bool {
        let written = rest
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        let length = rest.first_chunk::<LENGTH_BYTES>();
        let length = length.map_or(u32::MAX, |length| u32::from_le_bytes(*length));
        let end = u64::from(length) + (LENGTH_BYTES + SEAL_BYTES) as u64;
        end > written as u64 && !(1..rest.len()).any(|at| self.next(&rest[at..]).is_some())
    }

    fn seal(&self, record: &[u8]) -> [u8; SEAL_BYTES] {
        let mut seal = [0; SEAL_BYTES];
        seal.copy_from_slice(&hmac::sign(&self.0, record).as_ref()[..SEAL_BYTES]);
        seal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_torn_or_changed_end_leaves_a_whole_beginning() {
        let frames = Frames::new(b"k");
        let records: Vec<Vec<u8>> = (0..20_u8).map(|at| vec![at; usize::from(at) * 7]).collect();
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for record in &records {
            frames.push(record, &mut bytes);
            ends.push(bytes.len());
        }
        let read = |mut bytes: &[u8]| {
            let mut read = 0;
            while let Some((record, taken)) = frames.next(bytes) {
                assert_eq!(record, records[read]);
                read += 1;
                bytes = &bytes[taken..];
            }
            read
        };
        for cut in 0..=bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            assert_eq!(read(&bytes[..cut]), whole, "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x11;
            let before = ends.iter().filter(|end| **end <= at).count() - 1;
            assert_eq!(read(&changed), before, "changed at {at}");
        }
        assert!(Frames::new(b"other").next(&bytes).is_none());
    }

    #[test]
    fn a_file_is_replaced_whole_and_what_a_crash_left_is_no_hindrance() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made");
        put(&dir, "a", b"one").unwrap();
        fs::write(dir.join("a.new"), b"half").unwrap();
        put(&dir, "a", b"two").unwrap();
        assert_eq!(fs::read(dir.join("a")).unwrap(), b"two");
        assert!(!dir.join("a.new").exists());
    }
}
