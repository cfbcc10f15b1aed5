//! Who this node is, and how it proves that to others.
