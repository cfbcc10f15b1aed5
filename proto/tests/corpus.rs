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

/// Nobody compiles the targets here, which need another compiler: each may do no more than run a check that is replayed.
#[test]
fn every_target_is_one_check_that_is_replayed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let mut targets = Vec::new();
    for entry in fs::read_dir(folder.join("fuzz_targets")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split_once("mod checks;").unwrap().1.trim();
        let one = format!("libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::{name}(data));");
        assert_eq!(code, one);
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")));
        targets.push(name);
    }
    targets.sort();
    let replayed = [
        "beat",
        "codec",
        "json",
        "multipart",
        "rename",
        "repair",
        "sse",
    ];
    assert_eq!(targets, replayed);
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
fn repair() {
    replay("repair", checks::repair);
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
