//! What a path costs by what was measured on it, and which of several is taken. Pure: whole microseconds, no clock.
//!
//! The cost is about the time in which a request of a few packets and the first token of its answer get through: the round trip
//! of every hop, what it wavers, what its losses hold up, all the more of it the more exchanges share it. A path that is taken
//! is left only for one that is clearly cheaper, so that two of nearly the same cost do not take turns.

use std::time::Duration;

use super::{Condition, heartbeat::Measures};

/// How many times what a round trip wavers counts.
const WAVERS: u64 = 2;

/// Packets that all have to come through before a client sees something: of the prompt, what acknowledges it, the first
/// token. Each that is lost is sent again.
const PACKETS: u64 = 8;

/// What finding out costs besides a round trip, at the least.
const RECOVERY_US: u64 = 10_000;

/// So many exchanges on a link make it twice as dear: it has room for thousands, and its round trip counts more.
const TWICE_AS_DEAR: u64 = 1_000;

/// What a cheaper path must save: both this part of the cost, and this time.
const SAVES_PART: u64 = 10;
const SAVES_US: u64 = 5_000;

/// Heartbeats after which what a round trip wavers is measured, and no longer the half of it that it begins with.
const SETTLED_BEATS: u64 = 32;

/// Nothing takes longer, whatever a peer says.
const ROUND_TRIP_MAX_US: u32 = 30_000_000;

const PPM: u64 = 1_000_000;

/// What was measured on one link.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Hop {
    /// Smoothed round trip.
    pub rtt_us: u32,
    /// How much it wavers.
    pub jitter_us: u32,
    /// Packets lost of a million, there and back together.
    pub loss_ppm: u32,
}

impl Hop {
    /// By heartbeats; nothing before the first came back.
    #[must_use]
    pub fn measured(measures: &Measures) -> Option<Self> {
        let wavers = match measures.beats_in < SETTLED_BEATS {
            true => measures.jitter,
            false => measures.rtt_deviation.max(measures.jitter),
        };
        Some(Self {
            rtt_us: micros(measures.rtt?),
            jitter_us: micros(wavers),
            loss_ppm: (f64::from(measures.loss) * PPM as f64) as u32,
        })
    }

    /// Of which nothing but the round trip is known.
    #[must_use]
    pub fn of_rtt(rtt: Duration) -> Self {
        Self {
            rtt_us: micros(rtt),
            ..Self::default()
        }
    }

    /// As a peer says it, but nothing absurd.
    #[must_use]
    pub fn bounded(self) -> Self {
        Self {
            rtt_us: self.rtt_us.min(ROUND_TRIP_MAX_US),
            jitter_us: self.jitter_us.min(ROUND_TRIP_MAX_US),
            loss_ppm: self.loss_ppm.min(2 * PPM as u32),
        }
    }

    /// What one exchange costs on it.
    #[must_use]
    pub fn cost_us(self) -> u32 {
        let hop = self.bounded();
        let (rtt, wavers) = (u64::from(hop.rtt_us), u64::from(hop.jitter_us) * WAVERS);
        let lost = (rtt + RECOVERY_US) * u64::from(hop.loss_ppm) * PACKETS / PPM;
        u32::try_from(rtt + wavers + lost).unwrap_or(u32::MAX)
    }

    /// Whether it differs by so much from what was told that others should hear of it.
    #[must_use]
    pub fn is_news(self, told: Self) -> bool {
        let (cost, known) = (self.cost_us(), told.cost_us());
        cost.abs_diff(known) > known / 16 + 500
    }
}

/// The same cost when so many exchanges share the link.
#[must_use]
pub fn shared_us(cost_us: u32, exchanges: u32) -> u64 {
    let cost = u64::from(cost_us);
    cost + cost * u64::from(exchanges) / TWICE_AS_DEAR
}

/// What a path over a relay may cost whose second hop nobody has told of: as much more than the direct one as control expects.
/// `direct`: its measured round trip, and what control expects of it.
#[must_use]
pub fn expected_us(first_hop_us: u64, score: u64, direct: Option<(u64, u64)>) -> u64 {
    let cost = match direct {
        Some((rtt, of)) if of > 0 => {
            let cost = u128::from(rtt) * u128::from(score) / u128::from(of);
            u64::try_from(cost).unwrap_or(u64::MAX)
        }
        _ => score,
    };
    cost.max(first_hop_us)
}

