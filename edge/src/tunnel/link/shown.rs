//! What of a link is only shown to people.

use std::net::SocketAddr;

use super::Link;
use crate::tunnel::transport::quic;

impl Link {
    /// Where this node's end is, if the link goes over the network.
    #[must_use]
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.over_quic().map(quic::Connection::local_address)
    }

    /// Bytes a second that the path was seen to carry towards the peer lately; 0 where nothing shows it.
    #[must_use]
    pub fn delivery(&self) -> u64 {
        self.connection.delivery()
    }
}
