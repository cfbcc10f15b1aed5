//! Moves exchanges from a link that died to another way between the same two nodes, and takes what the other end moves.
//!
//! Both ends act without waiting for each other. The ingress says RESUME for all its exchanges in one batch, on the
//! control stream of the next link to the same incarnation of the egress, or attaches a stream each where a relay
//! stands between; and it attaches a stream for every upload that has bytes left. The egress, which sees the same
//! silence, attaches streams of its own and goes on from the last acknowledged byte, unasked. A word that crosses
//! such a move is recognised: an end that moved by itself to where it is then asked to go stays there.
//!
//! Who may do that: the node at the other end, by its certificate; or a relay, which vouches for the ingress it knows by
//! certificate, speaks only of exchanges it carried, and can start none without their 128-bit ids.
//! Nothing here runs, waits or allocates while no link fails.

mod carry;

mod taken;

mod hope;

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use vector_proto::tunnel::codec::Entry;

pub(super) use self::carry::{attach_frame, open_frame};
use self::{
    carry::{Ask, Move, drive},
    hope::{Seen, Verdict},
};
use super::{
    LostReason, Tunnel,
    end::{End, Out, Side},
    link::Link,
};

/// How long an exchange without any attachment is kept, and a link that does not listen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Patience {
    /// At the egress, before the provider's call is cancelled.
    pub grace: Duration,
    /// At an ingress whose several ways to the egress all died while it hears other nodes: the egress did (`hope`).
    pub all_dead: Duration,
    /// The same for an exchange without an answer that may be done twice: another egress is asked meanwhile, at the worst.
    pub repeatable: Duration,
    /// At one that is not sure whether it hears others. By then those that are heard from every 50 ms are known to be silent.
    pub unsure: Duration,
    /// At an ingress that hears nobody at all.
    pub cut_off: Duration,
    /// At an ingress that knows only one way, after its connection is gone.
    pub only_dead: Duration,
    /// A path on which one batch of words takes longer is dead; a peer that does not read them is broken, though it beats.
    pub unread_words: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            all_dead: Duration::from_millis(100),
            repeatable: Duration::from_millis(20),
            unsure: Duration::from_millis(200),
            cut_off: Duration::from_secs(2),
            only_dead: Duration::from_millis(500),
            unread_words: Duration::from_secs(10),
        }
    }
}

/// How long after a stream was closed, without a word, another one is attached.
const MISTAKE: Duration = Duration::from_millis(250);

impl Tunnel {
    /// `link` is silent or gone: what it carried goes on elsewhere.
    pub(super) fn link_down(&self, link: &Arc<Link>) {
        link.tell_hop_down();
        let ends = self.calls().all().into_iter().chain(self.arrivals().all());
        ends.for_each(|end| self.lost(&end, link));
    }

    /// `link` carries exchanges again, or for the first time: what has no attachment goes on there.
    pub(super) fn link_up(&self, link: &Arc<Link>) {
        let ends = self.calls().all().into_iter().chain(self.arrivals().all());
        let waits = |end: &Arc<End>| end.stranded.load(Ordering::Acquire);
        for end in ends.filter(waits) {
            if *link.peer == *end.far || link.is_relay() {
                self.relocate(&end, None);
            }
        }
    }

    /// One exchange lost the attachment it had over `link`.
    pub(super) fn lost(&self, end: &Arc<End>, link: &Arc<Link>) {
        let concerned = match end.side {
            Side::Ingress => end.sends_over(link) || end.reads_over(link),
            Side::Egress => end.sends_over(link),
        };
        if concerned {
            self.relocate(end, Some(link));
        }
    }

    /// What came of handing out to an attachment.
    pub(super) fn came(&self, end: &Arc<End>, out: Out) {
        match out {
            Out::Done => {}
            Out::LinkLost(link) => self.lost(end, &link),
            // A word of the other end or of a relay says why, and what follows. If none comes, it was a mistake.
            Out::Closed => self.heal(end),
        }
    }

