//! The receiver's side: what is here of a sequence's first bytes, and what can be computed of the rest.

use std::{collections::BTreeMap, iter, ops::Range};

use bytes::Bytes;
use reed_solomon_simd::ReedSolomonDecoder;
use vector_proto::tunnel::repair::{BLOCK_BYTES_MAX, Block, Repair, SYMBOL_BYTES};

use super::Place;

/// Blocks of one sequence. An honest sender makes one of 128 KiB each, and one of the rest; computing one takes a millisecond.
const BLOCKS_MAX: usize = 8;

/// Ranges that may be here apart from each other. A packet each, they are far more than any line leaves.
const RANGES_MAX: usize = 1_024;

/// The first bytes of a sequence, and the repair symbols for them.
#[derive(Debug)]
pub(in crate::tunnel) struct Mender {
    /// From the first byte on; zeros where nothing is here yet.
    bytes: Vec<u8>,
    /// What is here: in order, and apart from each other.
    here: Vec<Range<usize>>,
    blocks: Vec<Known>,
    /// Blocks that were ever told of.
    begun: usize,
    _place: Place,
}

/// What is known of a block.
#[derive(Debug)]
struct Known {
    block: Block,
    /// By number.
    symbols: BTreeMap<usize, Bytes>,
}

impl Mender {
    pub(in crate::tunnel) const fn new(place: Place) -> Self {
        Self {
            bytes: Vec::new(),
            here: Vec::new(),
            blocks: Vec::new(),
            begun: 0,
            _place: place,
        }
    }

    /// Bytes that came. `false` when the sequence runs beyond what can be mended, so that this is of no further use.
    pub(in crate::tunnel) fn note(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(bytes.len());
        if end > BLOCK_BYTES_MAX || self.here.len() > RANGES_MAX {
            return false;
        }
        if start < end {
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            self.bytes[start..end].copy_from_slice(bytes);
            self.enter(start..end);
        }
        true
    }

    fn enter(&mut self, new: Range<usize>) {
        let first = self.here.partition_point(|known| known.end < new.start);
        let behind = self.here.partition_point(|known| known.start <= new.end);
        let touched = &self.here[first..behind];
        let start = touched
            .first()
            .map_or(new.start, |at| at.start.min(new.start));
        let end = touched.last().map_or(new.end, |at| at.end.max(new.end));
        self.here.splice(first..behind, iter::once(start..end));
    }

    /// Repair symbols that came.
    pub(in crate::tunnel) fn repair(&mut self, repair: &Repair) {
        let mut known = self.blocks.iter().position(|it| it.block == repair.block);
        if known.is_none() && self.begun < BLOCKS_MAX {
            self.begun += 1;
            known = Some(self.blocks.len());
            self.blocks.push(Known {
                block: repair.block,
                symbols: BTreeMap::new(),
            });
        }
        let Some(known) = known.and_then(|at| self.blocks.get_mut(at)) else {
            return;
        };
        let count = repair.symbols.len() / SYMBOL_BYTES;
        for at in 0..count {
            let symbol = repair
                .symbols
                .slice(at * SYMBOL_BYTES..(at + 1) * SYMBOL_BYTES);
            known.symbols.insert(repair.first + at, symbol);
        }
    }

    /// A block of which something is missing that could be computed now. Where `silent`, any; otherwise one of which the last
    /// byte is here, or what follows it, so that nothing of it is still to come for the first time.
    pub(in crate::tunnel) fn ready(&self, silent: bool) -> Option<usize> {
        let end = self.here.last().map(|range| range.end);
        self.blocks.iter().position(|Known { block, symbols }| {
            let missing = block.sources() - self.whole(*block);
            let may = missing > 0 && missing <= symbols.len();
            may && (silent || end >= Some(block.end()))
        })
    }

    /// Source symbols that are here whole.
    fn whole(&self, block: Block) -> usize {
        let symbols = |range: &Range<usize>| {
            let (from, to) = Self::symbols_of(block, range);
            to.saturating_sub(from)
        };
        self.here.iter().map(symbols).sum()
    }

    /// The symbols of a block that lie whole in a range: the first, and the one behind the last.
    const fn symbols_of(block: Block, range: &Range<usize>) -> (usize, usize) {
        let from = range
            .start
            .saturating_sub(block.start)
            .div_ceil(SYMBOL_BYTES);
        let to = if range.end >= block.end() {
            block.sources()
        } else {
            range.end.saturating_sub(block.start) / SYMBOL_BYTES
        };
        (from, to)
    }

