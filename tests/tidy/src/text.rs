//! What no file may say: one machine's paths, a package registry's address, unfinished work.
//!
//! The forbidden texts stand here in two halves each, so that this file passes its own rule.

use crate::tree::{File, Tree};

/// Folders of a machine; a fault where a path starts with one of them.
const MACHINE_FOLDERS: &[&str] = &[
    concat!("/", "work/"),
    concat!("/", "root/"),
    concat!("/", "home/"),
    concat!("/", "Users/"),
    concat!("/tmp/", "wt/"),
    concat!("/tmp/", "tgt/"),
];

/// Texts that are a fault wherever they stand.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("../", "shared"), "leads out of the repository"),
    (concat!("registry.", "npmjs"), "names a package registry"),
    (concat!("pypi", ".org"), "names a package registry"),
    (concat!("python", "hosted"), "names a package registry"),
    (concat!("static.", "crates"), "names a package registry"),
    (concat!("index.", "crates"), "names a package registry"),
    (concat!("deb.", "debian"), "names a package registry"),
    (concat!("--index", "-url"), "names a package registry"),
    (concat!("\"reso", "lved\":"), "names a package registry"),
];

/// Words of unfinished work; a fault where they stand alone.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("HA", "CK"),
];

/// Files that say what they may not.
pub fn faults(tree: &Tree) -> Vec<String> {
    tree.files().flat_map(file_faults).collect()
}

fn file_faults(file: &File) -> Vec<String> {
    let mut faults = Vec::new();
    // Cargo writes these two; the lock file names the one registry Cargo itself defaults to.
    let written_by_cargo = file.name() == "Cargo.lock";
    for (at, line) in file.text.lines().enumerate() {
        let mut fault = |what: &str| faults.push(format!("{}:{}: {what}", file.path, at + 1));
        for (text, what) in FORBIDDEN {
            if line.contains(text) && !written_by_cargo {
                fault(what);
            }
        }
        if MACHINE_FOLDERS
            .iter()
            .any(|folder| starts_a_path(line, folder))
        {
            fault("names a folder of one machine");
        }
        if UNFINISHED.iter().any(|word| stands_alone(line, word)) && !written_by_cargo {
            fault("speaks of unfinished work");
        }
    }
    faults
}

/// Whether the folder stands in the line where a path begins, so not inside a longer one.
fn starts_a_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || "._-}/*".contains(before))
    })
}

/// Whether the word stands in the line between characters that no word has.
fn stands_alone(line: &str, word: &str) -> bool {
    let of_a_word = |found: Option<char>| found.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !of_a_word(before) && !of_a_word(after)
    })
}

#[cfg(test)]
mod tests {
    use super::{FORBIDDEN, MACHINE_FOLDERS, UNFINISHED, faults};
    use crate::tree::Tree;

    fn check(path: &str, text: &str, wanted: &[&str]) {
        assert_eq!(faults(&Tree::of(&[(path, text)])), wanted, "{text}");
    }

    #[test]
    fn each_forbidden_text_is_found() {
        for (text, what) in FORBIDDEN {
            check(
                "a.md",
                &format!("one\nsee {text} there"),
                &[&format!("a.md:2: {what}")],
            );
        }
        for word in UNFINISHED {
            check(
                "a.rs",
                &format!("// {word}: later"),
                &["a.rs:1: speaks of unfinished work"],
            );
            check("a.rs", &format!("let a{word}b = 1;"), &[]);
        }
    }

    #[test]
    fn a_machine_is_known_by_its_folders() {
        for folder in MACHINE_FOLDERS {
            let told = "a.sh:1: names a folder of one machine";
            check("a.sh", &format!("cd {folder}x"), &[told]);
            check("a.sh", &format!("\"{folder}x\""), &[told]);
            check("a.sh", &format!("cd target{folder}x"), &[]);
            check("a.sh", &format!("cd ${{DIR}}{folder}x"), &[]);
        }
    }

    #[test]
    fn the_lock_file_of_cargo_may_name_its_registry() {
        let line = concat!("source = \"registry+https://index.", "crates.io/\"");
        check("Cargo.lock", line, &[]);
        check(
            "Cargo.toml",
            line,
            &["Cargo.toml:1: names a package registry"],
        );
    }
}
