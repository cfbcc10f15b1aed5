//! What the operating system says of this process, read when metrics are asked for.

use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use std::{fs, sync::atomic::AtomicU64};

/// Clock ticks a second in `/proc`, fixed by Linux's ABI.
const TICKS: f64 = 100.0;

#[derive(Debug, Default)]
pub(super) struct Process {
    memory: Gauge<u64, AtomicU64>,
    cpu: Gauge<f64, AtomicU64>,
    files: Gauge<u64, AtomicU64>,
}

impl Process {
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
    }
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
}
