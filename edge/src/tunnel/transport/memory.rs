//! Streams within one process: what tests use, and the link of a node to itself.
//!
//! A stream is two bounded queues of chunks in one allocation, so it is cheap to open and pushes
//! back as a network does. A half that is dropped ends its direction; frames tell a whole sequence
//! from a cut one.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc;
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
    arriving: Arc<tokio::sync::Mutex<mpsc::Receiver<Pair>>>,
    gone: Arc<Gone>,
}

/// Whether the connection is closed; asked with every chunk, so the answer is one load.
#[derive(Debug, Default)]
struct Gone {
    is: AtomicBool,
    told: CancellationToken,
}

impl Gone {
    fn check(&self) -> Result<(), Error> {
        if self.is.load(Ordering::Acquire) {
            Err(lost())
        } else {
            Ok(())
        }
    }
}

/// Two ends of one connection.
#[must_use]
pub fn pair() -> (Connection, Connection) {
    let (left_opened, right_arriving) = mpsc::channel(STREAMS_WAITING_MAX);
    let (right_opened, left_arriving) = mpsc::channel(STREAMS_WAITING_MAX);
    let gone = Arc::new(Gone::default());
    let end = |opened, arriving| Connection {
        opened,
        arriving: Arc::new(tokio::sync::Mutex::new(arriving)),
        gone: Arc::clone(&gone),
    };
    (
        end(left_opened, left_arriving),
        end(right_opened, right_arriving),
    )
}

impl Connection {
    pub(super) async fn open(&self) -> Result<Pair, Error> {
        self.gone.check()?;
        let stream = Arc::new(Stream {
            pipes: [Mutex::default(), Mutex::default()],
            gone: Arc::clone(&self.gone),
        });
        let half = |side: usize| {
            let sender = Sender {
                stream: Some(Arc::clone(&stream)),
                side,
            };
            let receiver = Receiver {
                stream: Arc::clone(&stream),
                side: 1 - side,
                scattered: 0,
            };
            (
                super::Sender::Memory(sender),
                super::Receiver::Memory(receiver),
            )
        };
        self.opened.send(half(1)).await.map_err(|_| lost())?;
        Ok(half(0))
    }

    pub(super) async fn accept(&self) -> Result<Pair, Error> {
        let mut arriving = self.arriving.lock().await;
        tokio::select! {
            () = self.gone.told.cancelled() => Err(lost()),
            pair = arriving.recv() => pair.ok_or_else(lost),
        }
    }

    pub(super) fn close(&self) {
        self.gone.is.store(true, Ordering::Release);
        self.gone.told.cancel();
    }

    pub(super) async fn closed(&self) -> Error {
        self.gone.told.cancelled().await;
        lost()
    }
}

/// Both directions; side 0 writes into pipe 0 and reads from pipe 1.
struct Stream {
    pipes: [Mutex<Pipe>; 2],
    gone: Arc<Gone>,
}

#[derive(Default)]
struct Pipe {
    chunks: VecDeque<Bytes>,
    /// The writer has said everything.
    ended: bool,
    /// Nobody reads any more.
    unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Stream {
    /// Changes a pipe, and wakes whom that concerns after the lock is free.
    fn change<T>(&self, side: usize, change: impl FnOnce(&mut Pipe) -> (T, Option<Waker>)) -> T {
        let (result, waker) = change(&mut self.pipes[side].lock());
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }
}

/// The sending half of a stream.
pub struct Sender {
    stream: Option<Arc<Stream>>,
    side: usize,
}

impl Sender {
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        chunks: &mut [Bytes],
    ) -> Poll<Result<(), Error>> {
        let stream = self.stream.as_ref().ok_or(Error::Reset(0))?;
        stream.gone.check()?;
        stream.change(self.side, |pipe| {
            if pipe.unread {
                return (Poll::Ready(Err(Error::Reset(0))), None);
            }
            for chunk in chunks.iter_mut().filter(|chunk| !chunk.is_empty()) {
                if pipe.chunks.len() == STREAM_CHUNKS_MAX {
                    pipe.writer = Some(cx.waker().clone());
                    return (Poll::Pending, pipe.reader.take());
                }
                pipe.chunks.push_back(std::mem::take(chunk));
            }
            (Poll::Ready(Ok(())), pipe.reader.take())
        })
    }

    pub(super) fn finish(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.change(self.side, |pipe| {
                pipe.ended = true;
                ((), pipe.reader.take())
            });
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.finish();
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender(memory)")
    }
}

/// The receiving half of a stream.
pub struct Receiver {
    stream: Arc<Stream>,
    side: usize,
    /// Bytes that were read as if they could come in any order.
    scattered: u64,
}

impl Receiver {
    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        self.stream.gone.check()?;
        self.stream
            .change(self.side, |pipe| match pipe.chunks.pop_front() {
                Some(chunk) => (Poll::Ready(Ok(Some(chunk))), pipe.writer.take()),
                None if pipe.ended => (Poll::Ready(Ok(None)), None),
                None => {
                    pipe.reader = Some(cx.waker().clone());
                    (Poll::Pending, None)
                }
            })
    }
}

impl Receiver {
    /// Within a process nothing is ever late.
    pub(super) fn poll_scattered(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(u64, Bytes)>, Error>> {
        let bytes = ready!(self.poll_read(cx))?;
        Poll::Ready(Ok(bytes.map(|bytes| {
            let at = self.scattered;
            self.scattered += bytes.len() as u64;
            (at, bytes)
        })))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stream.change(self.side, |pipe| {
            pipe.unread = true;
            pipe.chunks = VecDeque::new();
            ((), pipe.writer.take())
        });
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver(memory)")
    }
}

fn lost() -> Error {
    Error::ConnectionLost("closed".into())
}
