//! Which lines a change means: `a:b` one way, `a::b` both ways, and `*` at the end of a name for all that begin so.

use anyhow::bail;

/// Lines by the names of their ends.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Selector {
    from: String,
    to: String,
    both: bool,
}

impl Selector {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        for (mark, both) in [("::", true), (":", false)] {
            if let Some((from, to)) = text.split_once(mark)
                && !from.is_empty()
                && !to.is_empty()
                && !to.contains(':')
            {
                return Ok(Self {
                    from: from.to_owned(),
                    to: to.to_owned(),
                    both,
                });
            }
        }
        bail!("line `{text}`: write A:B for one way, A::B for both; a name may end in *")
    }

    pub(crate) fn takes(&self, from: &str, to: &str) -> bool {
        let straight = fits(&self.from, from) && fits(&self.to, to);
        straight || (self.both && fits(&self.from, to) && fits(&self.to, from))
    }
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::Selector;

    fn check(text: &str, from: &str, to: &str, wanted: bool) {
        assert_eq!(
            Selector::parse(text).unwrap().takes(from, to),
            wanted,
            "{text} {from} {to}"
        );
    }

    #[test]
    fn lines_are_chosen_by_their_ends() {
        check("a:b", "a", "b", true);
        check("a:b", "b", "a", false);
        check("a::b", "b", "a", true);
        check("edge-*::egress-1", "egress-1", "edge-2", true);
        check("edge-*::egress-1", "edge-2", "egress-2", false);
        check("h::*", "x", "h", true);
        check("edge:b", "edge-1", "b", false);
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for text in ["", "ab", "a:", ":b", "a::", "a:::b", "a:b:c"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
