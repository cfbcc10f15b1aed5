//! What the emulator needs of Linux: namespaces, TUN devices, clocks, and how busy the machine was. No unsafe code:
//! `ip` of iproute2, `tappers` and `rustix` have what the standard library lacks.

use std::{
    fs::{self, File},
    num::NonZeroU64,
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, anyhow, bail};
use rustix::{
    thread::{LinkNameSpaceType, move_into_link_name_space, set_current_timer_slack},
    time::{ClockId, clock_gettime},
};
use tappers::{Interface, linux::Tun};

/// The device by which a host is connected.
pub(crate) const DEVICE: &str = "wan0";

/// The kernel's tick for processor time, in ms (`USER_HZ` is 100 on every Linux we meet).
const TICK_MS: u64 = 10;

/// `CLOCK_MONOTONIC`, which Rust's `Instant` and Python's `time.monotonic_ns()` read too: times compare across
/// processes.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

/// Nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// Refuses early what could only fail later.
pub(crate) fn check() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("namespaces and TUN devices need root: run it with sudo");
    }
    if !Path::new("/dev/net/tun").exists() {
        bail!(
            "/dev/net/tun is missing: load the module `tun`, or allow the device to this container"
        );
    }
    ip(&["-V"]).map(drop)
}

/// Runs `ip`.
pub(crate) fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| anyhow!("`ip` cannot be run ({error}): install iproute2"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Does something on a thread of its own in a namespace. Sockets and devices opened there stay there.
pub(crate) fn within<T: Send>(
    namespace: &str,
    what: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let enter = || {
        let path = Path::new("/run/netns").join(namespace);
        let file = File::open(&path).with_context(|| format!("no namespace {namespace}"))?;
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(file.as_fd(), kind).context("cannot enter a namespace")
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| enter().and_then(|()| what()));
        thread
            .join()
            .map_err(|_| anyhow!("a thread has panicked"))?
    })
}

/// Makes the TUN device of the thread's namespace; it goes when this is dropped. One packet a read or write.
pub(crate) fn open_tun() -> anyhow::Result<Tun> {
    let name = Interface::new(DEVICE)?;
    let tun = Tun::create_named(name).context("cannot make a TUN device")?;
    tun.set_nonblocking(true)?;
    Ok(tun)
}

/// Sets a kernel setting of the thread's namespace.
pub(crate) fn set_sysctl(key: &str, value: &str) -> anyhow::Result<()> {
    let path = Path::new("/proc/sys").join(key.replace('.', "/"));
    fs::write(path, value).with_context(|| {
        let why = if key == "net.ipv4.tcp_congestion_control" {
            ": a namespace may use those of the machine's net.ipv4.tcp_allowed_congestion_control"
        } else {
            ""
        };
        format!("sysctl {key} = {value}{why}")
    })
}

/// Has this thread woken on time: no timer slack, and before all ordinary work. Tells whether the latter was granted.
pub(crate) fn sharpen() -> bool {
    // Refused, the slack is 50 us as for everybody.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt")
        .args(["--fifo", "--pid", "1", &thread])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// Processor time of this process so far, in ms.
pub(crate) fn own_cpu_ms() -> u64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = text.rsplit_once(") ").map_or("", |(_, after)| after);
    let fields = after.split(' ').skip(11).take(2);
    fields
        .filter_map(|field| field.parse::<u64>().ok())
        .sum::<u64>()
        * TICK_MS
}

/// What the machine did since it was started, summed over its processors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub(crate) all_ms: u64,
    pub(crate) idle_ms: u64,
    /// Taken by the hypervisor for others. Packets are late by milliseconds then.
    pub(crate) stolen_ms: u64,
}

impl Work {
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks = line.split_whitespace().skip(1).take(8);
        let ms: Vec<u64> = ticks
            .filter_map(|tick| Some(tick.parse::<u64>().ok()? * TICK_MS))
            .collect();
        match ms.as_slice() {
            [_, _, _, idle, waiting, _, _, stolen] => Self {
                all_ms: ms.iter().sum(),
                idle_ms: idle + waiting,
                stolen_ms: *stolen,
            },
            _ => Self::default(),
        }
    }
}

/// Packets that the kernel dropped as nobody read a host's device in time: losses that no line asked for.
pub(crate) fn device_drops(namespace: &str) -> Option<u64> {
    let read = || Ok(fs::read_to_string("/proc/thread-self/net/dev")?);
    let text = within(namespace, read).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(DEVICE)?.strip_prefix(':'))?;
    line.split_whitespace().nth(11)?.parse().ok()
}
