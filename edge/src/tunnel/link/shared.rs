//! What an exchange's two halves and its link share: its window, who is to be woken, and its fate.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use vector_proto::id::ExchangeId;

use super::Link;
use crate::tunnel::{LostReason, exchange::Outgoing};

/// Who wants to hear of an exchange.
#[derive(Debug)]
pub(in crate::tunnel) enum Target {
    /// An end of it is here.
    Here(Arc<Shared>),
    /// This node is a relay; the other side is that link.
    There(Weak<Link>),
}

/// What an exchange's two halves and its link share.
#[derive(Debug)]
pub(in crate::tunnel) struct Shared {
    pub(in crate::tunnel) exchange: ExchangeId,
    pub(in crate::tunnel) outgoing: Mutex<Outgoing>,
    /// The sequence is whole; once it is acknowledged the exchange is forgotten.
    pub(super) finished: AtomicBool,
    fate: AtomicU8,
    pub(in crate::tunnel) writer: AtomicWaker,
    pub(in crate::tunnel) reader: AtomicWaker,
    /// For the egress, whose provider call must stop: set once the exchange cannot go on.
    pub(in crate::tunnel) stop: Option<CancellationToken>,
}

impl Shared {
    pub(in crate::tunnel) fn new(
        exchange: ExchangeId,
        stop: Option<CancellationToken>,
    ) -> Arc<Self> {
        Arc::new(Self {
            exchange,
            outgoing: Mutex::default(),
            finished: AtomicBool::new(false),
            fate: AtomicU8::new(0),
            writer: AtomicWaker::new(),
            reader: AtomicWaker::new(),
            stop,
        })
    }

    /// Why the exchange cannot go on, if so.
    pub(in crate::tunnel) fn fate(&self) -> Option<LostReason> {
        match self.fate.load(Ordering::Acquire) {
            0 => None,
            1 => Some(LostReason::LinkDown),
            2 => Some(LostReason::Cancelled),
            _ => Some(LostReason::Gone),
        }
    }

    pub(super) fn seal(&self, reason: &LostReason) {
        let fate = match reason {
            LostReason::LinkDown => 1,
            LostReason::Cancelled => 2,
            _ => 3,
        };
        // The first reason stays.
        let _ = self
            .fate
            .compare_exchange(0, fate, Ordering::AcqRel, Ordering::Acquire);
        self.writer.wake();
        self.reader.wake();
        if let Some(stop) = &self.stop {
            stop.cancel();
        }
    }
}

/// Waits until an exchange's sender has room, or cannot go on.
pub(in crate::tunnel) fn poll_room(
    shared: &Shared,
    cx: &mut Context<'_>,
    wanted: impl Fn(&Outgoing) -> bool,
) -> Poll<Result<(), LostReason>> {
    shared.writer.register(cx.waker());
    if let Some(reason) = shared.fate() {
        return Poll::Ready(Err(reason));
    }
    if wanted(&shared.outgoing.lock()) {
        Poll::Ready(Ok(()))
    } else {
        Poll::Pending
    }
}
