//! Realtime sessions over WebSocket: not served yet, and says so.

use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use tokio_util::task::TaskTracker;

use crate::desk::Desk;
use crate::reply::{Refusal, Reply};

pub(crate) fn open(
    _: &Arc<Desk>,
    _: &TaskTracker,
    _: usize,
    _: Request<Incoming>,
) -> Result<Reply, Refusal> {
    Err(Refusal::bad("not yet"))
}
