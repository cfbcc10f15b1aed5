//! The audit log: shown, and checked here rather than believed.

use prost::Message as _;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use vector_proto::control::v1 as pb;

use super::{Done, PAGE, Shown};
use crate::{Failure, args, connect::Client, table};

pub(super) async fn audit(mut client: Client, asked: args::Audit) -> Done {
    if asked.verify {
        return verify(client).await;
    }
    let asked = pb::ListAuditRequest {
        after_seq: 0,
        page_size: asked.rows,
        newest: true,
    };
    let page = client.list_audit(asked).await?.into_inner();
    let entries: Vec<pb::AuditEntry> = page.records.iter().map(entry).collect();
    let value = json!({ "entries": entries.iter().map(value).collect::<Vec<_>>() });
    Ok(Shown::new(value, table::audit(&entries)))
}

async fn verify(mut client: Client) -> Done {
    let mut chain = Chain::default();
    let mut after_seq = 0;
    loop {
        let asked = pb::ListAuditRequest {
            after_seq,
            page_size: PAGE,
            newest: false,
        };
        let page = client.list_audit(asked).await?.into_inner();
        page.records.iter().for_each(|record| chain.add(record));
        let head = page.head.unwrap_or_default();
        let seen = chain.seq;
        // Entries that were added meanwhile have a newer head.
        if page.records.is_empty() || seen <= after_seq || seen >= head.seq {
            chain.end(&head, page.head_proven);
            break;
        }
        after_seq = seen;
    }
    if chain.faults.is_empty() {
        let text = format!(
            "{} entries, each leads to the next, and the last is proven",
            chain.count
        );
        let value = json!({ "entries": chain.count, "seq": chain.seq, "faults": [] });
        return Ok(Shown::new(value, text));
    }
    Err(Failure::Refused(format!(
        "the audit log was altered:\n  {}",
        chain.faults.join("\n  ")
    )))
}

/// The chain as far as it was read.
#[derive(Default)]
struct Chain {
    seq: u64,
    hash: Vec<u8>,
    count: u64,
    faults: Vec<String>,
}

impl Chain {
    fn add(&mut self, record: &pb::AuditRecord) {
        let is = entry(record);
        if digest(&SHA256, &record.entry).as_ref() != record.hash {
            let at = if is.seq == 0 { self.seq + 1 } else { is.seq };
            self.faults
                .push(format!("entry {at} does not have its hash"));
        }
        if self.count > 0 {
            if is.seq != self.seq + 1 {
                self.faults
                    .push(format!("after entry {} comes {}", self.seq, is.seq));
            } else if is.previous != self.hash {
                self.faults.push(format!(
                    "entry {} does not follow from the one before it",
                    is.seq
                ));
            }
        }
        if is.broken {
            self.faults.push(format!(
                "before entry {} somebody else wrote to the log",
                is.seq
            ));
        }
        self.seq = is.seq;
        self.hash = record.hash.to_vec();
        self.count += 1;
    }

    fn end(&mut self, head: &pb::AuditHead, proven: bool) {
        if !proven {
            self.faults
                .push("the head was not written by control".to_owned());
        }
        if head.seq != self.seq || head.hash != self.hash {
            self.faults.push(format!(
                "the log ends with entry {}, not with {} as its head says",
                self.seq, head.seq
            ));
        }
        let oldest = head.seq.saturating_sub(self.count) + 1;
        if oldest > head.oldest_seq.max(1) {
            self.faults.push(format!(
                "it begins with entry {oldest}, not with {}",
                head.oldest_seq
            ));
        }
    }
}

fn entry(record: &pb::AuditRecord) -> pb::AuditEntry {
    pb::AuditEntry::decode(record.entry.clone()).unwrap_or_default()
}

fn value(entry: &pb::AuditEntry) -> Value {
    let changes = entry.changes.iter().map(|change| {
        json!({
            "action": change.action, "kind": change.kind, "name": change.name, "details": change.details,
            "before_sha256": hex(&change.before), "after_sha256": hex(&change.after),
        })
    });
    json!({
        "seq": entry.seq, "unix_ms": entry.unix_ms, "actor": entry.actor, "address": entry.address,
        "changes": changes.collect::<Vec<_>>(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: u64) -> (Vec<pb::AuditRecord>, pb::AuditHead) {
        let mut records: Vec<pb::AuditRecord> = Vec::new();
        for seq in 1..=count {
            let entry = pb::AuditEntry {
                seq,
                actor: "operator/eve".to_owned(),
                previous: records
                    .last()
                    .map(|last| last.hash.clone())
                    .unwrap_or_default(),
                ..pb::AuditEntry::default()
            };
            records.push(record(&entry));
        }
        let head = pb::AuditHead {
            seq: count,
            hash: records.last().unwrap().hash.clone(),
            oldest_seq: 1,
            ..pb::AuditHead::default()
        };
        (records, head)
    }

    fn record(entry: &pb::AuditEntry) -> pb::AuditRecord {
        let entry = entry.encode_to_vec();
        pb::AuditRecord {
            hash: digest(&SHA256, &entry).as_ref().to_vec().into(),
            entry: entry.into(),
        }
    }

    fn faults(records: &[pb::AuditRecord], head: &pb::AuditHead, proven: bool) -> Vec<String> {
        let mut chain = Chain::default();
        records.iter().for_each(|record| chain.add(record));
        chain.end(head, proven);
        chain.faults
    }

    #[test]
    fn whatever_is_altered_is_found() {
        let (good, head) = chain(5);
        assert_eq!(faults(&good, &head, true), Vec::<String>::new());
        assert_ne!(faults(&good, &head, false), Vec::<String>::new());

        let mut altered = good.clone();
        let mut other = entry(&altered[2]);
        other.actor = "operator/adam".to_owned();
        altered[2].entry = other.encode_to_vec().into();
        assert!(faults(&altered, &head, true)[0].contains("entry 3 does not have its hash"));
        // With its hash made anew, the next one no longer follows from it.
        altered[2] = record(&other);
        assert!(faults(&altered, &head, true)[0].contains("entry 4 does not follow"));
        // The last one has nothing behind it but the head.
        let mut last = good.clone();
        let mut other = entry(&last[4]);
        other.actor = "operator/adam".to_owned();
        last[4] = record(&other);
        assert!(faults(&last, &head, true)[0].contains("the log ends"));

        for gone in 0..5 {
            let mut fewer = good.clone();
            fewer.remove(gone);
            assert_ne!(
                faults(&fewer, &head, true),
                Vec::<String>::new(),
                "without {gone}"
            );
        }
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        assert_ne!(faults(&swapped, &head, true), Vec::<String>::new());
    }

    #[test]
    fn what_retention_took_is_not_missed() {
        let (all, mut head) = chain(5);
        head.oldest_seq = 3;
        assert_eq!(faults(&all[2..], &head, true), Vec::<String>::new());
    }
}