/// Whether it is worth leaving what costs `known_us`.
#[must_use]
pub const fn is_clearly_cheaper(cost_us: u64, known_us: u64) -> bool {
    let part = known_us / SAVES_PART;
    let saves = if part > SAVES_US { part } else { SAVES_US };
    known_us > cost_us && known_us - cost_us >= saves
}

/// Chooses among paths that are offered one by one, the one that was expected to be best first.
#[derive(Clone, Copy, Debug)]
pub struct Choice<T> {
    /// Which one is in use.
    in_use: usize,
    /// What there is to lose: the one in use, or else the first.
    held: Option<Offer<T>>,
    cheapest: Option<Offer<T>>,
}

#[derive(Clone, Copy, Debug)]
struct Offer<T> {
    at: usize,
    condition: Condition,
    cost_us: u64,
    what: T,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chosen<T> {
    /// Number of the path.
    pub at: usize,
    /// It is clearly cheaper than the one in use, which could be had as well.
    pub instead: bool,
    /// What was said of it.
    pub what: T,
}

impl<T: Copy> Choice<T> {
    /// `in_use`: number of the path that was taken before.
    #[must_use]
    pub const fn new(in_use: usize) -> Self {
        Self {
            in_use,
            held: None,
            cheapest: None,
        }
    }

    /// One more path that may be taken. Its condition comes before its cost.
    pub fn offer(&mut self, at: usize, condition: Condition, cost_us: u64, what: T) {
        let offer = Offer {
            at,
            condition,
            cost_us,
            what,
        };
        match self.cheapest {
            Some(known) if known.condition < condition => {}
            Some(known) if known.condition == condition => {
                if cost_us < known.cost_us {
                    self.cheapest = Some(offer);
                }
                if at == self.in_use {
                    self.held = Some(offer);
                }
            }
            _ => (self.held, self.cheapest) = (Some(offer), Some(offer)),
        }
    }

