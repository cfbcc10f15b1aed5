//! Answers that cost next to nothing, so that a benchmark measures the network and not its provider.
//!
//! Model `bench` gets one prepared JSON answer; `bench-stream-CHUNKS[xGAP_MS]` a stream of prepared chunks.
//! With a gap, each chunk says when it left (`sample_sent_ns`, Unix time), so that its delay can be measured.
//! The request's body is read but never parsed: the model's name is searched for in the bytes.

use std::sync::OnceLock;

use bytes::Bytes;
use memchr::memmem;

use crate::answer::Answer;
use crate::desk;
use crate::reply::Reply;

/// Chunks of a `bench-stream` that does not say.
const CHUNKS: u32 = 20;

/// Chunks a stream may be asked for.
pub(crate) const CHUNKS_MAX: u32 = 100_000;

/// Block of which generated content consists; a power of two, so that an offset's byte is easily told.
const FILL_BYTES: usize = 64 << 10;

const PLAIN: &str = concat!(
    r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,"#,
    r#""message":{"role":"assistant","content":"A plain answer from the sample provider, made ahead of time.","#,
    r#""refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"#,
    r#""completion_tokens":13,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"#,
    r#""completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}},"service_tier":"default"}"#,
);

const HEAD: &str = concat!(
    r#"data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"#,
    r#""model":"bench-stream","choices":[{"index":0,"delta":{"#,
);

const CHUNK: &str = concat!(
    r#"data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"#,
    r#""model":"bench-stream","choices":[{"index":0,"delta":{"content":" again"},"finish_reason":null}]}"#,
    "\n\n",
);

const LAST: &str = concat!(
    r#"data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"#,
    r#""model":"bench-stream","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    "\n\n",
    r#"data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"#,
    r#""model":"bench-stream","choices":[],"usage":{"prompt_tokens":12,"completion_tokens":20,"total_tokens":32}}"#,
    "\n\ndata: [DONE]\n\n",
);

/// What a `bench…` model stands for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Plan {
    Plain,
    Stream { chunks: u32, gap_ms: u64 },
}

impl Plan {
    /// Reads the plan from a model's name; other models have none.
    pub(crate) fn of(model: &str) -> Option<Self> {
        let rest = model.strip_prefix("bench")?;
        if rest.is_empty() {
            return Some(Self::Plain);
        }
        let rest = rest.strip_prefix("-stream")?;
        let Some(shape) = rest.strip_prefix('-') else {
            return rest.is_empty().then_some(Self::Stream {
                chunks: CHUNKS,
                gap_ms: 0,
            });
        };
        let (chunks, gap) = shape.split_once('x').unwrap_or((shape, "0"));
        let chunks = chunks.parse::<u32>().ok()?.clamp(1, CHUNKS_MAX);
        Some(Self::Stream {
            chunks,
            gap_ms: gap.parse().ok()?,
        })
    }
}

impl Plan {
    /// The same with what a request's headers say; one that asks for chunks is streamed.
    pub(crate) fn tuned(self, chunks: Option<u64>, gap_ms: Option<u64>) -> Self {
        match (self, chunks) {
            (Self::Plain, None) => self,
            (Self::Plain, Some(_)) => Self::Stream {
                chunks: CHUNKS,
                gap_ms: 0,
            }
            .tuned(chunks, gap_ms),
            (
                Self::Stream {
                    chunks: named,
                    gap_ms: named_gap_ms,
                },
                _,
            ) => {
                let asked =
                    chunks.map_or(named, |chunks| u32::try_from(chunks).unwrap_or(CHUNKS_MAX));
                Self::Stream {
                    chunks: asked.clamp(1, CHUNKS_MAX),
                    gap_ms: gap_ms.unwrap_or(named_gap_ms),
                }
            }
        }
    }

    /// The prepared answer.
    pub(crate) fn reply(self) -> Reply {
        let reply = match self {
            Self::Plain => Reply::prepared(Bytes::from_static(PLAIN.as_bytes())),
            Self::Stream { chunks, gap_ms } => {
                Reply::events(Answer::bench(Stream::new(chunks, gap_ms)))
            }
        };
        reply.at_once()
    }
}

