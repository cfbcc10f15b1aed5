//! Reads what a conversation over WebSocket consumed and made, while its frames pass as raw bytes.
//!
//! The provider's frames are walked, not gathered (RFC 6455, section 5). Each text message goes through a [`Reader`], and
//! what the messages report adds up: `response.done` once per response, a transcription once per item. Messages that
//! carry media or text piece by piece report nothing; they are known by their first bytes, where those come together, and
//! passed over.

pub mod frame;

use std::sync::LazyLock;

use memchr::memmem;

use self::frame::{CONTINUATION, Header, Partial, TEXT};
use super::operation::IdPath;
use super::usage::{Reader, Usage};

/// How much of a message is searched for the mark of a delta. Its type stands at the front.
const FRONT_BYTES: usize = 128;

/// Ends the type of a message that brings one piece of something: `response.output_audio.delta`.
static DELTA_MARK: LazyLock<memmem::Finder<'static>> =
    LazyLock::new(|| memmem::Finder::new(".delta\""));

/// What is being done with the message in hand.
#[derive(Debug)]
enum Message {
    /// None of it was seen.
    New,
    /// It teaches nothing.
    Skipped,
    /// It is being read.
    Read(Box<Reader>),
}

/// What messages told of since that was asked for last.
#[derive(Debug, Default)]
pub struct News {
    /// Ids of responses that were made.
    pub made: Vec<Box<str>>,
    /// Further ids, see [`super::operation::Operation::tells`].
    pub told: Vec<Box<str>>,
}

#[derive(Debug)]
struct Ids {
    tells: &'static [IdPath],
    /// The response that messages were about last: most are about the same one.
    last: Box<str>,
    news: News,
}

impl Ids {
    fn learn(&mut self, reader: &Reader) {
        if let Some(id) = reader.id().filter(|id| **id != *self.last) {
            self.last = id.into();
            self.news.made.push(id.into());
        }
        self.news.told.extend_from_slice(reader.told());
    }
}

/// Reads a provider's side of a WebSocket. See the module's head.
#[derive(Debug)]
pub struct Frames {
    header: Partial,
    /// Payload of the frame in hand that is still to come.
    left: u64,
    /// The frame in hand ends its message.
    last: bool,
    /// The frame in hand is a ping, a pong or a close, which may stand between the frames of a message.
    control: bool,
    message: Message,
    sum: Option<Usage>,
    /// Set where ids are looked for.
    ids: Option<Box<Ids>>,
    /// The bytes are no frames, or are compressed; nothing more is read.
    unreadable: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            header: Partial::default(),
            left: 0,
            last: false,
            control: false,
            message: Message::Skipped,
            sum: None,
            ids: None,
            unreadable: false,
        }
    }
}

impl Frames {
    /// For conversations that make responses, which later calls may name, and tell of further ids at these places.
    /// [`Self::news`] is to be asked for after each piece.
    #[must_use]
    pub fn with_ids(tells: &'static [IdPath]) -> Self {
        Self {
            ids: Some(Box::new(Ids {
                tells,
                last: Box::default(),
                news: News::default(),
            })),
            ..Self::default()
        }
    }

    /// What was told of since the last time.
    pub fn news(&mut self) -> News {
        let ids = self.ids.as_mut();
        ids.map(|ids| std::mem::take(&mut ids.news))
            .unwrap_or_default()
    }

    /// Sum of what was reported so far.
    pub fn usage(&self) -> Option<&Usage> {
        self.sum.as_ref()
    }

    /// Reads the next bytes, wherever they are cut.
    pub fn feed(&mut self, mut chunk: &[u8]) {
        while !chunk.is_empty() && !self.unreadable {
            if self.left > 0 {
                let len = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(chunk.len());
                let (part, rest) = chunk.split_at(len);
                self.payload(part);
                chunk = rest;
            } else {
                let whole = self.header.take(chunk[0]);
                chunk = &chunk[1..];
                if let Some((header, _)) = whole {
                    self.begin(&header);
                }
            }
        }
    }

    /// Begins a frame.
    fn begin(&mut self, header: &Header) {
        // A server masks nothing.
        self.unreadable = header.mask.is_some() || header.is_extended();
        let opcode = header.opcode();
        self.control = header.is_control();
        self.last = header.is_last();
        if !self.control && opcode != CONTINUATION {
            self.message = if opcode == TEXT {
                Message::New
            } else {
                Message::Skipped
            };
        }
        self.left = header.payload;
        if self.left == 0 {
            self.frame_ended();
        }
    }

    fn payload(&mut self, part: &[u8]) {
        self.left -= part.len() as u64;
        if !self.control {
            if matches!(self.message, Message::New) {
                let front = &part[..part.len().min(FRONT_BYTES)];
                self.message = match DELTA_MARK.find(front) {
                    Some(_) => Message::Skipped,
                    None => {
                        let tells = self.ids.as_ref().map_or(&[][..], |ids| ids.tells);
                        Message::Read(Box::new(Reader::json().with_tells(tells)))
                    }
                };
            }
            if let Message::Read(reader) = &mut self.message {
                reader.feed(part);
            }
        }
        if self.left == 0 {
            self.frame_ended();
        }
    }

