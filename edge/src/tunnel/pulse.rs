//! The detector's hands: sends and hears heartbeats beside each link, and writes its [`Vitals`].
//!
//! Whoever dialled a link dials a probe connection for it, too, over the same socket, and says by
//! a tag which link it is for; both ends then run a [`Detector`] on it, in one task each, with
//! phases spread by lot. A verdict closes nothing: exchanges are moved by whoever watches the
//! vitals. Only a link that stays dead is closed by its dialler, to be dialled anew.
//!
//! A node that is busy is not silent: all of this may run on a thread of its own ([`PulseThread`]), and where the socket's
//! reader has no time, what has come is taken from the socket before silence is judged.

mod passing;

mod thread;

use std::{
    net::SocketAddr,
    ops::ControlFlow,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt as _;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::task::TaskTracker;
use vector_proto::tunnel::beat::Beat;

use self::passing::{Onward, Passing};
pub use self::thread::PulseThread;
use super::{
    Credentials,
    heartbeat::{Activity, Config, Detector, State, Transition},
    link::Link,
    transport::quic::{
        Endpoint,
        probe::{Probe, Tag},
    },
    vitals::{Condition, Vitals},
};

/// How long a link may stay down before its dialler closes it: a new connection is faster again
/// than one whose timers have backed off.
const DEAD_MAX: Duration = Duration::from_millis(1_500);

/// How long the fast rhythm is kept after the last exchange, so that a client that asks one thing
/// after the other does not change it with each.
const LINGER: Duration = Duration::from_secs(2);

/// How long after the last exchange a link still stands ready.
const STANDBY_MAX: Duration = Duration::from_secs(600);

/// How often figures are told while nothing happens.
const MEASURES_EVERY: Duration = Duration::from_millis(250);

/// Time for a probe's handshake.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Pause before a probe is dialled again, by half of itself more or less.
const PROBE_PAUSE: Duration = Duration::from_millis(500);

/// Time for a probe to say which link it is for.
const TAG_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the socket is looked into while a heartbeat is late.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How often heartbeats are sent.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// While exchanges are in flight.
    pub active: Duration,
    /// While a link stands ready.
    pub standby: Duration,
    /// After ten minutes without exchange.
    pub cold: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            active: Duration::from_millis(10),
            standby: Duration::from_millis(50),
            cold: Duration::from_secs(1),
        }
    }
}

/// What all detectors of a node share.
#[derive(Clone, Debug)]
pub struct Pulses {
    epoch: u64,
    intervals: Intervals,
    /// Exchanges in flight over all links, as heartbeats tell.
    load: Arc<AtomicU32>,
    passing: Arc<Passing>,
    /// Where they run; on the runtime of whoever begins them if absent.
    home: Option<Handle>,
}

/// How a dialler reaches the peer of a link.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) endpoint: Endpoint,
    pub(super) address: SocketAddr,
    pub(super) name: String,
    pub(super) credentials: Arc<dyn Credentials>,
}

/// The detector of one link at work.
#[derive(Debug)]
pub(super) struct Pulse {
    link: Arc<Link>,
    vitals: Arc<Vitals>,
    detector: Detector,
    load: Arc<AtomicU32>,
    onward: Option<Onward>,
    /// This link's part of `load`.
    counted: u32,
    activity: Activity,
    /// When an exchange was last seen.
    used: Instant,
    /// Datagrams of the data connection when it was last looked at.
    looked: (u64, Instant),
    /// When the socket was last looked into.
    read: Instant,
    down_since: Option<Instant>,
    told: Instant,
}

/// Why heartbeats over a probe ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    LinkGone,
    ProbeLost,
    Dead,
}

impl Pulses {
    /// For a process of incarnation `epoch`.
    #[must_use]
    pub fn new(epoch: u64, intervals: Intervals) -> Self {
        Self {
            epoch,
            intervals,
            load: Arc::default(),
            passing: Arc::default(),
            home: None,
        }
    }

    /// The same, on a thread of their own.
    #[must_use]
    pub fn on(mut self, thread: &PulseThread) -> Self {
        self.home = Some(thread.handle().clone());
        self
    }

    /// Runs what must be punctual.
    pub(super) fn spawn<F>(&self, tasks: &TaskTracker, future: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match &self.home {
            Some(home) => tasks.spawn_on(future, home),
            None => tasks.spawn(future),
        }
    }

    /// A detector for a link. `memory` is the one of the link before it, over the same path.
    pub(super) fn watch(&self, link: &Arc<Link>, memory: Option<Detector>) -> Pulse {
        let now = Instant::now();
        let detector = match memory {
            Some(mut detector) => {
                detector.reconnected(now);
                detector
            }
            None => Detector::new(self.config(), now),
        };
        let mut pulse = Pulse {
            link: Arc::clone(link),
            vitals: Arc::clone(link.vitals()),
            detector,
            load: Arc::clone(&self.load),
            onward: Onward::of(link, &self.passing),
            counted: 0,
            activity: Activity::Standby,
            used: now.checked_sub(LINGER).unwrap_or(now),
            looked: (0, now),
            read: now,
            down_since: None,
            told: now,
        };
        pulse.tell(now);
        pulse
    }

