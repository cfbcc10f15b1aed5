//! What each file owes its reader: a first sentence, a bearable length, a telling name.
//!
//! Allowances stand beside the rule they soften, each with its reason.

use crate::tree::{File, Tree};

/// Lines a Rust file may have before its tests.
const LINES_MAX: usize = 500;

/// Fewest letters of a first sentence that says something.
const HEAD_LETTERS_MIN: usize = 12;

/// What may stand at the top, besides files and folders whose name starts with a dot.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "control",
    "deploy",
    "edge",
    "proto",
    "tests",
];

/// Names of shelves, not of things. `mod` is the old name of a room's file.
const SHELVES: &[&str] = &[
    "common", "helper", "helpers", "manager", "misc", "mod", "types", "util", "utils",
];

/// Entries at the top that do not belong there.
pub fn top_level(tree: &Tree) -> Vec<String> {
    let mut entries: Vec<&str> = tree
        .files()
        .filter_map(|file| file.path.split('/').next())
        .filter(|entry| !entry.starts_with('.') && !TOP_LEVEL.contains(entry))
        .collect();
    entries.dedup();
    let fault = |entry: &str| format!("{entry}: the top level is fixed, find it a room");
    entries.into_iter().map(fault).collect()
}

/// Files that do not open by saying what they are for.
pub fn heads(tree: &Tree) -> Vec<String> {
    tree.files()
        .filter_map(|file| {
            let marks = head_marks(file)?;
            let head = first_sentence(file, marks);
            let letters = head.chars().filter(|letter| letter.is_alphabetic()).count();
            (letters < HEAD_LETTERS_MIN)
                .then(|| format!("{}: opens without saying what it is for", file.path))
        })
        .collect()
}

/// How a first sentence begins in this kind of file; nothing where none is asked for.
fn head_marks(file: &File) -> Option<&'static [&'static str]> {
    let ending = file
        .name()
        .rsplit_once('.')
        .map_or("", |(_, ending)| ending);
    match ending {
        "rs" => Some(&["//!"]),
        "proto" => Some(&["//"]),
        "mjs" | "js" | "ts" => Some(&["//", "/**", "/*"]),
        "py" => Some(&["\"\"\"", "#"]),
        "sh" => Some(&["#"]),
        "toml" if file.path.starts_with("deploy/") => Some(&["#"]),
        // Scripts by their `#!` line, whatever they are called.
        _ => match file.interpreter()? {
            "node" => Some(&["//", "/**", "/*"]),
            "python3" => Some(&["\"\"\"", "#"]),
            _ => Some(&["#"]),
        },
    }
}

fn first_sentence<'a>(file: &'a File, marks: &[&str]) -> &'a str {
    let mut lines = file.text.lines();
    let mut line = lines.next().unwrap_or("");
    if line.starts_with("#!") && !line.starts_with("#![") {
        line = lines.next().unwrap_or("");
    }
    let cut = |mark: &&str| line.strip_prefix(*mark);
    marks.iter().find_map(cut).unwrap_or("")
}

/// Rust files that are too long before their tests.
pub fn sizes(tree: &Tree) -> Vec<String> {
    tree.files()
        .filter(|file| file.is_rust() && !file.is_tests())
        .filter_map(|file| {
            let lines = lines_before_tests(&file.text);
            (lines > LINES_MAX).then(|| format!("{}: {lines} lines before its tests", file.path))
        })
        .collect()
}

/// Lines up to the test module at the end. A lone `#[cfg(test)]` item hides nothing.
fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "));
    tests.unwrap_or(lines.len())
}

/// Files and folders whose name says nothing.
pub fn names(tree: &Tree) -> Vec<String> {
    tree.files()
        .filter_map(|file| {
            let part = file.path.split('/').find(|part| {
                let stem = part.split('.').next().unwrap_or(part);
                SHELVES.contains(&stem)
            })?;
            Some(format!("{}: `{part}` is the name of a shelf", file.path))
        })
        .collect()
}

