//! Whether a path lives, by heartbeats both ways. Pure: no socket, no clock, time is an argument.
//!
//! Both ends send on a clock and each judges the direction towards itself by silence, so that a
//! dead path shows within a few intervals, whatever its round trip (BFD's asynchronous mode, RFC
//! 5880). Each heartbeat says what its sender hears, since a path is up only if both directions
//! are. Whoever holds a [`Detector`] calls [`Detector::poll`] at [`Detector::next_deadline`] and
//! after everything it tells it; a call that comes late is taken for a stall of this process, not
//! for silence of the peer.

mod damping;

mod measure;

mod rhythm;

mod silence;

mod standing;

#[cfg(test)]
mod simulation;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use vector_proto::tunnel::beat::{Beat, Echo, Hearing, INTERVAL_MS_MAX, newer};

pub use self::{
    measure::Measures,
    standing::{Cause, State, Transition},
};
use self::{
    measure::{Loss, Outward, RoundTrip},
    rhythm::Rhythm,
    silence::{Silence, dead_after, suspect_after},
    standing::Standing,
};

/// How late a call may come before it is taken for a stall of this process. A timer of a quiet
/// machine is 1 to 2 ms late.
const STALL: Duration = Duration::from_millis(5);

/// Intervals and identity of one end.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Incarnation of this process.
    pub epoch: u64,
    /// Interval while exchanges are in flight; also the shortest that this end takes part in.
    pub active: Duration,
    /// Interval of a path that stands ready.
    pub standby: Duration,
    /// Interval of a path that is only kept.
    pub cold: Duration,
    /// Time to the first heartbeat: spreads the paths of a node over the interval.
    pub phase: Duration,
}

/// What a path is used for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Activity {
    /// Exchanges are in flight.
    Active,
    /// The next exchange may go over it.
    Standby,
    /// Nothing will, for now.
    Cold,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Actions {
    /// Send this.
    pub send: Option<Beat>,
    /// Tell this.
    pub transition: Option<Transition>,
    /// The peer is another process than before.
    pub restarted: bool,
}

/// Why a heartbeat was not taken. It is no sign of life.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// A newer one was heard, or it is of a process that is gone.
    #[error("older than what was heard")]
    Old,
    /// It echoes what was never sent.
    #[error("echoes heartbeat {0}, which was never sent")]
    Unsent(u32),
}

/// What is known of the peer.
#[derive(Clone, Copy, Debug)]
struct Heard {
    beat: Beat,
    at: Instant,
}

/// A faster rhythm that we asked for and that no echo has confirmed.
#[derive(Clone, Copy, Debug)]
struct Ask {
    seq: u32,
    at: Instant,
    interval: Duration,
}

/// Watches one path from one end.
#[derive(Clone, Debug)]
pub struct Detector {
    config: Config,
    /// Timestamps count from here.
    origin: Instant,
    now: Instant,
    due: Instant,

    silence: Silence,
    last: Option<Heard>,
    /// Survives [`Self::reconnected`].
    peer_epoch: Option<u64>,
    restarted: bool,
    restarts: u64,
    ask: Option<Ask>,

    rhythm: Rhythm,
    activity: Activity,
    load: u16,
    draining: bool,
    /// What the last heartbeat said.
    said: (Hearing, bool),

    standing: Standing,
    told: State,
    /// Why the state is not the one that was told.
    cause: Cause,

    trip: RoundTrip,
    loss_in: Loss,
    outward: Outward,
    beats_out: u64,
    beats_in: u64,
}

impl Detector {
    /// For a path over which a connection has just come up, which shows that both directions work.
    #[must_use]
    pub fn new(config: Config, now: Instant) -> Self {
        let interval_ms = millis(config.standby);
        Self {
            config,
            origin: now,
            now,
            due: now + config.phase,
            silence: Silence::new(Duration::from_millis(interval_ms.into()), now),
            last: None,
            peer_epoch: None,
            restarted: false,
            restarts: 0,
            ask: None,
            rhythm: Rhythm::new(interval_ms, now + config.phase),
            activity: Activity::Standby,
            load: 0,
            draining: false,
            said: (Hearing::Waiting, false),
            standing: Standing::new(now),
            told: State::Up,
            cause: Cause::Drain,
            trip: RoundTrip::default(),
            loss_in: Loss::default(),
            outward: Outward::default(),
            beats_out: 0,
            beats_in: 0,
        }
    }

    /// Goes on over a new connection. What the path did before is not forgotten: if it was down, it
    /// is suspect until it was clean for long enough. What it lost is measured anew.
    pub fn reconnected(&mut self, now: Instant) {
        self.wake(now);
        self.silence.restart(self.now);
        self.last = None;
        self.ask = None;
        self.outward = Outward::default();
        self.loss_in = Loss::default();
        self.standing.reconnected();
        self.rhythm.hurry(self.now);
        self.settle();
    }

