//! Watches the bytes of an HTTP/1.1 connection for what hyper mends in silence, and gives hyper's own refusals a body.
//!
//! hyper takes a bare line feed for a line's end, drops `Content-Length` beside `Transfer-Encoding`, and merges equal
//! lengths. Another server before or behind us could read such a head otherwise, which is what request smuggling lives on,
//! so a head like that is spoilt here: hyper then refuses it as malformed, in its place among pipelined requests, and
//! closes. To know where heads begin, the watcher follows the framing of bodies; what it lets pass has only one.
//!
//! Bytes are never held back. HTTP/2 and upgraded connections are not watched. Since it knows what a connection waits
//! for, the wire is also where patience ends: with a head that does not come, a connection that nobody uses, a client that does
//! not take its answer. A timer is set once and looked at when it fires, so that a request costs none.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::Sleep,
};
use vector_proto::refusal::{Code, Refusal};

use super::{
    record::{Outcome, Record},
    refuse,
    watch::{State, Watch},
};
use crate::telemetry::Telemetry;

/// How long a connection may be kept without a request. Longer than clients keep theirs, so that they close first.
pub(super) const IDLE: Duration = Duration::from_secs(75);

/// How long, and how much of, the rest of a refused request is read and thrown away, so that its client gets to read why.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 8 << 20;

/// What a client that speaks HTTP/2 from the first byte sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection of a client. See the module's head.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    /// The first bytes, which were read to find out the version.
    first: [u8; PREFACE.len()],
    first_range: (usize, usize),
    watch: Watch,
    telemetry: Telemetry,
    /// What takes the place of hyper's own refusal.
    refusal: Vec<u8>,
    refusal_sent: usize,
    /// A request of this connection is being answered.
    busy: Busy,
    patience: Patience,
    /// What is waited for, and since when.
    waits: Option<(Waits, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
    lingered: usize,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For the whole of a head.
    pub(super) head: Duration,
    /// To take anything of what is sent to it.
    pub(super) stall: Duration,
}

/// Whether a request of a connection is being answered.
pub(super) type Busy = Arc<AtomicBool>;

/// What a quiet connection waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Waits {
    /// The rest of this head.
    Head(u64),
    /// The head after this one.
    Idle(u64),
}

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    Http1,
    Http2,
}

impl<S: AsyncRead + Unpin> Wire<S> {
    pub(super) fn new(stream: S, patience: Patience, busy: Busy, telemetry: Telemetry) -> Self {
        Self {
            stream,
            first: [0; PREFACE.len()],
            first_range: (0, 0),
            watch: Watch::default(),
            telemetry,
            refusal: Vec::new(),
            refusal_sent: 0,
            busy,
            patience,
            waits: None,
            timer: None,
            stall: None,
            linger: None,
            lingered: 0,
        }
    }

