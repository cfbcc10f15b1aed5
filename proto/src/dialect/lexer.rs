//! Walks a JSON object chunk by chunk without building anything.
//!
//! A chunk may end anywhere: inside a string, an escape or a character. Structure is checked at every depth
//! (brackets, commas, colons, words), digits of numbers and control characters inside strings are not.
//! The reader says for each key what it wants of the value; what it does not want is skipped, long strings at
//! memory speed. Memory is one fixed buffer for the key or value in hand.

use std::ops::Range;

use memchr::memchr2;

use super::text::{TEXT_BYTES_MAX, Text};

/// Deepest nesting that is followed: the bits of the stack that remembers object or array.
pub const DEPTH_MAX: usize = 64;

/// Why what was fed is no object, from its first byte on or for want of one; and why it is none yet.
pub(super) const NO_OBJECT: &str = "the body is not a JSON object";
pub(super) const EMPTY: &str = "the body is empty, a JSON object was expected";
pub(super) const CUT: &str = "the body ends in the middle of the JSON object";

/// Where a body stops being what it should be, and why.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("malformed body at byte {at}: {why}")]
pub struct Malformed {
    /// Offset in the body.
    pub at: u64,
    /// What was wrong, fit for the client to read.
    pub why: &'static str,
}

/// Bytes that a number is made of.
static NUMBER: [bool; 256] = {
    let mut part = [false; 256];
    let mut index = 0;
    while index < 13 {
        part[b"0123456789.-+"[index] as usize] = true;
        index += 1;
    }
    part[b'e' as usize] = true;
    part[b'E' as usize] = true;
    part
};

/// What the reader wants of the value that comes next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Want {
    /// Nothing.
    Skip,
    /// The text of a string or scalar, as [`Step::Text`]; containers are skipped.
    Text,
    /// The text, or going in, as the value's kind has it.
    TextOrEnter,
    /// The walk goes into an object or array; anything else is skipped.
    Enter,
    /// To be told where a string begins and ends.
    Mark,
}

/// What the walk came upon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// The chunk is used up.
    NeedMore,
    /// A key of an entered object; its text is in hand. Say what is wanted of its value.
    Key,
    /// An element of an entered array begins. Say what is wanted of it.
    Element,
    /// A wanted text is in hand, raw (strings: without quotes, escapes as they came).
    Text { string: bool, start: u64, end: u64 },
    /// A marked string's first byte comes next.
    MarkBegin,
    /// A marked string's closing quote comes next.
    MarkEnd,
    /// An object or array was entered.
    Opened,
    /// The entered one was left.
    Closed,
    /// The outermost object was closed. Walking on checks that only white space follows.
    End,
    /// Not JSON; the walk is over.
    Malformed(Malformed),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Start,
    FirstKey,
    Key,
    Colon,
    FirstValue,
    Value,
    String,
    Number,
    Word,
    After,
    Over,
    Dead,
}

/// The walker: feed it the same chunk until it says [`Step::NeedMore`], then the next.
#[derive(Debug)]
pub(super) struct Lexer {
    state: State,
    want: Want,
    /// The string in hand is a key.
    is_key: bool,
    /// The byte before was a backslash.
    escaped: bool,
    /// The string in hand was marked as begun; its end is owed.
    marked: bool,
    capturing: bool,
    depth: usize,
    /// How many containers, from the outermost, the walk has entered.
    entered: usize,
    /// One bit a level: object or array.
    objects: u64,
    /// What is left of `true`, `false` or `null`.
    word: &'static [u8],
    /// Offset of the chunk in hand.
    base: u64,
    start: u64,
    /// Where the captured text stands in the chunk in hand.
    held: Range<usize>,
    /// It began in an earlier chunk: that part of it is in `text`.
    spilled: bool,
    text: Text,
    broken: Malformed,
}

impl Lexer {
    pub(super) fn new() -> Self {
        Self {
            state: State::Start,
            want: Want::Skip,
            is_key: false,
            escaped: false,
            marked: false,
            capturing: false,
            depth: 0,
            entered: 0,
            objects: 0,
            word: b"",
            base: 0,
            start: 0,
            held: 0..0,
            spilled: false,
            text: Text::new(),
            broken: Malformed { at: 0, why: "" },
        }
    }

    /// Back to the start of another object.
    pub(super) fn reset(&mut self) {
        (self.state, self.want) = (State::Start, Want::Skip);
        (self.escaped, self.marked, self.capturing) = (false, false, false);
        (self.depth, self.entered, self.objects) = (0, 0, 0);
        self.base = 0;
    }

    /// Says what is wanted of the value after a [`Step::Key`] or [`Step::Element`]; unsaid means skip.
    pub(super) fn want(&mut self, want: Want) {
        self.want = want;
    }

