//! Which word about an attachment still counts, and how many may be made. Pure: time is an argument.
//!
//! Each end numbers what it attaches and asks for. A word that is older than another one heard before
//! changes nothing, so a late message is harmless; and nobody moves an exchange faster than its
//! allowance refills, so a storm of attachments ends in silence instead of work.

use std::time::{Duration, Instant};

/// Attachments and moves that one end of an exchange may make in a row.
pub const ATTACH_BURST: u32 = 32;

/// One more may be made each time this has passed.
pub const ATTACH_REFILL: Duration = Duration::from_millis(250);

/// Why a word about an attachment changes nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Ignored {
    /// A later one was heard before.
    #[error("number {heard} was heard before number {said}")]
    Stale {
        /// Its number.
        said: u32,
        /// The latest number.
        heard: u32,
    },
    /// Too many in too short a time.
    #[error("more than {ATTACH_BURST} attachments in a row")]
    Storm,
}

/// The attachments of one exchange, as one of its ends counts them.
#[derive(Debug)]
pub struct Attachments {
    /// Number of the last one this end made.
    made: u32,
    /// Number of the last stream the other end attached.
    streams: u32,
    /// Number of the last request of the other end to go on elsewhere.
    asked: u32,
    /// How many more may be made or heard now.
    allowance: u32,
    refilled: Option<Instant>,
}

impl Default for Attachments {
    fn default() -> Self {
        Self {
            made: 0,
            streams: 0,
            asked: 0,
            allowance: ATTACH_BURST,
            refilled: None,
        }
    }
}

impl Attachments {
    /// The number of the next attachment of this end, unless it made too many.
    pub fn make(&mut self, now: Instant) -> Option<u32> {
        self.take(now).ok()?;
        self.made += 1;
        Some(self.made)
    }

    /// The same for a second stream beside the one that carries the exchange: it is not needed as a move is, so half of what
    /// may be made is left for those, however often a path flickers.
    pub fn make_twin(&mut self, now: Instant) -> Option<u32> {
        self.refill(now);
        (self.allowance > ATTACH_BURST / 2)
            .then(|| self.make(now))
            .flatten()
    }

    /// The other end attached a stream of its own.
    ///
    /// # Errors
    /// [`Ignored`] when the stream is to be closed.
    pub fn hear_stream(&mut self, number: u32, now: Instant) -> Result<(), Ignored> {
        if number < self.streams {
            return Err(Ignored::Stale {
                said: number,
                heard: self.streams,
            });
        }
        self.take(now)?;
        self.streams = number;
        Ok(())
    }

    /// The other end asks this one to go on elsewhere.
    ///
    /// # Errors
    /// [`Ignored`] when this end stays where it is.
    pub fn hear_ask(&mut self, number: u32, now: Instant) -> Result<(), Ignored> {
        if number <= self.asked {
            return Err(Ignored::Stale {
                said: number,
                heard: self.asked,
            });
        }
        self.take(now)?;
        self.asked = number;
        Ok(())
    }

    fn take(&mut self, now: Instant) -> Result<(), Ignored> {
        self.refill(now);
        self.allowance = self.allowance.checked_sub(1).ok_or(Ignored::Storm)?;
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let since = self.refilled.get_or_insert(now);
        let refills = now.saturating_duration_since(*since).as_millis() / ATTACH_REFILL.as_millis();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        if refills > 0 {
            self.allowance = self.allowance.saturating_add(refills).min(ATTACH_BURST);
            *since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_word_changes_nothing() {
        let (mut at, now) = (Attachments::default(), Instant::now());
        assert_eq!(at.hear_ask(2, now), Ok(()));
        let stale = Err(Ignored::Stale { said: 2, heard: 2 });
        assert_eq!(at.hear_ask(2, now), stale);
        assert!(at.hear_ask(1, now).is_err());
        // The stream of the same move counts for itself.
        assert_eq!(at.hear_stream(2, now), Ok(()));
        assert!(at.hear_stream(1, now).is_err());
        assert_eq!(at.hear_ask(3, now), Ok(()));
    }

    #[test]
    fn a_storm_is_silence_until_time_has_passed() {
        let (mut at, now) = (Attachments::default(), Instant::now());
        let heard = (1..=1000).filter(|&number| at.hear_ask(number, now).is_ok());
        assert_eq!(heard.count(), ATTACH_BURST as usize);
        assert_eq!(at.hear_ask(2000, now), Err(Ignored::Storm));
        assert_eq!(at.make(now), None);
        let later = now + ATTACH_REFILL;
        assert_eq!(at.hear_ask(2000, later), Ok(()));
        assert_eq!(at.hear_ask(2001, later), Err(Ignored::Storm));
        let much_later = now + ATTACH_REFILL * 1000;
        assert_eq!(at.make(much_later), Some(1));
    }

    #[test]
    fn twins_leave_half_for_moves() {
        let (mut at, now) = (Attachments::default(), Instant::now());
        let twins = std::iter::from_fn(|| at.make_twin(now)).count();
        assert_eq!(twins, ATTACH_BURST as usize / 2);
        let moves = std::iter::from_fn(|| at.make(now)).count();
        assert_eq!(moves, ATTACH_BURST as usize / 2);
        // What is refilled is the moves' first.
        let later = now + ATTACH_REFILL * 3;
        assert_eq!(at.make_twin(later), None);
        assert!(at.make(later).is_some());
    }
}
