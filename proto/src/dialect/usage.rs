//! Reads what an answer consumed, what it made, and whether it ended, while it streams by.
//!
//! [`Reader`] walks a JSON body or the events of a stream and keeps numbers and ids, never the text. OpenAI's two
//! vocabularies (`prompt_tokens`, `input_tokens`) and their details become one [`Usage`]. Whether a stream was cut
//! is judged from its own end marks, since a connection that closes looks the same in both cases.

use std::sync::LazyLock;

use memchr::memmem;

use super::lexer::{Lexer, Step, Want};
use super::operation::IdPath;
use super::sse::{Field, Lines, Piece};
use super::text::{Text, unescape};
use told::Told;
use vocabulary::{Key, Number, Place, integer, is_last_event, key_of, slot, thousandths};

mod told;

mod vocabulary;

static USAGE_KEY: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new("\"usage\""));
static REASON_KEY: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new("\"finish_reason\""));

static CHOICES_KEY: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new("\"choices\":[{\"index\":"));
static ERROR_WORD: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new("error\""));

/// The line that ends a chat stream.
const DONE: &[u8] = b"[DONE]";

/// Deepest nesting that matters: root, `response`, `usage`, details; and root, `choices`, choice.
const LEVELS: usize = 5;

/// What one exchange consumed. Cached, audio and image tokens are part of `input_tokens`, reasoning, audio and image
/// tokens part of `output_tokens`, as OpenAI counts them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// All input tokens.
    pub input_tokens: u64,
    /// Input tokens read from the provider's cache.
    pub cached_input_tokens: u64,
    /// Input tokens written to the provider's cache.
    pub cache_write_tokens: u64,
    /// Input tokens that are audio.
    pub input_audio_tokens: u64,
    /// Input tokens that are images.
    pub input_image_tokens: u64,
    /// All output tokens.
    pub output_tokens: u64,
    /// Output tokens spent on reasoning.
    pub reasoning_tokens: u64,
    /// Output tokens that are audio.
    pub output_audio_tokens: u64,
    /// Output tokens that are images.
    pub output_image_tokens: u64,
    /// The provider's own sum, or input and output together where it gives none.
    pub total_tokens: u64,
    /// Length of the audio, where that is what is billed.
    pub audio_ms: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            cached_input_tokens: self
                .cached_input_tokens
                .saturating_add(other.cached_input_tokens),
            cache_write_tokens: self
                .cache_write_tokens
                .saturating_add(other.cache_write_tokens),
            input_audio_tokens: self
                .input_audio_tokens
                .saturating_add(other.input_audio_tokens),
            input_image_tokens: self
                .input_image_tokens
                .saturating_add(other.input_image_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            reasoning_tokens: self.reasoning_tokens.saturating_add(other.reasoning_tokens),
            output_audio_tokens: self
                .output_audio_tokens
                .saturating_add(other.output_audio_tokens),
            output_image_tokens: self
                .output_image_tokens
                .saturating_add(other.output_image_tokens),
            total_tokens: self.total_tokens.saturating_add(other.total_tokens),
            audio_ms: self.audio_ms.saturating_add(other.audio_ms),
        }
    }
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamEnd {
    /// With an end mark of its protocol, an error event included.
    Clean,
    /// Without one: something is missing.
    Cut,
}

/// Reads one answer. See the module's head.
#[derive(Debug)]
pub struct Reader {
    lines: Option<Lines>,
    lexer: Lexer,
    /// Nothing of the event in hand was read.
    fresh: bool,
    /// The event in hand needs no more reading.
    over: bool,
    places: [Place; LEVELS],
    key: Key,
    id_field: &'static [u8],
    id: Text,
    id_known: bool,
    told: Option<Box<Told>>,
    current: Usage,
    usage: Option<Usage>,
    /// How much of `[DONE]` the data of the event in hand matched; beyond it: something else.
    done_matched: usize,
    done: bool,
    failed: bool,
    choice: Choice,
    /// Choices begun and finished, a bit each; those above 63 share one.
    begun: u64,
    finished: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    index: u64,
    finished: bool,
}

impl Reader {
    /// For an answer that is one JSON object.
    pub fn json() -> Self {
        Self {
            lines: None,
            lexer: Lexer::new(),
            fresh: true,
            over: false,
            places: [Place::Root; LEVELS],
            key: Key::Other,
            id_field: b"id",
            id: Text::new(),
            id_known: false,
            told: None,
            current: Usage::default(),
            usage: None,
            done_matched: 0,
            done: false,
            failed: false,
            choice: Choice::default(),
            begun: 0,
            finished: 0,
        }
    }

