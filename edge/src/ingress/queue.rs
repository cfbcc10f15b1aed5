//! Where requests wait while every credential that could serve them rests.
//!
//! One line for each provider, in which accounts take turns, so that nobody is behind another's hundred. When the rest is
//! over, one request goes first; each that gets through lets two more go, and one that meets another rest stops the line until
//! that is over. Bounded in requests and bytes, together with those that wait for a path. A client that goes away leaves its line.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Requests that may wait. About 10 KiB each besides their bodies: 10 MiB.
const WAITING_MAX: usize = 1_024;

/// Of one account: others must find a place as well.
const WAITING_ACCOUNT_MAX: usize = WAITING_MAX / 4;

/// Bytes of bodies in memory that may wait.
const BYTES_MAX: usize = 64 << 20;

/// Requests that may be on their way at once after a rest, and be unheard of.
const WINDOW_MAX: usize = 64;

/// A request that was let go this long ago was not refused: a refusal is quicker.
const THROUGH_AFTER: Duration = Duration::from_secs(1);

/// How often a line that is open is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// No more can wait, or no turn comes in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct NoTurn {
    /// Nobody has a turn before.
    pub(super) opens: Instant,
}

impl NoTurn {
    /// Of a line that opens then. One that is open is only too long: it has moved a little after [`THROUGH_AFTER`].
    fn at(opens: Instant, now: Instant) -> Self {
        let opens = if opens > now {
            opens
        } else {
            now + THROUGH_AFTER
        };
        Self { opens }
    }
}

/// All lines.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lines: Mutex<Lines>,
    waiting: AtomicUsize,
    /// No provider's name.
    stranded: Arc<str>,
}

#[derive(Debug, Default)]
struct Lines {
    lines: HashMap<Arc<str>, Line>,
    bytes: usize,
    next: u64,
}

#[derive(Debug)]
struct Line {
    opens: Instant,
    window: usize,
    /// When those were let go of which nothing is known yet.
    gone: VecDeque<Instant>,
    /// Whose turn it is, first to last.
    turns: VecDeque<Box<str>>,
    waiters: HashMap<Box<str>, VecDeque<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    go: oneshot::Sender<()>,
}

/// Who waits, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Visitor<'a> {
    pub(super) line: &'a Arc<str>,
    pub(super) account: &'a str,
    pub(super) bytes: usize,
    /// It has been let go before, and stands first among its account's.
    pub(super) again: bool,
}

/// A place in a line. Dropped, it is free.
#[derive(Debug)]
pub(super) struct Place<'a> {
    queue: &'a Queue,
    visitor: Visitor<'a>,
    number: u64,
    go: oneshot::Receiver<()>,
    /// It was let go, and a [`Turn`] answers for it.
    left: bool,
}

/// A request that was let go. What becomes of it decides about the others.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    queue: &'a Queue,
    line: &'a Arc<str>,
    told: bool,
}

impl Queue {
    /// Whether others wait in a line: who comes now belongs behind them.
    pub(super) fn is_waiting(&self, line: &Arc<str>) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0 && self.lines.lock().lines.contains_key(line)
    }

    /// Whether those who wait in a line are being served: who comes now would take what is theirs.
    pub(super) fn is_moving(&self, line: &Arc<str>, now: Instant) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
            && self
                .lines
                .lock()
                .lines
                .get(line)
                .is_some_and(|line| line.opens <= now)
    }

    /// The line of those who wait for something else than a provider's credentials.
    pub(super) const fn stranded(&self) -> &Arc<str> {
        &self.stranded
    }

    /// Takes a place without waiting for a turn.
    pub(super) fn hold<'a>(&'a self, visitor: Visitor<'a>) -> Result<Place<'a>, NoTurn> {
        self.enter(visitor, None, Instant::now())
    }

    /// Waits for a turn, which does not come before `opens`, until `until` or until it is known to come later.
    ///
    /// Cancel safety: the place is given up.
    pub(super) async fn wait<'a>(
        &'a self,
        visitor: Visitor<'a>,
        opens: Option<Instant>,
        until: Instant,
    ) -> Result<Turn<'a>, NoTurn> {
        let mut place = self.enter(visitor, opens, Instant::now())?;
        loop {
            let now = Instant::now();
            let opens = self.let_go(visitor.line, now);
            if place.go.try_recv().is_ok() {
                break;
            }
            if opens > until || now >= until {
                return Err(NoTurn::at(opens, now));
            }
            let look = if opens > now { opens } else { now + LOOK_EVERY };
            tokio::select! {
                biased;
                // The sender is dropped only with the place itself.
                _ = &mut place.go => break,
                () = tokio::time::sleep_until(look.min(until).into()) => {}
            }
        }
        place.left = true;
        Ok(Turn {
            queue: self,
            line: visitor.line,
            told: false,
        })
    }

    fn enter<'a>(
        &'a self,
        visitor: Visitor<'a>,
        opens: Option<Instant>,
        now: Instant,
    ) -> Result<Place<'a>, NoTurn> {
        let mut lines = self.lines.lock();
        let full = self.waiting.load(Ordering::Relaxed) >= WAITING_MAX
            || lines.bytes + visitor.bytes > BYTES_MAX;
        let there = lines.lines.get(visitor.line);
        let mine = there
            .and_then(|line| line.waiters.get(visitor.account))
            .map_or(0, VecDeque::len);
        if full || mine >= WAITING_ACCOUNT_MAX {
            let known = there.map_or(now, |line| line.opens);
            let opens = opens.unwrap_or(now).max(known);
            return Err(NoTurn::at(opens, now));
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        lines.bytes += visitor.bytes;
        lines.next += 1;
        let number = lines.next;
        let line = lines
            .lines
            .entry(Arc::clone(visitor.line))
            .or_insert_with(|| Line::new(now));
        if let Some(opens) = opens {
            line.opens = line.opens.max(opens);
        }
        let (go, gone) = oneshot::channel();
        line.enter(visitor.account, Waiter { number, go }, visitor.again);
        Ok(Place {
            queue: self,
            visitor,
            number,
            go: gone,
            left: false,
        })
    }

    /// Lets go whoever may. Answers before when nobody does.
    fn let_go(&self, line: &Arc<str>, now: Instant) -> Instant {
        let mut lines = self.lines.lock();
        lines.lines.get_mut(line).map_or(now, |line| {
            line.let_go(now);
            line.opens
        })
    }
}