    fn heal(&self, end: &Arc<End>) {
        let (end, turn) = (Arc::downgrade(end), end.sending.lock().moves);
        self.tasks().spawn(async move {
            tokio::time::sleep(MISTAKE).await;
            let Some(end) = end.upgrade() else { return };
            let still = {
                let sending = end.sending.lock();
                sending.moves == turn && sending.at.is_none() && !sending.is_over()
            };
            if still {
                end.tunnel.relocate(&end, None);
            }
        });
    }

    fn relocate(&self, end: &Arc<End>, failed: Option<&Arc<Link>>) {
        if end.fate().is_some() {
            return;
        }
        match end.side {
            Side::Ingress => self.move_call(end, failed),
            Side::Egress => self.move_arrival(end, failed),
        }
    }

    fn move_call(&self, end: &Arc<End>, failed: Option<&Arc<Link>>) {
        let Some(to) = self.way_to_egress(&end.far, failed) else {
            return self.strand(end, failed);
        };
        let (direct, epoch) = (*to.peer == *end.far, end.epoch());
        if direct && epoch != 0 && to.epoch != epoch {
            // The egress was restarted: what it had begun is lost.
            return end.seal(LostReason::Gone);
        }
        let sends = failed.is_none_or(|link| end.sends_over(link));
        let reads = failed.is_none_or(|link| end.reads_over(link));
        let planned = {
            let mut sending = end.sending.lock();
            let opening = sending.opening.as_ref();
            let opening = opening.filter(|_| sending.outgoing.is_unheard()).cloned();
            let ask = match opening {
                Some(opening) if opening.epoch == 0 => None,
                Some(opening) => Some(Ask::Open {
                    payload: opening.payload,
                    epoch: opening.epoch,
                }),
                None if direct && end.is_accepted() => Some(Ask::Bytes),
                None => Some(Ask::Resume),
            };
            ask.and_then(|ask| {
                let number = sending.attachments.make(Instant::now())?;
                let streams = !matches!(ask, Ask::Bytes) || (sends && !sending.is_over());
                let turn = if streams { sending.detach() } else { 0 };
                let acked = sending.outgoing.end() - sending.outgoing.held_bytes();
                Some((ask, number, turn, streams, acked))
            })
        };
        let Some((ask, number, turn, streams, request_next)) = planned else {
            return self.strand(end, failed);
        };
        self.tally().moved.inc();
        if matches!(ask, Ask::Bytes) && reads {
            to.say(Entry::Resume {
                exchange: end.exchange,
                attach_seq: number.into(),
                response_next: end.received(),
                request_next,
            });
            end.set_home(&to);
        }
        if streams {
            self.carry(
                end,
                Move {
                    to,
                    ask,
                    number,
                    turn,
                },
            );
        }
    }

    fn move_arrival(&self, end: &Arc<End>, failed: Option<&Arc<Link>>) {
        let Some(to) = self.way_to_ingress(end, failed) else {
            return self.strand(end, failed);
        };
        let planned = {
            let mut sending = end.sending.lock();
            if sending.is_over() {
                return;
            }
            if sending.promote() {
                sending.unasked = true;
                drop(sending);
                return self.promoted(end);
            }
            let next = Move::next(&mut sending, &to, Ask::Bytes);
            sending.unasked |= next.is_some();
            next
        };
        let Some(next) = planned else {
            return self.strand(end, failed);
        };
        self.tally().moved.inc();
        end.set_home(&to);
        self.carry(end, next);
    }

    /// The twin is the attachment now, and has everything that the lost one had.
    fn promoted(&self, end: &Arc<End>) {
        self.tally().moved.inc();
        let turn = {
            let mut sending = end.sending.lock();
            sending.moving = true;
            sending.moves
        };
        end.mover.wake();
        self.tasks().spawn(drive(Arc::clone(end), turn));
    }

