//! One connection as a session uses it: login, then the sans-IO protocol, over a byte stream, with the memory of its tasks.
//!
//! All PDUs of a turn leave in one call of [`Link::flush`]; [`Link::receive`] takes whatever is there into one large buffer and places read data
//! from it, or lets the kernel place them when much of one PDU is still to come. Data are copied at most once on the way in. On the way
//! out they are not copied, unless data digests are on: then the digest must be that of the octets that leave, whatever their owner
//! does to the memory meanwhile, so a private copy leaves.

use crate::config::Portal;
use crate::login::{InitiatorLogin, InitiatorStep, LoginError, Message, Negotiated};
use crate::pdu::{
    AsyncEvent, BHS_LEN, Framing, Header, LoginRequest, LoginResponse, Lun, Opcode, Role, TaskFunction, TaskResult,
    pad_len,
};
use crate::proto::{DataPlan, Ending, Event, InitiatorConnection, Outcome, Parameters, ProtocolError, Want};
use crate::serial::CmdSn;
use polypath_block::{Code, Fate, SegTable, Waits};
use polypath_net::plan::{Chunk, Copies, Holding, Unreachable};
use polypath_net::{Crc32c, Dialer, IoList, Received, Transport};
use polypath_scsi::Sense;
use polypath_scsi::midlayer::TaskData;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Octets received in one call.
pub(crate) const RX: usize = 256 << 10;
/// From so many missing octets of one PDU on the kernel places them itself.
const DIRECT: u32 = 16 << 10;
/// Receives of one turn.
const RX_ROUNDS: usize = 4;
/// Sends of one turn.
const TX_ROUNDS: usize = 4;

/// A connection is of no use any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) code: Code,
    pub(crate) reason: String,
    /// The target has said where it is to be found instead.
    pub(crate) moved_to: Option<Portal>,
    /// It is of no use to try again in a moment: a name or a secret is wrong.
    pub(crate) lasting: bool,
}

impl Broken {
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Self {
        Broken { code, reason: reason.into(), moved_to: None, lasting: false }
    }

    fn io(what: &str, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::TimedOut { Code::PathTimeout } else { Code::PathLost };
        Broken::new(code, format!("{what}: {error}"))
    }
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        Broken::new(Code::PathProtocol, error.to_string())
    }
}

impl From<LoginError> for Broken {
    fn from(error: LoginError) -> Self {
        let code = if let LoginError::Refused(_) | LoginError::Chap(_) = error {
            Code::PathNoAccess
        } else {
            Code::PathProtocol
        };
        let moved_to = match &error {
            LoginError::Moved { to, .. } => to.first().map(|to| Portal { host: to.host.clone(), port: to.port }),
            _ => None,
        };
        let code = if moved_to.is_some() { Code::PathNoAccess } else { code };
        Broken { code, reason: error.to_string(), moved_to, lasting: !error.may_pass() }
    }
}

impl From<Unreachable> for Broken {
    fn from(why: Unreachable) -> Self {
        Broken::new(Code::BadMemory, why.to_string())
    }
}

/// What a receive has brought.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Login is over.
    Up(Box<Negotiated>),
    /// A task has ended.
    Ended(Finished),
    /// A task management request was answered.
    Managed { token: u64, result: TaskResult },
    /// A ping was answered.
    Pong,
    /// The target wants to be left, or leaves.
    Async(AsyncEvent),
    /// Something happened to a logical unit.
    Attention,
    /// Logout was answered.
    LoggedOut,
}

/// A task that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    pub(crate) user: u64,
    pub(crate) ending: Ending,
    pub(crate) sense: Option<Sense>,
    pub(crate) bad_memory: bool,
}

/// What became of a task when its connection ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) user: u64,
    /// How it had been answered, if it had.
    pub(crate) finished: Option<Finished>,
    pub(crate) fate: Fate,
    /// Its logical unit.
    pub(crate) lun: Lun,
    /// The target has said that it has taken the command.
    pub(crate) taken: bool,
}

/// The way up: connecting, and the login phase, in which one PDU of ours follows one of the target's.
struct Login {
    machine: InitiatorLogin,
    begun: bool,
    out: Vec<u8>,
    out_sent: usize,
    inbox: Vec<u8>,
}

