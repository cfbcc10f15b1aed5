//! What the attempts of one request have tried, and what the client is told when none is left.

use std::{sync::Arc, time::Duration};

use vector_proto::{
    refusal::{Code, Refusal},
    tunnel::v1,
};

use super::{
    ahead::Going,
    send::{Denied, Sent},
    upload::{MEMORY_BYTES_MAX, Upload},
};
use crate::{control_plane::ModelRow, tunnel::Path};

/// The attempts so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// Gone while it is pumped, and for good when its first bytes are forgotten.
    pub(super) upload: Option<Upload>,
    /// The request may be done twice.
    pub(super) twice: bool,
    /// See `affinity`.
    pub(super) affinity: u64,
    /// Number of the last attempt, from 1.
    pub(super) attempt: u32,
    /// What went ahead of the first one.
    pub(super) ahead: Option<Box<Going>>,
    /// The last attempt was what had gone ahead.
    pub(super) was_ahead: bool,
    /// Exchanges that were opened beside the attempts: what went ahead for nothing.
    pub(super) beside: u32,
    pub(super) tried: Vec<Tried>,
    /// What the client is told if nothing better comes.
    pub(super) last: Option<Denied>,
    /// The shortest rest of a candidate.
    pub(super) rest: Option<Duration>,
}

/// What came of trying every candidate.
pub(super) enum Round {
    Sent(Box<Sent>),
    Denied(Denied),
    /// Nothing, but something may come of it after this time; without one, after those who wait already.
    Rests(Option<Duration>),
}

/// What was tried and is not tried again.
#[derive(Debug)]
pub(super) enum Tried {
    /// The path failed; the egress may be fine.
    Path(Path),
    /// The egress could not serve this upstream.
    Egress(usize, Arc<str>),
    /// Others wait for this upstream.
    Aside(usize),
}

/// How a request waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wait {
    /// How long at least. Without it, only for those that were here before.
    pub(super) rest: Option<Duration>,
    /// It has waited before.
    pub(super) again: bool,
}

impl Tries {
    /// The last attempt's number on the wire: an egress takes each once.
    pub(super) const fn number(&self) -> u32 {
        self.attempt + self.beside
    }

    /// What went ahead, if it went over `path`. What went elsewhere is given up, and its number is taken.
    pub(super) fn ahead_over(&mut self, path: &Path) -> Option<Box<Going>> {
        let going = self.ahead.take()?;
        if going.path() == Some(path) {
            return Some(going);
        }
        self.beside += u32::from(going.is_opened());
        None
    }

    /// Gives up what went ahead.
    pub(super) fn stay(&mut self) {
        let going = self.ahead.take();
        self.beside += u32::from(going.is_some_and(|going| going.is_opened()));
    }

    /// Whether the whole request can still be sent.
    pub(super) fn can_send(&self) -> bool {
        self.upload.as_ref().is_some_and(Upload::is_replayable)
    }

    /// Whether it can be kept until something is ready. A body that still comes in is not: it would come too slowly.
    pub(super) fn can_wait(&self) -> bool {
        self.upload
            .as_ref()
            .is_some_and(|upload| upload.is_replayable() && upload.is_whole())
    }

    /// Memory that its body takes while it waits.
    pub(super) fn waiting_bytes(&self) -> usize {
        let bytes = self.upload.as_ref().map_or(0, Upload::bytes);
        usize::try_from(bytes).map_or(MEMORY_BYTES_MAX, |bytes| bytes.min(MEMORY_BYTES_MAX))
    }

    /// A candidate has nothing to serve it with for so long.
    pub(super) fn rests(&mut self, rest: Duration) {
        self.rest = Some(self.rest.map_or(rest, |known| known.min(rest)));
    }

    /// Leaves the first provider to those who wait for it, if it can itself wait for its turn should no other provider serve it.
    pub(super) fn stand_aside(&mut self, row: &ModelRow) {
        if self.can_wait()
            && let Some(first) = row.upstreams.first()
        {
            let upstreams = row.upstreams.iter().enumerate();
            let of_it =
                upstreams.filter(|(_, upstream)| upstream.provider.name == first.provider.name);
            self.tried.extend(of_it.map(|(at, _)| Tried::Aside(at)));
        }
    }

    /// What the client is told when the others failed, and its turn at the provider that it left to others does not come in
    /// time, but after `left`.
    pub(super) fn overtaken(&mut self, left: Duration) -> Denied {
        match self.last.take_if(|last| of_a_limit(last).is_none()) {
            Some(last) => last,
            None => self.resting(self.rest.map_or(left, |rest| rest.min(left))),
        }
    }

    /// Whether it was left to others.
    pub(super) fn stands_aside(&self) -> bool {
        self.tried.iter().any(|one| matches!(one, Tried::Aside(_)))
    }

    /// Begins anew: whoever rested may be ready.
    pub(super) fn forget(&mut self) {
        self.tried.clear();
        self.rest = None;
    }

    /// What the client is told when it is not worth waiting: the provider's own words if there are any, and in any case the
    /// shortest rest of all candidates.
    pub(super) fn resting(&self, rest: Duration) -> Denied {
        let ms = u64::try_from(rest.as_millis()).unwrap_or(u64::MAX).max(1);
        if let Some(refused) = self.last.as_ref().and_then(of_a_limit) {
            return Denied::Provider(Box::new(v1::Refused {
                retry_after_ms: ms,
                ..refused.clone()
            }));
        }
        let message = "Every credential that could serve this request is at its limit.";
        Refusal::new(Code::NoCredential, message)
            .after_ms(ms)
            .into()
    }
}

/// A provider's own word that it has had too many requests.
fn of_a_limit(denied: &Denied) -> Option<&v1::Refused> {
    let Denied::Provider(refused) = denied else {
        return None;
    };
    let head = refused.provider_head.as_ref();
    head.filter(|head| head.status == 429).map(|_| &**refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_hears_the_shortest_rest_and_the_providers_words() {
        let mut tries = Tries::default();
        for seconds in [9, 3, 7] {
            tries.rests(Duration::from_secs(seconds));
        }
        let rest = tries.rest.unwrap();
        let Denied::Ours(refusal) = tries.resting(rest) else {
            panic!("nobody else said anything")
        };
        assert_eq!(refusal.retry_after_ms, Some(3_000));
        let said = v1::Refused {
            retry_after_ms: 9_000,
            provider_head: Some(v1::ResponseHead {
                status: 429,
                ..v1::ResponseHead::default()
            }),
            ..v1::Refused::default()
        };
        tries.last = Some(Denied::Provider(Box::new(said)));
        let Denied::Provider(refused) = tries.resting(rest) else {
            panic!("the provider said something")
        };
        assert_eq!(refused.retry_after_ms, 3_000);
        tries.forget();
        assert_eq!(tries.rest, None);
    }
}
