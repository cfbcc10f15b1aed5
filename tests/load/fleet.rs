//! A network of many nodes that only talk to control: what control costs and how fast it tells them.
//!
//! The nodes are real to control: each is invited, enrols, and keeps its long stream over a TLS connection of its own. They
//! carry no exchange. One of them puts every snapshot together and checks its digest; the others acknowledge what they
//! are told, so that the machine's time goes to control and not to a thousand copies of the same check.

mod node;

mod network;

mod figures;
pub(crate) use figures::tell;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use vector_edge::identity::Identity;
use vector_proto::control::v1::Snapshot;

use self::network::Operator;
use self::node::{Heard, Node};
use crate::ask::Target;
use crate::line::OwnLine;
use crate::tally::Delays;
use crate::watch::Watch;

/// All nodes have what is new within this, or the run fails.
const ALL_WAIT: Duration = Duration::from_secs(60);

/// Nodes that connect side by side: their own process has as many handshakes to do as control.
const CONNECT_AT_ONCE: usize = 50;

/// What is done.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Plan {
    /// Where control is: <https://HOST:PORT>
    #[arg(long)]
    control: http::Uri,
    /// The operator's token, as control wrote it.
    #[arg(long)]
    token_file: std::path::PathBuf,
    /// Nodes; of ten, six are ingress, two egress and two relays.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..))]
    nodes: u32,
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    regions: u32,
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    models: u32,
    /// Upstreams of each model.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    upstreams: u32,
    /// Upstreams that an ingress has tried lately and tells of: they make the scores that every ingress hears.
    #[arg(long, default_value_t = 0)]
    tried: u32,
    /// Changes of one model's weight, one after the other.
    #[arg(long, default_value_t = 50)]
    changes: u32,
    /// Egress nodes that start again, one after the other.
    #[arg(long, default_value_t = 10)]
    restarts: u32,
    /// Time in which nothing is changed and every node reports as it does.
    #[arg(long, default_value_t = 20)]
    steady_seconds: u64,
    /// Where etcd tells its metrics, one URL for each member; the largest count is taken.
    #[arg(long)]
    etcd: Vec<String>,
}

/// The nodes that are connected.
struct Fleet {
    running: JoinSet<anyhow::Result<()>>,
    stops: Vec<CancellationToken>,
    heard: mpsc::Receiver<Heard>,
    sender: mpsc::Sender<Heard>,
    /// The revision that each node was told last.
    at: Vec<u64>,
    /// As the one node that puts them together has it.
    whole: Option<Arc<Snapshot>>,
}

/// Runs all of it; `start` begins to watch control.
pub(crate) fn run(plan: &Plan, start: impl Fn() -> anyhow::Result<Watch>) -> anyhow::Result<Value> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(all(plan, start))
}

async fn all(plan: &Plan, start: impl Fn() -> anyhow::Result<Watch>) -> anyhow::Result<Value> {
    let operator = Operator::new(&plan.control, &plan.token_file)?;
    operator.configure(plan.models, plan.upstreams).await?;
    let began = Instant::now();
    let folder = tempfile::tempdir()?;
    let identities = operator
        .enrol(folder.path(), plan.nodes, plan.regions)
        .await?;
    let enrolling = began.elapsed();

    let mut fleet = Fleet::new(plan.nodes);
    let (began, watch) = (Instant::now(), start()?);
    for (turn, some) in identities.chunks(CONNECT_AT_ONCE).enumerate() {
        for (at, identity) in some.iter().enumerate() {
            fleet.connect(plan, turn * CONNECT_AT_ONCE + at, identity);
        }
        fleet.connected().await?;
    }
    // Every registration changes the snapshot: the last one is the one that names all.
    let whole = fleet.settled().await?;
    let connecting = json!({
        "ms": millis(began.elapsed()),
        "control": watch.show(u64::from(plan.nodes), None)?,
    });
    let changes = fleet.change(plan, &operator, &start).await?;
    let steady = steady(plan, &start).await?;
    let restarts = fleet.restart(plan, &identities).await?;
    fleet.stop().await?;
    Ok(json!({
        "nodes": whole.nodes.len(),
        "models": whole.models.len(),
        "upstreams": whole.models.iter().map(|model| model.upstreams.len()).sum::<usize>(),
        "paths": whole.paths.len(),
        "snapshot_bytes": prost::Message::encoded_len(whole.as_ref()),
        "enrolling_ms": millis(enrolling),
        "connecting": connecting,
        "changes": changes,
        "steady": steady,
        "restarts": restarts,
    }))
}

impl Fleet {
    fn new(nodes: u32) -> Self {
        let (sender, heard) = mpsc::channel(nodes as usize * 4);
        Self {
            running: JoinSet::new(),
            stops: Vec::new(),
            heard,
            sender,
            at: vec![0; nodes as usize],
            whole: None,
        }
    }

    /// Starts a node, or starts it again.
    fn connect(&mut self, plan: &Plan, number: usize, identity: &Identity) {
        let stop = CancellationToken::new();
        let node = Node {
            number,
            control: plan.control.clone(),
            identity: identity.clone(),
            nodes: plan.nodes,
            providers: plan.upstreams,
            tried: plan.tried,
            heard: self.sender.clone(),
        };
        self.running.spawn(node.run(stop.clone()));
        if let Some(old) = self.stops.get_mut(number) {
            *old = stop;
        } else {
            self.stops.push(stop);
        }
    }

