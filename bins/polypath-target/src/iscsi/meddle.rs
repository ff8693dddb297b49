//! Faults on single commands: delayed, lost, refused, held.

use super::Env;
use super::beneath::beneath;
use super::conn::Conn;
use super::order::State;
use super::scsi::{Verdict, sense};
use crate::faults::{self, Answer, HeldRecord, HeldWrite, Kind, Operation};
use crate::mail::Address;
use crate::media::MediumError;
use polypath_block::SlotKey;
use polypath_iscsi::pdu::{Itt, ScsiCommand};
use polypath_scsi::cdb::RwFlags;
use polypath_scsi::command::Command;

/// How late a held write is that nobody gave a time.
const LATE_US: u64 = 1_500_000;

impl Conn {
    /// Applies command faults. `true` when the command has been dealt with.
    #[cold]
    pub(super) fn meddle(&mut self, env: &Env<'_>, cmd: &ScsiCommand, command: &Command, data: &[u8]) -> bool {
        let operation = operation(command, data);
        let Some(kind) = faults::on_command(env.rules, &self.who(), operation, env.now_us) else { return false };
        match kind {
            Kind::Refuse => self.respond(env, cmd, Verdict::check(sense::INTERNAL_FAILURE), 0),
            Kind::Delay { us } => {
                let state = State::Delayed { data: data.to_vec(), until_us: env.now_us.saturating_add(us) };
                if self.keep(env, cmd, state).is_some() {
                    self.delayed += 1;
                }
            }
            Kind::Lose { execute } => {
                // A read changes nothing: not executing it is the same.
                if execute && operation != Operation::Read {
                    let (keep, stat_sn) = (self.out.len(), self.stat_sn);
                    self.execute(env, cmd, *command, data);
                    // Answers without a medium's data are bytes only, which can be taken back.
                    let answer = self.out.len() - keep;
                    if answer > 0 {
                        self.out.take_back(answer);
                    }
                    self.stat_sn = stat_sn;
                    if self.lose_below(cmd) {
                        return true;
                    }
                }
                self.keep(env, cmd, State::Lost);
            }
            Kind::Hold { after_us, beyond, answer } => {
                if !self.hold(env, cmd, command, data, (after_us, beyond, answer)) {
                    return false;
                }
                self.keep(env, cmd, State::Held);
            }
            _ => return false,
        }
        true
    }

    /// Takes a write away to be applied late. `false` when it cannot be, and is carried out as usual.
    fn hold(
        &mut self,
        env: &Env<'_>,
        cmd: &ScsiCommand,
        command: &Command,
        data: &[u8],
        (after_us, beyond, answer): (Option<u64>, bool, Answer),
    ) -> bool {
        let Some(session) = self.session.clone() else { return false };
        let (lba, blocks, fua, zeroes) = match command {
            Command::Write(t) => (t.lba, t.blocks, t.flags.contains(RwFlags::FUA), false),
            Command::WriteSame { lba, blocks, .. } => (*lba, *blocks, false, true),
            _ => return false,
        };
        let Some(disk) = self.disk(cmd).ok().filter(|disk| beneath(disk).is_none()) else { return false };
        let (medium, shift, unit, nsid) = (disk.medium.clone(), disk.shift, disk.lun, disk.nsid);
        let inside = lba.checked_add(blocks.into()).is_some_and(|end| end <= disk.blocks);
        let len = u64::from(blocks) << shift;
        if !inside || blocks == 0 || !zeroes && data.len() as u64 != len {
            return false;
        }
        let after_us = after_us.unwrap_or(LATE_US);
        let shared = &env.iscsi.shared;
        let id = shared.held.next_id();
        let record = HeldRecord {
            id,
            cntlid: session.tsih,
            qid: 0,
            cid: cmd.itt.get(),
            nsid,
            lba,
            blocks: blocks.into(),
            held_unix_us: shared.unix_us(env.now_us),
            apply_after_ms: after_us / 1000,
            bound_ms: None,
            beyond,
            applied_unix_us: None,
            after_teardown: None,
        };
        let tag = cmd.itt.get();
        let write = HeldWrite {
            id,
            medium,
            offset: lba << shift,
            data: (!zeroes).then(|| data.to_vec()),
            len,
            fua,
            apply_us: env.now_us.saturating_add(after_us),
            answer: (answer == Answer::After).then_some(Address { thread: self.info.thread, conn: self.info.id, tag }),
            gone: session.gone.clone(),
            owner: Some((session.store, session.party.clone())),
            unit,
            tag,
            beyond,
        };
        tracing::info!(id, itt = ?cmd.itt, lba, after_ms = after_us / 1000, "write held");
        shared.held.hold(write, record)
    }

    /// A held write was applied.
    pub(crate) fn landed(&mut self, env: &Env<'_>, tag: u32, result: Result<(), MediumError>) {
        let key = Itt::new(tag).and_then(|itt| self.task_of(itt));
        let held = key.filter(|key| self.tasks.get(*key).is_some_and(|task| matches!(task.state, State::Held)));
        if let Some((cmd, _)) = held.and_then(|key| self.end_task(key)) {
            let verdict = result.map_or_else(Verdict::from, |()| Verdict::GOOD);
            self.respond(env, &cmd, verdict, cmd.expected_len.into());
        }
    }

    /// Carries out what was put off and is due.
    pub(super) fn do_delayed(&mut self, env: &Env<'_>) {
        while let Some(key) = self.due(env.now_us) {
            let Some((cmd, State::Delayed { data, .. })) = self.end_task(key) else { continue };
            match self.parse(&cmd) {
                Ok(command) => self.execute(env, &cmd, command, &data),
                Err(verdict) => self.respond(env, &cmd, verdict, 0),
            }
        }
    }

    fn due(&self, now_us: u64) -> Option<SlotKey> {
        let due = |state: &State| matches!(state, State::Delayed { until_us, .. } if *until_us <= now_us);
        self.tasks.iter().find(|(_, task)| due(&task.state)).map(|(key, _)| key)
    }

    pub(super) fn first_delayed_us(&self) -> u64 {
        let until = |state: &State| match state {
            State::Delayed { until_us, .. } => Some(*until_us),
            _ => None,
        };
        self.tasks.iter().filter_map(|(_, task)| until(&task.state)).min().unwrap_or(u64::MAX)
    }
}

/// What a command does.
fn operation(command: &Command, data: &[u8]) -> Operation {
    match command {
        Command::Read(_) => Operation::Read,
        Command::Write(_) => Operation::Write,
        Command::SynchronizeCache { .. } => Operation::Flush,
        Command::Verify { .. } | Command::CompareAndWrite(_) => Operation::Compare,
        Command::WriteSame { .. } if data.iter().all(|b| *b == 0) => Operation::Zero,
        Command::Unmap { .. } => Operation::Trim,
        Command::TestUnitReady => Operation::Alive,
        Command::Inquiry { .. } | Command::ReadCapacity10 | Command::ReadCapacity16 { .. } => Operation::Identify,
        Command::ReportLuns { .. }
        | Command::ReportTargetPortGroups { .. }
        | Command::ModeSense { .. }
        | Command::PersistentReserveIn { .. } => Operation::Report,
        _ => Operation::Other,
    }
}
