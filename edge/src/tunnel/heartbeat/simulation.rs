//! Two detectors and the lines between them in virtual time: false alarms and detection times.
//!
//! The whole table: `DETECTOR_HOURS=24 tests/bench detector`.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use super::{Activity, Config, Detector, State, Transition};

pub(super) const MS: Duration = Duration::from_millis(1);

/// What a line does to packets.
#[derive(Clone, Copy, Debug)]
pub(super) enum Loss {
    None,
    Independent(f64),
    /// Overall share, and the mean length of an exponential burst in which everything is lost.
    Bursts(f64, Duration),
}

/// One direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) delay: Duration,
    /// Mean of an exponential addition to the delay; packets do not overtake.
    pub(super) jitter: Duration,
    pub(super) loss: Loss,
    pub(super) cut: bool,
    burst_until: Duration,
    good_until: Duration,
    last_arrival: Duration,
}

impl Line {
    pub(super) fn new(delay: Duration, jitter: Duration, loss: Loss) -> Self {
        Self {
            delay,
            jitter,
            loss,
            cut: false,
            burst_until: Duration::ZERO,
            good_until: Duration::ZERO,
            last_arrival: Duration::ZERO,
        }
    }

    /// When a packet sent now arrives.
    fn pass(&mut self, now: Duration, rng: &mut fastrand::Rng) -> Option<Duration> {
        let lost = match self.loss {
            Loss::None => false,
            Loss::Independent(share) => rng.f64() < share,
            Loss::Bursts(share, mean) => {
                while now >= self.good_until {
                    let good = exponential(rng, mean.mul_f64((1.0 - share) / share));
                    self.burst_until = self.good_until + exponential(rng, mean);
                    self.good_until = self.burst_until + good;
                }
                now < self.burst_until
            }
        };
        if lost || self.cut {
            return None;
        }
        let arrival = now + self.delay + exponential(rng, self.jitter);
        self.last_arrival = self.last_arrival.max(arrival);
        Some(self.last_arrival)
    }
}

fn exponential(rng: &mut fastrand::Rng, mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - rng.f64()).ln())
}

/// One end.
#[derive(Debug)]
pub(super) struct End {
    pub(super) detector: Detector,
    /// When the process runs again.
    stalled_until: Duration,
    next_stall: Duration,
    /// How late the timer is this time.
    late: Duration,
    pub(super) last_arrival: Duration,
    pub(super) transitions: Vec<(Duration, Transition)>,
    pub(super) restarts: u32,
}

impl End {
    /// Its timer goes off, or what came while it was stalled is read.
    fn poll_at(&self, origin: Instant) -> Duration {
        let due = self.detector.next_deadline() - origin + self.late;
        due.max(self.stalled_until)
    }

    pub(super) fn alarms(&self, to: State) -> usize {
        let alarm = |transition: &Transition| {
            transition.to == to && (to != State::Suspect || transition.from == State::Up)
        };
        let every = self.transitions.iter();
        every.filter(|(_, transition)| alarm(transition)).count()
    }

    pub(super) fn first(&self, to: State, after: Duration) -> Option<Duration> {
        let mut every = self.transitions.iter();
        let found = every.find(|(at, transition)| *at >= after && transition.to == to);
        found.map(|(at, _)| *at)
    }
}

/// Two ends and the lines from each to the other.
pub(super) struct World {
    pub(super) ends: [End; 2],
    /// `lines[n]` leads away from `ends[n]`.
    pub(super) lines: [Line; 2],
    pub(super) now: Duration,
    pub(super) rng: fastrand::Rng,
    /// Latest a timer is; uniform.
    pub(super) timer: Duration,
    /// Mean time between stalls of one process, and the longest.
    pub(super) stalls: Option<(Duration, Duration)>,
    origin: Instant,
    flights: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    beats: std::collections::HashMap<u64, vector_proto::tunnel::beat::Beat>,
    sent: u64,
}

