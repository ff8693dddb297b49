//! One connection as a state machine without socket and clock: bytes in, bytes out, time an argument.

mod admin;
mod beneath;
#[cfg(test)]
mod beneath_tests;
mod connect;
mod data;
mod io;
mod meddle;
mod reserve;
mod state;
#[cfg(test)]
mod tests;
mod transfer;
pub(crate) mod wire;

pub(crate) use state::{Controller, Nvme};

use crate::conn::Ending;
use crate::faults::{self, Rule, Who};
use crate::media::beneath::Order;
use crate::media::{MediumError, Party};
use crate::out::Out;
use crate::pool::Pool;
use crate::shared::{ConnInfo, HostLog};
use crate::store::Disk;
use polypath_block::{SlotKey, Slots};
use polypath_nvme::{Cqe, SglDescriptor, Sqe, StatusField};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use transfer::Transfer;
use wire::{Agreed, Fatal, Fes, kind};

/// No more PDUs are taken while so much waits to be sent.
const OUT_LIMIT: usize = 1 << 20;
/// Staged data of one connection at most; commands beyond it wait for their R2T. No more PDUs are taken while disks beneath read so much for it.
const STAGE_LIMIT: usize = 32 << 20;

/// A connection that takes longer to become one of a controller is given up: there are only so many.
const CONNECT_LIMIT_US: u64 = 15_000_000;

/// What a connection needs from around it for one pass.
pub(crate) struct Env<'a> {
    pub(crate) now_us: u64,
    pub(crate) nvme: &'a Nvme,
    pub(crate) rules: &'a [Arc<Rule>],
}

impl From<MediumError> for StatusField {
    fn from(error: MediumError) -> StatusField {
        match error {
            MediumError::OutOfRange => StatusField::LBA_OUT_OF_RANGE,
            MediumError::Read => StatusField::UNRECOVERED_READ_ERROR,
            MediumError::Write => StatusField::WRITE_FAULT,
            MediumError::Unsupported => StatusField::INVALID_OPCODE.with_dnr(),
            MediumError::WriteProtected => StatusField::NAMESPACE_WRITE_PROTECTED.with_dnr(),
            MediumError::Conflict => StatusField::RESERVATION_CONFLICT,
            MediumError::Miscompare => StatusField::COMPARE_FAILURE.with_dnr(),
            MediumError::NoSpace => StatusField::CAPACITY_EXCEEDED.with_dnr(),
            MediumError::Aborted => StatusField::COMMAND_INTERRUPTED,
            // Not one about the path: it is the disk that does not answer, and what became of it is not known.
            MediumError::Failed => StatusField::INTERNAL_ERROR.with_dnr(),
        }
    }
}

/// Something that waits on a connection: its command identifier is taken.
#[derive(Debug)]
enum Pending {
    /// A command whose data is being transferred.
    Transfer(Transfer),
    /// A command put off by a fault; its data is with it.
    Delayed { sqe: Sqe, data: Vec<u8>, until_us: u64 },
    /// A command that is never answered, or answered by a held write.
    Silent { cid: u16 },
    /// A command that a disk beneath carries out.
    Below(beneath::Below),
}

impl Pending {
    fn cid(&self) -> u16 {
        match self {
            Pending::Transfer(t) => t.sqe.cid(),
            Pending::Delayed { sqe, .. } => sqe.cid(),
            Pending::Silent { cid } => *cid,
            Pending::Below(below) => below.cid,
        }
    }
}

/// One queue pair's connection.
pub(crate) struct Conn {
    pub(crate) info: Arc<ConnInfo>,
    pub(crate) out: Out,
    pub(crate) ending: Option<Ending>,
    pub(crate) controller: Option<Arc<Controller>>,
    pub(crate) qid: u16,
    agreed: Agreed,
    set_up: bool,
    subsystem: usize,
    epoch: u32,
    sqsize: u16,
    sqhd: u16,
    flow_control: bool,
    namespaces: Arc<Vec<Arc<Disk>>>,
    version: u64,
    /// Its host, as users of disks are known.
    party: Arc<Party>,
    pending: Slots<Pending>,
    /// Transfers that wait for staging room, in order.
    waiting: std::collections::VecDeque<SlotKey>,
    staged: usize,
    pool: Pool,
    delayed: usize,
    /// Identifiers of Asynchronous Event Requests.
    events: Vec<u16>,
    /// What the engine of the thread is to be told.
    pub(crate) orders: Vec<Order>,
    /// Commands that disks beneath carry out.
    below: usize,
    /// Bytes that they are to read.
    reading: usize,
    /// A Disconnect that waits for them.
    disconnecting: Option<u16>,
    /// Threads that have not said yet that nothing of before the reset is under way.
    resetting: usize,
    /// There was another one meanwhile: they are to be asked once more.
    reset_again: bool,
    /// It belongs to a controller by then.
    connect_until_us: u64,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    reads: u64,
    writes: u64,
    others: u64,
}

