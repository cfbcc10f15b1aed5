//! The tokens of one stream as they come: when each came, and whether every byte is the provider's.
//!
//! The sample provider writes into each token when it left. Without these digits all streams of a length are the same
//! bytes, so a stream that went through the network is compared with one that was fetched from the provider directly.

use std::time::Instant;

use memchr::memmem;

/// Before the digits that differ from stream to stream.
const SENT: &[u8] = b"\"sample_sent_ns\":";

/// What an event with an error in it says, in OpenAI's dialect.
const ERROR: &[u8] = b"\"error\"";

/// More than any stream of the benchmark has; what is beyond is a fault, not kept.
const BYTES_MAX: usize = 4 << 20;

/// One stream as it came.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    bytes: Vec<u8>,
    seen: usize,
    /// When each token came.
    pub(crate) came: Vec<Instant>,
}

/// How a stream compares with the provider's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Every byte, each once, in order.
    Whole,
    /// Right as far as it goes, and then an error that the client can read.
    Error,
    /// Right as far as it goes.
    Short,
    /// A byte is wrong, twice or missing in the middle.
    Wrong,
}

impl Tokens {
    /// More bytes of the stream.
    pub(crate) fn push(&mut self, part: &[u8], now: Instant) {
        if self.bytes.len() + part.len() <= BYTES_MAX {
            self.bytes.extend_from_slice(part);
        }
        let from = self.seen.saturating_sub(SENT.len() - 1);
        let fresh = self.bytes.get(from..).unwrap_or_default();
        for _ in memmem::find_iter(fresh, SENT) {
            self.came.push(now);
        }
        self.seen = self.bytes.len();
    }

    /// Compares with a stream of the provider's own of the same length.
    pub(crate) fn compare(&self, own: &Self) -> Verdict {
        let (mine, sent) = skeleton(&self.bytes);
        let (wanted, _) = skeleton(&own.bytes);
        if !sent.is_sorted_by(|one, next| one < next) {
            return Verdict::Wrong;
        }
        if mine == wanted {
            return Verdict::Whole;
        }
        let same = mine.iter().zip(&wanted).take_while(|(a, b)| a == b);
        let same = same.count();
        if same == mine.len() {
            return Verdict::Short;
        }
        // The last whole event must be followed by an error and nothing else.
        let events = mine.get(..same).unwrap_or_default();
        let events = memmem::rfind(events, b"\n\n").map_or(0, |at| at + 2);
        let rest = mine.get(events..).unwrap_or_default();
        let error = memmem::find(rest, ERROR).is_some() && memmem::find(rest, SENT).is_none();
        if error {
            Verdict::Error
        } else {
            Verdict::Wrong
        }
    }
}

/// The bytes without comments and without the digits that differ, and these digits as numbers.
fn skeleton(bytes: &[u8]) -> (Vec<u8>, Vec<u64>) {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut sent = Vec::new();
    let mut comment = false;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        // A sign of life in a silent stream, and the empty line that ends it.
        if line.starts_with(b":") {
            comment = true;
            continue;
        }
        if std::mem::take(&mut comment) && line.trim_ascii().is_empty() {
            continue;
        }
        let Some(at) = memmem::find(line, SENT).map(|at| at + SENT.len()) else {
            kept.extend_from_slice(line);
            continue;
        };
        let (before, after) = line.split_at(at);
        let digits = after.iter().take_while(|byte| byte.is_ascii_digit());
        let digits = digits.count();
        let number = after
            .get(..digits)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        sent.extend(number.and_then(|number| number.parse::<u64>().ok()));
        kept.extend_from_slice(before);
        kept.extend_from_slice(after.get(digits..).unwrap_or_default());
    }
    (kept, sent)
}

#[cfg(test)]
mod tests {
    use super::{Tokens, Verdict};
    use std::time::Instant;

    fn stream(parts: &[&str]) -> Tokens {
        let mut tokens = Tokens::default();
        for part in parts {
            tokens.push(part.as_bytes(), Instant::now());
        }
        tokens
    }

    fn check(text: &str, wanted: Verdict) {
        let own = stream(&[
            "data: {\"x\":1,\"sample_sent_ns\":5}\n\ndata: {\"x\":1,\"sample_sent_ns\":6}\n\ndata: [DONE]\n\n",
        ]);
        assert_eq!(stream(&[text]).compare(&own), wanted, "{text}");
    }

    #[test]
    fn streams_are_compared_byte_by_byte_but_for_their_times() {
        let one = "data: {\"x\":1,\"sample_sent_ns\":70}\n\n";
        let two = "data: {\"x\":1,\"sample_sent_ns\":71}\n\n";
        let end = "data: [DONE]\n\n";
        check(&format!("{one}{two}{end}"), Verdict::Whole);
        check(&format!("{one}: ping\n\n{two}{end}"), Verdict::Whole);
        check(&format!("{one}{two}"), Verdict::Short);
        check(&format!("{one}{}", two.trim_end()), Verdict::Short);
        check(
            &format!("{one}data: {{\"error\":{{}}}}\n\n"),
            Verdict::Error,
        );
        check(&format!("{one}{end}"), Verdict::Wrong);
        check(&format!("{one}{one}{end}"), Verdict::Wrong);
        check(&format!("{two}{one}{end}"), Verdict::Wrong);
        check(&format!("{one}{two}{two}{end}"), Verdict::Wrong);
        check(
            &format!("{one}data: {{\"y\":1,\"sample_sent_ns\":71}}\n\n{end}"),
            Verdict::Wrong,
        );
    }

    #[test]
    fn tokens_are_counted_however_they_are_cut() {
        let text = "data: {\"sample_sent_ns\":5}\n\ndata: {\"sample_sent_ns\":6}\n\n";
        for step in [1, 7, 17, 1000] {
            let parts: Vec<&str> = (0..text.len())
                .step_by(step)
                .map(|at| &text[at..(at + step).min(text.len())])
                .collect();
            assert_eq!(stream(&parts).came.len(), 2, "{step}");
        }
    }
}
