//! Commands in their order, and the data that come with them and after them (RFC 7143 sections 4.2.2 and 4.2.5).

use super::Env;
use super::beneath::Below;
use super::conn::{Conn, Fatal};
use super::scsi::{Verdict, sense};
use crate::conn::Ending;
use crate::media::beneath::Order;
use crate::shared::HostLog;
use polypath_block::SlotKey;
use polypath_iscsi::pdu::{BHS_LEN, DataOut, Header, Itt, Opcode, RejectReason, Role, ScsiCommand, Ttt};
use polypath_iscsi::serial::CmdSn;
use polypath_scsi::ScsiStatus;
use polypath_scsi::command::{Command, Data};

/// Staged data of one connection at most; commands beyond it wait for their R2T. No more PDUs are taken while disks beneath read so much for it.
pub(super) const STAGE_LIMIT: usize = 32 << 20;
/// What other commands than those that move blocks take at most, in octets, and then some.
const LONGEST_LIST: u32 = 1 << 20;
/// Octets of PDUs that came before their turn.
const EARLY_LIMIT: usize = 4 << 20;
/// Where the generation and the number of the R2T begin in a target transfer tag; below is the slot.
const GENERATION: u32 = 10;
const NUMBER: u32 = 24;

/// PDUs that came before their turn.
#[derive(Default)]
pub(super) struct Early {
    list: Vec<(CmdSn, Vec<u8>)>,
    bytes: usize,
}

/// A command that is not answered yet.
pub(super) struct Task {
    pub(super) cmd: ScsiCommand,
    pub(super) state: State,
    /// R2T that were sent for it before it came here.
    requests: u32,
}

pub(super) enum State {
    /// Its data are on their way.
    Transfer(Transfer),
    /// Put off by a fault; its data are with it.
    Delayed { data: Vec<u8>, until_us: u64 },
    /// Never answered.
    Lost,
    /// To be applied late: the number of the held write.
    Held,
    /// A disk beneath carries it out.
    Below(Below),
}

/// Data on their way.
pub(super) struct Transfer {
    /// Octets that the command needs of those that are expected.
    want: usize,
    /// Octets that came, those that nobody needs among them.
    got: usize,
    stage: Vec<u8>,
    /// Unsolicited data are still to come.
    unsolicited: bool,
    data_sn: u32,
    /// Where what is asked for begins, R2T by R2T and all of one length but the last.
    base: usize,
    /// R2T that were sent.
    number: u32,
    /// R2T that were answered.
    answered: u32,
    /// Counted as staged.
    staged: bool,
    /// What it ends with whatever comes.
    verdict: Option<Verdict>,
}

impl Transfer {
    /// Where the answer to an R2T begins and ends, each asking for `most` octets.
    fn stretch(&self, number: u32, most: usize) -> (usize, usize) {
        let at = |number: u32| (self.base + number as usize * most).min(self.want);
        (at(number), at(number + 1))
    }
}

impl Conn {
    /// Most octets that one R2T asks for.
    fn most(&self, env: &Env<'_>) -> usize {
        match env.iscsi.shared.config.r2t_bytes as usize {
            0 => self.agreed.max_burst,
            n => n.min(self.agreed.max_burst),
        }
    }

    /// Whether a PDU has its turn now. One that is early is kept, one that is outside of the window is ignored.
    pub(super) fn in_order(&mut self, cmd_sn: CmdSn, immediate: bool, pdu: &[u8]) -> bool {
        if immediate {
            return true;
        }
        if cmd_sn == self.exp_cmd_sn {
            self.exp_cmd_sn = self.exp_cmd_sn.next();
            return true;
        }
        let room = self.window.saturating_sub(self.counted);
        let inside = cmd_sn.is_within(self.exp_cmd_sn, self.exp_cmd_sn.plus(room).previous());
        let known = self.early.list.iter().any(|(sn, _)| *sn == cmd_sn);
        if inside && !known && self.early.bytes + pdu.len() <= EARLY_LIMIT {
            self.early.bytes += pdu.len();
            self.early.list.push((cmd_sn, pdu.to_vec()));
        }
        false
    }

