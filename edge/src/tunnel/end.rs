//! One end of an exchange on this node: its window, its attachments, who is to be woken, and its fate.
//!
//! An end outlives the links that carry it. What it sends goes over one attachment at a time, which may be
//! replaced: by its writer's next flush it goes on, or, where no writer is left or none comes soon, a *mover*
//! task drives it until everything is handed over. What it reads comes from every attachment at once and is
//! merged by offset. An end without any attachment is *stranded* and ends when its time is over.

mod receiving;
mod sending;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        codec::{Entry, GoneReason},
        v1,
    },
};

use self::receiving::Receiving;
pub(super) use self::sending::{Attachment, Opening, Out, Sending};
use super::{Condition, LostReason, Tunnel, link::Link};

/// Relays that may speak of one exchange.
const CARRIERS_MAX: usize = 8;

/// Which end of an exchange this is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

/// What an end is made of.
pub(super) struct Origin {
    pub(super) exchange: ExchangeId,
    pub(super) side: Side,
    /// The node at the other end, by its certificate or by the word of a relay.
    pub(super) far: Arc<str>,
    pub(super) attempt: u32,
    /// Incarnation of the egress; 0 where it is not known yet.
    pub(super) epoch: u64,
    /// Relays over which the far end may be reached, as it says.
    pub(super) via: Vec<String>,
    pub(super) redundant: bool,
    pub(super) repeatable: bool,
    /// Repair symbols for the request go or come beside it.
    pub(super) repaired: bool,
    /// What is asked is said later.
    pub(super) ahead: bool,
    /// For the egress, whose provider call must stop: set once the exchange cannot go on.
    pub(super) stop: Option<CancellationToken>,
}

/// One end of an exchange.
pub(super) struct End {
    pub(super) exchange: ExchangeId,
    pub(super) side: Side,
    pub(super) far: Arc<str>,
    pub(super) attempt: u32,
    pub(super) via: Vec<String>,
    pub(super) stop: Option<CancellationToken>,
    pub(super) tunnel: Tunnel,
    epoch: AtomicU64,
    pub(super) sending: Mutex<Sending>,
    receiving: Mutex<Receiving>,
    /// A stream waits for the reader.
    arrived: AtomicBool,
    /// Bytes of the other end's sequence that are here in order.
    received: AtomicU64,
    /// All of it is here.
    pub(super) whole: AtomicBool,
    /// The egress has taken the exchange.
    accepted: AtomicBool,
    /// No attachment is left.
    pub(super) stranded: AtomicBool,
    /// What is small goes over two paths.
    pub(super) redundant: AtomicBool,
    /// To be done twice is no harm.
    pub(super) repeatable: AtomicBool,
    /// Repair symbols for the request go or come beside it.
    pub(super) repaired: bool,
    /// Its body goes ahead of what is asked, which was not said yet (`ahead`).
    pub(super) headless: AtomicBool,
    /// Of a body that went ahead: where in the sequence what is asked ends; 0 for all others.
    pub(super) asked: AtomicU64,
    /// A twin is being made.
    pub(super) doubling: AtomicBool,
    /// Its writer waits for the node's budget.
    pub(super) awaits_budget: AtomicBool,
    fate: AtomicU8,
    pub(super) writer: AtomicWaker,
    pub(super) reader: AtomicWaker,
    pub(super) mover: AtomicWaker,
}

impl End {
    pub(super) fn new(tunnel: &Tunnel, home: &Arc<Link>, origin: Origin) -> Arc<Self> {
        let Origin {
            exchange,
            side,
            far,
            attempt,
            epoch,
            via,
            redundant,
            repeatable,
            repaired,
            ahead,
            stop,
        } = origin;
        home.vitals().began();
        if side == Side::Ingress {
            home.count(true);
        }
        let mut carriers = Vec::new();
        if *home.peer != *far {
            carriers.push(Arc::clone(&home.peer));
        }
        Arc::new(Self {
            exchange,
            side,
            far,
            attempt,
            via,
            stop,
            tunnel: tunnel.clone(),
            epoch: AtomicU64::new(epoch),
            sending: Mutex::default(),
            receiving: Mutex::new(Receiving {
                home: Arc::clone(home),
                inbox: Vec::new(),
                repairs: Vec::new(),
                carriers,
            }),
            arrived: AtomicBool::new(false),
            received: AtomicU64::new(0),
            whole: AtomicBool::new(false),
            accepted: AtomicBool::new(false),
            stranded: AtomicBool::new(false),
            redundant: AtomicBool::new(redundant),
            repeatable: AtomicBool::new(repeatable),
            repaired,
            headless: AtomicBool::new(ahead),
            asked: AtomicU64::new(0),
            doubling: AtomicBool::new(false),
            awaits_budget: AtomicBool::new(false),
            fate: AtomicU8::new(0),
            writer: AtomicWaker::new(),
            reader: AtomicWaker::new(),
            mover: AtomicWaker::new(),
        })
    }

