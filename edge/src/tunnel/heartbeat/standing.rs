//! From what is heard to a verdict: worse at once, better only after a clean spell.

use std::time::{Duration, Instant};

use vector_proto::tunnel::beat::Hearing;

use super::{
    damping::{self, Damping},
    silence::{dead_after, suspect_after},
};

/// What the detector says of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Both directions carry packets.
    Up,
    /// As up, but an end wants no new exchanges.
    Draining,
    /// A direction was silent for three intervals, or the path is on its way back.
    Suspect,
    /// A direction was silent for five.
    Down,
}

/// Why a state changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cause {
    /// Nothing came.
    Silence,
    /// The peer says that nothing came to it.
    Unheard,
    /// We asked for a faster rhythm and got no answer.
    Unanswered,
    /// All was well for long enough.
    Clean,
    /// An end began or ended to drain.
    Drain,
}

/// A change of state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transition {
    /// The state that was told last.
    pub from: State,
    /// The state now.
    pub to: State,
    /// Why.
    pub cause: Cause,
}

/// The verdict, and what it takes to change it.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    /// Never [`State::Draining`].
    pub(super) state: State,
    /// Times that the path went down.
    pub(super) flaps: u64,
    /// On the way back from down.
    recovering: bool,
    clean_since: Option<Instant>,
    down: Damping,
    suspect: Damping,
}

impl Standing {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            state: State::Up,
            flaps: 0,
            recovering: false,
            clean_since: None,
            down: Damping::new(damping::DOWN, now),
            suspect: Damping::new(damping::SUSPECT, now),
        }
    }

    pub(super) fn reconnected(&mut self) {
        self.clean_since = None;
        if self.state == State::Down {
            self.state = State::Suspect;
            self.recovering = true;
        }
    }

    /// Takes note of how the path is now. True if that changed the verdict.
    pub(super) fn judge(&mut self, now: Instant, level: Hearing, interval: Duration) -> bool {
        let before = self.state;
        if level != Hearing::Hears {
            self.clean_since = None;
        }
        match level {
            Hearing::Waiting => {}
            Hearing::Hears => self.recover(now, interval),
            Hearing::Unsure => {
                if self.state == State::Up {
                    self.suspect.failed(now);
                    self.state = State::Suspect;
                }
            }
            Hearing::Silent => {
                if self.state != State::Down && !self.recovering {
                    self.flaps += 1;
                    self.down.failed(now);
                }
                self.state = State::Down;
            }
        }
        self.state != before
    }

    fn recover(&mut self, now: Instant, interval: Duration) {
        self.clean_since.get_or_insert(now);
        while self.clean_at(interval).is_some_and(|at| now >= at) {
            self.recovering = self.state == State::Down;
            self.state = if self.recovering {
                State::Suspect
            } else {
                State::Up
            };
        }
    }

    /// When the path will have been clean for long enough to be trusted more, if it stays so.
    pub(super) fn clean_at(&self, interval: Duration) -> Option<Instant> {
        let few = suspect_after(interval);
        let spell = match self.state {
            State::Up | State::Draining => return None,
            State::Down => dead_after(interval),
            State::Suspect if self.recovering => self.down.spell().max(few),
            State::Suspect => self.suspect.spell().max(few),
        };
        self.clean_since.map(|since| since + spell)
    }
}
