//! What the node says of itself: to control, to probes, to the log and in metrics.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;
use vector_proto::control::v1 as control;

use super::egress_side::EgressSide;
use crate::{
    admin::{DRAINING, Readiness},
    config::Role,
    control_plane::{ControlPlane, StatusSource},
    identity::Identity,
    ingress::Upstreams,
    telemetry::{LinkSeries, Telemetry},
    tunnel::Tunnel,
};

/// How often the metrics of links are read.
const LINKS_EVERY: Duration = Duration::from_secs(1);

/// How often a node that is not ready looks again.
const READY_EVERY: Duration = Duration::from_millis(10);

/// A start waits this long for control to take what the former one left untold.
const OBJECTS_WAIT: Duration = Duration::from_secs(5);

/// What is told of the node's machine and of itself.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) identity: Identity,
    pub(super) state_dir: PathBuf,
    pub(super) telemetry: Telemetry,
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The node's state, for reports.
pub(super) struct Status {
    place: Place,
    tunnel: Tunnel,
    egress: Option<EgressSide>,
    /// Set once the ingress role runs.
    ingress: OnceLock<Upstreams>,
    draining: AtomicBool,
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status")
            .field("tunnel", &self.tunnel)
            .field("egress", &self.egress)
            .finish_non_exhaustive()
    }
}

impl Status {
    pub(super) const fn new(place: Place, tunnel: Tunnel, egress: Option<EgressSide>) -> Self {
        Self {
            place,
            tunnel,
            egress,
            ingress: OnceLock::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// Says how the ingress role is read. The first word counts.
    pub(super) fn set_ingress(&self, upstreams: Upstreams) {
        let _ = self.ingress.set(upstreams);
    }

    pub(super) fn set_draining(&self, on: bool) {
        self.draining.store(on, Ordering::Relaxed);
    }

    pub(super) fn source(self: &Arc<Self>) -> StatusSource {
        let status = Arc::clone(self);
        Arc::new(move || status.read())
    }

    fn read(&self) -> control::Status {
        let place = &self.place;
        let (disk_free_bytes, disk_bytes) = Telemetry::disk(&place.state_dir);
        let standing = place.identity.standing();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let upstreams = self.ingress.get().map(|upstreams| upstreams());
        // Who knows no models goes by the pairs alone.
        let (upstreams, models) = upstreams
            .unwrap_or_default()
            .into_iter()
            .partition(|row| row.model.is_empty());
        control::Status {
            unix_ms: ms(now),
            more: false,
            certificate_until_unix_ms: ms(place.identity.validity().1),
            trusted_roots: standing.roots.clone(),
            proven_by: standing.proven_by.clone(),
            disk_free_bytes,
            disk_bytes,
            client_exchanges: place.telemetry.running(Role::Ingress),
            draining: self.draining.load(Ordering::Relaxed),
            exchanges: self.egress.as_ref().map_or(0, EgressSide::exchanges) as u64,
            links: self.tunnel.status(),
            credentials: self
                .egress
                .as_ref()
                .map(EgressSide::status)
                .unwrap_or_default(),
            pools: self
                .egress
                .as_ref()
                .map(EgressSide::pools)
                .unwrap_or_default(),
            upstreams,
            models,
        }
    }
}

/// Ready: routes are in force, control has been told what a former start left, if it is there, and, on an ingress, some egress can be reached if there is any at all.
/// A node that drains still serves who comes, and is not ready, so that balancers send to others.
pub(super) fn readiness(status: Arc<Status>, control: ControlPlane, ingress: bool) -> Readiness {
    let begun = Instant::now();
    Arc::new(move || {
        if *control.removed().borrow() {
            return Err("this node was removed from the network".into());
        }
        let routes = control.routes();
        if routes.revision == 0 {
            return Err("no routes yet: control was never reached".into());
        }
        // Who names such an object would be told that there is none. Control may be away, though.
        if !control.has_told_objects() && begun.elapsed() < OBJECTS_WAIT {
            return Err("control has not been told yet of all objects of a former start".into());
        }
        if ingress && routes.nodes.values().any(|node| node.egress) && !status.tunnel.any_up() {
            return Err("no link to an egress is up".into());
        }
        match status.draining.load(Ordering::Relaxed) {
            true => Err(DRAINING.into()),
            false => Ok(()),
        }
    })
}

/// Says `ready` once.
pub(super) async fn announce(readiness: Readiness, stop: CancellationToken) {
    while readiness().is_err() {
        if stop
            .run_until_cancelled(tokio::time::sleep(READY_EVERY))
            .await
            .is_none()
        {
            return;
        }
    }
    tracing::info!("ready");
}

/// Keeps the metrics of links current.
pub(super) async fn tell_links(telemetry: Telemetry, tunnel: Tunnel, stop: CancellationToken) {
    // The connections of a busy path have one series.
    let mut series: HashMap<([String; 3], u32), Told> = HashMap::new();
    while stop
        .run_until_cancelled(tokio::time::sleep(LINKS_EVERY))
        .await
        .is_some()
    {
        let links = tunnel.status();
        series.retain(|name, told| {
            let is_there = links.iter().any(|link| name_of(link) == *name);
            let first = name.1 == 0;
            if first && !is_there {
                told.series.up.set(0);
                told.series.state.set(DOWN);
            }
            first || is_there
        });
        // Its first connection speaks last for how a path is.
        for link in links.into_iter().rev() {
            let made = || Told {
                series: telemetry.link(&link.peer, &link.address, &link.local_address),
                counted: [0; 5],
            };
            let told = series.entry(name_of(&link)).or_insert_with(made);
            told.tell(&link);
        }
    }
}

/// From where to where a link goes, and which connection it is.
fn name_of(link: &control::LinkStatus) -> ([String; 3], u32) {
    let ends = [&link.peer, &link.address, &link.local_address];
    (ends.map(String::clone), link.connection)
}

/// One link's metrics, and the counters as last read: a new connection starts again at 0.
struct Told {
    series: LinkSeries,
    counted: [u64; 5],
}

/// A link's state as its metric has it.
const DOWN: i64 = 2;

impl Told {
    fn tell(&mut self, link: &control::LinkStatus) {
        let series = &self.series;
        let up = link.state == i32::from(control::LinkState::Up);
        series.up.set(i64::from(up));
        series.state.set(match link.state() {
            control::LinkState::Up => 0,
            control::LinkState::Suspect => 1,
            control::LinkState::Down | control::LinkState::Unspecified => DOWN,
            control::LinkState::Draining => 3,
        });
        series.rtt.set(link.rtt_us as f64 / 1e6);
        series
            .delivery
            .set(i64::try_from(link.delivery_bytes_per_s).unwrap_or(i64::MAX));
        let losses = [link.loss_out_ppm, link.loss_in_ppm];
        for (gauge, ppm) in series.heartbeat_loss.iter().zip(losses) {
            gauge.set(f64::from(ppm) / 1e6);
        }
        let [beats_out, beats_in] = &series.heartbeats;
        let counters = [
            &series.sent,
            &series.lost,
            &series.flaps,
            beats_out,
            beats_in,
        ];
        let counts = [
            link.sent_packets,
            link.lost_packets,
            link.flaps,
            link.heartbeats_sent,
            link.heartbeats_heard,
        ];
        for ((counter, now), before) in counters.into_iter().zip(counts).zip(&mut self.counted) {
            counter.inc_by(if now >= *before { now - *before } else { now });
            *before = now;
        }
    }
}