    /// A heartbeat came.
    ///
    /// # Errors
    /// [`Refused`] when it says nothing; the detector is as it was.
    pub fn heard(&mut self, now: Instant, beat: &Beat) -> Result<(), Refused> {
        if let Some(echo) = beat.echo.filter(|echo| newer(echo.seq, self.rhythm.seq)) {
            return Err(Refused::Unsent(echo.seq));
        }
        let restarted = self.peer_epoch.is_some_and(|epoch| beat.epoch != epoch);
        if let Some(last) = &self.last {
            // Over a new connection anything is news, even an epoch that a wiped disk begins again.
            let same = beat.epoch == last.beat.epoch;
            let replayed = same && !newer(beat.seq, last.beat.seq);
            if replayed || beat.epoch < last.beat.epoch {
                return Err(Refused::Old);
            }
        }
        let before = self.last.filter(|_| !restarted);
        // The silence before it counts, even if nobody polled in the meantime.
        self.wake(now);
        self.judge();
        if restarted {
            self.restarted = true;
            self.restarts += 1;
            self.ask = None;
            self.outward.restart();
            self.silence.restart(self.now);
        }
        self.take(before, beat);
        self.settle();
        Ok(())
    }

    /// Some packet of the peer came, no earlier than `at`. Who only knows that one came between two
    /// looks passes the time of the first.
    pub fn any_packet(&mut self, at: Instant) {
        self.silence.life(at);
    }

    /// The path is used for something else now.
    pub fn activity(&mut self, now: Instant, activity: Activity) {
        self.wake(now);
        self.activity = activity;
        let agreed = self.agreed();
        self.rhythm.agree(agreed, self.now);
        let interval = Duration::from_millis(agreed.into());
        if interval < self.silence.interval && self.last.is_some() {
            // The peer is slower than it should be now. Its silence would show late; that it does
            // not answer shows after a round trip.
            self.ask.get_or_insert(Ask {
                seq: self.rhythm.seq.wrapping_add(1),
                at: self.now,
                interval,
            });
            self.rhythm.hurry(self.now);
        } else {
            self.ask = None;
        }
        self.settle();
    }

    /// What heartbeats say of this node: exchanges in flight, and whether it wants no new ones.
    pub fn says(&mut self, now: Instant, load: u16, draining: bool) {
        self.wake(now);
        self.load = load;
        self.draining = draining;
        self.settle();
    }

    /// What is to be done now.
    pub fn poll(&mut self, now: Instant) -> Actions {
        self.wake(now);
        self.judge();
        let state = self.state();
        let transition = (state != self.told).then(|| Transition {
            from: std::mem::replace(&mut self.told, state),
            to: state,
            cause: self.cause,
        });
        // Whatever else may change now is an end that drains.
        self.cause = Cause::Drain;
        self.speak_up();
        let actions = Actions {
            send: self.rhythm.take(self.now).map(|seq| self.beat(seq)),
            transition,
            restarted: std::mem::take(&mut self.restarted),
        };
        self.due = self.deadline();
        actions
    }

    /// When to poll next, if nothing happens before.
    #[must_use]
    pub const fn next_deadline(&self) -> Instant {
        self.due
    }

    /// The state now.
    #[must_use]
    pub fn state(&self) -> State {
        let peer_drains = self.last.is_some_and(|last| last.beat.draining);
        match self.standing.state {
            State::Up if self.draining || peer_drains => State::Draining,
            state => state,
        }
    }

    /// Whether a heartbeat is late, so that it is worth looking for other packets.
    #[must_use]
    pub fn overdue(&self, now: Instant) -> bool {
        self.silence.overdue(now)
    }

    /// What was measured so far.
    #[must_use]
    pub fn measures(&self) -> Measures {
        Measures {
            rtt: self.trip.smoothed,
            rtt_deviation: self.trip.deviation,
            jitter: self.silence.jitter(),
            loss_out: self.outward.loss.share(),
            loss_in: self.loss_in.share(),
            loss: self.outward.loss.shown() + self.loss_in.shown(),
            peer_load: self.last.map_or(0, |last| last.beat.load),
            flaps: self.standing.flaps,
            restarts: self.restarts,
            beats_out: self.beats_out,
            beats_in: self.beats_in,
        }
    }

    /// Time never runs backwards here, and what passed while nobody looked was no silence.
    fn wake(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let late = self.now.saturating_duration_since(self.due);
        if late > STALL {
            self.silence.forgive(late, self.now);
            if let Some(ask) = &mut self.ask {
                ask.at += late;
            }
            self.due = self.now;
        }
    }

    fn settle(&mut self) {
        self.judge();
        self.speak_up();
        self.due = self.deadline();
    }

