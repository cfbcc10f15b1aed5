//! Sends a large body up beside its answer, in a task of its own, and gives it back when the attempt failed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::{
    refusal::{Code, Refusal},
    tunnel::v1,
};

use super::{
    retry::Failed,
    upload::{Fault, Upload},
};
use crate::tunnel::{RequestWriter, ResponseReader};

/// A body that streams up beside its answer. Dropped, it stops.
#[derive(Debug)]
pub(super) struct Pump {
    task: JoinHandle<Upload>,
    /// What the task gave back, once it is over.
    back: Option<Upload>,
    /// The answer has begun: nothing needs to be kept.
    settled: Arc<AtomicBool>,
    stop: CancellationToken,
    /// What the client did wrong. It stands here before the egress can know of it, whose word would be about a body that was
    /// cut.
    fault: Arc<Mutex<Option<Refusal>>>,
}

impl Pump {
    pub(super) fn start(
        tasks: &TaskTracker,
        mut upload: Upload,
        mut request: RequestWriter,
    ) -> Self {
        let settled = Arc::new(AtomicBool::new(false));
        let (stop, fault) = (CancellationToken::new(), Arc::<Mutex<_>>::default());
        let task = tasks.spawn({
            let (settled, stop) = (Arc::clone(&settled), stop.clone());
            let fault = Arc::clone(&fault);
            async move {
                let result = tokio::select! {
                    result = upload.pump(&mut request, &settled) => result,
                    () = stop.cancelled() => Ok(()),
                };
                if let Err(Fault::Client(refusal)) = result {
                    *fault.lock() = Some(refusal);
                }
                drop(request);
                upload
            }
        });
        Self {
            task,
            back: None,
            settled,
            stop,
            fault,
        }
    }

    /// Whether nothing of it is left to send.
    pub(super) const fn is_done(&self) -> bool {
        self.back.is_some()
    }

    /// The answer has begun: what was sent is no longer kept.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Waits for the answer's head while the body goes up.
    pub(super) async fn head(
        &mut self,
        response: &mut ResponseReader,
    ) -> Result<v1::ResponseHead, Failed> {
        loop {
            tokio::select! {
                biased;
                head = response.head() => return head.map_err(|failure| {
                    self.fault.lock().take().map_or_else(|| Failed::from(failure), Failed::Client)
                }),
                ended = &mut self.task, if self.back.is_none() => {
                    let Ok(upload) = ended else {
                        return Err(Failed::Client(Refusal::new(Code::Overloaded, "the request's body was lost on its way")));
                    };
                    self.back = Some(upload);
                    if let Some(refusal) = self.fault.lock().take() {
                        return Err(Failed::Client(refusal));
                    }
                }
            }
        }
    }

    /// Waits until all of the body has left, and gives it back.
    pub(super) async fn finished(mut self) -> Option<Upload> {
        match self.back.take() {
            Some(upload) => Some(upload),
            None => (&mut self.task).await.ok(),
        }
    }

    /// Stops and gives the body back.
    pub(super) async fn reclaim(mut self) -> Option<Upload> {
        self.stop.cancel();
        match self.back.take() {
            Some(upload) => Some(upload),
            None => (&mut self.task).await.ok(),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
