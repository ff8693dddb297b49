//! The error-recovery ladder: what is done about a task that is not answered in time, mildest first (SAM-5 section 7).

use super::requests::{Requests, Stage};
use crate::midlayer::DiskConfig;
use crate::midlayer::bus::Address;
use crate::midlayer::task::{Recovered, Recovery, RecoveryEnd};
use polypath_block::{SlotKey, Time};
use std::time::Duration;

/// The rungs that the configuration allows, and when to look.
pub(super) struct Ladder {
    /// ABORT TASK is always the first, a reset of the host the last.
    unit_reset: bool,
    target_reset: bool,
    tick: Duration,
    due: Time,
}

/// Rungs by number.
const ABORT_TASK: u8 = 0;
const UNIT_RESET: u8 = 1;
const TARGET_RESET: u8 = 2;
const HOST_RESET: u8 = 3;

impl Ladder {
    pub(super) fn new(config: &DiskConfig) -> Self {
        let shortest = config.io_timeout.min(config.grace * 4);
        let tick = (shortest / 8).clamp(Duration::from_millis(2), Duration::from_millis(100));
        Ladder { unit_reset: config.unit_reset, target_reset: config.target_reset, tick, due: Time::NEVER }
    }

    /// A task was sent.
    #[inline]
    pub(super) fn started(&mut self, now: Time) {
        if self.due == Time::NEVER {
            self.due = now.after(self.tick);
        }
    }

    #[inline]
    pub(super) fn is_due(&self, now: Time) -> bool {
        now >= self.due
    }

    pub(super) fn due(&self) -> Time {
        self.due
    }

    /// Limits were looked at.
    pub(super) fn looked(&mut self, now: Time, busy: bool) {
        self.due = if busy { now.after(self.tick) } else { Time::NEVER };
    }

    /// The rung after `last`; those that are not allowed are passed over. What is in doubt because of a reset is not made better by
    /// another one, which would be heard by others in turn.
    pub(super) fn next(&self, last: Option<u8>, doubted: bool) -> u8 {
        match last {
            None => ABORT_TASK,
            Some(_) if doubted => HOST_RESET,
            Some(ABORT_TASK) if self.unit_reset => UNIT_RESET,
            Some(ABORT_TASK | UNIT_RESET) if self.target_reset => TARGET_RESET,
            Some(_) => HOST_RESET,
        }
    }