    /// Reads until the version is certain; hyper gets those bytes again.
    ///
    /// Cancel safety: the connection is of no further use.
    pub(super) async fn version(&mut self) -> io::Result<Version> {
        let mut filled = 0;
        while filled < PREFACE.len() && self.first[..filled] == PREFACE[..filled] {
            match self.stream.read(&mut self.first[filled..]).await? {
                0 => break,
                read => filled += read,
            }
        }
        self.first_range = (0, filled);
        let http2 = filled == PREFACE.len() && self.first == *PREFACE;
        if http2 {
            self.watch.state = State::Off;
        }
        Ok(if http2 {
            Version::Http2
        } else {
            Version::Http1
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let (from, to) = this.first_range;
        if from < to {
            let take = (to - from).min(buffer.remaining());
            buffer.put_slice(&this.first[from..from + take]);
            this.first_range.0 += take;
            // The rest of the head is mostly there already. In a second read, hyper would want a buffer twice as large.
            if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buffer) {
                read?;
            }
        } else {
            match Pin::new(&mut this.stream).poll_read(cx, buffer) {
                Poll::Ready(read) => read?,
                Poll::Pending if this.is_out_of_patience(cx) => {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        if this.watch.state != State::Off {
            this.watch.see(&mut buffer.filled_mut()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S> Wire<S> {
    /// Nothing comes: has that gone on for too long?
    fn is_out_of_patience(&mut self, cx: &mut Context<'_>) -> bool {
        let (waits, limit) = match self.watch.state {
            State::Head => (Waits::Head(self.watch.heads), self.patience.head),
            State::Between if !self.busy.load(Ordering::Relaxed) => {
                (Waits::Idle(self.watch.heads), IDLE)
            }
            _ => {
                self.waits = None;
                return false;
            }
        };
        let since = match self.waits {
            Some((known, since)) if known == waits => since,
            _ => Instant::now(),
        };
        self.waits = Some((waits, since));
        let deadline = tokio::time::Instant::from_std(since + limit);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            if tokio::time::Instant::now() >= deadline {
                return true;
            }
            timer.as_mut().reset(deadline);
        }
        false
    }

    /// Passes on what came of a write, unless the client has taken nothing for too long.
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stall.is_some() {
                self.stall = None;
            }
            return written;
        }
        let stall = self
            .stall
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(self.patience.stall)));
        if stall.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }

    /// Whether these bytes are a refusal of hyper's own.
    fn is_hypers(&self, bytes: &[u8]) -> bool {
        is_bare_refusal(bytes) && !self.busy.load(Ordering::Relaxed)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refusal.is_empty() {
            if !this.is_hypers(bytes) {
                let written = Pin::new(&mut this.stream).poll_write(cx, bytes);
                return this.judge(cx, written);
            }
            let record = Record::new(this.telemetry.clone(), Instant::now());
            this.refusal = refusal(bytes, this.watch.spoilt, record);
        }
        let written = this.poll_refusal(cx);
        ready!(this.judge(cx, written))?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.judge(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.linger.is_none() {
            let shut = Pin::new(&mut this.stream).poll_shutdown(cx);
            ready!(this.judge(cx, shut))?;
            if !this.watch.is_unfinished() {
                return Poll::Ready(Ok(()));
            }
            this.linger = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        this.poll_linger(cx).map(Ok)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let first = pieces.iter().find(|piece| !piece.is_empty());
        match first {
            Some(first) if !this.refusal.is_empty() || this.is_hypers(first) => {
                Pin::new(this).poll_write(cx, first)
            }
            _ => {
                let written = Pin::new(&mut this.stream).poll_write_vectored(cx, pieces);
                this.judge(cx, written)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    fn poll_refusal(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.refusal_sent < self.refusal.len() {
            let rest = &self.refusal[self.refusal_sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.refusal_sent += sent,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Throws away what a refused client still sends. Closing at once would make its system drop our answer unread.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut bin = [0; 8 << 10];
        while self.lingered < LINGER_BYTES_MAX {
            let mut buffer = ReadBuf::new(&mut bin);
            match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingered += buffer.filled().len()
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => match &mut self.linger {
                    Some(timer) => return timer.as_mut().poll(cx),
                    None => return Poll::Ready(()),
                },
            }
        }
        Poll::Ready(())
    }
}

/// Whether hyper writes an answer of its own making: a 4xx without our `x-request-id` and without a body.
fn is_bare_refusal(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.")
        && bytes.get(9) == Some(&b'4')
        && bytes.ends_with(b"\r\n\r\n")
        && memchr::memmem::find(bytes, b"x-request-id").is_none()
        && memchr::memmem::find(bytes, b"content-length: 0").is_some()
}

/// The same refusal in OpenAI's shape, told as that of any other exchange is.
fn refusal(bytes: &[u8], spoilt: Option<&'static str>, mut record: Record) -> Vec<u8> {
    let (status, code, message) = match bytes.get(9..12) {
        Some(b"431") => (
            "431 Request Header Fields Too Large",
            Code::HeadTooLarge,
            "the request's head may have at most 100 headers and 32 KiB",
        ),
        Some(b"414") => (
            "414 URI Too Long",
            Code::HeadTooLarge,
            "the request's target is too long",
        ),
        Some(b"408") => (
            "408 Request Timeout",
            Code::BodyTooSlow,
            "the request's head came too slowly",
        ),
        _ => (
            "400 Bad Request",
            Code::BadHead,
            spoilt.unwrap_or("the request's head is malformed"),
        ),
    };
    let body = refuse::body(&Refusal::new(code, message));
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\nx-should-retry: false\r\nx-request-id: {}\r\ncontent-length: {}\r\n\r\n",
        record.id,
        body.len()
    );
    record.code = Some(code);
    record.status = status[..3].parse().unwrap_or_default();
    record.response_bytes = body.len() as u64;
    record.tell(Outcome::Refused);
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&body);
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_secs(10),
        stall: Duration::from_secs(60),
    };

    #[tokio::test]
    async fn a_client_that_takes_nothing_more_is_not_waited_for() {
        let (here, mut there) = tokio::io::duplex(1);
        let patience = Patience {
            stall: Duration::from_millis(20),
            ..PATIENCE
        };
        let mut wire = Wire::new(here, patience, Busy::default(), Telemetry::silent());
        let mut first = [0];
        let (written, read) = tokio::join!(wire.write_all(&[7; 9]), there.read_exact(&mut first));
        assert_eq!(read.unwrap(), 1);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_head_that_hyper_refuses_has_an_id_a_line_and_a_place_among_the_metrics() {
        for (status, code) in [
            ("400 Bad Request", "bad_request_head"),
            ("408 Request Timeout", "request_timeout"),
            ("414 URI Too Long", "headers_too_large"),
            ("431 Request Header Fields Too Large", "headers_too_large"),
        ] {
            let (telemetry, caught) = Telemetry::caught();
            let (here, mut there) = tokio::io::duplex(1 << 16);
            let mut wire = Wire::new(here, PATIENCE, Busy::default(), telemetry.clone());
            let hypers =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            wire.write_all(hypers.as_bytes()).await.unwrap();
            drop(wire);
            let mut answer = String::new();
            there.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}\r\n")) && answer.contains(code),
                "{answer}"
            );
            let lines = caught.lines();
            let [line] = &lines[..] else {
                panic!("{lines:?}")
            };
            let id = line["exchange"].as_str().unwrap();
            assert!(
                answer.contains(&format!("\r\nx-request-id: {id}\r\n")),
                "{answer}"
            );
            assert_eq!(
                (&line["role"], &line["outcome"]),
                (&"ingress".into(), &"refused".into())
            );
            assert_eq!(
                (&line["status"], &line["reason"]),
                (&status[..3].parse::<u16>().unwrap().into(), &code.into())
            );
            let counted =
                r#"vector_exchanges_total{role="ingress",operation="none",outcome="refused"} 1"#;
            assert!(telemetry.metrics().contains(counted));
        }
    }

    #[tokio::test]
    async fn the_version_is_found_and_nothing_is_lost() {
        for (sent, version) in [
            (&PREFACE[..], Version::Http2),
            (b"PRI / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"G", Version::Http1),
        ] {
            let mut wire = Wire::new(sent, PATIENCE, Busy::default(), Telemetry::silent());
            assert_eq!(wire.version().await.unwrap(), version);
            let mut got = Vec::new();
            wire.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, sent);
        }
    }
}
