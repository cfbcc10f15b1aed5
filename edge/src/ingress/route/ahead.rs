//! Prefers the egress that has a request's body already (`ingress::ahead`).

use super::{Among, Candidate, Draw};
use crate::tunnel::{Path, PathState};

/// It may cost so many times as much as the best one: about what a large body's way is of a first token's time.
const AHEAD_TIMES: f64 = 1.25;

impl<Up: Fn(&Path) -> Option<PathState>> Draw<'_, Up> {
    /// The same upstream over the egress that has the body, unless that is worse. Which upstream it is has been decided: a
    /// prompt cache saves more than a body's way, and weights are to be kept.
    pub(super) fn ahead(
        &self,
        among: Among<'_>,
        gone: Option<&Path>,
        (best, cost): (Candidate, f64),
    ) -> Candidate {
        let Some(gone) = gone.filter(|gone| **gone != best.path) else {
            return best;
        };
        let at = best.upstream - among.base;
        let egress = &among.upstreams[at].provider.egress;
        let Some(slot) = egress.iter().position(|egress| *egress == gone.egress) else {
            return best;
        };
        let one = &among.upstreams[at..=at];
        let how = (among.careful, among.resting);
        let one = Among::new(one, best.upstream, how, among.worst);
        match self.usable(one, slot, 1) {
            Some((_, there, there_cost))
                if there.path == *gone && there_cost <= cost * AHEAD_TIMES =>
            {
                there
            }
            _ => best,
        }
    }
}
