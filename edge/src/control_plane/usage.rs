//! What exchanges consumed, journalled on disk until control has it.
//!
//! A record is in the kernel's hands before [`Journal::append`] returns, so that it survives this process's end, and on the
//! disk a tenth of a second later, so that it survives the machine's. Segments are read in order, oldest first, and go when
//! control has answered for all of them; one that was half delivered is delivered again, which control counts once.
//! Bounded on disk and, while the disk refuses, in memory; what is beyond is counted and the log says so.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use prost::Message as _;
use tokio::sync::Notify;
use vector_proto::control::v1::UsageRecord;

use super::disk::{self, Frames};

pub(super) mod deliver;

/// A segment is closed at this size: what is delivered twice after a restart, at the worst.
const SEGMENT_BYTES: u64 = 4 << 20;

/// The journal's size: 5 million exchanges without control.
const JOURNAL_BYTES_MAX: u64 = 2 << 30;

/// Records in memory while the disk refuses: at 400 bytes, 40 MB at the worst.
const MEMORY_MAX: usize = 100_000;

/// A disk that refused is tried again this late.
const DISK_AGAIN: Duration = Duration::from_secs(1);

/// Records of one batch, and bytes that are read for one.
const BATCH_MAX: usize = 500;
const READ_BYTES: u64 = 1 << 20;

/// Not a secret: whoever can write the folder has the node's key as well. It tells damage, nothing else.
const SEAL: &[u8] = b"usage";

const ENDING: &str = "usage";

/// What is counted of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts {
    /// Bytes on disk.
    pub(super) bytes: Gauge,
    /// Records in memory only.
    pub(super) in_memory: Gauge,
    /// Records lost, for want of room.
    pub(super) dropped: Counter,
    /// Records that control would never take.
    pub(super) refused: Counter,
    /// Writes that the disk refused.
    pub(super) disk_faults: Counter,
}

pub(super) struct Journal {
    dir: PathBuf,
    frames: Frames,
    bytes_max: u64,
    state: Mutex<State>,
    /// There is something to deliver.
    more: Notify,
    /// There is something that a cut of power would take.
    unsynced: Notify,
    pub(super) counts: Counts,
}

#[derive(Default)]
struct State {
    /// Oldest first; the last one is written while `active` is there.
    segments: VecDeque<Segment>,
    active: Option<File>,
    /// Of the next segment.
    number: u64,
    /// Delivered of the first segment.
    offset: u64,
    /// What the disk did not take.
    memory: VecDeque<UsageRecord>,
    /// The disk refuses until then.
    refuses_until: Option<Instant>,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    bytes: u64,
}

/// Records on their way to control.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) records: Vec<UsageRecord>,
    /// Segment and offset behind them; none for records out of memory.
    read: Option<(u64, u64)>,
}

impl Journal {
    /// The journal in a folder, which is made when first needed. What is there already is delivered first.
    pub(super) fn open(dir: PathBuf) -> Self {
        Self::bounded(dir, JOURNAL_BYTES_MAX)
    }

    fn bounded(dir: PathBuf, bytes_max: u64) -> Self {
        let segments = segments(&dir);
        let counts = Counts::default();
        let bytes = segments.iter().map(|segment| segment.bytes).sum();
        counts.bytes.set(signed(bytes));
        if bytes > 0 {
            tracing::info!(bytes, "usage of a former start is delivered");
        }
        let state = State {
            number: segments.back().map_or(0, |last| last.number + 1),
            segments,
            ..State::default()
        };
        Self {
            dir,
            frames: Frames::new(SEAL),
            bytes_max,
            state: Mutex::new(state),
            more: Notify::new(),
            unsynced: Notify::new(),
            counts,
        }
    }

    /// Keeps a record until control has it.
    pub(super) fn append(&self, record: UsageRecord, now: Instant) {
        let mut frame = Vec::new();
        self.frames.push(&record.encode_to_vec(), &mut frame);
        let mut state = self.state.lock();
        if state.refuses_until.is_none_or(|until| until <= now) {
            match self.write(&mut state, &frame) {
                Ok(()) => {
                    if state.refuses_until.take().is_some() {
                        self.settle_memory(&mut state);
                    }
                    drop(state);
                    self.unsynced.notify_one();
                    self.more.notify_one();
                    return;
                }
                Err(error) => self.refused(&mut state, &error, now),
            }
        }
        if state.memory.len() < MEMORY_MAX {
            state.memory.push_back(record);
            self.counts.in_memory.set(signed(state.memory.len() as u64));
        } else if self.counts.dropped.inc().is_multiple_of(10_000) {
            tracing::error!("usage is lost: the disk refuses it and memory is full");
        }
        drop(state);
        self.more.notify_one();
    }

    fn refused(&self, state: &mut State, error: &io::Error, now: Instant) {
        self.counts.disk_faults.inc();
        if state.refuses_until.is_none() {
            tracing::error!(
                folder = %self.dir.display(),
                %error,
                "usage cannot be journalled: it is kept in memory until it can, and lost if this node ends before"
            );
        }
        state.refuses_until = Some(now + DISK_AGAIN);
    }

    /// What was kept in memory goes to the disk as well, as far as it takes it.
    fn settle_memory(&self, state: &mut State) {
        let mut frame = Vec::new();
        while let Some(record) = state.memory.pop_front() {
            frame.clear();
            self.frames.push(&record.encode_to_vec(), &mut frame);
            if self.write(state, &frame).is_err() {
                state.memory.push_front(record);
                break;
            }
        }
        self.counts.in_memory.set(signed(state.memory.len() as u64));
        tracing::info!("usage is journalled again");
    }

