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

pub mod delta;
mod redacted;

pub mod codec;

/// Descriptors of every message and service, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
