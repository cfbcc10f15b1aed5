//! A heartbeat: 42 bytes in one QUIC datagram, by which the two ends of a path watch each other.
//!
//! Modelled on BFD (RFC 5880), with timestamps that are echoed, so that round trip and loss each
//! way fall out. Numbers are big-endian and stand at fixed places. Sequence numbers, timestamps
//! and counts wrap; compare them with [`newer`]. A timestamp means something only to who wrote it.

/// Length of every heartbeat.
pub const BEAT_BYTES: usize = 42;

/// Longest interval that may be announced or asked for.
pub const INTERVAL_MS_MAX: u16 = 10_000;

const VERSION: u8 = 1;

const HEARING_BITS: u8 = 0b0011;
const DRAINING: u8 = 0b0100;
const ECHO: u8 = 0b1000;

/// One heartbeat.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Beat {
    /// Incarnation of the sender.
    pub epoch: u64,
    /// Grows by one with each heartbeat of a sender.
    pub seq: u32,
    /// When it was sent, in microseconds of the sender's own clock.
    pub sent_us: u32,
    /// The newest heartbeat that the sender has heard.
    pub echo: Option<Echo>,
    /// Heartbeats that the sender has heard in all.
    pub received: u32,
    /// Whether the sender hears the other end.
    pub hearing: Hearing,
    /// The sender wants no new exchanges.
    pub draining: bool,
    /// Time to the sender's next heartbeat, in milliseconds: silence is judged by it.
    pub interval_ms: u16,
    /// How often the sender would like both ends to beat.
    pub desired_ms: u16,
    /// The sender wants no heartbeats more often than this.
    pub required_ms: u16,
    /// Exchanges in flight at the sender, over all its links; 65,535 stands for more, too.
    pub load: u16,
}

/// What was last heard, sent back so that who sent it can tell the round trip.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Echo {
    /// Its sequence number.
    pub seq: u32,
    /// Its timestamp, as it came.
    pub sent_us: u32,
    /// Time from its arrival to this answer, in microseconds.
    pub hold_us: u32,
}

/// What an end says of the direction towards it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum Hearing {
    /// Nothing has come yet, and it is too early to worry.
    #[default]
    Waiting = 0,
    /// Packets come.
    Hears = 1,
    /// Several are overdue.
    Unsure = 2,
    /// None has come for so long that the direction counts as dead.
    Silent = 3,
}

/// Why bytes are no heartbeat.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BeatError {
    /// Too few or too many bytes.
    #[error("heartbeat of {0} bytes instead of {BEAT_BYTES}")]
    Length(usize),
    /// A version of the heartbeat that is not ours.
    #[error("heartbeat of version {0}")]
    Version(u8),
    /// Bits that have no meaning, or fields that contradict their flag.
    #[error("heartbeat with meaningless bits")]
    Bits,
    /// An interval that is zero or above [`INTERVAL_MS_MAX`].
    #[error("heartbeat with an interval of {0} ms")]
    Interval(u16),
}

impl Beat {
    /// The heartbeat as bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; BEAT_BYTES] {
        let mut out = [0; BEAT_BYTES];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let echo_flag = if self.echo.is_some() { ECHO } else { 0 };
        let draining = if self.draining { DRAINING } else { 0 };
        put(&[VERSION, self.hearing as u8 | draining | echo_flag]);
        for short in [
            self.load,
            self.interval_ms,
            self.desired_ms,
            self.required_ms,
        ] {
            put(&short.to_be_bytes());
        }
        put(&self.epoch.to_be_bytes());
        let echo = self.echo.unwrap_or(Echo {
            seq: 0,
            sent_us: 0,
            hold_us: 0,
        });
        for word in [
            self.seq,
            self.sent_us,
            echo.seq,
            echo.sent_us,
            echo.hold_us,
            self.received,
        ] {
            put(&word.to_be_bytes());
        }
        out
    }

    /// Reads a heartbeat.
    ///
    /// # Errors
    /// [`BeatError`] when these bytes are none. What [`Self::encode`] wrote is always one if its
    /// intervals are from 1 to [`INTERVAL_MS_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BeatError> {
        let bytes: &[u8; BEAT_BYTES] = bytes
            .try_into()
            .map_err(|_| BeatError::Length(bytes.len()))?;
        if bytes[0] != VERSION {
            return Err(BeatError::Version(bytes[0]));
        }
        let flags = bytes[1];
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let word = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (seq, sent_us, hold_us) = (word(26), word(30), word(34));
        let echo = (flags & ECHO != 0).then_some(Echo {
            seq,
            sent_us,
            hold_us,
        });
        let unasked = echo.is_none() && (seq, sent_us, hold_us) != (0, 0, 0);
        if flags & !(HEARING_BITS | DRAINING | ECHO) != 0 || unasked {
            return Err(BeatError::Bits);
        }
        let interval = |at: usize| match short(at) {
            good @ 1..=INTERVAL_MS_MAX => Ok(good),
            absurd => Err(BeatError::Interval(absurd)),
        };
        Ok(Self {
            epoch: u64::from(word(10)) << 32 | u64::from(word(14)),
            seq: word(18),
            sent_us: word(22),
            echo,
            received: word(38),
            hearing: match flags & HEARING_BITS {
                0 => Hearing::Waiting,
                1 => Hearing::Hears,
                2 => Hearing::Unsure,
                _ => Hearing::Silent,
            },
            draining: flags & DRAINING != 0,
            interval_ms: interval(4)?,
            desired_ms: interval(6)?,
            required_ms: interval(8)?,
            load: short(2),
        })
    }
}

