//! Reads what an answer consumed and what it made, while it passes.
//!
//! Numbers and ids are all that is kept. Only a POST consumes: fetching a response that ran earlier shows its
//! usage again, and must not count twice. Whatever becomes of the answer, the key that was used is told what it cost.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use http::{Version, header};
use vector_proto::{
    dialect::{
        operation::{IdAt, IdPath, Operation},
        usage::{Reader, StreamEnd},
        websocket::{self, Frames},
    },
    tunnel::v1,
};

use super::{credential::Permit, translate::Content};

/// Operations whose event streams are known to have end marks, by the beginning of their names.
const MARKED: &[&str] = &["chat.completions.", "completions.", "responses."];

/// Others that have some. What imitates them may leave those out, so they are asked for only where nothing else tells the end.
const MARKED_MOSTLY: &[&str] = &["audio.", "images.", "threads."];

/// What is measured of one exchange.
#[derive(Debug)]
pub struct Meter {
    reader: Option<Box<Reader>>,
    /// Instead of `reader`, for a WebSocket.
    frames: Option<Box<Frames>>,
    consumes: bool,
    /// The stream must end with a mark of its protocol.
    marked: bool,
    /// The answer ends where its connection does (RFC 9112, 6.3), as it does when it is cut.
    open_ended: bool,
    /// The id is of something that later calls may name.
    makes: bool,
    object: Option<String>,
    /// How many further ids were shown.
    told: usize,
    /// Bytes of the answer that have left.
    pub response_bytes: u64,
    started: Instant,
    first_byte: Option<Duration>,
    /// The key that the answer is charged to.
    permit: Option<Permit>,
    /// The provider says that it did nothing.
    refused: bool,
}

impl Meter {
    /// Starts the clock: the first byte is about to go to a provider.
    pub fn start(now: Instant) -> Self {
        Self {
            reader: None,
            frames: None,
            consumes: false,
            marked: false,
            open_ended: false,
            makes: false,
            object: None,
            told: 0,
            response_bytes: 0,
            started: now,
            first_byte: None,
            permit: None,
            refused: false,
        }
    }

    /// The head of an answer is there.
    pub fn head(
        &mut self,
        head: &http::response::Parts,
        content: Content,
        ask: &Ask,
        now: Instant,
    ) {
        self.first_byte = Some(now.saturating_duration_since(self.started));
        let whole = head.status.is_success();
        self.refused = head.status.is_client_error();
        let Some(row) = ask.row else { return };
        self.consumes = row.method == "POST";
        self.makes = whole && row.makes.is_some() && ask.keeps;
        if let (true, IdAt::Location) = (self.makes, row.id_at) {
            let location = head.headers.get(header::LOCATION);
            let location = location.and_then(|value| value.to_str().ok());
            let id = location.and_then(|path| path.rsplit('/').next());
            self.object = id.filter(|id| !id.is_empty()).map(str::to_owned);
        }
        let reader = match content {
            Content::Json if whole && (self.consumes || !row.tells.is_empty()) => {
                Some(Reader::json())
            }
            Content::Events => Some(Reader::sse()),
            Content::Json | Content::Other => None,
        };
        let named = |starts: &[&str]| starts.iter().any(|start| row.name.starts_with(start));
        self.open_ended = whole && is_open_ended(head);
        self.marked = content == Content::Events
            && whole
            && (named(MARKED) || (self.open_ended && named(MARKED_MOSTLY)));
        let tells: &[IdPath] = if whole { &row.tells } else { &[] };
        self.reader = reader.map(|reader| {
            let reader = reader.with_tells(tells);
            Box::new(match row.id_at {
                IdAt::Field(field) => reader.with_id_field(field),
                IdAt::Location => reader,
            })
        });
    }

