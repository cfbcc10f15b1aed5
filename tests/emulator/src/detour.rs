//! A way round between UDP ends inside this process, over two emulated lines.
//!
//! Whoever sends to [`Detour::address`] reaches the target after what the line there does to its packets, and the
//! target's answers come back over the other line. So a node that is told a detour's address in place of its
//! peer's has a long, lossy or dead path to it, changed while it runs. Blocking and async tests use it alike: it
//! has a thread of its own, which ends when the detour is dropped.
//!
//! ```no_run
//! use vector_wan::{Detour, Way};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let egress = "127.0.0.1:7440".parse()?;
//! let detour = Detour::to(egress, "rtt_ms=150 loss=0.1%", 1)?;
//! // … tell the ingress detour.address(), start a stream, then:
//! let cut_at = detour.set(Way::Both, "blackhole=on")?;
//! let mended_at = detour.set(Way::Both, "blackhole=off")?;
//! # Ok(()) }
//! ```

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::Timespec,
};
use socket2::{Domain, Socket, Type};

use crate::{
    conditions::{BadConditions, Conditions},
    flight::InFlight,
    line::{Counters, Fate, Line},
};

/// Different senders that one detour knows; packets of further ones are dropped and counted as overload.
const SENDERS_MAX: usize = 256;

/// Packets under way, both ways: 65,536 of 1,500 bytes are 98 MB at the worst.
const IN_FLIGHT_MAX: usize = 1 << 16;

/// Packets read from one socket before the others have their turn.
const READ_MAX: usize = 64;

/// What a socket may hold while the thread does not run; the kernel may grant less.
const SOCKET_BYTES: usize = 4 << 20;

/// Largest UDP payload.
const PACKET_BYTES_MAX: usize = 65_507;

/// A direction through a detour.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// From the senders to the target.
    There,
    /// From the target to the senders.
    Back,
    /// Both of them.
    Both,
}

/// Two lines between whoever sends to it and one target.
#[derive(Debug)]
pub struct Detour {
    address: SocketAddr,
    lines: Arc<Mutex<[Line; 2]>>,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// A detour could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The conditions are impossible.
    #[error(transparent)]
    Conditions(#[from] BadConditions),
    /// A socket or thread.
    #[error("a detour cannot begin")]
    Begin(#[from] io::Error),
}

impl Detour {
    /// Begins on a free port of loopback. Both ways have the same conditions at first, as in `rtt_ms=150 loss=1%`.
    pub fn to(target: SocketAddr, conditions: &str, seed: u64) -> Result<Self, Error> {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::between(any, target, conditions, seed)
    }

    /// Begins at an address of the caller's choice.
    pub fn between(
        listen: SocketAddr,
        target: SocketAddr,
        conditions: &str,
        seed: u64,
    ) -> Result<Self, Error> {
        let conditions: Conditions = conditions.parse()?;
        // Two seeds that differ in more than a bit, so that the ways do not fare alike.
        let back_seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let lines = [
            Line::new(conditions.clone(), seed),
            Line::new(conditions, back_seed),
        ];
        let front = socket(listen)?;
        let address = front.local_addr()?;
        let lines = Arc::new(Mutex::new(lines));
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from)?);
        let carrier = Carrier {
            target,
            front,
            backs: Vec::new(),
            known: HashMap::new(),
            lines: Arc::clone(&lines),
            flight: InFlight::default(),
            began: Instant::now(),
        };
        let (told, woken) = (Arc::clone(&stop), Arc::clone(&wake));
        let thread = std::thread::Builder::new()
            .name("detour".to_owned())
            .spawn(move || carrier.carry(&told, &woken))?;
        Ok(Self {
            address,
            lines,
            stop,
            wake,
            thread: Some(thread),
        })
    }

    /// Where to send what shall reach the target.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes some conditions, as in `loss=5%` or `blackhole=on`, and tells when that took effect: from then on no
    /// packet fares as before.
    pub fn set(&self, way: Way, changes: &str) -> Result<Instant, BadConditions> {
        let mut lines = locked(&self.lines);
        let [there, back] = &mut *lines;
        let new_there = there.conditions().with(changes)?;
        let new_back = back.conditions().with(changes)?;
        if way != Way::Back {
            there.change(new_there);
        }
        if way != Way::There {
            back.change(new_back);
        }
        Ok(Instant::now())
    }

    /// What the lines there and back have done so far.
    pub fn counters(&self) -> [Counters; 2] {
        let lines = locked(&self.lines);
        [lines[0].counters, lines[1].counters]
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Cannot fail: the counter holds far more than one.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A carrier that panicked has told so already.
            let _ = thread.join();
        }
    }
}

