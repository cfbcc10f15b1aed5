//! Reads the source and fails where the house's habits are broken.
//!
//! Each rule is a function from the tree of files to the faults it found, so that a rule is
//! tested by feeding it a small bad tree. Only the standard library, so that it runs in a
//! second from a clean checkout: `cargo tidy`.

// What is read: every file git knows or would add.
pub mod tree;

// Who may use whom, and how the source is cut into words to find out.
pub mod arrows;

pub mod words;

// What each file owes its reader.
pub mod shape;

pub mod text;

pub mod docs;

pub mod watched;

use tree::Tree;

/// A rule of the house: what it is called, and how it finds its faults.
pub struct Rule {
    /// Shown before the faults.
    pub name: &'static str,
    /// One line for each fault, `path: what is wrong`.
    pub faults: fn(&Tree) -> Vec<String>,
}

/// Every rule that the house keeps.
pub const RULES: &[Rule] = &[
    Rule {
        name: "arrows go one way",
        faults: arrows::faults,
    },
    Rule {
        name: "every manifest joins the lint wall",
        faults: arrows::manifest_faults,
    },
    Rule {
        name: "the top level is fixed",
        faults: shape::top_level,
    },
    Rule {
        name: "every file opens by saying what it is for",
        faults: shape::heads,
    },
    Rule {
        name: "no file is too long",
        faults: shape::sizes,
    },
    Rule {
        name: "no file is named after a shelf",
        faults: shape::names,
    },
    Rule {
        name: "scripts can be run and stop at the first error",
        faults: shape::scripts,
    },
    Rule {
        name: "no file speaks of one machine or of unfinished work",
        faults: text::faults,
    },
    Rule {
        name: "documents name what exists",
        faults: docs::names_exist,
    },
    Rule {
        name: "every example configuration is mentioned",
        faults: docs::configs_are_mentioned,
    },
    Rule {
        name: "the README walks the road of a request",
        faults: docs::road_is_told,
    },
    Rule {
        name: "dashboards and alerts watch what is measured",
        faults: watched::faults,
    },
];

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::{RULES, tree::Tree};

    #[test]
    fn the_house_is_tidy() {
        let tree = Tree::of_this_repository().unwrap();
        assert!(
            tree.files()
                .any(|file| file.path == "tests/tidy/src/lib.rs"),
            "the tree that was read is not this repository"
        );
        let mut report = String::new();
        for rule in RULES {
            for fault in (rule.faults)(&tree) {
                report += &format!("\n  {fault}   [{}]", rule.name);
            }
        }
        assert!(report.is_empty(), "{report}\n");
    }
}
