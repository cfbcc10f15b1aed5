//! The router's door: takes one request after the other from a Unix socket on a thread of its own, so that a slow
//! asker cannot delay packets, and has the router's thread do it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};
use vector_wan::words::{Ask, Said};

/// Asking is one line each way; whoever takes longer is cut off.
const ASKER_MAX: Duration = Duration::from_secs(2);

/// A longer request is none of ours.
const REQUEST_BYTES_MAX: u64 = 4096;

/// One request, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    pub(crate) answer: SyncSender<Said>,
}

/// The router's end.
#[derive(Debug)]
pub(crate) struct Door {
    requests: Receiver<Request>,
    /// Readable when a request waits.
    pub(crate) bell: Arc<OwnedFd>,
}

impl Door {
    /// Opens it, and serves it until the process ends.
    pub(crate) fn open(socket: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(socket).context("cannot open the router's door")?;
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        // One asker is served at a time.
        let (sender, requests) = sync_channel(1);
        let rope = Arc::clone(&bell);
        std::thread::Builder::new()
            .name("door".to_owned())
            .spawn(move || serve(&listener, &sender, &rope))?;
        Ok(Self { requests, bell })
    }

    /// The next request, if one waits.
    pub(crate) fn next(&self) -> Option<Request> {
        // Empty, there was nothing to take back.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        self.requests.try_recv().ok()
    }
}

fn serve(listener: &UnixListener, sender: &SyncSender<Request>, bell: &OwnedFd) {
    for stream in listener.incoming().flatten() {
        // An asker that leaves early asks again.
        let _ = answer(&stream, sender, bell);
    }
}

fn answer(stream: &UnixStream, sender: &SyncSender<Request>, bell: &OwnedFd) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(ASKER_MAX))?;
    stream.set_write_timeout(Some(ASKER_MAX))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX)).read_line(&mut line)?;
    let said = match serde_json::from_str(&line) {
        Err(error) => Said::Refused(format!("no request: {error}")),
        Ok(ask) => {
            let (answer, answered) = sync_channel(1);
            sender.send(Request { ask, answer })?;
            rustix::io::write(bell, &1_u64.to_ne_bytes())?;
            answered.recv()?
        }
    };
    let mut stream = stream;
    stream.write_all(format!("{}\n", serde_json::to_string(&said)?).as_bytes())?;
    Ok(())
}