impl Login {
    /// Puts a PDU into what is to leave.
    fn say(&mut self, message: &Message<LoginRequest>) -> Result<(), Broken> {
        let mut head = [0; BHS_LEN];
        let encoded = message.pdu.encode(&Framing::LOGIN, &mut head);
        encoded.map_err(|e| Broken::new(Code::PathProtocol, e.to_string()))?;
        self.out.clear();
        self.out_sent = 0;
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(&message.text);
        self.out.extend(std::iter::repeat_n(0, pad_len(message.pdu.data_len)));
        Ok(())
    }

    /// Takes a whole PDU out of what has come, if there is one.
    fn hear(&mut self) -> Result<Option<InitiatorStep>, Broken> {
        let Some(basic) = self.inbox.first_chunk::<BHS_LEN>() else { return Ok(None) };
        let header = Header::parse(basic, Role::Target, &Framing::LOGIN).map_err(LoginError::from)?;
        if header.opcode != Opcode::LoginResponse {
            let reason = format!("the target sent {} in answer to a login request", header.opcode);
            return Err(Broken::new(Code::PathProtocol, reason));
        }
        let (head, all) = (header.head_len(), header.head_len() + header.tail_len());
        if self.inbox.len() < all {
            return Ok(None);
        }
        let response = LoginResponse::parse(&header, basic).map_err(LoginError::from)?;
        let data = header.verified_data(&self.inbox[head..]).map_err(LoginError::from)?;
        let step = self.machine.handle(&response, data)?;
        self.inbox.drain(..all);
        Ok(Some(step))
    }
}

enum Phase {
    Login(Box<Login>),
    Open(Box<InitiatorConnection>),
}

/// See the module.
pub(crate) struct Link {
    stream: Box<dyn Transport>,
    phase: Phase,
    depth: u16,
    holdings: Box<[Holding]>,
    rx: Box<[u8]>,
    rx_list: IoList,
    tx_list: IoList,
    crc: Crc32c,
    copies: Copies,
}

impl Link {
    /// Begins to connect. [`Link::receive`] does the rest up to the full feature phase.
    pub(crate) fn dial(
        dialer: &dyn Dialer,
        address: SocketAddr,
        machine: InitiatorLogin,
        depth: u16,
    ) -> Result<Link, Broken> {
        let stream =
            dialer.dial(address).map_err(|e| Broken::new(Code::PathLost, format!("connecting to {address}: {e}")))?;
        let login = Login { machine, begun: false, out: Vec::new(), out_sent: 0, inbox: Vec::new() };
        Ok(Link {
            stream,
            phase: Phase::Login(Box::new(login)),
            depth,
            holdings: vec![Holding::default(); usize::from(depth)].into(),
            rx: vec![0; RX].into(),
            rx_list: IoList::new(),
            tx_list: IoList::new(),
            crc: Crc32c::new(),
            copies: Copies::default(),
        })
    }

    fn connection(&self) -> Option<&InitiatorConnection> {
        match &self.phase {
            Phase::Open(connection) => Some(connection),
            Phase::Login(_) => None,
        }
    }

    fn connection_mut(&mut self) -> Option<&mut InitiatorConnection> {
        match &mut self.phase {
            Phase::Open(connection) => Some(connection),
            Phase::Login(_) => None,
        }
    }

    /// Tasks that have not ended.
    #[inline]
    pub(crate) fn in_flight(&self) -> usize {
        self.connection().map_or(0, InitiatorConnection::in_flight)
    }

    /// Is the target expected to say something?
    #[inline]
    pub(crate) fn is_waiting(&self) -> bool {
        self.connection().is_none_or(InitiatorConnection::is_waiting)
    }

    /// Would a task be taken?
    pub(crate) fn has_room(&self) -> bool {
        self.connection().is_some_and(|connection| connection.room() > 0)
    }

    /// As [`Transport::unacknowledged`].
    pub(crate) fn unacknowledged(&self) -> Option<Duration> {
        self.stream.unacknowledged()
    }

    /// Takes a task; nothing leaves before [`Link::flush`]. `None` when there is no room.
    #[inline]
    pub(crate) fn submit(&mut self, lun: Lun, cdb: [u8; 16], data: TaskData, user: u64) -> Option<u16> {
        let Phase::Open(connection) = &mut self.phase else { return None };
        let (plan, span, skip) = match data {
            TaskData::None => (DataPlan::None, polypath_block::SegSpan::EMPTY, 0),
            TaskData::In { span, skip, len } => (DataPlan::In(len), span, skip),
            TaskData::Out { span, skip, len } => (DataPlan::Out(len), span, skip),
        };
        let slot = connection.submit(lun, cdb, plan).ok()?;
        self.holdings[usize::from(slot)] = Holding { user, span, skip, bad: false };
        Some(slot)
    }