    /// Gives what came early and has its turn now to whom it concerns.
    #[inline]
    pub(super) fn take_early(&mut self, env: &Env<'_>) -> Result<(), Fatal> {
        while !self.early.list.is_empty() {
            let Some(at) = self.early.list.iter().position(|(sn, _)| *sn == self.exp_cmd_sn) else { return Ok(()) };
            let (_, pdu) = self.early.list.swap_remove(at);
            self.early.bytes -= pdu.len();
            let Some(bhs) = pdu.first_chunk::<BHS_LEN>() else { return Ok(()) };
            let header = Header::parse(bhs, Role::Initiator, &self.agreed.rx);
            let header = header.map_err(|_| Fatal("an early PDU that cannot be read"))?;
            let data = header.verified_data(&pdu[header.head_len()..]).unwrap_or(&[]);
            self.dispatch(env, &header, bhs, &pdu, data)?;
        }
        Ok(())
    }

    /// A SCSI command.
    #[inline]
    pub(super) fn command(
        &mut self,
        env: &Env<'_>,
        cmd: ScsiCommand,
        more_headers: bool,
        bhs: &[u8; BHS_LEN],
        data: &[u8],
    ) {
        if !self.tasks.is_empty() && self.task_of(cmd.itt).is_some() {
            return self.reject(env, RejectReason::TaskInProgress, bhs);
        }
        let unasked = !data.is_empty() && !self.agreed.immediate_data || !cmd.is_final && self.agreed.initial_r2t;
        let admitted = if more_headers || cmd.read && cmd.write {
            Err(Verdict::check(sense::INVALID_FIELD_IN_CDB))
        } else if unasked || data.len() > self.agreed.first_burst {
            Err(Verdict::check(sense::UNEXPECTED_DATA))
        } else {
            self.admit(env, &cmd)
        };
        let most = env.iscsi.shared.config.iscsi.max_transfer.max(LONGEST_LIST);
        let (admitted, wanted) = match admitted {
            // Nobody is asked for what will be refused, and no room made for it.
            Ok((_, Data::Out(wanted))) if wanted > most.into() => (Err(Verdict::check(sense::INVALID_FIELD_IN_CDB)), 0),
            // It takes data, and the initiator expects some.
            Ok((_, Data::Out(wanted))) if wanted > 0 && cmd.read => (Err(Verdict::check(sense::INFORMATION_UNIT)), 0),
            Ok((_, Data::Out(wanted))) => (admitted, wanted),
            _ => (admitted, 0),
        };
        let want = if cmd.write { wanted.min(cmd.expected_len.into()) as usize } else { 0 };
        if cmd.is_final && (data.len() >= want || admitted.is_err()) {
            return match admitted {
                Ok((command, _)) => self.ready(env, &cmd, command, data.get(..want).unwrap_or(data)),
                Err(verdict) => self.respond(env, &cmd, verdict, 0),
            };
        }
        let mut stage = self.pool.take(want);
        stage.extend_from_slice(data.get(..want).unwrap_or(data));
        let transfer = Transfer {
            want,
            got: data.len(),
            stage,
            unsolicited: !cmd.is_final,
            data_sn: 0,
            base: data.len(),
            number: 0,
            answered: 0,
            staged: false,
            verdict: admitted.err(),
        };
        let Some(key) = self.keep(env, &cmd, State::Transfer(transfer)) else { return };
        if cmd.is_final {
            self.ask_or_wait(env, key);
        }
    }

    /// Takes a slot for a command that is not answered at once; where there is none, it is answered with TASK SET FULL.
    pub(super) fn keep(&mut self, env: &Env<'_>, cmd: &ScsiCommand, state: State) -> Option<SlotKey> {
        match self.tasks.insert(Task { cmd: *cmd, state, requests: std::mem::take(&mut self.requests) }) {
            Ok(key) => {
                self.counted += u32::from(!cmd.immediate);
                Some(key)
            }
            Err(_) => {
                self.respond(env, cmd, Verdict { status: ScsiStatus::TASK_SET_FULL.0, sense: None }, 0);
                None
            }
        }
    }