impl Conn {
    pub(crate) fn new(info: Arc<ConnInfo>, now_us: u64) -> Conn {
        Conn {
            info,
            connect_until_us: now_us + CONNECT_LIMIT_US,
            out: Out::new(),
            ending: None,
            controller: None,
            qid: 0,
            agreed: Agreed::default(),
            set_up: false,
            subsystem: 0,
            epoch: 0,
            sqsize: 1,
            sqhd: 0,
            flow_control: true,
            namespaces: Arc::default(),
            version: 0,
            party: Arc::new(reserve::party([0; 16])),
            pending: Slots::new(64),
            waiting: Default::default(),
            staged: 0,
            pool: Pool::default(),
            delayed: 0,
            events: Vec::new(),
            orders: Vec::new(),
            below: 0,
            reading: 0,
            disconnecting: None,
            resetting: 0,
            reset_again: false,
            counts: Counts::default(),
        }
    }

    /// Who it is, for the scope of faults.
    pub(crate) fn who(&self) -> Who {
        let cntlid = self.controller.as_ref().map(|c| c.id);
        Who { listener: self.info.listener, session: cntlid, queue: cntlid.map(|_| self.qid), conn: self.info.id }
    }

    /// Takes whole PDUs from the front of `bytes`; returns how many bytes were taken. Stops while too much waits to be sent.
    pub(crate) fn receive(&mut self, env: &Env<'_>, bytes: &[u8]) -> usize {
        let mut at = 0;
        if let Some(controller) = &self.controller {
            if controller.dead.load(Ordering::Acquire) {
                self.ending = Some(Ending::Now);
            }
            if env.nvme.shared.config.tbkas && !bytes.is_empty() {
                controller.traffic.store(true, Ordering::Relaxed);
            }
            let version = env.nvme.subsystems[self.subsystem].store.version();
            if version != self.version {
                self.version = version;
                self.namespaces = env.nvme.subsystems[self.subsystem].store.disks();
            }
        }
        while self.ending.is_none() && self.is_taking() {
            let rest = &bytes[at..];
            match self.pdu(env, rest) {
                Ok(0) => break,
                Ok(n) => at += n,
                Err(fatal) => {
                    self.terminate(env, fatal, rest);
                    break;
                }
            }
        }
        self.publish();
        if self.ending.is_some() { bytes.len() } else { at }
    }

    /// Would it take a PDU now? What comes at its end is thrown away.
    #[inline]
    pub(crate) fn is_taking(&self) -> bool {
        self.ending.is_some() || self.out.len() < OUT_LIMIT && self.reading < STAGE_LIMIT
    }

    /// As if as much were being read beneath as may be, or nothing.
    #[cfg(test)]
    pub(crate) fn read_beneath(&mut self, most: bool) {
        self.reading = if most { STAGE_LIMIT } else { 0 };
    }

    /// Does what is due by now: delayed commands, transfers that waited for room, a Connect that takes too long.
    pub(crate) fn tick(&mut self, env: &Env<'_>) {
        if self.controller.is_none() && self.ending.is_none() && env.now_us >= self.connect_until_us {
            if let Some(others) = HostLog::may(&env.nvme.shared.log.login, env.now_us) {
                tracing::info!(conn = self.info.id, peer = ?self.info.peer, others, "nobody has connected to a controller");
            }
            self.ending = Some(Ending::Now);
        }
        let dead = || self.controller.as_ref().is_some_and(|c| c.dead.load(Ordering::Acquire));
        if self.delayed > 0 && self.ending.is_none() && !dead() {
            while let Some(key) = self.due(env.now_us) {
                let Some(Pending::Delayed { sqe, data, .. }) = self.pending.remove(key) else { continue };
                self.delayed -= 1;
                self.execute(env, &sqe, &data);
            }
            self.publish();
        }
    }

