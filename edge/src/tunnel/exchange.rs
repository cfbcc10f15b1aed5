//! The rules of one direction of an exchange: offsets, replay window, credit. Pure: no socket, no clock.
//!
//! A *sequence* is the bytes of one direction's frames, counted from 0. [`Outgoing`] keeps what the
//! other end has not acknowledged, so that it can be sent again over another attachment; [`Incoming`]
//! merges what arrives, from however many attachments, into one run without gaps or doubles.
//! What an end may hold is bounded by the credit that the receiver gives: a full window is
//! backpressure, never a drop. [`Attachments`] decides which word about an attachment still counts.

mod attachments;

#[cfg(test)]
mod model;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};

pub use self::attachments::{ATTACH_BURST, ATTACH_REFILL, Attachments, Ignored};

/// Credit that both ends assume before anything is said: a sequence of up to this many bytes needs no word from the receiver.
pub const INITIAL_CREDIT_BYTES: u64 = 256 << 10;

/// What an egress takes of a request before it has said anything, which its HELLO tells: a prompt that does not fit waits a
/// round trip for credit, and those of 256 KiB are common.
///
/// With 2,000 exchanges a node that all fill both windows, 1.5 GiB at the worst.
pub const REQUEST_CREDIT_BYTES: u64 = 512 << 10;
const _: () = assert!(REQUEST_CREDIT_BYTES <= WINDOW_BYTES_MAX);

/// Largest window that a receiver opens for one sequence, once it has seen that the smaller one holds the sender up.
///
/// Stays below what one QUIC stream carries (2.5 MiB, see `transport::quic`).
pub const WINDOW_BYTES_MAX: u64 = 2 << 20;

/// What a sender keeps for a receiver that allows more than any may. An honest one's acknowledgements are never so far behind:
/// a window at the most.
const UNACKNOWLEDGED_BYTES_MAX: u64 = 2 * WINDOW_BYTES_MAX;

/// A receiver acknowledges at least so many times per window: every 8 KiB at first, every 64 KiB once the window is largest.
///
/// The sender holds no more than these for a replay, and a bulk transfer is not all acknowledgements.
const ACKS_PER_WINDOW: u64 = 32;

/// What has waited so long is acknowledged with the next bytes, however few: of a slow stream, half a second is held, not all of it.
const ACK_AFTER: Duration = Duration::from_millis(500);

/// Slices that may wait ahead of a gap. Two attachments in order leave few, and what is read as it comes is joined where it
/// follows on; more is a hostile peer.
pub const AHEAD_SLICES_MAX: usize = 1024;

/// Slices from which on those that follow on each other are joined, and what comes of it at the most.
const AHEAD_SLICES_MANY: usize = 256;
const JOINED_BYTES_MAX: usize = 16 << 10;

/// A peer that breaks the rules. The attachment that carried it is closed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// An acknowledgement of bytes that were never sent.
    #[error("acknowledges byte {offset}, but only {sent} were sent")]
    AckAhead {
        /// What was acknowledged.
        offset: u64,
        /// What had been sent.
        sent: u64,
    },
    /// Bytes beyond the credit that was given.
    #[error("sent up to byte {end}, beyond its credit of {credit}")]
    BeyondCredit {
        /// End of what arrived.
        end: u64,
        /// What was allowed.
        credit: u64,
    },
    /// Too many pieces ahead of a gap.
    #[error("more than {AHEAD_SLICES_MAX} slices ahead of a gap")]
    Scattered,
}

/// The sender's end of a sequence.
#[derive(Debug)]
pub struct Outgoing {
    /// Everything below is forgotten here.
    acked: u64,
    /// Everything below is in the receiver's memory. Above `acked` only while a replay runs behind:
    /// a stream's bytes have no numbers, so what it began with cannot be skipped on it.
    known: u64,
    /// Next byte to hand to the attachment.
    next: u64,
    /// How far any attachment ever came.
    sent: u64,
    /// End of what was pushed.
    end: u64,
    /// First byte that the receiver does not allow yet.
    credit: u64,
    /// The bytes in `acked..end`.
    window: VecDeque<Bytes>,
    /// Where `next` stands in `window`: index of the slice, and bytes of it already handed out.
    cursor: (usize, usize),
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            acked: 0,
            known: 0,
            next: 0,
            sent: 0,
            end: 0,
            credit: INITIAL_CREDIT_BYTES,
            window: VecDeque::new(),
            cursor: (0, 0),
        }
    }
}

