//! Which certificates count no more: those of nodes that were removed, or have enrolled anew with another key.
//!
//! A row says before which moment a node's certificates were issued that are refused, by every node and by control. It goes
//! with the transaction that removes or enrols, so there is never one without the other, and is dropped once every such
//! certificate has ended and nobody lets it count beyond its end any more. That a node is not listed anywhere says nothing.

use std::time::Duration;

use prost::Message as _;
use vector_proto::control::v1::Revocation;

use super::{Error, Registry, catalog::decode};
use crate::coordinate::{Entry, Transaction};

pub(super) const REVOKED: &str = "/revoked/";

/// The clocks of two replicas of control may be so far apart: the other one may have issued a certificate in this one's
/// future. A node that enrols within this time of its removal gets a certificate of the end of it, which is good at once,
/// since certificates begin 300 s before they are issued.
const SKEW_S: u64 = 60;

/// A node's certificate lives a day, and counts seven more with nodes that do not hear control; a day of room.
pub const CERTIFICATE_LIFE_MAX: Duration = Duration::from_secs(9 * 86_400);

/// Rows that are kept; the oldest go first. A thousand nodes that are replaced twice a day are 18,000; each is 40 bytes of
/// every snapshot.
const ROWS_MAX: usize = 20_000;

/// Rows that one transaction drops.
const DROPPED_MAX: usize = 64;

/// The first second whose certificates count, of a node that is removed or replaced now and was enrolled at that time.
#[must_use]
pub fn revoked_before(enrolled_unix_ms: u64, now_unix_ms: u64) -> u64 {
    // Certificates know seconds only, and none is issued for a time before the enrolment.
    let now = now_unix_ms / 1_000 + SKEW_S;
    now.max(enrolled_unix_ms / 1_000) + 1
}

fn key(id: &str) -> String {
    format!("{REVOKED}{id}")
}

impl Registry {
    /// What is revoked of one node; 0 for nothing. In seconds since 1970.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn revoked_of(&self, id: &str) -> Result<u64, Error> {
        let Some(row) = self.store.get(&key(id)).await? else {
            return Ok(0);
        };
        Ok(decode::<Revocation>(&row.value)?.before_unix_s)
    }

    /// Adds to a transaction that a node's certificates of before a moment count no more, and that old rows go.
    pub(super) async fn revoke(
        &self,
        id: &str,
        before_unix_s: u64,
        now_unix_ms: u64,
        mut transaction: Transaction,
    ) -> Result<Transaction, Error> {
        let rows = self.store.list(REVOKED).await?.entries;
        let mut before = before_unix_s;
        for row in rows.iter().filter(|row| row.key == key(id)) {
            before = before.max(decode::<Revocation>(&row.value)?.before_unix_s);
        }
        for at in to_drop(&rows, id, now_unix_ms / 1_000) {
            transaction = transaction.delete(at);
        }
        let row = Revocation {
            node: id.to_owned(),
            before_unix_s: before,
        };
        Ok(transaction.put(key(id), row.encode_to_vec()))
    }
}

/// Rows of certificates that have ended for everybody, and the oldest of too many.
fn to_drop(rows: &[Entry], except: &str, now_unix_s: u64) -> Vec<String> {
    let before = |row: &Entry| {
        let row = decode::<Revocation>(&row.value);
        row.map_or(0, |row| row.before_unix_s)
    };
    let mut rows: Vec<(u64, &str)> = rows
        .iter()
        .map(|row| (before(row), row.key.as_str()))
        .filter(|(_, at)| *at != key(except))
        .collect();
    rows.sort_unstable();
    let too_many = (rows.len() + 1).saturating_sub(ROWS_MAX);
    let over = |before: u64| before + CERTIFICATE_LIFE_MAX.as_secs() < now_unix_s;
    let ended = rows.iter().filter(|(before, _)| over(*before)).count();
    let dropped = too_many.max(ended).min(DROPPED_MAX);
    let dropped = rows.iter().take(dropped);
    dropped.map(|(_, at)| (*at).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Enrolment, Invite, NodeSpec, fixture};

    const NOW: u64 = 1_800_000_000_000;

    async fn enrol(registry: &Registry, csr: &[u8], now_unix_ms: u64) -> NodeSpec {
        let invite = Invite {
            roles: vec!["egress".to_owned()],
            region: "eu".to_owned(),
            node: "e-1".to_owned(),
            ..Invite::default()
        };
        let by = fixture::by();
        let (secret, _) = registry
            .invite(&by, invite, 900, now_unix_ms)
            .await
            .unwrap();
        let asked = Enrolment {
            secret: &secret,
            node: "",
            csr,
            now_unix_ms,
        };
        registry.enroll(asked).await.unwrap()
    }

    #[tokio::test]
    async fn what_a_node_had_before_counts_no_more_and_what_it_gets_then_does() {
        let dir = tempfile::tempdir().unwrap();
        let registry = fixture::registry(dir.path()).await;
        let by = fixture::by();
        let first = enrol(&registry, b"1", NOW).await;
        assert_eq!(first.enrolled_unix_ms, NOW);
        assert_eq!(registry.view().await.unwrap().revoked, []);
        // Another key for the same node, in the same second.
        let second = enrol(&registry, b"2", NOW).await;
        let before = registry.revoked_of("e-1").await.unwrap();
        assert!(before > NOW / 1_000 + SKEW_S, "a replica ahead of this one");
        assert_eq!(second.enrolled_unix_ms, before * 1_000);
        // Removed, and there again: also the second one's certificates are out, and the third one's are in.
        for turn in 1..=30 {
            assert!(registry.remove_node(&by, "e-1", NOW).await.unwrap());
            let revoked = registry.revoked_of("e-1").await.unwrap();
            let spec = enrol(&registry, &[turn], NOW).await;
            assert_eq!(revoked, before + u64::from(turn));
            assert_eq!(spec.enrolled_unix_ms, revoked * 1_000);
            assert!(revoked < NOW / 1_000 + 300, "good at once");
        }
        assert!(!registry.remove_node(&by, "e-2", NOW).await.unwrap());
        assert_eq!(registry.view().await.unwrap().revoked.len(), 1);
    }

    #[test]
    fn a_row_goes_when_every_certificate_of_it_has_ended() {
        let row = |id: &str, before_unix_s| Entry {
            key: key(id),
            value: Revocation {
                node: id.to_owned(),
                before_unix_s,
            }
            .encode_to_vec()
            .into(),
            changed: 1,
        };
        let life = CERTIFICATE_LIFE_MAX.as_secs();
        let rows = [row("a", 100), row("b", 101), row("c", 90)];
        assert_eq!(to_drop(&rows, "", 90 + life), [""; 0]);
        assert_eq!(to_drop(&rows, "", 101 + life), [key("c"), key("a")]);
        assert_eq!(to_drop(&rows, "c", 101 + life), [key("a")]);
        let many: Vec<Entry> = (0..ROWS_MAX as u64)
            .map(|at| row(&format!("n-{at}"), 1_000 + at))
            .collect();
        assert_eq!(to_drop(&many, "new", 1_000), [key("n-0")]);
    }
}
