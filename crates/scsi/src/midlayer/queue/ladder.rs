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

    /// The rung after `last`. What is in doubt because of a reset is not made better by another one, which would be heard by others in turn.
    pub(super) fn next(&self, last: Option<u8>, doubted: bool) -> u8 {
        match last {
            None => ABORT_TASK,
            Some(_) if doubted => HOST_RESET,
            Some(rung) => rung.saturating_add(1),
        }
    }

    /// Something is to be looked at now.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due = self.due.min(now);
    }

    /// What is done on a rung; those that are not allowed are passed over.
    pub(super) fn step(&self, rung: u8, tag: u64, address: Address) -> Recovery {
        let Address { target, lun } = address;
        match rung {
            ABORT_TASK => Recovery::AbortTask { tag },
            UNIT_RESET if self.unit_reset => Recovery::ResetLogicalUnit { target, lun },
            UNIT_RESET | TARGET_RESET if self.target_reset => Recovery::ResetTarget { target },
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
