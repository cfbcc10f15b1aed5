//! Moves packets between the devices of all hosts, each held for as long as its line says. One thread, which sleeps
//! until a packet comes or is due.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};
use tappers::linux::Tun;
use vector_wan::{
    Fate, Line,
    flight::InFlight,
    words::{Ask, Health, LineStatus, Now, Said, Set, Status},
};

use crate::{
    door::{Door, Request},
    machine::{self, Work, monotonic_ns},
    packet::{self, Unreachable},
    selector::Selector,
    topology::Topology,
};

/// Packets read from one host before the next has its turn.
const READ_MAX: usize = 32;

/// Packets handed over before new ones are read.
const DELIVER_MAX: usize = 256;

/// 262,144 packets of 1,500 bytes are 393 MB at the worst.
const IN_FLIGHT_MAX: usize = 1 << 18;

/// Largest packet of any host (see the topology's MTU).
const PACKET_BYTES_MAX: usize = 9216;

/// Lateness is counted up to a minute, to two digits.
const LATE_NS_MAX: u64 = 60_000_000_000;
const LATE_DIGITS: u8 = 2;

/// Why a router has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ended {
    /// It was told to.
    Told,
    /// Whoever held the other end of its lifeline is gone.
    Alone,
}

/// A packet under way on a line.
struct Packet {
    line: usize,
    bytes: Box<[u8]>,
}

/// What is counted besides the lines' own.
struct Counted {
    late: hdrhistogram::Histogram<u64>,
    no_line: u64,
    write_errors: u64,
    since_ns: u64,
    cpu_ms: u64,
    work: Work,
}

/// The router.
pub(crate) struct Router {
    topology: Topology,
    tuns: Vec<Tun>,
    lines: Vec<Line>,
    /// The line from an address (row) to another.
    matrix: Vec<Option<usize>>,
    flight: InFlight<Packet>,
    health: Counted,
    realtime: bool,
    spin_ns: u64,
}

impl Router {
    /// `tuns` are the hosts' devices, in their order. `spin_ns`: how long it may wait awake before a packet is due.
    pub(crate) fn new(topology: Topology, tuns: Vec<Tun>, spin_ns: u64) -> anyhow::Result<Self> {
        let count = topology.addresses.len();
        let mut matrix = vec![None; count * count];
        let mut lines = Vec::new();
        for way in &topology.ways {
            matrix[way.from * count + way.to] = Some(lines.len());
            // Every line its own weather, from the one seed.
            let seed = topology.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let seed = seed.wrapping_add(lines.len() as u64);
            lines.push(Line::new(way.conditions.clone(), seed));
        }
        Ok(Self {
            topology,
            tuns,
            lines,
            matrix,
            flight: InFlight::default(),
            health: Counted::new()?,
            realtime: false,
            spin_ns,
        })
    }

    /// Routes until told to quit, or until `lifeline` is closed at its other end.
    pub(crate) fn run(&mut self, door: &Door, lifeline: &impl AsFd) -> anyhow::Result<Ended> {
        self.realtime = machine::sharpen();
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        loop {
            let ready = self.wait(&door.bell, lifeline)?;
            if ready.lifeline {
                return Ok(Ended::Alone);
            }
            if ready.bell
                && let Some(Request { ask, answer }) = door.next()
            {
                let quits = matches!(ask, Ask::Quit);
                // An asker that left wants no answer.
                let _ = answer.send(self.answer(&ask));
                if quits {
                    return Ok(Ended::Told);
                }
            }
            for host in ready.hosts {
                self.take_in(host, &mut buffer)?;
            }
            self.deliver()?;
        }
    }

