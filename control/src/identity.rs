//! The authority of the network: who a certificate says somebody is, and who may have one.
//!
//! One root, made at the first start, and an intermediate below it that signs the leaves and is replaced every now and
//! then. A new root takes the old one's place in steps, and both are trusted between the first and the last. Nodes get leaves of 24 hours that name them in exactly one URI,
//! `spiffe://TRUST_DOMAIN/node/ROLES/ID`; what a signing request says about names is ignored.
//! An operator's own leaf names `spiffe://TRUST_DOMAIN/operator/NAME`, which no node can get either. Control's
//! own leaf carries [`CONTROL_NAME`], which no node can get, so that a node cannot pose as control.

mod authority;
pub use authority::{Authority, CONTROL_NAME, Error, Rotation, Signing};

mod certificate;
pub use certificate::Facts;

mod intermediate;
pub use intermediate::Intermediate;

mod peer;
pub use peer::{Peer, Role, ended_of_leaf, issued_of_leaf, names_a_node, operator_of_leaf};

mod root;
pub use root::Root;

#[cfg(test)]
mod tests;
