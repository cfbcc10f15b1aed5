//! What this node tells control: objects at once, usage in batches, at least once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use vector_proto::control::v1::{self, node_client::NodeClient};

/// Usage records that may wait: at 400 bytes, 40 MB at the worst, after which new ones are counted as dropped.
const USAGE_WAITING_MAX: usize = 100_000;

/// Objects that may wait.
const OBJECTS_WAITING_MAX: usize = 10_000;

/// Records of one batch.
const BATCH_MAX: usize = 500;

/// How long a batch gathers.
const GATHER: Duration = Duration::from_millis(500);

/// Time for one batch, and the pause after one that failed.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(500);

/// How long a node that stops tries to deliver what is left.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Where the roles put what is to be told. Never waits.
#[derive(Debug)]
pub(super) struct Reports {
    objects: mpsc::Sender<v1::Object>,
    usage: mpsc::Sender<v1::UsageRecord>,
    dropped: Arc<AtomicU64>,
}

/// The other ends of the queues.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) objects: mpsc::Receiver<v1::Object>,
    pub(super) usage: mpsc::Receiver<v1::UsageRecord>,
}

pub(super) fn queues() -> (Reports, Inbox) {
    let (objects, objects_in) = mpsc::channel(OBJECTS_WAITING_MAX);
    let (usage, usage_in) = mpsc::channel(USAGE_WAITING_MAX);
    (
        Reports {
            objects,
            usage,
            dropped: Arc::default(),
        },
        Inbox {
            objects: objects_in,
            usage: usage_in,
        },
    )
}

impl Reports {
    pub(super) fn object(&self, object: v1::Object) {
        if self.objects.try_send(object).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn usage(&self, record: v1::UsageRecord) {
        if self.usage.try_send(record).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Delivers usage until `stop`, then what is left for a moment.
pub(super) async fn deliver_usage(
    mut client: NodeClient<Channel>,
    epoch: u64,
    mut usage: mpsc::Receiver<v1::UsageRecord>,
    stop: CancellationToken,
) {
    let mut seq = 0;
    let mut records = Vec::new();
    loop {
        let got = stop
            .run_until_cancelled(usage.recv_many(&mut records, BATCH_MAX))
            .await;
        match got {
            Some(0) => return,
            Some(_) => {
                if records.len() < BATCH_MAX {
                    let _ = stop.run_until_cancelled(tokio::time::sleep(GATHER)).await;
                    while records.len() < BATCH_MAX
                        && let Ok(more) = usage.try_recv()
                    {
                        records.push(more);
                    }
                }
            }
            None => break,
        }
        seq += 1;
        let batch = v1::RecordRequest {
            epoch,
            seq,
            records: std::mem::take(&mut records),
        };
        if stop
            .run_until_cancelled(deliver(&mut client, &batch))
            .await
            .is_none()
        {
            records = batch.records;
            break;
        }
    }
    while let Ok(more) = usage.try_recv() {
        records.push(more);
    }
    let last = async {
        for part in records.chunks(BATCH_MAX) {
            seq += 1;
            deliver(
                &mut client,
                &v1::RecordRequest {
                    epoch,
                    seq,
                    records: part.to_vec(),
                },
            )
            .await;
        }
    };
    if tokio::time::timeout(LAST_WORDS, last).await.is_err() {
        tracing::warn!(
            records = records.len(),
            "usage was not delivered before the node stopped"
        );
    }
}

/// Sends one batch until control has it. Control counts each exchange once, however often it hears of it.
async fn deliver(client: &mut NodeClient<Channel>, batch: &v1::RecordRequest) {
    for attempt in 1_u64.. {
        match tokio::time::timeout(SEND_TIMEOUT, client.record(batch.clone())).await {
            Ok(Ok(_)) => return,
            Ok(Err(status)) if attempt % 20 == 1 => {
                tracing::warn!(
                    error = status.message(),
                    attempt,
                    records = batch.records.len(),
                    "usage not delivered yet"
                );
            }
            Ok(Err(_)) | Err(_) => {}
        }
        tokio::time::sleep(PAUSE.mul_f64(0.5 + fastrand::f64())).await;
    }
}