    fn wait(&self, bell: &OwnedFd, lifeline: &impl AsFd) -> anyhow::Result<Ready> {
        let timeout = self.flight.next_ns().map(|at_ns| {
            let ns = at_ns.saturating_sub(monotonic_ns() + self.spin_ns);
            Timespec {
                tv_sec: (ns / 1_000_000_000) as i64,
                tv_nsec: (ns % 1_000_000_000) as i64,
            }
        });
        let tuns = self.tuns.iter();
        let mut fds: Vec<PollFd<'_>> = tuns.map(|tun| PollFd::new(tun, PollFlags::IN)).collect();
        fds.push(PollFd::new(bell, PollFlags::IN));
        fds.push(PollFd::new(lifeline, PollFlags::IN));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
        let hosts = fds.iter().take(self.tuns.len()).enumerate();
        Ok(Ready {
            hosts: hosts
                .filter(|(_, fd)| ready(fd))
                .map(|(at, _)| at)
                .collect(),
            bell: ready(&fds[self.tuns.len()]),
            lifeline: ready(&fds[self.tuns.len() + 1]),
        })
    }

    /// Puts what a host has sent on its lines.
    fn take_in(&mut self, host: usize, buffer: &mut [u8]) -> anyhow::Result<()> {
        for _ in 0..READ_MAX {
            match rustix::io::read(self.tuns[host].as_fd(), &mut *buffer) {
                Ok(count) => self.admit(host, &buffer[..count]),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn admit(&mut self, host: usize, packet: &[u8]) {
        let Some((from, to)) = packet::ends(packet) else {
            return;
        };
        let Some(at) = self.line(host, from, to) else {
            self.health.no_line += 1;
            return self.refuse(host, Unreachable::Network, packet);
        };
        let mtu = self.mtu_at_end_of(at);
        if packet.len() > mtu {
            self.lines[at].counters.too_large += 1;
            if packet::is_whole(packet) {
                self.refuse(host, Unreachable::TooLarge { mtu }, packet);
            }
            return;
        }
        let line = &mut self.lines[at];
        let Fate::Arrives { at_ns, twice } = line.admit(monotonic_ns(), packet.len()) else {
            return;
        };
        for _ in 0..=u8::from(twice) {
            if self.flight.len() >= IN_FLIGHT_MAX {
                line.counters.overload += 1;
                return;
            }
            line.counters.in_flight += 1;
            let bytes = packet.into();
            self.flight.push(at_ns, Packet { line: at, bytes });
        }
    }

    /// The line that a host's packet takes: from one of its own addresses to one that there is.
    fn line(&self, host: usize, from: Ipv4Addr, to: Ipv4Addr) -> Option<usize> {
        let (from, to) = (self.address(from)?, self.address(to)?);
        let own = self.topology.addresses[from].host == host;
        self.matrix[from * self.topology.addresses.len() + to].filter(|_| own)
    }

    /// Addresses are numbered from 1 in the order of the topology.
    fn address(&self, ip: Ipv4Addr) -> Option<usize> {
        let at = usize::from(ip.octets()[3]).checked_sub(1)?;
        let found = self.topology.addresses.get(at)?;
        (found.ip == ip).then_some(at)
    }

    fn host_at_end_of(&self, line: usize) -> usize {
        let to = self.topology.ways[line].to;
        self.topology.addresses[to].host
    }

    fn mtu_at_end_of(&self, line: usize) -> usize {
        self.topology.hosts[self.host_at_end_of(line)].mtu
    }

    fn refuse(&self, host: usize, why: Unreachable, packet: &[u8]) {
        if let Some(told) = packet::unreachable(why, self.topology.router, packet) {
            // Lost like any packet that a host is too busy to take.
            let _ = rustix::io::write(self.tuns[host].as_fd(), &told);
        }
    }

    /// Hands over what is due.
    fn deliver(&mut self) -> anyhow::Result<()> {
        for _ in 0..DELIVER_MAX {
            let now_ns = monotonic_ns();
            let Some((due_ns, packet)) = self.flight.pop(now_ns) else {
                return Ok(());
            };
            if !self.lines[packet.line].release(packet.bytes.len()) {
                continue;
            }
            self.health.late.saturating_record(now_ns - due_ns);
            let tun = &self.tuns[self.host_at_end_of(packet.line)];
            if rustix::io::write(tun.as_fd(), &packet.bytes) != Ok(packet.bytes.len()) {
                self.health.write_errors += 1;
            }
        }
        Ok(())
    }

    fn answer(&mut self, ask: &Ask) -> Said {
        match ask {
            Ask::Quit => Said::Quit,
            Ask::Status { reset } => {
                let status = self.status();
                if *reset {
                    self.lines.iter_mut().for_each(Line::reset_counters);
                    self.health.reset();
                }
                Said::Status(Box::new(status))
            }
            Ask::Set { lines, changes } => match self.set(lines, changes) {
                Ok(set) => Said::Set(set),
                Err(error) => Said::Refused(format!("{error:#}")),
            },
        }
    }

    /// Changes all chosen lines or none.
    fn set(&mut self, chosen: &str, changes: &str) -> anyhow::Result<Set> {
        let selector = Selector::parse(chosen)?;
        let mut changed = Vec::new();
        for (at, line) in self.lines.iter().enumerate() {
            let (from, to) = self.names(at);
            if selector.takes(from, to) {
                changed.push((at, line.conditions().with(changes)?));
            }
        }
        if changed.is_empty() {
            anyhow::bail!("no line is called `{chosen}`");
        }
        let mut lines = Vec::new();
        for (at, conditions) in changed {
            self.lines[at].change(conditions);
            lines.push(self.now(at));
        }
        Ok(Set {
            effective_mono_ns: monotonic_ns(),
            effective_unix_ns: machine::unix_ns(),
            lines,
        })
    }

    fn names(&self, line: usize) -> (&str, &str) {
        let way = &self.topology.ways[line];
        let name = |at: usize| self.topology.addresses[at].name.as_str();
        (name(way.from), name(way.to))
    }

    fn now(&self, line: usize) -> Now {
        let (from, to) = self.names(line);
        Now {
            from: from.to_owned(),
            to: to.to_owned(),
            conditions: self.lines[line].conditions().to_string(),
        }
    }

    fn status(&self) -> Status {
        let now_ns = monotonic_ns();
        let seconds = (now_ns - self.health.since_ns) as f64 / 1e9;
        let lines = self.lines.iter().enumerate().map(|(at, line)| LineStatus {
            now: self.now(at),
            backlog_ms: line.backlog(now_ns).as_secs_f64() * 1e3,
            counters: line.counters,
        });
        let overload = self.lines.iter().map(|line| line.counters.overload).sum();
        Status {
            seconds,
            router: self.health.told(self.realtime, overload, seconds),
            lines: lines.collect(),
        }
    }
}

/// What woke the router.
struct Ready {
    hosts: Vec<usize>,
    bell: bool,
    lifeline: bool,
}

impl Counted {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            late: hdrhistogram::Histogram::new_with_max(LATE_NS_MAX, LATE_DIGITS)?,
            no_line: 0,
            write_errors: 0,
            since_ns: monotonic_ns(),
            cpu_ms: machine::own_cpu_ms(),
            work: Work::now(),
        })
    }

