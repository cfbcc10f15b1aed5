//! One node of the network.
