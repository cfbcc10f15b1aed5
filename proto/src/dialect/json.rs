//! Reads the few fields of a JSON request body that the network acts on: those at its top, and ids of objects at any depth.
//!
//! [`Peek`] is fed the body chunk by chunk as it comes and allocates nothing but the ids that it finds. It may be left as soon as what
//! is wanted is known, or be fed to the end, where [`Peek::finish`] tells a whole body from a cut one. Keys
//! are compared with their escapes resolved, so no spelling of `model` slips past; a second `model` is refused, since
//! two parsers could disagree about which one counts. Who acts on what was found before the body is over, says so by
//! [`Peek::settle`] and goes on feeding: then that holds for the rest as well.

pub use super::lexer::{DEPTH_MAX, Malformed};
use super::lexer::{Lexer, Step, Want};
use super::refers;
pub use super::text::TEXT_BYTES_MAX;
use super::text::{Text, unescape};

/// Bytes of the body, counted from its first, the end not included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// How far the reading got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// The object is not over; feed the next chunk.
    NeedMore,
    /// The caller's question was answered before the object was over. Nothing more may be fed.
    Enough,
    /// The object is over. Feeding what follows checks that it is only white space.
    Done,
    /// The body is not what it should be.
    Malformed(Malformed),
}

/// What a request's body says about how to treat it. A field that is absent, null or of another type is `None`.
#[derive(Debug, PartialEq)]
pub struct Fields {
    model: Text,
    /// The string contents of `model` (of `session.model` if there is none) in the body, without the quotes.
    pub model_span: Option<Span>,
    /// `model_span` is inside `session`.
    pub model_in_session: bool,
    /// There is a `model` inside `session` and another one outside.
    pub model_in_both: bool,
    refers_to: Text,
    refers: bool,
    /// Ids of other objects that the body names, as they stand there, up to [`refers::IDS_MAX`]. Only [`Peek::deep`] and forms
    /// look for them.
    pub named: Vec<Box<str>>,
    /// There are more.
    pub named_more: bool,
    /// `stream`.
    pub stream: Option<bool>,
    /// The largest of `max_tokens`, `max_completion_tokens` and `max_output_tokens`.
    pub tokens_max: Option<u64>,
    /// `n`: how many answers are asked for.
    pub choices: Option<u64>,
    /// `stream_options.include_usage`.
    pub include_usage: Option<bool>,
    /// `stream_options` is there, as an object.
    pub stream_options: bool,
    /// `store`.
    pub store: Option<bool>,
    /// `background`.
    pub background: Option<bool>,
}

impl Fields {
    pub(super) fn new() -> Self {
        Self {
            model: Text::new(),
            model_span: None,
            model_in_session: false,
            model_in_both: false,
            refers_to: Text::new(),
            refers: false,
            named: Vec::new(),
            named_more: false,
            stream: None,
            tokens_max: None,
            choices: None,
            include_usage: None,
            stream_options: false,
            store: None,
            background: None,
        }
    }

    pub(super) fn set_model(&mut self, name: &Text, span: Span, in_session: bool) {
        self.model = name.clone();
        self.model_span = Some(span);
        self.model_in_session = in_session;
    }

    /// An object's id was found.
    pub(super) fn add_named(&mut self, id: &Text) {
        let Some(id) = id.as_str().filter(|id| refers::is_id(id)) else {
            return;
        };
        if self.named.len() < refers::IDS_MAX {
            self.named.push(id.into());
        } else {
            self.named_more = true;
        }
    }

    /// Takes over the model that a session's own JSON names, found `offset` bytes into the body.
    pub(super) fn adopt_session(&mut self, session: &Self, offset: u64) {
        self.model_in_both |= session.model_span.is_some() && self.model_span.is_some();
        if let (Some(span), None) = (session.model_span, self.model_span) {
            let span = Span {
                start: span.start + offset,
                end: span.end + offset,
            };
            self.set_model(&session.model, span, true);
        }
    }

    /// The model named, escapes resolved.
    pub fn model(&self) -> Option<&str> {
        self.model_span.and_then(|_| self.model.as_str())
    }

