//! The network that the fleet belongs to: who is in it, and the operator who says so.

use std::path::Path;

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Uri;
use tonic::Request;
use tonic::transport::Channel;
use vector_edge::config::{Control, Node, Role, Secret};
use vector_edge::control_plane::{connect, enroll::load_or_enroll};
use vector_edge::identity::{Identity, Pin, pinned_client};
use vector_proto::control::v1::{
    ApplyRequest, CredentialSpec, InviteNodeRequest, ModelSpec, Plan, ProviderSpec, Upstream,
    admin_client::AdminClient,
};

/// Nodes that enrol side by side.
const AT_ONCE: usize = 4;

/// Six of ten are ingress nodes, two egress, two relays.
pub(super) fn role(number: usize) -> &'static str {
    match number % 10 {
        0..6 => "ingress",
        6..8 => "egress",
        _ => "relay",
    }
}

pub(super) fn name(number: usize) -> String {
    format!("{}-{number:04}", role(number))
}

/// One that nobody answers at (RFC 5737 is too small: RFC 2544).
pub(super) fn address(number: usize) -> String {
    format!("198.18.{}.{}:7440", number / 250, number % 250)
}

/// An operator with a token.
#[derive(Clone, Debug)]
pub(super) struct Operator {
    control: Uri,
    token: String,
    channel: Channel,
}

impl Operator {
    pub(super) fn new(control: &Uri, token_file: &Path) -> anyhow::Result<Self> {
        let token = std::fs::read_to_string(token_file)
            .with_context(|| token_file.display().to_string())?;
        let token = token.trim().to_owned();
        let pin = token.split_once('.').and_then(|(_, pin)| Pin::read(pin));
        let tls = pinned_client(
            pin.context("the token has no pin")?,
            std::sync::Arc::default(),
        )?;
        let channel = connect(control.clone(), move || std::sync::Arc::clone(&tls));
        Ok(Self {
            control: control.clone(),
            token,
            channel,
        })
    }

    fn asks<T>(&self, message: T) -> anyhow::Result<Request<T>> {
        let mut request = Request::new(message);
        let bearer = format!("Bearer {}", self.token).parse()?;
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// A provider and a credential for each upstream of a model, and the models.
    pub(super) async fn configure(&self, models: u32, upstreams: u32) -> anyhow::Result<()> {
        let spec = |number| ProviderSpec {
            name: provider(number),
            kind: "openai".to_owned(),
            base_url: format!("https://provider-{number:02}.example.com/v1"),
            ..ProviderSpec::default()
        };
        let credential = |number| CredentialSpec {
            name: format!("credential-{number:02}"),
            provider: provider(number),
            secret: format!("secret-{number:02}"),
            ..CredentialSpec::default()
        };
        self.apply(Plan {
            providers: (0..upstreams).map(spec).collect(),
            credentials: (0..upstreams).map(credential).collect(),
            models: (0..models)
                .map(|number| model(number, upstreams, 1))
                .collect(),
            ..Plan::default()
        })
        .await
    }

    /// Gives one model another weight.
    pub(super) async fn weigh(&self, turn: u32, upstreams: u32) -> anyhow::Result<()> {
        let models = vec![model(0, upstreams, 2 + turn % 100)];
        self.apply(Plan {
            models,
            ..Plan::default()
        })
        .await
    }

    async fn apply(&self, plan: Plan) -> anyhow::Result<()> {
        let asked = self.asks(ApplyRequest {
            plan: Some(plan),
            ..ApplyRequest::default()
        })?;
        AdminClient::new(self.channel.clone()).apply(asked).await?;
        Ok(())
    }

    /// Invites and enrols all of them, each with a folder of its own.
    pub(super) async fn enrol(
        &self,
        folder: &Path,
        nodes: u32,
        regions: u32,
    ) -> anyhow::Result<Vec<Identity>> {
        stream::iter(0..nodes as usize)
            .map(|number| self.enrol_one(folder, number, regions))
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn enrol_one(
        &self,
        folder: &Path,
        number: usize,
        regions: u32,
    ) -> anyhow::Result<Identity> {
        // The roles take turns in each region.
        let region = format!("region-{:02}", number / 10 % regions as usize);
        let asked = self.asks(InviteNodeRequest {
            roles: vec![role(number).to_owned()],
            region,
            node: name(number),
            ttl_s: 0,
        })?;
        let mut admin = AdminClient::new(self.channel.clone());
        let invite = admin.invite_node(asked).await?.into_inner().token;
        let node = Node {
            id: None,
            region: None,
            roles: vec![match role(number) {
                "ingress" => Role::Ingress,
                "egress" => Role::Egress,
                _ => Role::Relay,
            }],
            state_dir: folder.join(name(number)),
            workers: 1,
        };
        let control = Control {
            urls: vec![self.control.clone()],
            invite: Some(Secret::new(invite)),
        };
        Ok(load_or_enroll(&node, &control).await?)
    }
}

pub(super) fn provider(number: u32) -> String {
    format!("provider-{number:02}")
}

fn model(number: u32, upstreams: u32, weight: u32) -> ModelSpec {
    let upstream = |provider| Upstream {
        provider: self::provider(provider),
        model: format!("upstream-model-{number:03}"),
        priority: 0,
        weight: if provider == 0 { weight } else { 1 },
    };
    ModelSpec {
        name: format!("model-{number:03}"),
        upstreams: (0..upstreams).map(upstream).collect(),
        owned_by: "fleet".to_owned(),
        ..ModelSpec::default()
    }
}