    /// When [`Conn::tick`] has something to do next.
    pub(crate) fn deadline_us(&self) -> u64 {
        let waits = self.controller.is_none() && self.ending.is_none();
        let connect_us = if waits { self.connect_until_us } else { u64::MAX };
        if self.delayed == 0 {
            return connect_us;
        }
        let until = |p: &Pending| match p {
            Pending::Delayed { until_us, .. } => Some(*until_us),
            _ => None,
        };
        self.pending.iter().filter_map(|(_, p)| until(p)).min().unwrap_or(u64::MAX).min(connect_us)
    }

    /// Looks at what other threads have changed: a dead controller, a reset, events to be told.
    pub(crate) fn look_around(&mut self, env: &Env<'_>) {
        let Some(controller) = self.controller.clone() else { return };
        if self.is_of_before(&controller) {
            self.ending = Some(Ending::Now);
        } else if self.qid == 0 {
            for disk in self.namespaces.iter() {
                let news = disk.reservations.take_news(Party::is_everywhere);
                env.nvme.tell_of_reservations(self.subsystem, disk, news);
            }
            self.tell_events(env, &controller);
        }
    }

    /// Is its association over, or was it a queue before a reset?
    fn is_of_before(&self, controller: &Controller) -> bool {
        let old_epoch = self.qid != 0 && controller.epoch.load(Ordering::Acquire) != self.epoch;
        controller.dead.load(Ordering::Acquire) || old_epoch
    }

    /// Answers a command that another thread has finished. `false` when it is not waiting (any more).
    pub(crate) fn respond(&mut self, env: &Env<'_>, cid: u16, status: StatusField, result: u64) -> bool {
        let key =
            self.pending.iter().find(|(_, p)| matches!(p, Pending::Silent { cid: c } if *c == cid)).map(|(k, _)| k);
        let Some(key) = key else { return false };
        self.pending.remove(key);
        self.complete(env, Cqe::new(cid, status).with_result(result));
        true
    }

    /// Ends a command on behalf of Abort. `true` when it was still waiting and is now aborted.
    pub(crate) fn abort(&mut self, env: &Env<'_>, cid: u16) -> bool {
        // What is with a disk beneath cannot be taken back.
        let fixed = |p: &Pending| matches!(p, Pending::Silent { .. } | Pending::Below(_));
        let found = self.pending.iter().find(|(_, p)| !fixed(p) && p.cid() == cid);
        let Some(key) = found.map(|(k, _)| k) else { return false };
        self.forget(key);
        self.complete(env, Cqe::new(cid, StatusField::ABORT_REQUESTED));
        true
    }

    /// Lets go of everything; called once before it is dropped.
    pub(crate) fn close(&mut self, nvme: &Nvme) {
        let keys: Vec<SlotKey> = self.pending.iter().map(|(k, _)| k).collect();
        keys.into_iter().for_each(|k| self.forget(k));
        self.orders.clear();
        self.out.clear();
        if let Some(controller) = self.controller.take() {
            if self.qid == 0 {
                nvme.kill(&controller, "its admin connection ended");
            } else {
                let mut inner = crate::shared::lock(&controller.inner);
                if inner.queues.get(&self.qid).is_some_and(|&(_, conn)| conn == self.info.id) {
                    inner.queues.remove(&self.qid);
                }
            }
        }
    }

    /// Looks at the keep alive of the controller whose admin connection this is, and ends its association when that is over.
    /// Returns when to look again, in target time.
    pub(crate) fn keep_alive(&self, nvme: &Nvme, now_us: u64) -> Option<u64> {
        let controller = self.controller.as_ref().filter(|_| self.qid == 0)?;
        let kato_us = nvme.kato_us(controller)?;
        let since_us = controller.alive_us.load(Ordering::Acquire);
        if now_us < since_us + kato_us {
            return Some(since_us + kato_us);
        }
        if nvme.shared.config.tbkas && controller.traffic.swap(false, Ordering::Relaxed) {
            controller.alive_us.store(now_us, Ordering::Release);
            return Some(now_us + kato_us);
        }
        nvme.shared.counters.keep_alive_expired.fetch_add(1, Ordering::Relaxed);
        nvme.kill(controller, "its keep alive expired");
        None
    }

