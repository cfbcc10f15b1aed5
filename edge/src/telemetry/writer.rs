//! Carries log lines to the process's standard error without ever making a request wait.
//!
//! Lines gather in one buffer, which a thread of its own swaps and writes: one system call for
//! many lines. When whoever reads the log is slow, the buffer fills up to a bound, and lines above
//! it are dropped and counted.

use std::{
    io::{self, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

/// What may wait to be written: about 10,000 lines. As much again may be in the writer's hands.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// A buffer that grew above this is given back.
const KEPT_BYTES_MAX: usize = 256 << 10;

/// After a first line, how long others may join it.
const GATHER: Duration = Duration::from_millis(10);

/// At the end of the process, how long the last lines may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct Writer(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Something to do for the thread.
    work: Condvar,
    /// The thread has written the last line.
    done: Condvar,
    dropped: Counter,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    asleep: bool,
    closing: bool,
    closed: bool,
}

impl Writer {
    pub(super) fn start(out: Box<dyn Write + Send>, dropped: Counter) -> io::Result<Self> {
        let writer = Self::new(false, dropped);
        let own = writer.clone();
        thread::Builder::new()
            .name("log".into())
            .spawn(move || own.run(out))?;
        Ok(writer)
    }

    /// A writer without a thread, which keeps nothing.
    pub(super) fn nowhere() -> Self {
        Self::new(true, Counter::default())
    }

    fn new(closed: bool, dropped: Counter) -> Self {
        let state = State {
            closed,
            ..State::default()
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            done: Condvar::new(),
            dropped,
        }))
    }

    /// Takes whole lines.
    pub(super) fn append(&self, lines: &[u8]) {
        let mut state = self.0.state.lock();
        if state.closed || state.waiting.len() + lines.len() > WAITING_BYTES_MAX {
            drop(state);
            self.0.dropped.inc();
            return;
        }
        state.waiting.extend_from_slice(lines);
        if std::mem::take(&mut state.asleep) {
            self.0.work.notify_one();
        }
    }

    /// Waits until everything is written, but not for ever. What comes later is dropped.
    pub(super) fn flush(&self) {
        let mut state = self.0.state.lock();
        state.closing = true;
        self.0.work.notify_one();
        if !state.closed {
            self.0.done.wait_for(&mut state, FLUSH_TIMEOUT);
        }
    }

    fn run(&self, mut out: Box<dyn Write + Send>) {
        let mut lines = Vec::new();
        loop {
            let mut state = self.0.state.lock();
            while state.waiting.is_empty() && !state.closing {
                state.asleep = true;
                self.0.work.wait(&mut state);
            }
            if !state.closing {
                // Only `closing` wakes this early: nobody notifies while `asleep` is false.
                self.0.work.wait_for(&mut state, GATHER);
            }
            std::mem::swap(&mut state.waiting, &mut lines);
            let last = state.closing;
            drop(state);
            // Nobody is left to tell when the log itself cannot be written.
            let _unwritable = out.write_all(&lines).and_then(|()| out.flush());
            lines.clear();
            lines.shrink_to(KEPT_BYTES_MAX);
            let mut state = self.0.state.lock();
            if last && state.waiting.is_empty() {
                state.closed = true;
                self.0.done.notify_all();
                return;
            }
        }
    }
}

impl Write for Writer {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.append(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Slow {
        reached: mpsc::SyncSender<()>,
        go: mpsc::Receiver<()>,
        seen: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _gone = self.reached.try_send(());
            let _gone = self.go.recv();
            self.seen.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_hangs_costs_lines_and_no_time() {
        let (reached_sender, reached) = mpsc::sync_channel(1);
        let (go_sender, go) = mpsc::sync_channel(1);
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let slow = Slow {
            reached: reached_sender,
            go,
            seen: Arc::clone(&seen),
        };
        let dropped = Counter::default();
        let writer = Writer::start(Box::new(slow), dropped.clone()).unwrap();
        writer.append(b"first\n");
        reached.recv().unwrap();
        let line = [b'x'; 1024];
        for _ in 0..WAITING_BYTES_MAX / 1024 + 7 {
            writer.append(&line);
        }
        assert_eq!(dropped.get(), 7);
        drop(go_sender);
        writer.flush();
        let seen = seen.lock();
        assert!(seen.starts_with(b"first\n"));
        assert_eq!(seen.len(), 6 + WAITING_BYTES_MAX);
    }
}