    /// The logical unit of the task in this slot.
    pub(crate) fn lun_of(&self, slot: u16) -> Lun {
        self.connection().map_or(Lun::ZERO, |c| c.lun_of(slot))
    }

    /// The slot of the task that belongs to `user`. Walks all of them: for rare ways.
    pub(crate) fn slot_of(&self, user: u64) -> Option<u16> {
        let connection = self.connection()?;
        let mut slots = self.holdings.iter().zip(0u16..);
        slots.find_map(|(h, slot)| (h.user == user && connection.is_active(slot)).then_some(slot))
    }

    /// The CmdSN of the next command.
    pub(crate) fn next_cmd_sn(&self) -> Option<CmdSn> {
        self.connection().map(InitiatorConnection::next_cmd_sn)
    }

    /// Tasks that were sent before `before`, to this logical unit or to all, with whose they are.
    pub(crate) fn tasks_before(&self, before: CmdSn, lun: Option<Lun>) -> Vec<(u16, u64)> {
        let slots = self.connection().map(|c| c.tasks_before(before, lun)).unwrap_or_default();
        slots.into_iter().map(|slot| (slot, self.holdings[usize::from(slot)].user)).collect()
    }

    /// Asks for a sign of life; `false`: that is under way already, or there is no room.
    pub(crate) fn ping(&mut self) -> bool {
        self.connection_mut().is_some_and(InitiatorConnection::ping)
    }

    /// Asks for task management.
    pub(crate) fn manage(&mut self, function: TaskFunction, lun: Lun, task: Option<u16>, token: u64) -> bool {
        self.connection_mut().is_some_and(|c| c.manage(function, lun, task, token))
    }

    /// As [`InitiatorConnection::end_aborted`].
    pub(crate) fn end_aborted(&mut self, slot: u16) -> bool {
        self.connection_mut().is_some_and(|c| c.end_aborted(slot))
    }

    /// Asks to be logged out.
    pub(crate) fn log_out(&mut self) {
        if let Some(connection) = self.connection_mut() {
            connection.log_out();
        }
    }

    /// Takes what has come and reports it; says whether anything came. Also completes connecting and login.
    #[inline]
    pub(crate) fn receive(&mut self, segs: &SegTable, mut heard: impl FnMut(Heard)) -> Result<bool, Broken> {
        if !matches!(self.phase, Phase::Open(_)) {
            return self.come_up(segs, &mut heard);
        }
        if self.has_news() {
            self.take(0, segs, &mut heard)?;
        }
        let mut moved = false;
        for _ in 0..RX_ROUNDS {
            let (room, got) = self.fetch(segs, &mut heard)?;
            if got == 0 {
                break;
            }
            moved = true;
            // A socket that gave less than there was room for is empty now: asking again would be a system call in vain.
            if got < room {
                break;
            }
        }
        Ok(moved)
    }

    /// One receive, all of which is reported; returns the room there was and the octets that came.
    #[inline]
    fn fetch(&mut self, segs: &SegTable, heard: &mut impl FnMut(Heard)) -> Result<(usize, usize), Broken> {
        let Link { stream, phase: Phase::Open(connection), holdings, rx, rx_list, .. } = self else {
            return Ok((0, 0));
        };
        let checked = connection.parameters().rx.data_digest;
        let got = polypath_memory::with(|table| {
            let mut into = rx_list.scatter();
            let mut direct = 0;
            if let Want::Data { slot, offset, len } = connection.wants()
                && len >= DIRECT
                && !checked
                && !holdings[usize::from(slot)].bad
            {
                direct = holdings[usize::from(slot)].scatter(segs, table, (offset, len), &mut into);
            }
            into.bytes(rx);
            let room = into.len();
            let n = match stream.receive(&mut into).map_err(|e| Broken::io("receiving", &e))? {
                Received::Bytes(n) => n,
                Received::Nothing => return Ok((room, 0, 0)),
                Received::End => return Err(Broken::new(Code::PathLost, "the target has closed the connection")),
            };
            let placed = n.min(direct as usize);
            if placed > 0 {
                connection.data_moved(placed as u32);
            }
            Ok((room, n, placed))
        });
        let (room, n, placed) = got?;
        if n > 0 {
            self.take(n - placed, segs, heard)?;
        }
        Ok((room, n))
    }

