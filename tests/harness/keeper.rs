//! Takes a network down when whoever started it is gone, even by a signal.
//!
//! A small process of its own session holds the other end of a pipe. When the pipe closes, it runs `deploy/local/down`.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::{network, place};

/// Takes the network down when dropped, and waits for that.
#[derive(Debug)]
pub(crate) struct Keeper(Child);

impl Keeper {
    pub(crate) fn new(dir: &Path, base: u16) -> Self {
        let mut command = Command::new("setsid");
        command
            .args([
                "sh",
                "-c",
                "cat >/dev/null; \"$1\" --wipe; exec rmdir \"$2\"",
                "keeper",
            ])
            .arg(place::root().join("deploy/local/down"))
            .arg(dir.parent().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        network::settings(&mut command, dir, base);
        Self(command.spawn().unwrap())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It tells nobody; what it leaves shows in the process list.
        let _ = self.0.wait();
    }
}