    /// Computes what is missing of a block, and says where it stands. `None` when that cannot be, or what comes out is not what
    /// was sent. The block is of no further use then.
    pub(in crate::tunnel) fn mend(&mut self, at: usize) -> Option<Vec<(u64, Bytes)>> {
        let Known { block, symbols } = self.blocks.swap_remove(at);
        self.bytes.resize(block.end().max(self.bytes.len()), 0);
        let gaps = self.gaps(block);
        for (at, symbol) in self.decode(block, &symbols, &gaps).ok()? {
            let place = Self::place(block, at);
            let length = place.len();
            self.bytes[place].copy_from_slice(&symbol[..length]);
        }
        if crc32fast::hash(&self.bytes[block.start..block.end()]) != block.checksum {
            return None;
        }
        self.enter(block.start..block.end());
        let piece = |(from, to): (usize, usize)| {
            let start = block.start + from * SYMBOL_BYTES;
            let end = (block.start + to * SYMBOL_BYTES).min(block.end());
            let bytes = &self.bytes[start..end];
            (start as u64, Bytes::copy_from_slice(bytes))
        };
        Some(gaps.into_iter().map(piece).collect())
    }

    /// Where a symbol stands. What follows on the block is no part of its last one.
    fn place(block: Block, at: usize) -> Range<usize> {
        let start = block.start + at * SYMBOL_BYTES;
        start..(start + SYMBOL_BYTES).min(block.end())
    }

    /// Runs of symbols that are not here whole.
    fn gaps(&self, block: Block) -> Vec<(usize, usize)> {
        let mut gaps = Vec::new();
        let mut known = 0;
        for range in &self.here {
            let (from, to) = Self::symbols_of(block, range);
            if to <= from {
                continue;
            }
            if from > known {
                gaps.push((known, from));
            }
            known = known.max(to);
        }
        if known < block.sources() {
            gaps.push((known, block.sources()));
        }
        gaps
    }

    fn decode(
        &self,
        block: Block,
        symbols: &BTreeMap<usize, Bytes>,
        gaps: &[(usize, usize)],
    ) -> Result<Vec<(usize, Vec<u8>)>, reed_solomon_simd::Error> {
        let mut decoder = ReedSolomonDecoder::new(block.sources(), block.total, SYMBOL_BYTES)?;
        let mut known = 0;
        for (from, to) in gaps.iter().copied().chain([(block.sources(), 0)]) {
            for at in known..from {
                let mut symbol = [0; SYMBOL_BYTES];
                let bytes = &self.bytes[Self::place(block, at)];
                symbol[..bytes.len()].copy_from_slice(bytes);
                decoder.add_original_shard(at, symbol)?;
            }
            known = to;
        }
        for (number, symbol) in symbols {
            decoder.add_recovery_shard(*number, symbol)?;
        }
        let decoded = decoder.decode()?;
        let restored = decoded.restored_original_iter();
        Ok(restored.map(|(at, symbol)| (at, symbol.to_vec())).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vector_proto::id::ExchangeId;

    use super::*;
    use crate::tunnel::repair::{Places, datagrams};

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|at| (at * 31 % 251) as u8).collect()
    }

    fn mender() -> Mender {
        Mender::new(Places::default().take().unwrap())
    }

    /// Sends a text from `start` on in packets of uneven length, and its repairs, each of which may be lost. What came of the
    /// text, and whether more was not needed.
    fn sent(
        (length, start): (usize, usize),
        loss: f64,
        rng: &mut fastrand::Rng,
    ) -> (Mender, Vec<u8>, bool) {
        let text = text(start + length);
        let id = (ExchangeId::fresh(), 1);
        let slices: Vec<Bytes> = text[start..]
            .chunks(5_000)
            .map(Bytes::copy_from_slice)
            .collect();
        let repairs = datagrams(id, start as u64, &slices, loss, 1_372);
        let mut mender = mender();
        assert!(mender.note(0, &text[..start]));
        let (mut at, mut lost) = (start, false);
        while at < text.len() {
            let end = (at + rng.usize(1_300..1_372)).min(text.len());
            if rng.f64() < loss {
                lost = true;
            } else {
                assert!(mender.note(at as u64, &text[at..end]));
            }
            at = end;
        }
        for repair in repairs.iter().filter(|_| rng.f64() >= loss) {
            mender.repair(&Repair::read(repair).unwrap());
        }
        (mender, text, lost)
    }

