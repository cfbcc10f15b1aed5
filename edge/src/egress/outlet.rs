//! Where an answer goes: to the ingress that waits for it, or into a recording that others read.

use std::sync::Arc;

use bytes::Bytes;
use vector_proto::{id::ExchangeId, tunnel::v1};

use super::kept::{End, Kept, Recording};
use crate::tunnel::{Answer, Lost, LostReason};

/// See the module's head.
#[derive(Debug)]
pub enum Outlet {
    /// One ingress, which is written to as fast as it reads.
    Tunnel(Answer),
    /// Whoever comes.
    Kept(Arc<Recording>),
}

impl Outlet {
    /// The same, unless the exchange's client has left meanwhile and may be back.
    pub fn unless_adopted(self, kept: &Kept, exchange: ExchangeId, account: &str) -> Self {
        let adopted = kept.adopted(exchange);
        match adopted.filter(|recording| *recording.account == *account) {
            Some(recording) => Self::Kept(recording),
            None => self,
        }
    }

    /// Refuses instead of answering.
    pub async fn refuse(self, refused: v1::Refused) {
        match self {
            Self::Tunnel(answer) => answer.refuse(refused).await,
            Self::Kept(recording) => recording.end(End::Refused(refused)),
        }
    }

    /// Begins the answer; leaves with the next flush.
    pub fn head(&mut self, head: v1::ResponseHead) {
        match self {
            Self::Tunnel(answer) => answer.head(&head),
            Self::Kept(recording) => recording.begin(head),
        }
    }

    /// Appends body bytes.
    ///
    /// Cancel safety: the bytes are taken in before the first wait.
    ///
    /// # Errors
    /// [`Lost`] when they can go nowhere.
    pub async fn data(&mut self, bytes: Bytes) -> Result<(), Lost> {
        match self {
            Self::Tunnel(answer) => answer.data(bytes).await,
            Self::Kept(recording) => recording.push(&bytes).await.map_err(|_| LOST),
        }
    }

    /// Sends what is held.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn flush(&mut self) -> Result<(), Lost> {
        match self {
            Self::Tunnel(answer) => answer.flush().await,
            Self::Kept(_) => Ok(()),
        }
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// As [`Self::data`].
    pub async fn finish(self, trailers: v1::Trailers) -> Result<(), Lost> {
        match self {
            Self::Tunnel(answer) => answer.finish(&trailers).await,
            Self::Kept(recording) => {
                recording.end(End::Whole(trailers));
                Ok(())
            }
        }
    }
}

/// The recording has ended before the answer.
const LOST: Lost = Lost {
    reason: LostReason::Reset,
    accepted: true,
};
