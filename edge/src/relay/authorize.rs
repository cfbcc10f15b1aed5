//! Decides whether, and over which link, an exchange may pass; and vouches for who sent it.

use std::sync::Arc;

use vector_proto::refusal::{Code, Refusal};

use crate::tunnel::{
    Link, Tunnel, asks_for_known,
    inbound::{Preamble, Transit},
};

/// The link to the node that the stream is for: the egress, or the ingress that an egress attaches to.
///
/// # Errors
/// When no link to it is up, or the exchange would run in a circle or over another relay.
pub(super) fn authorize(tunnel: &Tunnel, transit: &Transit) -> Result<Arc<Link>, Refusal> {
    let (ingress, egress) = match &transit.preamble {
        Preamble::Open(open) => (&open.ingress, &open.egress),
        Preamble::Attach(attach) => (&attach.ingress, &attach.egress),
    };
    let from = &*transit.link.peer;
    if !transit.link.is_accepted() {
        return tunnel
            .accepted_link(ingress)
            .ok_or_else(|| no_link(ingress));
    }
    if !ingress.is_empty() {
        let message = "the exchange came over another relay";
        return Err(Refusal::new(Code::Protocol, message));
    }
    if egress == from {
        let message = "the exchange came from the egress that it names";
        return Err(Refusal::new(Code::Protocol, message));
    }
    let link = match begins(&transit.preamble) {
        true => tunnel.link(egress).filter(|link| link.carries()),
        false => tunnel.carrying_link(egress),
    };
    link.ok_or_else(|| no_link(egress))
}

/// Whether it is new work, which an egress that drains does not take.
const fn begins(preamble: &Preamble) -> bool {
    match preamble {
        Preamble::Open(open) => open.attach_seq == 0 && !asks_for_known(open),
        Preamble::Attach(_) => false,
    }
}

fn no_link(to: &str) -> Refusal {
    Refusal::new(Code::NoPath, format!("the relay has no link to `{to}`"))
}

/// Puts the name of the sender, which this node knows by its certificate, into what is passed on.
pub(super) fn vouched(mut transit: Transit) -> Transit {
    let from = transit.link.peer.to_string();
    match (&mut transit.preamble, transit.link.is_accepted()) {
        (Preamble::Open(open), true) => open.ingress = from,
        (Preamble::Attach(attach), true) => attach.ingress = from,
        (Preamble::Attach(attach), false) => attach.egress = from,
        (Preamble::Open(_), false) => {}
    }
    transit
}
