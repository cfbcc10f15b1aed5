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

impl Said {
    /// Of what a node said.
    #[must_use]
    pub fn new(status: &Status) -> Self {
        Self(status.encode_to_vec().into())
    }

    /// What it said.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::decode(&self.0[..]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use vector_proto::control::v1::LinkStatus;

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
            links: (0..3).map(link).collect(),
            ..Status::default()
        };
        assert_eq!(Said::new(&status).status(), status);
        assert_eq!(Said::new(&Status::default()).status(), Status::default());
    }
}
