//! What a node's tunnel knows: its links, by peer, and the exchanges that have an end here. The handle through
//! which the roles use them.
//!
//! Reading is wait-free: requests look links up in a map that is replaced whole when a link comes
//! or goes, which is rare.

mod best;

mod status;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio_util::task::TaskTracker;
use vector_proto::{control::v1::LinkStatus, id::ExchangeId, tunnel::v1};

use self::best::{best_carrying, best_way, least_loaded, least_loaded_of_all};
use super::{
    Call, Condition, Link, OpenError, Path, PathState, TransitHandler,
    budget::{Budget, Growth},
    end::{End, Side},
    hedge::Hedges,
    onward::{Outlook, Way},
    registry::Registry,
    repair,
    resume::Patience,
    tally::Tally,
};
use crate::lookup::HashMap;

/// How often a node that stops looks whether its last answers have arrived.
const SETTLE_EVERY: Duration = Duration::from_millis(5);

/// Handle of the node's links and exchanges. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tunnel {
    core: Arc<Core>,
}

#[derive(Default)]
struct Core {
    /// Links that this node dialled.
    links: ArcSwap<Links>,
    /// Links that others dialled.
    accepted: ArcSwap<Links>,
    /// The relays over which each egress may be reached.
    relays: ArcSwap<Relays>,
    /// The incarnation of each egress that was seen last.
    epochs: RwLock<HashMap<Arc<str>, u64>>,
    /// Exchanges that this node opened.
    calls: Registry,
    /// Exchanges that were opened here.
    arrivals: Registry,
    /// Present on a relay.
    transits: OnceLock<TransitHandler>,
    patience: RwLock<Patience>,
    tally: Tally,
    hedges: Hedges,
    budget: Budget,
    growth: Growth,
    mending: repair::Places,
    /// What is told of the links, on a relay.
    outlook: Outlook,
    tasks: TaskTracker,
}

type Links = HashMap<Arc<str>, Vec<Arc<Link>>>;

/// Relays by the egress behind them.
pub type Relays = HashMap<Arc<str>, Vec<Arc<str>>>;

impl Tunnel {
    /// What is known of a path, if it has a connection that takes exchanges. Takes no lock and allocates nothing.
    #[must_use]
    pub fn path_state(&self, path: &Path) -> Option<PathState> {
        let links = self.core.links.load();
        let of_peer = links.get(path.first_hop())?;
        let best = least_loaded(of_peer)?;
        let outstanding = of_peer.iter().map(|link| link.outstanding()).sum();
        let way = best.way_to(&path.egress);
        Some(PathState {
            condition: way.condition,
            rtt: Duration::from_micros(way.rtt_us),
            cost_us: way.cost_us,
            whole: way.whole,
            outstanding,
        })
    }

    /// Whether a path leads to what its egress has already: also to one that drains, and over a relay that does.
    #[must_use]
    pub fn reaches(&self, path: &Path) -> bool {
        let links = self.core.links.load();
        let of_peer = links.get(path.first_hop());
        of_peer.is_some_and(|of_peer| least_loaded_of_all(of_peer).is_some())
    }