    /// Incarnation of the egress; 0 where it is not known.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    pub(super) fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Relaxed);
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.accepted.load(Ordering::Acquire)
    }

    /// Whether the egress is known to have the exchange: where its body went ahead, what is asked, too.
    pub(super) fn is_taken(&self) -> bool {
        let asked = self.asked.load(Ordering::Acquire);
        let known = || self.received() > 0 || self.sending.lock().outgoing.known() >= asked;
        self.is_accepted() && (asked == 0 || known())
    }

    pub(super) fn set_accepted(&self) {
        self.accepted.store(true, Ordering::Release);
    }

    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Acquire)
    }

    pub(super) fn set_received(&self, offset: u64) {
        self.received.store(offset, Ordering::Release);
    }

    /// Why the exchange cannot go on, if so.
    pub(super) fn fate(&self) -> Option<LostReason> {
        match self.fate.load(Ordering::Acquire) {
            0 => None,
            1 => Some(LostReason::LinkDown),
            2 => Some(LostReason::Cancelled),
            _ => Some(LostReason::Gone),
        }
    }

    /// The exchange cannot go on: whoever waits for it learns why, and the node forgets it.
    pub(super) fn seal(self: &Arc<Self>, reason: LostReason) {
        let fate = match reason {
            LostReason::LinkDown => 1,
            LostReason::Cancelled => 2,
            LostReason::Reset | LostReason::Protocol(_) | LostReason::Gone => 3,
        };
        // The first reason stays.
        let _ = self
            .fate
            .compare_exchange(0, fate, Ordering::AcqRel, Ordering::Acquire);
        self.tunnel.forget(self);
        self.wake();
        if let Some(stop) = &self.stop {
            stop.cancel();
        }
    }

    fn wake(&self) {
        self.writer.wake();
        self.reader.wake();
        self.mover.wake();
    }

    /// The link of the newest attachment.
    pub(super) fn home(&self) -> Arc<Link> {
        Arc::clone(&self.receiving.lock().home)
    }

    /// From now on words about the exchange go over `link`.
    pub(super) fn set_home(&self, link: &Arc<Link>) {
        let before = {
            let mut receiving = self.receiving.lock();
            if Arc::ptr_eq(&receiving.home, link) {
                return;
            }
            std::mem::replace(&mut receiving.home, Arc::clone(link))
        };
        self.carried_by(link);
        link.vitals().began();
        before.vitals().ended(1);
        if self.side == Side::Ingress {
            link.count(true);
            before.count(false);
        }
    }

    /// From now on `link` carries it, too: whoever is at its other end may speak of the exchange.
    pub(super) fn carried_by(&self, link: &Link) {
        let mut receiving = self.receiving.lock();
        let known = receiving.carriers.contains(&link.peer);
        if *link.peer != *self.far && !known && receiving.carriers.len() < CARRIERS_MAX {
            receiving.carriers.push(Arc::clone(&link.peer));
        }
    }

    /// Whether a peer may speak of the exchange: its other end, or a relay that carried it.
    pub(super) fn knows(&self, peer: &str) -> bool {
        *self.far == *peer
            || self
                .receiving
                .lock()
                .carriers
                .iter()
                .any(|carrier| **carrier == *peer)
    }

    /// Says something about the exchange to the other end.
    pub(super) fn say(&self, entry: Entry) {
        self.home().say(entry);
    }

    /// Says it over the attachment of what is sent, too, where that is another one.
    pub(super) fn say_everywhere(&self, entry: Entry) {
        let home = self.home();
        let sending = self.sending.lock();
        let at = sending.at.as_ref().map(|at| Arc::clone(&at.link));
        drop(sending);
        if let Some(at) = at.filter(|at| !Arc::ptr_eq(at, &home)) {
            at.say(entry);
        }
        home.say(entry);
    }

    /// Whether what is sent goes over `link`, or nowhere, and something is left to send.
    pub(super) fn sends_over(&self, link: &Arc<Link>) -> bool {
        let sending = self.sending.lock();
        !sending.is_over()
            && sending
                .at
                .as_ref()
                .is_none_or(|at| Arc::ptr_eq(&at.link, link))
    }

    /// Whether what is read comes over `link`, and something is left to read.
    pub(super) fn reads_over(&self, link: &Arc<Link>) -> bool {
        !self.whole.load(Ordering::Acquire) && Arc::ptr_eq(&self.receiving.lock().home, link)
    }

    /// A word of the other end.
    pub(super) fn hear(self: &Arc<Self>, entry: Entry, link: &Arc<Link>) {
        match entry {
            Entry::Ack { offset, .. } => self.acked(offset),
            Entry::Credit { offset, .. } => {
                self.sending.lock().outgoing.allow(offset);
                self.writer.wake();
                self.mover.wake();
            }
            Entry::Cancel { reason, .. } => {
                // That of an earlier attempt may come late, or over another way.
                let meant = self.attempt <= GoneReason::up_to_attempt(reason);
                if self.side == Side::Egress && meant {
                    self.seal(LostReason::Cancelled);
                }
            }
            Entry::Gone { reason, .. } => self.gone(reason, link),
            Entry::Resume {
                attach_seq,
                response_next,
                request_next,
                ..
            } => {
                let number = u32::try_from(attach_seq).unwrap_or(u32::MAX);
                let tunnel = &self.tunnel;
                tunnel.resume(self, link, (number, response_next, request_next));
            }
        }
    }

    fn gone(self: &Arc<Self>, reason: u64, link: &Arc<Link>) {
        if reason == GoneReason::HopDown as u64 {
            self.tunnel.lost(self, link);
        } else if reason == GoneReason::Unread as u64 {
            {
                let mut sending = self.sending.lock();
                sending.unread = true;
                sending.detach();
            }
            self.writer.wake();
            self.mover.wake();
        } else {
            self.seal(LostReason::Gone);
        }
    }

    /// The other end has everything below `offset`.
    pub(super) fn acked(self: &Arc<Self>, offset: u64) {
        let (acked, over) = {
            let mut sending = self.sending.lock();
            if offset < sending.outgoing.known() {
                self.tunnel.tally().stale_acks.inc();
            }
            let acked = sending.outgoing.ack(offset);
            let held = sending.outgoing.held_bytes();
            let budget = self.tunnel.budget();
            budget.charge(&mut sending.charged, held);
            (acked, sending.is_over())
        };
        if let Err(violation) = acked {
            tracing::warn!(exchange = %self.exchange, peer = %self.far, %violation, "peer breaks the tunnel's rules");
            self.say(Entry::Gone {
                exchange: self.exchange,
                reason: GoneReason::Unknown as u64,
            });
            return self.seal(LostReason::Gone);
        }
        self.writer.wake();
        self.mover.wake();
        if over && self.side == Side::Egress {
            self.tunnel.forget(self);
        }
    }

    /// What the writer waits for: that it may add more.
    pub(super) fn poll_room(self: &Arc<Self>, sending: &mut Sending, cx: &Context<'_>) -> Poll<()> {
        let (budget, held) = (self.tunnel.budget(), sending.outgoing.held_bytes());
        budget.charge(&mut sending.charged, held);
        // Before the look at the budget, whose room may come at any moment.
        // One look decides both, or a budget that is spent in between would be waited for unheard.
        let spent = budget.is_spent();
        if sending.is_held_up() || spent {
            self.writer.register(cx.waker());
        }
        if sending.is_held_up() || (spent && budget.must_wait(self, held)) {
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Notes how long the acceptance took, and whether a hedge was quicker.
    fn punctual(&self, opening: &Opening, link: &Arc<Link>) {
        let (at, first) = &opening.first;
        first.lateness().note(at.elapsed());
        if opening.hedged && !Arc::ptr_eq(first, link) {
            self.tunnel.tally().hedges_won.inc();
        }
    }

    /// Whether what is sent should have a twin, as far as the end itself can tell.
    pub(super) fn wants_twin(&self, sending: &Sending) -> bool {
        let first = sending.at.as_ref().map(|at| at.link.condition());
        sending.twin.is_none()
            && (self.is_redundant() || first == Some(Condition::Suspect))
            && !self.doubling.load(Ordering::Relaxed)
    }

    /// The egress has the exchange; what follows on the stream begins at the offset that it says.
    pub(super) fn taken(self: &Arc<Self>, link: &Arc<Link>, accepted: &v1::Accepted) {
        let known = self.epoch();
        if known != 0 && accepted.epoch != 0 && known != accepted.epoch {
            tracing::warn!(exchange = %self.exchange, peer = %self.far, "answered by another incarnation");
            return self.seal(LostReason::Gone);
        }
        if accepted.epoch != 0 {
            self.set_epoch(accepted.epoch);
            self.tunnel.learn_epoch(&self.far, accepted.epoch);
        }
        self.stranded.store(false, Ordering::Release);
        let (opening, newest) = {
            let mut sending = self.sending.lock();
            sending.outgoing.allow(accepted.request_credit);
            let at = sending.at.as_ref();
            let newest = at.is_some_and(|at| Arc::ptr_eq(&at.link, link));
            (sending.opening.take(), newest)
        };
        if let Some(opening) = opening {
            self.punctual(&opening, link);
        }
        // Of two OPENs that are both accepted, the egress answers on the newer one.
        if !self.accepted.swap(true, Ordering::AcqRel) || newest {
            self.set_home(link);
        }
        self.writer.wake();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let charged = &mut self.sending.get_mut().charged;
        self.tunnel.budget().charge(charged, 0);
        let home = &self.receiving.get_mut().home;
        home.vitals().ended(1);
        if self.side == Side::Ingress {
            home.count(false);
        }
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "End({:?} of {})", self.side, self.exchange)
    }
}
