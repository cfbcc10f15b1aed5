//! Puts another model name into a request or an answer while it streams through.
//!
//! In requests the place is known from the peek, so [`Splice`] only counts bytes, and the change of length is
//! known before the first one leaves. In answers [`Rename`] finds the string value of `model`, at the top or inside
//! `response` or `session`, in a JSON body or in each event of a stream. Every other byte leaves as it came, in
//! slices of the chunk it came in, and nothing is held back.

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memmem;

use super::json::Span;
use super::lexer::{Lexer, Step, Want};
use super::sse::{Field, Lines, Piece};
use super::text::escape_into;

static MODEL_KEY: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new("\"model\""));

/// A name as the inside of a JSON string, escaped where needed. For [`Splice`] in JSON bodies; in multipart
/// bodies the name goes in as it is.
pub fn escaped(name: &str) -> Bytes {
    let mut out = Vec::with_capacity(name.len());
    escape_into(&mut out, name);
    out.into()
}

/// Replaces one span of a body by other bytes.
#[derive(Clone, Debug)]
pub struct Splice {
    span: Span,
    with: Bytes,
    /// Offset of the next byte to come.
    at: u64,
    put: bool,
}

impl Splice {
    /// Puts `with` in the place of `span`.
    pub fn new(span: Span, with: Bytes) -> Self {
        Self {
            span,
            with,
            at: 0,
            put: false,
        }
    }

    /// By how much the body grows (or shrinks), for its content length.
    pub fn growth(&self) -> i64 {
        self.with.len() as i64 - self.span.end.saturating_sub(self.span.start) as i64
    }

    /// The length of the body that leaves, for one of `length` bytes that comes.
    pub fn length(&self, length: u64) -> u64 {
        length.saturating_add_signed(self.growth())
    }

    /// Takes the next chunk and appends what leaves to `out`.
    pub fn feed(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) {
        let from = self.at;
        self.at += chunk.len() as u64;
        if self.at < self.span.start || (self.put && from >= self.span.end) {
            push(out, chunk);
            return;
        }
        let inside = |offset: u64| {
            usize::try_from(offset.saturating_sub(from))
                .unwrap_or(usize::MAX)
                .min(chunk.len())
        };
        let (before, after) = (inside(self.span.start), inside(self.span.end));
        if !self.put {
            push(out, chunk.slice(..before));
            push(out, self.with.clone());
            self.put = true;
        }
        push(out, chunk.slice(after..));
    }
}

fn push(out: &mut Vec<Bytes>, bytes: Bytes) {
    if !bytes.is_empty() {
        out.push(bytes);
    }
}

/// Replaces the model's name in an answer. See the module's head.
#[derive(Debug)]
pub struct Rename {
    /// The public name, escaped.
    name: Bytes,
    walk: Walk,
    lines: Option<Lines>,
    /// The old name is being left out.
    swallowing: bool,
}

impl Rename {
    /// For an answer that is one JSON object (also a WebSocket message).
    pub fn json(name: &str) -> Self {
        Self {
            name: escaped(name),
            walk: Walk::new(),
            lines: None,
            swallowing: false,
        }
    }

    /// For an answer that is a server-sent-event stream.
    pub fn sse(name: &str) -> Self {
        Self {
            lines: Some(Lines::new()),
            ..Self::json(name)
        }
    }

    /// Takes the next chunk and appends what leaves to `out`.
    pub fn feed(&mut self, chunk: Bytes, out: &mut Vec<Bytes>) {
        let mut cut = Cut {
            name: &self.name,
            from: 0,
            swallowing: self.swallowing,
            chunk: &chunk,
            out,
        };
        match &mut self.lines {
            None => self.walk.feed(&chunk, 0, &mut cut),
            Some(lines) => feed_lines(lines, &mut self.walk, &mut cut),
        }
        self.swallowing = cut.swallowing;
        let from = cut.from;
        match (self.swallowing, from) {
            (true, _) => {}
            (false, 0) => push(out, chunk),
            (false, _) => push(out, chunk.slice(from..)),
        }
    }
}

fn feed_lines(lines: &mut Lines, walk: &mut Walk, cut: &mut Cut<'_>) {
    let chunk: &[u8] = cut.chunk;
    let mut at = 0;
    while let Some(piece) = lines.next(chunk, &mut at) {
        match piece {
            Piece::Value {
                field: Field::Data,
                range,
                last,
            } => {
                let whole = last && walk.is_fresh() && ends_event(&chunk[range.end..]);
                if whole && MODEL_KEY.find(&chunk[range.clone()]).is_none() {
                    walk.over = true;
                }
                walk.feed(&chunk[range.clone()], range.start, cut);
            }
            Piece::Line {
                field: Field::Data,
                end,
            } => {
                // A string cannot go over a line's end: what was taken for the name was not one.
                if cut.swallowing {
                    cut.end(end - 1);
                    walk.over = true;
                }
                walk.feed(b"\n", end - 1, cut);
            }
            Piece::Event { .. } => walk.reset(),
            Piece::Value { .. } | Piece::Line { .. } => {}
        }
    }
}

/// Whether an event ends right here, as far as the chunk shows.
fn ends_event(rest: &[u8]) -> bool {
    rest.starts_with(b"\n\n") || rest.starts_with(b"\r\n\r\n")
}

/// What leaves of one chunk.
struct Cut<'c> {
    name: &'c Bytes,
    /// First byte that has not left yet.
    from: usize,
    swallowing: bool,
    chunk: &'c Bytes,
    out: &'c mut Vec<Bytes>,
}

impl Cut<'_> {
    fn begin(&mut self, at: usize) {
        push(self.out, self.chunk.slice(self.from..at));
        push(self.out, self.name.clone());
        self.swallowing = true;
    }

    fn end(&mut self, at: usize) {
        self.from = at;
        self.swallowing = false;
    }
}

/// Finds the model's name in one JSON object.
#[derive(Debug)]
struct Walk {
    lexer: Lexer,
    fresh: bool,
    /// Found, or not to be found any more.
    over: bool,
}

impl Walk {
    fn new() -> Self {
        Self {
            lexer: Lexer::new(),
            fresh: true,
            over: false,
        }
    }

    fn reset(&mut self) {
        self.lexer.reset();
        (self.fresh, self.over) = (true, false);
    }

    fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// `part` stands at `offset` of the chunk that is cut.
    fn feed(&mut self, part: &[u8], offset: usize, cut: &mut Cut<'_>) {
        self.fresh = false;
        let mut at = 0;
        while !self.over {
            match self.lexer.step(part, &mut at) {
                Step::NeedMore => return,
                Step::Key => {
                    let want = match (self.lexer.level(), self.lexer.raw(part)) {
                        (1 | 2, Some(b"model")) => Want::Mark,
                        (1, Some(b"response" | b"session")) => Want::Enter,
                        _ => Want::Skip,
                    };
                    self.lexer.want(want);
                }
                Step::MarkBegin => cut.begin(offset + at),
                Step::MarkEnd => {
                    cut.end(offset + at);
                    self.over = true;
                }
                Step::End | Step::Malformed(_) => self.over = true,
                Step::Element | Step::Text { .. } | Step::Opened | Step::Closed => {}
            }
        }
    }
}