pub(super) fn config(epoch: u64, phase: Duration) -> Config {
    Config {
        epoch,
        active: MS * 10,
        standby: MS * 50,
        cold: MS * 1000,
        phase,
    }
}

impl World {
    pub(super) fn new(seed: u64, line: Line) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let origin = Instant::now();
        let ends = [1, 2].map(|epoch| End {
            detector: Detector::new(config(epoch, MS.mul_f64(10.0 * rng.f64())), origin),
            stalled_until: Duration::ZERO,
            next_stall: Duration::MAX,
            late: Duration::ZERO,
            last_arrival: Duration::ZERO,
            transitions: Vec::new(),
            restarts: 0,
        });
        Self {
            ends,
            lines: [line; 2],
            now: Duration::ZERO,
            rng,
            timer: Duration::ZERO,
            stalls: None,
            origin,
            flights: BinaryHeap::new(),
            beats: std::collections::HashMap::new(),
            sent: 0,
        }
    }

    /// Both ends have exchanges in flight, and have agreed on the fast rhythm.
    pub(super) fn active(mut self) -> Self {
        self.activity(Activity::Active);
        self.run(Duration::from_secs(2));
        self
    }

    pub(super) fn activity(&mut self, activity: Activity) {
        let now = self.instant();
        for end in &mut self.ends {
            end.detector.activity(now, activity);
        }
    }

    pub(super) fn instant(&self) -> Instant {
        self.origin + self.now
    }

    pub(super) fn cut(&mut self, lines: &[usize], cut: bool) {
        lines.iter().for_each(|&line| self.lines[line].cut = cut);
    }

    pub(super) fn states(&self) -> [State; 2] {
        [0, 1].map(|end| self.ends[end].detector.state())
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until both ends say so, for a day at most.
    pub(super) fn until(&mut self, state: State) -> Duration {
        let (start, limit) = (self.now, self.now + Duration::from_secs(86_400));
        while self.states() != [state; 2] {
            assert!(self.step(limit), "never {state:?}");
        }
        self.now - start
    }

    fn step(&mut self, limit: Duration) -> bool {
        let polls = [0, 1].map(|end| self.ends[end].poll_at(self.origin));
        let poller = usize::from(polls[1] < polls[0]);
        let arrival = self.flights.peek().map(|Reverse((at, _, to))| {
            // A stalled process reads late.
            (*at).max(self.ends[*to].stalled_until)
        });
        let at = arrival.map_or(polls[poller], |at| at.min(polls[poller]));
        if at > limit {
            return false;
        }
        self.now = self.now.max(at);
        if arrival.is_some_and(|arrival| arrival <= polls[poller]) {
            self.arrive();
        } else {
            self.poll(poller);
        }
        true
    }

    fn arrive(&mut self) {
        let Some(Reverse((_, id, to))) = self.flights.pop() else {
            return;
        };
        let now = self.instant();
        let end = &mut self.ends[to];
        if let Some(beat) = self.beats.remove(&id) {
            // A line that jitters keeps the order, so nothing is refused.
            end.detector.heard(now, &beat).unwrap();
            end.last_arrival = self.now;
        }
        self.poll(to);
    }

    fn poll(&mut self, which: usize) {
        let now = self.instant();
        let end = &mut self.ends[which];
        let actions = end.detector.poll(now);
        end.restarts += u32::from(actions.restarted);
        if let Some(transition) = actions.transition {
            end.transitions.push((self.now, transition));
        }
        if let Some(beat) = actions.send
            && let Some(arrival) = self.lines[which].pass(self.now, &mut self.rng)
        {
            self.sent += 1;
            self.beats.insert(self.sent, beat);
            self.flights.push(Reverse((arrival, self.sent, 1 - which)));
        }
        let end = &mut self.ends[which];
        end.late = self.timer.mul_f64(self.rng.f64());
        if let Some((mean, longest)) = self.stalls {
            if end.next_stall == Duration::MAX {
                end.next_stall = self.now + exponential(&mut self.rng, mean);
            } else if self.now >= end.next_stall {
                end.stalled_until = self.now + longest.mul_f64(self.rng.f64());
                end.next_stall = Duration::MAX;
            }
        }
    }
}

