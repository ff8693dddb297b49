//! Task management, logout, and what is done for other sessions: everything that ends tasks (RFC 7143 sections 4.2.3 and 11.5).
//!
//! A function is answered only when its tasks are quiet: those of this session end here, every thread is asked for those of others, and
//! what the fault machinery holds back lands before the answer, unless it is meant to be later than anything that is promised.

use super::conn::Conn;
use super::order::State;
use super::{Env, attention};
use crate::conn::Ending;
use crate::faults::{self, Kind, Operation};
use crate::mail::{Address, Announcement, Msg, Quiesce};
use crate::media::Party;
use crate::shared::HostLog;
use polypath_block::SlotKey;
use polypath_iscsi::pdu::{
    AsyncEvent, Itt, LogoutReason, LogoutRequest, LogoutResponse, LogoutResult, Pdu, ScsiCommand, TaskFunction,
    TaskRequest, TaskResult,
};
use std::sync::Arc;

/// Functions that one connection may wait for at a time.
const QUESTS: usize = 64;

/// Something that waits until all threads are quiet.
pub(super) struct Quest {
    itt: Itt,
    /// Threads that have not answered.
    left: usize,
    /// What lands before the answer: the tasks of this unit, or of all; those of this session only, or of these parties, or of all.
    unit: Option<u32>,
    whose: Whose,
    then: Then,
}

enum Whose {
    Everybody,
    Mine,
    Theirs(Vec<Party>),
    /// Only what this session has given up already.
    Nobody,
}

/// What is answered in the end.
enum Then {
    Function(TaskResult),
    Logout(LogoutRequest),
    /// The command that had others' tasks aborted.
    Command(Box<ScsiCommand>),
}

impl Conn {
    pub(super) fn task_request(&mut self, env: &Env<'_>, request: &TaskRequest) {
        if let Some(others) = HostLog::may(&env.iscsi.shared.log.tasks, env.now_us) {
            tracing::info!(conn = self.info.id, function = %request.function, itt = ?request.itt, others, "task management");
        }
        match self.fault_of(env, Operation::Abort) {
            Some(Kind::Lose { .. }) => return,
            Some(Kind::Refuse) => return self.task_response(env, request.itt, TaskResult::Rejected),
            _ => {}
        }
        let unit = polypath_scsi::Lun(request.lun.0).number();
        let known = unit.filter(|unit| self.disks.iter().any(|d| d.lun == *unit));
        match request.function {
            TaskFunction::AbortTask => {
                let result = self.abort_task(env, request);
                let quiet = matches!(result, TaskResult::Complete | TaskResult::NoTask);
                if quiet && self.is_beneath(env, known) {
                    // Also of a task that is not there any more: it may have been given up before.
                    return self.quest(env, request.itt, known, false, Whose::Nobody, Then::Function(result));
                }
                self.task_response(env, request.itt, result);
            }
            TaskFunction::TargetWarmReset => self.reset(env, request, None),
            TaskFunction::TaskReassign => self.task_response(env, request.itt, TaskResult::ReassignNotSupported),
            TaskFunction::AbortTaskSet | TaskFunction::ClearTaskSet | TaskFunction::LogicalUnitReset
                if known.is_none() =>
            {
                self.task_response(env, request.itt, TaskResult::NoLun);
            }
            TaskFunction::AbortTaskSet => {
                self.abort_unit(known);
                if self.is_beneath(env, known) {
                    let then = Then::Function(TaskResult::Complete);
                    return self.quest(env, request.itt, known, false, Whose::Mine, then);
                }
                self.land(env, known, &Whose::Mine);
                self.ask_waiting(env);
                self.task_response(env, request.itt, TaskResult::Complete);
            }
            TaskFunction::ClearTaskSet => {
                self.abort_unit(known);
                let then = Then::Function(TaskResult::Complete);
                self.quest(env, request.itt, known, true, Whose::Everybody, then);
            }
            TaskFunction::LogicalUnitReset => self.reset(env, request, known),
            TaskFunction::ClearAca | TaskFunction::TargetColdReset | TaskFunction::Other(_) => {
                self.task_response(env, request.itt, TaskResult::NotSupported);
            }
        }
    }

    /// ABORT TASK. A held write that is still to land cannot be taken back, as a command that is being carried out cannot.
    fn abort_task(&mut self, env: &Env<'_>, request: &TaskRequest) -> TaskResult {
        let Some(itt) = request.referenced else { return TaskResult::NoTask };
        let Some(key) = self.task_of(itt) else {
            // One that is on its way, or was dropped, counts as received (section 11.6.1).
            let to_come = request.ref_cmd_sn == self.exp_cmd_sn && request.ref_cmd_sn.is_before(request.sn.cmd_sn);
            if to_come {
                self.exp_cmd_sn = self.exp_cmd_sn.next();
                return TaskResult::Complete;
            }
            return TaskResult::NoTask;
        };
        let held = matches!(self.tasks.get(key), Some(task) if matches!(task.state, State::Held));
        if held && self.is_waiting_to_land(env, itt) {
            return TaskResult::Rejected;
        }
        self.drop_task(key);
        self.ask_waiting(env);
        TaskResult::Complete
    }