    /// Has nothing any more of what is to be quiet: queues of before a reset end.
    pub(crate) fn quiesce(&mut self) {
        if self.controller.as_ref().is_some_and(|controller| self.is_of_before(controller)) {
            self.ending = Some(Ending::Now);
        }
    }

    fn publish(&mut self) {
        let info = &self.info;
        info.reads.store(self.counts.reads, Ordering::Relaxed);
        info.writes.store(self.counts.writes, Ordering::Relaxed);
        info.others.store(self.counts.others, Ordering::Relaxed);
    }

    fn due(&self, now_us: u64) -> Option<SlotKey> {
        let due = |p: &Pending| matches!(p, Pending::Delayed { until_us, .. } if *until_us <= now_us);
        self.pending.iter().find(|(_, p)| due(p)).map(|(k, _)| k)
    }

    fn forget(&mut self, key: SlotKey) {
        match self.pending.remove(key) {
            Some(Pending::Transfer(t)) => self.unstage(t.stage),
            Some(Pending::Delayed { .. }) => self.delayed -= 1,
            Some(Pending::Below(below)) => {
                self.staged -= below.bytes;
                self.reading -= below.reads;
                self.below -= 1;
            }
            Some(Pending::Silent { .. }) | None => {}
        }
        self.waiting.retain(|k| *k != key);
    }

    /// One PDU from the front of `bytes`: its length, or 0 when it is not whole yet.
    #[inline]
    fn pdu(&mut self, env: &Env<'_>, bytes: &[u8]) -> Result<usize, Fatal> {
        let Some(head) = bytes.first_chunk::<{ wire::CH }>() else { return Ok(0) };
        if !self.set_up {
            return self.initialize(env, bytes);
        }
        let header = wire::check(head, &self.agreed)?;
        let Some(pdu) = bytes.get(..header.len) else { return Ok(0) };
        if self.agreed.header_digest && header.kind != kind::H2C_TERM {
            let hlen = usize::from(head[2]);
            let sent = wire::u32_at(pdu, hlen);
            if wire::crc32c(&pdu[..hlen]) != sent {
                env.nvme.shared.counters.digest_errors.fetch_add(1, Ordering::Relaxed);
                return Err(Fatal::new(Fes::HeaderDigest, sent, "header digest"));
            }
        }
        let (from, to) = header.data;
        let data = &pdu[from..to];
        let good = if self.agreed.data_digest && !data.is_empty() && header.kind != kind::H2C_TERM {
            let good = wire::crc32c(data) == wire::u32_at(pdu, to);
            if !good {
                env.nvme.shared.counters.digest_errors.fetch_add(1, Ordering::Relaxed);
            }
            good
        } else {
            true
        };
        match header.kind {
            kind::COMMAND => {
                let mut sqe = [0; 64];
                sqe.copy_from_slice(&pdu[8..72]);
                self.command(env, Sqe::from_bytes(sqe), data, good)?;
            }
            kind::H2C_DATA => self.h2c_data(env, pdu, header.flags, data, good)?,
            _ => {
                let (fes, info) = (wire::u16_at(pdu, 8), wire::u32_at(pdu, 10));
                if let Some(others) = HostLog::may(&env.nvme.shared.log.ended, env.now_us) {
                    tracing::warn!(conn = self.info.id, fes, info, others, "host terminates the connection");
                }
                self.ending = Some(Ending::Now);
            }
        }
        Ok(header.len)
    }

