//! The datapath's clock: coarse ticks that a packet can read without a division.

/// Binary logarithm of a tick in nanoseconds: 2^30 ns, about 1.07 s.
pub const TICK_SHIFT: u32 = 30;

/// A point in time or a span, in ticks of 2^30 ns of `CLOCK_MONOTONIC`.
///
/// A 64-bit division costs more than a hash lookup's comparison on older processors, so seconds are approximated by a
/// power of two, and entries are written at most once per tick. 32 bits last for 146 years of uptime.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(pub u32);

impl Ticks {
    /// The tick that contains `nanoseconds`.
    #[must_use]
    #[inline(always)]
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self((nanoseconds >> TICK_SHIFT) as u32)
    }

    /// The span that covers `seconds`, rounded up.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        let ticks = (seconds * 1_000_000_000).div_ceil(1 << TICK_SHIFT);
        Self(if ticks > u32::MAX as u64 { u32::MAX } else { ticks as u32 })
    }

    /// The span in milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        ((self.0 as u64) << TICK_SHIFT) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_round_up_to_whole_ticks() {
        assert_eq!(Ticks::from_secs(0), Ticks(0));
        assert_eq!(Ticks::from_secs(1), Ticks(1));
        assert_eq!(Ticks::from_secs(120), Ticks(112));
        assert_eq!(Ticks::from_nanos(120_000_000_000), Ticks(111));
        assert_eq!(Ticks(112).as_millis(), 120_259);
    }
}
