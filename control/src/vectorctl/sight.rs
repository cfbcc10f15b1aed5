//! All that control tells of the network at one moment, gathered for those who judge it as a whole.

use vector_proto::control::v1 as pb;

use crate::{
    Failure,
    command::{pages, rows, unix_ms},
    connect::Client,
};

/// Rates are of this long.
pub(crate) const RATE_S: u64 = 60;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sight {
    pub(crate) status: pb::StatusResponse,
    pub(crate) providers: Vec<pb::ProviderSpec>,
    pub(crate) credentials: Vec<pb::CredentialView>,
    pub(crate) models: Vec<pb::ModelSpec>,
    pub(crate) routes: Vec<pb::DefaultRouteSpec>,
    /// Sums of the last [`RATE_S`] seconds.
    pub(crate) lately: pb::ListUsageResponse,
}

/// Asks control for everything, one call after the other.
pub(crate) async fn gather(client: &Client) -> Result<Sight, Failure> {
    let mut asking = client.clone();
    let status = asking.status(pb::StatusRequest {}).await?.into_inner();
    let providers = pages(|asked| {
        let mut client = client.clone();
        async move {
            rows(client.list_providers(asked).await, |page| {
                (page.providers, page.next_page_token)
            })
        }
    });
    let credentials = pages(|asked| {
        let mut client = client.clone();
        async move {
            rows(client.list_credentials(asked).await, |page| {
                (page.credentials, page.next_page_token)
            })
        }
    });
    let models = pages(|asked| {
        let mut client = client.clone();
        async move {
            rows(client.list_models(asked).await, |page| {
                (page.models, page.next_page_token)
            })
        }
    });
    let routes = pages(|asked| {
        let mut client = client.clone();
        async move {
            rows(client.list_default_routes(asked).await, |page| {
                (page.routes, page.next_page_token)
            })
        }
    });
    let lately = pb::ListUsageRequest {
        from_unix_ms: unix_ms().saturating_sub(RATE_S * 1_000),
        page_size: 1,
        ..pb::ListUsageRequest::default()
    };
    Ok(Sight {
        status,
        providers: providers.await?,
        credentials: credentials.await?,
        models: models.await?,
        routes: routes.await?,
        lately: asking.list_usage(lately).await?.into_inner(),
    })
}

impl Sight {
    pub(crate) fn nodes(&self) -> &[pb::NodeView] {
        &self.status.nodes
    }

    /// Nodes with a role.
    pub(crate) fn with_role(&self, role: &str) -> impl Iterator<Item = &pb::NodeView> {
        self.nodes().iter().filter(move |view| has(view, role))
    }

    /// Links of all connected nodes that are up, suspect, and neither.
    pub(crate) fn paths(&self) -> [usize; 3] {
        let mut count = [0; 3];
        let connected = self.nodes().iter().filter(|view| view.connected);
        for link in connected.flat_map(links) {
            let at = match link.state() {
                pb::LinkState::Up => 0,
                pb::LinkState::Suspect => 1,
                pb::LinkState::Down | pb::LinkState::Draining | pb::LinkState::Unspecified => 2,
            };
            count[at] += 1;
        }
        count
    }
}

pub(crate) fn id(view: &pb::NodeView) -> &str {
    view.record.as_ref().map_or("?", |record| &record.id)
}

pub(crate) fn has(view: &pb::NodeView, role: &str) -> bool {
    let roles = view.record.as_ref().map(|record| &record.roles);
    roles.is_some_and(|roles| roles.iter().any(|had| had == role))
}

pub(crate) fn links(view: &pb::NodeView) -> &[pb::LinkStatus] {
    view.status.as_ref().map_or(&[], |status| &status.links)
}

pub(crate) fn is_draining(view: &pb::NodeView) -> bool {
    view.record.as_ref().is_some_and(|record| record.draining)
        || view.status.as_ref().is_some_and(|status| status.draining)
}
