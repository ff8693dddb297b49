//! One connection: what has come is taken apart here and given to whom it concerns.

use super::manage::Quest;
use super::order::{Early, STAGE_LIMIT, Task};
use super::{Env, Iscsi, Session};
use crate::conn::Ending;
use crate::faults::Who;
use crate::media::beneath::Order;
use crate::out::Out;
use crate::pool::Pool;
use crate::shared::{ConnInfo, HostLog};
use crate::store::Disk;
use polypath_block::{SlotKey, Slots};
use polypath_iscsi::login::{Message, Negotiated, TargetConfig as LoginConfig, TargetLogin, TextServer};
use polypath_iscsi::pdu::{
    BHS_LEN, DIGEST_LEN, DataOut, Framing, Header, LoginResponse, LogoutRequest, NopOut, Opcode, RejectReason, Role,
    ScsiCommand, TaskRequest, TextRequest, pad_len,
};
use polypath_iscsi::serial::{CmdSn, StatSn};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// No more PDUs are taken while so much waits to be sent.
const OUT_LIMIT: usize = 1 << 20;
/// A login that takes longer is given up.
const LOGIN_LIMIT_US: u64 = 15_000_000;
/// Commands for immediate delivery that may be under way besides those of the window.
const IMMEDIATE: u16 = 64;

/// Why a connection is given up.
#[derive(Debug)]
pub(super) struct Fatal(pub(super) &'static str);

/// How far a connection has come.
pub(super) enum Phase {
    Login(Box<TargetLogin>),
    /// The session before it is being ended; the last response of the login waits for that, and for so many threads.
    Waiting(Message<LoginResponse>, usize),
    Full,
}

/// What was negotiated, as far as it is needed later.
pub(super) struct Agreed {
    pub(super) rx: Framing,
    pub(super) tx: Framing,
    pub(super) cid: u16,
    pub(super) initial_r2t: bool,
    pub(super) immediate_data: bool,
    pub(super) first_burst: usize,
    pub(super) max_burst: usize,
    pub(super) max_r2t: usize,
    pub(super) discovery: bool,
}

/// One connection, which is one session.
pub(crate) struct Conn {
    pub(crate) info: Arc<ConnInfo>,
    pub(crate) out: Out,
    pub(crate) ending: Option<Ending>,
    pub(super) phase: Phase,
    pub(super) agreed: Agreed,
    pub(super) session: Option<Arc<Session>>,
    pub(super) text: Option<TextServer>,
    pub(super) stat_sn: StatSn,
    pub(super) exp_cmd_sn: CmdSn,
    pub(super) window: u32,
    /// Tasks that take a place in the window.
    pub(super) counted: u32,
    pub(super) early: Early,
    pub(super) disks: Arc<Vec<Arc<Disk>>>,
    version: u64,
    pub(super) tasks: Slots<Task>,
    /// Transfers that wait for staging room, in order.
    pub(super) waiting: VecDeque<SlotKey>,
    pub(super) staged: usize,
    /// Octets that disks beneath are to read.
    pub(super) reading: usize,
    pub(super) pool: Pool,
    pub(super) delayed: usize,
    /// R2T that were sent for the command that is answered next.
    pub(super) requests: u32,
    pub(super) quests: Vec<Quest>,
    /// What the engine of the thread is to be told.
    pub(crate) orders: Vec<Order>,
    login_until_us: u64,
    /// How long the initiator may be silent; 0 for ever.
    silence_us: u64,
    heard_us: u64,
    /// A NOP-In that is not answered yet.
    pub(super) ping: Option<u32>,
    pub(super) next_ping: u32,
    pub(super) counts: Counts,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) others: u64,
}

