//! One node of the network: accepts clients, passes exchanges on, calls providers.
//!
//! Read the rooms in the order below: first the road of a request, then what it stands on.
//! Arrows go one way: a role never uses a role, and everything stands on `config`.

// The three roles. No role imports another.
pub mod ingress;

pub mod relay;

pub mod egress;

// What the roles stand on.
pub mod tunnel;

pub mod control_plane;

pub mod identity;

pub mod limit;

pub mod telemetry;

mod lookup;

// The operator's door, and the settings.
pub mod admin;

pub mod config;

// Puts it all together.
pub mod node;