    /// The one to take.
    #[must_use]
    pub fn chosen(self) -> Option<Chosen<T>> {
        let (held, cheapest) = (self.held?, self.cheapest?);
        let better = is_clearly_cheaper(cheapest.cost_us, held.cost_us);
        let Offer { at, what, .. } = if better { cheapest } else { held };
        Some(Chosen {
            at,
            instead: better && held.at == self.in_use,
            what,
        })
    }
}

fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros())
        .unwrap_or(ROUND_TRIP_MAX_US)
        .min(ROUND_TRIP_MAX_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn hop(rtt_ms: u32, jitter_ms: u32, loss_ppm: u32) -> Hop {
        Hop {
            rtt_us: rtt_ms * 1_000,
            jitter_us: jitter_ms * 1_000,
            loss_ppm,
        }
    }

    /// Of one hop, or of two with nothing else on them.
    fn cost(hops: &[Hop]) -> u64 {
        hops.iter().map(|hop| u64::from(hop.cost_us())).sum()
    }

    #[test]
    fn loss_and_what_wavers_weigh_as_much_as_they_hold_up() {
        let relay = [hop(5, 0, 0), hop(165, 1, 0)];
        for (direct, left) in [
            (hop(150, 0, 0), false),
            (hop(150, 0, 1_000), false),
            (hop(150, 0, 10_000), false),
            // Cheaper by less than a tenth.
            (hop(150, 0, 20_000), false),
            (hop(150, 0, 50_000), true),
            (hop(150, 40, 0), true),
            (hop(150, 10, 0), false),
            (hop(200, 0, 0), true),
            (hop(180, 0, 0), false),
        ] {
            let (ours, theirs) = (cost(&relay), cost(&[direct]));
            let found = is_clearly_cheaper(ours, theirs);
            assert_eq!(found, left, "{direct:?}: {ours} against {theirs}");
        }
        // Loss on either hop counts, and no figure overflows.
        let lossy = cost(&[hop(5, 0, 0), hop(165, 0, 50_000)]);
        assert!(lossy > cost(&relay) + 50_000);
        let absurd = Hop {
            rtt_us: u32::MAX,
            jitter_us: u32::MAX,
            loss_ppm: u32::MAX,
        };
        assert_eq!(absurd.cost_us(), absurd.bounded().cost_us());
        assert_eq!(absurd.bounded().loss_ppm, 2_000_000);
        assert!(shared_us(absurd.cost_us(), u32::MAX) > u64::from(u32::MAX));
    }

    #[test]
    fn near_links_are_all_alike() {
        for (one, other) in [(100, 4_900), (1_000, 5_000), (0, 4_999)] {
            assert!(!is_clearly_cheaper(one, other), "{one} {other}");
        }
        assert!(is_clearly_cheaper(1_000, 6_000));
        assert!(!is_clearly_cheaper(90_001, 100_000));
        assert!(is_clearly_cheaper(90_000, 100_000));
        assert!(!is_clearly_cheaper(u64::MAX, u64::MAX));
    }

    #[test]
    fn a_link_that_many_share_is_dearer() {
        assert_eq!(shared_us(20_000, 0), 20_000);
        assert_eq!(shared_us(20_000, 1_000), 40_000);
        // Two exchanges are no reason to go round the world.
        assert!(!is_clearly_cheaper(60_000, shared_us(20_000, 2)));
    }

    #[test]
    fn a_hop_that_nobody_told_of_is_as_much_longer_as_control_expects() {
        assert_eq!(expected_us(1_000, 86_000, Some((150_000, 80_000))), 161_250);
        assert_eq!(expected_us(1_000, 86_000, None), 86_000);
        assert_eq!(expected_us(1_000, 86_000, Some((150_000, 0))), 86_000);
        let first_hop = expected_us(200_000, 86_000, Some((150_000, 80_000)));
        assert_eq!(first_hop, 200_000, "the whole is no shorter than a part");
        assert_eq!(expected_us(0, u64::MAX, Some((u64::MAX, 1))), u64::MAX);
    }

    #[test]
    fn a_link_that_has_just_come_up_is_not_taken_for_one_that_wavers() {
        let mut measures = Measures {
            rtt: Some(Duration::from_millis(150)),
            rtt_deviation: Duration::from_millis(75),
            jitter: Duration::from_millis(1),
            loss: 0.05,
            beats_in: 1,
            ..Measures::default()
        };
        assert_eq!(Hop::measured(&measures), Some(hop(150, 1, 50_000)));
        measures.beats_in = SETTLED_BEATS;
        assert_eq!(Hop::measured(&measures), Some(hop(150, 75, 50_000)));
        measures.rtt = None;
        assert_eq!(Hop::measured(&measures), None);
    }

    /// Which of these is taken, and whether instead of the one in use.
    fn chosen(in_use: usize, offers: &[(usize, Condition, u64)]) -> Option<(usize, bool)> {
        let mut choice = Choice::new(in_use);
        for &(at, condition, cost_ms) in offers {
            choice.offer(at, condition, cost_ms * 1_000, ());
        }
        choice.chosen().map(|chosen| (chosen.at, chosen.instead))
    }

    #[test]
    fn what_is_in_use_is_left_for_something_clearly_better_only() {
        use Condition::{Down, Suspect, Up};
        assert_eq!(chosen(0, &[]), None);
        for (in_use, offers, taken) in [
            (0, &[(0, Up, 150), (1, Up, 140)][..], (0, false)),
            (0, &[(0, Up, 150), (1, Up, 120)], (1, true)),
            // And back again only when it is as much better.
            (1, &[(0, Up, 115), (1, Up, 120)], (1, false)),
            (1, &[(0, Up, 90), (1, Up, 120)], (0, true)),
            // The condition comes first, whatever is in use and in whatever order they come.
            (0, &[(0, Suspect, 10), (1, Up, 200)], (1, false)),
            (1, &[(0, Up, 200), (1, Suspect, 10)], (0, false)),
            (
                1,
                &[(0, Down, 1), (1, Down, 200), (2, Suspect, 300)],
                (2, false),
            ),
            // One that is in use and cannot be had is none: the first is held on to, and stays the one to come back to.
            (7, &[(0, Up, 150), (1, Up, 140)], (0, false)),
            (7, &[(1, Up, 150), (2, Up, 100)], (2, false)),
            (2, &[(0, Up, 100), (1, Up, 97), (2, Up, 105)], (2, false)),
        ] {
            assert_eq!(chosen(in_use, offers), Some(taken), "{in_use} {offers:?}");
        }
    }
}