/// Whether a wrapping number comes after another (RFC 1982): true for the half of all numbers that follow it.
#[must_use]
pub const fn newer(number: u32, than: u32) -> bool {
    let ahead = number.wrapping_sub(than);
    ahead != 0 && ahead < 1 << 31
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn beats() -> impl Strategy<Value = Beat> {
        let echo = proptest::option::of((any::<u32>(), any::<u32>(), any::<u32>()));
        let hearing = prop_oneof![
            Just(Hearing::Waiting),
            Just(Hearing::Hears),
            Just(Hearing::Unsure),
            Just(Hearing::Silent)
        ];
        let interval = 1..=INTERVAL_MS_MAX;
        (
            (any::<u64>(), any::<u32>(), any::<u32>(), any::<u32>()),
            (echo, hearing, any::<bool>(), any::<u16>()),
            (interval.clone(), interval.clone(), interval),
        )
            .prop_map(|(numbers, (echo, hearing, draining, load), intervals)| {
                let echo = echo.map(|(seq, sent_us, hold_us)| Echo {
                    seq,
                    sent_us,
                    hold_us,
                });
                Beat {
                    epoch: numbers.0,
                    seq: numbers.1,
                    sent_us: numbers.2,
                    echo,
                    received: numbers.3,
                    hearing,
                    draining,
                    interval_ms: intervals.0,
                    desired_ms: intervals.1,
                    required_ms: intervals.2,
                    load,
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(beat in beats()) {
            prop_assert_eq!(Beat::decode(&beat.encode()), Ok(beat));
        }

        #[test]
        fn no_bytes_break_the_reading(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(beat) = Beat::decode(&bytes) {
                prop_assert_eq!(&beat.encode()[..], &bytes[..]);
            }
        }

        #[test]
        fn of_two_numbers_one_is_newer(one in any::<u32>(), ahead in 1_u32..1 << 31) {
            prop_assert!(newer(one.wrapping_add(ahead), one));
            prop_assert!(!newer(one, one.wrapping_add(ahead)));
            prop_assert!(!newer(one, one));
        }
    }

    #[test]
    fn absurd_values_are_refused() {
        let good = Beat {
            epoch: 1,
            seq: 1,
            sent_us: 0,
            echo: None,
            received: 0,
            hearing: Hearing::Hears,
            draining: false,
            interval_ms: 10,
            desired_ms: 10,
            required_ms: 10,
            load: 0,
        };
        let with = |at: usize, byte: u8| {
            let mut bytes = good.encode();
            bytes[at] = byte;
            Beat::decode(&bytes)
        };
        assert_eq!(with(0, 2), Err(BeatError::Version(2)));
        assert_eq!(with(1, 0x10), Err(BeatError::Bits));
        assert_eq!(with(29, 1), Err(BeatError::Bits));
        assert_eq!(with(5, 0), Err(BeatError::Interval(0)));
        assert_eq!(with(8, 0xff), Err(BeatError::Interval(0xff0a)));
        assert_eq!(Beat::decode(&[1; 41]), Err(BeatError::Length(41)));
        assert_eq!(Beat::decode(&[1; 43]), Err(BeatError::Length(43)));
    }
}