    fn frame_ended(&mut self) {
        if self.control || !self.last {
            return;
        }
        let Message::Read(reader) = std::mem::replace(&mut self.message, Message::Skipped) else {
            return;
        };
        if let Some(ids) = &mut self.ids {
            ids.learn(&reader);
        }
        if let Some(usage) = reader.usage() {
            let sum = self.sum.get_or_insert_default();
            *sum = sum.plus(usage);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            len @ 0..126 => frame.push(len as u8),
            len @ 126..65_536 => {
                frame.push(126);
                frame.extend((len as u16).to_be_bytes());
            }
            len => {
                frame.push(127);
                frame.extend((len as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        frame
    }

    fn done(input: u64, output: u64, cached: u64) -> String {
        format!(
            r#"{{"type":"response.done","event_id":"e","response":{{"id":"r","usage":{{"total_tokens":9,"input_tokens":{input},"output_tokens":{output},"input_token_details":{{"cached_tokens":{cached},"audio_tokens":1}}}}}}}}"#
        )
    }

    /// Two responses, the second in three frames with a ping between; audio before, after and between, and one long message.
    fn conversation() -> Vec<u8> {
        let delta = format!(
            r#"{{"type":"response.output_audio.delta","delta":"{}"}}"#,
            "A".repeat(70_000)
        );
        let second = done(30, 4, 10);
        let (a, rest) = second.as_bytes().split_at(20);
        let (b, c) = rest.split_at(60);
        [
            frame(0x81, br#"{"type":"session.created","session":{"model":"m"}}"#),
            frame(0x81, delta.as_bytes()),
            frame(0x81, done(20, 3, 5).as_bytes()),
            frame(0x82, done(1000, 1000, 0).as_bytes()),
            frame(0x01, a),
            frame(0x89, b"ping"),
            frame(0x00, b),
            frame(0x80, c),
            frame(0x81, b""),
            frame(0x81, br#"{"type":"conversation.item.input_audio_transcription.completed","usage":{"type":"duration","seconds":1.5}}"#),
            frame(0x88, &[3, 232]),
        ]
        .concat()
    }

    proptest! {
        #[test]
        fn every_response_counts_once_wherever_the_bytes_are_cut(cuts in prop::collection::vec(1_usize..3000, 1..60)) {
            let bytes = conversation();
            let mut frames = Frames::default();
            let (mut rest, mut cuts) = (&bytes[..], cuts.into_iter().cycle());
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                frames.feed(part);
                rest = behind;
            }
            let usage = frames.usage().unwrap();
            prop_assert_eq!((usage.input_tokens, usage.output_tokens, usage.cached_input_tokens), (50, 7, 15));
            prop_assert_eq!((usage.input_audio_tokens, usage.audio_ms), (2, 1500));
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frames = Frames::default();
            frames.feed(&bytes);
        }
    }

    #[test]
    fn each_response_that_was_made_is_told_of_once() {
        let row = crate::dialect::operation::all();
        let row = row.iter().find(|row| row.name == "responses.connect");
        let mut frames = Frames::with_ids(&row.unwrap().tells);
        let mut told = |text: &str| {
            frames.feed(&frame(0x81, text.as_bytes()));
            let News { made, told } = frames.news();
            let mut all: Vec<String> = made.into_iter().map(|id| format!("made {id}")).collect();
            all.extend(told.into_iter().map(|id| format!("told {id}")));
            all
        };
        assert_eq!(
            told(r#"{"type":"response.created","response":{"id":"resp_1","output":[]}}"#),
            ["made resp_1"]
        );
        assert!(
            told(r#"{"type":"response.output_text.delta","item_id":"msg_1","delta":"x"}"#)
                .is_empty()
        );
        assert_eq!(
            told(
                r#"{"type":"response.completed","response":{"id":"resp_1","output":[{"type":"code_interpreter_call","container_id":"cntr_1"}]}}"#
            ),
            ["told cntr_1"]
        );
        assert_eq!(
            told(r#"{"type":"response.created","response":{"id":"resp_2"}}"#),
            ["made resp_2"]
        );
        // Who looks for none keeps none.
        let mut plain = Frames::default();
        plain.feed(&frame(0x81, br#"{"response":{"id":"resp_1"}}"#));
        assert!(plain.news().made.is_empty());
    }

    #[test]
    fn what_cannot_be_read_counts_nothing() {
        for first in [0xc1, 0xa1] {
            let mut frames = Frames::default();
            frames.feed(&frame(first, done(1, 1, 0).as_bytes()));
            assert_eq!(frames.usage(), None, "reserved bits");
        }
        let mut masked = frame(0x81, done(1, 1, 0).as_bytes());
        masked[1] |= 0x80;
        let mut frames = Frames::default();
        frames.feed(&masked);
        assert_eq!(frames.usage(), None, "masked");
    }
}
