//! The files of the repository, as rules see them: path, text and whether they can be run.
//!
//! Asks git which files there are, tracked or about to be, so that build output and what
//! `.gitignore` names is never read. Tests make small trees by hand.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// One file.
#[derive(Clone, Debug)]
pub struct File {
    /// From the top of the repository, with `/`.
    pub path: String,
    /// Empty for a file that is not UTF-8.
    pub text: String,
    /// Whether its owner may run it.
    pub runs: bool,
}

impl File {
    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    /// Whether the path ends in `.rs`.
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Whether the whole file is tests: `tests.rs` of a room, or a crate's own `tests/` folder.
    pub fn is_tests(&self) -> bool {
        self.is_rust() && (self.name() == "tests.rs" || self.path.contains("/tests/"))
    }

    /// The program named by a `#!` line, without its folder, or nothing.
    pub fn interpreter(&self) -> Option<&str> {
        let line = self.text.strip_prefix("#!")?.lines().next()?;
        line.split([' ', '/']).rfind(|part| !part.is_empty())
    }
}

/// All files, in the order of their paths.
#[derive(Debug, Default)]
pub struct Tree(Vec<File>);

impl Tree {
    /// Reads the repository that this crate stands in.
    pub fn of_this_repository() -> io::Result<Self> {
        let top = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
        let listed = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(&top)
            .output()?;
        if !listed.status.success() {
            let said = String::from_utf8_lossy(&listed.stderr);
            return Err(io::Error::other(format!("git ls-files: {said}")));
        }
        let mut files: Vec<File> = String::from_utf8_lossy(&listed.stdout)
            .split_terminator('\0')
            .filter_map(|path| read(&top, path).transpose())
            .collect::<io::Result<_>>()?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self(files))
    }

    /// A tree of plain files, none of which can be run.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
            runs: false,
        };
        Self(files.iter().map(file).collect())
    }

    /// Every file.
    pub fn files(&self) -> impl Iterator<Item = &File> {
        self.0.iter()
    }

    /// The file at this path.
    pub fn file(&self, path: &str) -> Option<&File> {
        self.0.iter().find(|file| file.path == path)
    }

    /// Whether a file or a folder stands at this path.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let below = |file: &File| {
            let rest = file.path.strip_prefix(path);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.0.iter().any(below)
    }
}

/// Reads one listed file; a file that was deleted but is still listed is nothing.
fn read(top: &Path, path: &str) -> io::Result<Option<File>> {
    let full = top.join(path);
    let Ok(meta) = fs::symlink_metadata(&full) else {
        return Ok(None);
    };
    if !meta.is_file() {
        return Ok(None);
    }
    Ok(Some(File {
        path: path.to_owned(),
        text: String::from_utf8(fs::read(&full)?).unwrap_or_default(),
        runs: meta.permissions().mode() & 0o100 != 0,
    }))
}
