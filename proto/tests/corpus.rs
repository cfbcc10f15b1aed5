//! Replays every corpus file of the fuzz targets through the same checks, on the stable compiler.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a check that cannot go on has failed"
)]

use std::fs;
use std::path::Path;

#[path = "../fuzz/checks.rs"]
mod checks;

fn replay(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        eprintln!("{}", path.display());
        check(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count > 0, "no corpus in {}", folder.display());
}

#[test]
fn json() {
    replay("json", checks::json);
}

#[test]
fn multipart() {
    replay("multipart", checks::multipart);
}

#[test]
fn sse() {
    replay("sse", checks::sse);
}

#[test]
fn rename() {
    replay("rename", checks::rename);
}

#[test]
fn codec() {
    replay("codec", checks::codec);
}

#[test]
fn beat() {
    replay("beat", checks::beat);
}
