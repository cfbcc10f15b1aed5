//! A thread for what must be punctual: a node whose every worker reads JSON or shakes hands still beats in time, and still
//! hears its peers.

use std::{io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Tasks that run before timers and sockets are looked at again: a handshake among them takes up to a millisecond.
const TASKS_AT_ONCE: u32 = 8;

/// How much the scheduler is asked to prefer it, where it may be asked.
const NICENESS: i32 = -10;

/// The thread and the runtime on it. It ends when this is dropped.
#[derive(Debug)]
pub struct PulseThread {
    handle: Handle,
    stop: DropGuard,
    ended: oneshot::Receiver<()>,
}

impl PulseThread {
    /// Starts it.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .event_interval(TASKS_AT_ONCE)
            .build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let (end, ended) = oneshot::channel();
        let stopped = stop.clone();
        let name = "vector-pulse".to_owned();
        thread::Builder::new().name(name).spawn(move || {
            // Only who is allowed to be preferred is: without, it is one thread among others.
            let _ = rustix::process::setpriority_process(None, NICENESS);
            runtime.block_on(stopped.cancelled());
            drop(runtime);
            // Whoever waits may have gone.
            let _ = end.send(());
        })?;
        Ok(Self {
            handle,
            stop: stop.drop_guard(),
            ended,
        })
    }

    /// Where its tasks are spawned.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends it, and returns once it has: what still ran there is dropped.
    pub async fn stop(self) {
        drop(self.stop);
        // Fails only if the thread is gone already.
        let _ = self.ended.await;
    }
}
