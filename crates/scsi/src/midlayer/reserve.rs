//! Persistent reservations (SPC-4 5.9): what an operation becomes on one I_T nexus, and what is claimed of a logical unit.
//!
//! A registration belongs to a nexus, and each queue of a bus is one. The control side carries an operation out over its own nexus; a
//! registration is then *claimed* of the logical unit ([`Claim`]), and every queue registers its nexus before it sends anything there.

use super::bus::Address;
use super::task::{Answer, Outcome};
use crate::opcode::{pr_in, pr_out};
use crate::reservation::{Keys, PrOutData, Reservation, scope_type};
use crate::{Again, Attention, Cdb, Meaning, ParseError, meaning};
use polypath_block::{
    Code, Proof, Registrant, ReservationError, ReservationOp, ReservationReply, ReservationReport, ReservationResult,
    ReservationType, Status,
};
use std::collections::VecDeque;
use std::time::Duration;

/// Octets asked for at a time: 500 registrations.
const ALLOCATION: u16 = 4096;
/// How often a step is tried again at once: a logical unit has several attentions to report, not many.
const MOST_TRIES: u32 = 32;
/// Pause before a command is sent again that was refused for now.
const PAUSE: Duration = Duration::from_millis(20);
/// How long it may be refused for now.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every nexus to a logical unit is to be registered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Claim {
    /// The key; `None`: with none.
    pub(super) key: Option<u64>,
    /// Whoever is registered with this is to end that.
    pub(super) leaving: Option<u64>,
    /// Grows with every change.
    pub(super) epoch: u64,
}

impl Claim {
    /// What a nexus does about it.
    pub(super) fn exchange(&self) -> Option<Exchange> {
        let joins = self.key.map(|key| ReservationOp::Join { key, host: None });
        let leaves = self.leaving.map(|key| ReservationOp::Unregister { key });
        joins.or(leaves).map(Exchange::new)
    }
}

/// Somebody wants an operation of the logical unit at `address`.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) address: Address,
    pub(super) op: ReservationOp,
    pub(super) limit: Duration,
    pub(super) reply: ReservationReply,
}

/// Is it an operation that nexuses of ours could carry out?
///
/// # Errors
/// Why not.
pub(super) fn check(op: &ReservationOp) -> Result<(), ReservationError> {
    op.check_key()?;
    match op.kind().filter(|kind| !kind.is_for_registrants()) {
        None => Ok(()),
        Some(kind) => Err(ReservationError::new(
            Code::Unsupported,
            format!(
                "{kind}: a SCSI target grants that to one session alone, and there are several; expected {} or another type for registrants",
                ReservationType::WriteExclusiveRegistrantsOnly
            ),
        )),
    }
}

/// Data of a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Payload {
    /// So many octets are asked for.
    In(u32),
    /// These go with it.
    Out(Vec<u8>),
}

