//! Ends what a node has here whose certificate counts no more.
//!
//! Its links are closed at once, with a code that tells it not to come back every moment. What runs with it has nobody to
//! wait for: an ingress tries its requests elsewhere, an egress stops the provider's call. A node that has enrolled anew
//! meanwhile keeps the links that it holds by its new certificate, and what runs on them.

use std::sync::Arc;

use super::{Credentials, Link, LostReason, Tunnel};

impl Tunnel {
    /// Looks at the links to and from these nodes. Answers how many were closed.
    pub fn revoke<'a>(
        &self,
        credentials: &dyn Credentials,
        nodes: impl Iterator<Item = &'a str>,
    ) -> usize {
        let mut closed = 0;
        for node in nodes {
            let links = self.links_with(node);
            let out = links
                .iter()
                .filter(|link| link.close_if_revoked(credentials))
                .count();
            closed += out;
            if out > 0 && out == links.len() {
                self.give_up(node);
            }
        }
        closed
    }

    /// Nothing that runs with this node will go on.
    fn give_up(&self, node: &str) {
        let ends = self.calls().all().into_iter().chain(self.arrivals().all());
        for end in ends.filter(|end| *end.far == *node) {
            end.seal(LostReason::LinkDown);
        }
    }

    /// This node is out itself: nobody wants its links, also the one to itself.
    pub(super) fn leave(&self) {
        for link in self.all_links() {
            link.close("this node was removed");
        }
        let ends = self.calls().all().into_iter().chain(self.arrivals().all());
        ends.for_each(|end| end.seal(LostReason::LinkDown));
    }
}

impl Link {
    /// Closes the link if the certificate that the peer has shown counts no more.
    pub(super) fn close_if_revoked(self: &Arc<Self>, credentials: &dyn Credentials) -> bool {
        // A link within the process has none.
        let Some(connection) = self.over_quic() else {
            return false;
        };
        let chain = connection.peer_certificates();
        let revoked = credentials.peer(&chain).is_none();
        if revoked {
            tracing::warn!(peer = %self.peer, address = %self.address, "link closed: the peer was removed, or replaced by a node of its name");
            connection.revoke();
        }
        revoked
    }
}
