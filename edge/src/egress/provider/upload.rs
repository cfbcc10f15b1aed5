//! A request's body on its way from the tunnel to a provider, with the model's name replaced in passing.
//!
//! A short body of known length is gathered first: it leaves in one write with the head, and can be sent again. A longer one
//! streams without a copy and without a channel; what has left is kept up to [`REPLAY_BYTES_MAX`], so that another
//! connection or credential can be tried, and beyond that it cannot be sent a second time.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use vector_proto::dialect::rename::Splice;

use crate::tunnel::{Lost, RequestBody};

/// Bodies up to this length are gathered before they are sent.
const GATHERED_BYTES_MAX: u64 = 64 << 10;

/// What is kept of a streaming body for another try. 1 MiB x 2,000 uploads = 2 GiB at the worst.
const REPLAY_BYTES_MAX: usize = 1 << 20;

/// A body that several attempts may send, one after the other.
#[derive(Debug)]
pub enum Upload {
    /// No body.
    None,
    /// All of it.
    Gathered(Bytes),
    /// It comes as it comes.
    Streaming(Arc<Streaming>),
}

/// A body that streams through.
#[derive(Debug)]
pub struct Streaming {
    source: Mutex<Source>,
    length: Option<u64>,
    moved: AtomicU64,
}

#[derive(Debug)]
struct Source {
    body: RequestBody,
    splice: Option<Splice>,
    /// What left the splice and was not yet taken.
    ready: Vec<Bytes>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// More has left than is kept.
    overrun: bool,
    ended: bool,
}

impl Upload {
    /// Takes over a request's body. `length` is what the client announced; without it, the first piece tells whether
    /// there is a body at all.
    ///
    /// # Errors
    /// [`Lost`] when the upload breaks off while a short body is gathered.
    pub async fn take(
        mut body: RequestBody,
        length: Option<u64>,
        mut splice: Option<Splice>,
    ) -> Result<Self, Lost> {
        match length {
            Some(0) => return Ok(Self::None),
            Some(length) if length <= GATHERED_BYTES_MAX => {
                return gather(body, length, splice).await;
            }
            _ => {}
        }
        let mut ready = Vec::new();
        if length.is_none() {
            let Some(first) = body.next().await? else {
                return Ok(Self::None);
            };
            pass(&mut splice, first, &mut ready);
            ready.reverse();
        }
        let length = match (&splice, length) {
            (Some(splice), Some(length)) => Some(splice.length(length)),
            (_, length) => length,
        };
        Ok(Self::Streaming(Arc::new(Streaming {
            source: Mutex::new(Source {
                body,
                splice,
                ready,
                kept: Vec::new(),
                kept_bytes: 0,
                overrun: false,
                ended: false,
            }),
            length,
            moved: AtomicU64::new(0),
        })))
    }

    /// The body from its start, for one attempt. Only one attempt at a time may read.
    pub fn body(&self) -> UploadBody {
        match self {
            Self::None => UploadBody::Whole(None),
            Self::Gathered(bytes) => UploadBody::Whole(Some(bytes.clone())),
            Self::Streaming(streaming) => UploadBody::Streaming {
                of: Arc::clone(streaming),
                next: 0,
            },
        }
    }

    /// Whether another attempt could send all of it.
    pub fn is_repeatable(&self) -> bool {
        match self {
            Self::None | Self::Gathered(_) => true,
            Self::Streaming(streaming) => !streaming.source.lock().overrun,
        }
    }

    /// A number that changes while the body is on its way.
    pub fn moved(&self) -> u64 {
        match self {
            Self::None | Self::Gathered(_) => 0,
            Self::Streaming(streaming) => streaming.moved.load(Ordering::Relaxed),
        }
    }

    /// Bytes of it that were sent, or are about to be.
    pub fn sent_bytes(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Gathered(bytes) => bytes.len() as u64,
            Self::Streaming(streaming) => streaming.moved.load(Ordering::Relaxed),
        }
    }
}

/// Gathers a short body; a single chunk that needs no change is not copied.
async fn gather(
    mut body: RequestBody,
    length: u64,
    mut splice: Option<Splice>,
) -> Result<Upload, Lost> {
    let Some(first) = body.next().await? else {
        return Ok(Upload::None);
    };
    if first.len() as u64 == length && splice.is_none() {
        // The end is still to be read, or the tunnel would take the exchange for unfinished.
        while body.next().await?.is_some() {}
        return Ok(Upload::Gathered(first));
    }
    let mut parts = Vec::new();
    pass(&mut splice, first, &mut parts);
    while let Some(chunk) = body.next().await? {
        pass(&mut splice, chunk, &mut parts);
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    for part in parts {
        whole.extend_from_slice(&part);
    }
    Ok(Upload::Gathered(whole.freeze()))
}

fn pass(splice: &mut Option<Splice>, chunk: Bytes, out: &mut Vec<Bytes>) {
    match splice {
        Some(splice) => splice.feed(chunk, out),
        None if chunk.is_empty() => {}
        None => out.push(chunk),
    }
}

impl Source {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Lost>>> {
        loop {
            if let Some(bytes) = self.ready.pop() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match std::task::ready!(self.body.poll_next(cx)) {
                Ok(Some(chunk)) => {
                    pass(&mut self.splice, chunk, &mut self.ready);
                    self.ready.reverse();
                }
                Ok(None) => self.ended = true,
                Err(lost) => return Poll::Ready(Some(Err(lost))),
            }
        }
    }

    fn keep(&mut self, bytes: &Bytes) {
        if self.overrun {
            return;
        }
        if self.kept_bytes + bytes.len() > REPLAY_BYTES_MAX {
            self.overrun = true;
            self.kept = Vec::new();
            return;
        }
        self.kept_bytes += bytes.len();
        self.kept.push(bytes.clone());
    }
}

/// The body of one attempt, as hyper reads it.
#[derive(Debug)]
pub enum UploadBody {
    /// Nothing, or one piece.
    Whole(Option<Bytes>),
    /// Piece by piece; `next` counts them.
    Streaming {
        /// The body that all attempts share.
        of: Arc<Streaming>,
        /// Place of the next piece among those kept.
        next: usize,
    },
}

impl Body for UploadBody {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Streaming { of, next } => {
                let mut source = of.source.lock();
                if let Some(kept) = source.kept.get(*next) {
                    *next += 1;
                    return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
                }
                match std::task::ready!(source.poll(cx)) {
                    Some(Ok(bytes)) => {
                        source.keep(&bytes);
                        *next += 1;
                        of.moved.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        Poll::Ready(Some(Ok(Frame::data(bytes))))
                    }
                    Some(Err(lost)) => Poll::Ready(Some(Err(lost))),
                    None => Poll::Ready(None),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Streaming { of, .. } => of
                .length
                .map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}
