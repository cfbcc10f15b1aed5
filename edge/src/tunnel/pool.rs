//! The links of this node, by peer; and the handle through which the roles use them.
//!
//! Reading is wait-free: requests look links up in a map that is replaced whole when a link comes
//! or goes, which is rare.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use vector_proto::{
    control::v1::{LinkState, LinkStatus},
    id::ExchangeId,
    tunnel::v1,
};

use super::{Call, Condition, Link, OpenError, Path, PathState};

/// Handle of the node's links. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tunnel {
    links: Arc<ArcSwap<Links>>,
}

type Links = HashMap<Arc<str>, Vec<Arc<Link>>>;

impl Tunnel {
    /// What is seen of a path, if it can take an exchange now. Takes no lock and allocates nothing.
    #[must_use]
    pub fn path_state(&self, path: &Path) -> Option<PathState> {
        let links = self.links.load();
        let of_peer = links.get(path.first_hop())?;
        let best = least_loaded(of_peer)?;
        let outstanding = of_peer.iter().map(|link| link.outstanding()).sum();
        Some(PathState {
            rtt: best.rtt(),
            outstanding,
        })
    }

    /// Opens an exchange on a path. Nothing leaves before the first flush.
    ///
    /// Cancel safety: dropping the future opens nothing.
    ///
    /// # Errors
    /// [`OpenError`] when no link of the path is up.
    pub async fn open(
        &self,
        path: &Path,
        exchange: ExchangeId,
        open: &v1::Open,
    ) -> Result<Call, OpenError> {
        let link = self.link(path.first_hop()).ok_or(OpenError::NoLink)?;
        Call::open(&link, exchange, open).await
    }

    /// The link to a peer that has the least on it.
    #[must_use]
    pub fn link(&self, peer: &str) -> Option<Arc<Link>> {
        let links = self.links.load();
        least_loaded(links.get(peer)?).cloned()
    }

    /// State of every link, for reports.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        let links = self.links.load();
        let mut rows: Vec<LinkStatus> = links.values().flatten().map(|link| status(link)).collect();
        rows.sort_by(|a, b| (&a.peer, &a.address).cmp(&(&b.peer, &b.address)));
        rows
    }

    /// Whether any link is up.
    #[must_use]
    pub fn any_up(&self) -> bool {
        self.links
            .load()
            .values()
            .flatten()
            .any(|link| link.usable())
    }

    /// Adds a link that is up.
    pub fn add(&self, link: &Arc<Link>) {
        self.links.rcu(|links| {
            let mut links = Links::clone(links);
            links
                .entry(Arc::clone(&link.peer))
                .or_default()
                .push(Arc::clone(link));
            links
        });
    }

    /// Removes a link. Exchanges on it are not touched.
    pub fn remove(&self, link: &Arc<Link>) {
        self.links.rcu(|links| {
            let mut links = Links::clone(links);
            if let Some(of_peer) = links.get_mut(&link.peer) {
                of_peer.retain(|other| !Arc::ptr_eq(other, link));
                if of_peer.is_empty() {
                    links.remove(&link.peer);
                }
            }
            links
        });
    }
}

/// The link in the best condition, and of those the one with the least on it.
fn least_loaded(links: &[Arc<Link>]) -> Option<&Arc<Link>> {
    links
        .iter()
        .filter(|link| link.usable())
        .min_by_key(|link| (link.condition(), link.outstanding()))
}

fn status(link: &Link) -> LinkStatus {
    let state = match (link.condition(), link.draining()) {
        _ if link.is_down() => LinkState::Down,
        (Condition::Down, _) => LinkState::Down,
        (_, true) => LinkState::Draining,
        (Condition::Suspect, false) => LinkState::Suspect,
        (Condition::Up, false) => LinkState::Up,
    };
    let (sent_packets, lost_packets) = link.packets();
    let measures = link.vitals().measures();
    let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let ppm = |share: f32| (share * 1e6) as u32;
    LinkStatus {
        peer: link.peer.to_string(),
        address: link.address.to_string(),
        state: state.into(),
        rtt_us: micros(measures.rtt.unwrap_or_else(|| link.rtt())),
        lost_packets,
        sent_packets,
        jitter_us: micros(measures.jitter),
        loss_out_ppm: ppm(measures.loss_out),
        loss_in_ppm: ppm(measures.loss_in),
        flaps: measures.flaps,
        heartbeats_sent: measures.beats_out,
        heartbeats_heard: measures.beats_in,
    }
}
