//! Backups on their way out and in: cut into parts, and trusted only when count and digest are right.

use std::pin::Pin;

use bytes::Bytes;
use tokio_stream::Stream;
use tonic::{Status, Streaming};
use vector_proto::control::v1 as pb;

use crate::{
    api::{Rooms, unix_ms},
    registry::{Actor, BACKUP_BYTES_MAX, BACKUP_ENTRIES_MAX, digest},
};

/// Bytes of keys and values in one part, but for one that is larger alone.
const PART_BYTES: usize = 1 << 20;

/// A backup on its way out.
pub(super) type Parts = Pin<Box<dyn Stream<Item = Result<pb::BackupPart, Status>> + Send>>;

/// Takes everything at one moment.
pub(super) async fn take(rooms: &Rooms) -> Result<Parts, Status> {
    let entries = rooms.registry.backup().await?;
    let sum = digest(entries.iter().map(|entry| (&*entry.key, &*entry.value)));
    let end = pb::BackupEnd {
        entries: entries.len() as u64,
        digest: sum.to_vec().into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: rooms.authority.trust_domain().to_owned(),
        made_unix_ms: unix_ms(),
        pin: rooms.authority.pin(),
    };
    tracing::info!(entries = entries.len(), "backup taken");
    let mut parts: Vec<pb::BackupPart> = vec![pb::BackupPart::default()];
    let mut bytes = 0;
    for entry in entries {
        let size = entry.key.len() + entry.value.len();
        bytes += size;
        if bytes > PART_BYTES && bytes > size {
            bytes = size;
            parts.push(pb::BackupPart::default());
        }
        if let Some(part) = parts.last_mut() {
            part.entries.push(pb::StoredEntry {
                key: entry.key,
                value: entry.value,
            });
        }
    }
    if let Some(part) = parts.last_mut() {
        part.end = Some(end);
    }
    Ok(Box::pin(tokio_stream::iter(parts.into_iter().map(Ok))))
}

/// Takes a whole backup in, checks it, and puts it in force.
pub(super) async fn put(
    rooms: &Rooms,
    by: &Actor,
    mut incoming: Streaming<pb::RestorePart>,
) -> Result<pb::RestoreResponse, Status> {
    let mut entries: Vec<(String, Bytes)> = Vec::new();
    let (mut bytes, mut force) = (0, false);
    let end = loop {
        let Some(part) = incoming.message().await? else {
            return Err(Status::invalid_argument("the backup is cut: it has no end"));
        };
        force |= part.force;
        let part = part.part.unwrap_or_default();
        for entry in part.entries {
            bytes += entry.key.len() + entry.value.len();
            entries.push((entry.key, entry.value));
        }
        if bytes > BACKUP_BYTES_MAX || entries.len() > BACKUP_ENTRIES_MAX {
            return Err(Status::invalid_argument("the backup is absurdly large"));
        }
        if let Some(end) = part.end {
            break end;
        }
    };
    let sum = digest(entries.iter().map(|(key, value)| (&**key, &**value)));
    if end.entries != entries.len() as u64 || *end.digest != sum {
        return Err(Status::invalid_argument(
            "the backup is damaged: its digest is another",
        ));
    }
    let domain = rooms.authority.trust_domain();
    if end.trust_domain != domain {
        return Err(Status::failed_precondition(format!(
            "the backup is of the network `{}`, this one is `{domain}`",
            end.trust_domain
        )));
    }
    if end.pin != rooms.authority.pin() {
        return Err(Status::failed_precondition(
            "the backup is of a network with another root: put the ca/ and master.key of the control it was taken from into \
             control.data_dir before its first start",
        ));
    }
    let restored = rooms.registry.restore(by, entries, force).await?;
    tracing::warn!(
        put = restored.put,
        removed = restored.removed,
        made_unix_ms = end.made_unix_ms,
        "backup restored"
    );
    // Who is out, and who drains, every replica hears from the store.
    let forget = pb::KeysChanged {
        all: true,
        ..pb::KeysChanged::default()
    };
    rooms.fleet.push_keys(forget).await;
    Ok(pb::RestoreResponse {
        put: restored.put as u64,
        removed: restored.removed as u64,
    })
}