/// The model a JSON body names, found without parsing it.
pub(crate) fn model(body: &[u8]) -> Option<&str> {
    let after = body.get(memmem::find(body, b"\"model\"")? + 7..)?;
    let value = after
        .trim_ascii_start()
        .strip_prefix(b":")?
        .trim_ascii_start()
        .strip_prefix(b"\"")?;
    let end = memchr::memchr(b'"', value)?;
    std::str::from_utf8(value.get(..end)?).ok()
}

/// The block of which generated content is made: byte `i` is `i mod 251`.
pub(crate) fn fill_block() -> Bytes {
    static BLOCK: OnceLock<Bytes> = OnceLock::new();
    BLOCK
        .get_or_init(|| {
            (0..FILL_BYTES)
                .map(|at| u8::try_from(at % 251).unwrap_or(0))
                .collect()
        })
        .clone()
}

/// A stream of prepared chunks.
#[derive(Debug)]
pub(crate) struct Stream {
    left: u32,
    gap_ms: u64,
}

impl Stream {
    pub(crate) fn new(chunks: u32, gap_ms: u64) -> Self {
        Self {
            left: chunks,
            gap_ms,
        }
    }

    pub(crate) fn gap_ms(&self) -> u64 {
        self.gap_ms
    }

    pub(crate) fn ended(&self) -> bool {
        self.left == 0
    }

    /// The next chunk; the last one carries usage and the end mark.
    pub(crate) fn chunk(&mut self) -> Option<Bytes> {
        self.left = self.left.checked_sub(1)?;
        if self.left == 0 {
            return Some(Bytes::from_static(LAST.as_bytes()));
        }
        if self.gap_ms == 0 {
            return Some(Bytes::from_static(CHUNK.as_bytes()));
        }
        let sent = desk::unix_ns();
        Some(format!("{HEAD}\"content\":\" again\"}},\"finish_reason\":null}}],\"sample_sent_ns\":{sent}}}\n\n").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plans() {
        assert_eq!(Plan::of("bench"), Some(Plan::Plain));
        assert_eq!(
            Plan::of("bench-stream"),
            Some(Plan::Stream {
                chunks: 20,
                gap_ms: 0
            })
        );
        assert_eq!(
            Plan::of("bench-stream-7"),
            Some(Plan::Stream {
                chunks: 7,
                gap_ms: 0
            })
        );
        assert_eq!(
            Plan::of("bench-stream-100x20"),
            Some(Plan::Stream {
                chunks: 100,
                gap_ms: 20
            })
        );
        for other in [
            "gpt-4o",
            "benchmark",
            "bench-stream-",
            "bench-stream-2x",
            "bench-streams",
        ] {
            assert_eq!(Plan::of(other), None, "{other}");
        }
    }

    #[test]
    fn headers_tune_a_plan() {
        let stream = |chunks, gap_ms| Plan::Stream { chunks, gap_ms };
        assert_eq!(Plan::Plain.tuned(None, Some(5)), Plan::Plain);
        assert_eq!(Plan::Plain.tuned(Some(7), None), stream(7, 0));
        assert_eq!(stream(9, 3).tuned(Some(0), Some(4)), stream(1, 4));
        assert_eq!(stream(9, 3).tuned(None, None), stream(9, 3));
    }

    #[test]
    fn the_model_is_found_and_a_quoted_one_is_not() {
        assert_eq!(
            model(br#"{"messages":[],"model" : "bench"}"#),
            Some("bench")
        );
        assert_eq!(
            model(br#"{"messages":[{"content":"\"model\":\"bench\""}],"model":"x"}"#),
            Some("x")
        );
        assert_eq!(model(b"{}"), None);
    }

    #[test]
    fn prepared_answers_are_well_formed() {
        serde_json::from_str::<serde_json::Value>(PLAIN).unwrap();
        for gap_ms in [0, 1] {
            let mut stream = Stream::new(3, gap_ms);
            let mut events = 0;
            while let Some(chunk) = stream.chunk() {
                for line in std::str::from_utf8(&chunk)
                    .unwrap()
                    .split("\n\n")
                    .filter(|line| !line.is_empty())
                {
                    let data = line.strip_prefix("data: ").unwrap();
                    assert!(
                        data == "[DONE]" || serde_json::from_str::<serde_json::Value>(data).is_ok(),
                        "{data}"
                    );
                    events += 1;
                }
            }
            assert_eq!(events, 5);
        }
    }
}
