//! What nodes say to each other: frames around messages, and the messages.
//!
//! A link is one QUIC connection. Its first stream carries [`codec::Entry`]s about all exchanges;
//! every further stream is an attachment: one preamble frame, then the bytes of a *sequence*.
//! A sequence is one direction of an exchange, counted in bytes over its frames, so that any
//! prefix of it can be acknowledged and the rest sent again over another attachment. A request's body may go ahead of what is
//! asked: then its OPEN asks for nothing, and a HEAD in the sequence does.

pub mod beat;

mod cancel;

pub mod codec;

pub mod fields;

pub mod repair;

/// Version of the frames and messages. Both ends of a link must have the same.
pub const VERSION: u32 = 1;

/// Version 1 of the messages, generated from `tunnel/v1/tunnel.proto`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("vector.tunnel.v1");
}
