//! Who reads an endpoint's socket: a task of the runtime that the endpoint was made on, or, while that is busy, whoever
//! must know now what has come.
//!
//! quinn hands over the one future that reads a socket and gives every datagram to its connection. It is kept here
//! behind a lock, so that two may poll it: its own task, which sleeps until the socket has something, and
//! [`Reader::read_now`], which looks without waiting. Wake-ups always go to its own task, so none is lost. What goes the
//! ordinary way never changes threads for it.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use quinn::{
    AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};

type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub(super) struct Reader {
    /// Absent before it was handed over, and once it has ended.
    driver: Mutex<Option<Driver>>,
    handed_over: AtomicBool,
    /// Wakes the driver's own task, whoever polls.
    waker: Waker,
    task: Arc<Task>,
    /// Whoever holds the driver does not wait for the socket. Only changed by who does.
    looks_only: Arc<AtomicBool>,
}

#[derive(Default)]
struct Task(AtomicWaker);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake();
    }
}

impl Reader {
    pub(super) fn new() -> Arc<Self> {
        let task = Arc::new(Task::default());
        Arc::new(Self {
            driver: Mutex::default(),
            handed_over: AtomicBool::new(false),
            waker: Arc::clone(&task).into(),
            task,
            looks_only: Arc::default(),
        })
    }

    /// Gives the connections what lies in the socket's buffer, unless that is being done at this moment.
    pub(super) fn read_now(&self) {
        let Some(mut driver) = self.driver.try_lock() else {
            return;
        };
        self.looks_only.store(true, Ordering::Relaxed);
        let ended = self.poll(&mut driver).is_ready();
        self.looks_only.store(false, Ordering::Relaxed);
        drop(driver);
        if ended {
            self.task.0.wake();
        }
    }

    fn poll(&self, driver: &mut Option<Driver>) -> Poll<()> {
        let Some(future) = driver else {
            return Poll::Ready(());
        };
        let polled = future.as_mut().poll(&mut Context::from_waker(&self.waker));
        if polled.is_ready() {
            *driver = None;
        }
        polled
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

/// The driver's own task.
struct Drive(Arc<Reader>);

impl Future for Drive {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.task.0.register(cx.waker());
        self.0.poll(&mut self.0.driver.lock())
    }
}

impl Drop for Drive {
    /// The driver holds the endpoint, and the endpoint what holds the driver.
    fn drop(&mut self) {
        let driver = self.0.driver.lock().take();
        drop(driver);
    }
}

/// What quinn runs on: tokio, apart from the reader. Connections live on the runtime on which they are dialled or accepted.
#[derive(Debug)]
pub(super) struct Ground(pub(super) Arc<Reader>);

impl Runtime for Ground {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Driver) {
        // The first is the endpoint's, when it is made; the others are connections'.
        if self.0.handed_over.swap(true, Ordering::Relaxed) {
            TokioRuntime.spawn(future);
        } else {
            *self.0.driver.lock() = Some(future);
            TokioRuntime.spawn(Box::pin(Drive(Arc::clone(&self.0))));
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let bare = socket.try_clone()?;
        let wrapped = TokioRuntime.wrap_udp_socket(socket)?;
        Ok(Arc::new(Socket {
            wrapped,
            state: UdpSocketState::new((&bare).into())?,
            bare,
            looks_only: Arc::clone(&self.0.looks_only),
        }))
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A socket that can also be looked into: what tokio knows of its readiness may be old while its runtime is busy.
#[derive(Debug)]
struct Socket {
    wrapped: Arc<dyn AsyncUdpSocket>,
    bare: UdpSocket,
    state: UdpSocketState,
    looks_only: Arc<AtomicBool>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.wrapped).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.wrapped.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if !self.looks_only.load(Ordering::Relaxed) {
            return self.wrapped.poll_recv(cx, buffers, meta);
        }
        match self.state.recv((&self.bare).into(), buffers, meta) {
            // The driver's own task waits for it already, or will before it sleeps.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            read => Poll::Ready(read),
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.wrapped.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.wrapped.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.wrapped.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.wrapped.may_fragment()
    }
}
