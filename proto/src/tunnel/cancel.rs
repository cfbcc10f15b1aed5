//! Which attempts of an exchange a CANCEL is of: they share the exchange's id.

use super::codec::GoneReason;

impl GoneReason {
    /// The reason of an [`Entry::Cancel`](super::codec::Entry::Cancel): it is of this attempt and of those before it. Whoever knows no attempts reads no reason.
    #[must_use]
    pub const fn of_attempt(attempt: u32) -> u64 {
        Self::ClientGone as u64 | (attempt as u64) << 8
    }

    /// Up to which attempt an [`Entry::Cancel`](super::codec::Entry::Cancel) of this reason goes: all, where none is named.
    #[must_use]
    pub const fn up_to_attempt(reason: u64) -> u32 {
        match (reason >> 8) as u32 {
            0 => u32::MAX,
            attempt => attempt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::GoneReason;

    #[test]
    fn who_names_no_attempt_means_all() {
        assert_eq!(
            GoneReason::up_to_attempt(GoneReason::Deadline as u64),
            u32::MAX
        );
        for attempt in [1, 4, u32::MAX] {
            let reason = GoneReason::of_attempt(attempt);
            assert_eq!(GoneReason::up_to_attempt(reason), attempt);
        }
    }
}