/// Which packets a cut takes.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Both,
    /// From the first end to the second only.
    OneWay,
}

/// Times from the last packet that an end heard (or, for the deaf end's peer, from the cut) to its verdict.
fn detection(seed: u64, line: Line, cut: Cut) -> [Duration; 2] {
    let mut world = World::new(seed, line).active();
    world.timer = MS;
    let settle = MS.mul_f64(3_000.0 + 1_000.0 * world.rng.f64());
    world.run(settle);
    let at = world.now;
    let (lines, judge): (&[usize], usize) = match cut {
        Cut::Both => (&[0, 1], 1),
        Cut::OneWay => (&[0], 0),
    };
    world.cut(lines, true);
    world.run(Duration::from_secs(3));
    let end = &world.ends[judge];
    let from = match cut {
        Cut::Both => end.last_arrival,
        Cut::OneWay => at,
    };
    [State::Suspect, State::Down].map(|state| {
        // A false alarm may have come just before the cut.
        let found = end.first(state, at.saturating_sub(MS * 200));
        found.unwrap_or(from).saturating_sub(from)
    })
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| {
        let index = ((times.len() - 1) as f64 * share) as usize;
        times[index].as_secs_f64() * 1e3
    };
    format!("{:>6.1} {:>6.1} {:>6.1}", at(0.5), at(0.99), at(1.0))
}

fn weather() -> Vec<(&'static str, Line)> {
    let line = |jitter: f64, loss| Line::new(MS * 75, MS.mul_f64(jitter), loss);
    let mut rows = vec![
        ("0", line(0.0, Loss::None)),
        ("0.1 %", line(0.0, Loss::Independent(0.001))),
        ("1 %", line(0.0, Loss::Independent(0.01))),
        ("3 %", line(0.0, Loss::Independent(0.03))),
        ("5 %", line(0.0, Loss::Independent(0.05))),
        ("0.1 %, jitter 2 ms", line(2.0, Loss::Independent(0.001))),
        ("1 %, jitter 2 ms", line(2.0, Loss::Independent(0.01))),
        ("0.1 %, jitter 8 ms", line(8.0, Loss::Independent(0.001))),
    ];
    for (name, share) in [
        ("0.1 %, bursts 20 ms", 0.001),
        ("1 %, bursts 20 ms", 0.01),
        ("5 %, bursts 20 ms", 0.05),
    ] {
        rows.push((name, line(0.0, Loss::Bursts(share, MS * 20))));
    }
    rows
}

fn alarms_per_hour(mut world: World, hours: f64) -> [f64; 2] {
    world.run(Duration::from_secs_f64(3_600.0 * hours));
    let per_hour = |state| {
        let alarms: usize = world.ends.iter().map(|end| end.alarms(state)).sum();
        // Each end sees the alarms of both directions.
        alarms as f64 / hours / 2.0
    };
    [per_hour(State::Suspect), per_hour(State::Down)]
}

