//! One stream that a sequence is read from: what it begins with, and at which offset it stands.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use prost::Message as _;
use vector_proto::tunnel::{
    codec::{self, Decoder, Kind, Piece},
    v1,
};

use crate::tunnel::{LostReason, end::End, link::Link, transport::Receiver};

/// A stream that a sequence is read from.
#[derive(Debug)]
pub(in crate::tunnel) struct ReadStream {
    pub(in crate::tunnel) link: Arc<Link>,
    stream: Receiver,
    /// What it delivered and nobody has looked at.
    rest: Bytes,
    at: At,
}

#[derive(Debug)]
enum At {
    /// Before ACCEPTED or REFUSED.
    Preamble(Box<Decoder>),
    /// The offset of the next byte.
    Sequence(u64),
    /// It is read as it comes, from this offset on.
    Scattered(u64),
}

/// What a stream gave.
pub(super) enum Read {
    Bytes(u64, Bytes),
    Refused(Bytes),
    Ended,
    /// Its connection is gone, or the peer took it back.
    Broken,
}

impl ReadStream {
    /// A stream that this end opened: the other end's preamble is still to come.
    pub(in crate::tunnel) fn opened(link: &Arc<Link>, stream: Receiver) -> Self {
        Self {
            link: Arc::clone(link),
            stream,
            rest: Bytes::new(),
            at: At::Preamble(Box::default()),
        }
    }

    /// A stream whose preamble was read, and what came behind it.
    pub(in crate::tunnel) fn attached(
        link: &Arc<Link>,
        stream: Receiver,
        offset: u64,
        rest: Bytes,
    ) -> Self {
        Self {
            link: Arc::clone(link),
            stream,
            rest,
            at: At::Sequence(offset),
        }
    }

    /// From now on bytes are taken as they come, whatever is missing before them.
    pub(in crate::tunnel) fn scattered(mut self) -> Self {
        if let At::Sequence(offset) = self.at {
            self.at = At::Scattered(offset.saturating_add(self.rest.len() as u64));
        }
        self
    }

    fn poll_scattered(&mut self, from: u64, cx: &mut Context<'_>) -> Poll<Read> {
        let rest = mem::take(&mut self.rest);
        if !rest.is_empty() {
            return Poll::Ready(Read::Bytes(from - rest.len() as u64, rest));
        }
        Poll::Ready(match ready!(self.stream.poll_scattered(cx)) {
            // What runs over is beyond any credit, and refused for that.
            Ok(Some((at, bytes))) => Read::Bytes(from.saturating_add(at), bytes),
            Ok(None) => Read::Ended,
            Err(_) => Read::Broken,
        })
    }

    pub(super) fn poll(
        &mut self,
        end: &Arc<End>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Read, LostReason>> {
        if let At::Scattered(from) = self.at {
            return self.poll_scattered(from, cx).map(Ok);
        }
        loop {
            let mut bytes = mem::take(&mut self.rest);
            if bytes.is_empty() {
                match ready!(self.stream.poll_read(cx)) {
                    Ok(Some(more)) => bytes = more,
                    Ok(None) => return Poll::Ready(Ok(Read::Ended)),
                    Err(_) => return Poll::Ready(Ok(Read::Broken)),
                }
            }
            match &mut self.at {
                At::Sequence(offset) => {
                    let at = *offset;
                    // What runs over is beyond any credit, and refused for that.
                    *offset = offset.saturating_add(bytes.len() as u64);
                    return Poll::Ready(Ok(Read::Bytes(at, bytes)));
                }
                At::Scattered(_) => {}
                At::Preamble(decoder) => match decoder.next(&mut bytes)? {
                    None => {}
                    Some(Piece::Frame(Kind::Accepted, payload)) => {
                        let accepted = v1::Accepted::decode(payload)
                            .map_err(|_| codec::Error::Malformed(Kind::Accepted))?;
                        end.taken(&self.link, &accepted);
                        self.at = At::Sequence(accepted.offset);
                        self.rest = bytes;
                        if self.rest.is_empty() {
                            // Whoever waits for the acceptance alone is to see it.
                            return Poll::Ready(Ok(Read::Bytes(accepted.offset, Bytes::new())));
                        }
                    }
                    Some(Piece::Frame(Kind::Refused, payload)) => {
                        return Poll::Ready(Ok(Read::Refused(payload)));
                    }
                    Some(Piece::Frame(kind, _)) => {
                        return Poll::Ready(Err(codec::Error::OutOfPlace(kind).into()));
                    }
                    Some(Piece::Data(_)) => {
                        return Poll::Ready(Err(codec::Error::OutOfPlace(Kind::Data).into()));
                    }
                },
            }
        }
    }
}
