//! Reads HTTP/1.1 answers from the bytes as they come, with as little work as possible.
//!
//! No socket and no clock: `line` brings the bytes. It knows what an answer needs (status, the three ways to
//! end a body) and no more, so that the load generator never is what is measured.

use memchr::{memchr, memmem};

/// Bytes an answer's head, or one read of its body, may take.
const INBOX_BYTES: usize = 64 << 10;

/// Why an answer was no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    #[error("cut: the connection ended before the answer did")]
    Cut,
    #[error("not HTTP: {0}")]
    NotHttp(&'static str),
    #[error("status {0}")]
    Status(u16),
    #[error("incomplete: {0}")]
    Incomplete(&'static str),
}

impl Fault {
    /// The name under which it is counted; one for each kind, so that the counts stay few.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Io(error) => format!("connection: {}", error.kind()),
            Self::Cut | Self::NotHttp(_) | Self::Status(_) | Self::Incomplete(_) => {
                self.to_string()
            }
        }
    }
}

/// What is expected next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Head,
    Length(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    UntilClose,
    Done,
}

/// The answer to one request, as far as it has come.
#[derive(Debug)]
pub(crate) struct Reply {
    state: State,
    status: u16,
    close: bool,
    attempts: u64,
}

impl Reply {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Head,
            status: 0,
            close: false,
            attempts: 0,
        }
    }

    pub(crate) fn done(&self) -> bool {
        self.state == State::Done
    }

    /// 0 until the head is there.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// How often the network tried; 0 where nobody says.
    pub(crate) fn attempts(&self) -> u64 {
        self.attempts
    }

    /// Whether the connection is of no use after this answer.
    pub(crate) fn closes(&self) -> bool {
        self.close
    }

    /// The connection has ended: right for an answer without a length, wrong for any other.
    pub(crate) fn end(&mut self) -> Result<(), Fault> {
        if self.state == State::UntilClose {
            self.state = State::Done;
        }
        if self.done() { Ok(()) } else { Err(Fault::Cut) }
    }

    /// Takes what it can use of `input`, gives body bytes to `body`, and tells how much it took.
    pub(crate) fn take(
        &mut self,
        input: &[u8],
        body: &mut impl FnMut(&[u8]),
    ) -> Result<usize, Fault> {
        let mut at = 0;
        loop {
            let rest = input.get(at..).unwrap_or_default();
            let Some(used) = self.step(rest, body)? else {
                return Ok(at);
            };
            at += used;
        }
    }

    /// One step; nothing when more bytes are needed or the answer is done.
    fn step(&mut self, rest: &[u8], body: &mut impl FnMut(&[u8])) -> Result<Option<usize>, Fault> {
        match self.state {
            State::Done => Ok(None),
            State::Head => self.head(rest),
            State::Length(0) => Ok(self.go(State::Done, 0)),
            State::Chunk(0) => Ok(self.go(State::ChunkEnd, 0)),
            _ if rest.is_empty() => Ok(None),
            State::Length(left) => {
                let (part, left) = split(rest, left);
                body(part);
                Ok(self.go(State::Length(left), part.len()))
            }
            State::Chunk(left) => {
                let (part, left) = split(rest, left);
                body(part);
                Ok(self.go(State::Chunk(left), part.len()))
            }
            State::UntilClose => {
                body(rest);
                Ok(Some(rest.len()))
            }
            State::ChunkEnd => match rest {
                [b'\r', b'\n', ..] => Ok(self.go(State::ChunkSize, 2)),
                [b'\r'] => Ok(None),
                _ => Err(Fault::NotHttp("a chunk does not end where it said")),
            },
            State::ChunkSize => {
                let Some(line) = line(rest) else {
                    return Ok(None);
                };
                let next = match chunk_size(line)? {
                    0 => State::Trailers,
                    size => State::Chunk(size),
                };
                Ok(self.go(next, line.len() + 2))
            }
            State::Trailers => {
                let Some(line) = line(rest) else {
                    return Ok(None);
                };
                let next = if line.is_empty() {
                    State::Done
                } else {
                    State::Trailers
                };
                Ok(self.go(next, line.len() + 2))
            }
        }
    }

    /// Moves on; a step that took nothing still counts as one.
    fn go(&mut self, state: State, used: usize) -> Option<usize> {
        self.state = state;
        Some(used)
    }

    fn head(&mut self, rest: &[u8]) -> Result<Option<usize>, Fault> {
        let Some(end) = memmem::find(rest, b"\r\n\r\n") else {
            return if rest.len() < INBOX_BYTES {
                Ok(None)
            } else {
                Err(Fault::NotHttp("the head is too long"))
            };
        };
        let head = rest.get(..end).unwrap_or_default();
        self.status = status(head)?;
        if self.status < 200 {
            return Ok(Some(end + 4));
        }
        let mut next = State::UntilClose;
        self.close = false;
        for line in head.split(|byte| *byte == b'\n').skip(1) {
            if let Some(value) = header(line, b"content-length") {
                next = State::Length(number(value).ok_or(Fault::NotHttp("content-length"))?);
            } else if let Some(value) = header(line, b"transfer-encoding") {
                if value.eq_ignore_ascii_case(b"chunked") {
                    next = State::ChunkSize;
                }
            } else if let Some(value) = header(line, b"connection") {
                self.close = value.eq_ignore_ascii_case(b"close");
            } else if let Some(value) = header(line, b"x-vector-attempts") {
                self.attempts = number(value).unwrap_or(0);
            }
        }
        if self.status == 204 || self.status == 304 {
            next = State::Done;
        }
        self.close |= next == State::UntilClose;
        Ok(self.go(next, end + 4))
    }
}