    fn take(&mut self, before: Option<Heard>, beat: &Beat) {
        let step = before.map_or(1, |last| beat.seq.wrapping_sub(last.beat.seq));
        let interval = Duration::from_millis(beat.interval_ms.into());
        self.silence.beat(self.now, step, interval);
        self.loss_in.add(step - 1, step);
        self.beats_in += 1;
        self.peer_epoch = Some(beat.epoch);
        self.last = Some(Heard {
            beat: *beat,
            at: self.now,
        });
        if let Some(echo) = beat.echo {
            let fresh = before
                .and_then(|last| last.beat.echo)
                .is_none_or(|known| newer(echo.seq, known.seq));
            if fresh {
                let elapsed_us = self.clock_us().wrapping_sub(echo.sent_us);
                self.trip.echoed(elapsed_us, echo.hold_us);
                self.outward.told(echo.seq, beat.received);
            }
            self.rhythm.echoed(echo.seq);
            if self.ask.is_some_and(|ask| !newer(ask.seq, echo.seq)) {
                self.ask = None;
            }
        }
        let agreed = self.agreed();
        self.rhythm.agree(agreed, self.now);
    }

    /// The interval that both ends should keep: the shorter wish, but none that an end forbids.
    fn agreed(&self) -> u16 {
        let desired = self.desired();
        let required = millis(self.config.active);
        let Some(last) = &self.last else {
            return desired.max(required);
        };
        desired
            .min(last.beat.desired_ms)
            .max(required)
            .max(last.beat.required_ms)
    }

    fn desired(&self) -> u16 {
        millis(match self.activity {
            Activity::Active => self.config.active,
            Activity::Standby => self.config.standby,
            Activity::Cold => self.config.cold,
        })
    }

    /// The worst of what we hear, what the peer hears, and whether it answers.
    fn level(&self) -> (Hearing, Cause) {
        let own = self.silence.hearing(self.now);
        let peer = self.last.map_or(own, |last| last.beat.hearing);
        let asked = match self.ask_deadlines() {
            Some((_, dead)) if self.now >= dead => Hearing::Silent,
            Some((suspect, _)) if self.now >= suspect => Hearing::Unsure,
            _ => Hearing::Hears,
        };
        let (worst, cause) = [
            (own, Cause::Silence),
            (peer, Cause::Unheard),
            (asked, Cause::Unanswered),
        ]
        .into_iter()
        .max_by_key(|&(hearing, _)| hearing as u8)
        .unwrap_or((own, Cause::Silence));
        if worst == Hearing::Hears && (own == Hearing::Waiting || peer == Hearing::Waiting) {
            return (Hearing::Waiting, cause);
        }
        (worst, cause)
    }

    fn ask_deadlines(&self) -> Option<(Instant, Instant)> {
        let ask = self.ask?;
        let answer = ask.at + self.trip.patience()? + self.silence.margin();
        Some((
            answer + suspect_after(ask.interval),
            answer + dead_after(ask.interval),
        ))
    }

    fn judge(&mut self) {
        let (level, cause) = self.level();
        let interval = self.silence.interval;
        if self.standing.judge(self.now, level, interval) {
            self.cause = match level {
                Hearing::Hears => Cause::Clean,
                _ => cause,
            };
        }
    }

    /// What changed is told at once rather than at the next beat.
    fn speak_up(&mut self) {
        let says = (self.silence.hearing(self.now), self.draining);
        if says != self.said && self.rhythm.seq != 0 {
            self.rhythm.hurry(self.now);
        }
    }

    fn deadline(&self) -> Instant {
        if self.state() != self.told || self.restarted {
            return self.now;
        }
        let ask = self.ask_deadlines();
        let silences = [
            Some(self.silence.suspect_at()),
            Some(self.silence.dead_at()),
            ask.map(|(suspect, _)| suspect),
            ask.map(|(_, dead)| dead),
        ];
        let clean = self.standing.clean_at(self.silence.interval);
        silences
            .into_iter()
            .chain([clean])
            .flatten()
            .filter(|&at| at > self.now)
            .fold(self.rhythm.next(), Instant::min)
    }

    fn beat(&mut self, seq: u32) -> Beat {
        self.beats_out += 1;
        self.said = (self.silence.hearing(self.now), self.draining);
        Beat {
            epoch: self.config.epoch,
            seq,
            sent_us: self.clock_us(),
            echo: self.last.map(|last| Echo {
                seq: last.beat.seq,
                sent_us: last.beat.sent_us,
                hold_us: micros(self.now.saturating_duration_since(last.at)),
            }),
            received: self.beats_in as u32,
            hearing: self.said.0,
            draining: self.draining,
            interval_ms: self.rhythm.announced_ms,
            desired_ms: self.desired(),
            required_ms: millis(self.config.active),
            load: self.load,
        }
    }

    /// Wraps after 71 minutes, and so do the differences that are made of it.
    fn clock_us(&self) -> u32 {
        self.now.saturating_duration_since(self.origin).as_micros() as u32
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u16 {
    u16::try_from(duration.as_millis())
        .unwrap_or(INTERVAL_MS_MAX)
        .clamp(1, INTERVAL_MS_MAX)
}
