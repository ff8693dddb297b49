//! Time is an argument everywhere below the reactor.

use core::fmt;
use core::time::Duration;

/// A point on a monotonic clock, in nanoseconds since an epoch that only the owner of the clock knows.
///
/// The reactor reads the clock once a turn; `sim` makes it up. Arithmetic saturates: a deadline beyond the end of time is never reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(u64);

impl Time {
    /// The epoch.
    pub const ZERO: Time = Time(0);
    /// Later than any time that comes.
    pub const NEVER: Time = Time(u64::MAX);

    /// The point `nanos` nanoseconds after the epoch.
    pub const fn from_nanos(nanos: u64) -> Self {
        Time(nanos)
    }

    /// The point `millis` milliseconds after the epoch (saturating).
    pub const fn from_millis(millis: u64) -> Self {
        Time(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the epoch.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This time plus `span`, saturating at [`Time::NEVER`].
    #[inline]
    #[must_use]
    pub const fn after(self, span: Duration) -> Self {
        // In 64 bits: it is asked each turn.
        let nanos = span.as_secs().saturating_mul(1_000_000_000).saturating_add(span.subsec_nanos() as u64);
        Time(self.0.saturating_add(nanos))
    }

    /// How much later `self` is than `earlier`; zero if it is not later.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }

    /// The same in nanoseconds, for the data path.
    pub const fn nanos_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t+{}.{:06}ms", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saturates_both_ways() {
        assert_eq!(Time::NEVER.after(Duration::from_secs(1)), Time::NEVER);
        assert_eq!(Time::ZERO.after(Duration::MAX), Time::NEVER);
        assert_eq!(Time::ZERO.after(Duration::new(2, 7)), Time::from_nanos(2_000_000_007));
        assert_eq!(Time::ZERO.since(Time::from_millis(5)), Duration::ZERO);
        assert_eq!(Time::from_millis(7).since(Time::from_millis(5)), Duration::from_millis(2));
        assert_eq!(Time::from_millis(7).nanos_since(Time::from_millis(5)), 2_000_000);
        assert_eq!(Time::ZERO.nanos_since(Time::NEVER), 0);
    }
}