    fn is_waiting_to_land(&self, env: &Env<'_>, itt: Itt) -> bool {
        let Some(session) = &self.session else { return false };
        env.iscsi.shared.held.holds(|w| Arc::ptr_eq(&w.gone, &session.gone) && w.tag == itt.get())
    }

    fn reset(&mut self, env: &Env<'_>, request: &TaskRequest, unit: Option<u32>) {
        self.abort_unit(unit);
        if let Some(session) = &self.session {
            env.iscsi.attend(session.store, unit, None, attention::DEVICE_RESET);
        }
        self.quest(env, request.itt, unit, false, Whose::Everybody, Then::Function(TaskResult::Complete));
    }

    /// Has the tasks of `parties` at a unit ended, whose registrations were preempted, before `cmd` is answered.
    pub(super) fn abort_theirs(&mut self, env: &Env<'_>, cmd: &ScsiCommand, unit: u32, parties: Vec<Party>) {
        self.quest(env, cmd.itt, Some(unit), true, Whose::Theirs(parties), Then::Command(Box::new(*cmd)));
    }

    /// Asks every thread to end the tasks of other sessions, and answers when all have.
    fn quest(&mut self, env: &Env<'_>, itt: Itt, unit: Option<u32>, tell: bool, whose: Whose, then: Then) {
        let Some(session) = self.session.clone() else { return };
        // Threads answer to a tag: a second one of the same would have the answers of the first.
        if self.quests.len() >= QUESTS || self.quests.iter().any(|quest| quest.itt == itt) {
            return match then {
                Then::Function(_) => self.task_response(env, itt, TaskResult::Rejected),
                // One that asks for so much at a time, or with a tag that it waits for, is given up.
                Then::Command(_) | Then::Logout(_) => self.ending = Some(Ending::Now),
            };
        }
        let parties = match &whose {
            Whose::Theirs(parties) => Some(parties.clone()),
            Whose::Mine | Whose::Nobody => Some(Vec::new()),
            Whose::Everybody => None,
        };
        let what = Arc::new(Quiesce {
            store: session.store,
            unit,
            session: None,
            parties,
            except: Some(session.tsih),
            end: false,
            tell,
        });
        let reply = Address { thread: self.info.thread, conn: self.info.id, tag: itt.get() };
        let threads = env.iscsi.shared.threads.get().map_or(&[][..], Vec::as_slice);
        threads.iter().for_each(|thread| thread.send(Msg::Quiesce { what: what.clone(), reply }));
        self.quests.push(Quest { itt, left: threads.len(), unit, whose, then });
        if threads.is_empty() {
            self.end_quest(env, self.quests.len() - 1);
        }
    }

    /// One more thread is quiet.
    pub(super) fn quest_quiet(&mut self, env: &Env<'_>, tag: u32) {
        let Some(at) = self.quests.iter().position(|q| q.itt.get() == tag) else { return };
        let Some(quest) = self.quests.get_mut(at) else { return };
        quest.left = quest.left.saturating_sub(1);
        if quest.left == 0 && self.ending.is_none() {
            self.end_quest(env, at);
        }
    }

    fn end_quest(&mut self, env: &Env<'_>, at: usize) {
        let quest = self.quests.remove(at);
        self.land(env, quest.unit, &quest.whose);
        self.ask_waiting(env);
        match quest.then {
            Then::Function(result) => self.task_response(env, quest.itt, result),
            Then::Logout(request) => self.log_out(env, &request),
            Then::Command(cmd) => {
                if let Some(key) = self.task_of(cmd.itt) {
                    self.drop_task(key);
                    self.respond(env, &cmd, super::scsi::Verdict::GOOD, cmd.expected_len.into());
                }
            }
        }
    }

    /// Lets held writes land that the tasks of a unit, or of all, have left.
    fn land(&self, env: &Env<'_>, unit: Option<u32>, whose: &Whose) {
        let Some(session) = &self.session else { return };
        env.iscsi.shared.land_held(|w| {
            let Some((store, party)) = &w.owner else { return false };
            let mine = match whose {
                // Hosts of the other protocol are not reset.
                Whose::Everybody => !party.is_everywhere(),
                Whose::Mine => *party == session.party,
                Whose::Theirs(parties) => parties.iter().any(|p| *p == **party),
                Whose::Nobody => false,
            };
            !w.beyond && *store == session.store && unit.is_none_or(|unit| unit == w.unit) && mine
        });
    }

