//! What the node says of itself: to control, to probes, to the log and in metrics.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use vector_proto::control::v1 as control;

use super::egress_side::EgressSide;
use crate::{
    admin::Readiness,
    control_plane::{ControlPlane, StatusSource},
    telemetry::{LinkSeries, Telemetry},
    tunnel::Tunnel,
};

/// How often the metrics of links are read.
const LINKS_EVERY: Duration = Duration::from_secs(1);

/// How often a node that is not ready looks again.
const READY_EVERY: Duration = Duration::from_millis(10);

/// The node's state, for reports.
#[derive(Debug)]
pub(super) struct Status {
    tunnel: Tunnel,
    egress: Option<EgressSide>,
    draining: AtomicBool,
}

impl Status {
    pub(super) const fn new(tunnel: Tunnel, egress: Option<EgressSide>) -> Self {
        Self {
            tunnel,
            egress,
            draining: AtomicBool::new(false),
        }
    }

    pub(super) fn set_draining(&self, on: bool) {
        self.draining.store(on, Ordering::Relaxed);
    }

    pub(super) fn source(self: &Arc<Self>) -> StatusSource {
        let status = Arc::clone(self);
        Arc::new(move || status.read())
    }

    fn read(&self) -> control::Status {
        control::Status {
            draining: self.draining.load(Ordering::Relaxed),
            exchanges: self.egress.as_ref().map_or(0, EgressSide::exchanges) as u64,
            links: self.tunnel.status(),
            credentials: self
                .egress
                .as_ref()
                .map(EgressSide::status)
                .unwrap_or_default(),
        }
    }
}

/// Ready: routes are in force and, on an ingress, some egress can be reached if there is any at all.
pub(super) fn readiness(control: ControlPlane, tunnel: Tunnel, ingress: bool) -> Readiness {
    Arc::new(move || {
        let routes = control.routes();
        if routes.revision == 0 {
            return Err("no routes yet: control was never reached".into());
        }
        if ingress && routes.nodes.values().any(|node| node.egress) && !tunnel.any_up() {
            return Err("no link to an egress is up".into());
        }
        Ok(())
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
    let mut series: HashMap<(String, String), Told> = HashMap::new();
    while stop
        .run_until_cancelled(tokio::time::sleep(LINKS_EVERY))
        .await
        .is_some()
    {
        let links = tunnel.status();
        for (name, told) in &series {
            if !links
                .iter()
                .any(|link| link.peer == name.0 && link.address == name.1)
            {
                told.series.up.set(0);
            }
        }
        for link in links {
            let made = || Told {
                series: telemetry.link(&link.peer, &link.address),
                sent: 0,
                lost: 0,
            };
            let told = series
                .entry((link.peer.clone(), link.address.clone()))
                .or_insert_with(made);
            told.tell(&link);
        }
    }
}

/// One link's metrics, and the counters as last read: a new connection starts again at 0.
struct Told {
    series: LinkSeries,
    sent: u64,
    lost: u64,
}

impl Told {
    fn tell(&mut self, link: &control::LinkStatus) {
        let up = link.state == i32::from(control::LinkState::Up);
        self.series.up.set(i64::from(up));
        self.series.rtt.set(link.rtt_us as f64 / 1e6);
        let since = |now: u64, before: u64| if now >= before { now - before } else { now };
        self.series.sent.inc_by(since(link.sent_packets, self.sent));
        self.series.lost.inc_by(since(link.lost_packets, self.lost));
        (self.sent, self.lost) = (link.sent_packets, link.lost_packets);
    }
}
