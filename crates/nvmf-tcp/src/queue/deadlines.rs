//! Time limits of one connection: silence, and what it may mean. They live and die with it.

use crate::config::ControllerConfig;
use polypath_block::Time;
use std::time::Duration;

/// What silence amounts to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Silence {
    /// None to speak of.
    None,
    /// Something should have been heard. `first`: it has just begun; `probe`: the controller is to be asked for a sign of life.
    Suspicious { first: bool, probe: bool },
    /// As long as the limit: if the connection is cut, it is lost. `probe` as above.
    Long { probe: bool },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Deadlines {
    silence: Duration,
    tick: Duration,
    /// When anything last came, or the first command was started after a pause; moved on by our own stalls.
    heard: Time,
    due: Time,
    stalled: bool,
    probed: Option<Time>,
}

impl Deadlines {
    pub(super) fn new(config: &ControllerConfig, now: Time) -> Self {
        let tick = tick(config);
        Deadlines {
            silence: config.silence_timeout,
            tick,
            heard: now,
            due: now.after(tick),
            stalled: false,
            probed: None,
        }
    }

    /// We were not there for `late`: the peer cannot be blamed for what we did not look at, nor is anybody judged at once.
    pub(super) fn forgive(&mut self, late: Duration, now: Time) {
        self.heard = self.heard.after(late).min(now);
        self.due = now.after(self.tick);
    }

    /// A command is started and no other is outstanding.
    #[inline]
    pub(super) fn start(&mut self, now: Time) {
        self.heard = now;
        self.due = self.due.min(now.after(self.tick));
    }

    #[inline]
    pub(super) fn heard(&mut self, now: Time) {
        self.heard = now;
        self.stalled = false;
    }

    #[inline]
    pub(super) fn is_due(&self, now: Time) -> bool {
        now >= self.due
    }

    pub(super) fn due(&self) -> Time {
        self.due
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    pub(super) fn silent_for(&self, now: Time) -> Duration {
        now.since(self.heard)
    }

    /// Looks at the silence. `busy`: commands are outstanding, so that something is expected.
    pub(super) fn check(&mut self, now: Time, busy: bool) -> Silence {
        if !busy {
            (self.due, self.stalled, self.probed) = (Time::NEVER, false, None);
            return Silence::None;
        }
        self.due = now.after(self.tick);
        let silent = self.silent_for(now);
        if silent < self.silence / 2 {
            (self.stalled, self.probed) = (false, None);
            return Silence::None;
        }
        let first = !std::mem::replace(&mut self.stalled, true);
        let probe = self.probed.is_none_or(|at| now.since(at) >= self.silence);
        if probe {
            self.probed = Some(now);
        }
        if silent >= self.silence { Silence::Long { probe } } else { Silence::Suspicious { first, probe } }
    }
}

/// How often limits are looked at while commands are outstanding.
pub(super) fn tick(config: &ControllerConfig) -> Duration {
    let shortest = config.silence_timeout.min(config.io_timeout);
    (shortest / 8).clamp(Duration::from_millis(2), Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use polypath_nvme::nqn::Nqn;

    fn at(ms: u64) -> Time {
        Time::from_millis(1_000_000 + ms)
    }

    #[test]
    fn a_stall_of_our_own_is_not_the_peers_silence() {
        let config = ControllerConfig::new("h", 1, Nqn::new("nqn.x").unwrap());
        let mut deadlines = Deadlines::new(&config, at(0));
        deadlines.start(at(0));
        assert_eq!(deadlines.silent_for(at(10)).as_millis(), 10, "looked at, and silent");
        deadlines.forgive(Duration::from_millis(5000), at(5010));
        assert_eq!(deadlines.silent_for(at(5010)).as_millis(), 10, "nobody looked for five seconds");
        assert!(!deadlines.is_due(at(5010)), "the first turn after a stall judges nobody");
        assert!(deadlines.is_due(at(5110)));
        assert_eq!(deadlines.silent_for(at(5500)).as_millis(), 500, "asleep as agreed: the silence is the peer's");
        deadlines.heard(at(5501));
        assert_eq!(deadlines.silent_for(at(5501)).as_millis(), 0);
        deadlines.forgive(Duration::from_secs(9), at(5600));
        assert_eq!(deadlines.silent_for(at(5600)).as_millis(), 0, "never heard from in the future");
    }

    #[test]
    fn limits_are_looked_at_as_often_as_the_shortest_of_them_needs() {
        for (silence, io, tick_ms) in [(1000, 10_000, 100), (400, 10_000, 50), (10_000, 80, 10), (8, 8000, 2)] {
            let mut config = ControllerConfig::new("h", 1, Nqn::new("nqn.x").unwrap());
            (config.silence_timeout, config.io_timeout) = (Duration::from_millis(silence), Duration::from_millis(io));
            assert_eq!(tick(&config).as_millis(), tick_ms, "silence {silence} ms, commands {io} ms");
        }
    }

    #[test]
    fn silence_grows_suspicious_asks_now_and_then_and_is_long_at_last() {
        let config = ControllerConfig::new("h", 1, Nqn::new("nqn.x").unwrap());
        let mut deadlines = Deadlines::new(&config, at(0));
        assert_eq!(deadlines.check(at(499), true), Silence::None);
        assert_eq!(deadlines.check(at(500), true), Silence::Suspicious { first: true, probe: true });
        assert!(deadlines.is_stalled());
        assert_eq!(deadlines.check(at(600), true), Silence::Suspicious { first: false, probe: false });
        assert_eq!(deadlines.check(at(1000), true), Silence::Long { probe: false });
        assert_eq!(deadlines.check(at(1500), true), Silence::Long { probe: true });
        deadlines.heard(at(1501));
        assert_eq!(deadlines.check(at(1600), true), Silence::None);
        assert_eq!(deadlines.check(at(2001), true), Silence::Suspicious { first: true, probe: true }, "asked anew");
        assert_eq!(deadlines.check(at(9000), false), Silence::None, "nothing is expected");
        assert!(!deadlines.is_stalled() && deadlines.due() == Time::NEVER);
    }
}