    /// Hands the first `len` octets of the buffer to the protocol and to memory, and reports what came of them.
    fn take(&mut self, len: usize, segs: &SegTable, heard: &mut impl FnMut(Heard)) -> Result<(), Broken> {
        let Link { phase: Phase::Open(connection), holdings, rx, crc, .. } = self else { return Ok(()) };
        let checked = connection.parameters().rx.data_digest;
        let mut input = rx.get(..len).unwrap_or(&[]);
        polypath_memory::with(|table| {
            loop {
                while let Some(event) = connection.poll_event() {
                    tell(event, connection, holdings, heard);
                }
                if input.is_empty() {
                    return Ok(());
                }
                let used = match connection.wants() {
                    Want::Bytes(_) => connection.handle_bytes(input)?,
                    Want::Data { slot, offset, len } => {
                        let n = input.len().min(len as usize);
                        if checked {
                            crc.update(&input[..n]);
                        }
                        holdings[usize::from(slot)].place(segs, table, offset, &input[..n]);
                        connection.data_moved(n as u32);
                        n
                    }
                    Want::Tail(_) => connection.handle_tail(input, crc)?,
                    Want::Nothing => return Err(ProtocolError::NotWanted.into()),
                };
                if checked && !matches!(connection.wants(), Want::Data { .. } | Want::Tail(_)) {
                    *crc = Crc32c::new();
                }
                input = &input[used..];
            }
        })
    }

    /// Sends what waits; says whether all of it has left.
    #[inline]
    pub(crate) fn flush(&mut self, segs: &SegTable) -> Result<bool, Broken> {
        match &self.phase {
            Phase::Open(connection) if !connection.has_output() => return Ok(true),
            Phase::Open(_) => {}
            Phase::Login(_) => return self.flush_login(),
        }
        for _ in 0..TX_ROUNDS {
            let (listed, sent) = self.send(segs)?;
            if sent < listed || !self.has_output() {
                break;
            }
        }
        Ok(!self.has_output())
    }

    fn send(&mut self, segs: &SegTable) -> Result<(usize, usize), Broken> {
        self.copy_for_digests(segs)?;
        let Link { stream, phase: Phase::Open(connection), holdings, tx_list, copies, .. } = self else {
            return Ok((0, 0));
        };
        let (listed, sent) = polypath_memory::with(|table| {
            let mut list = tx_list.gather();
            let mut copied = copies.lookup();
            for chunk in connection.transmit() {
                let listed = match chunk {
                    Chunk::Bytes(bytes) => list.bytes(bytes),
                    Chunk::Data { token, slot, offset, len } => match copied.find(token, offset) {
                        Some(copy) => list.bytes(copy),
                        None => holdings[usize::from(slot)].list(segs, table, (offset, len), &mut list)?,
                    },
                };
                if !listed {
                    break;
                }
            }
            let sent = stream.send(&list).map_err(|e| Broken::io("sending", &e))?;
            Ok::<_, Broken>((list.len(), sent))
        })?;
        if sent > 0 {
            copies.release(sent, || connection.transmit());
            connection.sent(sent);
        }
        Ok((listed, sent))
    }

    /// Takes the digests that are due, over private copies that then leave in place of the memory.
    fn copy_for_digests(&mut self, segs: &SegTable) -> Result<(), Broken> {
        let Link { phase: Phase::Open(connection), holdings, copies, .. } = self else { return Ok(()) };
        if copies.is_full() {
            copies.keep_only(connection.digested());
        }
        while !copies.is_full()
            && let Some(due) = connection.next_digest()
        {
            let held = &holdings[usize::from(due.slot)];
            let digest = polypath_memory::with(|table| copies.take(&due, held, segs, table))?;
            connection.set_digest(due.token, digest);
        }
        Ok(())
    }

    fn has_output(&self) -> bool {
        match &self.phase {
            Phase::Open(connection) => connection.has_output(),
            Phase::Login(login) => login.out_sent < login.out.len(),
        }
    }