    /// Nearly every prompt is whole again at once, and what is mended is what was sent.
    #[test]
    fn what_is_lost_on_a_lossy_path_is_computed() {
        let mut rng = fastrand::Rng::with_seed(11);
        for (loss, shape) in [
            (0.01, (256 << 10, 0)),
            (0.03, (256 << 10, 0)),
            (0.03, (64 << 10, 1_000)),
            (0.01, (3_000, 77)),
            (0.05, (500_000, 20_000)),
        ] {
            let (mut needed, mut mended) = (0, 0);
            for _ in 0..200 {
                let (mut mender, text, lost) = sent(shape, loss, &mut rng);
                needed += u32::from(lost);
                if !lost {
                    assert_eq!(mender.ready(true), None);
                    continue;
                }
                let ready = mender.ready(true);
                let Some(pieces) = ready.and_then(|at| mender.mend(at)) else {
                    continue;
                };
                assert!(!pieces.is_empty());
                for (at, piece) in pieces {
                    let at = at as usize;
                    assert_eq!(piece, &text[at..at + piece.len()]);
                }
                assert_eq!(mender.bytes[..text.len()], text);
                assert_eq!(mender.ready(true), None);
                mended += 1;
            }
            assert!(
                mended * 100 >= needed * 94,
                "{shape:?} at {loss}: {mended} of {needed}"
            );
        }
    }

    #[test]
    fn what_is_not_what_was_sent_is_not_believed() {
        let mut rng = fastrand::Rng::with_seed(3);
        let (mut mender, _, lost) = sent((40_000, 0), 0.05, &mut rng);
        assert!(lost);
        let ready = mender.ready(true).unwrap();
        let whole = mender.here[0].clone();
        mender.bytes[whole.start] ^= 1;
        assert_eq!(mender.mend(ready), None);
        assert_eq!(mender.ready(true), None, "nobody tries again");
        let mut mender = self::mender();
        assert!(
            !mender.note(BLOCK_BYTES_MAX as u64, b"x"),
            "beyond what is kept"
        );
        assert!(!mender.note(u64::MAX, b"x"));
        assert_eq!(mender.ready(true), None);
    }

    #[test]
    fn blocks_are_mended_each_in_its_time() {
        let text = text(200_000);
        let (id, middle) = ((ExchangeId::fresh(), 1), 120_000);
        let mut mender = mender();
        for (start, end) in [(0, middle), (middle, text.len())] {
            let slices = [Bytes::copy_from_slice(&text[start..end])];
            for repair in datagrams(id, start as u64, &slices, 0.01, 1_372) {
                mender.repair(&Repair::read(&repair).unwrap());
            }
        }
        assert!(mender.note(0, &text[..50_000]));
        assert!(mender.note(51_000, &text[51_000..middle - 500]));
        assert_eq!(mender.ready(false), None);
        // What follows on a block is here, and no part of it.
        assert!(mender.note(middle as u64, &text[middle..199_000]));
        assert_eq!(mender.ready(false), Some(0));
        let pieces = mender.mend(0).unwrap();
        assert_eq!(pieces.len(), 2);
        for (at, piece) in pieces {
            let at = at as usize;
            assert_eq!(piece, &text[at..at + piece.len()]);
        }
        assert_eq!(mender.bytes[..199_000], text[..199_000]);
        assert_eq!(mender.ready(false), None, "its end may still come");
        let last = mender.ready(true).unwrap();
        let pieces = mender.mend(last).unwrap();
        let (at, piece) = &pieces[0];
        assert_eq!(piece, &text[*at as usize..]);
        // There is an end to what is told.
        for start in 0..100 {
            let slices = [Bytes::copy_from_slice(&text[start..100_000])];
            for repair in datagrams(id, start as u64, &slices, 0.01, 1_372) {
                mender.repair(&Repair::read(&repair).unwrap());
            }
        }
        assert_eq!(mender.begun, BLOCKS_MAX);
        assert_eq!(mender.blocks.len(), BLOCKS_MAX - 2);
    }

    proptest! {
        /// What is here is known, in whatever order it came.
        #[test]
        fn ranges_are_merged(pieces in prop::collection::vec((0_usize..3_000, 0_usize..400), 1..60)) {
            let text = text(4_000);
            let mut mender = mender();
            let mut known = vec![false; 4_000];
            for (start, length) in pieces {
                prop_assert!(mender.note(start as u64, &text[start..start + length]));
                known[start..start + length].fill(true);
            }
            let mut here = vec![false; 4_000];
            for range in &mender.here {
                prop_assert!(range.start < range.end);
                here[range.clone()].fill(true);
            }
            prop_assert_eq!(here, known);
            prop_assert!(mender.here.windows(2).all(|two| two[0].end < two[1].start));
        }
    }
}
