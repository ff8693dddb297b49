//! The control side passes commands through: one at a time over its own nexus, beside everything else that it does.
//!
//! What may change something is sent once, unless it is known not to have been carried out (a unit attention came first, SAM-5 section 5.14,
//! or a deferred error, which is another command's, SPC-4 section 4.5.5), and is answered when its task has ended, which is when it is quiet.

use super::{Busy, Scanner, Work};
use crate::midlayer::bus::{Address, Seen};
use crate::midlayer::passthrough::Order;
use crate::midlayer::task::{Outcome, Recovery, TaskData, TaskEnd, TaskQueue};
use crate::{Attention, Cdb, Meaning, ScsiStatus, meaning, opcode};
use polypath_block::{
    Code, Cx, MOST_PASSTHROUGH_BYTES, PassthroughAnswer, PassthroughData, PassthroughReply, PassthroughStatus, Proof,
    SegRow, SegTable, Segment, Status, Time,
};
use polypath_memory::{Arena, Chunk};

/// How often a command is sent again at once: a logical unit has several attentions to report, not many.
const MOST_TRIES: u32 = 16;

/// A command that is to be passed through.
pub(super) struct Relay {
    pub(super) address: Address,
    cdb: Cdb,
    data: PassthroughData,
    pub(super) changes: bool,
    pub(super) until: Time,
    tries: u32,
    /// The nexus that it was sent over, until that has been given up because of it.
    nexus: Option<u64>,
    /// Nobody waits once he has been answered.
    reply: Option<PassthroughReply>,
}

impl Relay {
    fn new(order: Order, now: Time) -> Relay {
        let Order { address, cdb, data, changes, limit, reply } = order;
        let until = now.after(limit);
        Relay { address, cdb, data, changes, until, tries: 0, nexus: None, reply: Some(reply) }
    }

    fn asked(&self) -> u32 {
        if let PassthroughData::In(len) = self.data { len } else { 0 }
    }

    /// It was not carried out, or nobody knows.
    pub(super) fn refuse(&mut self, code: Code, reason: String) {
        if let Some(reply) = self.reply.take() {
            reply.refuse(code, reason);
        }
    }

    fn answer(&mut self, status: ScsiStatus, sense: Vec<u8>, data: Vec<u8>) {
        if let Some(reply) = self.reply.take() {
            let status = PassthroughStatus::Scsi { status: status.0, sense };
            reply.answer(Ok(PassthroughAnswer { status, data }));
        }
    }
}

/// Memory of the one that is under way. It is the next one's only when that has ended.
pub(super) struct RelayMemory {
    chunk: Chunk,
    row: SegRow,
}

impl RelayMemory {
    fn new(segs: &mut SegTable) -> Option<RelayMemory> {
        let chunk = Arena::new(MOST_PASSTHROUGH_BYTES.into(), false).ok()?.chunk(MOST_PASSTHROUGH_BYTES)?;
        Some(RelayMemory { chunk, row: segs.reserve(1, 1).ok()? })
    }

    fn data(&self, segs: &mut SegTable, data: &PassthroughData) -> Option<TaskData> {
        let span = self.row.span(0, 1);
        let place = |len| Segment { len, ..self.chunk.segment() };
        match data {
            PassthroughData::In(len) if *len > 0 => {
                segs.get_mut(span)[0] = place(*len);
                Some(TaskData::In { span, skip: 0, len: *len })
            }
            PassthroughData::Out(octets) if !octets.is_empty() => {
                self.chunk.window().copy_in(0, octets).ok()?;
                let len = octets.len() as u32;
                segs.get_mut(span)[0] = place(len);
                Some(TaskData::Out { span, skip: 0, len })
            }
            PassthroughData::None | PassthroughData::In(_) | PassthroughData::Out(_) => Some(TaskData::None),
        }
    }

    fn octets(&self, len: u32) -> Vec<u8> {
        let mut octets = vec![0; len.min(MOST_PASSTHROUGH_BYTES) as usize];
        if self.chunk.window().copy_out(0, &mut octets).is_err() {
            octets.clear();
        }
        octets
    }
}

impl<Q: TaskQueue> Scanner<Q> {
    /// Takes what is asked for, and ends what takes too long.
    pub(super) fn take_relays(&mut self, cx: &mut Cx<'_>) {
        self.relays.extend(self.bus.take_passthroughs().into_iter().map(|order| Relay::new(order, cx.now)));
        let up = self.up;
        for relay in &mut self.relays {
            if !up || cx.now >= relay.until {
                let (code, what) = if up { (Code::PathBusy, "busy for too long") } else { (Code::PathLost, "not up") };
                relay.refuse(code, format!("{} is {what}; nothing was sent", self.bus.name()));
            }
        }
        self.relays.retain(|relay| relay.reply.is_some());
        self.end_late_relay(cx);
    }

    /// The way is another one: who is there has not been looked at yet.
    pub(super) fn refuse_relays(&mut self) {
        for mut relay in self.relays.drain(..) {
            relay.refuse(Code::PathLost, format!("{} was lost before anything was sent", self.bus.name()));
        }
    }