    /// The raw text in hand after a [`Step::Key`] or [`Step::Text`] in `chunk`; `None` if it is too long.
    pub(super) fn raw<'a>(&'a self, chunk: &'a [u8]) -> Option<&'a [u8]> {
        match self.spilled {
            true => self.text.bytes(),
            false => chunk
                .get(self.held.clone())
                .filter(|held| held.len() <= TEXT_BYTES_MAX),
        }
    }

    /// Entered containers, the outermost being 1.
    pub(super) fn level(&self) -> usize {
        self.entered
    }

    /// Where the last key or value began; for a string, behind its quote.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// The outermost object was closed.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Ends the walk for a fault that the reader found.
    pub(super) fn refuse(&mut self, fault: Malformed) -> Malformed {
        self.broken = fault;
        self.state = State::Dead;
        fault
    }

    /// The body ends here: is the object whole?
    pub(super) fn finish(&self) -> Result<(), Malformed> {
        match self.state {
            State::Over => Ok(()),
            State::Dead => Err(self.broken),
            State::Start => Err(Malformed {
                at: self.base,
                why: EMPTY,
            }),
            _ => Err(Malformed {
                at: self.base,
                why: CUT,
            }),
        }
    }

    /// Walks on from `*at` in `chunk` to the next thing of interest.
    pub(super) fn step(&mut self, chunk: &[u8], at: &mut usize) -> Step {
        loop {
            let done = match self.state {
                State::String => self.string(chunk, at),
                State::Number => self.number(chunk, at),
                State::Word => self.word(chunk, at),
                State::Dead => Some(Step::Malformed(self.broken)),
                _ => self.structure(chunk, at),
            };
            if let Some(step) = done {
                return step;
            }
            if *at >= chunk.len() {
                if self.capturing {
                    self.spill(chunk);
                }
                self.base += chunk.len() as u64;
                *at = 0;
                return Step::NeedMore;
            }
        }
    }

    fn here(&self, at: usize) -> u64 {
        self.base + at as u64
    }

    #[cold]
    fn die(&mut self, at: usize, why: &'static str) -> Option<Step> {
        let at = self.here(at);
        Some(Step::Malformed(self.refuse(Malformed { at, why })))
    }

    /// Whether the container in hand is one that the reader went into.
    fn inside(&self) -> bool {
        self.entered == self.depth
    }

    /// A text that is wanted begins at `at`.
    fn hold(&mut self, at: usize) {
        self.held = at..at;
        self.spilled = false;
        self.capturing = true;
    }

    /// The chunk ends inside of a wanted text.
    #[cold]
    fn spill(&mut self, chunk: &[u8]) {
        if !std::mem::replace(&mut self.spilled, true) {
            self.text.clear();
        }
        self.text
            .push(chunk.get(self.held.start..).unwrap_or_default());
        self.held = 0..0;
    }

    /// The text in hand ends at `at`. True if it was wanted.
    fn held(&mut self, chunk: &[u8], at: usize) -> bool {
        if !std::mem::take(&mut self.capturing) {
            return false;
        }
        self.held.end = at;
        if self.spilled {
            self.text
                .push(chunk.get(self.held.clone()).unwrap_or_default());
        }
        true
    }

    fn string(&mut self, chunk: &[u8], at: &mut usize) -> Option<Step> {
        let mut end = *at;
        if self.escaped && end < chunk.len() {
            self.escaped = false;
            end += 1;
        }
        loop {
            match memchr2(b'"', b'\\', chunk.get(end..)?) {
                Some(found) if chunk[end + found] == b'"' => {
                    end += found;
                    break;
                }
                Some(found) if end + found + 1 < chunk.len() => end += found + 2,
                found => {
                    self.escaped |= found.is_some();
                    *at = chunk.len();
                    return None;
                }
            }
        }
        *at = end;
        if std::mem::take(&mut self.marked) {
            return Some(Step::MarkEnd);
        }
        *at += 1;
        let wanted = self.held(chunk, end);
        // What comes next is nearly always known; taking it here saves a turn of the loop.
        let next = chunk.get(*at);
        if self.is_key {
            let colon = next == Some(&b':');
            *at += usize::from(colon);
            self.state = if colon { State::Value } else { State::Colon };
            return wanted.then_some(Step::Key);
        }
        let comma = next == Some(&b',') && self.in_object();
        *at += usize::from(comma);
        self.state = if comma { State::Key } else { State::After };
        wanted.then(|| Step::Text {
            string: true,
            start: self.start,
            end: self.here(end),
        })
    }

