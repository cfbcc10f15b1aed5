//! One connection to the target, in two forms: waited for by a task, and by a thread of its own.
//!
//! `TCP_NODELAY` is set on both. A connection is used again as long as answers allow it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::wire::{Fault, Inbox, Reply};

/// How long one read or write of a thread may take; a stall beyond it is an error.
const STALL: Duration = Duration::from_secs(60);

/// A connection that tasks share a thread for.
#[derive(Debug)]
pub(crate) struct Line<S = tokio::net::TcpStream> {
    socket: S,
    inbox: Inbox,
}

impl Line {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self, Fault> {
        let socket = tokio::net::TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self::over(socket))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// Over a connection that is there already.
    pub(crate) fn over(socket: S) -> Self {
        Self {
            socket,
            inbox: Inbox::new(),
        }
    }

    pub(crate) async fn send(&mut self, request: &[u8]) -> Result<(), Fault> {
        self.socket.write_all(request).await?;
        // TLS keeps what the socket had no room for.
        Ok(self.socket.flush().await?)
    }

    /// Waits for the next bytes of the answer and hands them on.
    pub(crate) async fn more(
        &mut self,
        reply: &mut Reply,
        body: &mut impl FnMut(&[u8]),
    ) -> Result<(), Fault> {
        let count = self.socket.read(self.inbox.space()?).await?;
        self.inbox.read(count, reply, body)
    }

    /// One request and its whole answer. Tells whether the connection can be used again.
    ///
    /// Cancel safety: dropped half-way, the connection is of no use.
    pub(crate) async fn exchange(
        &mut self,
        request: &[u8],
        body: &mut impl FnMut(&[u8]),
    ) -> Result<bool, Fault> {
        self.send(request).await?;
        let mut reply = Reply::new();
        while !reply.done() {
            self.more(&mut reply, body).await?;
        }
        verdict(&reply)
    }
}

/// A connection that has a thread to itself, so that waking up costs nothing but the kernel's part.
#[derive(Debug)]
pub(crate) struct OwnLine {
    socket: std::net::TcpStream,
    inbox: Inbox,
}

impl OwnLine {
    pub(crate) fn open(address: SocketAddr) -> Result<Self, Fault> {
        let socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(STALL))?;
        socket.set_write_timeout(Some(STALL))?;
        Ok(Self {
            socket,
            inbox: Inbox::new(),
        })
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// Waits for the rest of the answer, or until `enough` says so.
    pub(crate) fn answer(&mut self, body: &mut impl FnMut(&[u8])) -> Result<bool, Fault> {
        let mut reply = Reply::new();
        while !reply.done() {
            self.more(&mut reply, body)?;
        }
        verdict(&reply)
    }

    pub(crate) fn more(
        &mut self,
        reply: &mut Reply,
        body: &mut impl FnMut(&[u8]),
    ) -> Result<(), Fault> {
        let count = self.socket.read(self.inbox.space()?)?;
        self.inbox.read(count, reply, body)
    }
}

fn verdict(reply: &Reply) -> Result<bool, Fault> {
    match reply.status() {
        200 => Ok(!reply.closes()),
        status => Err(Fault::Status(status)),
    }
}
