//! Long, lossy and broken lines on one machine, for tests, for the benchmark and for rehearsals.
//!
//! [`Line`] is the model of one direction and pure: it is told the time and answers when a packet comes out. A
//! [`Detour`] puts two of them between UDP ends inside a process; the program `wan` puts them between network
//! namespaces, for TCP, UDP and ICMP alike. [`Conditions`] are written the same way for both.

// What a line does to packets.
pub mod conditions;

pub mod line;

// The two ways of putting one between two ends.
pub mod detour;

pub mod words;

// What both stand on.
pub mod flight;

pub use self::{
    conditions::{BadConditions, Conditions},
    detour::{Detour, Way},
    line::{Counters, Fate, Line},
    words::Remote,
};
