//! Audio: speech out as chunks of made-up bytes, transcripts in all the API's formats.
//!
//! A transcript states the file's name, length and hash, so that a test can tell what arrived.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use serde_json::{Value, json};

use crate::answer::Answer;
use crate::ask::Ask;
use crate::bench;
use crate::desk::Desk;
use crate::reply::{Refusal, Reply};
use crate::words::{self, Words};

/// Bytes of one chunk of speech.
const CHUNK_BYTES: usize = 1_024;

/// Characters of input that make one chunk.
const CHUNK_CHARS: usize = 8;

const CHUNKS_MIN: usize = 8;
const CHUNKS_MAX: usize = 4_096;

/// `POST /v1/audio/speech`
pub(crate) fn speech(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    ask.model()?;
    let input = ask.text("input").ok_or_else(|| Refusal::missing("input"))?;
    let format = ask.text("response_format").unwrap_or("mp3");
    let content_type = match format {
        "mp3" => "audio/mpeg",
        "opus" => "audio/opus",
        "aac" => "audio/aac",
        "flac" => "audio/flac",
        "wav" => "audio/wav",
        "pcm" => "audio/pcm",
        _ => {
            return Err(Refusal::invalid(
                "response_format",
                format!("Invalid value: '{format}'."),
            ));
        }
    };
    let count = (input.chars().count() / CHUNK_CHARS).clamp(CHUNKS_MIN, CHUNKS_MAX);
    let chunk = bench::fill_block().slice(..CHUNK_BYTES);
    let gap_ms = ask.tuned("token_ms").unwrap_or(desk.pace.token_ms);
    if ask.text("stream_format") == Some("sse") {
        return Ok(Reply::events(Answer::paced(
            speech_events(&chunk, count, words::tokens(input)),
            gap_ms,
        )));
    }
    let chunks = std::iter::repeat_n(chunk, count);
    Ok(Reply::new(
        HeaderValue::from_static(content_type),
        Answer::paced(chunks, gap_ms),
    ))
}

fn speech_events(chunk: &Bytes, count: usize, tokens: u64) -> Vec<Bytes> {
    let delta = json!({"type": "speech.audio.delta", "audio": STANDARD.encode(chunk)});
    let usage = json!({"input_tokens": tokens, "output_tokens": count, "total_tokens": tokens + count as u64});
    let done = json!({"type": "speech.audio.done", "usage": usage});
    let delta = Bytes::from(format!("data: {delta}\n\n"));
    std::iter::repeat_n(delta, count)
        .chain([format!("data: {done}\n\n").into()])
        .collect()
}

/// `POST /v1/audio/transcriptions`
pub(crate) fn transcribe(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    hear(desk, ask, "transcribe")
}

/// `POST /v1/audio/translations`
pub(crate) fn translate(desk: &Desk, ask: &Ask) -> Result<Reply, Refusal> {
    hear(desk, ask, "translate")
}

fn hear(desk: &Desk, ask: &Ask, task: &str) -> Result<Reply, Refusal> {
    ask.model()?;
    let file = ask
        .form()
        .and_then(|form| form.file("file"))
        .ok_or_else(|| Refusal::missing("file"))?;
    let name = file.filename.as_deref().unwrap_or("audio");
    let text = format!(
        "Sample transcript of {name}, {} bytes, sha256 {}.",
        file.bytes, file.sha256
    );
    let tokens = words::tokens(&text);
    let usage = json!({
        "type": "tokens", "input_tokens": 14, "output_tokens": tokens, "total_tokens": 14 + tokens,
        "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    });
    if ask.switch("stream") {
        let gap_ms = ask.tuned("token_ms").unwrap_or(desk.pace.token_ms);
        return Ok(Reply::events(Answer::paced(
            transcript_events(&text, &usage),
            gap_ms,
        )));
    }
    Ok(match ask.text("response_format").unwrap_or("json") {
        "json" => Reply::json(&json!({"text": text, "usage": usage})),
        "verbose_json" => Reply::json(&verbose(task, &text)),
        "text" => Reply::text(format!("{text}\n")),
        "srt" => Reply::text(format!("1\n00:00:00,000 --> 00:00:02,000\n{text}\n\n")),
        "vtt" => Reply::text(format!(
            "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n{text}\n\n"
        )),
        other => {
            return Err(Refusal::invalid(
                "response_format",
                format!("Invalid value: '{other}'."),
            ));
        }
    })
}

fn verbose(task: &str, text: &str) -> Value {
    json!({
        "task": task, "language": "english", "duration": 2.0, "text": text,
        "segments": [{
            "id": 0, "seek": 0, "start": 0.0, "end": 2.0, "text": text, "tokens": [50364], "temperature": 0.0,
            "avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0,
        }],
        "usage": {"type": "duration", "seconds": 2},
    })
}

fn transcript_events(text: &str, usage: &Value) -> Vec<Bytes> {
    let deltas = Words::split(text)
        .pieces
        .into_iter()
        .map(|delta| json!({"type": "transcript.text.delta", "delta": delta}));
    let done = json!({"type": "transcript.text.done", "text": text, "usage": usage});
    deltas
        .chain([done])
        .map(|event| Bytes::from(format!("data: {event}\n\n")))
        .collect()
}
