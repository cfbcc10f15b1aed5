//! The control plane: who may call what over which path, told to every node.
//!
//! Read `server` for how it is put together, then the doors (`api`), then the rooms below them.
//! Nothing below `api` knows gRPC.

pub mod server;

// Door 1: gRPC.
pub mod api;

// Rooms: what is wanted, what is there, and what follows from both.
pub mod routing;

pub mod health;

// Where clients are sent.
pub mod dns;

pub mod ledger;

pub mod registry;

pub mod identity;

// What the rooms stand on.
pub mod coordinate;

pub mod vault;

pub mod sqlite;

pub mod telemetry;

pub mod config;

// How an operator reaches control; for `vectorctl` and tests.
pub mod dial;
