//! Cuts Rust source into words, without comments, strings and character literals.
//!
//! Not a parser: just enough to find paths such as `crate::tunnel::Pool`, also inside
//! `use crate::{a::B, c}`, and to know in which inline module a word stands.

/// One word: a name, or a mark such as `::` or `{`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Word<'a> {
    /// An identifier or keyword.
    Name(&'a str),
    /// `::`.
    Colons,
    /// Any other character that is not white space.
    Mark(u8),
}

/// Cuts the source into words.
pub fn words(source: &str) -> Vec<Word<'_>> {
    let bytes = source.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        at += match rest {
            [b'/', b'/', ..] => line(rest),
            [b'/', b'*', ..] => block_comment(rest),
            [b'"', ..] => quoted(rest),
            [b'r' | b'b', ..] if raw_hashes(rest).is_some() => raw_string(rest),
            [b'b', b'"', ..] => 1 + quoted(&rest[1..]),
            [b'\'', ..] => quote_or_lifetime(rest),
            [b':', b':', ..] => {
                found.push(Word::Colons);
                2
            }
            [byte, ..] if is_name(*byte) => {
                let long = rest.iter().take_while(|byte| is_name(**byte)).count();
                found.push(Word::Name(&source[at..at + long]));
                long
            }
            [byte, ..] => {
                if !byte.is_ascii_whitespace() {
                    found.push(Word::Mark(*byte));
                }
                1
            }
            [] => 1,
        };
    }
    found
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn line(rest: &[u8]) -> usize {
    rest.iter().take_while(|byte| **byte != b'\n').count()
}

fn block_comment(rest: &[u8]) -> usize {
    let mut deep = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => {
                deep += 1;
                at += 2;
            }
            [b'*', b'/', ..] => {
                deep -= 1;
                at += 2;
                if deep == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// How many `#` a raw string opens with, if one starts here.
fn raw_hashes(rest: &[u8]) -> Option<usize> {
    let after = rest
        .strip_prefix(b"br")
        .or_else(|| rest.strip_prefix(b"r"))?;
    let hashes = after.iter().take_while(|byte| **byte == b'#').count();
    (after.get(hashes) == Some(&b'"')).then_some(hashes)
}

fn raw_string(rest: &[u8]) -> usize {
    let hashes = raw_hashes(rest).unwrap_or(0);
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let open = rest.iter().take_while(|byte| **byte != b'"').count() + 1;
    let body = &rest[open.min(rest.len())..];
    let long = body.windows(end.len()).position(|window| window == end);
    long.map_or(rest.len(), |long| open + long + end.len())
}

fn quote_or_lifetime(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        let long = rest
            .iter()
            .skip(3)
            .take_while(|byte| **byte != b'\'')
            .count();
        return 3 + long + 1;
    }
    let char_long = match rest.get(1) {
        Some(0xf0..) => 4,
        Some(0xe0..) => 3,
        Some(0xc0..) => 2,
        _ => 1,
    };
    if rest.get(1 + char_long) == Some(&b'\'') {
        return char_long + 2;
    }
    1
}

/// A path's first steps below its root, with the inline modules around it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Use<'a> {
    /// `crate`, `super` or the name of a crate.
    pub root: &'a str,
    /// How many `super` in a row; 0 for other roots.
    pub ups: usize,
    /// The first name below the root.
    pub first: &'a str,
    /// How many inline modules stand around it in its file.
    pub inline_modules: usize,
}

/// Finds every path that starts at `crate`, at `super`, or at one of `crates`.
pub fn uses<'a>(source: &'a str, crates: &[&'a str]) -> Vec<Use<'a>> {
    let words = words(source);
    let mut found = Vec::new();
    let mut braces: Vec<bool> = Vec::new();
    for at in 0..words.len() {
        match words[at] {
            Word::Mark(b'{') => braces.push(opens_module(&words[..at])),
            Word::Mark(b'}') => {
                braces.pop();
            }
            Word::Name(root) if root == "crate" || root == "super" || crates.contains(&root) => {
                let inside = at > 0 && words[at - 1] == Word::Colons;
                if inside || words.get(at + 1) != Some(&Word::Colons) {
                    continue;
                }
                let ups = ups(&words[at..]);
                let start = at + 2 * ups.max(1);
                let inline_modules = braces.iter().filter(|module| **module).count();
                found.extend(firsts(&words[start..]).into_iter().map(|first| Use {
                    root,
                    ups,
                    first,
                    inline_modules,
                }));
            }
            _ => {}
        }
    }
    found
}

fn opens_module(before: &[Word<'_>]) -> bool {
    matches!(before, [.., Word::Name("mod"), Word::Name(_)])
}

fn ups(words: &[Word<'_>]) -> usize {
    let pairs = words.chunks_exact(2);
    pairs
        .take_while(|pair| *pair == [Word::Name("super"), Word::Colons])
        .count()
}

/// The first names after a root: one, or one for each branch of a group.
fn firsts<'a>(words: &[Word<'a>]) -> Vec<&'a str> {
    match words.first() {
        Some(Word::Name(name)) => vec![*name],
        Some(Word::Mark(b'{')) => {
            let mut found = Vec::new();
            let mut deep = 0_usize;
            let mut expected = false;
            for word in words {
                match word {
                    Word::Mark(b'{') => {
                        deep += 1;
                        expected = deep == 1;
                    }
                    Word::Mark(b'}') => deep -= 1,
                    Word::Mark(b',') => expected = deep == 1,
                    Word::Name(name) if expected && deep == 1 => {
                        found.push(*name);
                        expected = false;
                    }
                    _ => {}
                }
                if deep == 0 {
                    break;
                }
            }
            found
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Use, uses};

    fn check(source: &str, wanted: &[&str]) {
        let show = |found: &Use<'_>| format!("{}{}.{}", found.root, found.ups, found.first);
        let found: Vec<String> = uses(source, &["vector_proto"]).iter().map(show).collect();
        assert_eq!(found, wanted, "in {source}");
    }

    #[test]
    fn paths_are_found_where_they_hide() {
        check("use crate::tunnel::Pool;", &["crate0.tunnel"]);
        check(
            "use crate::{a::{b, c}, d, e as f};",
            &["crate0.a", "crate0.d", "crate0.e"],
        );
        check("fn f() { crate::relay::run() }", &["crate0.relay"]);
        check("use super::super::egress;", &["super2.egress"]);
        check(
            "use super::{admit, route};",
            &["super1.admit", "super1.route"],
        );
        check("let x: vector_proto::id::Name;", &["vector_proto0.id"]);
        check(
            "pub(crate) fn f() {} pub(in crate::tunnel) fn g() {}",
            &["crate0.tunnel"],
        );
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        check("// crate::a\n/* crate::b /* crate::c */ */", &[]);
        check(
            r##"let x = "crate::a \" crate::b"; let y = r#"crate::c"#;"##,
            &[],
        );
        check(
            "let q = '\"'; use crate::a; let r = '\\''; use crate::b;",
            &["crate0.a", "crate0.b"],
        );
        check(
            "fn f<'a>(x: &'a str) { crate::a::g(b\"crate::b\") }",
            &["crate0.a"],
        );
    }

    #[test]
    fn inline_modules_are_counted() {
        let found = uses(
            "mod tests { fn f() { super::g() } } fn h() { super::i() }",
            &[],
        );
        let deep: Vec<usize> = found.iter().map(|found| found.inline_modules).collect();
        assert_eq!(deep, [1, 0]);
    }
}
