//! When a reader mends what it reads: at once where nothing more can come for the first time, or after a short silence.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Sleep;
use vector_proto::tunnel::repair::Repair;

use super::ReceiveHalf;
use crate::tunnel::{LostReason, repair::Mender};

/// The last packet may be among those that are lost; it is not waited for longer than packets of one burst are apart.
const SILENCE: Duration = Duration::from_millis(3);

/// What a reader mends with.
#[derive(Debug)]
pub(super) struct Mending {
    mender: Mender,
    /// Runs since the last bytes came, while what is missing could be computed.
    silence: Option<Pin<Box<Sleep>>>,
}

impl Mending {
    pub(super) const fn with(mender: Mender) -> Self {
        Self {
            mender,
            silence: None,
        }
    }
}

impl ReceiveHalf {
    /// Bytes that came, before they are merged.
    pub(super) fn note(&mut self, offset: u64, bytes: &Bytes) {
        let Some(mending) = &mut self.mending else {
            return;
        };
        mending.silence = None;
        if !mending.mender.note(offset, bytes) {
            self.mending = None;
        }
    }

    /// Repair symbols that came.
    pub(super) fn repair(&mut self, repairs: &[Repair]) -> Result<(), LostReason> {
        if let Some(mending) = &mut self.mending {
            repairs
                .iter()
                .for_each(|repair| mending.mender.repair(repair));
        }
        self.mend_if_last()
    }

    /// Mends where whatever is missing is lost, or will come out of turn.
    pub(super) fn mend_if_last(&mut self) -> Result<(), LostReason> {
        self.mend(false)
    }

    /// Mends once nothing has come for a while.
    pub(super) fn poll_mend(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LostReason>> {
        let Some(mending) = &mut self.mending else {
            return Poll::Pending;
        };
        if mending.mender.ready(true).is_none() {
            return Poll::Pending;
        }
        let silence = mending
            .silence
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(SILENCE)));
        ready!(silence.as_mut().poll(cx));
        mending.silence = None;
        Poll::Ready(self.mend(true))
    }

    fn mend(&mut self, silent: bool) -> Result<(), LostReason> {
        while let Some(mending) = &mut self.mending
            && let Some(block) = mending.mender.ready(silent)
        {
            let Some(pieces) = mending.mender.mend(block) else {
                tracing::warn!(exchange = %self.end.exchange, peer = %self.end.far, "repair symbols do not fit what they are for");
                self.mending = None;
                break;
            };
            self.end.tunnel.tally().mended.inc();
            for (offset, bytes) in pieces {
                self.take_in(offset, bytes)?;
            }
        }
        Ok(())
    }
}