    /// The acceptance of an exchange is late: it is opened over another path, too.
    pub(super) fn hedge(&self, end: &Arc<End>) {
        let first = end.home();
        let Some(to) = self.way_to_egress(&end.far, Some(&first)) else {
            return;
        };
        if *to.peer == *end.far && end.epoch() != 0 && to.epoch != end.epoch() {
            return;
        }
        let planned = {
            let mut sending = end.sending.lock();
            let unheard = sending.outgoing.is_unheard();
            let opening = sending.opening.as_mut();
            let opening = opening.filter(|opening| unheard && opening.epoch != 0);
            let ask = opening.map(|opening| {
                opening.hedged = true;
                Ask::Open {
                    payload: opening.payload.clone(),
                    epoch: opening.epoch,
                }
            });
            ask.and_then(|ask| Move::next(&mut sending, &to, ask))
        };
        if let Some(next) = planned {
            self.tally().hedges.inc();
            self.carry(end, next);
        }
    }

    /// No way is left. Whoever waits goes on waiting for a while.
    fn strand(&self, end: &Arc<End>, failed: Option<&Arc<Link>>) {
        end.stranded.store(true, Ordering::Release);
        let gone = failed.is_none_or(|link| link.is_down());
        let (end, turn) = (Arc::downgrade(end), end.sending.lock().moves);
        self.tasks().spawn(async move {
            let began = Instant::now();
            while let Some(time) = outlook(&end, turn, began, gone) {
                tokio::time::sleep(time).await;
            }
        });
    }

    fn carry(&self, end: &Arc<End>, to: Move) {
        self.tasks().spawn(carry::carry(Arc::clone(end), to));
    }

    /// A writer is gone: what it left in the window is handed over, by a task if that takes time.
    pub(super) fn see_off(&self, end: &Arc<End>) {
        let mut out = Out::Done;
        let over = {
            let mut sending = end.sending.lock();
            if !sending.moving {
                let polled = sending.poll_out(&mut Context::from_waker(std::task::Waker::noop()));
                let blocked = sending.at.is_some() && sending.outgoing.blocked_at().is_some();
                match polled {
                    Poll::Ready(came) if !blocked => {
                        out = came;
                        sending.finish_stream();
                    }
                    Poll::Ready(_) | Poll::Pending => {
                        sending.moving = true;
                        let turn = sending.moves;
                        self.tasks().spawn(drive(Arc::clone(end), turn));
                    }
                }
            }
            sending.is_over()
        };
        self.came(end, out);
        if over && end.side == Side::Egress {
            self.forget(end);
        }
    }
}

/// Ends an exchange that is stranded since `began` if its time is over. Otherwise tells when to look again, if at all.
fn outlook(end: &Weak<End>, turn: u32, began: Instant, gone: bool) -> Option<Duration> {
    let end = end.upgrade()?;
    let moved = end.sending.lock().moves != turn;
    if moved || !end.stranded.load(Ordering::Acquire) {
        return None;
    }
    let (waited, patience) = (began.elapsed(), end.tunnel.patience());
    if end.side == Side::Egress {
        let left = patience.grace.saturating_sub(waited);
        if !left.is_zero() {
            return Some(left);
        }
        tracing::info!(exchange = %end.exchange, ingress = %end.far, "exchange ended: no way to its ingress");
        end.tunnel.tally().orphaned.inc();
        end.seal(LostReason::Cancelled);
        return None;
    }
    let taken = end.is_accepted() || !end.sending.lock().outgoing.is_unheard();
    let seen = Seen {
        ways: end.tunnel.knows_ways(&end.far),
        gone,
        others: end.tunnel.others(&end.far, taken),
        taken,
        repeatable: end.is_repeatable() && end.received() == 0,
    };
    match hope::judge(seen, waited, &patience) {
        Verdict::Wait(time) => Some(time),
        Verdict::WaitForLink => None,
        Verdict::GiveUp => {
            end.seal(LostReason::LinkDown);
            None
        }
    }
}