/// What an exchange wants next.
#[derive(Debug)]
pub(super) enum ExchangeStep {
    /// This command; then one of [`Exchange::good`], [`Exchange::ended`].
    Send { cdb: Cdb, payload: Payload },
    /// Nothing for so long.
    Wait(Duration),
    /// It is over.
    Done(ReservationResult),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Act {
    ReadKeys,
    ReadReservation,
    Out { action: u8, kind: Option<ReservationType>, key: u64, action_key: u64 },
}

/// One operation on one nexus. A state machine without a queue and without a clock.
#[derive(Debug)]
pub(super) struct Exchange {
    plan: VecDeque<Act>,
    /// Somebody must be registered with this, or ours was ended.
    joins: Option<u64>,
    /// Somebody is, as the keys have told, which holds until something else is heard.
    checked: bool,
    /// How often that was so and the keys were read again.
    rereads: u8,
    reports: bool,
    found: ReservationReport,
    holder: Option<u64>,
    tries: u32,
    waited: Duration,
    pausing: bool,
    end: Option<ReservationError>,
}

impl Exchange {
    /// `op`, on a nexus that is registered if that must be.
    pub(super) fn new(op: ReservationOp) -> Self {
        use ReservationOp as Op;
        let out = |action, kind, key, action_key| Act::Out { action, kind, key, action_key };
        let registers = |key| out(pr_out::REGISTER_AND_IGNORE_EXISTING_KEY, None, 0, key);
        let mut plan = VecDeque::new();
        let mut joins = None;
        match op {
            Op::Register { key } => plan.push_back(registers(key)),
            // A target does not tell whose a registration is.
            Op::Join { key, host: _ } => {
                joins = Some(key);
                plan.extend([Act::ReadKeys, registers(key)]);
            }
            Op::Unregister { key } => plan.push_back(out(pr_out::REGISTER, None, key, 0)),
            Op::Reserve { key, kind } => plan.push_back(out(pr_out::RESERVE, Some(kind), key, 0)),
            Op::Release { key, kind } => plan.push_back(out(pr_out::RELEASE, Some(kind), key, 0)),
            Op::Preempt { key, victim, kind, abort } => {
                let action = if abort { pr_out::PREEMPT_AND_ABORT } else { pr_out::PREEMPT };
                plan.push_back(out(action, Some(kind), key, victim));
            }
            Op::Clear { key } => plan.push_back(out(pr_out::CLEAR, None, key, 0)),
            Op::Report => plan.extend([Act::ReadKeys, Act::ReadReservation]),
        }
        Exchange {
            plan,
            joins,
            checked: false,
            rereads: 0,
            reports: op.is_read(),
            found: ReservationReport::default(),
            holder: None,
            tries: 0,
            waited: Duration::ZERO,
            pausing: false,
            end: None,
        }
    }

    /// What it wants next.
    pub(super) fn step(&mut self) -> ExchangeStep {
        if let Some(error) = self.end.take() {
            return ExchangeStep::Done(Err(error));
        }
        if std::mem::take(&mut self.pausing) {
            self.waited += PAUSE;
            return ExchangeStep::Wait(PAUSE);
        }
        let Some(act) = self.plan.front() else { return ExchangeStep::Done(Ok(self.reports.then(|| self.report()))) };
        let (cdb, payload) = match *act {
            Act::ReadKeys => (Cdb::persistent_reserve_in(pr_in::READ_KEYS, ALLOCATION), Payload::In(ALLOCATION.into())),
            Act::ReadReservation => {
                (Cdb::persistent_reserve_in(pr_in::READ_RESERVATION, ALLOCATION), Payload::In(ALLOCATION.into()))
            }
            Act::Out { action, kind, key, action_key } => {
                let data = PrOutData { key, action_key, ..PrOutData::default() };
                let cdb = Cdb::persistent_reserve_out(action, kind.map_or(0, scope_type), PrOutData::LEN as u32);
                (cdb, Payload::Out(data.to_bytes()))
            }
        };
        ExchangeStep::Send { cdb, payload }
    }

    /// Does the command that is under way change what other hosts may do?
    pub(super) fn changes(&self) -> bool {
        matches!(self.plan.front(), Some(Act::Out { .. }))
    }

    /// The command ended GOOD; `data` are what it moved.
    pub(super) fn good(&mut self, data: &[u8]) {
        let Some(act) = self.plan.pop_front() else { return };
        (self.tries, self.waited) = (0, Duration::ZERO);
        if let Err(error) = self.take(act, data) {
            self.fail(Code::PathProtocol, format!("what the target says of reservations: {error}"));
        }
    }

    fn take(&mut self, act: Act, data: &[u8]) -> Result<(), ParseError> {
        match act {
            Act::ReadKeys => {
                let Keys { generation, keys } = Keys::parse(data)?;
                self.found.generation = generation;
                self.found.registrants =
                    keys.into_iter().map(|key| Registrant { key, host: None, holder: false }).collect();
                self.checked = true;
                if let Some(key) = self.joins
                    && !self.found.has(key)
                {
                    let reason = format!("nobody is registered with key {key:#x} any more: somebody has ended that");
                    self.fail(Code::ReservationConflict, reason);
                }
            }
            Act::ReadReservation => {
                let Reservation { held, .. } = Reservation::parse(data)?;
                self.found.held = held.map(|(_, kind)| kind);
                self.holder = held.map(|(key, _)| key);
            }
            Act::Out { .. } => {}
        }
        Ok(())
    }

