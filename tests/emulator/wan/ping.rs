//! UDP packets from one host to another and back, timed at both ends by the one clock of the machine: what the lines
//! really do, and the longest silence.

use std::{
    net::{Ipv4Addr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, anyhow};

use crate::machine::{self, monotonic_ns};

/// Room for a sequence number and a time.
const BYTES_MIN: usize = 16;

/// How often a receiver looks whether it is over.
const LOOK: Duration = Duration::from_millis(50);

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) count: u64,
    pub(crate) interval: Duration,
    pub(crate) bytes: usize,
    /// How long to wait for the last ones.
    pub(crate) linger: Duration,
}

/// One end: its namespace and address.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) namespace: String,
    pub(crate) ip: Ipv4Addr,
}

/// One packet's way there or back, on the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Trip {
    number: u64,
    sent_ns: u64,
    came_ns: u64,
}

/// What was seen at both ends.
#[derive(Debug)]
pub(crate) struct Report {
    sent: u64,
    there: Vec<Trip>,
    back: Vec<Trip>,
}

pub(crate) fn run(a: &End, b: &End, plan: Plan) -> anyhow::Result<Report> {
    let (near, far) = (socket(a)?, socket(b)?);
    let (near_at, far_at) = (near.local_addr()?, far.local_addr()?);
    let start_ns = monotonic_ns();
    let interval_ns = plan.interval.as_nanos() as u64;
    let end_ns = start_ns + plan.count * interval_ns + plan.linger.as_nanos() as u64;
    let bytes = plan.bytes.max(BYTES_MIN);
    std::thread::scope(|scope| {
        let there = scope.spawn(|| {
            receive(&far, plan.count, end_ns, |trip| {
                let mut echo = vec![0; bytes];
                stamp(&mut echo, trip.number, trip.came_ns);
                // Lost, as anything may be.
                let _ = far.send_to(&echo, near_at);
            })
        });
        let back = scope.spawn(|| receive(&near, plan.count, end_ns, |_| {}));
        machine::sharpen();
        let mut packet = vec![0; bytes];
        let mut sent = 0;
        for number in 0..plan.count {
            let due_ns = start_ns + number * interval_ns;
            std::thread::sleep(Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())));
            stamp(&mut packet, number, monotonic_ns());
            sent += u64::from(near.send_to(&packet, far_at).is_ok());
        }
        let died = |_| anyhow!("a thread has panicked");
        Ok(Report {
            sent,
            there: there.join().map_err(died)?,
            back: back.join().map_err(died)?,
        })
    })
}

fn socket(end: &End) -> anyhow::Result<UdpSocket> {
    let bind = || UdpSocket::bind((end.ip, 0)).context("cannot bind");
    let socket = machine::within(&end.namespace, bind)?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

fn stamp(packet: &mut [u8], number: u64, now_ns: u64) {
    packet[..8].copy_from_slice(&number.to_be_bytes());
    packet[8..16].copy_from_slice(&now_ns.to_be_bytes());
}

/// Until all have come or it is over. Doubles are kept.
fn receive(socket: &UdpSocket, count: u64, end_ns: u64, mut each: impl FnMut(Trip)) -> Vec<Trip> {
    machine::sharpen();
    let mut buffer = [0; 9216];
    let mut trips = Vec::new();
    while (trips.len() as u64) < count && monotonic_ns() < end_ns {
        let Ok((length, _)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let came_ns = monotonic_ns();
        let (Some(number), Some(sent_ns)) =
            (word(&buffer[..length], 0), word(&buffer[..length], 8))
        else {
            continue;
        };
        let trip = Trip {
            number,
            sent_ns,
            came_ns,
        };
        trips.push(trip);
        each(trip);
    }
    trips
}

fn word(packet: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(packet.get(at..at + 8)?.try_into().ok()?))
}

impl Report {
    /// For people and programs: `key=value` words.
    pub(crate) fn shown(&self) -> String {
        let lost = |came: usize| 100.0 * (1.0 - came as f64 / self.sent.max(1) as f64);
        let mut text = format!(
            "sent={} arrived={} lost={:.4}% returned={} lost_round_trip={:.4}%\n",
            self.sent,
            self.there.len(),
            lost(self.there.len()),
            self.back.len(),
            lost(self.back.len())
        );
        let took = |trips: &[Trip]| {
            trips
                .iter()
                .map(|trip| trip.came_ns - trip.sent_ns)
                .collect()
        };
        text += &delays("there", took(&self.there));
        text += &delays("back", took(&self.back));
        text += &delays("round_trip", self.round_trips());
        if let Some(last) = self.there.last() {
            text += &format!(
                "last_arrival_mono_ns={} last_to_arrive_sent_mono_ns={}\n",
                last.came_ns, last.sent_ns
            );
        }
        let gaps = self
            .there
            .windows(2)
            .map(|two| (two[1].came_ns.saturating_sub(two[0].came_ns), two));
        if let Some((gap_ns, two)) = gaps.max_by_key(|(gap_ns, _)| *gap_ns) {
            text += &format!(
                "longest_gap_ms={:.3} from_mono_ns={} to_mono_ns={}\n",
                gap_ns as f64 / 1e6,
                two[0].came_ns,
                two[1].came_ns
            );
        }
        text
    }

    fn round_trips(&self) -> Vec<u64> {
        let mut sent_ns = std::collections::HashMap::new();
        for trip in &self.there {
            sent_ns.entry(trip.number).or_insert(trip.sent_ns);
        }
        let back = self.back.iter();
        back.filter_map(|trip| Some(trip.came_ns - sent_ns.get(&trip.number)?))
            .collect()
    }
}

fn delays(what: &str, mut ns: Vec<u64>) -> String {
    ns.sort_unstable();
    let (Some(first), Some(last)) = (ns.first(), ns.last()) else {
        return format!("{what}_ms: nothing came\n");
    };
    let at = |share: f64| ns[((ns.len() - 1) as f64 * share).round() as usize] as f64 / 1e6;
    format!(
        "{what}_ms min={:.3} p50={:.3} p90={:.3} p99={:.3} max={:.3}\n",
        *first as f64 / 1e6,
        at(0.5),
        at(0.9),
        at(0.99),
        *last as f64 / 1e6
    )
}
