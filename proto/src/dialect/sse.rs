//! Cuts a server-sent-event stream into lines and events without touching it.
//!
//! [`Lines`] names the pieces of each chunk and copies nothing; a chunk may end anywhere, and `\n`, `\r\n` and `\r` all
//! end a line. [`Events`] stands on it and shows whole events; one larger than its limit is counted but not
//! shown. Both only look: the caller passes the chunks on as they came.

use std::ops::Range;

use memchr::memchr2;

/// What a line is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Field {
    /// `data`
    Data,
    /// `event`
    Event,
    /// Any other field, or a comment.
    Other,
}

/// A part of the stream, as a range of the chunk in hand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// Part of a line's value: after the colon and its one space, before the line's end. Never empty.
    Value {
        /// The line's field.
        field: Field,
        /// Where it stands in the chunk.
        range: Range<usize>,
        /// The line ends right behind it.
        last: bool,
    },
    /// A line ended. `end` is behind its first end-of-line byte.
    Line {
        /// The line's field.
        field: Field,
        /// Offset in the chunk.
        end: usize,
    },
    /// A blank line: an event ended. `end` is behind its first end-of-line byte.
    Event {
        /// Offset in the chunk.
        end: usize,
    },
}

/// Longest field name that matters: `event` with its colon.
const NAME_BYTES_MAX: usize = 6;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// In the field's name; how much of it was seen is `name_length`.
    Name,
    /// Right behind the colon: one space is not part of the value.
    Space,
    Value,
}

/// Cuts a stream into lines. See the module's head.
#[derive(Debug)]
pub struct Lines {
    state: State,
    field: Field,
    name: [u8; NAME_BYTES_MAX],
    name_length: usize,
    /// The byte before was a `\r`, so a `\n` now belongs to the same line end.
    after_return: bool,
    /// Bytes of a byte order mark seen at the stream's start; 3 and above: past it.
    mark: usize,
    between: bool,
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

impl Lines {
    /// A cutter at the start of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Name,
            field: Field::Other,
            name: [0; NAME_BYTES_MAX],
            name_length: 0,
            after_return: false,
            mark: 0,
            between: true,
        }
    }

    /// Whether the stream stands between two events (or at its start), so that an event of our own may go in here. Right
    /// after a `\r` it does too: a `\n` that follows is then one more blank line, which means nothing.
    pub fn between_events(&self) -> bool {
        self.between
    }

    /// The next piece of `chunk` from `*at` on; `None` when the chunk is used up.
    pub fn next(&mut self, chunk: &[u8], at: &mut usize) -> Option<Piece> {
        loop {
            let byte = *chunk.get(*at)?;
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                *at += 1;
                continue;
            }
            if self.mark < 3 && self.skip_mark(byte) {
                *at += 1;
                continue;
            }
            match self.state {
                State::Name => {
                    *at += 1;
                    if let Some(piece) = self.name(byte, *at) {
                        return Some(piece);
                    }
                }
                State::Space => {
                    *at += usize::from(byte == b' ');
                    self.state = State::Value;
                }
                State::Value => return Some(self.value(chunk, at)),
            }
        }
    }

    /// Whether this byte belongs to the byte order mark. Where it turns out to be none, its bytes were a field's name.
    fn skip_mark(&mut self, byte: u8) -> bool {
        let expected = byte == [0xef, 0xbb, 0xbf][self.mark];
        if !expected {
            self.name_length = self.mark;
        }
        self.mark = if expected { self.mark + 1 } else { 3 };
        expected
    }

    fn name(&mut self, byte: u8, end: usize) -> Option<Piece> {
        match byte {
            b'\n' | b'\r' => {
                self.after_return = byte == b'\r';
                let blank = self.name_length == 0;
                let field = self.named();
                self.name_length = 0;
                self.between = blank;
                return Some(if blank {
                    Piece::Event { end }
                } else {
                    Piece::Line { field, end }
                });
            }
            b':' => {
                self.field = self.named();
                self.state = State::Space;
            }
            _ => {
                if let Some(room) = self.name.get_mut(self.name_length) {
                    *room = byte;
                }
                self.name_length = self.name_length.saturating_add(1);
            }
        }
        self.between = false;
        None
    }

    fn named(&self) -> Field {
        match self.name.get(..self.name_length) {
            Some(b"data") => Field::Data,
            Some(b"event") => Field::Event,
            _ => Field::Other,
        }
    }

    fn value(&mut self, chunk: &[u8], at: &mut usize) -> Piece {
        let start = *at;
        let end = memchr2(b'\n', b'\r', &chunk[start..]).map(|found| start + found);
        *at = end.unwrap_or(chunk.len());
        match end {
            Some(end) if end == start => {
                self.after_return = chunk[end] == b'\r';
                self.state = State::Name;
                self.name_length = 0;
                *at += 1;
                Piece::Line {
                    field: self.field,
                    end: *at,
                }
            }
            _ => Piece::Value {
                field: self.field,
                range: start..*at,
                last: end.is_some(),
            },
        }
    }
}

