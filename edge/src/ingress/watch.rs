//! Follows the framing of HTTP/1.1 requests, and spoils heads that two parsers could read differently.
//!
//! Pure, fed with bytes in pieces of any size. Where it spoils a head, or a line between the chunks of a body, it writes one
//! NUL for a line feed, which no parser takes. What it lets pass has one length and no other, so it never loses its place.

/// What of a header line is looked at; the values that matter are shorter.
const LINE_BYTES: usize = 64;

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum State {
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
pub(super) struct Watch {
    pub(super) state: State,
    /// The begin of the line in hand.
    line: [u8; LINE_BYTES],
    line_bytes: usize,
    /// The byte before was a `\r`.
    after_return: bool,
    first_line: bool,
    length: Option<u64>,
    chunked: bool,
    upgrade: bool,
    /// Why the last head was spoilt.
    pub(super) spoilt: Option<&'static str>,
    /// Heads that were begun.
    pub(super) heads: u64,
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
            heads: 0,
        }
    }
}

impl Watch {
    /// Looks at bytes on their way to hyper, and spoils a head that must not pass.
    pub(super) fn see(&mut self, bytes: &mut [u8]) {
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
                    self.chunk_line(&mut bytes[at]);
                    at + 1
                }
            };
        }
    }

    /// Whether more of a request was announced than has come, or what comes is no longer read.
    pub(super) const fn is_unfinished(&self) -> bool {
        match self.state {
            State::Between => false,
            State::Off => self.spoilt.is_some(),
            _ => true,
        }
    }

    fn begin(&mut self) {
        *self = Self {
            state: State::Head,
            heads: self.heads + 1,
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
        let matters = match self.line[..self.line_bytes] {
            [] | [b'\r'] => {
                self.over();
                false
            }
            // Content-Length, Transfer-Encoding, Upgrade: no other field is looked at.
            [first, ..] => matches!(first | 0x20, b'c' | b't' | b'u'),
        };
        if !std::mem::take(&mut self.first_line) && matters {
            let line = self.line;
            let line = &line[..self.line_bytes];
            self.field(line.strip_suffix(b"\r").unwrap_or(line));
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
        let framing = [&b"content-length"[..], b"transfer-encoding", b"upgrade"];
        if self.line_bytes == LINE_BYTES && framing.iter().any(|one| name.eq_ignore_ascii_case(one))
        {
            // What is behind the part that is kept here, hyper would read.
            self.spoil("a header that frames the request is too long");
        }
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

    /// One byte of what stands between the chunks of a body. hyper judges it, but for where a line ends: a bare line feed is
    /// one more byte of a trailer to it, to others a line's end, and perhaps the body's.
    fn chunk_line(&mut self, byte: &mut u8) {
        let after_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
        if after_return != (*byte == b'\n') {
            self.spoil("a line between the chunks of the body does not end in a carriage return and a line feed");
            *byte = 0;
            self.state = State::Off;
            return;
        }
        let byte = *byte;
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
        let zeros = "0".repeat(60);
        check(
            &format!("POST / HTTP/1.1\r\nContent-Length: {zeros}123\r\n\r\n"),
            Some("too long"),
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
        for coding in [
            "chunked, identity",
            "identity",
            "chunked;q=1",
            "\u{b}chunked",
            "",
        ] {
            check(
                &format!("POST / HTTP/1.1\r\nTransfer-Encoding: {coding}\r\n\r\n"),
                Some("single"),
            );
        }
        check(
            "POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
            Some("not a number"),
        );
    }

    /// hyper reads such a body on, and would be elsewhere than the watch.
    #[test]
    fn lines_between_chunks_end_in_one_way() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for body in [
            "5\nabcde\r\n0\r\n\r\n",
            "5;x=y\nabcde\r\n0\r\n\r\n",
            "5\rx\nabcde\r\n0\r\n\r\n",
            "5\r\nabcde\r\n0\n\r\n",
            "5\r\nabcde\r\n0\r\n\n",
            "0\r\nX: y\n\r\n",
            "0\r\nX: y\n\nPOST / HTTP/1.1\r\nContent-Length: 9999\r\n\r\nGET / HTTP/1.1\nA: b\r\n\r\n",
            "0\r\nX: y\rz\r\n\r\n",
            "0\r\n\rX: y\r\n\r\n",
        ] {
            check(&format!("{head}{body}"), Some("between the chunks"));
        }
        let ends = "5;x=y\r\na\nb\rc\r\n0;z\r\nX: y\r\nZ:\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        check(&format!("{head}{ends}"), None);
    }
}
