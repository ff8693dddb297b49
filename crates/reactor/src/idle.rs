//! When to stop spinning.

use polypath_block::Time;
use std::time::Duration;

/// What a reactor does when there is no work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IdlePolicy {
    /// Spin for a while that adapts to how soon work has come lately, then sleep. The default.
    Adaptive {
        /// Longest spin, in microseconds.
        max_spin_us: u32,
    },
    /// Never sleep: lowest latency, one whole core.
    Poll,
    /// Never spin: least CPU.
    Sleep,
}

impl IdlePolicy {
    /// The word for it on command lines and in reports: `adaptive`, `poll` or `sleep`.
    pub const fn as_str(self) -> &'static str {
        match self {
            IdlePolicy::Adaptive { .. } => "adaptive",
            IdlePolicy::Poll => "poll",
            IdlePolicy::Sleep => "sleep",
        }
    }
}

impl Default for IdlePolicy {
    fn default() -> Self {
        IdlePolicy::Adaptive { max_spin_us: 50 }
    }
}

/// Decides turn by turn, without a clock of its own.
///
/// A spin that ends without work was wasted: the next one is half as long. Work that comes soon after falling asleep would have
/// been met by a longer spin: the next one is twice as long.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    policy: IdlePolicy,
    spin: Duration,
    idle_since: Option<Time>,
}

const LEAST: Duration = Duration::from_micros(2);

impl Idle {
    /// Starts with the longest spin.
    pub fn new(policy: IdlePolicy) -> Self {
        let spin = match policy {
            IdlePolicy::Adaptive { max_spin_us } => Duration::from_micros(max_spin_us.into()),
            IdlePolicy::Poll => Duration::MAX,
            IdlePolicy::Sleep => Duration::ZERO,
        };
        Idle { policy, spin, idle_since: None }
    }

    /// There was work in this turn.
    #[inline]
    pub fn busy(&mut self) {
        self.idle_since = None;
    }

    /// There was none: may the reactor try to sleep now?
    #[inline]
    pub fn may_sleep(&mut self, now: Time) -> bool {
        match self.policy {
            IdlePolicy::Poll => false,
            IdlePolicy::Sleep => true,
            IdlePolicy::Adaptive { .. } => {
                let since = *self.idle_since.get_or_insert(now);
                now.since(since) >= self.spin
            }
        }
    }

    /// A sleep of `slept` has ended.
    pub fn woke(&mut self, slept: Duration) {
        if let IdlePolicy::Adaptive { max_spin_us } = self.policy {
            let most = Duration::from_micros(max_spin_us.into());
            self.spin =
                if slept <= most { (self.spin * 2).max(LEAST).min(most) } else { (self.spin / 2).max(LEAST).min(most) };
        }
        self.idle_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapts_both_ways() {
        let us = |n: u64| Time::from_nanos(n * 1000);
        let mut idle = Idle::new(IdlePolicy::Adaptive { max_spin_us: 40 });
        assert!(!idle.may_sleep(us(0)) && !idle.may_sleep(us(39)) && idle.may_sleep(us(40)));
        idle.woke(Duration::from_millis(1));
        assert!(!idle.may_sleep(us(1000)) && idle.may_sleep(us(1020)), "half as long after a vain spin");
        idle.woke(Duration::from_micros(10));
        assert!(!idle.may_sleep(us(2000)) && !idle.may_sleep(us(2039)) && idle.may_sleep(us(2040)));
        idle.busy();
        assert!(!idle.may_sleep(us(3000)));
        assert!(!Idle::new(IdlePolicy::Poll).may_sleep(Time::NEVER));
        assert!(Idle::new(IdlePolicy::Sleep).may_sleep(Time::ZERO));
    }
}
