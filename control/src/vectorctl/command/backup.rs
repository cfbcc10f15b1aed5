//! Backups in files: one line that says what it is, then parts as control sent them, each behind its length (protobuf's
//! usual one), and the digest in the last.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use prost::Message as _;
use ring::digest::{Context, SHA256};
use serde_json::json;
use vector_proto::control::v1 as pb;

use super::{Done, Shown};
use crate::{Failure, connect::Client};

/// The first line of every backup.
const HEAD: &[u8] = b"vector-backup 1\n";

/// Largest file read; control takes no more either.
const FILE_BYTES_MAX: u64 = 300 << 20;

/// Takes a backup into a file that only its owner may read. A file that is there is replaced once the backup is whole.
pub(super) async fn backup(mut client: Client, file: &Path) -> Done {
    let told = |error: io::Error| Failure::Usage(format!("{}: {error}", file.display()));
    let mut stream = client.backup(pb::BackupRequest {}).await?.into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await? {
        parts.push(part);
    }
    let end = check(&parts).map_err(|why| Failure::Refused(why.to_owned()))?;
    let mut fresh = file.as_os_str().to_owned();
    fresh.push(".new");
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(told)?;
    out.write_all(HEAD).map_err(told)?;
    for part in &parts {
        out.write_all(&part.encode_length_delimited_to_vec())
            .map_err(told)?;
    }
    out.sync_all().map_err(told)?;
    fs::rename(&fresh, file).map_err(told)?;
    let value = json!({
        "file": file.display().to_string(), "entries": end.entries, "trust_domain": end.trust_domain,
        "made_unix_ms": end.made_unix_ms,
    });
    let text = format!(
        "{} entries of {} are in {}.\n\nSecrets in it are sealed: keep control's master.key and ca/ apart from it, and safe. \
         Usage is in the ledger, which has backups of its own.",
        end.entries,
        end.trust_domain,
        file.display()
    );
    Ok(Shown::new(value, text))
}

/// Gives the parts of a backup to control.
pub(super) async fn restore(mut client: Client, parts: Vec<pb::BackupPart>, force: bool) -> Done {
    let parts = parts.into_iter().map(move |part| pb::RestorePart {
        part: Some(part),
        force,
    });
    let done = client
        .restore(tokio_stream::iter(parts))
        .await?
        .into_inner();
    let value = json!({ "put": done.put, "removed": done.removed });
    let text = format!(
        "{} entries are restored, {} others removed.\n\nRestart every control but the one that was asked: they may hold what was before.",
        done.put, done.removed
    );
    Ok(Shown::new(value, text))
}

/// Reads a backup, and checks that it is whole.
pub(super) fn read(file: &Path) -> Result<Vec<pb::BackupPart>, Failure> {
    let told = |why: &dyn std::fmt::Display| Failure::Usage(format!("{}: {why}", file.display()));
    let size = fs::metadata(file).map_err(|error| told(&error))?.len();
    if size > FILE_BYTES_MAX {
        return Err(told(&"is larger than any backup"));
    }
    let bytes = fs::read(file).map_err(|error| told(&error))?;
    let parts = parts(&bytes).map_err(|why| told(&why))?;
    check(&parts).map_err(|why| told(&why))?;
    Ok(parts)
}

fn parts(bytes: &[u8]) -> Result<Vec<pb::BackupPart>, &'static str> {
    let mut rest = bytes.strip_prefix(HEAD).ok_or("is no backup of ours")?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let part = pb::BackupPart::decode_length_delimited(&mut rest)
            .map_err(|_| "is damaged: a part cannot be read")?;
        parts.push(part);
    }
    Ok(parts)
}

/// The end of a whole backup.
fn check(parts: &[pb::BackupPart]) -> Result<pb::BackupEnd, &'static str> {
    let mut sum = Context::new(&SHA256);
    let mut count = 0;
    for entry in parts.iter().flat_map(|part| &part.entries) {
        count += 1;
        for part in [entry.key.as_bytes(), &entry.value] {
            sum.update(&(part.len() as u64).to_be_bytes());
            sum.update(part);
        }
    }
    let end = parts.last().and_then(|part| part.end.clone());
    let end = end.ok_or("is cut: it has no end")?;
    if end.entries != count || *end.digest != *sum.finish().as_ref() {
        return Err("is damaged: its digest is another");
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Vec<pb::BackupPart> {
        let entry = |key: &str| pb::StoredEntry {
            key: key.to_owned(),
            value: vec![7; 300].into(),
        };
        let mut sum = Context::new(&SHA256);
        for key in ["/a", "/b"] {
            sum.update(&2_u64.to_be_bytes());
            sum.update(key.as_bytes());
            sum.update(&300_u64.to_be_bytes());
            sum.update(&[7; 300]);
        }
        let part = |key| pb::BackupPart {
            entries: vec![entry(key)],
            end: None,
        };
        let mut parts = vec![part("/a"), part("/b")];
        parts[1].end = Some(pb::BackupEnd {
            entries: 2,
            digest: sum.finish().as_ref().to_vec().into(),
            ..pb::BackupEnd::default()
        });
        parts
    }

    fn written(parts: &[pb::BackupPart]) -> Vec<u8> {
        let bodies = parts
            .iter()
            .map(|part| part.encode_length_delimited_to_vec());
        HEAD.iter().copied().chain(bodies.flatten()).collect()
    }

    #[test]
    fn a_backup_reads_back_and_every_changed_byte_is_found() {
        let whole = written(&sound());
        assert_eq!(parts(&whole).unwrap(), sound());
        check(&sound()).unwrap();
        let judged = |bytes: &[u8]| parts(bytes).and_then(|parts| check(&parts));
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            // A changed tag may make a field that nobody knows: then what it held is missing.
            assert!(judged(&damaged).is_err(), "byte {at}");
            assert!(judged(&whole[..at]).is_err(), "cut at {at}");
        }
    }
}
