//! Starts whole networks for tests, with real processes and real sockets, and asks them things.
//!
//! A network is what `deploy/local/up` gives to users, in a folder and on ports of its own. It goes when its [`Network`] is
//! dropped or the test's process ends, however that ends. Everything blocks: a test is a plain function.
//!
//! Every wait has an end. Whatever goes wrong here fails the test with a text.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a harness that fails shall fail its test, at once and loudly"
)]

// What tests hold.
pub mod network;

pub mod tenant;

pub mod sample;

pub mod echo;

// How they speak to it.
pub mod http;

pub mod wait;

// What a network stands on.
mod keeper;

mod place;

pub use self::{
    echo::Echo,
    http::{Answer, Client, Connection, End, Stream},
    network::{INGRESS, Network},
    sample::Sample,
    tenant::Tenant,
};

/// Stands in every prompt, file and provider key that tests send, so that a log or a metric that repeats one is found.
pub const CANARY: &str = "canary-7f3a9c";
