//! The device server: what commands do to the disks (SPC-4, SBC-3, SAM-5). Every command that is not here is refused.

mod below;
mod block;
mod groups;
mod opcodes;
mod pages;
mod reserve;

use super::Env;
use super::beneath::beneath;
use super::conn::Conn;
use super::send::Source;
use crate::config::{AnaState, STANDBY};
use crate::media::MediumError;
use crate::store::Disk;
use polypath_iscsi::pdu::ScsiCommand;
use polypath_scsi::command::{Command, Data};
use polypath_scsi::sense::{Sense, key};
use polypath_scsi::{Lun, ScsiStatus, opcode};
use std::sync::Arc;

/// Sense data of more than one place.
pub(super) mod sense {
    use super::{Sense, key};

    pub(crate) const INVALID_OPCODE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x20, 0);
    pub(crate) const LBA_OUT_OF_RANGE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x21, 0);
    pub(crate) const INVALID_FIELD_IN_CDB: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x24, 0);
    pub(crate) const NO_UNIT: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x25, 0);
    pub(crate) const PARAMETER_LENGTH: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x1a, 0);
    pub(crate) const INVALID_FIELD_IN_PARAMETERS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x26, 0);
    pub(crate) const INVALID_RELEASE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x26, 0x04);
    pub(crate) const INSUFFICIENT_REGISTRATIONS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x55, 0x04);
    pub(crate) const SAVING_NOT_SUPPORTED: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x39, 0);
    /// INVALID FIELD IN COMMAND INFORMATION UNIT: less data than a block.
    pub(crate) const INFORMATION_UNIT: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x0e, 0x03);
    pub(crate) const MISCOMPARE: Sense = Sense::new(key::MISCOMPARE, 0x1d, 0);
    pub(crate) const READ_ERROR: Sense = Sense::new(key::MEDIUM_ERROR, 0x11, 0);
    pub(crate) const WRITE_ERROR: Sense = Sense::new(key::MEDIUM_ERROR, 0x0c, 0);
    pub(crate) const WRITE_PROTECTED: Sense = Sense::new(key::DATA_PROTECT, 0x27, 0);
    /// SPACE ALLOCATION FAILED WRITE PROTECT.
    pub(crate) const NO_SPACE: Sense = Sense::new(key::DATA_PROTECT, 0x27, 0x07);
    pub(crate) const GIVEN_UP: Sense = Sense::new(key::ABORTED_COMMAND, 0, 0);
    pub(crate) const INTERNAL_FAILURE: Sense = Sense::new(key::HARDWARE_ERROR, 0x44, 0);
    pub(crate) const STANDBY: Sense = Sense::new(key::NOT_READY, 0x04, 0x0b);
    pub(crate) const UNAVAILABLE: Sense = Sense::new(key::NOT_READY, 0x04, 0x0c);
    pub(crate) const TRANSITION: Sense = Sense::new(key::NOT_READY, 0x04, 0x0a);
    /// UNEXPECTED UNSOLICITED DATA, INCORRECT AMOUNT OF DATA, PROTOCOL SERVICE CRC ERROR (RFC 7143 section 11.4.7.2).
    pub(crate) const UNEXPECTED_DATA: Sense = Sense::new(key::ABORTED_COMMAND, 0x0c, 0x0c);
    pub(crate) const WRONG_AMOUNT_OF_DATA: Sense = Sense::new(key::ABORTED_COMMAND, 0x0c, 0x0d);
    pub(crate) const CRC_ERROR: Sense = Sense::new(key::ABORTED_COMMAND, 0x47, 0x05);
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) status: u8,
    pub(super) sense: Option<Sense>,
}

impl Verdict {
    pub(super) const GOOD: Verdict = Verdict { status: 0, sense: None };
    pub(super) const CONFLICT: Verdict = Verdict { status: ScsiStatus::RESERVATION_CONFLICT.0, sense: None };

    pub(super) const fn check(sense: Sense) -> Verdict {
        Verdict { status: ScsiStatus::CHECK_CONDITION.0, sense: Some(sense) }
    }
}

impl From<MediumError> for Verdict {
    fn from(error: MediumError) -> Verdict {
        Verdict::check(match error {
            MediumError::OutOfRange => sense::LBA_OUT_OF_RANGE,
            MediumError::Read => sense::READ_ERROR,
            MediumError::Write => sense::WRITE_ERROR,
            MediumError::Unsupported => sense::INVALID_OPCODE,
            MediumError::WriteProtected => sense::WRITE_PROTECTED,
            MediumError::Conflict => return Verdict::CONFLICT,
            MediumError::Miscompare => sense::MISCOMPARE,
            MediumError::NoSpace => sense::NO_SPACE,
            MediumError::Aborted => sense::GIVEN_UP,
            // Not NOT READY, which would be said of our port: it is the disk that does not answer, and what became of it is not known.
            MediumError::Failed => sense::INTERNAL_FAILURE,
        })
    }
}

