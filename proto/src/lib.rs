//! The words our processes speak.