    /// Id of an existing object that the body leans on, so that the call must go where that object is: the first of
    /// `previous_response_id`, `conversation` (or its `id`), `input_file_id`, `training_file`, `assistant_id`, `file_id`.
    pub fn refers_to(&self) -> Option<&str> {
        self.refers.then(|| self.refers_to.as_str()).flatten()
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Key {
    /// Its value is skipped.
    Other,
    /// Ids may be inside.
    Deep,
    Model,
    Stream,
    TokensMax,
    Choices,
    StreamOptions,
    IncludeUsage,
    Store,
    Background,
    Session,
    SessionModel,
    Conversation,
    Refers,
    /// Its strings are ids.
    Names,
    /// The `id` inside is one.
    Owner,
}

/// Reads the fields of one JSON body. See the module's head.
#[derive(Debug)]
pub struct Peek {
    lexer: Lexer,
    /// Looks for ids at any depth.
    deep: bool,
    key: Key,
    /// What the container on the second level is.
    parent: Key,
    /// Which of the containers that were entered are [`Key::Names`] and [`Key::Owner`], the last bit being the innermost's.
    names: u64,
    owners: u64,
    model_seen: bool,
    session_model_seen: bool,
    scratch: Text,
    fields: Fields,
}

impl Default for Peek {
    fn default() -> Self {
        Self::new()
    }
}

impl Peek {
    /// A reader at the first byte of a body.
    pub fn new() -> Self {
        Self {
            lexer: Lexer::new(),
            deep: false,
            key: Key::Other,
            parent: Key::Other,
            names: 0,
            owners: 0,
            model_seen: false,
            session_model_seen: false,
            scratch: Text::new(),
            fields: Fields::new(),
        }
    }

    /// A reader that looks for the ids of objects as well, at any depth.
    pub fn deep() -> Self {
        Self {
            deep: true,
            ..Self::new()
        }
    }

    /// What was found so far.
    pub fn fields(&self) -> &Fields {
        &self.fields
    }

    /// What was found so far is acted on: in what is fed from now on, nothing is looked for but another `model`, which is
    /// refused wherever it could be read in place of the first.
    pub fn settle(&mut self) {
        self.deep = false;
        if self.fields.model_span.is_some() {
            (self.model_seen, self.session_model_seen) = (true, true);
        }
    }

    /// Reads the next chunk to its end.
    pub fn feed(&mut self, chunk: &[u8]) -> Progress {
        self.feed_until(chunk, |_| false)
    }

    /// Reads the next chunk until `enough` says that what is known suffices; it is asked after each field found.
    pub fn feed_until(&mut self, chunk: &[u8], enough: impl Fn(&Fields) -> bool) -> Progress {
        let mut at = 0;
        loop {
            let step = self.lexer.step(chunk, &mut at);
            match step {
                Step::NeedMore if self.lexer.is_over() => return Progress::Done,
                Step::NeedMore => return Progress::NeedMore,
                Step::Malformed(why) => return Progress::Malformed(why),
                Step::Key => {
                    if let Err(why) = self.key(chunk) {
                        return Progress::Malformed(self.lexer.refuse(why));
                    }
                }
                Step::Text { string, start, end } => {
                    if let Err(why) = self.value(chunk, string, Span { start, end }) {
                        return Progress::Malformed(self.lexer.refuse(why));
                    }
                    if enough(&self.fields) {
                        return Progress::Enough;
                    }
                }
                Step::Opened => {
                    if matches!(self.key, Key::Model | Key::SessionModel) {
                        let at = self.lexer.start();
                        let why = "`model` is not a string";
                        return Progress::Malformed(self.lexer.refuse(Malformed { at, why }));
                    }
                    if self.lexer.level() == 2 {
                        self.parent = self.key;
                    }
                    self.names = self.names << 1 | u64::from(self.key == Key::Names);
                    self.owners = self.owners << 1 | u64::from(self.key == Key::Owner);
                    self.fields.stream_options |= self.key == Key::StreamOptions;
                }
                Step::Closed => {
                    self.names >>= 1;
                    self.owners >>= 1;
                }
                Step::Element => self.element(),
                Step::End | Step::MarkBegin | Step::MarkEnd => {}
            }
        }
    }

    /// The body ends here: an error if the object was cut or broken.
    pub fn finish(&self) -> Result<(), Malformed> {
        self.lexer.finish()
    }

    fn key(&mut self, chunk: &[u8]) -> Result<(), Malformed> {
        let raw = self.lexer.raw(chunk).unwrap_or_default();
        let name = match memchr::memchr(b'\\', raw) {
            None => raw,
            Some(_) => unescape(raw, &mut self.scratch)
                .and_then(|()| self.scratch.bytes())
                .unwrap_or_default(),
        };
        self.key = match self.lexer.level() {
            1 => top(name),
            2 => nested(self.parent, name),
            _ => Key::Other,
        };
        if self.deep && self.key == Key::Other {
            self.key = match name {
                b"id" if self.owners & 1 == 1 => Key::Names,
                _ if refers::names(name) => Key::Names,
                _ if refers::owns(name) => Key::Owner,
                _ if refers::is_private(name) => Key::Other,
                _ => Key::Deep,
            };
        }
        let seen = match self.key {
            Key::Model => std::mem::replace(&mut self.model_seen, true),
            Key::SessionModel => std::mem::replace(&mut self.session_model_seen, true),
            _ => false,
        };
        self.fields.model_in_both = self.model_seen && self.session_model_seen;
        if seen {
            return Err(Malformed {
                at: self.lexer.start(),
                why: "`model` is given twice",
            });
        }
        self.ask();
        Ok(())
    }

    /// An element of an array comes: it is what the array is.
    fn element(&mut self) {
        self.key = match (self.names & 1, self.owners & 1) {
            (1, _) => Key::Names,
            (_, 1) => Key::Owner,
            _ if self.deep => Key::Deep,
            _ => Key::Other,
        };
        self.ask();
    }

    fn ask(&mut self) {
        self.lexer.want(match self.key {
            Key::Other => Want::Skip,
            Key::StreamOptions | Key::Session | Key::Deep | Key::Owner => Want::Enter,
            Key::Conversation | Key::Model | Key::SessionModel | Key::Names => Want::TextOrEnter,
            _ => Want::Text,
        });
    }

    fn value(&mut self, chunk: &[u8], string: bool, span: Span) -> Result<(), Malformed> {
        let raw = self.lexer.raw(chunk);
        let fields = &mut self.fields;
        match self.key {
            Key::Model | Key::SessionModel if string => {
                if self.key == Key::SessionModel && self.model_seen && fields.model_span.is_some() {
                    return Ok(());
                }
                raw.and_then(|raw| unescape(raw, &mut fields.model))
                    .ok_or(Malformed {
                        at: span.start,
                        why: "`model` is longer than 256 bytes or not valid text",
                    })?;
                fields.model_span = Some(span);
                fields.model_in_session = self.key == Key::SessionModel;
            }
            Key::Model if raw != Some(b"null") => {
                return Err(Malformed {
                    at: span.start,
                    why: "`model` is not a string",
                });
            }
            Key::Refers | Key::Conversation if string && !fields.refers => {
                fields.refers = raw
                    .and_then(|raw| unescape(raw, &mut fields.refers_to))
                    .is_some();
            }
            Key::Refers | Key::Conversation | Key::Names if string && self.deep => {
                let read = raw.and_then(|raw| unescape(raw, &mut self.scratch));
                if read.is_some() {
                    fields.add_named(&self.scratch);
                }
            }
            Key::Stream => fields.stream = flag(string, raw),
            Key::IncludeUsage => fields.include_usage = flag(string, raw),
            Key::Store => fields.store = flag(string, raw),
            Key::Background => fields.background = flag(string, raw),
            Key::TokensMax => fields.tokens_max = fields.tokens_max.max(integer(string, raw)),
            Key::Choices => fields.choices = integer(string, raw),
            _ => {}
        }
        Ok(())
    }
}

fn top(name: &[u8]) -> Key {
    match name {
        b"model" => Key::Model,
        b"stream" => Key::Stream,
        b"max_tokens" | b"max_completion_tokens" | b"max_output_tokens" => Key::TokensMax,
        b"n" => Key::Choices,
        b"stream_options" => Key::StreamOptions,
        b"store" => Key::Store,
        b"background" => Key::Background,
        b"session" => Key::Session,
        b"conversation" => Key::Conversation,
        b"previous_response_id"
        | b"input_file_id"
        | b"training_file"
        | b"assistant_id"
        | b"file_id" => Key::Refers,
        _ => Key::Other,
    }
}

fn nested(parent: Key, name: &[u8]) -> Key {
    match (parent, name) {
        (Key::StreamOptions, b"include_usage") => Key::IncludeUsage,
        (Key::Session, b"model") => Key::SessionModel,
        (Key::Conversation, b"id") => Key::Refers,
        _ => Key::Other,
    }
}

fn flag(string: bool, raw: Option<&[u8]>) -> Option<bool> {
    match raw {
        Some(b"true") if !string => Some(true),
        Some(b"false") if !string => Some(false),
        _ => None,
    }
}

fn integer(string: bool, raw: Option<&[u8]>) -> Option<u64> {
    let raw = raw.filter(|_| !string)?;
    std::str::from_utf8(raw).ok()?.parse().ok()
}