    /// The next word of a node, of those that are not to end.
    async fn next(&mut self) -> anyhow::Result<Heard> {
        tokio::time::timeout(ALL_WAIT, self.hear())
            .await
            .with_context(|| format!("a node was not told within {} s", ALL_WAIT.as_secs()))?
    }

    async fn hear(&mut self) -> anyhow::Result<Heard> {
        loop {
            tokio::select! {
                heard = self.heard.recv() => {
                    let mut heard = heard.context("every node is gone")?;
                    self.whole = heard.snapshot.take().or_else(|| self.whole.take());
                    return Ok(heard);
                }
                // One that was stopped ends well.
                Some(ended) = self.running.join_next() => ended?.context("a node's stream ended")?,
            }
        }
    }

    /// Until every node that was started has been told something.
    async fn connected(&mut self) -> anyhow::Result<()> {
        while self.at[..self.stops.len()].contains(&0) {
            let heard = self.next().await?;
            self.at[heard.number] = heard.revision;
        }
        Ok(())
    }

    /// Until every node has the same revision, and that names them all; answers it.
    async fn settled(&mut self) -> anyhow::Result<Arc<Snapshot>> {
        loop {
            if let Some(snapshot) = &self.whole
                && snapshot.nodes.len() == self.at.len()
                && self
                    .at
                    .iter()
                    .all(|&revision| revision == snapshot.revision)
            {
                return Ok(Arc::clone(snapshot));
            }
            let heard = self.next().await?;
            self.at[heard.number] = heard.revision;
        }
    }

    /// One change after the other, each when all nodes have the one before it.
    async fn change(
        &mut self,
        plan: &Plan,
        operator: &Operator,
        start: &impl Fn() -> anyhow::Result<Watch>,
    ) -> anyhow::Result<Value> {
        let (mut each, mut all) = (Delays::new()?, Delays::new()?);
        let (watch, began) = (start()?, Instant::now());
        for turn in 0..plan.changes {
            let asked = Instant::now();
            let changing = operator.weigh(turn, plan.upstreams);
            let (changed, told) = tokio::join!(changing, self.told());
            changed?;
            let told = told?;
            told.iter().for_each(|at| each.add(*at - asked));
            all.add(told.last().map_or(Duration::ZERO, |at| *at - asked));
        }
        Ok(json!({
            "count": plan.changes,
            "seconds": began.elapsed().as_secs_f64(),
            "applied_by_each": each.show(),
            "applied_by_all": all.show(),
            "control": watch.show(u64::from(plan.changes), None)?,
        }))
    }

    /// When each node was told of something newer than what all have, in that order.
    async fn told(&mut self) -> anyhow::Result<Vec<Instant>> {
        let before = self.at.iter().copied().max().unwrap_or_default();
        let mut told = Vec::with_capacity(self.at.len());
        while told.len() < self.at.len() {
            let heard = self.next().await?;
            if heard.revision > before && self.at[heard.number] <= before {
                told.push(heard.at);
            }
            self.at[heard.number] = heard.revision;
        }
        told.sort_unstable();
        Ok(told)
    }

    /// Egress nodes that go and come with a new epoch: from their word until the first and the last node know.
    async fn restart(&mut self, plan: &Plan, identities: &[Identity]) -> anyhow::Result<Value> {
        let (mut first, mut last) = (Delays::new()?, Delays::new()?);
        let egress = (0..identities.len()).filter(|number| network::role(*number) == "egress");
        for number in egress.take(plan.restarts as usize) {
            self.stops[number].cancel();
            let asked = Instant::now();
            self.connect(plan, number, &identities[number]);
            let told = self.told().await?;
            let took = |at: Option<&Instant>| at.map_or(Duration::ZERO, |at| *at - asked);
            first.add(took(told.first()));
            last.add(took(told.last()));
        }
        Ok(
            json!({"count": plan.restarts, "known_by_first": first.show(), "known_by_all": last.show()}),
        )
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        for stop in &self.stops {
            stop.cancel();
        }
        while let Some(ended) = self.running.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// What control and etcd cost while nothing is changed.
async fn steady(plan: &Plan, start: &impl Fn() -> anyhow::Result<Watch>) -> anyhow::Result<Value> {
    let before = writes(&plan.etcd)?;
    let (watch, began) = (start()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(plan.steady_seconds)).await;
    let held = watch.resident()?;
    let seconds = began.elapsed().as_secs_f64();
    let rate = |after: f64| (after - before.unwrap_or(after)) / seconds;
    Ok(json!({
        "seconds": seconds,
        "etcd_writes_per_second": writes(&plan.etcd)?.map(rate),
        "control": watch.show(plan.steady_seconds, Some(&held))?,
    }))
}

/// Proposals that etcd has committed: every write, lease and compaction, and no read.
fn writes(members: &[String]) -> anyhow::Result<Option<f64>> {
    let mut most = None;
    for url in members {
        let target = Target::new(url, "none")?;
        let mut line = OwnLine::open(target.address)?;
        line.send(&target.get("/metrics"))?;
        let mut answer = Vec::new();
        line.answer(&mut |part: &[u8]| answer.extend_from_slice(part))?;
        let text = String::from_utf8_lossy(&answer);
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd_server_proposals_committed_total "))
            .and_then(|count| count.parse::<f64>().ok())
            .with_context(|| format!("{url} tells no proposals"))?;
        most = Some(count.max(most.unwrap_or_default()));
    }
    Ok(most)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