impl Outgoing {
    /// Bytes that may be pushed now. What is pushed beyond waits in [`Self::next_slice`] for credit.
    #[must_use]
    pub const fn room(&self) -> u64 {
        self.allowed().saturating_sub(self.end)
    }

    /// First byte that may not yet be sent, whatever a receiver says that lies.
    const fn allowed(&self) -> u64 {
        let most = self.known.saturating_add(UNACKNOWLEDGED_BYTES_MAX);
        if self.credit < most {
            self.credit
        } else {
            most
        }
    }

    /// End of what was pushed: the length of the sequence so far.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes kept for a replay.
    #[must_use]
    pub const fn held_bytes(&self) -> u64 {
        self.end - self.acked
    }

    /// Appends bytes to the sequence.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.end += bytes.len() as u64;
            self.window.push_back(bytes);
        }
    }

    /// The next bytes to hand to the attachment, within the credit.
    pub fn next_slice(&mut self) -> Option<Bytes> {
        let allowed =
            usize::try_from(self.allowed().saturating_sub(self.next)).unwrap_or(usize::MAX);
        let (index, done) = self.cursor;
        let slice = self.window.get(index)?;
        let len = (slice.len() - done).min(allowed);
        if len == 0 {
            return None;
        }
        let part = slice.slice(done..done + len);
        self.cursor = if done + len == slice.len() {
            (index + 1, 0)
        } else {
            (index, done + len)
        };
        self.next += len as u64;
        self.sent = self.sent.max(self.next);
        if self.known > self.acked {
            self.forget(self.known.min(self.next));
        }
        Some(part)
    }

    /// Whether the receiver has everything that was pushed.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        self.known == self.end
    }

    /// How far the receiver is known to have it.
    #[must_use]
    pub const fn known(&self) -> u64 {
        self.known
    }

    /// Whether the receiver was never heard of.
    #[must_use]
    pub const fn is_unheard(&self) -> bool {
        self.known == 0
    }

    /// Whether more was pushed than the receiver allows, so that nothing more should be.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.end > self.allowed()
    }

    /// What was handed out and may not have arrived, and where it begins.
    #[must_use]
    pub fn sent_slices(&self) -> (u64, Vec<Bytes>) {
        let (index, done) = self.cursor;
        let mut slices: Vec<Bytes> = self.window.iter().take(index).cloned().collect();
        if done > 0
            && let Some(slice) = self.window.get(index)
        {
            slices.push(slice.slice(..done));
        }
        (self.acked, slices)
    }

    /// Next byte to hand to the attachment.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// Of [`Self::sent_slices`], what is at or behind `from`, and where that begins.
    #[must_use]
    pub fn sent_from(&self, from: u64) -> (u64, Vec<Bytes>) {
        let (start, mut slices) = self.sent_slices();
        let mut skip = usize::try_from(from.saturating_sub(start)).unwrap_or(usize::MAX);
        slices.retain_mut(|slice| {
            let gone = skip.min(slice.len());
            slice.advance(gone);
            skip -= gone;
            !slice.is_empty()
        });
        (start.max(from), slices)
    }

    /// Where credit stops the sender, if it does.
    #[must_use]
    pub const fn blocked_at(&self) -> Option<u64> {
        if self.next < self.end {
            Some(self.next)
        } else {
            None
        }
    }

    /// Whether a sender that was stopped at `offset` may go on.
    #[must_use]
    pub const fn sendable(&self, offset: u64) -> bool {
        self.allowed() > offset
    }

    /// The receiver has everything below `offset` in memory. Older, smaller words are ignored.
    ///
    /// # Errors
    /// [`Violation::AckAhead`] when that much was never sent.
    pub fn ack(&mut self, offset: u64) -> Result<(), Violation> {
        if offset > self.sent {
            return Err(Violation::AckAhead {
                offset,
                sent: self.sent,
            });
        }
        self.known = self.known.max(offset);
        self.forget(self.known.min(self.next));
        Ok(())
    }

    fn forget(&mut self, offset: u64) {
        while self.acked < offset {
            let Some(front) = self.window.front_mut() else {
                break;
            };
            let gone = usize::try_from(offset - self.acked)
                .unwrap_or(usize::MAX)
                .min(front.len());
            self.acked += gone as u64;
            if gone == front.len() {
                self.window.pop_front();
                if self.cursor.0 == 0 {
                    self.cursor.1 = 0;
                }
                self.cursor.0 = self.cursor.0.saturating_sub(1);
            } else {
                front.advance(gone);
                if self.cursor.0 == 0 {
                    self.cursor.1 = self.cursor.1.saturating_sub(gone);
                }
            }
        }
    }

    /// The receiver allows bytes below `offset`. Older, smaller words are ignored.
    pub fn allow(&mut self, offset: u64) {
        self.credit = self.credit.max(offset);
    }

    /// Goes back to what the receiver is not known to have, to send it again over another attachment.
    /// Returns where that begins.
    pub fn rewind(&mut self) -> u64 {
        self.forget(self.known);
        self.next = self.acked;
        self.cursor = (0, 0);
        self.next
    }
}

