//! What a node said last of itself, kept as bytes.
//!
//! An ingress tells of a link to every egress and relay: with a thousand nodes that is some 90 KiB in rows and a quarter of it
//! in bytes, for each of them. Only operators ever ask for it.

use std::sync::Arc;

use prost::Message as _;
use vector_proto::control::v1::Status;

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Said(Arc<[u8]>);

/// Appends what was said ahead of the rest. Encoded messages that follow each other are one, with the rows of both.
pub(super) fn append(ahead: &mut Vec<u8>, piece: Status) {
    let links = Status {
        links: piece.links,
        ..Status::default()
    };
    // A vector has room for whatever comes.
    let _ = links.encode(ahead);
}

impl Said {
    /// Of what a node said, behind the links that it said `ahead`.
    #[must_use]
    pub fn new(mut ahead: Vec<u8>, status: &Status) -> Self {
        ahead.reserve_exact(status.encoded_len());
        let _ = status.encode(&mut ahead);
        Self(ahead.into())
    }

    /// What it said.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::decode(&self.0[..]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::mem;

    use vector_proto::control::{
        status::{LINKS_MAX, pieces},
        v1::LinkStatus,
    };

    use super::*;

    #[test]
    fn what_was_said_is_read_back() {
        let link = |number| LinkStatus {
            peer: format!("egress-{number}"),
            rtt_us: number,
            ..LinkStatus::default()
        };
        let status = Status {
            draining: true,
            links: (0..3 * LINKS_MAX as u64).map(link).collect(),
            ..Status::default()
        };
        let mut ahead = Vec::new();
        for piece in pieces(status.clone()) {
            if piece.more {
                append(&mut ahead, piece);
            } else {
                let said = Said::new(mem::take(&mut ahead), &piece);
                assert_eq!(said.status(), status);
            }
        }
        let nothing = Said::new(Vec::new(), &Status::default());
        assert_eq!(nothing.status(), Status::default());
    }
}
