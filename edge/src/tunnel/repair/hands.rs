//! Which exchanges get repair symbols, and how those come from one end to the other.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        repair::{BLOCK_BYTES_MAX, Repair},
        v1,
    },
};

use super::datagrams;
use crate::tunnel::{
    Tunnel,
    end::{End, Sending, Side},
    link::Link,
    transport,
};

/// Round trips from here on are worth saving.
const ROUND_TRIP_MIN: Duration = Duration::from_millis(20);

/// Datagrams that are taken in a row.
const IN_A_ROW: u64 = 32;

/// Bodies that are worth it, if their length is known: in one packet all is lost or nothing.
const BODY_BYTES: Range<u64> = 1_024..BLOCK_BYTES_MAX as u64;

/// Half of a long prompt. Smaller blocks need more symbols in all.
const BLOCK_BYTES: u64 = 128 << 10;

/// Datagrams that came before the OPEN of their exchange and wait for it. 64 x 1.4 KB = 90 KB a link.
const EARLY_MAX: usize = 64;

/// Repair symbols whose exchange is not known yet: datagrams overtake the stream.
#[derive(Debug, Default)]
pub(in crate::tunnel) struct Early(Mutex<VecDeque<Repair>>);

impl Early {
    fn keep(&self, repair: Repair) {
        let mut kept = self.0.lock();
        if kept.len() == EARLY_MAX {
            kept.pop_front();
        }
        kept.push_back(repair);
    }

    /// Those of an exchange that has come now.
    pub(in crate::tunnel) fn take(&self, exchange: ExchangeId) -> Vec<Repair> {
        let mut kept = self.0.lock();
        let (here, others) = kept
            .drain(..)
            .partition(|repair| repair.exchange == exchange);
        *kept = others;
        Vec::from(here)
    }
}

impl Link {
    /// Whether what an OPEN begins is worth being mended, should it lose packets on this link.
    pub(in crate::tunnel) fn repairs(&self, open: &v1::Open) -> bool {
        let request = open.request.as_ref();
        let fits = open.ahead
            || request.is_some_and(|request| {
                let bytes = request.body_bytes;
                !request.websocket && bytes.is_none_or(|bytes| BODY_BYTES.contains(&bytes))
            });
        // As heartbeats measure it: that takes no lock, for each request.
        let rtt_us = self.vitals().cost_us().map_or(0, |(rtt_us, _)| rtt_us);
        let far = Duration::from_micros(rtt_us.into()) >= ROUND_TRIP_MIN;
        fits && far && self.terms.mends && self.over_quic().is_some()
    }

    /// The share of packets that get lost on their way to the peer: what is sent now has to reckon with the worse of what
    /// heartbeats and what other packets show.
    fn loss_outward(&self) -> f64 {
        let beats = f64::from(self.vitals().measures().loss_out);
        self.losses.share(self.packets()).max(beats)
    }

    /// Gives an exchange that has come what came before it.
    pub(in crate::tunnel) fn give_early_repairs(&self, end: &Arc<End>) {
        give(self, end, self.early_repairs.take(end.exchange));
    }

    fn connection_for_repairs(&self) -> Option<&transport::quic::Connection> {
        self.over_quic().filter(|_| self.carries())
    }
}

impl Tunnel {
    /// Has what an exchange's request may lose mended: sends repair symbols for what was handed out of it since the last time.
    /// To be called once it is whole, and when that [`is_block`].
    pub(in crate::tunnel) fn send_repairs(&self, end: &Arc<End>) {
        if !end.repaired {
            return;
        }
        let (link, start, slices) = {
            let mut sending = end.sending.lock();
            let Some(at) = sending.at.as_ref().filter(|_| !sending.moving) else {
                return;
            };
            if *at.link.peer != *end.far || sending.outgoing.blocked_at().is_some() {
                return;
            }
            let link = Arc::clone(&at.link);
            let (start, slices) = sending.outgoing.sent_from(sending.repaired);
            sending.repaired = sending.outgoing.next();
            (link, start, slices)
        };
        let Some(connection) = link.connection_for_repairs() else {
            return;
        };
        let of = (end.exchange, end.attempt);
        let most = connection.datagram_bytes_max();
        for datagram in datagrams(of, start, &slices, link.loss_outward(), most) {
            self.tally().repairs_sent.inc();
            connection.send_datagram(datagram);
        }
    }
}

/// Whether so much is on its way without repair symbols that they are worth sending before the rest is there: what is lost of
/// it is then mended while that comes.
pub(in crate::tunnel) fn is_block(end: &End, sending: &Sending) -> bool {
    end.repaired && sending.outgoing.next().saturating_sub(sending.repaired) >= BLOCK_BYTES
}

/// Takes the repair symbols that the peer of an accepted link sends, until the connection is gone.
pub(in crate::tunnel) async fn listen(link: &Arc<Link>) {
    let Some(connection) = link.over_quic() else {
        return std::future::pending().await;
    };
    let mut heard = 0_u64;
    while let Some(datagram) = connection.datagram().await {
        hear(link, &datagram);
        heard += 1;
        if heard.is_multiple_of(IN_A_ROW) {
            // What else is to be heard on the link has its turn.
            tokio::task::yield_now().await;
        }
    }
    link.closed().await;
}

pub(in crate::tunnel) fn hear(link: &Arc<Link>, datagram: &Bytes) {
    // Bytes of their own: those that came keep alive all that was read from the socket with them.
    let Ok(repair) = Repair::read(&Bytes::copy_from_slice(datagram)) else {
        tracing::debug!(peer = %link.peer, "a datagram that holds no repair symbols");
        return;
    };
    let exchange = repair.exchange;
    let end = || link.tunnel.end(Side::Egress, exchange);
    match end() {
        Some(end) => give(link, &end, [repair]),
        None => {
            link.early_repairs.keep(repair);
            // It may have come in between.
            if let Some(end) = end() {
                link.give_early_repairs(&end);
            }
        }
    }
}

/// Only the other end itself mends what it sends.
fn give(link: &Link, end: &Arc<End>, repairs: impl IntoIterator<Item = Repair>) {
    if *end.far != *link.peer {
        tracing::warn!(exchange = %end.exchange, peer = %link.peer, "peer mends somebody else's exchange");
        return;
    }
    let attempt = end.attempt;
    let meant = |repair: &Repair| end.repaired && repair.attempt == attempt;
    end.mend_with(repairs.into_iter().filter(meant));
}

#[cfg(test)]
mod tests {
    use vector_proto::tunnel::repair::{Block, SYMBOL_BYTES};

    use super::*;

    fn repair(exchange: ExchangeId, first: usize) -> Repair {
        Repair {
            exchange,
            attempt: 1,
            block: Block {
                start: 0,
                length: 5_000,
                total: 1_000,
                checksum: 0,
            },
            first,
            symbols: Bytes::from_static(&[1; SYMBOL_BYTES]),
        }
    }

    #[test]
    fn what_comes_before_its_exchange_waits_and_there_is_an_end_to_that() {
        let (early, id, other) = (Early::default(), ExchangeId::fresh(), ExchangeId::fresh());
        for first in 0..3 {
            early.keep(repair(id, first));
            early.keep(repair(other, first));
        }
        let firsts = |id| -> Vec<usize> { early.take(id).iter().map(|it| it.first).collect() };
        assert_eq!(firsts(id), [0, 1, 2]);
        assert!(firsts(id).is_empty());
        (0..500).for_each(|first| early.keep(repair(id, first)));
        assert!(firsts(other).is_empty(), "the oldest give way");
        assert_eq!(firsts(id).len(), EARLY_MAX);
    }
}