    /// Who holds it is told by the key alone.
    fn report(&self) -> ReservationReport {
        let mut report = self.found.clone();
        for registrant in &mut report.registrants {
            registrant.holder = self.holder == Some(registrant.key);
        }
        report
    }

    /// The command ended otherwise; `data` are what it moved all the same. Answers with an attention that it brought.
    pub(super) fn ended(&mut self, outcome: &Outcome, proof: Proof, data: &[u8]) -> Option<Attention> {
        match outcome {
            Outcome::Answered(answer) => return self.answered(answer, data),
            Outcome::Lost(code) if self.changes() && proof != Proof::NeverSent => {
                let why = Status::new(*code);
                let reason = format!("whether it was carried out is not known: {why}; it is quiet: {proof}");
                self.end = Some(ReservationError::new(Code::OutcomeUnknown, reason).quiet_by(proof));
            }
            Outcome::Lost(code) => self.fail(*code, format!("it was not carried out: {}", Status::new(*code))),
            Outcome::BadMemory => self.fail(Code::BadMemory, "its memory could not be reached".into()),
        }
        None
    }

    fn answered(&mut self, answer: &Answer, data: &[u8]) -> Option<Attention> {
        let meant = meaning(answer.status, answer.sense.as_ref());
        match meant {
            Meaning::Done => self.good(data),
            Meaning::UnitAttention(attention) => {
                self.again(meant.give_up(answer.sense.as_ref()), false);
                self.look_anew();
                return Some(attention);
            }
            Meaning::Deferred(status) => self.again(status, false),
            Meaning::Again(Again::Busy | Again::TaskSetFull | Again::BecomingReady | Again::Transition) => {
                self.again(meant.give_up(answer.sense.as_ref()), true);
            }
            Meaning::Again(_) if !self.changes() => self.again(meant.give_up(answer.sense.as_ref()), false),
            // Given up in the middle. It is not sent twice: a second one might undo what others have done since.
            Meaning::Again(_) => {
                let reason = "the target gave it up, and how far it had come is not known";
                self.end = Some(ReservationError::new(Code::OutcomeUnknown, reason).quiet_by(Proof::Answered));
            }
            Meaning::Failed(status) => {
                let reason = match status.code {
                    Code::ReservationConflict => {
                        "conflict: another host holds it, or this one is not registered with that key".into()
                    }
                    Code::Unsupported => "the target does no persistent reservations".into(),
                    _ => format!("the target refused it: {status}"),
                };
                self.fail(status.code, reason);
            }
        }
        None
    }

    /// Something has happened since the keys were read: ours may have been ended by it. To register then would be to steal it back.
    fn look_anew(&mut self) {
        if self.joins.is_none() || !self.checked || self.end.is_some() {
            return;
        }
        self.rereads += 1;
        if u32::from(self.rereads) > MOST_TRIES {
            return self.fail(Code::PathBusy, "registrations change all the time".into());
        }
        self.checked = false;
        self.plan.push_front(Act::ReadKeys);
    }

    fn again(&mut self, status: Status, later: bool) {
        self.tries += 1;
        if (later && self.waited >= PATIENCE) || (!later && self.tries > MOST_TRIES) {
            self.fail(status.code, format!("the target did not take it for {} ms: {status}", self.waited.as_millis()));
        }
        self.pausing = later;
    }

    fn fail(&mut self, code: Code, reason: String) {
        self.end = Some(ReservationError::new(code, reason));
    }
}

/// Does it tell that another host may have ended what is ours?
pub(super) fn is_alarm(attention: Attention) -> bool {
    matches!(attention, Attention::RegistrationsPreempted | Attention::ReservationsPreempted)
}