#[test]
#[ignore = "a table for people, minutes of computing; the promises in it are asserted by the tests below, on fewer hours"]
fn detector_table() {
    let asked = std::env::var("DETECTOR_HOURS").ok();
    let hours = asked.and_then(|hours| hours.parse().ok()).unwrap_or(2.0);
    eprintln!(
        "10 ms both ways, 75 ms each way, timers up to 1 ms late, {hours} h of virtual time a row"
    );
    eprintln!(
        "{:<22} {:>10} {:>10}   detection p50 p99 max, ms",
        "loss", "suspect/h", "down/h"
    );
    let cuts = |line, cut, index: usize| {
        let times = (0..400).map(|seed| detection(seed, line, cut)[index]);
        spread(times.collect())
    };
    for (name, line) in weather() {
        let mut world = World::new(7, line).active();
        world.timer = MS;
        let [suspect, down] = alarms_per_hour(world, hours);
        eprintln!(
            "{name:<22} {suspect:>10.3} {down:>10.4}   suspect {} · down {} · told by the deaf end: down {}",
            cuts(line, Cut::Both, 0),
            cuts(line, Cut::Both, 1),
            cuts(line, Cut::OneWay, 1),
        );
    }
    let mut world = World::new(7, weather()[1].1).active();
    world.timer = MS;
    world.stalls = Some((Duration::from_secs(10), MS * 30));
    let [suspect, down] = alarms_per_hour(world, hours);
    eprintln!("0.1 %, a process stalls for 0-30 ms every 10 s: {suspect:.3} {down:.4}");
    let mut world = World::new(7, weather()[1].1).active();
    world.timer = MS;
    world.stalls = Some((Duration::from_secs(60), MS * 100));
    let [suspect, down] = alarms_per_hour(world, hours);
    eprintln!("0.1 %, a process stalls for 0-100 ms every 60 s: {suspect:.3} {down:.4}");
}

/// Suspect within 40 ms and down within 60 ms of the last packet.
#[test]
fn a_dead_path_is_found_in_time() {
    for seed in 0..40 {
        let line = Line::new(MS * 75, Duration::ZERO, Loss::None);
        let [suspect, down] = detection(seed, line, Cut::Both);
        assert!(
            suspect >= MS * 30 && suspect <= MS * 40,
            "{suspect:?}, seed {seed}"
        );
        assert!(down >= MS * 50 && down <= MS * 60, "{down:?}, seed {seed}");
        let [suspect, down] = detection(seed, line, Cut::OneWay);
        // The deaf end says so, and that takes the way back; the last packet was on its way when the path was cut.
        assert!(suspect <= MS * (40 + 75 + 75), "{suspect:?}, seed {seed}");
        assert!(down <= MS * (60 + 75 + 75), "{down:?}, seed {seed}");
    }
}

/// At most one false «down» a day at 0.1 % loss: by sum, and by what happens in simulated time.
#[test]
fn rare_losses_are_no_outage() {
    let beats_per_day = 24.0 * 3_600.0 * 100.0;
    // Five in a row each way.
    let computed = 2.0 * beats_per_day * 0.001_f64.powi(5);
    assert!(computed < 1.0, "{computed} a day");
    let mut world = World::new(
        3,
        Line::new(MS * 75, Duration::ZERO, Loss::Independent(0.001)),
    )
    .active();
    world.timer = MS;
    let [suspect, down] = alarms_per_hour(world, 0.2);
    assert_eq!((suspect, down), (0.0, 0.0));
    // What the limits are for: losses of 5 % make a path suspect, not down.
    let mut world = World::new(
        3,
        Line::new(MS * 75, Duration::ZERO, Loss::Independent(0.05)),
    )
    .active();
    world.timer = MS;
    let [suspect, down] = alarms_per_hour(world, 0.1);
    assert!(suspect > 0.0 && down == 0.0, "{suspect} {down}");
}

/// A process that stood still blames itself.
#[test]
fn a_stall_is_no_silence_of_the_peer() {
    let mut world = World::new(5, Line::new(MS * 20, Duration::ZERO, Loss::None)).active();
    let now = world.instant() + Duration::from_secs(30);
    let detector = &mut world.ends[0].detector;
    let actions = detector.poll(now);
    assert_eq!(actions.transition, None);
    assert_eq!(detector.state(), State::Up);
    // The true silence that follows is found as fast as ever.
    let mut at = now;
    while detector.state() != State::Down {
        at = detector.next_deadline().max(at);
        detector.poll(at);
    }
    assert!(at - now <= MS * 60, "{:?}", at - now);
}
