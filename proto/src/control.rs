//! Messages and services between control, nodes and operators, generated from `control/v1/*.proto`.

/// Version 1 of the control API.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::unused_async,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("vector.control.v1");
}

/// Certificates begin this long before they are issued, so that a slow clock takes them at once. Part of the contract:
/// `Revocation.before_unix_s` is compared with the time of issue.
pub const BACKDATE_S: u64 = 300;

/// Metadata of a refusal that tells a node that it was removed, or replaced by one of the same name: `true`.
pub const REMOVED: &str = "vector-removed";

pub mod delta;
mod redacted;

pub mod status;

pub mod codec;

/// Descriptors of every message and service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
