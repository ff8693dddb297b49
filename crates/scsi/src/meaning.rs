//! What an answer means to whoever asked: from SCSI's words to the contract's, in one function.
//!
//! The rule for scopes: what another path would answer the same concerns the request; what is about this target port, this nexus or
//! the way to the logical unit concerns the path, so that another path is tried. It is Linux's rule, too (`scsi_check_sense` with
//! `blk_path_error`); where we differ, the reason stands beside it.

mod attention;

pub use attention::Attention;

use crate::sense::{Sense, key};
use crate::status::ScsiStatus;
use polypath_block::{Code, Status};

/// What an answer means. Every answer ends the command: nothing of it lands any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// It was carried out.
    Done,
    /// It failed, and sending it again over this path will not help.
    Failed(Status),
    /// It was not carried out: first there is something to hear. To be sent again once that was acted on.
    UnitAttention(Attention),
    /// It was not carried out, or not to its end, and may be sent again over this path.
    Again(Again),
    /// It was not carried out, and *an earlier command, answered long ago, failed as the status says*: a write that was acknowledged
    /// may be lost. To be sent again once that was made known ([`Status::may_have_dropped`] holds of every such status).
    Deferred(Status),
}

/// Why a command may be sent again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Again {
    /// The logical unit is busy (BUSY status), or a resource of the target is short. After a moment.
    Busy,
    /// The task set is full (TASK SET FULL). Once one of our commands there was answered; or after a moment if none is left. Hold fewer
    /// commands outstanding.
    TaskSetFull,
    /// The logical unit is becoming ready: starting up, formatting, rebuilding, and the like. After a second or more; TEST UNIT READY
    /// tells, and [`Sense::progress`] sometimes.
    BecomingReady,
    /// The target port group changes its asymmetric access state. Within the implicit transition time; or at once over another path.
    Transition,
    /// Another initiator port, or the target itself, had the task set cleared (TASK ABORTED status).
    TaskAborted,
    /// Octets were damaged or lost between initiator and target (CRC, parity, data phase). At once, a few times; or over another path.
    Damaged,
    /// The device server gave the command up and does not say that it would do so again.
    Aborted,
    /// CHECK CONDITION, but the sense data tell of no error. What of the data was moved is unknown.
    NothingWrong,
}

impl Meaning {
    /// What to complete the request with if it is *not* sent again: tried often enough, out of time, or not to be repeated. `sense` as
    /// given to [`meaning`].
    pub fn give_up(self, sense: Option<&Sense>) -> Status {
        let detail = sense.map_or(0, Sense::detail);
        match self {
            Meaning::Done => Status::OK,
            Meaning::Failed(status) | Meaning::Deferred(status) => status,
            Meaning::UnitAttention(_) => Status::with_detail(Code::PathBusy, detail),
            Meaning::Again(again) => Status::with_detail(again.give_up(), detail),
        }
    }
}

impl Again {
    /// What it comes to when the command is not sent again.
    const fn give_up(self) -> Code {
        match self {
            Again::Busy | Again::TaskSetFull | Again::BecomingReady | Again::Transition => Code::PathBusy,
            // Whoever had it aborted meant it for every path; a reservation conflict will tell if it was a preemption.
            Again::TaskAborted => Code::Aborted,
            // The device server behind another target port may fare better, and the request is whole.
            Again::Damaged | Again::Aborted | Again::NothingWrong => Code::PathLost,
        }
    }
}

