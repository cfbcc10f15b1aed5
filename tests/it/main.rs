//! Tests of whole networks: real processes, real sockets, started as users start them. `cargo it` runs them.
//!
//! Most share one network and keep to a tenant of their own in it; those that kill or restart have a network each, one
//! after the other. Names say what is promised.

// How a node comes in.
mod enrol;

// The road of a request, and what a client gets.
mod answers;

mod operations;

mod ahead;

mod bad_input;

mod keys;

mod objects;

mod credentials;

mod removed;

// What an operator does and sees.
mod plan;

mod sight;

mod watched;

mod zone;

mod operate;

mod rotated;

mod secrets;

// What goes wrong underneath.
mod garbage;

mod cut;

mod retries;

mod drain;

mod dark;

mod ended;

mod loss;

mod redundant;

mod bulk;
