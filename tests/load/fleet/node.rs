//! One node of the fleet: its long stream to control, and what it says on it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use prost::Message as _;
use ring::digest::{SHA256, digest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use vector_edge::control_plane::{
    connect,
    snapshot::{Parts, Put},
};
use vector_edge::identity::Identity;
use vector_proto::control::{
    delta,
    status::pieces,
    v1::{
        Applied, ControlEvent, LinkState, LinkStatus, NodeEvent, Register, Snapshot, SnapshotDelta,
        Status, UpstreamStatus, control_event, node_client::NodeClient, node_event::Event,
    },
};

use super::network;

/// As a node that has nothing new to say.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// As a node's own limit.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The node that puts every snapshot together.
const WHOLE: usize = 0;

/// A node was told of routes.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) number: usize,
    pub(super) revision: u64,
    pub(super) at: Instant,
    /// From the one node that puts them together.
    pub(super) snapshot: Option<Arc<Snapshot>>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) number: usize,
    pub(super) control: http::Uri,
    pub(super) identity: Identity,
    /// How many there are in all.
    pub(super) nodes: u32,
    /// Providers, and how many upstreams an ingress has tried lately and tells of.
    pub(super) providers: u32,
    pub(super) tried: u32,
    pub(super) heard: mpsc::Sender<Heard>,
}

impl Node {
    pub(super) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let identity = self.identity.clone();
        let channel = connect(self.control.clone(), move || {
            identity.control_client_config()
        });
        let mut client = NodeClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let (events, outgoing) = mpsc::channel(8);
        events.send(said(Event::Register(self.register()))).await?;
        let mut stream = client
            .sync(ReceiverStream::new(outgoing))
            .await?
            .into_inner();
        let first = Instant::now() + REPORT_EVERY.mul_f64(fastrand::f64());
        let mut reports = tokio::time::interval_at(first.into(), REPORT_EVERY);
        let (mut parts, mut held) = (Parts::default(), Snapshot::default());
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = reports.tick() => {
                    for piece in pieces(self.status()) {
                        events.send(said(Event::Status(piece))).await?;
                    }
                }
                message = stream.message() => {
                    let message = message?.context("control closed the stream")?;
                    let at = Instant::now();
                    if let Some(revision) = self.take(message, &mut parts, &mut held)? {
                        events.send(said(Event::Applied(Applied { revision }))).await?;
                        let snapshot = (self.number == WHOLE).then(|| Arc::new(held.clone()));
                        self.heard.send(Heard { number: self.number, revision, at, snapshot }).await?;
                    }
                }
            }
        }
    }

    /// The revision of new routes, if these are some.
    fn take(
        &self,
        message: ControlEvent,
        parts: &mut Parts,
        held: &mut Snapshot,
    ) -> anyhow::Result<Option<u64>> {
        let whole = self.number == WHOLE;
        let revision = match message.event {
            Some(control_event::Event::SnapshotPart(part)) => match parts.take(&part)? {
                None => return Ok(None),
                Some(Put::Snapshot(snapshot)) => {
                    let revision = snapshot.revision;
                    if whole {
                        check(&snapshot)?;
                        *held = snapshot;
                    }
                    revision
                }
                Some(Put::Delta(delta)) => self.follows(delta, held)?,
            },
            Some(control_event::Event::SnapshotDelta(encoded)) => {
                self.follows(SnapshotDelta::decode(encoded)?, held)?
            }
            _ => return Ok(None),
        };
        Ok(Some(revision))
    }

    fn follows(&self, delta: SnapshotDelta, held: &mut Snapshot) -> anyhow::Result<u64> {
        let revision = delta.revision;
        if self.number == WHOLE {
            *held = delta::apply(std::mem::take(held), delta)?;
            check(held)?;
        }
        Ok(revision)
    }

    fn register(&self) -> Register {
        let role = network::role(self.number);
        let urls = [format!("https://{}.example.com", self.identity.node())];
        Register {
            epoch: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |now| u64::try_from(now.as_micros()).unwrap_or(1)),
            version: "fleet".to_owned(),
            roles: vec![role.to_owned()],
            region: self.identity.region().to_owned(),
            tunnel_addresses: vec![network::address(self.number)],
            deltas: true,
            delta_parts: true,
            client_urls: if role == "ingress" {
                urls.to_vec()
            } else {
                Vec::new()
            },
            ..Register::default()
        }
    }

    /// An ingress has a link to each egress and relay.
    fn status(&self) -> Status {
        let peers = (0..self.nodes as usize).filter(|&number| network::role(number) != "ingress");
        let link = |number| LinkStatus {
            peer: network::name(number),
            address: network::address(number),
            state: LinkState::Up.into(),
            rtt_us: fastrand::u64(1_000..200_000),
            sent_packets: fastrand::u64(..1 << 30),
            heartbeats_sent: fastrand::u64(..1 << 30),
            heartbeats_heard: fastrand::u64(..1 << 30),
            ..LinkStatus::default()
        };
        let is_ingress = network::role(self.number) == "ingress";
        Status {
            links: peers.filter(|_| is_ingress).map(link).collect(),
            upstreams: self.upstreams().filter(|_| is_ingress).collect(),
            ..Status::default()
        }
    }
}

impl Node {
    /// Every provider over one egress, then over the next: each ingress begins at another one.
    fn upstreams(&self) -> impl Iterator<Item = UpstreamStatus> {
        let egress: Vec<usize> = (0..self.nodes as usize)
            .filter(|&number| network::role(number) == "egress")
            .collect();
        let providers = self.providers.max(1);
        (0..self.tried).map(move |turn| {
            let at = (self.number + (turn / providers) as usize) % egress.len();
            UpstreamStatus {
                provider: network::provider(turn % providers),
                egress: network::name(egress[at]),
                success_permille: fastrand::u32(990..=1_000),
                first_byte_us: fastrand::u64(200_000..300_000),
                ..UpstreamStatus::default()
            }
        })
    }
}

/// As a node checks it.
fn check(snapshot: &Snapshot) -> anyhow::Result<()> {
    let mut bare = snapshot.clone();
    let claimed = std::mem::take(&mut bare.digest);
    let is = digest(&SHA256, &bare.encode_to_vec());
    ensure!(
        is.as_ref() == &claimed[..],
        "revision {}: another digest",
        snapshot.revision
    );
    Ok(())
}

const fn said(event: Event) -> NodeEvent {
    NodeEvent { event: Some(event) }
}
