//! Puts a node together, starts it, and stops it without breaking what runs.
