//! What a node said last of itself, kept as bytes.
//!
//! An ingress tells of a link to every egress and relay: with a thousand nodes that is some 90 KiB in rows and a quarter of it
//! in bytes, for each of them. Only operators ever ask for it.

use std::sync::Arc;

use prost::Message as _;
use vector_proto::control::v1::{CredentialStatus, Status};

/// The part of a [`Status`] that an egress tells of its credentials.
#[derive(Clone, PartialEq, prost::Message)]
struct Credentials {
    #[prost(message, repeated, tag = "4")]
    credentials: Vec<CredentialStatus>,
}

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

    /// What it said of its credentials; the rest is not read.
    #[must_use]
    pub fn credentials(&self) -> Vec<CredentialStatus> {
        let read = Credentials::decode(&self.0[..]).unwrap_or_default();
        read.credentials
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
        let credential = CredentialStatus {
            credential: "c".to_owned(),
            ..CredentialStatus::default()
        };
        let status = Status {
            draining: true,
            links: (0..3 * LINKS_MAX as u64).map(link).collect(),
            credentials: vec![credential],
            ..Status::default()
        };
        let mut ahead = Vec::new();
        for piece in pieces(status.clone()) {
            if piece.more {
                append(&mut ahead, piece);
            } else {
                let said = Said::new(mem::take(&mut ahead), &piece);
                assert_eq!(said.status(), status);
                assert_eq!(said.credentials(), status.credentials);
            }
        }
        let nothing = Said::new(Vec::new(), &Status::default());
        assert_eq!(nothing.status(), Status::default());
    }
}
