//! A node's status in pieces: a long stream keeps the buffer of its largest message, and control has a thousand of them.

use std::mem;

use super::v1::Status;

/// Links of one piece, some 4 KiB.
pub const LINKS_MAX: usize = 64;

/// The pieces of a status, to be said in this order: links that find no room in the last one go ahead, as
/// [`Status::more`].
///
/// A control that knows no pieces takes each for a status, and the last one, which has all but some links, for the newest.
pub fn pieces(mut status: Status) -> impl Iterator<Item = Status> {
    let mut links = mem::take(&mut status.links);
    let ahead = links.len().saturating_sub(1) / LINKS_MAX * LINKS_MAX;
    status.links = links.split_off(ahead);
    let draining = status.draining;
    let mut links = links.into_iter();
    let ahead = std::iter::from_fn(move || {
        let some: Vec<_> = links.by_ref().take(LINKS_MAX).collect();
        (!some.is_empty()).then(|| Status {
            more: true,
            draining,
            links: some,
            ..Status::default()
        })
    });
    ahead.chain(std::iter::once(status))
}

#[cfg(test)]
mod tests {
    use super::{LINKS_MAX, pieces};
    use crate::control::v1::{LinkStatus, Status};

    #[test]
    fn a_status_is_whole_again_behind_its_last_piece() {
        for count in [0, 1, LINKS_MAX, LINKS_MAX + 1, 3 * LINKS_MAX] {
            let link = |number: usize| LinkStatus {
                rtt_us: number as u64,
                ..LinkStatus::default()
            };
            let status = Status {
                draining: true,
                exchanges: 7,
                links: (0..count).map(link).collect(),
                ..Status::default()
            };
            let said: Vec<Status> = pieces(status.clone()).collect();
            assert_eq!(said.len(), count.div_ceil(LINKS_MAX).max(1), "{count}");
            assert!(said.iter().all(|piece| piece.links.len() <= LINKS_MAX));
            let (last, ahead) = said.split_last().unwrap();
            assert!(!last.more && ahead.iter().all(|piece| piece.more && piece.draining));
            let links = said.iter().flat_map(|piece| piece.links.clone());
            let again = Status {
                links: links.collect(),
                ..last.clone()
            };
            assert_eq!(again, status);
        }
    }
}
