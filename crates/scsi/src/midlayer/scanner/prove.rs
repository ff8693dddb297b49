//! The control side proves for other ways to a logical unit that nothing of theirs is under way: LOGICAL UNIT RESET over its own nexus.
//!
//! The answer counts only when the same disk is behind the LUN afterwards as was before: otherwise it may have been another one that was reset.

use super::{Busy, Scanner, Work};
use crate::midlayer::bus::Address;
use crate::midlayer::probe::Probe;
use crate::midlayer::task::{Recovered, Recovery, RecoveryEnd, TaskQueue};
use polypath_block::{Cx, Identity, Proof, ProofReply, ProofResult, Time};

/// A logical unit that is to be proven quiet.
pub(super) struct Proving {
    pub(super) address: Address,
    pub(super) until: Time,
    pub(super) stage: Stage,
    /// Nobody waits any more once he has been answered.
    reply: Option<ProofReply>,
}

/// How far that is.
pub(super) enum Stage {
    /// The reset is to be sent.
    Reset,
    /// It was, by this number.
    Asked(u64),
    /// It was answered: who is there?
    Look(Box<Probe>),
}

impl Proving {
    fn answer(&mut self, result: ProofResult) {
        if let Some(reply) = self.reply.take() {
            reply.answer(result);
        }
    }
}

impl<Q: TaskQueue> Scanner<Q> {
    /// Takes what is asked for, and ends what takes too long.
    pub(super) fn take_proofs(&mut self, now: Time) {
        for order in self.bus.take_proof_orders() {
            let (address, until, reply) = (order.address, now.after(order.limit), Some(order.reply));
            self.proofs.push(Proving { address, until, stage: Stage::Reset, reply });
        }
        let up = self.up;
        let late = |proving: &Proving| !up || now >= proving.until;
        self.proofs.retain_mut(|proving| {
            let late = late(proving);
            if late {
                proving.answer(Err("nothing was sent in time".to_owned()));
            }
            !late
        });
        if let Some(Busy { work: Work::Prove(proving), .. }) = &mut self.busy
            && late(proving)
        {
            proving.answer(Err("not answered in time".to_owned()));
            // A look goes on: its command is under way.
            if !matches!(proving.stage, Stage::Look(_)) {
                self.busy = None;
            }
        }
    }

    /// Sends the reset.
    pub(super) fn send_reset(&mut self, cx: &mut Cx<'_>) {
        self.tags += 1;
        let token = self.tags;
        let Some(Busy { work: Work::Prove(proving), address, until, .. }) = &mut self.busy else { return };
        let Address { target, lun } = *address;
        if self.tasks.recover(cx, Recovery::ResetLogicalUnit { target, lun }, token) {
            (proving.stage, *until) = (Stage::Asked(token), proving.until);
            tracing::warn!(path = %self.bus.name(), %lun, "LOGICAL UNIT RESET, to prove quiet what another path has lost: it ends the commands of other hosts, too");
        } else {
            proving.answer(Err("the reset cannot be sent".to_owned()));
            self.busy = None;
        }
    }

    /// A reset was answered: that of a proof, or none of ours.
    pub(super) fn reset_answered(&mut self, end: &RecoveryEnd) {
        let limits = self.disk_limits();
        let Some(Busy { work: Work::Prove(proving), address, until, .. }) = &mut self.busy else { return };
        if !matches!(proving.stage, Stage::Asked(token) if token == end.token) {
            return;
        }
        if end.outcome == Recovered::Complete {
            let place = format!("{}/{}", self.bus.name(), address.lun);
            let probe = Probe::new(limits, self.queues, place).knowing(self.bus.known(*address));
            (proving.stage, *until) = (Stage::Look(Box::new(probe)), Time::ZERO);
        } else {
            proving.answer(Err("the target refuses the reset, or was lost".to_owned()));
            self.busy = None;
        }
    }

    /// A look at a logical unit has found this disk there, or nothing that can be used. Called before anything else hears of it.
    pub(super) fn looked(&mut self, found: Result<&Identity, &str>) {
        let Some(Busy { work: Work::Prove(proving), address, .. }) = &mut self.busy else { return };
        proving.answer(match found {
            Ok(identity) if self.bus.is_first(*address, identity) => Ok(Proof::UnitReset),
            Ok(_) => Err("another disk answers there now".to_owned()),
            Err(reason) => Err(format!("who is there now cannot be told: {reason}")),
        });
    }
}
