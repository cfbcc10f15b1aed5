//! What the operating system says of this process, read when metrics are asked for.

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{OnceLock, atomic::AtomicU64},
};

/// Clock ticks a second in `/proc`, fixed by Linux's ABI.
const TICKS: f64 = 100.0;

#[derive(Debug, Default)]
pub(super) struct Process {
    memory: Gauge<u64, AtomicU64>,
    cpu: Gauge<f64, AtomicU64>,
    files: Gauge<u64, AtomicU64>,
    disk_free: Gauge<u64, AtomicU64>,
    disk: Gauge<u64, AtomicU64>,
    /// Lies on the disk that is looked at.
    folder: OnceLock<PathBuf>,
}

impl Process {
    /// Looks at the disk of this folder from now on. The first word counts.
    pub(super) fn watch_disk(&self, folder: PathBuf) {
        let _ = self.folder.set(folder);
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "process_resident_memory_bytes",
            "Memory in RAM",
            self.memory.clone(),
        );
        registry.register(
            "process_cpu_seconds",
            "CPU time used since the start",
            self.cpu.clone(),
        );
        registry.register(
            "process_open_fds",
            "Open files and sockets",
            self.files.clone(),
        );
        registry.register(
            "vector_disk_free_bytes",
            "What is left of the disk below node.state_dir",
            self.disk_free.clone(),
        );
        registry.register(
            "vector_disk_bytes",
            "Size of the disk below node.state_dir",
            self.disk.clone(),
        );
    }

    /// Reads the current figures; where there is no `/proc`, they stay 0.
    pub(super) fn look(&self) {
        if let Some(bytes) = memory() {
            self.memory.set(bytes);
        }
        if let Some(seconds) = cpu() {
            self.cpu.set(seconds);
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            self.files.set(files.count() as u64);
        }
        if let Some(folder) = self.folder.get() {
            let (free, whole) = disk(folder);
            self.disk_free.set(free);
            self.disk.set(whole);
        }
    }
}

/// Left and whole size of the file system that a folder lies on; 0 where nobody knows.
pub(super) fn disk(folder: &Path) -> (u64, u64) {
    rustix::fs::statvfs(folder).map_or((0, 0), |disk| {
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        (bytes(disk.f_bavail), bytes(disk.f_blocks))
    })
}

fn memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024)
}

fn cpu() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in brackets, which may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory() {
        assert!(memory().unwrap() > 1 << 20);
        assert!(cpu().is_some());
    }

    #[test]
    fn the_disk_of_a_folder_is_shown_once_it_is_watched() {
        let process = Process::default();
        process.look();
        assert_eq!((process.disk_free.get(), process.disk.get()), (0, 0));
        process.watch_disk(std::env::temp_dir());
        process.look();
        assert!(process.disk_free.get() <= process.disk.get() && process.disk.get() > 0);
    }
}
