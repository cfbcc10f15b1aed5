//! Finds the field `model` in a `multipart/form-data` body, wherever it stands, and ids of objects, as the body streams by.
//!
//! File parts are skipped at memory speed and never kept; what is kept is one part's headers and one short
//! value. The result has the same shape as a JSON body's ([`Fields`]), so the road after it is one. A body without its
//! closing boundary is told from a whole one by [`Form::finish`]. A second part that could name the model is refused, behind
//! [`Form::settle`] too.

use memchr::memmem;

use super::json::{Fields, Malformed, Peek, Progress, Span};
use super::lexer;
use super::refers;
use super::text::Text;

/// Most bytes of headers that one part may have.
pub const PART_HEADER_BYTES_MAX: usize = 16 << 10;

/// Longest boundary; RFC 2046 allows 70, some clients use more.
pub const BOUNDARY_BYTES_MAX: usize = 200;

/// Most parts in one form. Each costs a header's parsing; real forms have under 100.
pub const PARTS_MAX: usize = 4096;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Before the first boundary.
    Preamble,
    /// Right behind a boundary; `-` or line end decides.
    Behind,
    /// One dash seen behind a boundary.
    Dash,
    Headers,
    Value(Kind),
    Over,
    Dead,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Other,
    Model,
    Stream,
    Session,
    /// An object's id.
    Names,
}

/// Reads one multipart body. See the module's head.
#[derive(Debug)]
pub struct Form {
    state: State,
    /// `\r\n--boundary`. A `\r` stands only at its start, so a failed match can only begin anew with one.
    delimiter: memmem::Finder<'static>,
    /// How much of the delimiter the last bytes matched.
    matched: usize,
    headers: Vec<u8>,
    parts: usize,
    base: u64,
    value_start: u64,
    value: Text,
    session: Option<Box<Peek>>,
    model_seen: bool,
    session_seen: bool,
    settled: bool,
    fields: Fields,
    broken: Malformed,
}

/// The boundary that a `Content-Type` header names; `None` if it is missing or out of bounds.
pub fn boundary(content_type: &str) -> Option<&str> {
    let (_, mut parameters) = content_type.split_once(';')?;
    loop {
        let (name, rest) = parameters.split_once('=')?;
        let (value, after) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => rest
                .split_once(';')
                .map_or((rest, ""), |(value, after)| (value, after)),
        };
        if name.trim().eq_ignore_ascii_case("boundary") {
            let value = value.trim();
            let legal = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
            let fits = (1..=BOUNDARY_BYTES_MAX).contains(&value.len()) && value.bytes().all(legal);
            return fits.then_some(value);
        }
        parameters = after.trim_start_matches([' ', ';']);
    }
}

impl Form {
    /// A reader at the first byte of a body whose `Content-Type` is given; `None` if it names no usable boundary.
    pub fn new(content_type: &str) -> Option<Self> {
        let boundary = boundary(content_type)?;
        let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
        Some(Self {
            state: State::Preamble,
            delimiter: memmem::Finder::new(&delimiter).into_owned(),
            // The first boundary may stand at the very start, without a line end before it.
            matched: 2,
            headers: Vec::new(),
            parts: 0,
            base: 0,
            value_start: 0,
            value: Text::new(),
            session: None,
            model_seen: false,
            session_seen: false,
            settled: false,
            fields: Fields::new(),
            broken: Malformed { at: 0, why: "" },
        })
    }

    /// What was found so far. Only `model`, `stream`, the model of `session` and ids of objects are looked for.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// As [`Peek::settle`].
    pub fn settle(&mut self) {
        self.settled = true;
        if self.fields.model_span.is_some() {
            (self.model_seen, self.session_seen) = (true, true);
        }
    }

    /// Reads the next chunk to its end.
    pub fn feed(&mut self, chunk: &[u8]) -> Progress {
        self.feed_until(chunk, |_| false)
    }