/// One whole event, shown to [`Events::feed`]'s caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event<'a> {
    /// Value of the last `event` line; empty if there was none.
    pub name: &'a [u8],
    /// The `data` lines, joined by `\n`; `None` if the event was too large to be looked at.
    pub data: Option<&'a [u8]>,
    /// Where the event ends in the chunk in hand.
    pub end: usize,
}

/// Shows whole events of a stream. See the module's head.
#[derive(Debug)]
pub struct Events {
    lines: Lines,
    look_bytes_max: usize,
    name: Vec<u8>,
    data: Vec<u8>,
    data_lines: usize,
    /// The name in hand is whole; another `event` line begins anew.
    named: bool,
    too_large: bool,
}

impl Events {
    /// Events of up to `look_bytes_max` bytes of name and data are shown.
    pub fn new(look_bytes_max: usize) -> Self {
        let (name, data) = (Vec::new(), Vec::new());
        Self {
            lines: Lines::new(),
            look_bytes_max,
            name,
            data,
            data_lines: 0,
            named: false,
            too_large: false,
        }
    }

    /// See [`Lines::between_events`].
    pub fn between_events(&self) -> bool {
        self.lines.between_events()
    }

    /// Shows each event that ends in `chunk`, in order. Events without a data line are not shown, as in browsers.
    pub fn feed(&mut self, chunk: &[u8], mut show: impl FnMut(Event<'_>)) {
        let mut at = 0;
        while let Some(piece) = self.lines.next(chunk, &mut at) {
            match piece {
                Piece::Value { field, range, .. } => self.value(field, &chunk[range]),
                Piece::Line { field, .. } => self.line(field),
                Piece::Event { end } => {
                    if self.data_lines > 0 || self.too_large {
                        let joined = self.data.strip_suffix(b"\n").unwrap_or(&self.data);
                        show(Event {
                            name: &self.name,
                            data: (!self.too_large).then_some(joined),
                            end,
                        });
                    }
                    self.name.clear();
                    self.data.clear();
                    self.data_lines = 0;
                    self.named = false;
                    self.too_large = false;
                }
            }
        }
    }

    fn value(&mut self, field: Field, part: &[u8]) {
        let into = match field {
            Field::Data => &mut self.data,
            Field::Event => {
                if std::mem::take(&mut self.named) {
                    self.name.clear();
                }
                &mut self.name
            }
            Field::Other => return,
        };
        if into.len() + part.len() > self.look_bytes_max {
            self.too_large = true;
        } else if !self.too_large {
            into.extend_from_slice(part);
        }
    }

    fn line(&mut self, field: Field) {
        match field {
            Field::Data => {
                self.data_lines += 1;
                self.too_large |= self.data.len() > self.look_bytes_max;
                if !self.too_large {
                    self.data.push(b'\n');
                }
            }
            Field::Event => {
                // Still true: no value came since the line before, so this name is empty.
                if std::mem::replace(&mut self.named, true) {
                    self.name.clear();
                }
            }
            Field::Other => {}
        }
    }
}
