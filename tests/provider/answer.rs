//! The body of an answer: whole, paced in chunks, or filled to a length.
//!
//! Pacing keeps to a schedule rather than adding sleeps, so a chunk's moment does not drift. Each chunk is
//! a write of its own, as real providers send them. Carries the mark that notices a client that leaves.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::bench;
use crate::stats::Mark;

/// Pieces into which `drip` cuts each chunk.
const DRIP_BYTES: usize = 7;

/// The connection is cut here, because a fault was asked for.
#[derive(Debug, thiserror::Error)]
#[error("cut on demand")]
pub(crate) struct Cut;

/// What an answer's body is made of.
#[derive(Debug)]
pub(crate) enum Answer {
    Whole(Bytes),
    Paced(Box<Paced>),
    Fill(u64),
}

/// Chunks with a gap between each two.
#[derive(Debug)]
pub(crate) struct Paced {
    source: Source,
    gap: Duration,
    next: Next,
}

/// When the next chunk may leave.
#[derive(Debug)]
enum Next {
    Now,
    Yield,
    At(Pin<Box<Sleep>>),
}

#[derive(Debug)]
enum Source {
    Ready(VecDeque<Bytes>),
    Bench(bench::Stream),
}

impl Source {
    fn ended(&self) -> bool {
        match self {
            Self::Ready(chunks) => chunks.is_empty(),
            Self::Bench(stream) => stream.ended(),
        }
    }

    /// Bytes to come, where the chunks are there already.
    fn length(&self) -> u64 {
        match self {
            Self::Ready(chunks) => chunks.iter().map(|chunk| chunk.len() as u64).sum(),
            Self::Bench(_) => 0,
        }
    }
}

impl Answer {
    pub(crate) fn paced(chunks: impl IntoIterator<Item = Bytes>, gap_ms: u64) -> Self {
        Self::from_source(Source::Ready(chunks.into_iter().collect()), gap_ms)
    }

    pub(crate) fn bench(stream: bench::Stream) -> Self {
        let gap_ms = stream.gap_ms();
        Self::from_source(Source::Bench(stream), gap_ms)
    }

    fn from_source(source: Source, gap_ms: u64) -> Self {
        Self::Paced(Box::new(Paced {
            source,
            gap: Duration::from_millis(gap_ms),
            next: Next::Now,
        }))
    }

    /// The same bytes in pieces of a few, `gap_ms` apart.
    pub(crate) fn dripped(self, gap_ms: u64) -> Self {
        let chunks: VecDeque<Bytes> = match self {
            Self::Whole(bytes) => pieces(bytes).collect(),
            Self::Paced(paced) => match paced.source {
                Source::Ready(chunks) => chunks.into_iter().flat_map(pieces).collect(),
                source @ Source::Bench(_) => return Self::from_source(source, gap_ms),
            },
            Self::Fill(_) => return self,
        };
        Self::from_source(Source::Ready(chunks), gap_ms)
    }

    /// Bytes still to come, if the client is told so.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Fill(left) => Some(*left),
            Self::Paced(_) => None,
        }
    }

    /// Bytes still to come, as far as they are there.
    pub(crate) fn present(&self) -> u64 {
        match self {
            Self::Paced(paced) => paced.source.length(),
            Self::Whole(_) | Self::Fill(_) => self.length().unwrap_or(0),
        }
    }

    fn ended(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Fill(left) => *left == 0,
            Self::Paced(paced) => paced.source.ended(),
        }
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(std::mem::take(bytes))),
            Self::Fill(0) => Poll::Ready(None),
            Self::Fill(left) => {
                let block = bench::fill_block();
                let take = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(block.len());
                *left -= take as u64;
                Poll::Ready(Some(block.slice(..take)))
            }
            Self::Paced(paced) => paced.poll_chunk(context),
        }
    }
}

impl Paced {
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        match &mut self.next {
            Next::Now => {}
            // One pending poll between two chunks makes hyper write each by itself.
            Next::Yield => {
                self.next = Next::Now;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Next::At(sleep) => ready!(sleep.as_mut().poll(context)),
        }
        let chunk = match &mut self.source {
            Source::Ready(chunks) => chunks.pop_front(),
            Source::Bench(stream) => stream.chunk(),
        };
        if !self.source.ended() {
            self.rest();
        }
        Poll::Ready(chunk)
    }

    /// Sets when the chunk after this one is due.
    fn rest(&mut self) {
        self.next = match std::mem::replace(&mut self.next, Next::Now) {
            _ if self.gap.is_zero() => Next::Yield,
            Next::At(mut sleep) => {
                let due = sleep.deadline() + self.gap;
                sleep.as_mut().reset(due);
                Next::At(sleep)
            }
            Next::Now | Next::Yield => Next::At(Box::pin(tokio::time::sleep_until(
                Instant::now() + self.gap,
            ))),
        };
    }
}

fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| bytes.split_to(DRIP_BYTES.min(bytes.len())))
    })
}

/// An answer on its way: the body hyper polls.
#[derive(Debug)]
pub(crate) struct Outgoing {
    answer: Answer,
    /// Chunks after which the connection is cut.
    cut_after: Option<u32>,
    /// Whether hyper has had the time to write what came before the cut.
    flushed: bool,
    mark: Option<Mark>,
}

impl Outgoing {
    pub(crate) fn new(answer: Answer, cut_after: Option<u32>, mark: Option<Mark>) -> Self {
        let mut outgoing = Self {
            answer,
            cut_after,
            flushed: false,
            mark,
        };
        outgoing.note_end();
        outgoing
    }

    fn note_end(&mut self) {
        let ended = self.answer.ended() || self.cut_after == Some(0);
        if let Some(mark) = self.mark.as_mut().filter(|_| ended) {
            mark.finish();
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.cut_after == Some(0) {
            if !std::mem::replace(&mut self.flushed, true) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(Cut)));
        }
        let chunk = ready!(self.answer.poll_chunk(context));
        if let Some(left) = self.cut_after.as_mut() {
            *left -= 1;
        }
        self.note_end();
        Poll::Ready(chunk.map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.answer.ended() && self.cut_after.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (self.answer.length(), self.cut_after) {
            (Some(length), None) => SizeHint::with_exact(length),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn read(answer: Answer, cut_after: Option<u32>) -> (Vec<u8>, bool) {
        let mut body = Outgoing::new(answer, cut_after, None);
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => read.extend_from_slice(&frame.into_data().unwrap()),
                Err(Cut) => return (read, false),
            }
        }
        (read, true)
    }

    #[tokio::test]
    async fn chunks_come_whole_cut_and_dripped() {
        let chunks = || ["ab", "cd", "ef"].map(Bytes::from);
        assert_eq!(
            read(Answer::paced(chunks(), 0), None).await,
            (b"abcdef".to_vec(), true)
        );
        assert_eq!(
            read(Answer::paced(chunks(), 0), Some(2)).await,
            (b"abcd".to_vec(), false)
        );
        let whole = Answer::Whole(Bytes::from_static(b"0123456789abcdef")).dripped(0);
        assert_eq!(
            read(whole, None).await,
            (b"0123456789abcdef".to_vec(), true)
        );
    }

    #[tokio::test]
    async fn fill_is_as_long_as_asked() {
        let (bytes, whole) = read(Answer::Fill(200_001), None).await;
        assert!(whole && bytes.len() == 200_001);
    }
}