    /// Reads the next chunk until `enough` says that what is known suffices; it is asked after each part.
    pub fn feed_until(&mut self, chunk: &[u8], enough: impl Fn(&Fields) -> bool) -> Progress {
        let mut at = 0;
        while at < chunk.len() {
            let part_over = match self.state {
                State::Preamble | State::Value(_) => self.until_delimiter(chunk, &mut at),
                State::Behind | State::Dash => self.behind(chunk, &mut at),
                State::Headers => self.headers(chunk, &mut at),
                State::Over | State::Dead => break,
            };
            if part_over && self.state != State::Dead && enough(&self.fields) {
                return Progress::Enough;
            }
        }
        self.base += chunk.len() as u64;
        match self.state {
            State::Over => Progress::Done,
            State::Dead => Progress::Malformed(self.broken),
            _ => Progress::NeedMore,
        }
    }

    /// The body ends here: an error if its closing boundary is missing.
    pub fn finish(&self) -> Result<(), Malformed> {
        match self.state {
            State::Over => Ok(()),
            State::Dead => Err(self.broken),
            State::Preamble => Err(Malformed {
                at: self.base,
                why: "the boundary of Content-Type is not in the body",
            }),
            _ => Err(Malformed {
                at: self.base,
                why: "the multipart body ends before its closing boundary",
            }),
        }
    }

    fn die(&mut self, at: usize, why: &'static str) {
        self.broken = Malformed {
            at: self.base + at as u64,
            why,
        };
        self.state = State::Dead;
    }

    /// Reads up to and with the next delimiter. True if one was found.
    fn until_delimiter(&mut self, chunk: &[u8], at: &mut usize) -> bool {
        let length = self.delimiter.needle().len();
        while self.matched > 0 && self.matched < length {
            let Some(byte) = chunk.get(*at) else {
                return false;
            };
            if *byte != self.delimiter.needle()[self.matched] {
                self.give_back();
                break;
            }
            self.matched += 1;
            *at += 1;
        }
        if self.matched == length {
            return self.delimited(*at);
        }
        let rest = &chunk[*at..];
        if let Some(found) = self.delimiter.find(rest) {
            self.keep(&rest[..found]);
            *at += found + length;
            return self.delimited(*at);
        }
        let tail = rest.len().saturating_sub(length - 1);
        let partial = memchr::memrchr(b'\r', &rest[tail..]).map(|found| tail + found);
        let partial = partial.filter(|from| self.delimiter.needle().starts_with(&rest[*from..]));
        let plain = partial.unwrap_or(rest.len());
        self.keep(&rest[..plain]);
        self.matched = rest.len() - plain;
        *at = chunk.len();
        false
    }

    /// What looked like a delimiter was content.
    fn give_back(&mut self) {
        let matched = std::mem::take(&mut self.matched);
        let part = self.delimiter.needle()[..matched].to_vec();
        self.keep(&part);
    }

    fn keep(&mut self, content: &[u8]) {
        match self.state {
            State::Value(Kind::Model | Kind::Stream | Kind::Names) => self.value.push(content),
            State::Value(Kind::Session) => {
                if let Some(session) = &mut self.session {
                    session.feed(content);
                }
            }
            _ => {}
        }
    }

    /// A delimiter ends at `at`: the part before it is whole.
    fn delimited(&mut self, at: usize) -> bool {
        let length = self.delimiter.needle().len() as u64;
        let end = (self.base + at as u64).saturating_sub(length);
        self.matched = 0;
        let state = std::mem::replace(&mut self.state, State::Behind);
        let span = Span {
            start: self.value_start,
            end,
        };
        match state {
            State::Value(Kind::Model) => {
                let named = std::str::from_utf8(self.value.bytes().unwrap_or(b"\xff")).is_ok();
                if !named {
                    self.die(at, "`model` is longer than 256 bytes or not valid text");
                    return true;
                }
                self.fields.model_in_both = self.fields.model_span.is_some();
                self.fields.set_model(&self.value, span, false);
            }
            State::Value(Kind::Stream) => {
                self.fields.stream = match self.value.bytes() {
                    Some(b"true" | b"True" | b"1") => Some(true),
                    Some(b"false" | b"False" | b"0") => Some(false),
                    _ => None,
                };
            }
            State::Value(Kind::Session) => {
                if let Some(session) = self.session.take() {
                    match session.finish().map_err(|fault| fault.why) {
                        // What is no object names no model: a field of another operation that happens to be called so.
                        Ok(()) | Err(lexer::NO_OBJECT | lexer::EMPTY) => {}
                        Err(lexer::CUT) => {
                            self.die(at, "`session` ends in the middle of its JSON object");
                            return true;
                        }
                        // Also where it names its model twice.
                        Err(why) => {
                            self.die(at, why);
                            return true;
                        }
                    }
                    self.fields
                        .adopt_session(session.fields(), self.value_start);
                }
            }
            State::Value(Kind::Names) => self.fields.add_named(&self.value),
            _ => return false,
        }
        true
    }