    fn write(&self, state: &mut State, frame: &[u8]) -> io::Result<()> {
        let bytes: u64 = state.segments.iter().map(|segment| segment.bytes).sum();
        if bytes + frame.len() as u64 > self.bytes_max {
            return Err(io::Error::other("the journal is as large as it may be"));
        }
        if state.active.is_none()
            || state
                .segments
                .back()
                .is_none_or(|last| last.bytes >= SEGMENT_BYTES)
        {
            disk::make(&self.dir)?;
            let number = state.number;
            let file = disk::create(&self.path(number))?;
            state.number += 1;
            state.active = Some(file);
            state.segments.push_back(Segment { number, bytes: 0 });
        }
        let (Some(file), Some(last)) = (&state.active, state.segments.back_mut()) else {
            return Err(io::Error::other("no segment"));
        };
        if let Err(error) = file.write_all_at(frame, last.bytes) {
            // What was written of it must not stand before the next one.
            let _ = file.set_len(last.bytes);
            return Err(error);
        }
        last.bytes += frame.len() as u64;
        self.counts.bytes.set(signed(bytes + frame.len() as u64));
        Ok(())
    }

    /// What is to be delivered next. Blocks.
    fn batch(&self) -> Batch {
        let (number, offset, end) = {
            let mut state = self.state.lock();
            let Some(first) = state.segments.front() else {
                return self.remembered(&mut state);
            };
            let (number, end) = (first.number, first.bytes);
            if state.offset >= end {
                return self.remembered(&mut state);
            }
            (number, state.offset, end)
        };
        let read = self.read(number, offset, end);
        let mut batch = Batch {
            read: Some((number, end)),
            ..Batch::default()
        };
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(segment = number, %error, "a segment of usage cannot be read: it is left out");
                return batch;
            }
        };
        let mut at = 0;
        while batch.records.len() < BATCH_MAX
            && let Some((record, taken)) = self.frames.next(&bytes[at..])
        {
            // Our own words; those of a version that cannot be read are nobody's.
            batch.records.extend(UsageRecord::decode(record).ok());
            at += taken;
        }
        if at == 0 {
            tracing::error!(
                segment = number,
                offset,
                end,
                "usage is damaged on disk: the rest of its segment is left out"
            );
            return batch;
        }
        batch.read = Some((number, offset + at as u64));
        batch
    }

    fn remembered(&self, state: &mut State) -> Batch {
        let count = state.memory.len().min(BATCH_MAX);
        let records = state.memory.drain(..count).collect();
        self.counts.in_memory.set(signed(state.memory.len() as u64));
        Batch {
            records,
            read: None,
        }
    }

    fn read(&self, number: u64, offset: u64, end: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from((end - offset).min(READ_BYTES)).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        File::open(self.path(number))?.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Control has these, or will never take them. Blocks.
    fn done(&self, batch: &Batch) {
        let Some((number, offset)) = batch.read else {
            return;
        };
        let mut state = self.state.lock();
        let State {
            segments, active, ..
        } = &mut *state;
        let Some(first) = segments.front_mut().filter(|first| first.number == number) else {
            return;
        };
        if offset < first.bytes {
            state.offset = offset;
            return;
        }
        let is_active = segments.len() == 1 && active.is_some();
        let emptied = is_active && active.as_ref().is_some_and(|file| file.set_len(0).is_ok());
        if emptied {
            if let Some(first) = segments.front_mut() {
                first.bytes = 0;
            }
        } else {
            if is_active {
                *active = None;
            }
            segments.pop_front();
            if let Err(error) = fs::remove_file(self.path(number)) {
                tracing::warn!(segment = number, %error, "a delivered segment of usage cannot be removed");
            }
        }
        state.offset = 0;
        let bytes = state.segments.iter().map(|segment| segment.bytes).sum();
        self.counts.bytes.set(signed(bytes));
    }

    /// Records that were not delivered go back where they came from.
    fn put_back(&self, batch: Batch) {
        if batch.read.is_none() {
            let mut state = self.state.lock();
            for record in batch.records.into_iter().rev() {
                state.memory.push_front(record);
            }
        }
    }

    /// Makes what was written durable. Blocks.
    fn sync(&self) {
        let file = {
            let state = self.state.lock();
            state.active.as_ref().map(File::try_clone)
        };
        let synced = file.map(|file| {
            file?.sync_data()?;
            disk::sync_dir(&self.dir)
        });
        if let Some(Err(error)) = synced {
            self.counts.disk_faults.inc();
            tracing::error!(%error, "usage on disk would not survive a cut of power");
        }
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:016x}.{ENDING}"))
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Journal({})", self.dir.display())
    }
}

/// What a former start left.
fn segments(dir: &Path) -> VecDeque<Segment> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str());
        let number = stem.and_then(|stem| u64::from_str_radix(stem, 16).ok());
        let bytes = entry.metadata().map(|data| data.len());
        if path.extension().is_some_and(|ending| ending == ENDING)
            && let (Some(number), Ok(bytes)) = (number, bytes)
        {
            segments.push(Segment { number, bytes });
        }
    }
    segments.sort_unstable_by_key(|segment| segment.number);
    // An empty one has been delivered.
    segments.retain(|segment| {
        let empty = segment.bytes == 0;
        if empty {
            let _ = fs::remove_file(dir.join(format!("{:016x}.{ENDING}", segment.number)));
        }
        !empty
    });
    segments.into()
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