/// What a status and the sense data that came with it mean. Sense data count only with CHECK CONDITION.
pub fn meaning(status: ScsiStatus, sense: Option<&Sense>) -> Meaning {
    match status {
        // GOOD may have sense data with it, such as a soft threshold (SPC-4 4.5.1): it is GOOD.
        ScsiStatus::GOOD | ScsiStatus::CONDITION_MET => Meaning::Done,
        ScsiStatus::CHECK_CONDITION => match sense {
            Some(sense) => of_sense(sense),
            // Every transport of today carries the sense data with the status.
            None => Meaning::Failed(Code::PathProtocol.into()),
        },
        ScsiStatus::BUSY => Meaning::Again(Again::Busy),
        ScsiStatus::TASK_SET_FULL => Meaning::Again(Again::TaskSetFull),
        // We never set NACA, so that another initiator port's condition is meant, which it will clear.
        ScsiStatus::ACA_ACTIVE => Meaning::Again(Again::Busy),
        ScsiStatus::RESERVATION_CONFLICT => Meaning::Failed(Code::ReservationConflict.into()),
        // Not an error yet: Linux sends it again, too. After PREEMPT AND ABORT, RESERVATION CONFLICT is the answer then; after another
        // host's LOGICAL UNIT RESET it is carried out, and nobody's guest sees an error because of another host's recovery.
        ScsiStatus::TASK_ABORTED => Meaning::Again(Again::TaskAborted),
        _ => Meaning::Failed(Code::PathProtocol.into()),
    }
}

fn of_sense(sense: &Sense) -> Meaning {
    if sense.deferred {
        return deferred(sense);
    }
    match sense.key {
        // COMPLETED and RECOVERED ERROR: it was carried out.
        key::RECOVERED_ERROR | key::COMPLETED => Meaning::Done,
        // "False check condition ... an unknown amount of data was transferred" (Linux, sd_done): sent again.
        key::NO_SENSE => Meaning::Again(Again::NothingWrong),
        key::UNIT_ATTENTION => match sense.code() {
            // Linux's ALUA handler sees it with this key, too.
            asc::TRANSITION => Meaning::Again(Again::Transition),
            code => Meaning::UnitAttention(Attention::of(code)),
        },
        key::NOT_READY => not_ready(sense),
        key::ABORTED_COMMAND => aborted(sense),
        _ => Meaning::Failed(failure(sense)),
    }
}

/// Additional sense codes with their qualifier that matter here.
mod asc {
    pub(super) const TRANSITION: u16 = 0x040a;
    pub(super) const SPACE_ALLOCATION_FAILED: u16 = 0x2707;
    pub(super) const INSUFFICIENT_RESOURCES: u16 = 0x5503;
    pub(super) const SNACK_REJECTED: u16 = 0x1113;
    /// RDAC arrays: "invalid request due to current logical unit ownership", that is, the other controller has it.
    pub(super) const RDAC_OWNERSHIP: u16 = 0x9401;
}

fn not_ready(sense: &Sense) -> Meaning {
    match sense.code() {
        asc::TRANSITION => Meaning::Again(Again::Transition),
        // Becoming ready; format, rebuild, recalculation, operation, long write, self-test, space allocation, start stop, sanitize,
        // microcode activation, configuration, depopulation in progress; waiting for leave to spin up. Linux's list for a delayed retry.
        0x0401 | 0x0404..=0x0409 | 0x0411 | 0x0414 | 0x041a | 0x041b | 0x041d | 0x0424 | 0x0425 => {
            Meaning::Again(Again::BecomingReady)
        }
        // Standby (04h/0Bh) and unavailable (04h/0Ch); 04h/02h and 04h/03h, which the passive controllers of old arrays answer (Linux's
        // hp_sw and emc handlers); no medium: whatever it is, the unit is not to be had here, and may be elsewhere.
        _ => fail(Code::PathNoAccess, sense),
    }
}

fn aborted(sense: &Sense) -> Meaning {
    match (sense.asc, sense.code()) {
        // Protection information does not fit the data: on every path.
        (0x10, _) => fail(Code::Medium, sense),
        // Write errors of iSCSI (RFC 7143 11.4.7.2): we sent too little or too much. Sent again it would be the same.
        (0x0c, 0x0c0c | 0x0c0d) => fail(Code::PathProtocol, sense),
        // Two commands with one tag, and the target aborted all of ours: only a new nexus helps.
        (0x4e, _) => fail(Code::PathProtocol, sense),
        // CRC and parity errors, data phase errors, a SNACK that was rejected, messages that were damaged, communication failures
        // between target and logical unit: on the way, not on the medium.
        (0x08 | 0x1b | 0x43 | 0x45 | 0x47 | 0x48 | 0x4b, _) | (_, asc::SNACK_REJECTED) => {
            Meaning::Again(Again::Damaged)
        }
        (_, asc::INSUFFICIENT_RESOURCES) => Meaning::Again(Again::Busy),
        // "The application client may be able to recover by trying the command again" (SPC-4, ABORTED COMMAND). Linux does so, a bounded
        // number of times, and then takes it for the path's fault.
        _ => Meaning::Again(Again::Aborted),
    }
}