/// The receiver's end of a sequence.
#[derive(Debug)]
pub struct Incoming {
    /// First byte that has not been taken out in order.
    next: u64,
    /// Bytes at or after `next`, by where they start; they never overlap.
    ahead: BTreeMap<u64, Bytes>,
    /// What the reader has used up.
    consumed: u64,
    /// What the sender was last told it may send.
    credit: u64,
    /// How far the credit runs ahead of `consumed`.
    window: u64,
    /// What the sender was last told is here.
    acked: u64,
    /// Since when there is something that it was not told of.
    unacked_since: Option<Instant>,
}

impl Default for Incoming {
    fn default() -> Self {
        Self::new(INITIAL_CREDIT_BYTES)
    }
}

impl Incoming {
    /// For a sender that may send so much at first.
    #[must_use]
    pub const fn new(credit: u64) -> Self {
        Self {
            next: 0,
            ahead: BTreeMap::new(),
            consumed: 0,
            credit,
            window: credit,
            acked: 0,
            unacked_since: None,
        }
    }

    /// First byte that is still missing.
    #[must_use]
    pub const fn next_offset(&self) -> u64 {
        self.next
    }

    /// Takes in bytes that start at `offset`. Returns those that are next in order, if they are.
    ///
    /// Overlap with what is already here is cut off. Call [`Self::take_ahead`] until it is empty afterwards.
    ///
    /// # Errors
    /// A [`Violation`] when the sender overruns its credit or scatters its bytes.
    pub fn receive(
        &mut self,
        mut offset: u64,
        mut bytes: Bytes,
    ) -> Result<Option<Bytes>, Violation> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.credit {
            return Err(Violation::BeyondCredit {
                end,
                credit: self.credit,
            });
        }
        if offset < self.next {
            let known = usize::try_from(self.next - offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            bytes.advance(known);
            offset += known as u64;
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        if offset == self.next {
            self.next = end;
            return Ok(Some(bytes));
        }
        self.keep_ahead(offset, bytes)?;
        Ok(None)
    }

    /// The next bytes in order that had arrived ahead of a gap which is now filled.
    pub fn take_ahead(&mut self) -> Option<Bytes> {
        loop {
            let (&offset, _) = self.ahead.first_key_value()?;
            if offset > self.next {
                return None;
            }
            let mut bytes = self.ahead.remove(&offset)?;
            let known = usize::try_from(self.next - offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            bytes.advance(known);
            if !bytes.is_empty() {
                self.next += bytes.len() as u64;
                return Some(bytes);
            }
        }
    }

    /// The reader has used up `bytes` more. Returns the new credit when the sender should be told.
    ///
    /// The window doubles each time a whole one was used up, so that only long sequences get large ones; and only if
    /// `may_grow` grants the bytes that are added.
    pub fn consume(&mut self, bytes: u64, may_grow: impl FnOnce(u64) -> bool) -> Option<u64> {
        self.consumed += bytes;
        if self.credit - self.consumed > self.window / 2 {
            return None;
        }
        let more = self.window.min(WINDOW_BYTES_MAX - self.window);
        if self.consumed >= self.window && more > 0 && may_grow(more) {
            self.window += more;
        }
        self.credit = self.consumed + self.window;
        Some(self.credit)
    }

    /// The acknowledgement to send now, if one is due; `all` asks for whatever is not yet acknowledged.
    pub fn ack_due(&mut self, now: Instant, all: bool) -> Option<u64> {
        let waiting = self.next - self.acked;
        if waiting == 0 {
            return None;
        }
        let since = *self.unacked_since.get_or_insert(now);
        let due = all
            || waiting >= self.window / ACKS_PER_WINDOW
            || now.saturating_duration_since(since) >= ACK_AFTER;
        due.then(|| {
            self.acked = self.next;
            self.unacked_since = None;
            self.next
        })
    }

    /// What the sender should be told again, since it may have been lost with an attachment:
    /// first the acknowledgement, then the credit.
    pub const fn restate(&mut self) -> (u64, u64) {
        self.acked = self.next;
        self.unacked_since = None;
        (self.next, self.credit)
    }

    fn keep_ahead(&mut self, mut offset: u64, mut bytes: Bytes) -> Result<(), Violation> {
        if let Some((&start, held)) = self.ahead.range(..=offset).next_back() {
            let held_end = start + held.len() as u64;
            let known = usize::try_from(held_end.saturating_sub(offset))
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            bytes.advance(known);
            offset += known as u64;
        }
        while !bytes.is_empty() {
            let following = self
                .ahead
                .range(offset..)
                .next()
                .map(|(&start, held)| (start, held.len()));
            let len = match following {
                Some((start, _)) => usize::try_from(start - offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len()),
                None => bytes.len(),
            };
            if len > 0 && !self.join_ahead(offset, &bytes[..len]) {
                if self.ahead.len() >= AHEAD_SLICES_MAX {
                    return Err(Violation::Scattered);
                }
                self.ahead.insert(offset, bytes.slice(..len));
            }
            bytes.advance(len);
            offset += len as u64;
            if let Some((_, held)) = following {
                let known = held.min(bytes.len());
                bytes.advance(known);
                offset += known as u64;
            }
        }
        Ok(())
    }
}

impl Incoming {
    /// Adds bytes to the slice that they follow on, if there are many and that is short.
    fn join_ahead(&mut self, offset: u64, bytes: &[u8]) -> bool {
        if self.ahead.len() < AHEAD_SLICES_MANY {
            return false;
        }
        let Some((start, before)) = self.ahead.range_mut(..offset).next_back() else {
            return false;
        };
        let follows = start + before.len() as u64 == offset;
        if !follows || before.len() + bytes.len() > JOINED_BYTES_MAX {
            return false;
        }
        *before = [before, bytes].concat().into();
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn drain(outgoing: &mut Outgoing) -> Vec<u8> {
        std::iter::from_fn(|| outgoing.next_slice())
            .flatten()
            .collect()
    }

    fn model(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 % 251) as u8).collect()
    }

    proptest! {
        /// Slices of one text, doubled, overlapping and in any order, come out as the text.
        #[test]
        fn any_order_and_overlap_merge_to_the_text(
            slices in prop::collection::vec((0_usize..4000, 1_usize..600), 1..200),
        ) {
            let text = model(4000);
            let mut incoming = Incoming::default();
            let mut out = Vec::new();
            let every = (0..4000).step_by(250).map(|at| (at, 250));
            for (start, len) in slices.into_iter().chain(every) {
                let end = (start + len).min(text.len());
                let bytes = Bytes::copy_from_slice(&text[start..end]);
                out.extend(incoming.receive(start as u64, bytes).unwrap().into_iter().flatten());
                out.extend(std::iter::from_fn(|| incoming.take_ahead()).flatten());
            }
            prop_assert_eq!(out, text);
            prop_assert!(incoming.ahead.is_empty());
        }

        /// Whatever is acknowledged and wherever the path is cut, the receiver gets each byte once.
        #[test]
        fn a_rewind_sends_exactly_what_is_missing(
            pushes in prop::collection::vec(1_usize..900, 1..40),
            acks in prop::collection::vec(0.0_f64..1.0, 1..40),
        ) {
            let text = model(pushes.iter().sum());
            let mut outgoing = Outgoing::default();
            let mut incoming = Incoming::default();
            let (mut pushed, mut out) = (0, Vec::new());
            for (len, ack) in pushes.iter().zip(acks.iter().cycle()) {
                outgoing.push(Bytes::copy_from_slice(&text[pushed..pushed + len]));
                pushed += len;
                let at = outgoing.next;
                let sent = drain(&mut outgoing);
                // The path is cut after some of what was sent arrived.
                let arrived = (sent.len() as f64 * ack) as usize;
                out.extend(incoming.receive(at, Bytes::copy_from_slice(&sent[..arrived])).unwrap().into_iter().flatten());
                outgoing.ack(incoming.next_offset()).unwrap();
                outgoing.rewind();
                prop_assert_eq!(outgoing.held_bytes(), pushed as u64 - incoming.next_offset());
            }
            let at = outgoing.next;
            let rest = drain(&mut outgoing);
            out.extend(incoming.receive(at, rest.into()).unwrap().into_iter().flatten());
            prop_assert_eq!(out, text);
        }
    }

    #[test]
    fn credit_bounds_both_ends_and_grows_for_long_sequences() {
        let (mut outgoing, mut incoming) = (Outgoing::default(), Incoming::default());
        let total = 16 << 20;
        let (mut sent, mut largest) = (0_u64, 0);
        while sent < total {
            outgoing.push(Bytes::from(vec![1; outgoing.room().min(64 << 10) as usize]));
            largest = largest.max(outgoing.held_bytes());
            while let Some(slice) = outgoing.next_slice() {
                let len = slice.len() as u64;
                assert!(incoming.receive(sent, slice).unwrap().is_some());
                sent += len;
                if let Some(credit) = incoming.consume(len, |_| true) {
                    outgoing.allow(credit);
                }
                if let Some(offset) = incoming.ack_due(Instant::now(), false) {
                    outgoing.ack(offset).unwrap();
                }
            }
        }
        assert!(largest <= WINDOW_BYTES_MAX);
        assert_eq!(incoming.window, WINDOW_BYTES_MAX);
    }

    #[test]
    fn who_allows_everything_and_acknowledges_nothing_costs_no_more_than_two_windows() {
        let mut outgoing = Outgoing::default();
        outgoing.allow(u64::MAX);
        let mut sent = 0;
        for _ in 0..200 {
            outgoing.push(Bytes::from_static(&[1; 64 << 10]));
            sent += drain(&mut outgoing).len() as u64;
        }
        assert_eq!(sent, UNACKNOWLEDGED_BYTES_MAX);
        assert!(outgoing.is_full() && outgoing.room() == 0);
        outgoing.ack(100).unwrap();
        assert_eq!(drain(&mut outgoing).len(), 100);
    }

    #[test]
    fn a_slow_stream_is_acknowledged_by_time_and_a_fast_one_by_bytes() {
        let start = Instant::now();
        let mut incoming = Incoming::default();
        let mut acks = Vec::new();
        for chunk in 0..40_u64 {
            let piece = Bytes::from_static(&[1; 100]);
            assert!(incoming.receive(chunk * 100, piece).unwrap().is_some());
            let at = start + Duration::from_millis(100) * u32::try_from(chunk).unwrap();
            acks.extend(incoming.ack_due(at, false));
        }
        // With the chunk that comes half a second after the first that was not told of.
        assert_eq!(acks, [600, 1200, 1800, 2400, 3000, 3600]);
        let later = start + Duration::from_secs(60);
        let burst = Bytes::from(vec![1; INITIAL_CREDIT_BYTES as usize / 32]);
        assert!(incoming.receive(4000, burst.clone()).unwrap().is_some());
        assert_eq!(
            incoming.ack_due(later, false),
            Some(4000 + burst.len() as u64)
        );
        assert_eq!(incoming.ack_due(later + ACK_AFTER, true), None);
    }

    #[test]
    fn many_small_pieces_behind_a_gap_are_joined() {
        let text = model(200_000);
        let mut incoming = Incoming::default();
        for (at, piece) in text.chunks(100).enumerate().skip(1) {
            let bytes = Bytes::copy_from_slice(piece);
            assert_eq!(incoming.receive(at as u64 * 100, bytes), Ok(None));
        }
        assert!(incoming.ahead.len() < AHEAD_SLICES_MANY + 32);
        let first = incoming.receive(0, Bytes::copy_from_slice(&text[..100]));
        let mut out: Vec<u8> = first.unwrap().into_iter().flatten().collect();
        out.extend(std::iter::from_fn(|| incoming.take_ahead()).flatten());
        assert!(out == text);
    }

    #[test]
    fn a_peer_that_breaks_the_rules_is_found_out() {
        let mut outgoing = Outgoing::default();
        outgoing.push(Bytes::from_static(b"abc"));
        assert!(matches!(outgoing.ack(1), Err(Violation::AckAhead { .. })));
        let mut incoming = Incoming::default();
        let far = incoming.receive(INITIAL_CREDIT_BYTES, Bytes::from_static(b"x"));
        assert!(matches!(far, Err(Violation::BeyondCredit { .. })));
        let scattered = (0..=AHEAD_SLICES_MAX as u64)
            .map(|at| incoming.receive(1 + at * 2, Bytes::from_static(b"x")))
            .find_map(Result::err);
        assert_eq!(scattered, Some(Violation::Scattered));
    }
}
