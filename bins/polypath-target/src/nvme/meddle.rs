//! Faults on single commands: delayed, lost, held.

use super::state::operation;
use super::{Conn, Env, Pending};
use crate::faults::{self, Answer, HeldRecord, HeldWrite, Kind};
use crate::mail::Address;
use polypath_nvme::sqe::io as op;
use polypath_nvme::{Cqe, Sqe, StatusField};

impl Conn {
    /// Applies command faults. `true` when the command has been dealt with.
    #[cold]
    pub(super) fn meddle(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) -> bool {
        let operation = operation(self.qid == 0, sqe.opcode());
        let Some(kind) = faults::on_command(env.rules, &self.who(), operation, env.now_us) else {
            return false;
        };
        let cid = sqe.cid();
        let slot = match kind {
            Kind::Refuse => {
                self.complete(env, Cqe::new(cid, StatusField::INTERNAL_ERROR));
                return true;
            }
            Kind::Delay { us } => {
                self.delayed += 1;
                Pending::Delayed { sqe: *sqe, data: data.to_vec(), until_us: env.now_us.saturating_add(us) }
            }
            Kind::Lose { execute } => {
                // A read changes nothing: not executing it is the same.
                if execute && sqe.opcode() != op::READ {
                    let keep = self.out.len();
                    self.execute(env, sqe, data);
                    // Answers without a medium's data are bytes only, which can be taken back.
                    let answer = self.out.len() - keep;
                    if answer > 0 {
                        self.out.take_back(answer);
                    }
                    if self.lose_below(cid) {
                        return true;
                    }
                }
                Pending::Silent { cid }
            }
            Kind::Hold { after_us, beyond, answer } => {
                if !self.hold(env, sqe, data, after_us, beyond, answer) {
                    return false;
                }
                Pending::Silent { cid }
            }
            _ => return false,
        };
        if let Err(fatal) = self.wait(slot) {
            self.delayed -= usize::from(matches!(kind, Kind::Delay { .. }));
            self.terminate(env, fatal, sqe.as_bytes());
        }
        true
    }

    /// Takes a write away to be applied late. `false` when it cannot be, and is executed as usual.
    pub(super) fn hold(
        &mut self,
        env: &Env<'_>,
        sqe: &Sqe,
        data: &[u8],
        after_us: Option<u64>,
        beyond: bool,
        answer: Answer,
    ) -> bool {
        let (Some(controller), Ok(range)) = (self.controller.clone(), self.range(env, sqe)) else { return false };
        if Conn::beneath(range.disk).is_some() {
            return false;
        }
        let zeroes = sqe.opcode() == op::WRITE_ZEROES;
        if !zeroes && data.len() as u64 != range.len {
            return false;
        }
        let bound_us = env.nvme.bound_us(&controller);
        // A little early, so that a host that waits exactly the bound is on the safe side.
        let latest_us = bound_us.map(|b| b - (b / 50).max(20_000).min(b));
        let after_us = match (after_us, latest_us, beyond) {
            (Some(after), Some(latest), false) => after.min(latest),
            (Some(after), ..) => after,
            (None, Some(latest), false) => latest,
            (None, ..) => bound_us.unwrap_or(1_000_000) + 500_000,
        };
        let id = env.nvme.shared.held.next_id();
        let record = HeldRecord {
            id,
            cntlid: controller.id,
            qid: self.qid,
            cid: sqe.cid().into(),
            nsid: range.disk.nsid,
            lba: sqe.slba(),
            blocks: u64::from(sqe.nlb_z()) + 1,
            held_unix_us: env.nvme.shared.unix_us(env.now_us),
            apply_after_ms: after_us / 1000,
            bound_ms: bound_us.map(|b| b / 1000),
            beyond,
            applied_unix_us: None,
            after_teardown: None,
        };
        let write = HeldWrite {
            id,
            medium: range.disk.medium.clone(),
            offset: range.offset,
            data: (!zeroes).then(|| data.to_vec()),
            len: range.len,
            fua: sqe.fua(),
            apply_us: env.now_us.saturating_add(after_us),
            answer: (answer == Answer::After).then(|| Address {
                thread: self.info.thread,
                conn: self.info.id,
                tag: sqe.cid().into(),
            }),
            gone: controller.dead.clone(),
            owner: Some((self.subsystem.saturating_sub(1), self.party.clone())),
            unit: range.disk.lun,
            tag: sqe.cid().into(),
            beyond,
        };
        tracing::info!(id, cid = sqe.cid(), lba = sqe.slba(), after_ms = after_us / 1000, "write held");
        env.nvme.shared.held.hold(write, record)
    }
}
