//! The text of an answer, in the prompt's language, in the pieces in which it is streamed.
//!
//! It repeats what was asked, so that a test can tell whose answer it got. Pure.

use serde_json::Value;

/// Characters of the prompt that an answer repeats.
const ECHO_CHARS_MAX: usize = 400;

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) pieces: Vec<String>,
    /// Whether a limit on tokens cut it short.
    pub(crate) cut: bool,
}

impl Words {
    /// Answers `prompt` in its language; exactly `pieces` pieces if that is asked, at most `limit` in any case.
    pub(crate) fn answer(prompt: &str, pieces: Option<u64>, limit: Option<u64>) -> Self {
        let mut all = match pieces {
            Some(count) => count_to(count.min(u64::from(crate::bench::CHUNKS_MAX))),
            None => speak(prompt),
        };
        let limit = limit.map_or(usize::MAX, |limit| {
            usize::try_from(limit).unwrap_or(usize::MAX)
        });
        let cut = all.len() > limit;
        all.truncate(limit);
        Self { pieces: all, cut }
    }

    /// Text that is there already, in pieces of a few characters.
    pub(crate) fn split(text: &str) -> Self {
        Self {
            pieces: chunked(text, 6),
            cut: false,
        }
    }

    pub(crate) fn text(&self) -> String {
        self.pieces.concat()
    }
}

fn count_to(count: u64) -> Vec<String> {
    (1..=count)
        .map(|number| {
            if number == 1 {
                "1".to_owned()
            } else {
                format!(" {number}")
            }
        })
        .collect()
}

fn speak(prompt: &str) -> Vec<String> {
    let echo: String = prompt.chars().take(ECHO_CHARS_MAX).collect();
    if prompt.chars().any(is_han) {
        let text = format!(
            "我是示例模型，只供试用和测试，不会思考。你刚才说的是：「{echo}」。这段话一块一块地送到，正如真的模型那样。"
        );
        return chunked(&text, 2);
    }
    let text = format!(
        "This is the sample provider, made for trying and testing; it does not think. You said: \"{echo}\". \
         These words come one by one, as a real model's would."
    );
    text.split_inclusive(' ').map(str::to_owned).collect()
}

fn chunked(text: &str, size: usize) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars
        .chunks(size)
        .map(|piece| piece.iter().collect())
        .collect()
}

fn is_han(char: char) -> bool {
    matches!(char, '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{2ffff}')
}

/// Tokens of a text, as roughly as every estimate: a Han character is one, four others are one.
pub(crate) fn tokens(text: &str) -> u64 {
    let (han, other) = text.chars().fold((0, 0), |(han, other), char| {
        if is_han(char) {
            (han + 1, other)
        } else {
            (han, other + 1)
        }
    });
    han + u64::div_ceil(other, 4)
}

/// The text of a message's content: a string, or the text parts of a list.
pub(crate) fn content(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .filter_map(|part| part.get("text")?.as_str())
            .collect::<Vec<_>>()
            .join("\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_in_the_prompts_language_and_repeat_it() {
        let words = Words::answer("用一句话介绍你自己", None, None);
        assert!(words.text().contains("「用一句话介绍你自己」") && words.pieces.len() > 10);
        assert!(
            Words::answer("hello 17", None, None)
                .text()
                .contains("\"hello 17\"")
        );
    }

    #[test]
    fn counts_and_limits_hold() {
        assert_eq!(Words::answer("", Some(3), None).text(), "1 2 3");
        let cut = Words::answer("hello", None, Some(4));
        assert!(cut.cut && cut.pieces.len() == 4);
        assert_eq!(tokens("你好 abc"), 3);
    }
}
