//! Streams within one process: what tests use, and the link of a node to itself.
//!
//! A stream is two bounded queues of chunks, so it pushes back as a network does. A queue that is
//! dropped ends the stream; frames tell a whole sequence from a cut one.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;

use super::Error;

/// Chunks in one direction of a stream before the writer waits.
const STREAM_CHUNKS_MAX: usize = 16;

/// Streams that wait to be accepted before the opener waits.
const STREAMS_WAITING_MAX: usize = 1024;

type Pair = (super::Sender, super::Receiver);

/// One end of a connection within the process.
#[derive(Clone, Debug)]
pub struct Connection {
    opened: mpsc::Sender<Pair>,
    arriving: Arc<Mutex<mpsc::Receiver<Pair>>>,
    gone: CancellationToken,
}

/// Two ends of one connection.
#[must_use]
pub fn pair() -> (Connection, Connection) {
    let (left_opened, right_arriving) = mpsc::channel(STREAMS_WAITING_MAX);
    let (right_opened, left_arriving) = mpsc::channel(STREAMS_WAITING_MAX);
    let gone = CancellationToken::new();
    let end = |opened, arriving| Connection {
        opened,
        arriving: Arc::new(Mutex::new(arriving)),
        gone: gone.clone(),
    };
    (
        end(left_opened, left_arriving),
        end(right_opened, right_arriving),
    )
}

impl Connection {
    pub(super) async fn open(&self) -> Result<Pair, Error> {
        if self.gone.is_cancelled() {
            return Err(lost());
        }
        let (here_out, there_in) = mpsc::channel(STREAM_CHUNKS_MAX);
        let (there_out, here_in) = mpsc::channel(STREAM_CHUNKS_MAX);
        let half = |out, into| {
            let sender = super::Sender::Memory(Sender {
                queue: Some(out),
                gone: self.gone.clone(),
            });
            (
                sender,
                super::Receiver::Memory(Receiver {
                    queue: into,
                    gone: self.gone.clone(),
                }),
            )
        };
        self.opened
            .send(half(there_out, there_in))
            .await
            .map_err(|_| lost())?;
        Ok(half(here_out, here_in))
    }

    pub(super) async fn accept(&self) -> Result<Pair, Error> {
        let mut arriving = self.arriving.lock().await;
        tokio::select! {
            () = self.gone.cancelled() => Err(lost()),
            pair = arriving.recv() => pair.ok_or_else(lost),
        }
    }

    pub(super) fn close(&self) {
        self.gone.cancel();
    }

    pub(super) async fn closed(&self) -> Error {
        self.gone.cancelled().await;
        lost()
    }
}

/// The sending half of a stream.
#[derive(Debug)]
pub struct Sender {
    queue: Option<mpsc::Sender<Bytes>>,
    gone: CancellationToken,
}

impl Sender {
    pub(super) async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), Error> {
        for chunk in chunks.iter_mut().filter(|chunk| !chunk.is_empty()) {
            if self.gone.is_cancelled() {
                return Err(lost());
            }
            let queue = self.queue.as_ref().ok_or(Error::Reset(0))?;
            let slot = queue.reserve().await.map_err(|_| Error::Reset(0))?;
            slot.send(std::mem::take(chunk));
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) {
        self.queue = None;
    }
}

/// The receiving half of a stream.
#[derive(Debug)]
pub struct Receiver {
    queue: mpsc::Receiver<Bytes>,
    gone: CancellationToken,
}

impl Receiver {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        if self.gone.is_cancelled() {
            return Poll::Ready(Err(lost()));
        }
        Poll::Ready(Ok(ready!(self.queue.poll_recv(cx))))
    }
}

fn lost() -> Error {
    Error::ConnectionLost("closed".into())
}