    /// For an answer that is a server-sent-event stream.
    pub fn sse() -> Self {
        Self {
            lines: Some(Lines::new()),
            ..Self::json()
        }
    }

    /// Takes the object's id from another field than `id`, see [`super::operation::IdAt`].
    pub fn with_id_field(mut self, field: &'static str) -> Self {
        self.id_field = field.as_bytes();
        self
    }

    /// Looks for further ids as well, see [`super::operation::Operation::tells`].
    pub fn with_tells(mut self, paths: &'static [IdPath]) -> Self {
        self.told = (!paths.is_empty()).then(|| Box::new(Told::new(paths)));
        self
    }

    /// The further ids, each once, as they were found.
    pub fn told(&self) -> &[Box<str>] {
        self.told.as_deref().map_or(&[], Told::ids)
    }

    /// The last usage seen.
    pub fn usage(&self) -> Option<&Usage> {
        self.usage.as_ref()
    }

    /// Id of the object that the answer is or tells of: the first top-level `id`, or that of `response`.
    pub fn id(&self) -> Option<&str> {
        self.id_known.then(|| self.id.as_str()).flatten()
    }

    /// The answer said in its body that it failed: a top-level `error` that is not null, or `response.failed`.
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// Whether it was made for an event stream.
    pub const fn reads_events(&self) -> bool {
        self.lines.is_some()
    }

    /// Whether an event has begun and not ended.
    pub const fn is_in_event(&self) -> bool {
        self.lines.is_some() && !self.fresh
    }

    /// Judges the end, once all was fed. What is no JSON cannot be judged and counts as clean. A chat stream without `[DONE]` counts as clean if each of its choices has a finish
    /// reason.
    pub fn end(&self) -> StreamEnd {
        let whole = match self.lines {
            Some(_) => self.done || self.failed || (self.begun != 0 && self.begun == self.finished),
            None => self.over || self.lexer.is_over(),
        };
        if whole {
            StreamEnd::Clean
        } else {
            StreamEnd::Cut
        }
    }

    /// Reads the next chunk.
    pub fn feed(&mut self, chunk: &[u8]) {
        let Some(mut lines) = self.lines.take() else {
            return self.walk(chunk);
        };
        let mut at = 0;
        while let Some(piece) = lines.next(chunk, &mut at) {
            match piece {
                Piece::Value {
                    field: Field::Data,
                    range,
                    last,
                } => {
                    let part = &chunk[range.clone()];
                    self.match_done(part);
                    if last && self.fresh && self.is_dull(part, &chunk[range.end..]) {
                        self.over = true;
                    }
                    self.fresh = false;
                    self.walk(part);
                }
                Piece::Line {
                    field: Field::Data, ..
                } => {
                    self.done |= self.done_matched == DONE.len();
                    self.walk(b"\n");
                }
                Piece::Event { .. } => self.next_event(),
                Piece::Value { .. } | Piece::Line { .. } => {}
            }
        }
        self.lines = Some(lines);
    }

    fn next_event(&mut self) {
        self.lexer.reset();
        self.fresh = true;
        self.over = false;
        self.done_matched = 0;
    }

    fn match_done(&mut self, part: &[u8]) {
        let expected = DONE.get(self.done_matched..self.done_matched + part.len());
        self.done_matched = if expected == Some(part) {
            self.done_matched + part.len()
        } else {
            DONE.len() + 1
        };
    }