    /// The task of this tag.
    pub(super) fn task_of(&self, itt: Itt) -> Option<SlotKey> {
        self.tasks.iter().find(|(_, task)| task.cmd.itt == itt).map(|(key, _)| key)
    }

    /// A task is over; what it had goes back.
    pub(super) fn end_task(&mut self, key: SlotKey) -> Option<(ScsiCommand, State)> {
        let mut task = self.tasks.remove(key)?;
        self.counted -= u32::from(!task.cmd.immediate);
        self.requests = task.requests;
        match &mut task.state {
            State::Transfer(t) => {
                self.requests = t.number;
                if t.staged {
                    self.staged -= t.want;
                }
                self.waiting.retain(|k| *k != key);
            }
            State::Delayed { .. } => self.delayed -= 1,
            State::Below(below) => {
                self.staged -= below.bytes;
                self.reading -= below.reads;
            }
            State::Lost | State::Held => {}
        }
        Some((task.cmd, task.state))
    }

    /// The same with a task that nothing more is to become of.
    pub(super) fn drop_task(&mut self, key: SlotKey) {
        match self.end_task(key) {
            Some((_, State::Transfer(t))) => self.pool.give(t.stage),
            Some((_, State::Below(_))) => self.orders.push(Order::Cancel(key.as_u32())),
            _ => {}
        }
        self.requests = 0;
    }

    fn ask_or_wait(&mut self, env: &Env<'_>, key: SlotKey) {
        let Some(Task { state: State::Transfer(t), .. }) = self.tasks.get_mut(key) else { return };
        let fits = self.staged == 0 || self.waiting.is_empty() && self.staged + t.want <= STAGE_LIMIT;
        if !(t.staged || fits) {
            return self.waiting.push_back(key);
        }
        self.ask(env, key);
    }

    /// Sends as many R2T of a transfer as may be open.
    fn ask(&mut self, env: &Env<'_>, key: SlotKey) {
        let most = self.most(env);
        loop {
            let Some(Task { cmd, state: State::Transfer(t), .. }) = self.tasks.get_mut(key) else { return };
            if !t.staged {
                t.staged = true;
                self.staged += t.want;
            }
            let (number, open) = (t.number, (t.number - t.answered) as usize);
            let (from, to) = t.stretch(number, most);
            let (Some(ttt), true) = (tag(key, number), from < to && open < self.agreed.max_r2t) else { return };
            t.number += 1;
            let (lun, itt) = (cmd.lun, cmd.itt);
            self.send_r2t(env, (lun, itt, ttt), number, from as u32, (to - from) as u32);
        }
    }

    /// Data of a command that writes.
    #[inline]
    pub(super) fn data_out(&mut self, env: &Env<'_>, out: &DataOut, data: &[u8]) {
        // Data of a task that is over may still be on their way: they are of no interest.
        let Some(key) = self.task_of_data(out) else { return };
        let (first, most) = (self.agreed.first_burst, self.most(env));
        let Some(Task { cmd, state: State::Transfer(t), .. }) = self.tasks.get_mut(key) else { return };
        let end = t.got + data.len();
        let good = out.buffer_offset as usize == t.got
            && out.data_sn == t.data_sn
            && match out.ttt {
                None => t.unsolicited && end <= first.min(cmd.expected_len as usize),
                Some(ttt) => {
                    let (_, to) = t.stretch(t.answered, most);
                    let asked = t.answered < t.number && tag(key, t.answered) == Some(ttt);
                    asked && end <= to && out.is_final == (end == to)
                }
            };
        if !good {
            let verdict = t.verdict.unwrap_or(Verdict::check(sense::WRONG_AMOUNT_OF_DATA));
            if let Some(others) = HostLog::may(&env.iscsi.shared.log.refused, env.now_us) {
                tracing::warn!(conn = self.info.id, ?out, others, "data that do not fit");
            }
            return self.fail(env, key, verdict);
        }
        let whole = t.stage.is_empty() && data.len() >= t.want && t.verdict.is_none();
        if !whole {
            let room = t.want.saturating_sub(t.got).min(data.len());
            t.stage.extend_from_slice(data.get(..room).unwrap_or(&[]));
        }
        t.got = end;
        t.data_sn = if out.is_final { 0 } else { t.data_sn + 1 };
        if out.is_final && out.ttt.is_some() {
            t.answered += 1;
        }
        if out.is_final && out.ttt.is_none() {
            t.unsolicited = false;
            t.base = t.got;
        }
        if t.unsolicited {
            if whole {
                t.stage.extend_from_slice(data.get(..t.want).unwrap_or(&[]));
            }
            return;
        }
        if let Some(verdict) = t.verdict {
            return self.fail(env, key, verdict);
        }
        if t.got >= t.want {
            return self.arrived(env, key, whole.then_some(data));
        }
        if out.is_final {
            self.ask_or_wait(env, key);
        }
    }

