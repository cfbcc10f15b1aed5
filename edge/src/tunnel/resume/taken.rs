//! What the other end moves: it asks for the response elsewhere, or attaches a stream of its own.

use std::{sync::Arc, sync::atomic::Ordering, time::Instant};

use bytes::Bytes;
use vector_proto::{
    id::ExchangeId,
    tunnel::{
        codec::{self, Entry, GoneReason, Kind},
        v1,
    },
};

use super::carry::{Ask, Move, drive};
use crate::tunnel::{
    LostReason, Tunnel,
    end::{Attachment, End, Side},
    exchange::{INITIAL_CREDIT_BYTES, Ignored, REQUEST_CREDIT_BYTES},
    half::ReadStream,
    link::Link,
    transport::{Receiver, Sender},
};

impl Tunnel {
    /// The ingress asks for the response over `link`, from `response_next`; it can still send the request from `request_next`.
    pub(in crate::tunnel) fn resume(
        &self,
        end: &Arc<End>,
        link: &Arc<Link>,
        (number, response_next, request_next): (u32, u64, u64),
    ) {
        if end.side != Side::Egress || *link.peer != *end.far {
            tracing::warn!(exchange = %end.exchange, peer = %link.peer, "asked to resume by a stranger");
            return;
        }
        if request_next > end.received() {
            tracing::warn!(exchange = %end.exchange, peer = %link.peer, "asked to resume with a part of the request forgotten");
            link.say(gone(end.exchange));
            return end.seal(LostReason::Gone);
        }
        if !self.asked(end, link, number, response_next) {
            return;
        }
        let next = Move::next(&mut end.sending.lock(), link, Ask::Bytes);
        end.set_home(link);
        if let Some(next) = next {
            self.carry(end, next);
        }
    }

    /// Whether an ask to go on over `link` still counts, and is not obeyed already.
    fn asked(&self, end: &Arc<End>, link: &Arc<Link>, number: u32, next: u64) -> bool {
        let heard = {
            let mut sending = end.sending.lock();
            sending.attachments.hear_ask(number, Instant::now())
        };
        match heard {
            Ok(()) => {}
            Err(Ignored::Stale { .. }) => return false,
            Err(Ignored::Storm) => {
                tracing::warn!(exchange = %end.exchange, peer = %link.peer, "peer moves an exchange too often");
                return false;
            }
        }
        end.acked(next);
        if end.fate().is_some() {
            return false;
        }
        end.stranded.store(false, Ordering::Release);
        let mut sending = end.sending.lock();
        let there = sending
            .at
            .as_ref()
            .is_some_and(|at| Arc::ptr_eq(&at.link, link));
        let crossed = std::mem::take(&mut sending.unasked) && there;
        !crossed && !sending.is_over()
    }

    /// The other end, or a relay for it, attached a stream.
    pub(in crate::tunnel) async fn attached(
        &self,
        link: &Arc<Link>,
        attach: v1::Attach,
        (send, receive): (Sender, Receiver),
        rest: Bytes,
    ) {
        let Ok(exchange) = ExchangeId::try_from(&attach.exchange[..]) else {
            tracing::warn!(peer = %link.peer, "stream refused: no exchange is named");
            return;
        };
        let Some(end) = self.end(link.side, exchange) else {
            return link.say(gone(exchange));
        };
        if !may_attach(&end, link, &attach) {
            tracing::warn!(%exchange, peer = %link.peer, "stream refused: it belongs to somebody else's exchange");
            return;
        }
        if attach.attempt != end.attempt {
            tracing::debug!(%exchange, peer = %link.peer, attach.attempt, "stream refused: it belongs to another attempt");
            return link.say(gone(exchange));
        }
        let (epoch, egress) = (end.epoch(), end.side == Side::Egress);
        if egress && attach.egress_epoch != 0 && attach.egress_epoch != epoch {
            return link.say(gone(exchange));
        }
        let heard = {
            let mut sending = end.sending.lock();
            let attachments = &mut sending.attachments;
            attachments.hear_stream(attach.attach_seq, Instant::now())
        };
        if let Err(ignored) = heard {
            tracing::debug!(%exchange, peer = %link.peer, %ignored, "stream refused");
            return;
        }
        if !egress {
            // Only who took it can go on with it.
            let accepted = v1::Accepted {
                epoch: attach.egress_epoch,
                request_credit: INITIAL_CREDIT_BYTES,
                offset: attach.offset,
            };
            end.taken(link, &accepted);
        }
        if end.whole.load(Ordering::Acquire) {
            end.set_home(link);
        } else {
            end.read_also(ReadStream::attached(link, receive, attach.offset, rest));
        }
        link.say(Entry::Ack {
            exchange,
            offset: end.received(),
        });
        if egress && attach.resume {
            let asked = (attach.attach_seq, attach.response_next);
            self.answer_on(&end, link, send, asked).await;
        }
    }

    /// The same OPEN came again, over another path: the running exchange goes on there.
    pub(in crate::tunnel) async fn reopened(
        &self,
        end: &Arc<End>,
        link: &Arc<Link>,
        number: u32,
        (send, receive): (Sender, Receiver),
        rest: Bytes,
    ) {
        let heard = {
            let mut sending = end.sending.lock();
            sending.attachments.hear_stream(number, Instant::now())
        };
        if heard.is_err() {
            return;
        }
        if !end.whole.load(Ordering::Acquire) {
            end.read_also(ReadStream::attached(link, receive, 0, rest));
        }
        // Otherwise whoever takes the first one answers at any moment.
        if end.is_accepted() {
            self.answer_on(end, link, send, (number, 0)).await;
        }
    }

    /// Goes on with the response on a stream that the ingress opened.
    async fn answer_on(
        &self,
        end: &Arc<End>,
        link: &Arc<Link>,
        stream: Sender,
        (number, next): (u32, u64),
    ) {
        if !self.asked(end, link, number, next) {
            return;
        }
        end.set_home(link);
        let turn = {
            let mut sending = end.sending.lock();
            let turn = sending.detach();
            let link = Arc::clone(link);
            sending.install(Attachment { link, stream }, |offset| {
                let accepted = v1::Accepted {
                    epoch: end.epoch(),
                    request_credit: REQUEST_CREDIT_BYTES,
                    offset,
                };
                codec::message(Kind::Accepted, &accepted)
            });
            sending.moving = true;
            turn
        };
        end.mover.wake();
        drive(Arc::clone(end), turn).await;
    }
}

fn gone(exchange: ExchangeId) -> Entry {
    Entry::Gone {
        exchange,
        reason: GoneReason::Unknown as u64,
    }
}

/// Whether a peer may attach a stream to an exchange: its other end, or a relay that says it is for that one.
fn may_attach(end: &End, link: &Link, attach: &v1::Attach) -> bool {
    match end.side {
        Side::Ingress => *link.peer == *end.far || (link.is_relay() && *attach.egress == *end.far),
        Side::Egress if attach.ingress.is_empty() => *link.peer == *end.far,
        Side::Egress => link.is_relay() && attach.ingress == *end.far,
    }
}
