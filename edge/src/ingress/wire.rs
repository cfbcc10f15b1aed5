//! Watches the bytes of an HTTP/1.1 connection for what hyper mends in silence, and gives hyper's own refusals a body.
//!
//! hyper takes a bare line feed for a line's end, drops `Content-Length` beside `Transfer-Encoding`, and merges equal
//! lengths. Another server before or behind us could read such a head otherwise, which is what request smuggling lives on,
//! so a head like that is spoilt here: hyper then refuses it as malformed, in its place among pipelined requests, and
//! closes. To know where heads begin, the watcher follows the framing of bodies; what it lets pass has only one.
//!
//! Bytes are never held back. HTTP/2 and upgraded connections are not watched.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use vector_proto::refusal::{Code, Refusal};

use super::refuse;

/// What a client that speaks HTTP/2 from the first byte sends first.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What of a header line is looked at; the values that matter are shorter.
const LINE_BYTES: usize = 64;

/// A connection of a client. See the module's head.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    /// The first bytes, which were read to find out the version.
    first: [u8; PREFACE.len()],
    first_range: (usize, usize),
    watch: Watch,
    /// What takes the place of hyper's own refusal.
    refusal: Vec<u8>,
    refusal_sent: usize,
}

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Version {
    Http1,
    Http2,
}