    fn reset(&mut self) {
        self.late.reset();
        (self.no_line, self.write_errors) = (0, 0);
        self.since_ns = monotonic_ns();
        self.cpu_ms = machine::own_cpu_ms();
        self.work = Work::now();
    }

    fn told(&self, realtime: bool, overload: u64, seconds: f64) -> Health {
        let work = Work::now();
        let all_ms = work.all_ms.saturating_sub(self.work.all_ms).max(1) as f64;
        let idle_ms = work.idle_ms.saturating_sub(self.work.idle_ms) as f64;
        let cpu_ms = machine::own_cpu_ms().saturating_sub(self.cpu_ms) as f64;
        let late_us = |quantile: f64| self.late.value_at_quantile(quantile) as f64 / 1e3;
        Health {
            realtime,
            cpu_percent: cpu_ms / (seconds * 10.0),
            late_p50_us: late_us(0.5),
            late_p99_us: late_us(0.99),
            late_max_us: self.late.max() as f64 / 1e3,
            machine_busy_percent: 100.0 * (1.0 - idle_ms / all_ms),
            machine_stolen_ms: work.stolen_ms.saturating_sub(self.work.stolen_ms),
            no_line: self.no_line,
            write_errors: self.write_errors,
            overload,
            device_drops: Vec::new(),
        }
    }
}
