//! Brings the journal to control: in batches, at least once, for as long as it takes.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;
use tonic::Code;
use vector_proto::control::v1::{self, UsageRecord, node_client::NodeClient};

use super::{BATCH_MAX, Batch, Journal};
use crate::control_plane::Replicas;

/// How long a batch gathers.
const GATHER: Duration = Duration::from_millis(500);

/// What is written becomes durable this soon.
const SYNC: Duration = Duration::from_millis(100);

/// Time for one batch, and the pause after one that failed.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);

/// How long a node that stops tries to deliver what is left. The rest is delivered after the next start.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Delivers usage until `stop`, then what is left for a moment.
pub(in crate::control_plane) async fn run(
    client: NodeClient<Replicas>,
    epoch: u64,
    journal: Arc<Journal>,
    stop: CancellationToken,
) {
    let synced = async {
        loop {
            journal.unsynced.notified().await;
            tokio::time::sleep(SYNC).await;
            blocking(&journal, Journal::sync).await;
        }
    };
    let mut courier = Courier {
        client,
        epoch,
        seq: 0,
        journal: Arc::clone(&journal),
    };
    tokio::select! {
        () = courier.deliver(&stop) => {}
        () = synced => {}
    }
    if tokio::time::timeout(LAST_WORDS, courier.deliver_rest())
        .await
        .is_err()
    {
        tracing::warn!(
            "some usage is delivered after the next start only: control was not there to take it"
        );
    }
    blocking(&journal, Journal::sync).await;
}

async fn blocking<T: Send + 'static>(
    journal: &Arc<Journal>,
    work: impl FnOnce(&Journal) -> T + Send + 'static,
) -> Option<T> {
    let journal = Arc::clone(journal);
    let done = tokio::task::spawn_blocking(move || work(&journal)).await;
    done.ok()
}

struct Courier {
    client: NodeClient<Replicas>,
    epoch: u64,
    seq: u64,
    journal: Arc<Journal>,
}

impl Courier {
    async fn deliver(&mut self, stop: &CancellationToken) {
        loop {
            let batch = blocking(&self.journal, Journal::batch).await;
            let batch = batch.unwrap_or_default();
            if batch.records.is_empty() && batch.read.is_none() {
                let more = async {
                    self.journal.more.notified().await;
                    tokio::time::sleep(GATHER).await;
                };
                if stop.run_until_cancelled(more).await.is_none() {
                    return;
                }
                continue;
            }
            let part = batch.records.len() < BATCH_MAX;
            let sent = stop.run_until_cancelled(self.send(&batch.records)).await;
            if sent.is_none() {
                self.journal.put_back(batch);
                return;
            }
            self.done(batch).await;
            // What comes in the meantime makes one batch.
            if part
                && stop
                    .run_until_cancelled(tokio::time::sleep(GATHER))
                    .await
                    .is_none()
            {
                return;
            }
        }
    }

    async fn deliver_rest(&mut self) {
        loop {
            let batch = blocking(&self.journal, Journal::batch).await;
            let batch = batch.unwrap_or_default();
            if batch.records.is_empty() && batch.read.is_none() {
                return;
            }
            self.send(&batch.records).await;
            self.done(batch).await;
        }
    }

    async fn done(&self, batch: Batch) {
        blocking(&self.journal, move |journal| journal.done(&batch)).await;
    }

    /// Sends records until control has them. It counts each exchange once, however often it hears of it.
    ///
    /// Records that control will never take are left out; where it refuses a batch as a whole, they are parted from the others.
    async fn send(&mut self, records: &[UsageRecord]) {
        let mut parts = vec![records];
        while let Some(part) = parts.pop() {
            if part.is_empty() || self.send_part(part).await {
                continue;
            }
            if let [record] = part {
                self.left_out(record, "not as a message of its own either");
                continue;
            }
            let (one, other) = part.split_at(part.len() / 2);
            parts.extend([other, one]);
        }
    }

    /// Control has the others.
    fn refused(&self, part: &[UsageRecord], refused: &[v1::RefusedItem]) {
        for item in refused {
            let at = usize::try_from(item.at).unwrap_or(usize::MAX);
            if let Some(record) = part.get(at) {
                self.left_out(record, &item.reason);
            }
        }
    }

    fn left_out(&self, record: &UsageRecord, reason: &str) {
        self.journal.counts.refused.inc();
        tracing::error!(
            account = record.account,
            bytes = prost::Message::encoded_len(record),
            reason,
            "control will never take this usage: it is left out"
        );
    }

    /// Sends one part until it is taken, or refused for what it is.
    async fn send_part(&mut self, part: &[UsageRecord]) -> bool {
        self.seq += 1;
        let batch = v1::RecordRequest {
            epoch: self.epoch,
            seq: self.seq,
            records: part.to_vec(),
        };
        for attempt in 1_u64.. {
            match tokio::time::timeout(SEND_TIMEOUT, self.client.record(batch.clone())).await {
                Ok(Ok(answer)) => {
                    self.refused(part, &answer.into_inner().refused);
                    return true;
                }
                // Absurd as a whole, or larger than a message may be.
                Ok(Err(status))
                    if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) =>
                {
                    return false;
                }
                Ok(Err(status)) if attempt % 20 == 1 => tracing::warn!(
                    error = status.message(),
                    attempt,
                    records = batch.records.len(),
                    "usage not delivered yet"
                ),
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
        }
        false
    }
}
