//! One HTTP/2 connection to a provider, shared by many exchanges and driven by a task of its own.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{
    client::conn::http2::{self, SendRequest},
    rt::Executor,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::task::TaskTracker;

use super::{dial, stream::Stream, upload::UploadBody};

/// How far a provider may run ahead in one answer, and in all of a connection: 100 answers x 1 MiB would be 100 MiB, so the
/// connection is held to 16.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

const _: () = assert!(STREAM_WINDOW_BYTES <= CONNECTION_WINDOW_BYTES);

/// Largest set of headers in an answer.
const HEADERS_BYTES_MAX: u32 = 64 << 10;

/// A connection is asked for a sign of life this often, idle or not, and given this long to show one.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_ANSWER: Duration = Duration::from_secs(10);

/// Exchanges at once on one connection until the provider has said how many it takes.
const STREAMS_FIRST: usize = 100;

/// Runs hyper's tasks where drain can wait for them.
#[derive(Clone, Debug)]
pub(super) struct Tracked(pub(super) TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// A connection that exchanges share.
#[derive(Debug)]
pub(super) struct H2 {
    sender: SendRequest<UploadBody>,
    in_flight: AtomicUsize,
    streams_max: Arc<AtomicUsize>,
}

impl H2 {
    /// Makes ready to speak over a fresh stream, and starts the task that drives it.
    pub(super) async fn begin(
        stream: Stream,
        tasks: &TaskTracker,
    ) -> Result<Arc<Self>, dial::Error> {
        let (sender, connection) = http2::Builder::new(Tracked(tasks.clone()))
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADERS_BYTES_MAX)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(stream))
            .await?;
        let streams_max = Arc::new(AtomicUsize::new(STREAMS_FIRST));
        let told = Arc::clone(&streams_max);
        tasks.spawn(async move {
            let mut connection = pin!(connection);
            // How it ends shows in each exchange's answer.
            let _ = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                if polled.is_pending() {
                    told.store(connection.current_max_send_streams(), Ordering::Relaxed);
                }
                polled
            })
            .await;
        });
        Ok(Arc::new(Self {
            sender,
            in_flight: AtomicUsize::new(0),
            streams_max,
        }))
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether one more exchange would start at once.
    pub(super) fn has_room(&self) -> bool {
        let max = self.streams_max.load(Ordering::Relaxed);
        self.in_flight() < max.min(STREAMS_FIRST)
    }

    /// Takes a place on the connection.
    pub(super) fn lease(self: &Arc<Self>) -> Lease {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Lease {
            sender: self.sender.clone(),
            of: Arc::clone(self),
        }
    }
}

/// A place on a shared connection. Dropped, it is free again.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) sender: SendRequest<UploadBody>,
    of: Arc<H2>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.of.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
