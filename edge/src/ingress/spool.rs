//! Keeps on disk what a request's body has beyond what memory holds, so that another candidate can be given all of it.
//!
//! The file has no name and vanishes with the process. A spool that fails (a full disk) loses nothing but the chance to send
//! the body twice.

use std::{io, io::SeekFrom};

use bytes::{Bytes, BytesMut};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _},
};

/// Largest piece that is read back at once.
const PIECE_BYTES: usize = 64 << 10;

/// A body's middle part, on disk.
#[derive(Debug)]
pub(super) struct Spool {
    file: File,
    bytes: u64,
}

impl Spool {
    /// An empty one in the system's folder for temporary files.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            file: File::from_std(tempfile::tempfile()?),
            bytes: 0,
        })
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends.
    ///
    /// Cancel safety: dropped half-way, the file's end is unknown and the spool must not be read.
    pub(super) async fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk).await?;
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    /// Goes to the first byte, to be read from there with [`Self::next`].
    pub(super) async fn rewind(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        Ok(())
    }

    /// The next piece, empty at the end. After the end, [`Self::push`] appends again.
    pub(super) async fn next(&mut self) -> io::Result<Bytes> {
        let mut piece = BytesMut::with_capacity(PIECE_BYTES);
        self.file.read_buf(&mut piece).await?;
        Ok(piece.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_goes_in_comes_out_and_may_go_on() {
        let mut spool = Spool::new().unwrap();
        let big = vec![7; PIECE_BYTES + 9];
        spool.push(&big).await.unwrap();
        for round in 0..2 {
            spool.rewind().await.unwrap();
            let mut out = Vec::new();
            loop {
                let piece = spool.next().await.unwrap();
                if piece.is_empty() {
                    break;
                }
                out.extend_from_slice(&piece);
            }
            assert_eq!(out.len(), big.len() + round);
            spool.push(b"x").await.unwrap();
        }
        assert_eq!(spool.bytes(), (big.len() + 2) as u64);
    }
}
