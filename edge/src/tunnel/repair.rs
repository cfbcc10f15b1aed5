//! Mends what a prompt lost on its way, without asking for it again. Pure but for the counting of places.
//!
//! Over a long path each lost packet of a prompt costs a round trip, and of 256 KiB some packet is lost more often than not
//! from 0.4 % on. Behind a request that is not large, and in the middle of it, the ingress therefore sends *repair symbols* in
//! datagrams (`vector_proto::tunnel::repair`), as many as the path's losses make worth it. The egress reads the stream out of order,
//! keeps the sequence's first bytes, and computes what is missing as soon as it has enough. QUIC sends again what was lost as
//! always: that comes too late to matter, and is what remains when too much was lost.

mod hands;
mod mender;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;
use reed_solomon_simd::ReedSolomonEncoder;
use vector_proto::{
    id::ExchangeId,
    tunnel::repair::{BLOCK_BYTES_MAX, Block, HEADER_BYTES_MAX, Repair, SYMBOL_BYTES, SYMBOLS_MAX},
};

#[cfg(test)]
pub(super) use self::hands::hear;
pub(super) use self::{
    hands::{Early, is_block, listen},
    mender::Mender,
};

/// What a packet carries of a stream, about.
const PACKET_BYTES: usize = 1_350;

/// Symbols that a lost packet takes with it: the two at its ends are lost in part.
const SYMBOLS_A_PACKET: f64 = 12.0;

/// Packets that are lost beyond the mean, in standard deviations: 99 of 100 prompts lose fewer.
const MARGIN: f64 = 2.5;

/// What a path is taken to lose that lost nothing yet.
const LOSS_MIN: f64 = 0.002;

/// More than this is no matter of single packets.
const LOSS_MAX: f64 = 0.1;

/// A prompt of few packets is mended only where some loss is seen: it doubles in size.
const FEW_PACKETS: usize = 8;
const FEW_LOSS: f64 = 0.005;

/// Packets after which a share of them is believed.
const TELLING_PACKETS: u64 = 256;

/// Sequences that are mended at once on one node. A prompt of 256 KiB takes 300 KiB; of peers that mean it, 128 x 2 MiB = 256 MiB
/// at the worst. Others wait for what was lost.
const MENDERS_MAX: usize = 128;

/// Repair symbols worth sending behind so many bytes, on a path that loses this share of its packets.
fn worth(bytes: usize, loss: f64) -> usize {
    let (packets, loss) = (bytes.div_ceil(PACKET_BYTES), loss.clamp(LOSS_MIN, LOSS_MAX));
    if packets < 2 || (packets < FEW_PACKETS && loss < FEW_LOSS) || bytes > BLOCK_BYTES_MAX {
        return 0;
    }
    let mean = packets as f64 * loss;
    let lost = mean + MARGIN * (mean * (1.0 - loss)).sqrt();
    let symbols = lost.max(1.0) * SYMBOLS_A_PACKET / (1.0 - loss);
    (symbols.ceil() as usize).min(SYMBOLS_MAX)
}

/// Makes the datagrams to send behind the bytes of a sequence from `start` on.
pub(super) fn datagrams(
    (exchange, attempt): (ExchangeId, u32),
    start: u64,
    slices: &[Bytes],
    loss: f64,
    datagram_bytes: usize,
) -> Vec<Bytes> {
    let length: usize = slices.iter().map(Bytes::len).sum();
    let total = worth(length, loss);
    let each = datagram_bytes.saturating_sub(HEADER_BYTES_MAX) / SYMBOL_BYTES;
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    if total == 0 || each == 0 || start > BLOCK_BYTES_MAX - length {
        return Vec::new();
    }
    let mut checksum = crc32fast::Hasher::new();
    slices.iter().for_each(|slice| checksum.update(slice));
    let block = Block {
        start,
        length,
        total,
        checksum: checksum.finalize(),
    };
    let symbols = encode(block, slices).unwrap_or_default();
    let parts = (0..total)
        .step_by(each)
        .zip(symbols.chunks(each * SYMBOL_BYTES));
    let datagram = |(first, part): (usize, &[u8])| {
        let repair = Repair {
            exchange,
            attempt,
            block,
            first,
            symbols: Bytes::copy_from_slice(part),
        };
        repair.to_bytes()
    };
    parts.map(datagram).collect()
}