    fn behind(&mut self, chunk: &[u8], at: &mut usize) -> bool {
        let Some(byte) = chunk.get(*at) else {
            return false;
        };
        *at += 1;
        match (self.state, byte) {
            (State::Behind, b'-') => self.state = State::Dash,
            (State::Dash, b'-') => self.state = State::Over,
            (State::Behind, b' ' | b'\t') => {}
            (State::Behind, b'\r') => {
                self.parts += 1;
                self.headers.clear();
                self.headers.push(b'\r');
                self.state = State::Headers;
                if self.parts > PARTS_MAX {
                    self.die(*at, "more than 4096 parts");
                }
            }
            _ => self.die(*at - 1, "a line end or `--` was expected behind a boundary"),
        }
        false
    }

    fn headers(&mut self, chunk: &[u8], at: &mut usize) -> bool {
        let known = self.headers.len();
        let room = PART_HEADER_BYTES_MAX + 4 - known;
        let rest = &chunk[*at..];
        let taken = &rest[..rest.len().min(room)];
        self.headers.extend_from_slice(taken);
        let from = known.saturating_sub(3);
        match memmem::find(&self.headers[from..], b"\r\n\r\n") {
            Some(found) => {
                let end = from + found + 4;
                *at += end - known;
                self.headers.truncate(end);
                self.begin(*at);
            }
            None if taken.len() < rest.len() || taken.len() == room => {
                self.die(*at, "a part's headers are larger than 16 KiB");
            }
            None => *at = chunk.len(),
        }
        false
    }

    /// A part's headers are whole, its value begins at `at`.
    fn begin(&mut self, at: usize) {
        let kind = match kind_of(&self.headers) {
            Kind::Stream | Kind::Names if self.settled => Kind::Other,
            kind => kind,
        };
        self.value_start = self.base + at as u64;
        self.value.clear();
        self.state = State::Value(kind);
        self.session = (kind == Kind::Session).then(Box::default);
        // The delimiter has a line end of its own, so nothing of it is matched yet.
        self.matched = 0;
        if kind == Kind::Model && std::mem::replace(&mut self.model_seen, true) {
            self.die(at, "`model` is given twice");
        }
        if kind == Kind::Session && std::mem::replace(&mut self.session_seen, true) {
            self.die(at, "`session` or its model is given twice");
        }
    }
}

/// Which field a part is, from its headers. A part with a file name is a file, whatever its name.
fn kind_of(headers: &[u8]) -> Kind {
    // What is no text, a file's name say, must not hide what else the part is.
    let headers = String::from_utf8_lossy(headers);
    let disposition = headers.split("\r\n").find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-disposition")
            .then_some(value)
    });
    let Some((_, mut parameters)) = disposition.and_then(|value| value.split_once(';')) else {
        return Kind::Other;
    };
    let mut kind = Kind::Other;
    while let Some((name, rest)) = parameters.split_once('=') {
        let (value, after) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(';').unwrap_or((rest, "")),
        };
        let name = name.trim();
        if name.eq_ignore_ascii_case("filename") || name.eq_ignore_ascii_case("filename*") {
            return Kind::Other;
        }
        if name.eq_ignore_ascii_case("name") {
            kind = match value.trim() {
                "model" => Kind::Model,
                "stream" => Kind::Stream,
                "session" => Kind::Session,
                name if refers::is_field(name) => Kind::Names,
                _ => Kind::Other,
            };
        }
        parameters = after.trim_start_matches([' ', '\t', ';']);
    }
    kind
}