/// Scripts that cannot be run, or that go on after an error.
pub fn scripts(tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for file in tree.files() {
        let Some(interpreter) = file.interpreter() else {
            continue;
        };
        // `#![no_main]` and the like are Rust, not a script.
        if file.is_rust() {
            continue;
        }
        if !file.runs {
            faults.push(format!("{}: a script without its run bit", file.path));
        }
        if interpreter == "sh" {
            faults.push(format!("{}: say bash; sh has no pipefail here", file.path));
        }
        if interpreter == "bash" && !file.text.lines().any(|line| line == "set -euo pipefail") {
            faults.push(format!("{}: `set -euo pipefail` is missing", file.path));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::{heads, names, scripts, sizes, top_level};
    use crate::tree::Tree;

    fn check(rule: fn(&Tree) -> Vec<String>, path: &str, text: &str, wanted: &[&str]) {
        assert_eq!(rule(&Tree::of(&[(path, text)])), wanted, "{path}");
    }

    #[test]
    fn strangers_at_the_top_are_told() {
        check(
            top_level,
            "src/lib.rs",
            "",
            &["src: the top level is fixed, find it a room"],
        );
        check(top_level, ".ci/run", "", &[]);
        check(top_level, "edge/src/lib.rs", "", &[]);
    }

    #[test]
    fn a_file_opens_with_a_sentence() {
        let silent = |path: &str| format!("{path}: opens without saying what it is for");
        for path in ["a.rs", "a.proto", "a.py", "a.mjs", "deploy/config/a.toml"] {
            check(heads, path, "fn main() {}", &[&silent(path)]);
            check(heads, path, "", &[&silent(path)]);
        }
        check(heads, "a.rs", "//! Tidy.", &[&silent("a.rs")]);
        check(heads, "a.rs", "//! Says what it is for.", &[]);
        check(heads, "a.rs", "// Says what it is for.", &[&silent("a.rs")]);
        check(
            heads,
            "run",
            "#!/usr/bin/env bash\n# Runs all that can be run.",
            &[],
        );
        check(
            heads,
            "run",
            "#!/usr/bin/env bash\nset -e",
            &[&silent("run")],
        );
        check(
            heads,
            "a.py",
            "#!/usr/bin/env python3\n\"\"\"Says what it is for.\"\"\"",
            &[],
        );
        check(heads, "LICENSE", "", &[]);
    }

    #[test]
    fn long_files_are_told_and_tests_are_free() {
        let long = "x\n".repeat(501);
        check(sizes, "a.rs", &long, &["a.rs: 501 lines before its tests"]);
        let tests = format!("//! a\n#[cfg(test)]\nmod tests {{\n{long}}}");
        check(sizes, "a.rs", &tests, &[]);
        check(sizes, "edge/src/tunnel/tests.rs", &long, &[]);
        check(
            sizes,
            "tests/it/main.rs",
            &long,
            &["tests/it/main.rs: 501 lines before its tests"],
        );
        let early = format!("#[cfg(test)]\nuse a::b;\n{long}");
        check(sizes, "a.rs", &early, &["a.rs: 503 lines before its tests"]);
    }

    #[test]
    fn shelves_are_no_rooms() {
        let told = |path: &str, part: &str| format!("{path}: `{part}` is the name of a shelf");
        for (path, part) in [
            ("edge/src/util.rs", "util.rs"),
            ("edge/src/tunnel/mod.rs", "mod.rs"),
            ("edge/src/common/x.rs", "common"),
            ("tests/sdk/helpers.py", "helpers.py"),
        ] {
            check(names, path, "", &[&told(path, part)]);
        }
        check(names, "edge/src/model.rs", "", &[]);
    }

    #[test]
    fn scripts_run_and_stop() {
        check(
            scripts,
            "run",
            "#!/usr/bin/env bash\nset -e",
            &[
                "run: a script without its run bit",
                "run: `set -euo pipefail` is missing",
            ],
        );
        check(
            scripts,
            "run",
            "#!/bin/sh\n",
            &[
                "run: a script without its run bit",
                "run: say bash; sh has no pipefail here",
            ],
        );
        check(scripts, "a.rs", "#![no_main]", &[]);
    }
}
