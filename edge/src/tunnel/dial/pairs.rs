//! From which socket of this node each address of a peer is dialled.
//!
//! Not from every one: links beat, and a product of sockets and addresses would be many of them. Each address has one link,
//! and the links of a peer are spread over the sockets, so that when a carrier dies on either side a way is left. A peer
//! with a single address is dialled from two sockets for the same reason.

/// Sockets from which a peer's only address is dialled.
const SOCKETS_FOR_ONE: usize = 2;

/// An address of a peer and a socket of this node, by number.
pub(super) type Pair = (usize, usize);

/// Chooses for one peer. `reached` has the sockets that may dial each address, `running` what is dialled already and stays
/// if it may: a link is not moved because another address came or went. `turn` says which socket is first, so that not
/// all peers begin with the same.
pub(super) fn choose(
    reached: &[Vec<usize>],
    sockets: usize,
    turn: usize,
    running: impl Fn(Pair) -> bool,
) -> Vec<Pair> {
    let reachable = reached.iter().filter(|of| !of.is_empty()).count();
    let each = if reachable == 1 { SOCKETS_FOR_ONE } else { 1 };
    let runs = |address: usize| {
        let mut of = reached[address].iter();
        of.any(|&socket| running((address, socket)))
    };
    // What is settled already comes first, then what has the least choice.
    let mut order: Vec<usize> = (0..reached.len()).collect();
    order.sort_by_key(|&address| (!runs(address), reached[address].len()));
    let mut uses = vec![0_u32; sockets];
    let mut chosen = Vec::new();
    for address in order {
        let mut of = reached[address].clone();
        of.sort_by_key(|&socket| {
            let place = (socket + sockets - turn % sockets) % sockets;
            (!running((address, socket)), uses[socket], place)
        });
        for &socket in of.iter().take(each) {
            uses[socket] += 1;
            chosen.push((address, socket));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(reached: &[Vec<usize>], sockets: usize) -> Vec<Pair> {
        let mut pairs = choose(reached, sockets, 0, |_| false);
        pairs.sort_unstable();
        pairs
    }

    #[test]
    fn each_address_has_one_link_and_they_are_spread() {
        assert_eq!(fresh(&vec![vec![0, 1]; 3], 2), [(0, 0), (1, 1), (2, 0)]);
        assert_eq!(fresh(&vec![vec![0]; 3], 1), [(0, 0), (1, 0), (2, 0)]);
        let turned = choose(&vec![vec![0, 1, 2]; 2], 3, 5, |_| false);
        assert_eq!(turned, [(0, 2), (1, 0)]);
        assert_eq!(fresh(&[], 2), []);
    }

    #[test]
    fn an_only_address_is_dialled_from_two_sockets() {
        assert_eq!(fresh(&[vec![0, 1, 2]], 3), [(0, 0), (0, 1)]);
        assert_eq!(fresh(&[vec![0]], 1), [(0, 0)]);
        // The other address is of a family that no socket has.
        assert_eq!(fresh(&[vec![0, 1], vec![]], 2), [(0, 0), (0, 1)]);
    }

    #[test]
    fn families_are_matched_and_the_least_choice_comes_first() {
        // Socket 0 has both families, socket 1 only one; the second address is of the other.
        assert_eq!(fresh(&[vec![0, 1], vec![0]], 2), [(0, 1), (1, 0)]);
    }

    #[test]
    fn what_runs_stays_where_it_is() {
        let both = vec![vec![0, 1]; 2];
        // A new address, in front of the one that runs.
        let mut pairs = choose(&both, 2, 0, |pair| pair == (1, 0));
        pairs.sort_unstable();
        assert_eq!(pairs, [(0, 1), (1, 0)]);
        // An only address gets a neighbour: one of its two links stays, the other goes.
        let mut pairs = choose(&both, 2, 0, |(address, _)| address == 0);
        pairs.sort_unstable();
        assert_eq!(pairs, [(0, 0), (1, 1)]);
        // The neighbour is gone again: what is left gets a second one.
        let mut pairs = choose(&[vec![0, 1]], 2, 0, |pair| pair == (0, 1));
        pairs.sort_unstable();
        assert_eq!(pairs, [(0, 0), (0, 1)]);
    }
}