    /// ICReq: the first PDU.
    fn initialize(&mut self, env: &Env<'_>, bytes: &[u8]) -> Result<usize, Fatal> {
        if bytes[0] != kind::ICREQ {
            return Err(Fatal::new(Fes::SequenceError, 0, "the first PDU is not ICReq"));
        }
        if bytes[2] != wire::IC as u8 {
            return Err(Fatal::field(2, "HLEN of ICReq"));
        }
        if wire::u32_at(bytes, 4) != wire::IC as u32 {
            return Err(Fatal::field(4, "PLEN of ICReq"));
        }
        let Some(pdu) = bytes.first_chunk::<{ wire::IC }>() else { return Ok(0) };
        if wire::u16_at(pdu, 8) != 0 {
            return Err(Fatal::new(Fes::Unsupported, 8, "PDU format version"));
        }
        let (hpda, digests) = (pdu[10], pdu[11]);
        if hpda > 31 {
            return Err(Fatal::field(10, "HPDA"));
        }
        let config = &env.nvme.shared.config;
        self.agreed = Agreed {
            header_digest: digests & 1 != 0 && config.header_digest,
            data_digest: digests & 2 != 0 && config.data_digest,
            host_align: (usize::from(hpda) + 1) * 4,
            our_align: (usize::from(config.cpda) + 1) * 4,
            // Until Connect tells which queue it is: admin queues take 8 KiB.
            in_capsule: 8192,
            max_h2c: config.max_h2c_data as usize,
        };
        if config.refuse_without_digests && !(self.agreed.header_digest && self.agreed.data_digest) {
            return Err(Fatal::new(Fes::Unsupported, 11, "this target is configured to demand both digests"));
        }
        let response = self.out.reserve(wire::IC);
        response.fill(0);
        response[0] = kind::ICRESP;
        response[2] = wire::IC as u8;
        response[4] = wire::IC as u8;
        response[10] = config.cpda;
        response[11] = u8::from(self.agreed.header_digest) | u8::from(self.agreed.data_digest) << 1;
        response[12..16].copy_from_slice(&config.max_h2c_data.to_le_bytes());
        self.set_up = true;
        Ok(wire::IC)
    }

    /// A command capsule.
    #[inline]
    fn command(&mut self, env: &Env<'_>, sqe: Sqe, data: &[u8], good: bool) -> Result<(), Fatal> {
        if self.flow_control {
            self.sqhd = if self.sqhd >= self.sqsize { 0 } else { self.sqhd + 1 };
        }
        let cid = sqe.cid();
        if !self.pending.is_empty() && self.is_taken(cid) {
            self.complete(env, Cqe::new(cid, StatusField::CID_CONFLICT.with_dnr()));
            return Ok(());
        }
        if sqe.psdt() != 1 || sqe.fuse() != 0 {
            self.fail(env, cid, StatusField::INVALID_FIELD);
            return Ok(());
        }
        match sqe.sgl() {
            SglDescriptor::InCapsule { offset, length } => {
                if offset != 0 || length as usize > data.len() {
                    let status = if offset != 0 {
                        StatusField::INVALID_SGL_OFFSET
                    } else {
                        StatusField::INVALID_SGL_DATA_LENGTH
                    };
                    self.fail(env, cid, status);
                } else if !good {
                    self.complete(env, Cqe::new(cid, StatusField::TRANSIENT_TRANSPORT_ERROR));
                } else if takes_data(&sqe) {
                    self.ready(env, &sqe, &data[..length as usize]);
                } else if length == 0 {
                    self.ready(env, &sqe, &[]);
                } else {
                    self.fail(env, cid, StatusField::INVALID_SGL_TYPE);
                }
            }
            SglDescriptor::Transport { length } if length > 0 && takes_data(&sqe) => {
                return self.start_transfer(env, sqe, length as usize);
            }
            SglDescriptor::Transport { .. } => self.ready(env, &sqe, &[]),
            // Commands without data often leave the descriptor zero.
            SglDescriptor::Address { address: 0, length: 0 } => self.ready(env, &sqe, &[]),
            _ => self.fail(env, cid, StatusField::INVALID_SGL_TYPE),
        }
        Ok(())
    }

    fn is_taken(&self, cid: u16) -> bool {
        self.pending.iter().any(|(_, p)| p.cid() == cid) || self.events.contains(&cid)
    }

    /// Takes a slot for something that waits. A host that has more outstanding than its queue holds is cut off.
    fn wait(&mut self, pending: Pending) -> Result<SlotKey, Fatal> {
        self.pending
            .insert(pending)
            .map_err(|_| Fatal::new(Fes::SequenceError, 0, "more commands outstanding than the queue has entries"))
    }

    /// A command with all its data: faults have their say, then it is executed.
    #[inline]
    fn ready(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) {
        if !env.rules.is_empty() && self.meddle(env, sqe, data) {
            return;
        }
        self.execute(env, sqe, data);
    }

    #[inline]
    fn execute(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) {
        if sqe.opcode() == polypath_nvme::sqe::admin::FABRICS {
            self.counts.others += 1;
            self.fabrics(env, sqe, data);
        } else if self.controller.is_none() {
            self.fail(env, sqe.cid(), StatusField::COMMAND_SEQUENCE_ERROR);
        } else if self.qid == 0 {
            self.counts.others += 1;
            self.admin(env, sqe);
        } else {
            self.io(env, sqe, data);
        }
    }

