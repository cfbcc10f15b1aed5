//! How long an exchange without any way left is waited for at its ingress: the one place that decides it. Pure.
//!
//! When every way to an egress is silent while other nodes are heard, the egress is dead, most likely, and its clients are told
//! at once: that its links fell silent one by one was proof enough. When nobody is heard, it is this node's own line that is
//! out, and waiting costs nothing: nothing else could be done with the exchange, and the line may be back in a moment. The
//! same holds where the egress is the only node that is known.
//!
//! An exchange without an answer that may be done twice leaves a silent egress sooner: an error costs one call to a provider.
//!
//! An exchange that nobody is known to have taken may be opened at another egress, so it leaves as soon as one is heard; while
//! none is, it waits as well, since it would be refused for want of a path.

use std::time::Duration;

use super::Patience;
use crate::tunnel::Condition;

/// What an ingress sees when an exchange has no way left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    /// Ways to the egress that are known, dead or alive.
    pub(super) ways: usize,
    /// The connection of the last one is gone, not only silent.
    pub(super) gone: bool,
    /// The best that is seen of any node besides the egress, of other egresses if it is not `taken`. None if there is no other.
    pub(super) others: Option<Condition>,
    /// The egress is known to have the exchange.
    pub(super) taken: bool,
    /// It may be done twice, and has no answer yet.
    pub(super) repeatable: bool,
}

/// What follows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The exchange is lost.
    GiveUp,
    /// It may go on; look again after this time.
    Wait(Duration),
    /// It may go on, and its link's end will tell if not.
    WaitForLink,
}

/// Judges after `waited` without a way.
pub(super) fn judge(seen: Seen, waited: Duration, patience: &Patience) -> Verdict {
    let most = if seen.taken {
        patience_with_taken(seen, patience)
    } else {
        Some(patience_with_untaken(seen, patience))
    };
    let Some(most) = most else {
        return Verdict::WaitForLink;
    };
    match most.checked_sub(waited) {
        None | Some(Duration::ZERO) => Verdict::GiveUp,
        // Who is heard may change meanwhile.
        Some(left) => Verdict::Wait(left.min(patience.all_dead)),
    }
}

/// How long an exchange that the egress has is waited for; as long as its link lasts if that cannot be told.
const fn patience_with_taken(seen: Seen, patience: &Patience) -> Option<Duration> {
    if seen.ways < 2 && !seen.gone {
        // One silent way is a bad path more often than a dead egress, and there is no other witness.
        return None;
    }
    Some(match seen.others {
        _ if seen.ways < 2 => patience.only_dead,
        Some(Condition::Up) if seen.repeatable => patience.repeatable,
        Some(Condition::Up) => patience.all_dead,
        // Falling silent as well, or heard again and not yet trusted.
        Some(Condition::Suspect) => patience.unsure,
        None if seen.gone => patience.unsure,
        // No other node could take it, nor bear witness: an egress that is starved of its processor is silent, too.
        None | Some(Condition::Down) => patience.cut_off,
    })
}

/// The same for one that may be opened elsewhere.
const fn patience_with_untaken(seen: Seen, patience: &Patience) -> Duration {
    match seen.others {
        Some(Condition::Up) => Duration::ZERO,
        Some(Condition::Suspect) => patience.unsure,
        _ if seen.ways < 2 && seen.gone => patience.only_dead,
        None | Some(Condition::Down) => patience.cut_off,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// When an exchange is given up, if nothing changes.
    fn given_up(seen: Seen) -> Option<Duration> {
        let patience = Patience::default();
        let mut waited = Duration::ZERO;
        loop {
            match judge(seen, waited, &patience) {
                Verdict::GiveUp => return Some(waited),
                Verdict::Wait(time) => waited += time,
                Verdict::WaitForLink => return None,
            }
        }
    }

    fn seen(ways: usize, gone: bool, others: Option<Condition>) -> Seen {
        Seen {
            ways,
            gone,
            others,
            taken: true,
            repeatable: false,
        }
    }

    #[test]
    fn what_nobody_has_leaves_for_whoever_is_heard_and_waits_while_nobody_is() {
        let until = |gone, others| {
            given_up(Seen {
                taken: false,
                ..seen(1, gone, others)
            })
        };
        for gone in [false, true] {
            assert_eq!(until(gone, Some(Condition::Up)), Some(Duration::ZERO));
            assert_eq!(until(gone, Some(Condition::Suspect)), Some(200 * MS));
        }
        for others in [None, Some(Condition::Down)] {
            assert_eq!(until(false, others), Some(2_000 * MS), "{others:?}");
            assert_eq!(until(true, others), Some(500 * MS), "{others:?}");
        }
    }

    #[test]
    fn a_dead_egress_is_told_from_a_line_that_is_out() {
        for gone in [false, true] {
            let dead = given_up(seen(3, gone, Some(Condition::Up)));
            assert_eq!(dead, Some(100 * MS), "others are heard");
            let repeatable = given_up(Seen {
                repeatable: true,
                ..seen(3, gone, Some(Condition::Up))
            });
            assert_eq!(repeatable, Some(20 * MS), "it may be done twice");
            let out = given_up(seen(3, gone, Some(Condition::Down)));
            assert_eq!(out, Some(2_000 * MS), "nobody is heard");
            let unsure = given_up(seen(3, gone, Some(Condition::Suspect)));
            assert_eq!(unsure, Some(200 * MS), "others fall silent as well");
        }
    }

    #[test]
    fn without_a_witness_only_an_end_of_the_connection_is_proof() {
        assert_eq!(given_up(seen(3, false, None)), Some(2_000 * MS));
        assert_eq!(given_up(seen(3, true, None)), Some(200 * MS));
    }

    #[test]
    fn one_way_alone_is_no_witness_until_its_connection_is_gone() {
        for others in [None, Some(Condition::Up), Some(Condition::Down)] {
            assert_eq!(given_up(seen(1, false, others)), None);
            assert_eq!(given_up(seen(1, true, others)), Some(500 * MS));
        }
    }

    #[test]
    fn who_is_silent_a_moment_later_than_the_egress_is_looked_at_again() {
        let patience = Patience::default();
        let before = judge(
            seen(2, false, Some(Condition::Up)),
            Duration::ZERO,
            &patience,
        );
        assert_eq!(before, Verdict::Wait(100 * MS));
        let falling = judge(
            seen(2, false, Some(Condition::Suspect)),
            100 * MS,
            &patience,
        );
        assert_eq!(falling, Verdict::Wait(100 * MS));
        let then = judge(seen(2, false, Some(Condition::Down)), 100 * MS, &patience);
        assert_eq!(then, Verdict::Wait(100 * MS), "the whole line is out");
        assert_eq!(
            judge(seen(2, false, Some(Condition::Up)), 700 * MS, &patience),
            Verdict::GiveUp,
            "the line is back, the egress is not"
        );
    }
}
