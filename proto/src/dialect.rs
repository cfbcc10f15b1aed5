//! What the network reads of the protocols that clients and providers speak.
//!
//! Everything here is pure, is fed chunk by chunk with any chunk boundary, scans each byte once, and keeps
//! nothing but the few names and numbers it looks for: bodies are never parsed whole, held or re-serialised.

// The request: which operation, which model.
pub mod operation;

mod segment;

pub mod json;

pub mod multipart;

pub mod refers;

pub mod header;

// The answer: whose name, what was used, how it ended.
pub mod sse;

pub mod rename;

pub mod usage;

pub mod websocket;

pub mod error;

// What they stand on.
mod lexer;

mod text;

pub use error::Dialect;