    #[cold]
    fn fail(&mut self, env: &Env<'_>, cid: u16, status: StatusField) {
        self.complete(env, Cqe::new(cid, status.with_dnr()));
    }

    /// Sends a response capsule.
    #[inline]
    fn complete(&mut self, env: &Env<'_>, cqe: Cqe) {
        let cqe = if self.flow_control { cqe.with_sqhd(self.sqhd) } else { cqe };
        let mut pdu = [0; wire::SHORT_HEADER];
        pdu[0] = kind::RESPONSE;
        pdu[8..24].copy_from_slice(&cqe.to_bytes());
        self.header_out(env, pdu, 0);
    }

    /// Fills in the common header of a PDU with `data` octets to follow (aligned) and sends the header.
    #[inline]
    fn header_out(&mut self, env: &Env<'_>, mut pdu: [u8; wire::SHORT_HEADER], data: usize) {
        pdu[2] = wire::SHORT_HEADER as u8;
        let mut end = wire::SHORT_HEADER;
        if self.agreed.header_digest {
            pdu[1] |= wire::HDGSTF;
            end += 4;
        }
        let mut pad = 0;
        let mut len = end;
        if data > 0 {
            let pdo = end.next_multiple_of(self.agreed.host_align.max(4));
            pad = pdo - end;
            pdu[3] = pdo as u8;
            len = pdo + data;
            if self.agreed.data_digest {
                pdu[1] |= wire::DDGSTF;
                len += 4;
            }
        }
        pdu[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        self.out.bytes(&pdu);
        if self.agreed.header_digest {
            let mut digest = wire::crc32c(&pdu);
            if !env.rules.is_empty() && faults::corrupts(env.rules, &self.who(), false, env.now_us) {
                digest ^= 0x0100_0001;
            }
            self.out.bytes(&digest.to_le_bytes());
        }
        if pad > 0 {
            self.out.reserve(pad).fill(0);
        }
    }

    /// Sends the data digest of what has just been sent, if one was agreed.
    fn data_digest_out(&mut self, env: &Env<'_>, mut digest: u32) {
        if !env.rules.is_empty() && faults::corrupts(env.rules, &self.who(), true, env.now_us) {
            digest ^= 0x8000_0010;
        }
        self.out.bytes(&digest.to_le_bytes());
    }

    /// The header of a C2HData with everything of the command; `true` when it also stands for the response.
    #[inline]
    fn c2h_header(&mut self, env: &Env<'_>, cid: u16, len: usize) -> bool {
        let success = !self.flow_control;
        let mut pdu = [0; wire::SHORT_HEADER];
        pdu[0] = kind::C2H_DATA;
        pdu[1] = wire::LAST | if success { wire::SUCCESS } else { 0 };
        pdu[8..10].copy_from_slice(&cid.to_le_bytes());
        pdu[16..20].copy_from_slice(&(len as u32).to_le_bytes());
        self.header_out(env, pdu, len);
        success
    }

    /// Gives the connection up with a termination request.
    #[cold]
    fn terminate(&mut self, env: &Env<'_>, fatal: Fatal, pdu: &[u8]) {
        env.nvme.shared.counters.terminated.fetch_add(1, Ordering::Relaxed);
        if let Some(others) = HostLog::may(&env.nvme.shared.log.ended, env.now_us) {
            let (peer, fes, info, why) = (self.info.peer, fatal.fes, fatal.info, fatal.why);
            tracing::warn!(conn = self.info.id, ?peer, ?fes, info, why, others, "connection terminated");
        }
        let hlen = pdu.get(2).map_or(0, |&h| usize::from(h)).max(wire::CH);
        let request = fatal.request(&pdu[..pdu.len().min(hlen)]);
        self.out.bytes(&request);
        self.ending = Some(Ending::AfterFlush);
    }
}

/// Whether the host sends data with this command.
#[inline]
fn takes_data(sqe: &Sqe) -> bool {
    let code = if sqe.opcode() == polypath_nvme::sqe::admin::FABRICS { sqe.fctype() } else { sqe.opcode() };
    code & 3 == 1
}