    /// Answers a probe that the peer dialled for a link.
    ///
    /// Cancel safety: dropping the future stops the detector; the link's condition stays as it is.
    pub(super) async fn answer(&self, link: Arc<Link>, probe: Probe) {
        let superseded = link.vitals().take_over();
        let mut pulse = self.watch(&link, None);
        let ended = superseded
            .run_until_cancelled(pulse.beat(&probe, None))
            .await;
        tracing::debug!(peer = %link.peer, address = %link.address, ?ended, "probe ended");
        probe.close("no longer needed");
    }

    fn config(&self) -> Config {
        let Intervals {
            active,
            standby,
            cold,
        } = self.intervals;
        Config {
            epoch: self.epoch,
            active,
            standby,
            cold,
            phase: active.mul_f64(fastrand::f64()),
        }
    }
}

impl Pulse {
    /// Keeps a probe to the peer until the link is gone. Gives the detector back, for the next link.
    ///
    /// Cancel safety: dropping the future stops the detector.
    pub(super) async fn keep(mut self, door: Door, tag: Tag) -> Detector {
        loop {
            let received = self.link.received();
            let dialled = tokio::time::timeout(PROBE_TIMEOUT, door.dial(&tag));
            let ended = tokio::select! {
                () = self.link.disconnected() => Ended::LinkGone,
                dialled = dialled => match dialled {
                    Ok(Ok(probe)) => self.beat_over(&probe).await,
                    Ok(Err(error)) => {
                        tracing::debug!(peer = %self.link.peer, address = %self.link.address, %error, "probe failed");
                        Ended::ProbeLost
                    }
                    // Cut before the first heartbeat, from which on the detector would have told.
                    Err(_) if self.link.received() == received => Ended::Dead,
                    Err(_) => Ended::ProbeLost,
                },
            };
            match ended {
                Ended::LinkGone => break,
                Ended::Dead => {
                    self.link.close("the path is dead");
                    break;
                }
                Ended::ProbeLost => self.judge(),
            }
            let pause = PROBE_PAUSE.mul_f64(0.5 + fastrand::f64());
            let gone = tokio::time::timeout(pause, self.link.disconnected()).await;
            if gone.is_ok() {
                break;
            }
            self.detector.reconnected(Instant::now());
        }
        self.detector.clone()
    }

    /// Without a probe nobody asks the detector: a path that dies meanwhile would stay what it was.
    fn judge(&mut self) {
        let now = Instant::now();
        self.look(now);
        if let Some(transition) = self.detector.poll(now).transition {
            self.log(&transition);
        }
        self.tell(now);
    }

    async fn beat_over(&mut self, probe: &Probe) -> Ended {
        let ended = self.beat(probe, Some(DEAD_MAX)).await;
        if ended == Ended::ProbeLost && probe.was_reset() {
            // What knew the probe knew the link: both are of a process that is gone.
            self.link.close("the peer was restarted");
        }
        probe.close("no longer needed");
        ended
    }

    /// Sends and hears heartbeats until the probe or the link is gone, or it was dead for so long.
    async fn beat(&mut self, probe: &Probe, dead_max: Option<Duration>) -> Ended {
        let (link, vitals) = (Arc::clone(&self.link), Arc::clone(&self.vitals));
        let mut heard = pin!(probe.read());
        let mut woken = pin!(vitals.woken());
        let mut gone = pin!(link.disconnected());
        let mut timer = pin!(tokio::time::sleep_until(
            self.detector.next_deadline().into()
        ));
        loop {
            tokio::select! {
                biased;
                beat = &mut heard => {
                    let Ok(bytes) = beat else {
                        return Ended::ProbeLost;
                    };
                    self.hear(&bytes);
                    heard.set(probe.read());
                }
                () = &mut woken => {
                    self.used = Instant::now();
                    woken.set(vitals.woken());
                }
                () = &mut gone => return Ended::LinkGone,
                () = &mut timer => {}
            }
            if self.misses_some() {
                probe.read_now();
                tokio::task::yield_now().await;
                while let Some(beat) = heard.as_mut().now_or_never() {
                    let Ok(bytes) = beat else {
                        return Ended::ProbeLost;
                    };
                    self.hear(&bytes);
                    heard.set(probe.read());
                }
            }
            if let ControlFlow::Break(ended) = self.turn(probe, dead_max) {
                return ended;
            }
            let due = self.detector.next_deadline().into();
            if timer.deadline() != due {
                timer.as_mut().reset(due);
            }
        }
    }