impl<S: AsyncRead + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            first: [0; PREFACE.len()],
            first_range: (0, 0),
            watch: Watch::default(),
            refusal: Vec::new(),
            refusal_sent: 0,
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
        } else {
            ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        }
        if this.watch.state != State::Off {
            this.watch.see(&mut buffer.filled_mut()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.refusal.is_empty() {
            if !is_bare_refusal(bytes) {
                return Pin::new(&mut this.stream).poll_write(cx, bytes);
            }
            this.refusal = refusal(bytes, this.watch.spoilt);
        }
        ready!(this.poll_refusal(cx))?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = pieces.iter().find(|piece| !piece.is_empty());
        match first {
            Some(first) if !self.refusal.is_empty() || is_bare_refusal(first) => {
                self.poll_write(cx, first)
            }
            _ => Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
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
}

/// Whether hyper writes an answer of its own making: a 4xx without our `x-request-id` and without a body.
fn is_bare_refusal(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.")
        && bytes.get(9) == Some(&b'4')
        && bytes.ends_with(b"\r\n\r\n")
        && memchr::memmem::find(bytes, b"x-request-id").is_none()
        && memchr::memmem::find(bytes, b"content-length: 0").is_some()
}

/// The same refusal in OpenAI's shape.
fn refusal(bytes: &[u8], spoilt: Option<&'static str>) -> Vec<u8> {
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
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: application/json\r\nx-should-retry: false\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = head.into_bytes();
    answer.extend_from_slice(&body);
    answer
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum State {
    /// Before a request line; line ends may precede it.
    #[default]
    Between,
    Head,
    /// Bytes of a body of known length that are left.
    Body(u64),
    /// In the line with a chunk's size, which so far is this.
    ChunkSize(u64),
    /// Behind the size, before the line's end.
    ChunkExtension(u64),
    /// Bytes of a chunk that are left, its line end included.
    Chunk(u64),
    /// In the trailers of a chunked body; how many bytes the line has so far.
    Trailers(u32),
    /// Nothing is watched any more.
    Off,
}

/// Follows one connection's requests.
#[derive(Debug)]
struct Watch {
    state: State,
    /// The begin of the line in hand.
    line: [u8; LINE_BYTES],
    line_bytes: usize,
    /// The byte before was a `\r`.
    after_return: bool,
    first_line: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    spoilt: Option<&'static str>,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            state: State::Between,
            line: [0; LINE_BYTES],
            line_bytes: 0,
            after_return: false,
            first_line: true,
            length: None,
            chunked: false,
            upgrade: false,
            spoilt: None,
        }
    }
}

impl Watch {
    /// Looks at bytes on their way to hyper, and spoils a head that must not pass.
    fn see(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while at < bytes.len() {
            at = match self.state {
                State::Off => return,
                State::Between => match bytes[at] {
                    b'\r' | b'\n' => at + 1,
                    _ => {
                        self.begin();
                        at
                    }
                },
                State::Head => self.head(bytes, at),
                State::Body(left) => self.skip(left, bytes.len(), at, State::Body),
                State::Chunk(left) => self.skip(left, bytes.len(), at, State::Chunk),
                State::ChunkSize(_) | State::ChunkExtension(_) | State::Trailers(_) => {
                    self.chunk_line(bytes[at]);
                    at + 1
                }
            };
        }
    }

    fn begin(&mut self) {
        *self = Self {
            state: State::Head,
            ..Self::default()
        };
    }

    fn skip(&mut self, left: u64, end: usize, at: usize, state: impl Fn(u64) -> State) -> usize {
        let skipped = left.min((end - at) as u64);
        self.state = match (state(left), left - skipped) {
            (State::Chunk(_), 0) => State::ChunkSize(0),
            (_, 0) => State::Between,
            (_, left) => state(left),
        };
        // At most `end`, which is a `usize`.
        at + usize::try_from(skipped).unwrap_or(end)
    }

    /// One line of a head, or what of it is here. Returns where to go on.
    fn head(&mut self, bytes: &mut [u8], at: usize) -> usize {
        let found = memchr::memchr(b'\n', &bytes[at..]);
        let end = found.map_or(bytes.len(), |offset| at + offset);
        let room = &mut self.line[self.line_bytes..];
        let kept = room.len().min(end - at);
        room[..kept].copy_from_slice(&bytes[at..at + kept]);
        self.line_bytes += kept;
        if end > at {
            self.after_return = bytes[end - 1] == b'\r';
        }
        if found.is_none() {
            return end;
        }
        if !self.after_return {
            self.spoil("a line of the request's head ends in a bare line feed");
        }
        let line = self.line;
        let line = line[..self.line_bytes]
            .strip_suffix(b"\r")
            .unwrap_or(&line[..self.line_bytes]);
        if line.is_empty() {
            self.over();
        } else if !std::mem::take(&mut self.first_line) {
            self.field(line);
        }
        self.line_bytes = 0;
        self.after_return = false;
        if self.spoilt.is_some() {
            // No parser takes this for a line's end, nor for anything else that may stand in a head.
            bytes[end] = 0;
            self.state = State::Off;
        }
        end + 1
    }

    fn field(&mut self, line: &[u8]) {
        let Some(colon) = memchr::memchr(b':', line) else {
            return;
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value)
                .ok()
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            match length.and_then(|text| text.parse().ok()) {
                _ if self.length.is_some() => self.spoil("more than one Content-Length"),
                None => self.spoil("Content-Length is not a number"),
                length => self.length = length,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                self.spoil("the only transfer coding that is taken is a single `chunked`");
            }
            self.chunked = true;
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade = true;
        }
        if self.chunked && self.length.is_some() {
            self.spoil("Content-Length and Transfer-Encoding together");
        }
    }

    fn spoil(&mut self, why: &'static str) {
        self.spoilt = self.spoilt.or(Some(why));
    }

    /// A head is over: what follows it?
    fn over(&mut self) {
        self.state = match self.length {
            _ if self.upgrade => State::Off,
            _ if self.chunked => State::ChunkSize(0),
            Some(length) if length > 0 => State::Body(length),
            _ => State::Between,
        };
    }

    /// One byte of what stands between the chunks of a body. hyper judges it; here it is only followed.
    fn chunk_line(&mut self, byte: u8) {
        self.state = match (self.state, byte) {
            (State::ChunkSize(0) | State::ChunkExtension(0), b'\n') => State::Trailers(0),
            (State::ChunkSize(size) | State::ChunkExtension(size), b'\n') => {
                State::Chunk(size.saturating_add(2))
            }
            (State::ChunkSize(size), byte) => match char::from(byte).to_digit(16) {
                Some(digit) => {
                    State::ChunkSize(size.saturating_mul(16).saturating_add(digit.into()))
                }
                None => State::ChunkExtension(size),
            },
            (State::Trailers(0), b'\n') => State::Between,
            (State::Trailers(_), b'\n') => State::Trailers(0),
            (State::Trailers(bytes), b'\r') => State::Trailers(bytes),
            (State::Trailers(bytes), _) => State::Trailers(bytes.saturating_add(1)),
            (state, _) => state,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a connection's bytes in pieces of every size; tells why a head was spoilt.
    fn check(text: &str, expected: Option<&str>) {
        for size in 1..=text.len() {
            let mut watch = Watch::default();
            let mut out = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                let mut piece = piece.to_vec();
                watch.see(&mut piece);
                out.extend(piece);
            }
            let why = watch.spoilt;
            assert_eq!(
                why.is_some(),
                expected.is_some(),
                "pieces of {size}: {why:?} in {text:?}"
            );
            assert!(
                why.is_none_or(|why| why.contains(expected.unwrap())),
                "pieces of {size}: {why:?}"
            );
            assert_eq!(
                why.is_some(),
                out != text.as_bytes(),
                "spoilt and only then changed"
            );
        }
    }

    #[test]
    fn proper_requests_pass_one_after_the_other() {
        check(
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            None,
        );
        check(
            "POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\na\nb\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            None,
        );
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\na\nb\nc\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            None,
        );
        check("\r\n\r\nGET / HTTP/1.1\r\n\r\n", None);
        check(
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nany\nthing\nGET\n\n",
            None,
        );
    }

    #[test]
    fn smuggling_forms_are_spoilt() {
        check("GET / HTTP/1.1\nHost: a\r\n\r\n", Some("bare line feed"));
        check("GET / HTTP/1.1\r\nHost: a\r\n\n", Some("bare line feed"));
        check(
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            Some("more than one"),
        );
        check(
            "POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\nabc",
            Some("not a number"),
        );
        check(
            "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\nabc",
            Some("not a number"),
        );
        check(
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            Some("together"),
        );
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            Some("together"),
        );
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            Some("single"),
        );
        check(
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            Some("single"),
        );
        let second = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\nHost: a\r\n\r\n";
        check(second, Some("bare line feed"));
    }

    #[tokio::test]
    async fn the_version_is_found_and_nothing_is_lost() {
        for (sent, version) in [
            (&PREFACE[..], Version::Http2),
            (b"PRI / HTTP/1.1\r\n\r\n", Version::Http1),
            (b"G", Version::Http1),
        ] {
            let mut wire = Wire::new(sent);
            assert_eq!(wire.version().await.unwrap(), version);
            let mut got = Vec::new();
            wire.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, sent);
        }
    }
}