    /// The transfer that data belong to.
    fn task_of_data(&self, out: &DataOut) -> Option<SlotKey> {
        let key = match out.ttt {
            None => self.task_of(out.itt)?,
            Some(ttt) => self.tasks.key_at((ttt.get() & ((1 << GENERATION) - 1)) as u16)?,
        };
        let task = self.tasks.get(key).filter(|task| task.cmd.itt == out.itt)?;
        matches!(task.state, State::Transfer(_)).then_some(key)
    }

    /// All data are there.
    fn arrived(&mut self, env: &Env<'_>, key: SlotKey, whole: Option<&[u8]>) {
        let Some((cmd, State::Transfer(t))) = self.end_task(key) else { return };
        let data = whole.unwrap_or(&t.stage);
        match self.parse(&cmd) {
            Ok(command) => self.ready(env, &cmd, command, data.get(..t.want).unwrap_or(data)),
            Err(verdict) => self.respond(env, &cmd, verdict, 0),
        }
        self.pool.give(t.stage);
        self.ask_waiting(env);
    }

    /// A transfer comes to nothing.
    fn fail(&mut self, env: &Env<'_>, key: SlotKey, verdict: Verdict) {
        if let Some((cmd, State::Transfer(t))) = self.end_task(key) {
            self.respond(env, &cmd, verdict, 0);
            self.pool.give(t.stage);
        }
        self.ask_waiting(env);
    }

    pub(super) fn ask_waiting(&mut self, env: &Env<'_>) {
        while let Some(&key) = self.waiting.front() {
            let want = match self.tasks.get(key) {
                Some(Task { state: State::Transfer(t), .. }) => t.want,
                _ => 0,
            };
            if want > 0 && self.staged > 0 && self.staged + want > STAGE_LIMIT {
                return;
            }
            self.waiting.pop_front();
            self.ask(env, key);
        }
    }

    /// A PDU whose data digest is wrong (section 7.8). A command with its data is not taken, and at error recovery level 0 that ends the
    /// session.
    pub(super) fn bad_data(&mut self, env: &Env<'_>, header: &Header, bhs: &[u8; BHS_LEN]) {
        self.reject(env, RejectReason::DataDigestError, bhs);
        match header.opcode {
            Opcode::DataOut => {
                let key = DataOut::parse(header, bhs).ok().and_then(|out| self.task_of_data(&out));
                if let Some(key) = key {
                    self.fail(env, key, Verdict::check(sense::CRC_ERROR));
                }
            }
            _ => self.ending = Some(Ending::AfterFlush),
        }
    }

    /// A command with all its data: faults have their say, then it is carried out.
    #[inline]
    fn ready(&mut self, env: &Env<'_>, cmd: &ScsiCommand, command: Command, data: &[u8]) {
        if !env.rules.is_empty() && self.meddle(env, cmd, &command, data) {
            return;
        }
        self.execute(env, cmd, command, data);
    }
}

/// A target transfer tag: slot, generation and number of the R2T.
fn tag(key: SlotKey, number: u32) -> Option<Ttt> {
    let generation = u32::from(key.generation()) & ((1 << (NUMBER - GENERATION)) - 1);
    Ttt::new(u32::from(key.index()) | generation << GENERATION | number << NUMBER)
}
