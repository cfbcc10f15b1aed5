//! Whole-network tests: real rooms, real sockets, one binary.

mod enrol;
