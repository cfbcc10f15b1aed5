//! Which requests belong together, so that a provider's prompt cache serves them: a number, the same on every node.
//!
//! By `prompt_cache_key`, else `user`, else by how the body begins, if it is long enough for any cache. Always within one
//! account. Nothing is remembered: who gets a number follows from the number (rendezvous hashing), here and at the egress.

use std::sync::Arc;

use bytes::Bytes;
use memchr::memmem;

/// Shorter prompts are cached by nobody: OpenAI and Anthropic begin at 1,024 tokens.
const BODY_BYTES_MIN: u64 = 4 << 10;

/// Of this much of a body the begin is made.
const BEGIN_BYTES: usize = 2 << 10;

/// How far a body is searched for a key.
const SEARCH_BYTES: usize = 16 << 10;

/// Longest value of a key; a longer one is cut.
const VALUE_BYTES_MAX: usize = 256;

/// The number of a request whose body begins with `chunks` and has `bytes` in all, as far as is known; 0 for none.
pub(super) fn of(account: &str, chunks: &[Bytes], bytes: u64) -> u64 {
    let Some(first) = chunks.first() else {
        return 0;
    };
    let seed = hash(0, account.as_bytes());
    let searched = &first[..first.len().min(SEARCH_BYTES)];
    let named = value(searched, b"\"prompt_cache_key\"").or_else(|| value(searched, b"\"user\""));
    let number = match named {
        Some(name) => hash(seed, name),
        None if bytes < BODY_BYTES_MIN => return 0,
        None => hash(seed, &first[..first.len().min(BEGIN_BYTES)]),
    };
    number.max(1)
}

/// The text behind a key. Inside other texts quotes are escaped, so that they cannot be taken for one.
fn value<'a>(body: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let at = memmem::find(body, key)?;
    let rest = body[at + key.len()..].trim_ascii_start();
    let rest = rest.strip_prefix(b":")?.trim_ascii_start();
    let rest = rest.strip_prefix(b"\"")?;
    let end = memchr::memchr(b'"', rest).unwrap_or(rest.len());
    let value = &rest[..end.min(VALUE_BYTES_MAX)];
    (!value.is_empty()).then_some(value)
}

/// Who of `names` a number belongs to: the highest of its weighted draws. `None` without a number.
pub(super) fn preferred<'a>(
    affinity: u64,
    names: impl Iterator<Item = (&'a Arc<str>, u32)>,
) -> Option<usize> {
    if affinity == 0 {
        return None;
    }
    let draw = |(name, weight): (&Arc<str>, u32)| {
        let number = (hash(affinity, name.as_bytes()) >> 11) as f64;
        // Uniform in (0, 1]; weighted rendezvous hashing after Schindelhauer and Schomaker (2005).
        let uniform = (number + 1.0) / (1_u64 << 53) as f64;
        f64::from(weight.max(1)) / -uniform.ln().min(-f64::MIN_POSITIVE)
    };
    let draws = names.map(draw).enumerate();
    draws
        .max_by(|one, other| one.1.total_cmp(&other.1))
        .map(|(at, _)| at)
}

/// Multiply and mix, eight bytes at a time: even, and the same on every node; nobody gains by a collision.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let step = |state: u64, word: u64| {
        let state = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state ^ (state >> 29)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words
        .iter()
        .fold(seed, |state, word| step(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let state = step(state, u64::from_le_bytes(last));
    step(state, bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(account: &str, body: &str) -> u64 {
        of(
            account,
            &[Bytes::copy_from_slice(body.as_bytes())],
            body.len() as u64,
        )
    }

    #[test]
    fn a_conversation_keeps_its_number() {
        let turn = |more: &str| {
            let system = "You are patient. ".repeat(300);
            format!(
                r#"{{"model":"m","messages":[{{"role":"system","content":"{system}"}}{more}]}}"#
            )
        };
        let longer = turn(r#",{"role":"user","content":"and then?"}"#);
        assert_eq!(number("a", &turn("")), number("a", &longer));
        assert_ne!(number("a", &longer), number("b", &longer));
        assert_ne!(number("a", &longer), 0);
        assert_eq!(number("a", r#"{"model":"m","messages":[]}"#), 0);
    }

    #[test]
    fn a_key_counts_more_than_the_begin() {
        let body = |key: &str, text: &str| {
            format!(r#"{{"messages":"{text}","user":"u","prompt_cache_key" : "{key}"}}"#)
        };
        assert_eq!(number("a", &body("k", "x")), number("a", &body("k", "y")));
        assert_ne!(number("a", &body("k", "x")), number("a", &body("l", "x")));
        let quoted = r#"{"messages":"say \"prompt_cache_key\":\"k\" twice"}"#;
        assert_eq!(number("a", quoted), 0);
    }

    #[test]
    fn numbers_are_drawn_by_weight_and_stay_when_another_goes() {
        let names: Vec<(Arc<str>, u32)> = vec![("a".into(), 1), ("b".into(), 1), ("c".into(), 2)];
        let by = |names: &[(Arc<str>, u32)], number| {
            let rows = names.iter().map(|(name, weight)| (name, *weight));
            Arc::clone(&names[preferred(number, rows).unwrap()].0)
        };
        let mut served = [0; 3];
        for turn in 1..=4_000_u64 {
            let number = hash(turn, b"x");
            let chosen = by(&names, number);
            served[names.iter().position(|(name, _)| *name == chosen).unwrap()] += 1;
            if *chosen != *"c" {
                assert_eq!(by(&names[..2], number), chosen);
            }
        }
        assert!((800..1_200).contains(&served[0]), "{served:?}");
        assert!((1_800..2_200).contains(&served[2]), "{served:?}");
        assert_eq!(preferred(0, std::iter::empty()), None);
    }
}