    /// Charges what is measured to a key: once settled, or dropped.
    pub fn charge(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Tells the key what was used, as far as was said by now, and gives it back.
    pub fn settle(&mut self, now: Instant) {
        let Some(permit) = self.permit.take() else {
            return;
        };
        match self.usage() {
            Some(usage) => {
                let tokens = usage.input_tokens.saturating_add(usage.output_tokens);
                permit.used(tokens, now);
            }
            None if self.refused => permit.unused(),
            // What was judged beforehand stands.
            None => {}
        }
    }

    /// The provider has agreed to a WebSocket.
    pub fn upgraded(&mut self, row: Option<&'static Operation>, now: Instant) {
        self.first_byte = Some(now.saturating_duration_since(self.started));
        let makes = row.filter(|row| row.makes.is_some());
        let frames = makes.map(|row| Frames::with_ids(&row.tells));
        self.frames = Some(Box::new(frames.unwrap_or_default()));
    }

    /// What a WebSocket's messages told of since the last time.
    pub fn in_messages(&mut self) -> websocket::News {
        let frames = self.frames.as_mut();
        frames.map(|frames| frames.news()).unwrap_or_default()
    }

    /// Reads a piece of the answer, as the provider sent it. Says once of each id that it is known.
    pub fn feed(&mut self, chunk: &[u8]) -> News {
        self.response_bytes += chunk.len() as u64;
        if let Some(frames) = &mut self.frames {
            frames.feed(chunk);
        }
        let Some(reader) = &mut self.reader else {
            return News::default();
        };
        reader.feed(chunk);
        let known = self.object.is_some();
        if self.makes && !known {
            self.object = reader.id().map(str::to_owned);
        }
        let told = self.told..reader.told().len();
        self.told = told.end;
        News {
            made: self.object.is_some() && !known,
            told,
        }
    }

    /// Further ids that the answer told of, which the same credential has.
    pub fn told(&self, which: Range<usize>) -> &[Box<str>] {
        let told = self.reader.as_deref().map_or(&[][..], Reader::told);
        told.get(which).unwrap_or_default()
    }

    /// The object that the answer makes, as far as is known.
    pub fn object(&self) -> Option<&str> {
        self.object.as_deref()
    }

    /// Whether an answer that has ended was cut: a stream lacks the mark of its end or, where only the connection's end is
    /// left to go by, is in the middle of an event; so does JSON lack its last brace.
    pub fn is_cut(&self) -> bool {
        let Some(reader) = &self.reader else {
            return false;
        };
        let unmarked = reader.end() == StreamEnd::Cut;
        (self.marked && unmarked)
            || (self.open_ended && reader.is_in_event() && unmarked)
            || (self.open_ended && !reader.reads_events() && unmarked)
    }

    /// What was consumed.
    pub fn usage(&self) -> Option<v1::Usage> {
        let read = match &self.frames {
            Some(frames) => frames.usage()?,
            None => self.reader.as_ref().filter(|_| self.consumes)?.usage()?,
        };
        Some(v1::Usage {
            input_tokens: read.input_tokens,
            cached_input_tokens: read.cached_input_tokens,
            cache_write_tokens: read.cache_write_tokens,
            output_tokens: read.output_tokens,
            reasoning_tokens: read.reasoning_tokens,
            input_audio_tokens: read.input_audio_tokens,
            output_audio_tokens: read.output_audio_tokens,
            input_image_tokens: read.input_image_tokens,
            output_image_tokens: read.output_image_tokens,
            seconds_milli: read.audio_ms,
            reported: true,
        })
    }

    /// Time from the start to the answer's head.
    pub fn first_byte(&self) -> Option<Duration> {
        self.first_byte
    }

    /// Time since the start.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.started)
    }
}

impl Drop for Meter {
    /// A client that leaves stops everything where it stands.
    fn drop(&mut self) {
        self.settle(Instant::now());
    }
}

/// Whether nothing but the connection's end will say that an answer is whole.
fn is_open_ended(head: &http::response::Parts) -> bool {
    let framed = |name| head.headers.contains_key(name);
    head.version < Version::HTTP_2
        && !framed(header::CONTENT_LENGTH)
        && !framed(header::TRANSFER_ENCODING)
}

/// What later calls may name from now on.
#[derive(Debug, Default)]
pub struct News {
    /// [`Meter::object`] is known.
    pub made: bool,
    /// So are these of [`Meter::told`].
    pub told: Range<usize>,
}

/// What is known of the operation before its answer.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Its row in the table, if this version has one.
    pub row: Option<&'static Operation>,
    /// The provider is asked to keep what the call makes.
    pub keeps: bool,
}
