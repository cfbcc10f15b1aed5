//! Which revisions are in force, and which come next. Pure.
//!
//! Kept are the revision and digest of what the configuration leads to, and, while a change is under way, of what everybody
//! has who is no canary. A node never goes back to a number that it has left: whoever is no canary any more gets a new one, and
//! the first revision is the highest of both.

use bytes::Bytes;

use crate::coordinate::Revision;

/// Bytes of a SHA-256, behind the eight of a revision.
const DIGEST_BYTES: usize = 32;

/// What the next snapshot must differ from.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct InForce {
    /// What the configuration leads to: for all, or for canaries.
    pub(super) all: Side,
    /// What the others have while there are canaries.
    pub(super) rest: Option<Side>,
    /// When it was put.
    pub(super) changed: Revision,
}

/// A revision and the digest of what it is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Side {
    pub(super) revision: u64,
    content: Vec<u8>,
}

impl Side {
    fn read(value: &[u8]) -> Option<Self> {
        let (revision, content) = value.split_at_checked(8)?;
        Some(Self {
            revision: u64::from_be_bytes(revision.try_into().ok()?),
            content: content.to_vec(),
        })
    }
}

impl InForce {
    pub(super) fn read(value: &Bytes, changed: Revision) -> Self {
        let first = value.len().min(8 + DIGEST_BYTES);
        let (all, rest) = value.split_at(first);
        Self {
            all: Side::read(all).unwrap_or_default(),
            rest: Side::read(rest),
            changed,
        }
    }

    pub(super) fn value(&self) -> Vec<u8> {
        let mut value = Vec::new();
        for side in [Some(&self.all), self.rest.as_ref()].into_iter().flatten() {
            value.extend_from_slice(&side.revision.to_be_bytes());
            value.extend_from_slice(&side.content);
        }
        value
    }

    /// Whether somebody is told this revision.
    pub(super) fn is(&self, revision: u64) -> bool {
        let rest = self.rest.as_ref();
        self.all.revision == revision || rest.is_some_and(|rest| rest.revision == revision)
    }

    /// What is in force with these digests; `None` when it is already.
    pub(super) fn next(&self, all: Vec<u8>, rest: Option<Vec<u8>>) -> Option<Self> {
        let mut highest = self.all.revision;
        let mut new = |content: Vec<u8>| {
            highest += 1;
            Side {
                revision: highest,
                content,
            }
        };
        let next = match rest {
            None if self.all.content == all => Self {
                all: self.all.clone(),
                rest: None,
                changed: 0,
            },
            None => Self {
                all: new(all),
                rest: None,
                changed: 0,
            },
            Some(rest) => {
                let before = self.rest.as_ref().unwrap_or(&self.all);
                let same = before.content == rest;
                let rest = if same { before.clone() } else { new(rest) };
                let still = same && self.rest.is_some() && self.all.content == all;
                Self {
                    all: if still { self.all.clone() } else { new(all) },
                    rest: Some(rest),
                    changed: 0,
                }
            }
        };
        (next.all != self.all || next.rest != self.rest).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(of: u8) -> Vec<u8> {
        vec![of; DIGEST_BYTES]
    }

    /// Revisions of all and of the rest, after a step; what is written reads back.
    fn step(now: &mut InForce, all: u8, rest: Option<u8>) -> (u64, Option<u64>) {
        if let Some(next) = now.next(digest(all), rest.map(digest)) {
            *now = InForce::read(&next.value().into(), 0);
            assert_eq!(*now, next);
        }
        let rest = now.rest.as_ref().map(|rest| rest.revision);
        assert!(rest.is_none_or(|rest| rest < now.all.revision));
        (now.all.revision, rest)
    }

    #[test]
    fn revisions_only_go_up_for_everybody() {
        let mut now = InForce::default();
        assert_eq!(step(&mut now, 1, None), (1, None));
        assert_eq!(step(&mut now, 1, None), (1, None), "nothing is new");
        assert_eq!(step(&mut now, 2, Some(1)), (2, Some(1)), "canaries go on");
        assert!(now.is(1) && now.is(2) && !now.is(3));
        assert_eq!(step(&mut now, 3, Some(1)), (3, Some(1)), "a second change");
        assert_eq!(step(&mut now, 3, None), (3, None), "everybody follows");
        assert_eq!(step(&mut now, 4, Some(3)), (4, Some(3)));
        assert_eq!(step(&mut now, 6, Some(5)), (6, Some(5)), "a node has come");
        assert_eq!(step(&mut now, 5, None), (7, None), "back, by a new number");
        assert_eq!(step(&mut now, 5, Some(5)), (8, Some(7)));
    }

    #[test]
    fn what_is_there_from_before_is_read() {
        let old = [&7_u64.to_be_bytes()[..], b"restored"].concat();
        let mut now = InForce::read(&old.into(), 3);
        assert_eq!(step(&mut now, 1, None), (8, None));
        assert_eq!(InForce::read(&Bytes::new(), 0), InForce::default());
    }
}