impl Conn {
    pub(crate) fn new(info: Arc<ConnInfo>, iscsi: &Iscsi, now_us: u64) -> Conn {
        let window = iscsi.shared.config.iscsi.command_window;
        let login = LoginConfig { stat_sn: StatSn::new(0), command_window: window.into() };
        Conn {
            info,
            out: Out::new(),
            ending: None,
            phase: Phase::Login(Box::new(TargetLogin::new(login))),
            agreed: Agreed {
                rx: Framing::LOGIN,
                tx: Framing::LOGIN,
                cid: 0,
                initial_r2t: true,
                immediate_data: true,
                first_burst: 0,
                max_burst: 0,
                max_r2t: 1,
                discovery: true,
            },
            session: None,
            text: None,
            stat_sn: StatSn::new(0),
            exp_cmd_sn: CmdSn::new(0),
            window: window.into(),
            counted: 0,
            early: Early::default(),
            disks: Arc::default(),
            version: 0,
            tasks: Slots::new(window + IMMEDIATE),
            waiting: VecDeque::new(),
            staged: 0,
            reading: 0,
            pool: Pool::default(),
            delayed: 0,
            requests: 0,
            quests: Vec::new(),
            orders: Vec::new(),
            login_until_us: now_us + LOGIN_LIMIT_US,
            silence_us: u64::from(iscsi.shared.config.iscsi.nop_interval_ms) * 1000,
            heard_us: now_us,
            ping: None,
            next_ping: 1,
            counts: Counts::default(),
        }
    }

    /// Whether there is a session by now.
    pub(crate) fn is_joined(&self) -> bool {
        self.session.is_some()
    }

    /// Who it is, for the scope of faults.
    pub(crate) fn who(&self) -> Who {
        let session = self.session.as_ref().map(|s| s.tsih);
        Who { listener: self.info.listener, session, queue: session.map(|_| self.agreed.cid), conn: self.info.id }
    }

