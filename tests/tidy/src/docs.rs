//! Documents name what exists: files, folders, functions, example configurations.
//!
//! A document that no test holds true is a hope. Every `` `code` `` in a Markdown file that
//! looks like a path of ours must be there, and `file.rs::name` must be defined in that file.

use crate::{
    tree::{File, Tree},
    words::{Word, words},
};

/// Folders whose paths are checked when a document names them.
const OURS: &[&str] = &[
    "control/", "deploy/", "edge/", "proto/", "tests/", ".ci/", ".cargo/",
];

/// Fewest functions that the README names on the road of a request.
const ROAD_STEPS_MIN: usize = 8;

/// What defines a name in Rust.
const DEFINES: &[&str] = &[
    "fn",
    "struct",
    "enum",
    "trait",
    "const",
    "static",
    "type",
    "mod",
    "union",
    "macro_rules",
];

/// Paths and functions that a document names and that are not there.
pub fn names_exist(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for document in documents(tree) {
        for name in code_spans(&document.text).filter(|name| is_ours(name)) {
            if !exists(tree, name) {
                faults.push(format!("{}: `{name}` does not exist", document.path));
            }
        }
    }
    faults
}

/// The README without the road of a request, once there is a road.
pub fn road_is_told(tree: &Tree) -> Vec<String> {
    if !tree.has("edge/src/ingress.rs") {
        return Vec::new();
    }
    let text = tree.file("README.md").map_or("", |file| &file.text);
    let steps = code_spans(text)
        .filter(|name| name.starts_with("edge/src/") && name.contains(".rs::"))
        .count();
    let fault = format!("README.md: names {steps} functions of the road, not {ROAD_STEPS_MIN}");
    (steps < ROAD_STEPS_MIN)
        .then_some(fault)
        .into_iter()
        .collect()
}

/// Example configurations that no document mentions.
pub fn configs_are_mentioned(tree: &Tree) -> Vec<String> {
    tree.files()
        .filter(|file| file.path.starts_with("deploy/config/"))
        .filter(|file| !documents(tree).any(|document| document.text.contains(&file.path)))
        .map(|file| format!("{}: no document mentions it", file.path))
        .collect()
}

fn documents(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files().filter(|file| file.path.ends_with(".md"))
}

/// What stands between single back-ticks, outside of fenced blocks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    text.lines()
        .filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fenced && !fence
        })
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Whether a code span is meant as one path of ours, without a pattern in it.
fn is_ours(span: &str) -> bool {
    OURS.iter().any(|folder| span.starts_with(folder)) && !span.contains(['*', '<', '{', '…'])
}

/// Whether a path is there, up to its first space; `path::name` asks for a definition too.
fn exists(tree: &Tree, span: &str) -> bool {
    let span = span.split(' ').next().unwrap_or(span);
    let Some((path, name)) = span.split_once("::") else {
        return tree.has(span);
    };
    let name = name.rsplit("::").next().unwrap_or(name);
    let name = name.trim_end_matches("()");
    tree.file(path)
        .is_some_and(|file| defines(&file.text, name))
}

fn defines(source: &str, name: &str) -> bool {
    let words = words(source);
    words.windows(2).any(|pair| {
        let keyword = matches!(pair[0], Word::Name(word) if DEFINES.contains(&word));
        keyword && pair[1] == Word::Name(name)
    })
}

#[cfg(test)]
mod tests {
    use super::{configs_are_mentioned, names_exist, road_is_told};
    use crate::tree::Tree;

    const INGRESS: (&str, &str) = ("edge/src/ingress.rs", "pub async fn serve() {} // fn gone");

    fn check(readme: &str, wanted: &[&str]) {
        assert_eq!(
            names_exist(&Tree::of(&[("README.md", readme), INGRESS])),
            wanted
        );
    }

    #[test]
    fn what_is_named_must_be_there() {
        check("`edge/src/ingress.rs::serve` in `edge/src` or `edge/`", &[]);
        check(
            "first `edge/src/ingress.rs::gone`",
            &["README.md: `edge/src/ingress.rs::gone` does not exist"],
        );
        check(
            "then `edge/src/attic.rs` and `tests/run quick`",
            &[
                "README.md: `edge/src/attic.rs` does not exist",
                "README.md: `tests/run quick` does not exist",
            ],
        );
        check(
            "`vectorctl` and `edge/src/*.rs`\n```\n`edge/attic`\n```\n",
            &[],
        );
    }

    #[test]
    fn the_road_must_be_told_once_it_is_there() {
        let told = "`edge/src/ingress.rs::serve` ".repeat(8);
        assert!(road_is_told(&Tree::of(&[("README.md", &told), INGRESS])).is_empty());
        assert!(road_is_told(&Tree::of(&[("README.md", "")])).is_empty());
        assert_eq!(
            road_is_told(&Tree::of(&[("README.md", ""), INGRESS])),
            ["README.md: names 0 functions of the road, not 8"]
        );
    }

    #[test]
    fn an_example_nobody_mentions_is_told() {
        let example = ("deploy/config/edge.toml", "");
        assert_eq!(
            configs_are_mentioned(&Tree::of(&[("README.md", ""), example])),
            ["deploy/config/edge.toml: no document mentions it"]
        );
        let readme = ("README.md", "see deploy/config/edge.toml");
        assert!(configs_are_mentioned(&Tree::of(&[readme, example])).is_empty());
    }
}
