//! Words that wait for the control stream of a link, bounded whatever the peer reads.
//!
//! A newer acknowledgement or credit says all that an older one of its exchange did, and so does any other word that is said
//! twice. So when many wait, those that are replaced go; what is left grows with the exchanges of the link and no further.
//! Beyond [`WORDS_MAX`] the peer has not read for so long that its link is of no use.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::sync::Notify;
use vector_proto::{id::ExchangeId, tunnel::codec::Entry};

/// Words that are kept however often they are replaced: what 20,000 exchanges have to say at once, three times over.
///
/// Twice as many wait at the most before it is looked at: 131,072 x 48 bytes = 6 MiB.
pub(super) const WORDS_MAX: usize = 1 << 16;

/// From so many on it is worth looking for words that were replaced.
const COALESCED_FROM: usize = 1 << 10;

/// The peer does not read what it is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Full;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    words: Mutex<Words>,
    /// Something waits.
    pub(super) some: Notify,
    /// And should go at once.
    pub(super) urgent: Notify,
}

#[derive(Debug, Default)]
struct Words {
    waiting: Vec<Entry>,
    /// Length from which on it is coalesced again, so that the work stays in proportion.
    coalesced_from: usize,
}

impl Outbox {
    /// Adds a word. With [`Full`] none is left.
    pub(super) fn push(&self, word: Entry) -> Result<(), Full> {
        let mut words = self.words.lock();
        words.waiting.push(word);
        if words.waiting.len() < words.coalesced_from.max(COALESCED_FROM) {
            return Ok(());
        }
        coalesce(&mut words.waiting);
        if words.waiting.len() > WORDS_MAX {
            *words = Words::default();
            return Err(Full);
        }
        words.coalesced_from = words.waiting.len() * 2;
        Ok(())
    }

    /// Everything that waits, in order.
    pub(super) fn take(&self) -> Vec<Entry> {
        std::mem::take(&mut *self.words.lock()).waiting
    }
}

/// Leaves of each kind of word about an exchange the one that says most, where the last of them stood.
fn coalesce(words: &mut Vec<Entry>) {
    let mut said: HashSet<(ExchangeId, u8, u64)> = HashSet::with_capacity(words.len());
    // From the newest; offsets and numbers of one exchange only grow.
    words.reverse();
    words.retain(|word| said.insert(subject(word)));
    words.reverse();
}

/// What a word replaces if it was said before.
fn subject(word: &Entry) -> (ExchangeId, u8, u64) {
    let (kind, which) = match *word {
        Entry::Ack { .. } => (0, 0),
        Entry::Credit { .. } => (1, 0),
        Entry::Cancel { .. } => (2, 0),
        Entry::Resume { .. } => (3, 0),
        Entry::Gone { reason, .. } => (4, reason),
    };
    (word.exchange(), kind, which)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> ExchangeId {
        ExchangeId::try_from(&((0x7 << 76) | (0x8 << 60) | number).to_be_bytes()[..]).unwrap()
    }

    #[test]
    fn a_peer_that_reads_nothing_is_told_the_newest_of_everything_and_no_more_is_kept() {
        let outbox = Outbox::default();
        for turn in 1..=100_000_u64 {
            let exchange = id(u128::from(turn % 500));
            let offset = turn;
            outbox.push(Entry::Ack { exchange, offset }).unwrap();
            outbox.push(Entry::Credit { exchange, offset }).unwrap();
            let waiting = outbox.words.lock().waiting.len();
            assert!(waiting <= 2 * COALESCED_FROM, "{waiting}");
        }
        let told = outbox.take();
        for number in 1..500_u64 {
            let exchange = id(u128::from(number));
            let newest = 99_500 + number;
            let last = |kind: &dyn Fn(&Entry) -> Option<u64>| {
                let of = told.iter().filter(|word| word.exchange() == exchange);
                of.filter_map(kind).next_back()
            };
            let acked = last(&|word| match word {
                Entry::Ack { offset, .. } => Some(*offset),
                _ => None,
            });
            let allowed = last(&|word| match word {
                Entry::Credit { offset, .. } => Some(*offset),
                _ => None,
            });
            assert_eq!((acked, allowed), (Some(newest), Some(newest)));
        }
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn words_of_different_meaning_stay_in_order() {
        let exchange = id(1);
        let resume = |attach_seq| Entry::Resume {
            exchange,
            attach_seq,
            response_next: 0,
            request_next: 0,
        };
        let gone = |reason| Entry::Gone { exchange, reason };
        let mut words = vec![resume(1), gone(1), gone(2), resume(2), gone(2)];
        coalesce(&mut words);
        assert_eq!(words, [gone(1), resume(2), gone(2)]);
    }

    #[test]
    fn more_exchanges_than_there_can_be_are_too_many() {
        let outbox = Outbox::default();
        let told = (0..4 * WORDS_MAX as u128).map(|number| {
            outbox.push(Entry::Ack {
                exchange: id(number),
                offset: 1,
            })
        });
        let full = told.filter(Result::is_err).count();
        assert!(full > 0);
        assert!(outbox.take().len() <= 2 * WORDS_MAX);
    }
}
