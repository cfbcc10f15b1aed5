//! When the door opens.

use std::time::Duration;

use crate::ingress::Ingress;

/// How long clients wait at the door of a node that has just begun, for routes and a link to where they lead.
pub(super) const FIRST_LINK: Duration = Duration::from_secs(2);

/// How often it looks for them.
const LINK_EVERY: Duration = Duration::from_millis(5);

impl Ingress {
    /// Waits until there are routes, and a link if they lead to any egress.
    pub(super) async fn linked(&self) {
        let lost = || {
            let routes = self.control.routes();
            let leads = routes.nodes.values().any(|node| node.egress);
            routes.revision == 0 || (leads && !self.tunnel.any_up())
        };
        while lost() {
            tokio::time::sleep(LINK_EVERY).await;
        }
    }
}