fn locked(lines: &Mutex<[Line; 2]>) -> MutexGuard<'_, [Line; 2]> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // Less than asked for is what the machine allows.
    let _ = socket.set_recv_buffer_size(SOCKET_BYTES);
    let _ = socket.set_send_buffer_size(SOCKET_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A packet under way, and whose conversation it belongs to.
struct Packet {
    there: bool,
    back: usize,
    bytes: Box<[u8]>,
}

/// One sender, and the socket by which the target sees it.
struct Back {
    sender: SocketAddr,
    socket: UdpSocket,
}

/// What the thread owns.
struct Carrier {
    target: SocketAddr,
    front: UdpSocket,
    backs: Vec<Back>,
    known: HashMap<SocketAddr, usize>,
    lines: Arc<Mutex<[Line; 2]>>,
    flight: InFlight<Packet>,
    began: Instant,
}

impl Carrier {
    fn carry(mut self, stop: &AtomicBool, wake: &OwnedFd) {
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        while !stop.load(Ordering::Acquire) {
            self.wait(wake);
            self.read_front(&mut buffer);
            for back in 0..self.backs.len() {
                self.read_back(back, &mut buffer);
            }
            self.deliver();
        }
    }

    /// Until a packet came, one is due, or the detour is dropped.
    fn wait(&self, wake: &OwnedFd) {
        let timeout = self.flight.next_ns().map(|at_ns| {
            let ns = at_ns.saturating_sub(self.now_ns());
            Timespec {
                tv_sec: (ns / 1_000_000_000) as i64,
                tv_nsec: (ns % 1_000_000_000) as i64,
            }
        });
        let mut fds = vec![
            PollFd::new(wake, PollFlags::IN),
            PollFd::new(&self.front, PollFlags::IN),
        ];
        let backs = self.backs.iter();
        fds.extend(backs.map(|back| PollFd::new(&back.socket, PollFlags::IN)));
        // An interruption is as good as a packet: the caller looks at everything again.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn read_front(&mut self, buffer: &mut [u8]) {
        for _ in 0..READ_MAX {
            let Ok((count, sender)) = self.front.recv_from(buffer) else {
                return;
            };
            match self.back_of(sender) {
                Some(back) => self.admit(true, back, &buffer[..count]),
                None => locked(&self.lines)[0].counters.overload += 1,
            }
        }
    }

    fn read_back(&mut self, back: usize, buffer: &mut [u8]) {
        for _ in 0..READ_MAX {
            // An error here tells that an earlier packet found nobody; the next call may find one.
            let Ok((count, from)) = self.backs[back].socket.recv_from(buffer) else {
                return;
            };
            if from == self.target {
                self.admit(false, back, &buffer[..count]);
            }
        }
    }

    fn back_of(&mut self, sender: SocketAddr) -> Option<usize> {
        if let Some(known) = self.known.get(&sender) {
            return Some(*known);
        }
        if self.backs.len() == SENDERS_MAX {
            return None;
        }
        let any = match self.target {
            SocketAddr::V4(_) => "0.0.0.0:0",
            SocketAddr::V6(_) => "[::]:0",
        };
        let socket = socket(any.parse().ok()?).ok()?;
        self.backs.push(Back { sender, socket });
        self.known.insert(sender, self.backs.len() - 1);
        Some(self.backs.len() - 1)
    }

    fn admit(&mut self, there: bool, back: usize, bytes: &[u8]) {
        let now_ns = self.now_ns();
        let mut lines = locked(&self.lines);
        let line = &mut lines[usize::from(!there)];
        let Fate::Arrives { at_ns, twice } = line.admit(now_ns, bytes.len()) else {
            return;
        };
        for _ in 0..=u8::from(twice) {
            if self.flight.len() >= IN_FLIGHT_MAX {
                line.counters.overload += 1;
                return;
            }
            line.counters.in_flight += 1;
            let packet = Packet {
                there,
                back,
                bytes: bytes.into(),
            };
            self.flight.push(at_ns, packet);
        }
    }

    fn deliver(&mut self) {
        while let Some((_, packet)) = self.flight.pop(self.now_ns()) {
            // Sent under the lock, so that no packet leaves after a change was said to hold.
            let mut lines = locked(&self.lines);
            if !lines[usize::from(!packet.there)].release(packet.bytes.len()) {
                continue;
            }
            let back = &self.backs[packet.back];
            // A packet that a full or closed socket does not take is lost, as anywhere.
            let _ = if packet.there {
                back.socket.send_to(&packet.bytes, self.target)
            } else {
                self.front.send_to(&packet.bytes, back.sender)
            };
        }
    }
}

#[cfg(test)]
mod tests;