    /// Something is to be looked at now.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due = self.due.min(now);
    }

    /// What is done on a rung.
    pub(super) fn step(rung: u8, tag: u64, address: Address) -> Recovery {
        let Address { target, lun } = address;
        match rung {
            ABORT_TASK => Recovery::AbortTask { tag },
            UNIT_RESET => Recovery::ResetLogicalUnit { target, lun },
            TARGET_RESET => Recovery::ResetTarget { target },
            _ => Recovery::ResetHost,
        }
    }

    /// A recovery was answered: what it could not do, the next rung does at once.
    pub(super) fn answered(&mut self, end: &RecoveryEnd, requests: &mut Requests, now: Time) {
        let Some(part) = requests.get_mut(SlotKey::from_u32(end.token as u32)) else { return };
        if let Stage::Ending(rung, _) = part.stage {
            let since = match end.outcome {
                Recovered::Failed => Time::ZERO,
                // Its answer would have come before this one.
                Recovered::NoSuchTask if part.doubted => Time::ZERO,
                Recovered::Complete | Recovered::NoSuchTask => now,
            };
            part.stage = Stage::Ending(rung, since);
            self.due = self.due.min(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lun;
    use polypath_block::{Done, Io, SegSpan, Unit};

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn config(io_timeout: u64, grace: u64) -> DiskConfig {
        let (io_timeout, grace, busy_limit) = (ms(io_timeout), ms(grace), ms(500));
        DiskConfig {
            io_timeout,
            grace,
            busy_limit,
            unit_reset: true,
            target_reset: true,
            explicit_alua: None,
            reset_fence: None,
        }
    }

    #[test]
    fn each_rung_that_is_allowed_is_met_once() {
        let (target, lun) = (3, Lun::ZERO);
        let (abort, host) = (Recovery::AbortTask { tag: 7 }, Recovery::ResetHost);
        let (of_unit, of_target) = (Recovery::ResetLogicalUnit { target, lun }, Recovery::ResetTarget { target });
        for (unit_reset, target_reset, steps) in [
            (true, true, &[abort, of_unit, of_target, host, host][..]),
            (true, false, &[abort, of_unit, host, host]),
            (false, true, &[abort, of_target, host, host]),
            (false, false, &[abort, host, host]),
        ] {
            let ladder = Ladder::new(&DiskConfig { unit_reset, target_reset, ..config(1000, 300) });
            let mut rung = None;
            for step in steps {
                rung = Some(ladder.next(rung, false));
                let done = rung.map(|rung| Ladder::step(rung, 7, Address { target, lun }));
                assert_eq!(done, Some(*step), "{unit_reset} {target_reset}");
            }
        }
    }

    #[test]
    fn limits_are_looked_at_often_enough_while_something_is_under_way() {
        let at = Time::from_millis;
        // io_timeout, grace, how often.
        for (io_timeout, grace, tick) in
            [(30_000, 5000, 100), (400, 300, 50), (400, 50, 25), (160, 1, 2), (8, 300, 2), (800, 200, 100)]
        {
            let mut ladder = Ladder::new(&config(io_timeout, grace));
            assert!(ladder.due() == Time::NEVER && !ladder.is_due(at(1)));
            ladder.started(at(1000));
            ladder.started(at(1001));
            let due = at(1000).after(ms(tick));
            assert_eq!(ladder.due(), due, "{io_timeout} {grace}");
            assert!(ladder.is_due(due) && !ladder.is_due(at(1000)));
            ladder.looked(at(2000), true);
            assert_eq!(ladder.due(), at(2000).after(ms(tick)));
            ladder.looked(at(3000), false);
            assert_eq!(ladder.due(), Time::NEVER);
        }
    }

    #[test]
    fn what_could_not_be_done_is_late_at_once_and_what_was_done_has_its_grace() {
        let (at, limit, grace) = (Time::from_millis, ms(1000), ms(300));
        for (outcome, late) in [(Recovered::Failed, 2000), (Recovered::Complete, 2300), (Recovered::NoSuchTask, 2300)] {
            let mut ladder = Ladder::new(&config(1000, 300));
            let mut requests = Requests::new(4);
            let io = Io::read(1, 0, 1, SegSpan::EMPTY);
            let [sent, ending] = [0, 1].map(|_| requests.insert(Unit(0), &io, at(900)).unwrap());
            for key in [sent, ending] {
                requests.get_mut(key).unwrap().sent(at(1500));
            }
            requests.get_mut(ending).unwrap().stage = Stage::Ending(UNIT_RESET, at(1800));
            ladder.looked(at(2000), true);
            for key in [sent, ending] {
                ladder.answered(&RecoveryEnd { token: key.as_u32().into(), outcome }, &mut requests, at(2000));
            }
            assert_eq!(ladder.due(), at(2000), "looked at in the same turn");
            assert_eq!(requests.get(sent).unwrap().stage, Stage::Sent, "nobody was asked about it");
            let rung = (ending, Some(UNIT_RESET));
            if late > 2000 {
                assert_eq!(requests.late(at(late - 1), limit, grace), [], "{outcome:?}");
            }
            assert_eq!(requests.late(at(late), limit, grace), [rung], "{outcome:?}");
            assert_eq!(requests.late(at(2499), limit, grace), [rung], "counted from when it was sent");
            assert_eq!(requests.late(at(2500), limit, grace).len(), 2);
            let mut done = Done::with_capacity(4);
            requests.suspect(sent, polypath_block::Code::PathLost, terms(), &mut done);
            assert_eq!(requests.late(at(9000), limit, grace), [rung], "the driver ends what is suspect");
            requests.abandon();
        }
    }

    fn terms() -> polypath_block::FenceTerms {
        polypath_block::FenceTerms { proof: polypath_block::Proof::SocketClosed, within: ms(1) }
    }
}