/// What has come and was not taken yet.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    filled: usize,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        Self {
            bytes: vec![0; INBOX_BYTES].into_boxed_slice(),
            filled: 0,
        }
    }

    /// Where the next read goes.
    pub(crate) fn space(&mut self) -> Result<&mut [u8], Fault> {
        match self.bytes.get_mut(self.filled..) {
            Some(space) if !space.is_empty() => Ok(space),
            _ => Err(Fault::NotHttp("the head is too long")),
        }
    }

    /// `count` bytes were read into [`Self::space`]; hands on what the answer can use. 0 is the connection's end.
    pub(crate) fn read(
        &mut self,
        count: usize,
        reply: &mut Reply,
        body: &mut impl FnMut(&[u8]),
    ) -> Result<(), Fault> {
        if count == 0 {
            return reply.end();
        }
        self.filled += count;
        let used = reply.take(self.bytes.get(..self.filled).unwrap_or_default(), body)?;
        self.bytes.copy_within(used..self.filled, 0);
        self.filled -= used;
        Ok(())
    }
}

fn split(rest: &[u8], left: u64) -> (&[u8], u64) {
    let count = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
    (
        rest.get(..count).unwrap_or_default(),
        left - u64::try_from(count).unwrap_or(left),
    )
}

/// The first line, without its end.
fn line(rest: &[u8]) -> Option<&[u8]> {
    let end = memchr(b'\n', rest)?;
    rest.get(..end)?.strip_suffix(b"\r")
}

fn status(head: &[u8]) -> Result<u16, Fault> {
    let digits = head
        .strip_prefix(b"HTTP/1.1 ")
        .or_else(|| head.strip_prefix(b"HTTP/1.0 "))
        .and_then(|rest| rest.get(..3));
    digits
        .and_then(number)
        .and_then(|status| u16::try_from(status).ok())
        .ok_or(Fault::NotHttp("no status line"))
}

/// The value of `line` if it is the header of that lower-case name.
fn header<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if *line.get(name.len())? != b':' || !line.get(..name.len())?.eq_ignore_ascii_case(name) {
        return None;
    }
    Some(line.get(name.len() + 1..)?.trim_ascii())
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn chunk_size(line: &[u8]) -> Result<u64, Fault> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    std::str::from_utf8(digits.trim_ascii())
        .ok()
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(Fault::NotHttp("no chunk size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `answer` in pieces of `step` bytes.
    fn read(answer: &[u8], step: usize) -> Result<(u16, Vec<u8>), Fault> {
        let mut reply = Reply::new();
        let mut inbox = Inbox::new();
        let mut body = Vec::new();
        for piece in answer.chunks(step) {
            inbox.space()?[..piece.len()].copy_from_slice(piece);
            inbox.read(piece.len(), &mut reply, &mut |part: &[u8]| {
                body.extend_from_slice(part);
            })?;
        }
        if !reply.done() {
            reply.end()?;
        }
        Ok((reply.status(), body))
    }

    #[test]
    fn every_way_to_end_a_body_is_read_at_any_cut() {
        let answers: [(&[u8], u16, &[u8]); 5] = [
            (
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                200,
                b"hello",
            ),
            (
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nt: v\r\n\r\n",
                200,
                b"hello",
            ),
            (
                b"HTTP/1.1 502 Bad\r\nconnection: close\r\n\r\nhello",
                502,
                b"hello",
            ),
            (
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
                204,
                b"",
            ),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                200,
                b"",
            ),
        ];
        for (answer, status, body) in answers {
            for step in [1, 2, 7, 1000] {
                assert_eq!(read(answer, step).unwrap(), (status, body.to_vec()));
            }
        }
    }

    #[test]
    fn a_cut_or_broken_answer_is_a_fault() {
        let answers: [&[u8]; 4] = [
            b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhello\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ];
        for answer in answers {
            assert!(read(answer, 1000).is_err());
        }
    }
}
