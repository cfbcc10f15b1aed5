//! The settings of an egress.

use std::path::PathBuf;

use super::{MS_MAX, ms, within};
use crate::config::{Egress, raw::RawEgress};

pub(super) fn check(raw: RawEgress, faults: &mut Vec<String>) -> Egress {
    Egress {
        connect: ms(
            faults,
            "egress.connect_ms",
            raw.connect_ms,
            5_000,
            1..=MS_MAX,
        ),
        first_byte: ms(
            faults,
            "egress.first_byte_ms",
            raw.first_byte_ms,
            600_000,
            1..=MS_MAX,
        ),
        idle: ms(faults, "egress.idle_ms", raw.idle_ms, 300_000, 1..=MS_MAX),
        tls_roots: raw
            .tls_roots
            .filter(|text| !text.is_empty())
            .map(PathBuf::from),
        kept_bytes_max: within(
            faults,
            "egress.kept_bytes_max",
            raw.kept_bytes_max,
            4 << 30,
            0..=1 << 50,
        ),
        keep_credentials: raw.keep_credentials.unwrap_or(true),
    }
}
