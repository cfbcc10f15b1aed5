//! Which replicas this node's streams go to, and what each has offered. Pure.
//!
//! The first stream of every node goes to the first replica, in the order of addresses, that can be reached: so as long as
//! nodes see the same ones alive, one replica hears all of them, and each ingress hears from it what every other node
//! sees, however many replicas there are. The second stream is spread over the rest.
//!
//! Of two offers the newer is taken. Only streams that are open count: a control that was restored from a backup offers
//! an older revision than the one in force, and is right.

use super::STREAMS;

/// What a replica's configuration is numbered by.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Offer {
    /// Changes of the configuration, or 0 for a snapshot.
    pub(super) generation: u64,
    /// Of the snapshot.
    pub(super) revision: u64,
}

/// One stream.
#[derive(Debug, Default)]
struct Seat {
    /// Replica that it goes to or is about to.
    replica: Option<usize>,
    open: bool,
    snapshot: Offer,
    credentials: Offer,
}

#[derive(Debug, Default)]
pub(super) struct Seats([Seat; STREAMS]);

impl Seats {
    /// The next replica for a stream: the first of `order` from `from` on, round, that no other stream has. With its
    /// place in the order.
    pub(super) fn take(&mut self, stream: usize, order: &[usize], from: usize) -> (usize, usize) {
        self.0[stream].replica = None;
        let places = (0..order.len()).map(|step| (from + step) % order.len());
        let mut free = places.filter(|place| {
            let replica = Some(order[*place]);
            self.0.iter().all(|seat| seat.replica != replica)
        });
        let place = free.next().unwrap_or(0);
        self.0[stream].replica = Some(order[place]);
        (order[place], place)
    }

    /// A stream is open: nothing is offered over it yet.
    pub(super) fn open(&mut self, stream: usize) {
        let seat = &mut self.0[stream];
        *seat = Seat {
            replica: seat.replica,
            open: true,
            ..Seat::default()
        };
    }

    pub(super) fn close(&mut self, stream: usize) {
        self.0[stream].open = false;
    }

    pub(super) fn any_open(&self) -> bool {
        self.0.iter().any(|seat| seat.open)
    }

    /// Whether this snapshot is to be used: no other stream has offered a newer one.
    pub(super) fn snapshot(&mut self, stream: usize, offer: Offer) -> bool {
        self.0[stream].snapshot = offer;
        self.0
            .iter()
            .all(|seat| !seat.open || seat.snapshot <= offer)
    }

    /// The same for credentials.
    pub(super) fn credentials(&mut self, stream: usize, offer: Offer) -> bool {
        self.0[stream].credentials = offer;
        self.0
            .iter()
            .all(|seat| !seat.open || seat.credentials <= offer)
    }
}

/// The order in which a stream of a node tries the replicas. `spread`: a number of the node's own.
pub(super) fn order(stream: usize, replicas: usize, spread: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..replicas).collect();
    if stream > 0 && replicas > 1 {
        // The common one last.
        order.rotate_left(1);
        order[..replicas - 1].rotate_left(spread % (replicas - 1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_streams_never_go_to_one_replica_and_all_nodes_share_one() {
        for replicas in 2..6 {
            for spread in 0..9 {
                let mut seats = Seats::default();
                let (first, second) = (order(0, replicas, spread), order(1, replicas, spread));
                assert_eq!(seats.take(0, &first, 0), (0, 0), "the common one");
                let (other, _) = seats.take(1, &second, 0);
                assert_ne!(other, 0);
                // The common one dies: everybody's first stream goes to the next that is free.
                let (next, place) = seats.take(0, &first, 1);
                assert_ne!(next, other);
                assert_eq!(
                    (next, place),
                    if replicas == 2 { (0, 0) } else { (next, next) }
                );
            }
        }
        assert_eq!(order(0, 1, 7), [0]);
    }

    #[test]
    fn the_newer_of_two_offers_counts_and_a_closed_stream_counts_no_more() {
        let mut seats = Seats::default();
        let at = |revision| Offer {
            revision,
            ..Offer::default()
        };
        seats.open(0);
        seats.open(1);
        assert!(seats.snapshot(0, at(7)));
        assert!(!seats.snapshot(1, at(6)), "behind the other");
        assert!(seats.snapshot(1, at(7)) && seats.snapshot(1, at(8)));
        seats.close(0);
        seats.close(1);
        assert!(!seats.any_open());
        seats.open(0);
        assert!(seats.snapshot(0, at(3)), "restored from a backup");
    }
}
