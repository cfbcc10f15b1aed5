//! Door 1: gRPC for nodes and operators. No rules here: it says who calls, asks the rooms, and answers.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};
use vector_proto::control::v1::{admin_server::AdminServer, node_server::NodeServer};

use crate::{
    health::Fleet,
    identity::Authority,
    ledger::Ledger,
    registry::Registry,
    routing::{Publisher, Steering},
    telemetry::Metrics,
};

mod caller;
pub use caller::{Certified, Connection};

mod guard;
pub use guard::Guarded;

mod refusal;

mod node;

mod sync;

mod admin;

/// Largest message taken: a plan of 20,000 entries, or a batch of usage.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How a change of configuration reaches the nodes.
#[derive(Clone, Copy, Debug)]
pub struct Staged {
    /// Time that canaries have it before everybody has it; 0: everybody has it at once.
    pub pause_ms: u64,
    /// So many of a hundred are canaries.
    pub canaries_percent: u32,
}

/// The rooms that the doors lead to.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// What is wanted.
    pub registry: Arc<Registry>,
    /// Who is there.
    pub fleet: Arc<Fleet>,
    /// What follows from both.
    pub publisher: Arc<Publisher>,
    /// What nodes see of upstreams.
    pub steering: Arc<Steering>,
    /// What was consumed.
    pub ledger: Arc<Ledger>,
    /// How changes reach the nodes.
    pub staging: Staged,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// When this process began.
    pub started: Instant,
    /// Streams live on it.
    pub tasks: TaskTracker,
    /// Ends every stream.
    pub drain: CancellationToken,
}

/// The service that nodes call.
#[must_use]
pub fn node_service(rooms: Rooms) -> NodeServer<impl vector_proto::control::v1::node_server::Node> {
    NodeServer::new(node::Nodes::new(rooms)).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// The service that operators call.
#[must_use]
pub fn admin_service(
    rooms: Rooms,
) -> Guarded<AdminServer<impl vector_proto::control::v1::admin_server::Admin>> {
    let service = AdminServer::new(admin::Operators::new(rooms.clone()));
    Guarded::new(service.max_decoding_message_size(MESSAGE_BYTES_MAX), rooms)
}

/// Now, since 1970.
pub(crate) fn unix_now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Now, in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX)
}
