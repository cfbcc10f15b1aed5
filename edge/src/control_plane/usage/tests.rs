//! The journal through restarts, damage, and disks that are full.

use super::*;

fn record(number: u64) -> UsageRecord {
    UsageRecord {
        exchange: u128::from(number).to_be_bytes().to_vec().into(),
        account: "a".repeat(300),
        ended_unix_ms: number,
        ..UsageRecord::default()
    }
}

fn delivered(journal: &Journal) -> Vec<u64> {
    let mut numbers = Vec::new();
    loop {
        let batch = journal.batch();
        if batch.records.is_empty() && batch.read.is_none() {
            return numbers;
        }
        numbers.extend(batch.records.iter().map(|record| record.ended_unix_ms));
        journal.done(&batch);
    }
}

fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    let mut files: Vec<_> = entries
        .map(|entry| (entry.path(), entry.metadata().unwrap().len()))
        .collect();
    files.sort();
    files
}

#[test]
fn what_a_process_that_was_killed_had_written_is_delivered_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let path = dir.path().join("usage");
    let count = 40_000;
    let journal = Journal::open(path.clone());
    for number in 0..count {
        journal.append(record(number), now);
    }
    assert!(files(&path).len() >= 3, "several segments");
    let first = journal.batch();
    assert_eq!(first.records.len(), BATCH_MAX);
    journal.done(&first);
    // Killed: nothing of it is told to end.
    std::mem::forget(journal);
    let journal = Journal::open(path.clone());
    journal.append(record(count), now);
    // What was delivered of a segment comes again, nothing is missing, and all is in order.
    assert_eq!(delivered(&journal), (0..=count).collect::<Vec<u64>>());
    assert_eq!(journal.counts.bytes.get(), 0);
    assert!(files(&path).iter().all(|(_, bytes)| *bytes == 0));
    // An empty journal goes on.
    journal.append(record(7), now);
    assert_eq!(delivered(&Journal::open(path)), [7]);
}

#[test]
fn damage_costs_the_rest_of_its_segment_and_a_torn_end_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let journal = Journal::open(dir.path().into());
    for number in 0..30_000 {
        journal.append(record(number), now);
    }
    let (last, bytes) = files(dir.path()).pop().unwrap();
    let torn = fs::OpenOptions::new().write(true).open(last).unwrap();
    torn.set_len(bytes - 5).unwrap();
    let told = delivered(&Journal::open(dir.path().into()));
    assert_eq!(told, (0..29_999).collect::<Vec<u64>>());

    let journal = Journal::open(dir.path().into());
    for number in 0..30_000 {
        journal.append(record(number), now);
    }
    let (first, bytes) = files(dir.path()).swap_remove(0);
    let file = fs::OpenOptions::new().write(true).open(first).unwrap();
    file.write_all_at(b"????", bytes / 2).unwrap();
    let told = delivered(&Journal::open(dir.path().into()));
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]));
    assert_eq!(told.last(), Some(&29_999));
    assert!((20_000..30_000).contains(&told.len()), "{}", told.len());
}

#[test]
fn a_full_journal_keeps_what_it_has_and_memory_takes_the_rest_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let journal = Journal::bounded(dir.path().into(), 100_000);
    let count = 1_000;
    for number in 0..count {
        journal.append(record(number), now);
    }
    assert!(journal.counts.bytes.get() <= 100_000);
    assert!(journal.counts.in_memory.get() > 0);
    assert_eq!(
        journal.counts.disk_faults.get(),
        1,
        "the disk is not asked each time"
    );
    let mut told = delivered(&journal);
    // Room again: what comes next is on disk.
    let later = now + DISK_AGAIN;
    journal.append(record(count), later);
    assert_eq!(journal.counts.in_memory.get(), 0);
    told.extend(delivered(&Journal::open(dir.path().into())));
    assert_eq!(told, (0..=count).collect::<Vec<u64>>());
    assert_eq!(journal.counts.dropped.get(), 0);
}

#[test]
fn a_disk_that_takes_nothing_loses_nothing_up_to_a_bound() {
    // A file stands where the folder should be.
    let dir = tempfile::tempdir().unwrap();
    let blocked = dir.path().join("usage");
    fs::write(&blocked, b"").unwrap();
    let now = Instant::now();
    let journal = Journal::open(blocked.clone());
    for number in 0..MEMORY_MAX as u64 + 3 {
        journal.append(record(number), now);
    }
    assert_eq!(journal.counts.dropped.get(), 3);
    fs::remove_file(&blocked).unwrap();
    journal.append(record(1_000_000), now + DISK_AGAIN);
    assert_eq!(journal.counts.in_memory.get(), 0);
    let told = delivered(&Journal::open(blocked));
    assert_eq!(told.len(), MEMORY_MAX + 1);
}

#[test]
fn records_that_were_not_delivered_stay() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::bounded(dir.path().into(), 0);
    let now = Instant::now();
    for number in 0..3 {
        journal.append(record(number), now);
    }
    let batch = journal.batch();
    assert_eq!((batch.records.len(), batch.read), (3, None));
    journal.put_back(batch);
    assert_eq!(delivered(&journal), [0, 1, 2]);
}
