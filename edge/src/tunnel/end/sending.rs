//! The way out of an end: the window, the stream that carries it at the moment, and what is on its way between the two.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;

use crate::tunnel::{
    double::{SMALL_BYTES_MAX, Twin},
    exchange::{Attachments, Outgoing},
    link::Link,
    overdue::Progress,
    transport::{self, Sender},
};

/// The way out.
#[derive(Debug, Default)]
pub(in crate::tunnel) struct Sending {
    pub(in crate::tunnel) outgoing: Outgoing,
    pub(in crate::tunnel) at: Option<Attachment>,
    /// Handed out by the sequence (or the preamble), not yet taken by the stream.
    leaving: Vec<Bytes>,
    pub(in crate::tunnel) attachments: Attachments,
    /// The second stream, while there is one.
    pub(in crate::tunnel) twin: Option<Box<Twin>>,
    /// Up to here repair symbols were sent for it, if any are.
    pub(in crate::tunnel) repaired: u64,
    /// What the node's budget was charged.
    pub(in crate::tunnel) charged: u64,
    /// Counts the attachments, so that a mover knows when it is replaced.
    pub(in crate::tunnel) moves: u32,
    /// A mover drives the stream; the writer only adds to the window.
    pub(in crate::tunnel) moving: bool,
    /// This end moved by itself and was not asked to since.
    pub(in crate::tunnel) unasked: bool,
    /// The sequence is whole.
    pub(in crate::tunnel) ended: bool,
    /// The other end reads no further.
    pub(in crate::tunnel) unread: bool,
    /// What was acknowledged of it since, for `overdue`.
    pub(in crate::tunnel) progress: Progress,
    /// As long as nobody took it.
    pub(in crate::tunnel) opening: Option<Opening>,
}

/// An OPEN that may be sent again.
#[derive(Clone, Debug)]
pub(in crate::tunnel) struct Opening {
    /// When the first one left, and over which link.
    pub(in crate::tunnel) first: (Instant, Arc<Link>),
    pub(in crate::tunnel) left: bool,
    pub(in crate::tunnel) hedged: bool,
    /// The message, without what depends on the path.
    pub(in crate::tunnel) payload: Bytes,
    /// Incarnation of the egress, known before the first one left; 0 if it was not. Where the egress is still the
    /// same when the second one comes, it was all the time, and takes both for one.
    pub(in crate::tunnel) epoch: u64,
}

/// The stream that carries what is sent.
#[derive(Debug)]
pub(in crate::tunnel) struct Attachment {
    pub(in crate::tunnel) link: Arc<Link>,
    pub(in crate::tunnel) stream: Sender,
}

/// What came of handing out.
#[derive(Debug)]
pub(in crate::tunnel) enum Out {
    /// Everything is handed over, as far as credit allows; or there is nothing to hand it to.
    Done,
    /// The link of the attachment is gone.
    LinkLost(Arc<Link>),
    /// The other end closed the stream.
    Closed,
}

impl Sending {
    /// Hands over what credit allows.
    pub(in crate::tunnel) fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<Out> {
        loop {
            let Some(at) = &mut self.at else {
                return Poll::Ready(Out::Done);
            };
            let first = self.leaving.len();
            while let Some(slice) = self.outgoing.next_slice() {
                self.leaving.push(slice);
            }
            if let Some(twin) = &mut self.twin {
                let new = &self.leaving[first..];
                let small = new.iter().map(Bytes::len).sum::<usize>() <= SMALL_BYTES_MAX;
                twin.leaving.extend_from_slice(new);
                if !(small && twin.hand_over(cx)) {
                    self.twin = None;
                }
            }
            if self.leaving.is_empty() {
                return Poll::Ready(Out::Done);
            }
            match at.stream.poll_write(cx, &mut self.leaving) {
                Poll::Pending => {
                    self.leaving.retain(|chunk| !chunk.is_empty());
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => self.leaving.clear(),
                Poll::Ready(Err(error)) => match self.lose(&error) {
                    // The other end has closed the slower of two streams; what it has heard is on the other.
                    Out::Closed if self.take_twin() => {}
                    out => return Poll::Ready(out),
                },
            }
        }
    }

    fn lose(&mut self, error: &transport::Error) -> Out {
        self.leaving.clear();
        match (self.at.take(), error) {
            (None, _) => Out::Done,
            (Some(at), transport::Error::ConnectionLost(_) | transport::Error::Revoked) => {
                Out::LinkLost(at.link)
            }
            (Some(_), transport::Error::Reset(_) | transport::Error::Full) => Out::Closed,
        }
    }

    /// Whether the writer must wait: what it has is more than the receiver allows.
    pub(super) const fn is_held_up(&self) -> bool {
        self.outgoing.is_full()
    }

    /// Whether nothing of the sequence is left to do.
    pub(in crate::tunnel) const fn is_over(&self) -> bool {
        self.unread || (self.ended && self.outgoing.is_settled())
    }

    /// The twin takes the place of a stream that is lost. `false` when there is none on a good link.
    pub(in crate::tunnel) fn promote(&mut self) -> bool {
        let taken = self.take_twin();
        self.moves += u32::from(taken);
        taken
    }

    fn take_twin(&mut self) -> bool {
        let Some(twin) = self.twin.take_if(|twin| twin.at.link.carries()) else {
            return false;
        };
        let Twin { at, leaving } = *twin;
        self.leaving = leaving;
        self.at = Some(at);
        true
    }

    /// Lets go of the attachment. Returns the number by which the next one proves to be wanted.
    pub(in crate::tunnel) fn detach(&mut self) -> u32 {
        self.at = None;
        self.twin = None;
        self.leaving.clear();
        self.moves += 1;
        self.moves
    }

    /// Goes on over another stream: `preamble` is given the offset at which it continues.
    pub(in crate::tunnel) fn install(
        &mut self,
        at: Attachment,
        preamble: impl FnOnce(u64) -> Bytes,
    ) {
        let offset = self.outgoing.rewind();
        self.leaving.clear();
        self.leaving.push(preamble(offset));
        self.at = Some(at);
    }

    /// Ends the stream if nothing is left for it.
    pub(in crate::tunnel) fn finish_stream(&mut self) {
        if self.ended
            && self.leaving.is_empty()
            && self.outgoing.blocked_at().is_none()
            && let Some(at) = &mut self.at
        {
            at.stream.finish();
            // It goes on by itself if it is not behind, and is of no use otherwise.
            self.twin = None;
        }
    }
}
