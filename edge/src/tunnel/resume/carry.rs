//! The stream that carries an exchange from now on: opened, introduced, and driven until nothing is left to hand over.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use vector_proto::tunnel::{
    codec::{self, Kind},
    v1,
};

use crate::tunnel::{
    end::{Attachment, End, Sending, Side},
    half::ReadStream,
    link::Link,
};

/// Time for the peer to allow another stream; it raises their number as they are used. After that, another way.
const OPEN_TIMEOUT: Duration = Duration::from_millis(500);

/// A stream that carries an exchange from now on.
pub(super) struct Move {
    pub(super) to: Arc<Link>,
    pub(super) ask: Ask,
    pub(super) number: u32,
    /// Proves that no later move has replaced this one.
    pub(super) turn: u32,
}

impl Move {
    /// Plans the next attachment of an end, which lets go of the one it has. None when too many were made lately.
    pub(super) fn next(sending: &mut Sending, to: &Arc<Link>, ask: Ask) -> Option<Self> {
        let number = sending.attachments.make(Instant::now())?;
        Some(Self {
            to: Arc::clone(to),
            ask,
            number,
            turn: sending.detach(),
        })
    }
}

/// What a new stream says.
#[derive(Clone)]
pub(super) enum Ask {
    /// The OPEN once more: nobody is known to have taken it.
    Open { payload: Bytes, epoch: u64 },
    /// What is sent goes on here.
    Bytes,
    /// And what is read is to come here, too.
    Resume,
}

/// Opens the stream of a move and drives it until nothing is left to hand over.
pub(super) async fn carry(end: Arc<End>, to: Move) {
    let opened = tokio::time::timeout(OPEN_TIMEOUT, to.to.open_stream()).await;
    let Ok(Ok((stream, receive))) = opened else {
        let wanted = end.sending.lock().moves == to.turn;
        if wanted {
            end.tunnel.relocate(&end, Some(&to.to));
        }
        return;
    };
    {
        let mut sending = end.sending.lock();
        if sending.moves != to.turn || end.fate().is_some() {
            return;
        }
        let link = Arc::clone(&to.to);
        sending.install(Attachment { link, stream }, |offset| {
            preamble(&end, &to, offset)
        });
        sending.moving = true;
    }
    end.mover.wake();
    match to.ask {
        Ask::Open { .. } | Ask::Resume => end.read_also(ReadStream::opened(&to.to, receive)),
        Ask::Bytes => {
            drop(receive);
            let stranded = &end.stranded;
            stranded.store(false, Ordering::Release);
        }
    }
    drive(end, to.turn).await;
}

/// Hands over what the window holds, until all of it is, or another attachment takes over.
pub(super) async fn drive(end: Arc<End>, turn: u32) {
    let out = std::future::poll_fn(|cx| {
        let mut sending = end.sending.lock();
        if sending.moves != turn || end.fate().is_some() {
            return Poll::Ready(None);
        }
        end.mover.register(cx.waker());
        let polled = sending.poll_out(cx);
        // A writer that is left waits for credit itself.
        let blocked = sending.at.is_some() && sending.outgoing.blocked_at().is_some();
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) if blocked && sending.ended => Poll::Pending,
            Poll::Ready(out) => {
                sending.moving = false;
                sending.finish_stream();
                Poll::Ready(Some(out))
            }
        }
    });
    if let Some(out) = out.await {
        end.writer.wake();
        end.tunnel.came(&end, out);
    }
}

fn preamble(end: &End, to: &Move, offset: u64) -> Bytes {
    let resume = match &to.ask {
        Ask::Open { payload, epoch } => {
            let again = v1::Open {
                attach_seq: to.number,
                egress_epoch: *epoch,
                ..v1::Open::default()
            };
            return open_frame(payload, &again).0;
        }
        Ask::Bytes => false,
        Ask::Resume => true,
    };
    attach_frame(end, to.number, offset, resume)
}

/// The ATTACH frame of a stream that begins at `offset` of what is sent.
pub(in crate::tunnel) fn attach_frame(end: &End, number: u32, offset: u64, resume: bool) -> Bytes {
    let mut attach = v1::Attach {
        exchange: Bytes::copy_from_slice(&end.exchange.to_bytes()),
        attach_seq: number,
        offset,
        egress_epoch: end.epoch(),
        attempt: end.attempt,
        resume,
        response_next: end.received(),
        ..v1::Attach::default()
    };
    let name = end.far.to_string();
    match end.side {
        Side::Ingress => attach.egress = name,
        Side::Egress => attach.ingress = name,
    }
    codec::message(Kind::Attach, &attach)
}

/// An OPEN frame of an encoded message and what is said beside it: in protobuf, messages are joined by
/// writing one behind the other. Returns the frame, and where the message begins in it.
pub(in crate::tunnel) fn open_frame(payload: &[u8], beside: &v1::Open) -> (Bytes, usize) {
    let len = payload.len() + beside.encoded_len();
    let mut out = BytesMut::with_capacity(codec::FRAME_HEADER_BYTES_MAX + len);
    codec::put_header(&mut out, Kind::Open, len);
    let begin = out.len();
    out.extend_from_slice(payload);
    // There is room, and a BytesMut grows anyway, so encoding cannot run out of space.
    let _ = beside.encode(&mut out);
    (out.freeze(), begin)
}
