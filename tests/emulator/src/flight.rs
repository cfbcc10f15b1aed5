//! Packets under way: whatever was put in comes out at its time, and ties in the order in which they were put in.

use std::{cmp::Reverse, collections::BinaryHeap};

/// Things that wait for their time, in nanoseconds of whatever clock the owner keeps.
#[derive(Debug)]
pub struct InFlight<T> {
    heap: BinaryHeap<Reverse<Waiting<T>>>,
    count: u64,
}

#[derive(Debug)]
struct Waiting<T> {
    at_ns: u64,
    number: u64,
    what: T,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            count: 0,
        }
    }
}

impl<T> InFlight<T> {
    /// Puts something in that is due at `at_ns`.
    pub fn push(&mut self, at_ns: u64, what: T) {
        self.count += 1;
        let number = self.count;
        self.heap.push(Reverse(Waiting {
            at_ns,
            number,
            what,
        }));
    }

    /// When the next one is due.
    pub fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|next| next.0.at_ns)
    }

    /// Takes out the next one, if it is due: when it was, and what it is.
    pub fn pop(&mut self, now_ns: u64) -> Option<(u64, T)> {
        if self.next_ns()? > now_ns {
            return None;
        }
        self.heap.pop().map(|next| (next.0.at_ns, next.0.what))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<T> Waiting<T> {
    fn key(&self) -> (u64, u64) {
        (self.at_ns, self.number)
    }
}

impl<T> Ord for Waiting<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> PartialOrd for Waiting<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Waiting<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Waiting<T> {}

#[cfg(test)]
mod tests {
    use super::InFlight;

    #[test]
    fn the_earliest_comes_out_first_and_ties_keep_their_order() {
        let mut flight = InFlight::default();
        for (at_ns, what) in [(50, 'a'), (10, 'b'), (50, 'c'), (30, 'd')] {
            flight.push(at_ns, what);
        }
        assert_eq!(flight.next_ns(), Some(10));
        assert_eq!(flight.pop(9), None);
        let order: String = std::iter::from_fn(|| flight.pop(50).map(|(_, what)| what)).collect();
        assert_eq!(order, "bdac");
        assert!(flight.is_empty());
    }
}