    /// Ends all tasks at a unit, or all. Returns how many there were.
    fn abort_unit(&mut self, unit: Option<u32>) -> usize {
        let at = |cmd: &ScsiCommand| polypath_scsi::Lun(cmd.lun.0).number();
        let keys: Vec<SlotKey> =
            self.tasks.iter().filter(|(_, task)| unit.is_none() || at(&task.cmd) == unit).map(|(key, _)| key).collect();
        keys.iter().for_each(|key| self.drop_task(*key));
        keys.len()
    }

    /// Has nothing any more of what is to be quiet.
    pub(crate) fn quiesce(&mut self, env: &Env<'_>, what: &Quiesce) {
        let Some(session) = self.session.clone() else { return };
        if what.end {
            if what.session == Some(session.tsih) || session.gone.load(std::sync::atomic::Ordering::Acquire) {
                self.abort_unit(None);
                self.ending = Some(Ending::Now);
            }
            return;
        }
        let meant = session.store == what.store
            && what.except != Some(session.tsih)
            && what.session.is_none_or(|tsih| tsih == session.tsih)
            && what.parties.as_ref().is_none_or(|parties| parties.contains(&session.party));
        if meant {
            let ended = self.abort_unit(what.unit);
            self.ask_waiting(env);
            if let (Some(unit), true) = (what.unit, what.tell && ended > 0) {
                session.attend(unit, attention::COMMANDS_CLEARED);
            }
        }
    }

    pub(super) fn logout_request(&mut self, env: &Env<'_>, request: &LogoutRequest) {
        if self.is_lost(env, Operation::Session) {
            return;
        }
        let result = match request.reason {
            LogoutReason::CloseSession => LogoutResult::Closed,
            LogoutReason::CloseConnection if request.cid == self.agreed.cid => LogoutResult::Closed,
            LogoutReason::CloseConnection => LogoutResult::NoConnection,
            LogoutReason::RemoveForRecovery | LogoutReason::Other(_) => LogoutResult::RecoveryNotSupported,
        };
        if result == LogoutResult::Closed {
            self.abort_unit(None);
            if self.is_beneath(env, None) {
                return self.quest(env, request.itt, None, false, Whose::Mine, Then::Logout(*request));
            }
            return self.log_out(env, request);
        }
        self.logout_response(env, request, result);
    }

    /// The session ends: nothing of it is under way any more.
    fn log_out(&mut self, env: &Env<'_>, request: &LogoutRequest) {
        self.land(env, None, &Whose::Mine);
        self.ending = Some(Ending::AfterFlush);
        self.logout_response(env, request, LogoutResult::Closed);
    }

    fn logout_response(&mut self, env: &Env<'_>, request: &LogoutRequest, result: LogoutResult) {
        let sn = self.next_sn();
        let pdu = LogoutResponse { result, itt: request.itt, sn, time2wait_s: 0, time2retain_s: 0 };
        self.whole(env, &[], Pdu::LogoutResponse(pdu));
    }

    /// Is this unit a disk beneath, or one of them where none is named?
    fn is_beneath(&self, env: &Env<'_>, unit: Option<u32>) -> bool {
        let store = self.session.as_ref().and_then(|s| env.iscsi.shared.stores.get(s.store));
        store.is_some_and(|store| store.has_beneath(unit))
    }

    /// Says something of its own accord. `false` before there is a session.
    pub(crate) fn announce(&mut self, env: &Env<'_>, what: Announcement) -> bool {
        if self.session.is_none() || self.ending.is_some() || !matches!(self.phase, super::conn::Phase::Full) {
            return false;
        }
        match what {
            Announcement::Logout { within_s } => self.send_event(env, AsyncEvent::LogoutRequested { within_s }),
            Announcement::Drop => {
                let cid = self.agreed.cid;
                self.send_event(env, AsyncEvent::ConnectionDropped { cid, time2wait_s: 0, time2retain_s: 0 });
                self.ending = Some(Ending::AfterFlush);
            }
            Announcement::Ping => self.send_ping(env),
        }
        true
    }

    /// Whether a fault loses what the initiator sends.
    pub(super) fn is_lost(&self, env: &Env<'_>, operation: Operation) -> bool {
        matches!(self.fault_of(env, operation), Some(Kind::Lose { .. }))
    }

    fn fault_of(&self, env: &Env<'_>, operation: Operation) -> Option<Kind> {
        if env.rules.is_empty() {
            return None;
        }
        faults::on_command(env.rules, &self.who(), operation, env.now_us)
    }
}
