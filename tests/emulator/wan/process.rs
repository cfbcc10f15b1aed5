//! Other processes, held by descriptor: the kernel tells when one ends, and a number that was given away again is not
//! mistaken for it.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

/// One that ran when it was found, and may have ended since.
#[derive(Debug)]
pub(crate) struct Process(OwnedFd);

impl Process {
    /// `None` when there is none of that number.
    pub(crate) fn find(pid: Pid) -> Option<Self> {
        pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = pidfd_send_signal(&self.0, signal);
    }

    fn has_ended_within(&self, wait: Duration) -> bool {
        let mut watched = [PollFd::new(&self.0, PollFlags::IN)];
        // Fails for a wait of more than a lifetime only.
        let wait = wait.try_into().ok();
        !matches!(poll(&mut watched, wait.as_ref()), Ok(0) | Err(Errno::INTR))
    }
}

/// Waits until all of them have ended, or the time has come.
pub(crate) fn wait_ended(processes: &[Process], deadline: Instant) {
    for process in processes {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if process.has_ended_within(left) || left.is_zero() {
                break;
            }
        }
    }
}
