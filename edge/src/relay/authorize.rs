//! Decides whether, and over which link, an exchange may pass.

use std::sync::Arc;

use vector_proto::refusal::{Code, Refusal};

use crate::tunnel::{Link, Tunnel, accept::Transit};

/// The link to the egress that the exchange names.
///
/// # Errors
/// When no link to it is up, or the exchange would run in a circle.
pub(super) fn authorize(tunnel: &Tunnel, transit: &Transit) -> Result<Arc<Link>, Refusal> {
    let egress = &*transit.open.egress;
    if egress == &*transit.link.peer {
        return Err(Refusal::new(
            Code::Protocol,
            "the exchange came from the egress that it names",
        ));
    }
    tunnel
        .link(egress)
        .ok_or_else(|| Refusal::new(Code::NoPath, format!("the relay has no link to `{egress}`")))
}