    /// Takes whole PDUs from the front of `bytes`; returns how many bytes were taken. Stops while too much waits to be sent.
    pub(crate) fn receive(&mut self, env: &Env<'_>, bytes: &[u8]) -> usize {
        let mut at = 0;
        self.follow(env);
        if !bytes.is_empty() {
            self.heard_us = env.now_us;
        }
        while self.ending.is_none() && self.is_taking() {
            match self.pdu(env, &bytes[at..]) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(Fatal(why)) => {
                    env.iscsi.shared.counters.terminated.fetch_add(1, Ordering::Relaxed);
                    if let Some(others) = HostLog::may(&env.iscsi.shared.log.ended, env.now_us) {
                        tracing::warn!(conn = self.info.id, peer = ?self.info.peer, why, others, "connection given up");
                    }
                    self.ending = Some(Ending::AfterFlush);
                }
            }
        }
        self.publish();
        if self.ending.is_some() { bytes.len() } else { at }
    }

    /// Would it take a PDU now? What comes at its end is thrown away.
    #[inline]
    pub(crate) fn is_taking(&self) -> bool {
        let waits = matches!(self.phase, Phase::Waiting(..));
        self.ending.is_some() || self.out.len() < OUT_LIMIT && self.reading < STAGE_LIMIT && !waits
    }

    /// Sees whether the session is over and whether the disks have changed.
    fn follow(&mut self, env: &Env<'_>) {
        let Some(session) = &self.session else { return };
        if session.gone.load(Ordering::Acquire) {
            self.ending = Some(Ending::Now);
        }
        if let Some(store) = env.iscsi.shared.stores.get(session.store) {
            let version = store.version();
            if version != self.version {
                self.version = version;
                self.disks = store.disks();
            }
        }
    }

    /// Does what is due by now: delayed commands, a login that takes too long, silence.
    pub(crate) fn tick(&mut self, env: &Env<'_>) {
        if self.ending.is_some() {
            return;
        }
        if matches!(self.phase, Phase::Login(_)) {
            if env.now_us >= self.login_until_us {
                if let Some(others) = HostLog::may(&env.iscsi.shared.log.login, env.now_us) {
                    tracing::warn!(conn = self.info.id, others, "login takes too long");
                }
                self.ending = Some(Ending::Now);
            }
            return;
        }
        self.follow(env);
        if self.ending.is_none() && self.delayed > 0 {
            self.do_delayed(env);
            self.publish();
        }
        let interval_us = self.silence_us;
        if interval_us > 0 && self.ending.is_none() && self.session.is_some() {
            let silent_us = env.now_us.saturating_sub(self.heard_us);
            if silent_us >= 2 * interval_us && self.ping.is_some() {
                tracing::warn!(conn = self.info.id, "the initiator does not answer");
                env.iscsi.shared.counters.keep_alive_expired.fetch_add(1, Ordering::Relaxed);
                self.ending = Some(Ending::Now);
            } else if silent_us >= interval_us && self.ping.is_none() {
                self.send_ping(env);
            }
        }
    }

    /// When [`Conn::tick`] has something to do next.
    pub(crate) fn deadline_us(&self) -> u64 {
        if matches!(self.phase, Phase::Login(_)) {
            return self.login_until_us;
        }
        let interval_us = self.silence_us;
        let nop_us = match (interval_us, self.ping) {
            (0, _) => u64::MAX,
            (_, None) => self.heard_us + interval_us,
            (_, Some(_)) => self.heard_us + 2 * interval_us,
        };
        if self.delayed == 0 { nop_us } else { nop_us.min(self.first_delayed_us()) }
    }

    /// Looks at what other threads have changed.
    pub(crate) fn look_around(&mut self, env: &Env<'_>) {
        self.follow(env);
    }

    /// Lets go of everything; called once before it is dropped.
    pub(crate) fn close(&mut self, iscsi: &Iscsi) {
        self.tasks.clear();
        self.waiting.clear();
        self.quests.clear();
        self.orders.clear();
        (self.delayed, self.counted, self.staged, self.reading) = (0, 0, 0, 0);
        self.out.clear();
        if let Some(session) = self.session.take() {
            iscsi.forget(&session, "its connection ended");
        }
    }

    fn publish(&mut self) {
        let info = &self.info;
        info.reads.store(self.counts.reads, Ordering::Relaxed);
        info.writes.store(self.counts.writes, Ordering::Relaxed);
        info.others.store(self.counts.others, Ordering::Relaxed);
    }

    /// What was negotiated holds from here on.
    pub(super) fn agree(&mut self, n: &Negotiated, discovery: bool) {
        self.agreed = Agreed {
            rx: n.receive(),
            tx: n.transmit(),
            cid: n.cid,
            initial_r2t: n.initial_r2t,
            immediate_data: n.immediate_data,
            first_burst: n.first_burst_len as usize,
            max_burst: n.max_burst_len as usize,
            max_r2t: n.max_outstanding_r2t.into(),
            discovery,
        };
        self.stat_sn = n.stat_sn;
        self.exp_cmd_sn = n.cmd_sn;
    }

    /// One PDU from the front of `bytes`: its length, or 0 when it is not whole yet.
    #[inline]
    fn pdu(&mut self, env: &Env<'_>, bytes: &[u8]) -> Result<usize, Fatal> {
        let Some(bhs) = bytes.first_chunk::<BHS_LEN>() else { return Ok(0) };
        let header = match Header::parse(bhs, Role::Initiator, &self.agreed.rx) {
            Ok(header) => header,
            Err(error) => {
                if let Some(others) = HostLog::may(&env.iscsi.shared.log.refused, env.now_us) {
                    tracing::warn!(conn = self.info.id, %error, others, "PDU refused");
                }
                let reason = error.reject_reason().ok_or(Fatal("a PDU that cannot be taken"))?;
                return self.skip(env, bhs, bytes, reason);
            }
        };
        let (head, len) = (header.head_len(), header.head_len() + header.tail_len());
        let Some(pdu) = bytes.get(..len) else { return Ok(0) };
        if header.verify_header_digest(pdu).is_err() {
            env.iscsi.shared.counters.digest_errors.fetch_add(1, Ordering::Relaxed);
            return Err(Fatal("header digest"));
        }
        let data = match header.verified_data(&pdu[head..]) {
            Ok(data) => data,
            Err(error) => {
                env.iscsi.shared.counters.digest_errors.fetch_add(1, Ordering::Relaxed);
                if let Some(others) = HostLog::may(&env.iscsi.shared.log.refused, env.now_us) {
                    tracing::warn!(conn = self.info.id, %error, others, "data refused");
                }
                self.bad_data(env, &header, bhs);
                return Ok(len);
            }
        };
        self.dispatch(env, &header, bhs, pdu, data)?;
        self.take_early(env)?;
        Ok(len)
    }

    /// Rejects a PDU that could not be read, and goes on behind it.
    fn skip(&mut self, env: &Env<'_>, bhs: &[u8; BHS_LEN], bytes: &[u8], reason: RejectReason) -> Result<usize, Fatal> {
        if !matches!(self.phase, Phase::Full) {
            return Err(Fatal("something else than a login"));
        }
        let data_len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]);
        if data_len > self.agreed.rx.max_data_len {
            return Err(Fatal("more data than was declared"));
        }
        let digest = |on: bool| if on { DIGEST_LEN } else { 0 };
        let len = BHS_LEN
            + usize::from(bhs[4]) * 4
            + digest(self.agreed.rx.header_digest)
            + data_len as usize
            + pad_len(data_len)
            + digest(self.agreed.rx.data_digest && data_len > 0);
        if bytes.len() < len {
            return Ok(0);
        }
        self.reject(env, reason, bhs);
        Ok(len)
    }

    #[inline]
    pub(super) fn dispatch(
        &mut self,
        env: &Env<'_>,
        header: &Header,
        bhs: &[u8; BHS_LEN],
        pdu: &[u8],
        data: &[u8],
    ) -> Result<(), Fatal> {
        if matches!(self.phase, Phase::Login(_)) {
            return self.login_pdu(env, header, bhs, data);
        }
        if self.agreed.discovery
            && !matches!(header.opcode, Opcode::TextRequest | Opcode::LogoutRequest | Opcode::NopOut)
        {
            self.reject(env, RejectReason::ProtocolError, bhs);
            return Ok(());
        }
        let parsed = match header.opcode {
            Opcode::ScsiCommand => ScsiCommand::parse(header, bhs).map(|command| {
                if self.in_order(command.sn.cmd_sn, command.immediate, pdu) {
                    self.command(env, command, header.ahs_len() > 0, bhs, data);
                }
            }),
            Opcode::DataOut => DataOut::parse(header, bhs).map(|out| self.data_out(env, &out, data)),
            Opcode::NopOut => NopOut::parse(header, bhs).map(|nop| {
                if self.in_order(nop.sn.cmd_sn, nop.immediate, pdu) {
                    self.nop_out(env, &nop, data);
                }
            }),
            Opcode::TaskRequest => TaskRequest::parse(header, bhs).map(|request| {
                if self.in_order(request.sn.cmd_sn, request.immediate, pdu) {
                    self.task_request(env, &request);
                }
            }),
            Opcode::TextRequest => TextRequest::parse(header, bhs).map(|request| {
                if self.in_order(request.sn.cmd_sn, request.immediate, pdu) {
                    self.text_request(env, &request, bhs, data);
                }
            }),
            Opcode::LogoutRequest => LogoutRequest::parse(header, bhs).map(|request| {
                if self.in_order(request.sn.cmd_sn, request.immediate, pdu) {
                    self.logout_request(env, &request);
                }
            }),
            Opcode::LoginRequest => {
                self.reject(env, RejectReason::ProtocolError, bhs);
                Ok(())
            }
            _ => {
                self.reject(env, RejectReason::CommandNotSupported, bhs);
                Ok(())
            }
        };
        if let Err(error) = parsed {
            if let Some(others) = HostLog::may(&env.iscsi.shared.log.refused, env.now_us) {
                tracing::warn!(conn = self.info.id, %error, others, "PDU refused");
            }
            let reason = error.reject_reason().ok_or(Fatal("a PDU that cannot be read"))?;
            self.reject(env, reason, bhs);
        }
        Ok(())
    }
}