impl From<Sense> for Verdict {
    fn from(sense: Sense) -> Verdict {
        Verdict::check(sense)
    }
}

/// What a command gives back.
type Outcome = Result<(), Verdict>;

/// Which commands a logical unit takes in a state of asymmetric access other than its own (SPC-4 5.15.2.4.4 to 5.15.2.4.6).
fn works_without_access(command: &Command, standby: bool) -> bool {
    match command {
        Command::Inquiry { .. }
        | Command::ReportLuns { .. }
        | Command::RequestSense { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::SetTargetPortGroups { .. } => true,
        Command::ModeSense { .. }
        | Command::PersistentReserveIn { .. }
        | Command::PersistentReserveOut { .. }
        | Command::ReportSupportedOperationCodes { .. } => standby,
        _ => false,
    }
}

impl Conn {
    /// The disk that a command is about.
    #[inline]
    pub(super) fn disk(&self, cmd: &ScsiCommand) -> Result<&Arc<Disk>, Verdict> {
        let unit = Lun(cmd.lun.0).number();
        self.disks.iter().find(|d| Some(d.lun) == unit).ok_or(Verdict::check(sense::NO_UNIT))
    }

    /// Takes a command descriptor block apart; those of commands that we do not have are refused here.
    #[inline]
    pub(super) fn parse(&self, cmd: &ScsiCommand) -> Result<Command, Verdict> {
        let command = match cmd.cdb[0] {
            opcodes::WRITE_AND_VERIFY_10 => opcodes::write_and_verify(&cmd.cdb, opcode::WRITE_10),
            opcodes::WRITE_AND_VERIFY_12 => opcodes::write_and_verify(&cmd.cdb, opcode::WRITE_12),
            opcodes::WRITE_AND_VERIFY_16 => opcodes::write_and_verify(&cmd.cdb, opcode::WRITE_16),
            _ => Command::parse(&cmd.cdb).map_err(|e| e.sense()),
        };
        let command = command?;
        if opcodes::is_refused(&command) {
            return Err(Verdict::check(sense::INVALID_OPCODE));
        }
        Ok(command)
    }

    /// Whether a command is taken at all, and what data go with it: unit attentions, access, reservations.
    #[inline]
    pub(super) fn admit(&mut self, env: &Env<'_>, cmd: &ScsiCommand) -> Result<(Command, Data), Verdict> {
        let disk = self.disk(cmd).ok();
        if let (Some(session), Some(disk)) = (&self.session, disk) {
            let news = disk.reservations.take_news(|party| !party.is_everywhere());
            reserve::tell(env, session.store, disk.lun, &news);
            let silent = matches!(cmd.cdb[0], opcode::INQUIRY | opcode::REPORT_LUNS | opcode::REQUEST_SENSE);
            if !silent && let Some(code) = session.take_attention(disk.lun) {
                return Err(Verdict::check(Sense::new(key::UNIT_ATTENTION, (code >> 8) as u8, code as u8)));
            }
        }
        let command = self.parse(cmd)?;
        let Some(disk) = disk else {
            return match command {
                Command::Inquiry { .. } | Command::ReportLuns { .. } | Command::RequestSense { .. } => {
                    Ok((command, command.data(512)))
                }
                _ => Err(Verdict::check(sense::NO_UNIT)),
            };
        };
        self.access(env, disk, &command)?;
        if let (Some(session), Some(write)) = (&self.session, reserve::touches(&command))
            && !disk.reservations.allows(&session.party, write)
        {
            return Err(Verdict::CONFLICT);
        }
        Ok((command, command.data(1 << disk.shift)))
    }

    /// Whether the disk may be reached through this portal.
    #[inline]
    fn access(&self, env: &Env<'_>, disk: &Disk, command: &Command) -> Outcome {
        let Some(store) = self.session.as_ref().and_then(|s| env.iscsi.shared.stores.get(s.store)) else {
            return Ok(());
        };
        let code = store.access(self.info.listener, disk.group);
        if code <= 2 || works_without_access(command, code == STANDBY) {
            return Ok(());
        }
        Err(Verdict::check(match AnaState::from_code(code) {
            AnaState::Standby => sense::STANDBY,
            AnaState::Change => sense::TRANSITION,
            _ => sense::UNAVAILABLE,
        }))
    }

    /// Carries a command out and answers it. `data` are those that it takes, fewer only where the initiator expects fewer.
    #[inline]
    pub(super) fn execute(&mut self, env: &Env<'_>, cmd: &ScsiCommand, command: Command, data: &[u8]) {
        if let Command::Read(transfer) = command {
            self.counts.reads += 1;
            if let Err(verdict) = self.read(env, cmd, transfer) {
                self.respond(env, cmd, verdict, 0);
            }
            return;
        }
        let wanted = self.disk(cmd).map_or(0, |disk| match command.data(1 << disk.shift) {
            Data::Out(wanted) => wanted,
            _ => 0,
        });
        let outcome = self.carry_out(env, cmd, &command, data);
        match outcome {
            Ok(Some(answer)) => self.data_in(env, cmd, Source::Bytes(&answer), answer.len() as u64),
            Ok(None) => self.respond(env, cmd, Verdict::GOOD, wanted),
            Err(verdict) if verdict.status == ANSWERED => {}
            Err(verdict) => {
                let wanted = if data.is_empty() { 0 } else { wanted };
                self.respond(env, cmd, verdict, wanted);
            }
        }
    }

    /// Everything but reads: what is to be returned, cut to the allocation length.
    fn carry_out(
        &mut self,
        env: &Env<'_>,
        cmd: &ScsiCommand,
        command: &Command,
        data: &[u8],
    ) -> Result<Option<Vec<u8>>, Verdict> {
        match command {
            Command::Write(_) | Command::WriteSame { .. } | Command::Unmap { .. } | Command::CompareAndWrite(_) => {
                self.counts.writes += 1;
            }
            _ => self.counts.others += 1,
        }
        let nothing = |outcome: Outcome| outcome.map(|()| None);
        let some = |answer: Vec<u8>, allocation: u32| {
            let mut answer = answer;
            answer.truncate(allocation as usize);
            Ok(Some(answer))
        };
        match *command {
            Command::Inquiry { page, allocation_length } => {
                some(self.inquiry(env, cmd, page)?, allocation_length.into())
            }
            Command::ReportLuns { select, allocation_length } => some(self.report_luns(select), allocation_length),
            Command::RequestSense { descriptor, allocation_length } => {
                some(self.request_sense(cmd, descriptor), allocation_length.into())
            }
            _ => {
                let disk = self.disk(cmd)?.clone();
                self.access(env, &disk, command)?;
                if let Some(medium) = beneath(&disk)
                    && let Some(job) = self.job(env, &disk, medium, command, data)?
                {
                    let wanted = match command.data(1 << disk.shift) {
                        Data::Out(wanted) => wanted,
                        _ => 0,
                    };
                    self.start(env, cmd, job, wanted);
                    return Err(Verdict { status: ANSWERED, sense: None });
                }
                match *command {
                    Command::Write(transfer) => nothing(block::write(env, &disk, transfer, data)),
                    Command::TestUnitReady => Ok(None),
                    Command::SynchronizeCache { lba, blocks, .. } => nothing(block::flush(&disk, lba, blocks)),
                    Command::StartStopUnit(what) => nothing(block::start_stop(&disk, what)),
                    Command::Verify { lba, blocks, check, .. } => {
                        nothing(block::verify(env, &disk, (lba, blocks), check, data))
                    }
                    Command::CompareAndWrite(transfer) => {
                        nothing(block::compare_and_write(&disk, transfer, cmd.expected_len, data))
                    }
                    Command::Unmap { anchor, .. } => nothing(block::unmap(&disk, anchor, data)),
                    Command::WriteSame { lba, blocks, how } => {
                        nothing(block::write_same(env, &disk, (lba, blocks), how, data))
                    }
                    Command::ReadCapacity10 => some(pages::capacity_10(&disk), u32::MAX),
                    Command::ReadCapacity16 { allocation_length } => some(pages::capacity_16(&disk), allocation_length),
                    Command::ModeSense { allocation_length, .. } => {
                        some(pages::mode_sense(env, &disk, command)?, allocation_length.into())
                    }
                    Command::ReportTargetPortGroups { extended, allocation_length } => {
                        some(self.report_groups(env, &disk, extended), allocation_length)
                    }
                    Command::SetTargetPortGroups { .. } => nothing(self.set_groups(env, &disk, data)),
                    Command::PersistentReserveIn { action, allocation_length } => {
                        some(self.reserve_in(&disk, action)?, allocation_length.into())
                    }
                    Command::PersistentReserveOut { action, scope_type, .. } => {
                        nothing(self.reserve_out(env, cmd, &disk, action, scope_type, data))
                    }
                    Command::ReportSupportedOperationCodes { which, timeouts, allocation_length } => {
                        some(opcodes::report(which, timeouts, below::absent(&disk))?, allocation_length)
                    }
                    _ => Err(Verdict::check(sense::INVALID_OPCODE)),
                }
            }
        }
    }
}

/// The status of a verdict that says: it is answered later, by somebody else.
const ANSWERED: u8 = 0xff;
