//! The words that Vector Engine's processes speak: no IO, no clock, no runtime.
//!
//! Everything here is a value or a pure function, so that both binaries, the tests and the
//! fuzzers share one meaning. Read `id` first, then `tunnel`, then `control`.
#![warn(missing_docs)]

// Who and what: names that are well formed by construction.
pub mod id;

pub mod refusal;

// Which addresses a provider may have.
pub mod reach;

// How clients and providers speak.
pub mod dialect;

// What nodes say to each other, and to control.
pub mod tunnel;

pub mod control;