    /// A command that is not answered in time costs the session: only then it is known to be over.
    fn end_late_relay(&mut self, cx: &mut Cx<'_>) {
        let Some(Busy { work: Work::Relay(relay), task, .. }) = &mut self.busy else { return };
        if cx.now < relay.until {
            return;
        }
        relay.until = Time::NEVER;
        let reason = format!("{} did not answer in time", self.bus.name());
        if task.is_none() {
            relay.refuse(Code::PathTimeout, reason);
            self.busy = None;
            return;
        }
        if !relay.changes {
            relay.refuse(Code::PathTimeout, reason);
        }
        // One that came up since has not seen it.
        if relay.nexus.take_if(|nexus| *nexus == self.tasks.nexus()).is_some() && (self.up || self.closed) {
            tracing::warn!(path = %self.bus.name(), lun = %relay.address.lun, command = %relay.cdb, "a command that was passed through is not answered in time");
            self.tasks.recover(cx, Recovery::ResetHost, 0);
        }
    }

    /// Begins the next one, if it is known who is there.
    pub(super) fn choose_relay(&mut self) -> bool {
        while let Some(address) = self.relays.front().map(|relay| relay.address) {
            let seen = self.bus.seen(address);
            if seen == Seen::Doubtful || self.to_probe.contains(&address) {
                return false;
            }
            let Some(mut relay) = self.relays.pop_front() else { return false };
            if seen == Seen::Disk {
                self.relayed = true;
                self.busy = Some(Busy::new(address, Work::Relay(Box::new(relay))));
                return true;
            }
            let reason = format!("{}: LUN {} is in trouble; nothing was sent", self.bus.name(), address.lun);
            relay.refuse(Code::PathNoAccess, reason);
        }
        false
    }

    pub(super) fn step_relay(&mut self, cx: &mut Cx<'_>) {
        let Some(Busy { work: Work::Relay(relay), .. }) = &mut self.busy else { return };
        if self.relay_memory.is_none() {
            self.relay_memory = RelayMemory::new(cx.segs);
        }
        let Some(data) = self.relay_memory.as_ref().and_then(|memory| memory.data(cx.segs, &relay.data)) else {
            relay.refuse(Code::PathBusy, "there is no memory for its data; nothing was sent".to_owned());
            self.busy = None;
            return;
        };
        relay.nexus = Some(self.tasks.nexus());
        let (cdb, changes) = (relay.cdb, relay.changes);
        self.send(cx, cdb, data, changes);
    }

    /// The command ended GOOD, with all its data moved.
    pub(super) fn relay_good(&mut self) {
        let Some(Busy { work: Work::Relay(relay), .. }) = &mut self.busy else { return };
        let data = self.relay_memory.as_ref().map(|memory| memory.octets(relay.asked())).unwrap_or_default();
        relay.answer(ScsiStatus::GOOD, Vec::new(), data);
        self.end_relay();
    }

    /// It ended otherwise.
    pub(super) fn relay_ended(&mut self, end: &TaskEnd) {
        let Some(Busy { work: Work::Relay(relay), address, .. }) = &mut self.busy else { return };
        let address = *address;
        let answer = match &end.outcome {
            Outcome::Answered(answer) => answer,
            Outcome::Lost(code) => {
                let why = Status::new(*code);
                match (end.proof, relay.changes) {
                    (Proof::NeverSent, _) => relay.refuse(*code, format!("it was not carried out: {why}")),
                    (_, false) => relay.refuse(*code, format!("it was lost: {why}")),
                    (proof, true) => {
                        let reason = format!("whether it was carried out is not known: {why}; it is quiet: {proof}");
                        relay.refuse(Code::OutcomeUnknown, reason);
                    }
                }
                return self.end_relay();
            }
            Outcome::BadMemory => {
                relay.refuse(Code::BadMemory, "its memory could not be reached".to_owned());
                return self.end_relay();
            }
        };
        let was_not_carried_out = match meaning(answer.status, answer.sense.as_ref()) {
            Meaning::UnitAttention(attention) => {
                self.relay_heard(address, attention);
                true
            }
            Meaning::Deferred(_) => true,
            _ => false,
        };
        if was_not_carried_out && self.relay_again() {
            return;
        }
        let Some(Busy { work: Work::Relay(relay), .. }) = &mut self.busy else { return };
        let moved = answer.moved.min(relay.asked());
        let data = self.relay_memory.as_ref().map(|memory| memory.octets(moved)).unwrap_or_default();
        let sense = answer.sense.map(|sense| sense.to_descriptors()).unwrap_or_default();
        relay.answer(answer.status, sense, data);
        self.end_relay();
    }

    /// Something else came first: the command was not carried out, and is sent again.
    fn relay_again(&mut self) -> bool {
        if self.closed {
            return false;
        }
        let Some(Busy { work: Work::Relay(relay), .. }) = &mut self.busy else { return false };
        relay.tries += 1;
        relay.tries < MOST_TRIES && relay.reply.is_some() && relay.until != Time::NEVER
    }

    fn relay_heard(&mut self, address: Address, attention: Attention) {
        tracing::debug!(path = %self.bus.name(), lun = %address.lun, ?attention, "unit attention");
        if super::is_alarm(attention) {
            self.bus.alarm(address);
        } else {
            self.to_probe.push_back(address);
        }
    }

    /// What it may have changed is looked at again.
    fn end_relay(&mut self) {
        let Some(Busy { work: Work::Relay(relay), address, .. }) = self.busy.take() else { return };
        if relay.changes {
            self.to_probe.push_back(address);
        }
        // It takes away the unit attention that says so (SPC-4 section 6.33.1).
        if relay.cdb.opcode() == opcode::REPORT_LUNS {
            self.bus.doubt_listing();
        }
    }
}