impl Line {
    fn new(now: Instant) -> Self {
        Self {
            opens: now,
            window: 1,
            gone: VecDeque::new(),
            turns: VecDeque::new(),
            waiters: HashMap::new(),
        }
    }

    fn enter(&mut self, account: &str, waiter: Waiter, again: bool) {
        let of = self.waiters.entry(account.into()).or_default();
        let first = of.is_empty();
        if again {
            of.push_front(waiter);
        } else {
            of.push_back(waiter);
        }
        match (first, again) {
            (true, true) => self.turns.push_front(account.into()),
            (true, false) => self.turns.push_back(account.into()),
            (false, _) => {}
        }
    }

    fn let_go(&mut self, now: Instant) {
        if now < self.opens {
            return;
        }
        while self
            .gone
            .front()
            .is_some_and(|at| *at + THROUGH_AFTER <= now)
        {
            self.gone.pop_front();
        }
        while self.gone.len() < self.window {
            let Some(waiter) = self.next() else { break };
            if waiter.go.send(()).is_ok() {
                self.gone.push_back(now);
            }
        }
    }

    /// The first of the account whose turn it is.
    fn next(&mut self) -> Option<Waiter> {
        let account = self.turns.pop_front()?;
        let of = self.waiters.get_mut(&account)?;
        let waiter = of.pop_front();
        if of.is_empty() {
            self.waiters.remove(&account);
        } else {
            self.turns.push_back(account);
        }
        waiter
    }

    fn leave(&mut self, account: &str, number: u64) {
        let Some(of) = self.waiters.get_mut(account) else {
            return;
        };
        of.retain(|waiter| waiter.number != number);
        if of.is_empty() {
            self.waiters.remove(account);
            self.turns.retain(|one| **one != *account);
        }
    }

    fn is_over(&self) -> bool {
        self.waiters.is_empty()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Visitor {
            line,
            account,
            bytes,
            ..
        } = self.visitor;
        self.queue.waiting.fetch_sub(1, Ordering::Relaxed);
        let mut lines = self.queue.lines.lock();
        lines.bytes -= bytes;
        if let Some(of) = lines.lines.get_mut(line) {
            of.leave(account, self.number);
            if !self.left && self.go.try_recv().is_ok() {
                // It was let go and nobody went: the next may.
                of.gone.pop_front();
                of.let_go(Instant::now());
            }
            if of.is_over() {
                lines.lines.remove(line);
            }
        }
    }
}

