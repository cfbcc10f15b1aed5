//! The words in which answers tell their usage: which key, in which place, means which number.
//!
//! OpenAI's chat and responses APIs name the same numbers differently, and compatible providers add a few of
//! their own; this file is the whole dictionary.

use super::Usage;

/// An object or array of an answer, as far as it matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Place {
    Other,
    Root,
    Response,
    Usage,
    InputDetails,
    OutputDetails,
    Choices,
    Choice,
}

/// What a key means in its place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Key {
    Other,
    Enter(Place),
    Id,
    Kind,
    Error,
    Index,
    FinishReason,
    Number(Number),
}

/// One of the numbers of a [`Usage`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Number {
    Input,
    Cached,
    CacheWrite,
    InputAudio,
    InputImage,
    Output,
    Reasoning,
    OutputAudio,
    OutputImage,
    Total,
    Seconds,
}

/// What `name` means in `place`.
pub(super) fn key_of(place: Place, name: &[u8]) -> Key {
    match (place, name) {
        (Place::Root, _) => root_key(name),
        (Place::Response, b"usage") => Key::Enter(Place::Usage),
        (Place::Usage, _) => usage_key(name),
        (Place::InputDetails, _) => input_key(name),
        (Place::OutputDetails, _) => output_key(name),
        (Place::Choice, b"index") => Key::Index,
        (Place::Choice, b"finish_reason") => Key::FinishReason,
        (Place::Response | Place::Choice | Place::Choices | Place::Other, _) => Key::Other,
    }
}

/// Whether an event of this type is the last of its stream.
pub(super) fn is_last_event(kind: &[u8]) -> bool {
    matches!(
        kind,
        b"response.completed"
            | b"response.incomplete"
            | b"response.failed"
            | b"response.cancelled"
            | b"response.done"
            | b"transcript.text.done"
            | b"speech.audio.done"
            | b"image_generation.completed"
            | b"image_edit.completed"
    )
}

fn root_key(name: &[u8]) -> Key {
    match name {
        b"usage" => Key::Enter(Place::Usage),
        b"response" => Key::Enter(Place::Response),
        b"choices" => Key::Enter(Place::Choices),
        b"type" => Key::Kind,
        b"error" => Key::Error,
        _ => Key::Other,
    }
}

fn usage_key(name: &[u8]) -> Key {
    match name {
        b"input_tokens" | b"prompt_tokens" => Key::Number(Number::Input),
        b"output_tokens" | b"completion_tokens" => Key::Number(Number::Output),
        b"total_tokens" => Key::Number(Number::Total),
        b"seconds" => Key::Number(Number::Seconds),
        b"prompt_cache_hit_tokens" => Key::Number(Number::Cached),
        b"input_tokens_details" | b"input_token_details" | b"prompt_tokens_details" => {
            Key::Enter(Place::InputDetails)
        }
        b"output_tokens_details" | b"output_token_details" | b"completion_tokens_details" => {
            Key::Enter(Place::OutputDetails)
        }
        _ => Key::Other,
    }
}

fn input_key(name: &[u8]) -> Key {
    match name {
        b"cached_tokens" => Key::Number(Number::Cached),
        b"cache_write_tokens" => Key::Number(Number::CacheWrite),
        b"audio_tokens" => Key::Number(Number::InputAudio),
        b"image_tokens" => Key::Number(Number::InputImage),
        _ => Key::Other,
    }
}

fn output_key(name: &[u8]) -> Key {
    match name {
        b"reasoning_tokens" => Key::Number(Number::Reasoning),
        b"audio_tokens" => Key::Number(Number::OutputAudio),
        b"image_tokens" => Key::Number(Number::OutputImage),
        _ => Key::Other,
    }
}

pub(super) fn slot(usage: &mut Usage, number: Number) -> &mut u64 {
    match number {
        Number::Input => &mut usage.input_tokens,
        Number::Cached => &mut usage.cached_input_tokens,
        Number::CacheWrite => &mut usage.cache_write_tokens,
        Number::InputAudio => &mut usage.input_audio_tokens,
        Number::InputImage => &mut usage.input_image_tokens,
        Number::Output => &mut usage.output_tokens,
        Number::Reasoning => &mut usage.reasoning_tokens,
        Number::OutputAudio => &mut usage.output_audio_tokens,
        Number::OutputImage => &mut usage.output_image_tokens,
        Number::Total => &mut usage.total_tokens,
        Number::Seconds => &mut usage.audio_ms,
    }
}

/// A whole number; anything else counts nothing.
pub(super) fn integer(raw: &[u8]) -> u64 {
    std::str::from_utf8(raw)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// A decimal number in thousandths, rounded up; negative or absurd ones count nothing.
pub(super) fn thousandths(raw: &[u8]) -> u64 {
    let seconds: f64 = std::str::from_utf8(raw)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0);
    let bounded = if (0.0..=1e9).contains(&seconds) {
        seconds
    } else {
        0.0
    };
    (bounded * 1000.0).ceil() as u64
}
