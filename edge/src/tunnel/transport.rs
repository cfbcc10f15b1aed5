//! Connections and streams under the tunnel. Nothing above this room names quinn.
//!
//! [`Connection`], [`Sender`] and [`Receiver`] are either QUIC (`quic`) or their in-memory twin
//! (`memory`), which tests use and which carries exchanges between two roles of one process. An
//! enum rather than trait objects: an async call through a trait object allocates, and these are
//! called for every chunk of every answer. Another transport is another variant.

pub mod memory;

pub mod quic;

pub mod congestion;

use std::{
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

/// Why a stream or connection is of no further use.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// The connection is gone: closed, timed out or reset.
    #[error("connection lost: {0}")]
    ConnectionLost(String),
    /// The peer gave up on this stream alone.
    #[error("stream reset by the peer (code {0})")]
    Reset(u64),
    /// One side lets the other's certificate count no more.
    #[error("the certificate was revoked")]
    Revoked,
    /// Another stream cannot be opened now.
    #[error("no more streams")]
    Full,
}

/// One warm connection to a peer.
#[derive(Clone, Debug)]
pub enum Connection {
    /// Over the network.
    Quic(quic::Connection),
    /// Within the process.
    Memory(memory::Connection),
}

impl Connection {
    /// Opens a stream in both directions. Waits while the peer allows no more of them.
    ///
    /// Cancel safety: dropping the future opens nothing.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`].
    pub async fn open(&self) -> Result<(Sender, Receiver), Error> {
        match self {
            Self::Quic(connection) => connection.open().await,
            Self::Memory(connection) => connection.open().await,
        }
    }

    /// Opens a stream, if the peer takes another one now.
    ///
    /// # Errors
    /// [`Error::Full`] when it takes none, [`Error::ConnectionLost`].
    pub(super) async fn open_now(&self) -> Result<(Sender, Receiver), Error> {
        match self {
            Self::Quic(connection) => connection.open_now(),
            Self::Memory(connection) => connection.open().await,
        }
    }

    /// Lets the peer open more streams if it uses most of those that it may.
    pub(super) fn make_room(&self, used: u32) {
        match self {
            Self::Quic(connection) => connection.make_room(used),
            Self::Memory(_) => {}
        }
    }

    /// The next stream that the peer opens.
    ///
    /// Cancel safety: dropping the future loses no stream.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`].
    pub async fn accept(&self) -> Result<(Sender, Receiver), Error> {
        match self {
            Self::Quic(connection) => connection.accept().await,
            Self::Memory(connection) => connection.accept().await,
        }
    }

    /// Closes it and everything on it.
    pub fn close(&self, reason: &'static str) {
        match self {
            Self::Quic(connection) => connection.close(reason),
            Self::Memory(connection) => connection.close(),
        }
    }

    /// Returns once the connection is gone, with the reason.
    pub async fn closed(&self) -> Error {
        match self {
            Self::Quic(connection) => connection.closed().await,
            Self::Memory(connection) => connection.closed().await,
        }
    }

    /// Smoothed round trip.
    #[must_use]
    pub fn rtt(&self) -> Duration {
        match self {
            Self::Quic(connection) => connection.rtt(),
            Self::Memory(_) => Duration::ZERO,
        }
    }

    /// Datagrams of the network that came for it, whatever was in them.
    #[must_use]
    pub fn received(&self) -> u64 {
        match self {
            Self::Quic(connection) => connection.received(),
            Self::Memory(_) => 0,
        }
    }

    /// Bytes a second that the path was seen to carry towards the peer lately; 0 where nothing shows it.
    #[must_use]
    pub fn delivery(&self) -> u64 {
        match self {
            Self::Quic(connection) => connection.delivery(),
            Self::Memory(_) => 0,
        }
    }

    /// Packets sent, and those of them found lost.
    #[must_use]
    pub fn packets(&self) -> (u64, u64) {
        match self {
            Self::Quic(connection) => connection.packets(),
            Self::Memory(_) => (0, 0),
        }
    }
}

/// The sending half of a stream. Dropped unfinished, it ends where it is.
#[derive(Debug)]
pub enum Sender {
    /// Over the network.
    Quic(quic::Sender),
    /// Within the process.
    Memory(memory::Sender),
}

impl Sender {
    /// Hands over all `chunks` without copying them; they are empty afterwards.
    ///
    /// Cancel safety: what was handed over is gone from `chunks`, so calling again goes on.
    ///
    /// # Errors
    /// [`Error`] when the stream or its connection is gone.
    pub async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), Error> {
        std::future::poll_fn(|cx| self.poll_write(cx, chunks)).await
    }

    /// [`Self::write`] for use in a poll. What was handed over is gone from `chunks` while it is pending.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<(), Error>> {
        match self {
            Self::Quic(sender) => sender.poll_write(cx, chunks),
            Self::Memory(sender) => sender.poll_write(cx, chunks),
        }
    }

    /// Says that nothing follows.
    pub fn finish(&mut self) {
        match self {
            Self::Quic(sender) => sender.finish(),
            Self::Memory(sender) => sender.finish(),
        }
    }

    /// Takes back what has not left yet. The peer cannot read it to its end.
    pub fn reset(&mut self) {
        match self {
            Self::Quic(sender) => sender.reset(),
            Self::Memory(sender) => sender.finish(),
        }
    }
}

/// The receiving half of a stream. Dropping it tells the peer to stop.
#[derive(Debug)]
pub enum Receiver {
    /// Over the network.
    Quic(quic::Receiver),
    /// Within the process.
    Memory(memory::Receiver),
}

impl Receiver {
    /// The next bytes in order; `None` at the end.
    ///
    /// # Errors
    /// [`Error`] when the stream or its connection is gone.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        match self {
            Self::Quic(receiver) => receiver.poll_read(cx),
            Self::Memory(receiver) => receiver.poll_read(cx),
        }
    }

    /// The next bytes in whatever order they come, and how far they are from what was read in order before, which is
    /// possible no longer; `None` at the end. Nothing comes twice.
    ///
    /// # Errors
    /// As [`Self::poll_read`].
    pub(super) fn poll_scattered(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(u64, Bytes)>, Error>> {
        match self {
            Self::Quic(receiver) => receiver.poll_scattered(cx),
            Self::Memory(receiver) => receiver.poll_scattered(cx),
        }
    }

    /// [`Self::poll_read`] as a future. Cancel safety: dropping it loses no bytes.
    ///
    /// # Errors
    /// As [`Self::poll_read`].
    pub async fn read(&mut self) -> Result<Option<Bytes>, Error> {
        std::future::poll_fn(|cx| self.poll_read(cx)).await
    }
}
