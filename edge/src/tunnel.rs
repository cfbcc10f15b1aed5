//! The network between our nodes: warm links, and exchanges that travel on them.
//!
//! An ingress opens an exchange on a [`Path`] and gets a [`Call`]; the egress gets an [`Arrival`].
//! A relay splices the two. Rules (`exchange`) and hands (`transport`) are apart: offsets, replay
//! windows and credit know no socket. Links are dialled before any request needs them and kept for
//! ever (`dial`); a link proves by certificate who is at its other end (`accept`).
//!
//! Absences: nothing here opens a body frame, knows a provider, or touches the control plane.

// The rules.
pub mod exchange;

pub mod heartbeat;

pub mod cost;

// The hands.
pub mod transport;

pub mod vitals;

pub mod link;

// What a relay tells of its links.
mod onward;

// An exchange's end on this node.
mod end;

mod half;

mod registry;

mod budget;

mod hedge;

mod double;

mod repair;

mod resume;

mod overdue;

pub mod inbound;

pub mod tally;

pub mod call;

pub mod arrival;

pub mod ahead;

// Who is linked to whom.
pub mod pool;

pub mod pulse;

pub mod dial;

pub mod accept;

pub mod path;

mod revoke;

// All of it together.
pub mod network;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use vector_proto::tunnel::{codec, v1};

pub use self::{
    ahead::Ahead,
    arrival::{Answer, Arrival, Cancelled, RequestBody},
    call::{Call, Part, RequestWriter, ResponseReader},
    link::Link,
    path::{Path, PathState},
    pool::{Relays, Tunnel, asks_for_known},
    resume::Patience,
    vitals::Condition,
};

/// What an egress does with an exchange that arrives. Called in a task of the exchange's own.
pub type ArrivalHandler = Arc<dyn Fn(Arrival) -> BoxFuture<'static, ()> + Send + Sync>;

/// What a relay does with an exchange for another node. Called in a task of the exchange's own.
pub type TransitHandler = Arc<dyn Fn(inbound::Transit) -> BoxFuture<'static, ()> + Send + Sync>;

/// What the tunnel asks of the node's identity.
pub trait Credentials: fmt::Debug + Send + Sync {
    /// For dialling: proves who this node is and checks who answers. ALPN is [`transport::quic::ALPN`].
    fn client(&self) -> Arc<rustls::ClientConfig>;

    /// For accepting: asks every peer for its certificate. ALPN is [`transport::quic::ALPN`].
    fn server(&self) -> Arc<rustls::ServerConfig>;

    /// The name that a node's certificate carries.
    fn server_name(&self, node: &str) -> String;

    /// Who a certificate chain names, if it is a node of this network. `None` as soon as it was removed.
    fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<Peer>;
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// The node's id.
    pub node: Arc<str>,
    /// What it may be: `ingress`, `relay`, `egress`.
    pub roles: Vec<String>,
}

impl Peer {
    /// The peer of a link within the process: whatever its HELLO says that it is.
    #[must_use]
    pub fn within(node: Arc<str>) -> Self {
        let roles = ["ingress", "relay", "egress"].map(str::to_owned);
        Self {
            node,
            roles: roles.into(),
        }
    }
}

/// Why an exchange cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LostReason {
    /// The link it was on is gone.
    #[error("the link is down")]
    LinkDown,
    /// Its stream ended before it did.
    #[error("the stream broke off")]
    Reset,
    /// The peer does not speak our protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] codec::Error),
    /// The other end cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The other end does not know it, or a relay's next hop died.
    #[error("gone at the other end")]
    Gone,
}

/// An exchange that cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Lost {
    /// Why.
    pub reason: LostReason,
    /// Whether the egress is known to have taken it. If not, it may still have.
    pub accepted: bool,
}

impl Lost {
    const fn accepted(reason: LostReason) -> Self {
        Self {
            reason,
            accepted: true,
        }
    }

    const fn unaccepted(reason: LostReason) -> Self {
        Self {
            reason,
            accepted: false,
        }
    }
}

/// Why no answer comes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// The egress says no.
    #[error("refused: {}", .0.code)]
    Refused(Box<v1::Refused>),
    /// The exchange cannot go on.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Why an exchange could not be opened on a path. Nothing left this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// No link of the path is up.
    #[error("no link is up")]
    NoLink,
}