impl Turn<'_> {
    /// It was served: more may go.
    pub(super) fn passed(mut self) {
        self.tell(|line| line.window = (line.window * 2).min(WINDOW_MAX));
    }

    /// It met another rest.
    pub(super) fn rests(mut self, opens: Instant) {
        self.tell(|line| {
            line.window = 1;
            line.opens = line.opens.max(opens);
        });
    }

    fn tell(&mut self, what: impl FnOnce(&mut Line)) {
        self.told = true;
        if let Some(line) = self.queue.lines.lock().lines.get_mut(self.line) {
            line.gone.pop_front();
            what(line);
            line.let_go(Instant::now());
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.told {
            self.tell(|_| {});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn visitor<'a>(line: &'a Arc<str>, account: &'a str) -> Visitor<'a> {
        Visitor {
            line,
            account,
            bytes: 10,
            again: false,
        }
    }

    /// Whether a place has been let go.
    fn may_go(place: &mut Place<'_>) -> bool {
        place.left |= place.go.try_recv().is_ok();
        place.left
    }

    #[test]
    fn accounts_take_turns_whoever_came_with_more() {
        let (queue, line) = (Queue::default(), Arc::from("p"));
        let now = Instant::now();
        let enter = |account| queue.enter(visitor(&line, account), None, now).unwrap();
        let mut big: Vec<_> = (0..5).map(|_| enter("big")).collect();
        let mut small = enter("small");
        let mut order = Vec::new();
        for _ in 0..6 {
            queue.let_go(&line, now);
            for (at, place) in big.iter_mut().enumerate() {
                if !place.left && may_go(place) {
                    order.push(at);
                }
            }
            if !small.left && may_go(&mut small) {
                order.push(9);
            }
            let turn = Turn {
                queue: &queue,
                line: &line,
                told: false,
            };
            drop(turn);
        }
        assert_eq!(order[..3], [0, 9, 1], "{order:?}");
        assert_eq!(order.len(), 6);
    }

    #[test]
    fn a_line_opens_slowly_and_closes_at_once() {
        let (queue, line) = (Queue::default(), Arc::from("p"));
        let now = Instant::now();
        let later = now + Duration::from_secs(5);
        let mut places: Vec<_> = (0..20)
            .map(|_| queue.enter(visitor(&line, "a"), Some(later), now).unwrap())
            .collect();
        assert_eq!(
            queue.let_go(&line, now),
            later,
            "not before the rest is over"
        );
        let gone = |places: &mut [Place<'_>]| {
            places
                .iter_mut()
                .filter_map(|place| may_go(place).then_some(()))
                .count()
        };
        queue.let_go(&line, later);
        assert_eq!(gone(&mut places), 1);
        {
            let mut lines = queue.lines.lock();
            let of = lines.lines.get_mut(&line).unwrap();
            of.gone.clear();
            of.window = 4;
            of.let_go(later);
        }
        assert_eq!(gone(&mut places), 5);
        let turn = Turn {
            queue: &queue,
            line: &line,
            told: false,
        };
        turn.rests(later + Duration::from_secs(60));
        queue.let_go(&line, later + Duration::from_secs(30));
        assert_eq!(gone(&mut places), 5);
    }

    #[test]
    fn what_waits_is_bounded_and_leaves_nothing_behind() {
        let (queue, line) = (Queue::default(), Arc::from("p"));
        let now = Instant::now();
        let mut places = Vec::new();
        for account in ["a", "b", "c", "d", "e"] {
            while let Ok(place) = queue.enter(visitor(&line, account), None, now) {
                places.push(place);
            }
        }
        assert_eq!(places.len(), WAITING_MAX);
        assert!(queue.is_waiting(&line) && queue.is_moving(&line, now));
        drop(places);
        assert!(!queue.is_waiting(&line));
        let huge = Visitor {
            bytes: BYTES_MAX + 1,
            ..visitor(&line, "a")
        };
        let full = queue.enter(huge, None, now).err();
        let opens = now + THROUGH_AFTER;
        assert_eq!(full, Some(NoTurn { opens }));
        assert_eq!(queue.lines.lock().bytes, 0);
    }

    #[test]
    fn one_that_leaves_when_it_may_go_lets_the_next() {
        let (queue, line) = (Queue::default(), Arc::from("p"));
        let now = Instant::now();
        let first = queue.enter(visitor(&line, "a"), None, now).unwrap();
        let mut second = queue.enter(visitor(&line, "a"), None, now).unwrap();
        queue.let_go(&line, now);
        assert!(!may_go(&mut second));
        drop(first);
        assert!(may_go(&mut second));
    }

    #[tokio::test]
    async fn who_has_no_turn_in_time_hears_when_there_is_one() {
        let (queue, line) = (Queue::default(), Arc::from("p"));
        let now = Instant::now();
        let (until, later) = (now + Duration::from_secs(10), now + Duration::from_secs(60));
        let mut first = queue.enter(visitor(&line, "a"), None, now).unwrap();
        let mut second = std::pin::pin!(queue.wait(visitor(&line, "b"), None, until));
        assert!(futures_util::poll!(&mut second).is_pending());
        assert!(may_go(&mut first), "it came first");
        // The other learns of a rest that is too long while it waits.
        let turn = Turn {
            queue: &queue,
            line: &line,
            told: false,
        };
        turn.rests(later);
        assert_eq!(second.await.err(), Some(NoTurn { opens: later }));

        let rests = queue.enter(visitor(&line, "a"), Some(later), now);
        let third = queue.wait(visitor(&line, "b"), None, until).await;
        assert_eq!(
            third.err(),
            Some(NoTurn { opens: later }),
            "nobody goes in time"
        );
        assert!(queue.is_waiting(&line) && !queue.is_moving(&line, now));
        let huge = Visitor {
            bytes: BYTES_MAX,
            ..visitor(&line, "b")
        };
        let full = queue.wait(huge, None, until).await;
        assert_eq!(
            full.err(),
            Some(NoTurn { opens: later }),
            "no room, and no turn either"
        );
        drop(rests);
    }
}
