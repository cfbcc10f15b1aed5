//! The two halves of a QUIC stream.

use std::{
    future::Future,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use quinn::{ReadError, VarInt, WriteError};

use super::connection_lost;
use crate::tunnel::transport::{self, Error};

/// The sending half of a stream.
#[derive(Debug)]
pub struct Sender(quinn::SendStream);

impl Sender {
    pub(in crate::tunnel::transport) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<(), Error>> {
        let mut done = 0;
        while done < chunks.len() {
            let written = {
                let write = std::pin::pin!(self.0.write_chunks(&mut chunks[done..]));
                ready!(write.poll(cx)).map_err(|error| match error {
                    WriteError::Stopped(code) => Error::Reset(code.into_inner()),
                    WriteError::ConnectionLost(error) => connection_lost(error),
                    WriteError::ClosedStream | WriteError::ZeroRttRejected => Error::Reset(0),
                })?
            };
            done += written.chunks;
        }
        Poll::Ready(Ok(()))
    }

    pub(in crate::tunnel::transport) fn finish(&mut self) {
        // Fails only on a stream that is finished or reset already.
        let _ = self.0.finish();
    }

    pub(in crate::tunnel::transport) fn reset(&mut self) {
        // As above.
        let _ = self.0.reset(VarInt::from_u32(0));
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct Receiver {
    stream: quinn::RecvStream,
    /// Bytes that were read in order.
    read: u64,
    /// Of these, those before it was read as it comes.
    origin: Option<u64>,
    /// What was there in order has been read since.
    drained: bool,
}

impl Receiver {
    pub(in crate::tunnel::transport) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Error>> {
        let chunk = ready!(self.poll_chunk(cx, true))?;
        Poll::Ready(Ok(chunk.map(|chunk| {
            self.read += chunk.bytes.len() as u64;
            chunk.bytes
        })))
    }

    pub(in crate::tunnel::transport) fn poll_scattered(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(u64, Bytes)>, Error>> {
        let origin = *self.origin.get_or_insert(self.read);
        if !self.drained {
            // quinn cuts what overlaps with what was read only while it reads in order: nothing of that may be left.
            let at = self.read - origin;
            match self.poll_read(cx) {
                Poll::Ready(read) => {
                    return Poll::Ready(read.map(|bytes| bytes.map(|bytes| (at, bytes))));
                }
                Poll::Pending => self.drained = true,
            }
        }
        let chunk = ready!(self.poll_chunk(cx, false))?;
        let place = |chunk: quinn::Chunk| (chunk.offset.saturating_sub(origin), chunk.bytes);
        Poll::Ready(Ok(chunk.map(place)))
    }

    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        ordered: bool,
    ) -> Poll<Result<Option<quinn::Chunk>, Error>> {
        let read = std::pin::pin!(self.stream.read_chunk(usize::MAX, ordered));
        read.poll(cx).map_err(|error| match error {
            ReadError::Reset(code) => Error::Reset(code.into_inner()),
            ReadError::ConnectionLost(error) => connection_lost(error),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Error::Reset(0),
        })
    }
}

pub(super) fn halves(
    (send, receive): (quinn::SendStream, quinn::RecvStream),
) -> (transport::Sender, transport::Receiver) {
    (
        transport::Sender::Quic(Sender(send)),
        transport::Receiver::Quic(Receiver {
            stream: receive,
            read: 0,
            origin: None,
            drained: false,
        }),
    )
}