/// The repair symbols of a block, one behind the other. Fails for no block within the limits.
fn encode(block: Block, slices: &[Bytes]) -> Result<Vec<u8>, reed_solomon_simd::Error> {
    let mut bytes = slices.concat();
    bytes.resize(block.sources() * SYMBOL_BYTES, 0);
    let mut encoder = ReedSolomonEncoder::new(block.sources(), block.total, SYMBOL_BYTES)?;
    for source in bytes.chunks(SYMBOL_BYTES) {
        encoder.add_original_shard(source)?;
    }
    let encoded = encoder.encode()?;
    Ok(encoded.recovery_iter().collect::<Vec<_>>().concat())
}

/// Has the code's tables made by somebody who may be held up: that takes 10 ms and 8 MiB, once in a process that needs them.
pub(super) fn warm() {
    static WARM: AtomicBool = AtomicBool::new(false);
    if !WARM.load(Ordering::Relaxed) && !WARM.swap(true, Ordering::Relaxed) {
        tokio::task::spawn_blocking(make_tables);
    }
}

fn make_tables() {
    let block = Block {
        start: 0,
        length: 1,
        total: 1,
        checksum: 0,
    };
    // Only the tables are wanted of it.
    let _ = encode(block, &[Bytes::from_static(b"x")]);
}

/// The share of a link's packets that got lost lately, by what QUIC found.
#[derive(Debug, Default)]
pub(super) struct Losses(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    sent: u64,
    lost: u64,
    share: f64,
}

impl Losses {
    /// Takes in how many packets were sent and lost in all.
    pub(super) fn share(&self, (sent, lost): (u64, u64)) -> f64 {
        let mut seen = self.0.lock();
        let (more, lost_more) = (
            sent.saturating_sub(seen.sent),
            lost.saturating_sub(seen.lost),
        );
        if more >= TELLING_PACKETS {
            let now = lost_more as f64 / more as f64;
            *seen = Seen {
                sent,
                lost,
                // Believed at once when it is worse than it was, and slowly when it is better.
                share: f64::midpoint(seen.share, now).max(now),
            };
        }
        seen.share
    }
}

/// Places for [`Mender`]s on a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<AtomicUsize>);

/// One of the [`Places`]. Dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Places {
    pub(super) fn take(&self) -> Option<Place> {
        let more = |taken: usize| (taken < MENDERS_MAX).then_some(taken + 1);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Place(Arc::clone(&self.0)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_follows_the_losses_and_stays_small() {
        let of = |bytes, loss| worth(bytes, loss) * SYMBOL_BYTES;
        assert_eq!(of(1_000, 0.03), 0, "one packet");
        assert_eq!(of(2_000, 0.0), 0, "few packets, and nothing is lost");
        assert_eq!(of(2_000, 0.03), 13 * SYMBOL_BYTES);
        for (bytes, loss, most) in [
            (64 << 10, 0.0, 3_000),
            (64 << 10, 0.03, 8_000),
            (256 << 10, 0.0, 3_500),
            (256 << 10, 0.01, 9_000),
            (256 << 10, 0.03, 19_000),
        ] {
            let sent = of(bytes, loss);
            assert!((most / 2..=most).contains(&sent), "{bytes} {loss}: {sent}");
        }
        assert!(
            worth(BLOCK_BYTES_MAX, 1.0) < SYMBOLS_MAX,
            "a tenth at the most"
        );
        assert_eq!(worth(BLOCK_BYTES_MAX + 1, 0.01), 0);
    }

    #[test]
    fn losses_are_believed_once_there_are_enough_packets() {
        let losses = Losses::default();
        assert_eq!(losses.share((100, 90)), 0.0);
        assert_eq!(losses.share((1_000, 20)), 0.02);
        assert_eq!(losses.share((1_100, 120)), 0.02);
        assert_eq!(losses.share((2_000, 20)), 0.01);
        assert_eq!(losses.share((0, 0)), 0.01);
    }

    #[test]
    fn places_are_counted() {
        let places = Places::default();
        let taken: Vec<Place> = std::iter::from_fn(|| places.take()).collect();
        assert_eq!(taken.len(), MENDERS_MAX);
        drop(taken);
        assert!(places.take().is_some());
    }
}