    /// Opens an exchange on a path; one that asks for what the egress has already goes to a draining one, too. Nothing leaves
    /// before the first flush.
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
        let links = self.core.links.load_full();
        let of_peer = links.get(path.first_hop()).ok_or(OpenError::NoLink)?;
        let best = match asks_for_known(open) {
            true => least_loaded_of_all(of_peer),
            false => least_loaded(of_peer),
        };
        let best = best.ok_or(OpenError::NoLink)?;
        match Call::open(self, path, best, exchange, open).await {
            // It has as many streams as the peer allows, or died just now.
            Err(OpenError::NoLink) if of_peer.len() > 1 => {}
            opened => return opened,
        }
        for other in of_peer.iter().filter(|other| !Arc::ptr_eq(other, best)) {
            if let Ok(call) = Call::open(self, path, other, exchange, open).await {
                return Ok(call);
            }
        }
        Err(OpenError::NoLink)
    }

    /// The link to a peer that has the least on it.
    #[must_use]
    pub fn link(&self, peer: &str) -> Option<Arc<Link>> {
        let links = self.core.links.load();
        least_loaded(links.get(peer)?).cloned()
    }

    /// The best link to a peer for an exchange that runs there, or whose answer is kept there.
    #[must_use]
    pub fn carrying_link(&self, peer: &str) -> Option<Arc<Link>> {
        let links = self.core.links.load();
        best_carrying(links.get(peer)?).cloned()
    }

    /// State of every link, for reports.
    #[must_use]
    pub fn status(&self) -> Vec<LinkStatus> {
        let links = self.core.links.load();
        let mut rows: Vec<LinkStatus> = links
            .values()
            .flatten()
            .map(|link| status::of(link))
            .collect();
        rows.sort_by(|a, b| place(a).cmp(&place(b)));
        rows
    }

    /// Whether any link is up.
    #[must_use]
    pub fn any_up(&self) -> bool {
        self.core
            .links
            .load()
            .values()
            .flatten()
            .any(|link| link.usable())
    }

    /// Adds a link that this node dialled and that is up.
    pub fn add(&self, link: &Arc<Link>) {
        insert(&self.core.links, link);
        self.learn_epoch(&link.peer, link.epoch);
        self.core.outlook.moved();
        self.link_up(link);
    }

    /// Removes a link. Exchanges on it are not touched.
    pub fn remove(&self, link: &Arc<Link>) {
        remove(&self.core.links, link);
        self.core.outlook.moved();
    }

    /// Says which relays lead to which egress, so that exchanges find another way when one dies.
    pub fn know_relays(&self, relays: Relays) {
        self.core.relays.store(Arc::new(relays));
    }

    /// The best link that a peer dialled.
    #[must_use]
    pub fn accepted_link(&self, peer: &str) -> Option<Arc<Link>> {
        best_carrying(self.core.accepted.load().get(peer)?).cloned()
    }

    /// Every link to and from a peer.
    pub(super) fn links_with(&self, peer: &str) -> Vec<Arc<Link>> {
        let sides = [self.core.links.load(), self.core.accepted.load()];
        let of_peer = sides.iter().filter_map(|links| links.get(peer));
        of_peer.flatten().cloned().collect()
    }

    /// Every link there is.
    pub(super) fn all_links(&self) -> Vec<Arc<Link>> {
        let sides = [self.core.links.load(), self.core.accepted.load()];
        sides
            .iter()
            .flat_map(|links| links.values())
            .flatten()
            .cloned()
            .collect()
    }

    /// How often what keeps exchanges alive was used.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.core.tally
    }

    /// Sets how long exchanges without an attachment are kept.
    pub fn set_patience(&self, patience: Patience) {
        *self.core.patience.write() = patience;
    }

    pub(super) fn mending(&self) -> &repair::Places {
        &self.core.mending
    }

    pub(super) fn hedges(&self) -> &Hedges {
        &self.core.hedges
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.core.budget
    }

    pub(super) fn growth(&self) -> &Growth {
        &self.core.growth
    }

    pub(super) fn outlook(&self) -> &Outlook {
        &self.core.outlook
    }

    /// Every other egress that this node has a connection to, and the best link that takes exchanges, if any does.
    pub(super) fn egress_links(&self) -> Vec<(Arc<str>, Option<Arc<Link>>)> {
        let links = self.core.links.load();
        let is_egress = |link: &Arc<Link>| link.egress && *link.peer != *link.me;
        let egress = links
            .iter()
            .filter(|(_, of_peer)| of_peer.iter().any(is_egress));
        egress
            .map(|(peer, of_peer)| (Arc::clone(peer), least_loaded(of_peer).cloned()))
            .collect()
    }

    /// Bytes that are kept for replays.
    #[must_use]
    pub fn replay_bytes(&self) -> u64 {
        self.core.budget.used()
    }

    pub(super) fn patience(&self) -> Patience {
        *self.core.patience.read()
    }

    /// Waits, at most for `time`, until the answers that this node has written are acknowledged.
    pub(super) async fn settled(&self, time: Duration) {
        let written = |end: &Arc<End>| end.sending.lock().ended;
        let settled = async {
            while self.arrivals().all().iter().any(written) {
                tokio::time::sleep(SETTLE_EVERY).await;
            }
        };
        // What is left then is lost, as if the node had died.
        let _ = tokio::time::timeout(time, settled).await;
    }

    pub(super) fn add_accepted(&self, link: &Arc<Link>) {
        insert(&self.core.accepted, link);
        self.link_up(link);
    }

    pub(super) fn remove_accepted(&self, link: &Arc<Link>) {
        remove(&self.core.accepted, link);
    }

    pub(super) fn pass_on(&self, transits: &TransitHandler) {
        // A node has one relay.
        let _ = self.core.transits.set(Arc::clone(transits));
    }

    pub(super) fn transits(&self) -> Option<TransitHandler> {
        self.core.transits.get().cloned()
    }

    pub(super) fn tasks(&self) -> &TaskTracker {
        &self.core.tasks
    }

    pub(super) fn calls(&self) -> &Registry {
        &self.core.calls
    }

    pub(super) fn arrivals(&self) -> &Registry {
        &self.core.arrivals
    }

    /// The end of an exchange that is here.
    pub(super) fn end(&self, side: Side, exchange: ExchangeId) -> Option<Arc<End>> {
        match side {
            Side::Ingress => self.core.calls.get(exchange),
            Side::Egress => self.core.arrivals.get(exchange),
        }
    }

    pub(super) fn forget(&self, end: &Arc<End>) {
        match end.side {
            Side::Ingress => self.core.calls.leave(end),
            Side::Egress => self.core.arrivals.leave(end),
        }
    }

    /// The incarnation of an egress that was seen last; 0 if none was.
    pub(super) fn epoch_of(&self, egress: &str) -> u64 {
        self.core.epochs.read().get(egress).copied().unwrap_or(0)
    }

    pub(super) fn learn_epoch(&self, egress: &Arc<str>, epoch: u64) {
        if self.epoch_of(egress) != epoch {
            self.core.epochs.write().insert(Arc::clone(egress), epoch);
        }
    }

    /// The relays over which an egress may come back to this node at the moment.
    pub(super) fn via(&self, egress: &str) -> Vec<String> {
        let relays = self.core.relays.load();
        let Some(relays) = relays.get(egress) else {
            return Vec::new();
        };
        let links = self.core.links.load();
        let up = |relay: &&Arc<str>| {
            let links = links.get(&***relay);
            links.is_some_and(|links| links.iter().any(|link| link.carries()))
        };
        relays.iter().filter(up).map(ToString::to_string).collect()
    }

    /// How many ways to a node are configured, dead or alive.
    pub(super) fn knows_ways(&self, egress: &str) -> usize {
        let links = self.core.links.load();
        // More connections of one path are no more ways.
        let firsts = |links: &Vec<Arc<Link>>| {
            let firsts = links.iter().filter(|link| link.connection_number == 0);
            firsts.count()
        };
        let direct = links.get(egress).map_or(0, firsts);
        let relays = self.core.relays.load().get(egress).map_or(0, Vec::len);
        direct.max(1) + relays
    }

    /// The best that is seen of any other node than an egress, over links that this node dialled: of every node as a witness,
    /// or only of those that could take an exchange instead.
    pub(super) fn others(&self, egress: &str, witness: bool) -> Option<Condition> {
        let links = self.core.links.load();
        let others = links.iter().filter(|(peer, _)| ***peer != *egress);
        let others = others.flat_map(|(_, links)| links);
        others
            .filter(|link| match witness {
                true => *link.peer != *link.me,
                false => link.egress && !link.draining(),
            })
            .map(|link| match link.is_down() {
                true => Condition::Down,
                false => link.condition(),
            })
            .min()
    }

    /// The next best link towards an egress: directly, or else over a relay.
    pub(super) fn way_to_egress(
        &self,
        egress: &str,
        failed: Option<&Arc<Link>>,
    ) -> Option<Arc<Link>> {
        let links = self.core.links.load();
        let relays = self.core.relays.load();
        let relays = relays.get(egress).map_or(&[][..], Vec::as_slice);
        let hops = std::iter::once(egress).chain(relays.iter().map(|relay| &**relay));
        best_way(&links, hops, failed, |link| {
            let Way {
                condition,
                cost_us,
                whole,
                ..
            } = link.way_to(egress);
            // What nobody has told of comes behind what is known, in control's order.
            (condition, if whole { cost_us } else { u64::MAX })
        })
    }

    /// The next best link towards the ingress of an exchange.
    pub(super) fn way_to_ingress(
        &self,
        end: &End,
        failed: Option<&Arc<Link>>,
    ) -> Option<Arc<Link>> {
        let links = self.core.accepted.load();
        let hops = std::iter::once(&*end.far).chain(end.via.iter().map(String::as_str));
        // What lies behind a relay is not known here.
        best_way(&links, hops, failed, |link| (link.condition(), 0))
    }
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.core.links.load().values().flatten())
            .finish()
    }
}

fn insert(links: &ArcSwap<Links>, link: &Arc<Link>) {
    links.rcu(|links| {
        let mut links = Links::clone(links);
        let of_peer = links.entry(Arc::clone(&link.peer)).or_default();
        of_peer.push(Arc::clone(link));
        links
    });
}

fn remove(links: &ArcSwap<Links>, link: &Arc<Link>) {
    links.rcu(|links| {
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

/// Whether an OPEN begins nothing, but asks for an answer that is kept, or for an exchange to be.
#[must_use]
pub const fn asks_for_known(open: &v1::Open) -> bool {
    open.replay.is_some() || open.adopt.is_some()
}

/// From where to where, and over which connection.
fn place(row: &LinkStatus) -> (&str, &str, &str, u32) {
    (&row.peer, &row.address, &row.local_address, row.connection)
}
