//! The bytes of an answer that is being recorded: a file's worth that has left memory, and what came since.
//!
//! Pure: it says what is to be written where and is told when that is done; who reads meanwhile misses nothing.

use bytes::Bytes;

use super::sealed::PIECE_BYTES;

/// Bytes that wait in memory before they are written to the file. Twice this, 128 KiB, is held while they are.
const HELD_BYTES: usize = PIECE_BYTES;

/// A body, as far as it has come.
#[derive(Debug, Default)]
pub(super) struct Tape {
    /// Bytes in the file.
    written: u64,
    /// On their way to the file, behind those.
    writing: Bytes,
    /// Behind those.
    held: Vec<u8>,
}

/// What stands at an offset.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum At {
    /// These bytes.
    Memory(Bytes),
    /// It is in the file, in a piece of so many bytes.
    File(usize),
    /// Nothing yet.
    End,
}

impl Tape {
    /// A tape whose bytes are all in a file.
    pub(super) fn in_file(bytes: u64) -> Self {
        Self {
            written: bytes,
            ..Self::default()
        }
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u64 {
        self.written + (self.writing.len() + self.held.len()) as u64
    }

    /// Appends. True when [`Self::write`] is due.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        self.held.extend_from_slice(bytes);
        self.held.len() >= HELD_BYTES && self.writing.is_empty()
    }

    /// What is to be written next, and where in the file. [`Self::wrote`] once that is done. Whole pieces, but for the `last`.
    pub(super) fn write(&mut self, last: bool) -> Option<(u64, Bytes)> {
        let bytes = if last {
            self.held.len()
        } else {
            self.held.len() / PIECE_BYTES * PIECE_BYTES
        };
        if bytes == 0 || !self.writing.is_empty() {
            return None;
        }
        let rest = self.held.split_off(bytes);
        self.writing = std::mem::replace(&mut self.held, rest).into();
        Some((self.written, self.writing.clone()))
    }

    /// What [`Self::write`] gave is in the file.
    pub(super) fn wrote(&mut self) {
        self.written += self.writing.len() as u64;
        self.writing = Bytes::new();
    }

    /// Whether all of it is in the file.
    pub(super) fn is_in_file(&self) -> bool {
        self.writing.is_empty() && self.held.is_empty()
    }

    /// What stands at `offset`.
    pub(super) fn at(&self, offset: u64) -> At {
        let Some(beyond) = offset.checked_sub(self.written) else {
            let piece = offset - offset % PIECE_BYTES as u64;
            let bytes = usize::try_from(self.written - piece).unwrap_or(usize::MAX);
            return At::File(bytes.min(PIECE_BYTES));
        };
        let beyond = usize::try_from(beyond).unwrap_or(usize::MAX);
        if beyond < self.writing.len() {
            let end = self.writing.len().min(beyond.saturating_add(PIECE_BYTES));
            return At::Memory(self.writing.slice(beyond..end));
        }
        let beyond = beyond - self.writing.len();
        if beyond < self.held.len() {
            let end = self.held.len().min(beyond.saturating_add(PIECE_BYTES));
            return At::Memory(Bytes::copy_from_slice(&self.held[beyond..end]));
        }
        At::End
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Write,
        Wrote,
        Read(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..2 * PIECE_BYTES).prop_map(Step::Push),
            Just(Step::Write),
            Just(Step::Wrote),
            (0..20 * PIECE_BYTES as u64).prop_map(Step::Read),
        ]
    }

    proptest! {
        /// Whatever is on its way to the file, every offset reads as it was pushed.
        #[test]
        fn every_byte_reads_as_it_came(steps in prop::collection::vec(step(), 0..60)) {
            let (mut tape, mut all, mut file) = (Tape::default(), Vec::new(), Vec::new());
            let mut leaving: Option<(u64, Bytes)> = None;
            for step in steps {
                match step {
                    Step::Push(bytes) => {
                        let begin = all.len();
                        all.extend((begin..begin + bytes).map(|at| (at % 251) as u8));
                        tape.push(&all[begin..]);
                    }
                    Step::Write => leaving = tape.write(false).or(leaving),
                    Step::Wrote => if let Some((at, bytes)) = leaving.take() {
                        prop_assert_eq!(at, file.len() as u64);
                        prop_assert_eq!(bytes.len() % PIECE_BYTES, 0);
                        file.extend_from_slice(&bytes);
                        tape.wrote();
                    },
                    Step::Read(offset) => {
                        let start = usize::try_from(offset).unwrap();
                        match tape.at(offset) {
                            At::Memory(bytes) => prop_assert_eq!(&bytes[..], &all[start..start + bytes.len()]),
                            At::File(bytes) => {
                                let piece = start / PIECE_BYTES * PIECE_BYTES;
                                prop_assert!(start < piece + bytes);
                                prop_assert_eq!(&file[piece..piece + bytes], &all[piece..piece + bytes]);
                            }
                            At::End => prop_assert!(start >= all.len()),
                        }
                    }
                }
                prop_assert_eq!(tape.len(), all.len() as u64);
            }
        }
    }

    #[test]
    fn a_write_is_due_once_enough_is_held_and_none_runs() {
        let mut tape = Tape::default();
        assert!(!tape.push(&[0; 10]));
        assert!(tape.push(&vec![0; HELD_BYTES]));
        assert_eq!(tape.write(false).unwrap().0, 0);
        assert!(!tape.push(&vec![0; HELD_BYTES]), "one is running");
        tape.wrote();
        assert_eq!(tape.write(false).unwrap().0, HELD_BYTES as u64);
        tape.wrote();
        assert_eq!(tape.write(false), None, "half a piece");
        let last = tape.write(true).unwrap();
        assert_eq!((last.0, last.1.len()), (2 * HELD_BYTES as u64, 10));
        assert_eq!(Tape::in_file(3).at(1), At::File(3));
    }
}
