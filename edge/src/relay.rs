//! The relay: passes exchanges on between an ingress and an egress, and opens no body frame.
//!
//! Its state is soft: it splices two streams with bounded buffers, keeps nothing for a replay and
//! dedupes nothing. Loss is repaired on each hop by itself. When the next hop dies, the ingress is
//! told at once. A path has one relay at the most, so an exchange that came from a relay goes no further.

pub mod authorize;

pub mod forward;

mod passage;

use std::sync::Arc;

use crate::{
    telemetry::Telemetry,
    tunnel::{TransitHandler, Tunnel, inbound::Transit},
};

use self::passage::Passage;

/// What a relay does with exchanges for other nodes.
#[derive(Clone, Debug)]
pub struct Relay {
    tunnel: Tunnel,
    telemetry: Telemetry,
    bytes: passage::Bytes,
}

impl Relay {
    /// A relay over the node's links.
    #[must_use]
    pub fn new(tunnel: Tunnel, telemetry: Telemetry) -> Self {
        let bytes = passage::Bytes::default();
        bytes.show(&telemetry);
        Self {
            tunnel,
            telemetry,
            bytes,
        }
    }

    /// The handler that the tunnel calls with every exchange that is for another node.
    #[must_use]
    pub fn handler(&self) -> TransitHandler {
        let relay = self.clone();
        Arc::new(move |transit| {
            let relay = relay.clone();
            Box::pin(async move { relay.serve(transit).await })
        })
    }

    /// Carries one exchange through this node.
    async fn serve(&self, transit: Transit) {
        let passage = Passage::new(self, &transit);
        match authorize::authorize(&self.tunnel, &transit) {
            Ok(next) => forward::forward(authorize::vouched(transit), &next, passage).await,
            Err(refusal) => forward::refuse(transit, &refusal, passage).await,
        }
    }
}