    /// Whether a whole event is a chat chunk like most: of a choice already known, with no usage, finish or error, so that
    /// walking it would teach nothing.
    fn is_dull(&self, data: &[u8], rest: &[u8]) -> bool {
        if !self.id_known
            || self.begun == 0
            || !(rest.starts_with(b"\n\n") || rest.starts_with(b"\r\n\r\n"))
        {
            return false;
        }
        let Some(choices) = CHOICES_KEY.find(data) else {
            return false;
        };
        let index = match &data[choices + CHOICES_KEY.needle().len()..] {
            [digit @ b'0'..=b'9', b',', ..] => u64::from(digit - b'0'),
            _ => return false,
        };
        let only_null = |key: &memmem::Finder<'_>| {
            let mut values = key
                .find_iter(data)
                .map(|at| data[at + key.needle().len()..].starts_with(b":null"));
            (values.next(), values.next())
        };
        self.begun & (1 << index) != 0
            && only_null(&REASON_KEY) == (Some(true), None)
            && matches!(only_null(&USAGE_KEY), (Some(true) | None, None))
            && ERROR_WORD.find(data).is_none()
    }

    fn walk(&mut self, part: &[u8]) {
        let mut at = 0;
        while !self.over {
            match self.lexer.step(part, &mut at) {
                Step::NeedMore => return,
                Step::Malformed(_) => self.over = true,
                Step::Key => self.key(part),
                Step::Element => {
                    self.key = match self.place() {
                        Place::Choices => Key::Enter(Place::Choice),
                        _ => Key::Other,
                    };
                    let level = self.lexer.level();
                    let tells = self.told.as_mut().is_some_and(|told| told.element(level));
                    self.ask(tells);
                }
                Step::Opened => self.opened(),
                Step::Closed => self.closed(),
                Step::Text { string, .. } => self.text(part, string),
                Step::End | Step::MarkBegin | Step::MarkEnd => {}
            }
        }
    }

    fn place(&self) -> Place {
        match self.lexer.level() {
            1 => Place::Root,
            level => self.places.get(level - 1).copied().unwrap_or(Place::Other),
        }
    }

    /// Says what is wanted of the value; `tells` if further ids may be in it.
    fn ask(&mut self, tells: bool) {
        self.lexer.want(match self.key {
            Key::Other if tells => Want::TextOrEnter,
            Key::Other => Want::Skip,
            Key::Enter(_) => Want::Enter,
            Key::Error => Want::TextOrEnter,
            _ => Want::Text,
        });
    }

    fn key(&mut self, part: &[u8]) {
        let (place, level) = (self.place(), self.lexer.level());
        let name = self.lexer.raw(part).unwrap_or_default();
        let told = self.told.as_mut();
        let tells = told.is_some_and(|told| told.key(level, name));
        self.key = match place {
            Place::Root | Place::Response if name == self.id_field => Key::Id,
            place => key_of(place, name),
        };
        self.ask(tells);
    }

    fn opened(&mut self) {
        let place = match self.key {
            Key::Enter(place) => place,
            Key::Error => {
                self.failed = true;
                Place::Other
            }
            _ => Place::Other,
        };
        if let Some(told) = &mut self.told {
            told.opened(self.lexer.level());
        }
        if let Some(slot) = self
            .lexer
            .level()
            .checked_sub(1)
            .and_then(|level| self.places.get_mut(level))
        {
            *slot = place;
        }
        match place {
            Place::Usage => self.current = Usage::default(),
            Place::Choice => self.choice = Choice::default(),
            _ => {}
        }
    }

    /// The container one level deeper than where the walk now stands was left.
    fn closed(&mut self) {
        match self.places.get(self.lexer.level()) {
            Some(Place::Usage) => {
                let mut usage = self.current;
                if usage.total_tokens == 0 {
                    usage.total_tokens = usage.input_tokens.saturating_add(usage.output_tokens);
                }
                self.usage = Some(usage);
            }
            Some(Place::Choice) => {
                let bit = 1 << self.choice.index.min(63);
                self.begun |= bit;
                self.finished |= if self.choice.finished { bit } else { 0 };
            }
            _ => {}
        }
    }

    fn text(&mut self, part: &[u8], string: bool) {
        let Some(raw) = self.lexer.raw(part) else {
            return;
        };
        if let Some(told) = self.told.as_mut().filter(|_| string) {
            told.text(self.lexer.level(), raw);
        }
        match self.key {
            Key::Id if string && !self.id_known => {
                self.id_known = unescape(raw, &mut self.id).is_some()
            }
            Key::Kind if string => {
                self.failed |= matches!(raw, b"response.failed" | b"error");
                self.done |= is_last_event(raw);
            }
            Key::Error => self.failed |= string,
            Key::FinishReason => self.choice.finished = string,
            Key::Index if !string => self.choice.index = integer(raw),
            Key::Number(number) if !string => {
                let value = if number == Number::Seconds {
                    thousandths(raw)
                } else {
                    integer(raw)
                };
                *slot(&mut self.current, number) = value;
            }
            _ => {}
        }
    }
}
