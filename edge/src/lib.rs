//! One node of the network: accepts clients, passes exchanges on, calls providers.

// What a role is.
pub mod relay;

// What the roles stand on.
pub mod tunnel;
