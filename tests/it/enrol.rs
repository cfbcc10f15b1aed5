//! A node trades its invite for a certificate, starts again without one, and renews.

use std::{path::Path, sync::Arc, time::Duration};

use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};
use vector_control::server::Server;
use vector_edge::{
    config::{Control, Node, Role, Secret},
    control_plane::{
        connect,
        enroll::{Error, load_or_enroll, renew},
    },
    identity::{Identity, Pin, pinned_client},
};
use vector_proto::control::v1::{
    AdmitRequest, InviteNodeRequest, admin_client::AdminClient, node_client::NodeClient,
};

/// A real control in a folder of its own.
struct Network {
    folder: TempDir,
    url: http::Uri,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Network {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let text = format!(
            "[control]\nlisten = \"127.0.0.1:0\"\ndata_dir = {:?}\nrollout_pause_ms = 0\n[admin]\nlisten = \"127.0.0.1:0\"\n",
            folder.path().join("control")
        );
        let config = vector_control::config::Config::read(&text, &|_| None)?;
        let server = Server::bind(&config).await?;
        let url = format!("https://{}", server.address()?).parse()?;
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let tasks = tokio_util::task::TaskTracker::new();
        let serving = tasks.spawn(async move { assert!(server.serve(stopping).await.is_ok()) });
        Ok(Self {
            folder,
            url,
            stop,
            serving,
        })
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.stop.cancel();
        Ok(self.serving.await?)
    }

    fn state(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// What `vectorctl node invite` prints.
    async fn invite(&self, node: &str, roles: &[&str]) -> anyhow::Result<String> {
        let token = std::fs::read_to_string(self.state("control").join("admin.token"))?;
        let token = token.trim();
        let (_, pin) = token
            .split_once('.')
            .ok_or_else(|| anyhow::anyhow!("{token}"))?;
        let pin = Pin::read(pin).ok_or_else(|| anyhow::anyhow!("not a pin: {pin}"))?;
        let tls = pinned_client(pin, Arc::default())?;
        let mut admin = AdminClient::new(connect(self.url.clone(), move || Arc::clone(&tls)));
        let mut asked = Request::new(InviteNodeRequest {
            roles: roles.iter().map(ToString::to_string).collect(),
            region: "eu".into(),
            node: node.into(),
            ttl_s: 0,
        });
        asked
            .metadata_mut()
            .insert("authorization", format!("Bearer {token}").parse()?);
        Ok(admin.invite_node(asked).await?.into_inner().token)
    }

    async fn start_node(
        &self,
        state_dir: &Path,
        roles: &[Role],
        invite: Option<&str>,
    ) -> Result<Identity, Error> {
        let node = Node {
            id: None,
            region: None,
            roles: roles.to_vec(),
            state_dir: state_dir.to_owned(),
            workers: 1,
        };
        let control = Control {
            urls: vec![self.url.clone()],
            invite: invite.map(|text| Secret::new(text.to_owned())),
        };
        load_or_enroll(&node, &control).await
    }

    fn channel(&self, identity: &Identity) -> Channel {
        let identity = identity.clone();
        connect(self.url.clone(), move || identity.control_client_config())
    }
}

#[tokio::test]
async fn a_node_enrols_once_starts_again_and_renews() -> anyhow::Result<()> {
    let network = Network::start().await?;
    let folder = network.state("edge");
    let invite = network.invite("ingress-eu-1", &["ingress"]).await?;
    let first = network
        .start_node(&folder, &[Role::Ingress], Some(&invite))
        .await?;
    assert_eq!((first.node(), first.region()), ("ingress-eu-1", "eu"));
    assert_eq!(first.roles(), [Role::Ingress]);

    let again = network.start_node(&folder, &[Role::Ingress], None).await?;
    assert!(again.epoch() > first.epoch());

    // The certificate opens the door of its role, also the renewed one and after a restart.
    let ask = AdmitRequest {
        key: "0123456789".into(),
        digest: vec![0; 32].into(),
    };
    let answer = NodeClient::new(network.channel(&again))
        .admit(ask.clone())
        .await?;
    assert_eq!(answer.into_inner().refusal, "invalid_api_key");
    let before = std::fs::read(folder.join("identity.pem"))?;
    let mut client = NodeClient::new(network.channel(&again).into());
    renew(&again, &mut client)
        .await
        .map_err(anyhow::Error::msg)?;
    assert_ne!(before, std::fs::read(folder.join("identity.pem"))?);
    let renewed = network.start_node(&folder, &[Role::Ingress], None).await?;
    NodeClient::new(network.channel(&renewed))
        .admit(ask)
        .await?;
    network.stop().await
}

#[tokio::test]
async fn an_invite_works_once_and_for_its_network_only() -> anyhow::Result<()> {
    let (network, other) = (Network::start().await?, Network::start().await?);
    let invite = network.invite("", &["egress"]).await?;
    let start = async |name: &str, network: &Network, roles: &[Role]| {
        let folder = network.state(name);
        network.start_node(&folder, roles, Some(&invite)).await
    };
    let strange = start("a", &other, &[Role::Egress]).await;
    assert!(
        matches!(strange, Err(Error::WrongControl(_))),
        "{strange:?}"
    );
    start("b", &network, &[Role::Egress]).await?;
    let used = start("c", &network, &[Role::Egress]).await;
    assert!(matches!(used, Err(Error::Refused { .. })), "{used:?}");
    let more = network
        .start_node(&network.state("b"), &[Role::Relay, Role::Egress], None)
        .await;
    assert!(matches!(more, Err(Error::Mismatch(_))), "{more:?}");
    network.stop().await?;
    other.stop().await
}

#[tokio::test]
async fn a_certificate_opens_no_other_roles_door() -> anyhow::Result<()> {
    let network = Network::start().await?;
    let invite = network.invite("", &["relay"]).await?;
    let relay = network
        .start_node(&network.state("r"), &[Role::Relay], Some(&invite))
        .await?;
    let mut client = NodeClient::new(network.channel(&relay));
    let refused = tokio::time::timeout(
        Duration::from_secs(5),
        client.admit(AdmitRequest::default()),
    )
    .await?;
    let code = refused.map(|_| ()).map_err(|status| status.code());
    assert_eq!(code, Err(tonic::Code::PermissionDenied));
    network.stop().await
}
