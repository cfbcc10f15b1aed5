//! When a reader mends what it reads: at once where nothing more can come for the first time, or after a short silence.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
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

    /// Mends if whatever is missing is lost or will come out of turn.
    pub(super) fn mend_if_last(&mut self) -> Result<(), LostReason> {
        match &self.mending {
            Some(mending) if mending.mender.has_last() && mending.mender.can_mend() => self.mend(),
            _ => Ok(()),
        }
    }

    /// Mends once nothing has come for a while.
    pub(super) fn poll_mend(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LostReason>> {
        let Some(mending) = self.mending.as_mut().filter(|it| it.mender.can_mend()) else {
            return Poll::Pending;
        };
        let silence = mending
            .silence
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(SILENCE)));
        match silence.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(self.mend()),
        }
    }

    fn mend(&mut self) -> Result<(), LostReason> {
        // There is one block, so there is nothing left to do afterwards.
        let Some(mut mending) = self.mending.take() else {
            return Ok(());
        };
        let Some(pieces) = mending.mender.mend() else {
            tracing::warn!(exchange = %self.end.exchange, peer = %self.end.far, "repair symbols do not fit what they are for");
            return Ok(());
        };
        self.end.tunnel.tally().mended.inc();
        for (offset, bytes) in pieces {
            self.take_in(offset, bytes)?;
        }
        Ok(())
    }
}
