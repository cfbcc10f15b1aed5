//! What a stream begins with.

use std::mem;

use bytes::Bytes;
use vector_proto::tunnel::codec::{self, Decoder, Kind, Piece};

use crate::tunnel::transport::{self, Receiver};

/// Reads the one frame that stands before the sequence, and what came behind it.
pub(in crate::tunnel) async fn read_preamble(
    stream: &mut Receiver,
) -> Result<(Kind, Bytes, Bytes), PreambleError> {
    let mut decoder = Decoder::default();
    loop {
        let mut input = stream.read().await?.ok_or(codec::Error::Truncated)?;
        match decoder.next(&mut input)? {
            Some(Piece::Frame(kind, payload)) => return Ok((kind, payload, mem::take(&mut input))),
            Some(Piece::Data(_)) => return Err(codec::Error::OutOfPlace(Kind::Data).into()),
            None => {}
        }
    }
}

/// Why a stream's first frame could not be read.
#[derive(Debug, thiserror::Error)]
pub(in crate::tunnel) enum PreambleError {
    #[error(transparent)]
    Transport(#[from] transport::Error),
    #[error(transparent)]
    Codec(#[from] codec::Error),
}