/// What a sense key other than NO SENSE, RECOVERED ERROR, NOT READY, UNIT ATTENTION and ABORTED COMMAND comes to.
fn failure(sense: &Sense) -> Status {
    let code = match (sense.key, sense.asc) {
        (_, 0x27) if sense.code() == asc::SPACE_ALLOCATION_FAILED => Code::NoSpace,
        (_, 0x27) => Code::WriteProtected,
        // Disks have tried for seconds before they say so.
        (key::MEDIUM_ERROR | key::BLANK_CHECK, _) => Code::Medium,
        (key::HARDWARE_ERROR, asc) => hardware(asc),
        (key::ILLEGAL_REQUEST, _) => illegal(sense),
        // Neither read nor written there, and not for its being read-only: a locked band of an encrypting disk, a zone.
        (key::DATA_PROTECT, _) => Code::Medium,
        (key::VOLUME_OVERFLOW, _) => Code::NoSpace,
        (key::MISCOMPARE, _) => Code::Miscompare,
        (key::COPY_ABORTED, _) => Code::Aborted,
        // Vendor specific and reserved keys, and those that were answered above.
        _ => Code::Medium,
    };
    Status::with_detail(code, sense.detail())
}

/// HARDWARE ERROR. Linux takes all of it for an error of the request (`DID_TARGET_FAILURE`). A disk with a broken head is that, and
/// its other port will say the same. But where the failure is of the controller that answered or of its way to the logical unit, another
/// controller may do; the command is over, so that nothing is risked by asking it.
fn hardware(asc: u8) -> Code {
    match asc {
        // Communication failures, no response to selection, select failure, parity and CRC, data phase, message errors.
        0x05 | 0x06 | 0x07 | 0x08 | 0x1b | 0x43 | 0x45 | 0x47 | 0x48 | 0x4b => Code::PathLost,
        // Internal target failure, system resource failure: of the target, not of the unit.
        0x44 | 0x55 => Code::PathLost,
        _ => Code::Medium,
    }
}

fn illegal(sense: &Sense) -> Code {
    match (sense.asc, sense.ascq) {
        (0x20, 0) | (0x22, _) => Code::Unsupported,
        // Access denied (20h/01h and following): this initiator port has no rights there, another may have.
        (0x20, _) => Code::PathNoAccess,
        (0x21, 0) => Code::OutOfRange,
        // LOGICAL UNIT NOT SUPPORTED: there is none (any more) behind this target port. Another one may still have it.
        (0x25, _) => Code::PathNoAccess,
        // Resources that come back; not those for registrations (55h/04h).
        (0x55, 0..=3) => Code::PathBusy,
        _ if sense.code() == asc::RDAC_OWNERSHIP => Code::PathNoAccess,
        _ => Code::Invalid,
    }
}

/// A deferred error: of an earlier command, which was answered as good (SPC-4 4.5.5). One that was recovered hurts nobody.
fn deferred(sense: &Sense) -> Meaning {
    if matches!(sense.key, key::NO_SENSE | key::RECOVERED_ERROR | key::COMPLETED) {
        return Meaning::Again(Again::NothingWrong);
    }
    let status = failure(sense);
    Meaning::Deferred(match status.code {
        Code::NoSpace | Code::WriteProtected => status,
        Code::Medium if matches!(sense.key, key::MEDIUM_ERROR | key::HARDWARE_ERROR) => status,
        // Whatever it was: what the cache held then may not have reached the medium.
        _ => Status { code: Code::CacheLost, ..status },
    })
}

fn fail(code: Code, sense: &Sense) -> Meaning {
    Meaning::Failed(Status::with_detail(code, sense.detail()))
}

#[cfg(test)]
mod tests;
