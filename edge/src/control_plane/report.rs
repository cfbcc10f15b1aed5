//! What this node tells control at once: objects that later calls may name.

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc;
use vector_proto::control::v1;

/// Objects that may wait.
const OBJECTS_WAITING_MAX: usize = 10_000;

/// Where the roles put what is to be told. Never waits.
#[derive(Debug)]
pub(super) struct Reports {
    objects: mpsc::Sender<v1::Object>,
    dropped: Counter,
}

/// The other end of the queue.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) objects: mpsc::Receiver<v1::Object>,
}

pub(super) fn queues() -> (Reports, Inbox) {
    let (objects, objects_in) = mpsc::channel(OBJECTS_WAITING_MAX);
    (
        Reports {
            objects,
            dropped: Counter::default(),
        },
        Inbox {
            objects: objects_in,
        },
    )
}

impl Reports {
    pub(super) fn object(&self, object: v1::Object) {
        if self.objects.try_send(object).is_err() {
            self.dropped.inc();
        }
    }

    /// Objects that nobody was told of.
    pub(super) fn dropped(&self) -> &Counter {
        &self.dropped
    }
}