    fn hear(&mut self, bytes: &[u8]) {
        let taken = Beat::decode(bytes)
            .map_err(|error| error.to_string())
            .and_then(|beat| {
                let heard = self.detector.heard(Instant::now(), &beat);
                heard.map_err(|error| error.to_string())?;
                if let Some(onward) = self.onward.as_ref().filter(|_| beat.load > 0) {
                    onward.heard(Instant::now());
                }
                Ok(())
            });
        if let Err(error) = taken {
            tracing::debug!(peer = %self.link.peer, error, "heartbeat ignored");
        }
    }

    /// Whether a heartbeat is late that may lie in the socket's buffer.
    fn misses_some(&mut self) -> bool {
        let now = Instant::now();
        let since = now.saturating_duration_since(self.read);
        let misses = self.detector.overdue(now) && since >= LOOK_EVERY;
        if misses {
            self.read = now;
        }
        misses
    }

    /// Does what is due.
    fn turn(&mut self, probe: &Probe, dead_max: Option<Duration>) -> ControlFlow<Ended> {
        let now = Instant::now();
        self.look(now);
        self.use_as_needed(now);
        let actions = self.detector.poll(now);
        if let Some(beat) = actions.send
            && probe.send(&beat.encode()).is_err()
        {
            return ControlFlow::Break(Ended::ProbeLost);
        }
        if actions.restarted {
            tracing::info!(peer = %self.link.peer, address = %self.link.address, "peer is another process than before");
        }
        if let Some(transition) = actions.transition {
            self.log(&transition);
            self.tell(now);
        } else if now.saturating_duration_since(self.told) >= MEASURES_EVERY {
            self.tell(now);
        }
        match self.down_since.zip(dead_max) {
            Some((since, dead_max)) if now.saturating_duration_since(since) >= dead_max => {
                ControlFlow::Break(Ended::Dead)
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// Any packet is a sign of life. Asking for them takes the connection's lock, so it is done only
    /// when a heartbeat is late; then twice, since a count alone does not say when they came.
    fn look(&mut self, now: Instant) {
        if !self.detector.overdue(now) {
            return;
        }
        let (count, at) = (self.link.received(), self.looked.1);
        if count != self.looked.0 {
            self.detector.any_packet(at);
        }
        self.looked = (count, now);
    }

    /// Beats as fast as the link is used, and tells how busy this node is.
    fn use_as_needed(&mut self, now: Instant) {
        let exchanges = self.vitals.exchanges();
        if exchanges != self.counted {
            let change = exchanges.wrapping_sub(self.counted);
            self.load.fetch_add(change, Ordering::Relaxed);
            self.counted = exchanges;
        }
        let load = u16::try_from(self.load.load(Ordering::Relaxed)).unwrap_or(u16::MAX);
        self.detector.says(now, load, self.link.leaving());
        if exchanges > 0 || self.onward.as_ref().is_some_and(|onward| onward.wakes(now)) {
            self.used = now;
        }
        let idle = now.saturating_duration_since(self.used);
        let activity = match idle {
            idle if idle < LINGER => Activity::Active,
            idle if idle < STANDBY_MAX => Activity::Standby,
            _ => Activity::Cold,
        };
        if activity == self.activity {
            return;
        }
        if self.activity == Activity::Active {
            self.vitals.doze();
            if self.vitals.exchanges() > 0 {
                // One began just before; it did not wake us.
                self.used = now;
                return;
            }
        }
        self.activity = activity;
        self.detector.activity(now, activity);
    }

    fn tell(&mut self, now: Instant) {
        let state = self.detector.state();
        self.vitals.measured(self.detector.measures());
        self.vitals.set(match state {
            State::Up | State::Draining => Condition::Up,
            State::Suspect => Condition::Suspect,
            State::Down => Condition::Down,
        });
        self.told = now;
        if state == State::Down {
            self.down_since.get_or_insert(now);
        } else {
            self.down_since = None;
        }
    }

    fn log(&self, transition: &Transition) {
        let Transition { from, to, cause } = transition;
        let (peer, address) = (&self.link.peer, &self.link.address);
        if *to == State::Down {
            tracing::warn!(%peer, %address, ?from, ?to, ?cause, "path down");
        } else {
            tracing::info!(%peer, %address, ?from, ?to, ?cause, "path changed");
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.load.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Door {
    async fn dial(&self, tag: &Tag) -> Result<Probe, super::transport::Error> {
        let client = self.credentials.client();
        let dialled = self.endpoint.probe(self.address, &self.name, &client);
        let probe = dialled.await?;
        probe.tell(tag).await?;
        Ok(probe)
    }
}

/// Finds the link that a probe is for, among those that its peer dialled. Waits a little, since
/// two connections do not come up in the order they were dialled in.
pub(super) async fn link_of(
    probe: &Probe,
    links: impl Fn() -> Vec<Arc<Link>>,
) -> Option<Arc<Link>> {
    let find = async {
        let tag = probe.told().await.ok()?;
        let is_meant = |link: &Arc<Link>| link.over_quic().is_some_and(|data| data.tag() == tag);
        loop {
            if let Some(link) = links().into_iter().find(is_meant) {
                return Some(link);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TAG_TIMEOUT, find).await.ok().flatten()
}