    /// Is there something to be heard by [`Link::receive`] although nothing has come?
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.connection().is_some_and(InitiatorConnection::has_events)
    }

    pub(crate) fn arm(&self, waits: &mut Waits) {
        self.stream.arm(waits, self.has_output());
    }

    /// Closes it abortively.
    pub(crate) fn abort(&mut self) {
        if let Some(connection) = self.connection_mut() {
            connection.close();
        }
        self.stream.abort();
    }

    /// After [`Link::abort`]: what became of each task that was not reported ended.
    pub(crate) fn next_outcome(&mut self) -> Option<Ended> {
        let Phase::Open(connection) = &mut self.phase else { return None };
        let (slot, outcome) = connection.poll_outcome()?;
        let (lun, taken) = connection.command_of(slot);
        let Holding { user, bad, .. } = self.holdings[usize::from(slot)];
        Some(match outcome {
            Outcome::Ended(ending) => {
                // Its sense data are gone with the octets behind them.
                let finished = Finished { user, ending, sense: None, bad_memory: bad };
                Ended { user, finished: Some(finished), fate: Fate::Finished, lun, taken }
            }
            Outcome::Lost(fate) => Ended { user, finished: None, fate, lun, taken },
        })
    }

    // Coming up.

    fn come_up(&mut self, segs: &SegTable, heard: &mut impl FnMut(Heard)) -> Result<bool, Broken> {
        let Link { stream, phase: Phase::Login(login), rx, rx_list, .. } = self else { return Ok(false) };
        if !login.begun {
            if !stream.poll_connected().map_err(|e| Broken::io("connecting", &e))? {
                return Ok(false);
            }
            login.begun = true;
            let message = login.machine.start();
            login.say(&message)?;
            self.flush_login()?;
            return Ok(false);
        }
        let mut into = rx_list.scatter();
        into.bytes(rx);
        let n = match stream.receive(&mut into).map_err(|e| Broken::io("receiving", &e))? {
            Received::Bytes(n) => n,
            Received::Nothing => return Ok(false),
            Received::End => {
                return Err(Broken::new(Code::PathLost, "the target has closed the connection during login"));
            }
        };
        login.inbox.extend_from_slice(&rx[..n]);
        while let Phase::Login(login) = &mut self.phase
            && let Some(step) = login.hear()?
        {
            match step {
                InitiatorStep::Send(message) => {
                    login.say(&message)?;
                    self.flush_login()?;
                }
                InitiatorStep::Done(negotiated) => {
                    let rest = std::mem::take(&mut login.inbox);
                    let parameters = parameters(&negotiated, self.depth);
                    self.phase = Phase::Open(Box::new(InitiatorConnection::new(parameters)));
                    heard(Heard::Up(negotiated));
                    // What came behind the last answer.
                    let len = rest.len().min(self.rx.len());
                    self.rx[..len].copy_from_slice(&rest[..len]);
                    self.take(len, segs, heard)?;
                }
            }
        }
        Ok(true)
    }

    fn flush_login(&mut self) -> Result<bool, Broken> {
        let Link { stream, phase: Phase::Login(login), tx_list, .. } = self else { return Ok(true) };
        let rest = &login.out[login.out_sent..];
        if rest.is_empty() {
            return Ok(true);
        }
        let mut list = tx_list.gather();
        list.bytes(rest);
        login.out_sent += stream.send(&list).map_err(|e| Broken::io("sending", &e))?;
        Ok(login.out_sent == login.out.len())
    }
}

/// What the connection works with from the end of login on.
fn parameters(negotiated: &Negotiated, depth: u16) -> Parameters {
    Parameters {
        depth,
        tx: negotiated.transmit(),
        rx: negotiated.receive(),
        max_burst_len: negotiated.max_burst_len,
        first_burst_len: negotiated.first_burst_len,
        initial_r2t: negotiated.initial_r2t,
        immediate_data: negotiated.immediate_data,
        max_outstanding_r2t: negotiated.max_outstanding_r2t,
        cmd_sn: negotiated.cmd_sn,
        max_cmd_sn: negotiated.max_cmd_sn,
        exp_stat_sn: negotiated.stat_sn,
    }
}

#[inline]
fn tell(event: Event, connection: &InitiatorConnection, holdings: &[Holding], heard: &mut impl FnMut(Heard)) {
    heard(match event {
        Event::Ended { slot, ending } => {
            let Holding { user, bad, .. } = holdings[usize::from(slot)];
            let sense = if ending.has_sense { Sense::parse(connection.sense()).ok() } else { None };
            Heard::Ended(Finished { user, ending, sense, bad_memory: bad })
        }
        Event::Managed { token, result } => Heard::Managed { token, result },
        Event::Pong => Heard::Pong,
        Event::Async(event) => Heard::Async(event),
        Event::AsyncSense(_) => Heard::Attention,
        Event::LoggedOut => Heard::LoggedOut,
    });
}
