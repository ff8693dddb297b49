//! Our own lateness, told apart from the peer's.

use crate::time::Time;
use core::time::Duration;

/// A turn that comes later than expected by more than this is a stall of our own.
pub const SLACK: Duration = Duration::from_millis(50);

/// When the turns of one poller come.
///
/// A stall is forgiven the peer once: judgement is put off by a grace, within which what came meanwhile can be read. Then one turn
/// judges, however late it comes, before another stall is forgiven. A reactor that is always late judges all the same.
#[derive(Debug)]
pub struct TurnClock {
    /// By when the next turn should come.
    expected: Time,
    /// Judgement is put off until then.
    until: Option<Time>,
}

impl Default for TurnClock {
    fn default() -> Self {
        TurnClock::new()
    }
}

impl TurnClock {
    /// No turn has come yet.
    pub const fn new() -> Self {
        TurnClock { expected: Time::NEVER, until: None }
    }

    /// A turn begins. How late it comes, if that is to be forgiven; nobody is to be judged for `grace` from now on then.
    #[inline]
    pub fn turn(&mut self, now: Time, grace: Duration) -> Option<Duration> {
        let late = now.since(self.expected);
        self.expected = now;
        match self.until {
            None if late <= SLACK => None,
            None => {
                self.until = Some(now.after(grace));
                Some(late)
            }
            Some(until) => {
                if now >= until {
                    self.until = None;
                }
                None
            }
        }
    }

    /// The next turn is agreed to come no later than at `at`.
    pub fn sleeps_until(&mut self, at: Time) {
        self.expected = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Time {
        Time::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_stall_is_forgiven_once_and_then_somebody_is_judged() {
        let mut clock = TurnClock::new();
        assert_eq!(clock.turn(at(0), GRACE), None);
        assert_eq!(clock.turn(at(10), GRACE), None);
        assert_eq!(clock.turn(at(5010), GRACE), Some(Duration::from_secs(5)));
        clock.sleeps_until(at(5500));
        assert_eq!(clock.turn(at(5500), GRACE), None, "asleep as agreed");
        assert_eq!(clock.turn(at(5700), GRACE), Some(Duration::from_millis(200)), "it was judged meanwhile");
    }

    #[test]
    fn a_sleep_that_was_agreed_is_no_stall() {
        for (woken, late) in [(500, None), (550, None), (551, Some(Duration::from_millis(51)))] {
            let mut clock = TurnClock::new();
            assert_eq!(clock.turn(at(0), GRACE), None);
            clock.sleeps_until(at(500));
            assert_eq!(clock.turn(at(woken), GRACE), late, "{woken}");
        }
    }

    #[test]
    fn a_reactor_that_is_always_late_judges_all_the_same() {
        for pattern in [&[60u64][..], &[51], &[1000], &[60, 10], &[10, 60, 10], &[99, 1, 200]] {
            let mut clock = TurnClock::new();
            let (mut now, mut until, mut judged) = (0, 0, 0);
            for turn in 0..1000 {
                now += pattern[turn % pattern.len()];
                if clock.turn(at(now), GRACE).is_some() {
                    until = now + 100;
                }
                judged += u32::from(now >= until);
            }
            assert!(judged >= 150, "{pattern:?}: {judged} of 1000 turns judge");
        }
    }
}