    fn number(&mut self, chunk: &[u8], at: &mut usize) -> Option<Step> {
        let rest = chunk.get(*at..)?;
        let length = rest.iter().position(|byte| !NUMBER[usize::from(*byte)]);
        *at += length.unwrap_or(rest.len());
        length.and_then(|_| self.scalar_end(chunk, *at))
    }

    fn word(&mut self, chunk: &[u8], at: &mut usize) -> Option<Step> {
        while let Some((first, left)) = self.word.split_first() {
            let byte = *chunk.get(*at)?;
            if byte != *first {
                return self.die(*at, "a word other than true, false or null");
            }
            self.word = left;
            *at += 1;
        }
        self.scalar_end(chunk, *at)
    }

    fn scalar_end(&mut self, chunk: &[u8], at: usize) -> Option<Step> {
        self.state = State::After;
        self.held(chunk, at).then(|| Step::Text {
            string: false,
            start: self.start,
            end: self.here(at),
        })
    }

    /// One byte between the tokens.
    fn structure(&mut self, chunk: &[u8], at: &mut usize) -> Option<Step> {
        let mut byte = *chunk.get(*at)?;
        while matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
            *at += 1;
            byte = *chunk.get(*at)?;
        }
        match (self.state, byte) {
            (State::Start, b'{') => self.open(true, at),
            (State::Start, _) => self.die(*at, NO_OBJECT),
            (State::FirstKey, b'}') | (State::FirstValue, b']') => self.close(at),
            (State::FirstKey | State::Key, b'"') => {
                *at += 1;
                self.state = State::String;
                self.is_key = true;
                self.start = self.here(*at);
                if self.inside() {
                    self.hold(*at);
                }
                self.string(chunk, at)
            }
            (State::FirstKey | State::Key, _) => self.die(*at, "a key in quotes was expected"),
            (State::Colon, b':') => {
                *at += 1;
                self.state = State::Value;
                None
            }
            (State::Colon, _) => self.die(*at, "a colon was expected"),
            (State::After, b',') => {
                *at += 1;
                let object = self.in_object();
                self.state = if object { State::Key } else { State::Value };
                (!object && self.inside()).then_some(Step::Element)
            }
            (State::After, b'}') if self.in_object() => self.close(at),
            (State::After, b']') if !self.in_object() => self.close(at),
            (State::After, _) => self.die(*at, "a comma or the matching bracket was expected"),
            (State::Over, _) => self.die(*at, "more follows after the end of the JSON object"),
            (State::FirstValue, _) if self.inside() => {
                self.state = State::Value;
                Some(Step::Element)
            }
            _ => self.value(chunk, byte, at),
        }
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    fn value(&mut self, chunk: &[u8], byte: u8, at: &mut usize) -> Option<Step> {
        let want = std::mem::replace(&mut self.want, Want::Skip);
        self.start = self.here(*at);
        if matches!(want, Want::Text | Want::TextOrEnter) {
            self.hold(*at + usize::from(byte == b'"'));
        }
        self.word = match byte {
            b'{' | b'[' => {
                self.want = want;
                return self.open(byte == b'{', at);
            }
            b'"' => {
                *at += 1;
                self.start += 1;
                self.state = State::String;
                self.is_key = false;
                self.marked = want == Want::Mark;
                if self.marked {
                    return Some(Step::MarkBegin);
                }
                return self.string(chunk, at);
            }
            b'-' | b'0'..=b'9' => {
                self.state = State::Number;
                return self.number(chunk, at);
            }
            b't' => b"true",
            b'f' => b"false",
            b'n' => b"null",
            _ => return self.die(*at, "a value was expected"),
        };
        self.state = State::Word;
        None
    }

    fn open(&mut self, object: bool, at: &mut usize) -> Option<Step> {
        if self.depth == DEPTH_MAX {
            return self.die(*at, "nested deeper than 64");
        }
        let want = std::mem::replace(&mut self.want, Want::Skip);
        let enter = self.depth == 0 || matches!(want, Want::Enter | Want::TextOrEnter);
        *at += 1;
        self.capturing = false;
        self.depth += 1;
        self.objects = self.objects << 1 | u64::from(object);
        self.state = if object {
            State::FirstKey
        } else {
            State::FirstValue
        };
        if enter {
            self.entered = self.depth;
        }
        (enter && self.depth > 1).then_some(Step::Opened)
    }

    fn close(&mut self, at: &mut usize) -> Option<Step> {
        *at += 1;
        let left = self.inside();
        self.depth -= 1;
        self.objects >>= 1;
        self.entered = self.entered.min(self.depth);
        self.state = if self.depth == 0 {
            State::Over
        } else {
            State::After
        };
        match self.depth {
            0 => Some(Step::End),
            _ => left.then_some(Step::Closed),
        }
    }
}
