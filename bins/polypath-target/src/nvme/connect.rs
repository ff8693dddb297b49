//! Fabrics commands: Connect, properties, Disconnect.

use super::state::{Controller, ControllerInner};
use super::{Conn, Env};
use crate::conn::Ending;
use crate::mail::{Address, Msg, Quiesce};
use crate::shared::{HostLog, lock};
use polypath_block::Slots;
use polypath_nvme::fabrics::{CNTLID_DYNAMIC, ConnectRequest, ConnectResponse, InvalidParameter, cattr, fctype};
use polypath_nvme::properties::Register;
use polypath_nvme::{Cqe, Sqe, StatusField};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Largest admin queue, entries.
pub(super) const ADMIN_ENTRIES: u16 = 128;
/// Version we claim: 2.1, the first with a command quiesce time.
pub(super) const VERSION: u32 = 0x0002_0100;

impl Conn {
    pub(super) fn fabrics(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) {
        let cid = sqe.cid();
        match sqe.fctype() {
            fctype::CONNECT => {
                let response = match self.connect(env, sqe, data) {
                    Ok(cntlid) => ConnectResponse::Connected { cntlid, authentication: 0 },
                    Err(refusal) => {
                        if let Some(others) = HostLog::may(&env.nvme.shared.log.login, env.now_us) {
                            tracing::info!(conn = self.info.id, ?refusal, others, "Connect refused");
                        }
                        refusal
                    }
                };
                let mut cqe = response.to_cqe(cid);
                if !self.flow_control {
                    // SQHD of FFFFh tells the host that flow control is off (Base 2.1 section 6.3).
                    cqe = cqe.with_sqhd(0xffff);
                }
                self.complete(env, cqe);
            }
            fctype::PROPERTY_GET => match self.property_get(env, sqe) {
                Ok(value) => self.complete(env, polypath_nvme::fabrics::property_get_response(cid, value)),
                Err(status) => self.complete(env, Cqe::new(cid, status.with_dnr())),
            },
            fctype::PROPERTY_SET => {
                let status = match self.property_set(env, sqe) {
                    Ok(()) => StatusField::SUCCESS,
                    Err(status) => status.with_dnr(),
                };
                self.complete(env, Cqe::new(cid, status));
            }
            // Its answer says that nothing is under way any more.
            fctype::DISCONNECT if self.qid != 0 && self.below > 0 => self.disconnecting = Some(cid),
            fctype::DISCONNECT if self.controller.is_some() && self.qid != 0 => self.disconnect(env, cid),
            fctype::DISCONNECT => self.fail(env, cid, StatusField::INVALID_QUEUE_TYPE),
            _ => self.fail(env, cid, StatusField::INVALID_OPCODE),
        }
    }

    pub(super) fn disconnect(&mut self, env: &Env<'_>, cid: u16) {
        self.complete(env, Cqe::new(cid, StatusField::SUCCESS));
        self.ending = Some(Ending::AfterFlush);
    }

    fn connect(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) -> Result<u16, ConnectResponse> {
        use ConnectResponse::{InvalidParameter as Invalid, Refused};
        if self.controller.is_some() {
            return Err(Refused(StatusField::COMMAND_SEQUENCE_ERROR.with_dnr()));
        }
        if sqe.connect_recfmt() != 0 {
            return Err(Refused(StatusField::CONNECT_INCOMPATIBLE_FORMAT.with_dnr()));
        }
        if data.len() < ConnectRequest::LEN {
            return Err(Refused(StatusField::INVALID_SGL_DATA_LENGTH.with_dnr()));
        }
        let connect = ConnectRequest::parse(data).map_err(|e| Invalid(ConnectRequest::invalid_parameter(&e)))?;
        let shared = &env.nvme.shared;
        let subsystem = env
            .nvme
            .subsystems
            .iter()
            .position(|s| s.store.nqn == connect.subnqn.as_str())
            .ok_or(Invalid(InvalidParameter::SUBNQN))?;
        let (qid, sqsize) = (sqe.connect_qid(), sqe.connect_sqsize_z());
        let most = if qid == 0 { ADMIN_ENTRIES } else { shared.config.queue_depth };
        if sqsize == 0 || sqsize >= most {
            return Err(Invalid(InvalidParameter::SQSIZE));
        }
        let controller = if qid == 0 {
            self.new_controller(env, subsystem, &connect, sqe.connect_kato_ms())?
        } else {
            self.join_controller(env, subsystem, &connect, qid)?
        };
        self.epoch = controller.epoch.load(Ordering::Acquire);
        self.info.queue.store(u32::from(controller.id) | u32::from(qid) << 16, Ordering::Relaxed);
        self.flow_control =
            !(shared.config.allow_no_flow_control && sqe.connect_cattr() & cattr::DISABLE_SQ_FLOW_CONTROL != 0);
        self.sqsize = sqsize;
        // Connect itself was the first entry; the head has moved behind it.
        self.sqhd = 1;
        self.qid = qid;
        self.subsystem = subsystem;
        self.version = env.nvme.subsystems[subsystem].store.version();
        self.namespaces = env.nvme.subsystems[subsystem].store.disks();
        if qid != 0 {
            self.agreed.in_capsule = shared.config.in_capsule as usize;
        }
        // Drained: nothing can wait on a connection without a controller but what faults have put there.
        let keys: Vec<_> = self.pending.iter().map(|(k, _)| k).collect();
        keys.into_iter().for_each(|k| self.forget(k));
        self.pending = Slots::new(sqsize + 1);
        let id = controller.id;
        self.party = controller.party.clone();
        self.controller = Some(controller);
        Ok(id)
    }

    fn new_controller(
        &self,
        env: &Env<'_>,
        subsystem: usize,
        connect: &ConnectRequest,
        kato_ms: u32,
    ) -> Result<Arc<Controller>, ConnectResponse> {
        if connect.cntlid != CNTLID_DYNAMIC {
            return Err(ConnectResponse::InvalidParameter(InvalidParameter::CNTLID));
        }
        let busy = ConnectResponse::Refused(StatusField::CONNECT_CONTROLLER_BUSY);
        let id = env.nvme.new_cntlid().ok_or(busy)?;
        let controller = Arc::new(Controller {
            id,
            subsystem,
            listener: self.info.listener,
            hostnqn: connect.hostnqn().to_owned(),
            hostid: *connect.host_id.as_bytes(),
            party: Arc::new(super::reserve::party(*connect.host_id.as_bytes())),
            admin: (self.info.thread, self.info.id),
            dead: Arc::default(),
            cc: AtomicU32::new(0),
            csts: AtomicU32::new(0),
            epoch: AtomicU32::new(0),
            granted: AtomicU16::new(env.nvme.max_io_queues.load(Ordering::Relaxed)),
            kato_ms: AtomicU32::new(kato_ms),
            alive_us: AtomicU64::new(env.now_us),
            traffic: AtomicBool::new(false),
            inner: Mutex::new(ControllerInner::default()),
        });
        lock(&env.nvme.subsystems[subsystem].controllers).insert(id, controller.clone());
        env.nvme.shared.counters.controllers.fetch_add(1, Ordering::Relaxed);
        tracing::info!(
            cntlid = id,
            host = controller.hostnqn,
            listener = self.info.listener,
            kato_ms,
            "association created"
        );
        Ok(controller)
    }

    fn join_controller(
        &self,
        env: &Env<'_>,
        subsystem: usize,
        connect: &ConnectRequest,
        qid: u16,
    ) -> Result<Arc<Controller>, ConnectResponse> {
        use ConnectResponse::{InvalidParameter as Invalid, Refused};
        let sub = &env.nvme.subsystems[subsystem];
        let found = lock(&sub.controllers).get(&connect.cntlid).cloned();
        let controller = found.ok_or(Invalid(InvalidParameter::CNTLID))?;
        if controller.hostnqn != connect.hostnqn() {
            return Err(Invalid(InvalidParameter::HOSTNQN));
        }
        if controller.hostid != *connect.host_id.as_bytes() {
            return Err(Invalid(InvalidParameter::HOSTID));
        }
        if sub.discovery || qid > controller.granted.load(Ordering::Relaxed) {
            return Err(Invalid(InvalidParameter::QID));
        }
        let enabled = controller.cc.load(Ordering::Acquire) & 1 != 0;
        if !enabled || !controller.ready() || controller.dead.load(Ordering::Acquire) {
            return Err(Refused(StatusField::COMMAND_SEQUENCE_ERROR.with_dnr()));
        }
        let mut inner = lock(&controller.inner);
        if inner.queues.contains_key(&qid) {
            // Its old connection may not have ended yet: the host may try again.
            return Err(Refused(StatusField::CONNECT_CONTROLLER_BUSY));
        }
        inner.queues.insert(qid, (self.info.thread, self.info.id));
        drop(inner);
        Ok(controller)
    }

    fn property_get(&self, env: &Env<'_>, sqe: &Sqe) -> Result<u64, StatusField> {
        let controller = self.admin_controller()?;
        match sqe.property() {
            Ok(Register::Cap) => {
                let mqes_z = u64::from(env.nvme.shared.config.queue_depth - 1);
                // Contiguous queues, 10 s to get ready, NVM command set.
                Ok(mqes_z | 1 << 16 | 20 << 24 | 1 << 37)
            }
            Ok(Register::Vs) => Ok(u64::from(VERSION)),
            Ok(Register::Cc) => Ok(controller.cc.load(Ordering::Acquire).into()),
            Ok(Register::Csts) => Ok(controller.csts.load(Ordering::Acquire).into()),
            _ => Err(StatusField::INVALID_FIELD),
        }
    }

    fn property_set(&mut self, env: &Env<'_>, sqe: &Sqe) -> Result<(), StatusField> {
        let controller = self.admin_controller()?.clone();
        if sqe.property() != Ok(Register::Cc) {
            return Err(StatusField::INVALID_FIELD);
        }
        let (old, new) = (controller.cc.load(Ordering::Acquire), sqe.property_value() as u32);
        controller.cc.store(new, Ordering::Release);
        let (was_on, on) = (old & 1 != 0, new & 1 != 0);
        let shutdown = (new >> 14 & 3) != 0;
        let mut reset = false;
        if !was_on && on {
            let (css, mps) = (new >> 4 & 7, new >> 7 & 15);
            let entries = (new >> 16 & 15, new >> 20 & 15);
            let discovery = env.nvme.subsystems[controller.subsystem].discovery;
            let fits = css == 0 && mps == 0 && (entries == (6, 4) || discovery);
            // CFS when the host asked for what CAP does not offer, else ready at once.
            controller.csts.store(if fits { 1 } else { 2 }, Ordering::Release);
            controller.alive_us.store(env.now_us, Ordering::Release);
        } else if was_on && !on {
            reset = true;
        }
        if shutdown {
            // Shutdown processing occurs.
            let csts = controller.csts.load(Ordering::Acquire);
            controller.csts.store(csts & !0xc | 0x4, Ordering::Release);
            reset = true;
        }
        if reset {
            controller.epoch.fetch_add(1, Ordering::AcqRel);
            lock(&controller.inner).queues.clear();
            env.nvme.shared.wake_all();
            self.ask_for_quiet(env, &controller);
        }
        Ok(())
    }

    /// Not ready, and shut down, is what a controller is when nothing of before is under way: every thread is asked where disks beneath
    /// may have something still.
    fn ask_for_quiet(&mut self, env: &Env<'_>, controller: &Controller) {
        if self.resetting > 0 {
            // One question at a time, however often a host resets.
            self.reset_again = true;
            return;
        }
        let store = &env.nvme.subsystems[controller.subsystem].store;
        let threads = env.nvme.shared.threads.get().map_or(&[][..], Vec::as_slice);
        let index = controller.subsystem.checked_sub(1).filter(|_| store.has_beneath(None) && !threads.is_empty());
        let Some(index) = index else { return become_quiet(controller) };
        let what = Quiesce {
            store: index,
            unit: None,
            session: None,
            parties: Some(Vec::new()),
            except: None,
            end: false,
            tell: false,
        };
        let what = Arc::new(what);
        let reply = Address { thread: self.info.thread, conn: self.info.id, tag: 0 };
        self.resetting += threads.len();
        threads.iter().for_each(|thread| thread.send(Msg::Quiesce { what: what.clone(), reply }));
    }

    /// One more thread has nothing any more of what was before a reset.
    pub(crate) fn quiet(&mut self, env: &Env<'_>) {
        self.resetting = self.resetting.saturating_sub(1);
        let Some(controller) = self.controller.clone().filter(|_| self.resetting == 0) else { return };
        match std::mem::take(&mut self.reset_again) {
            true => self.ask_for_quiet(env, &controller),
            false => become_quiet(&controller),
        }
    }

    fn admin_controller(&self) -> Result<&Arc<Controller>, StatusField> {
        match &self.controller {
            Some(controller) if self.qid == 0 => Ok(controller),
            Some(_) => Err(StatusField::INVALID_QUEUE_TYPE),
            None => Err(StatusField::COMMAND_SEQUENCE_ERROR),
        }
    }
}

/// Nothing of before a reset or a shutdown is under way.
fn become_quiet(controller: &Controller) {
    let csts = controller.csts.load(Ordering::Acquire);
    // Shutdown processing is complete where it occurs.
    let shutting_down = csts & 0xc == 0x4;
    let enabled = controller.cc.load(Ordering::Acquire) & 1 != 0;
    let quiet = match (enabled, shutting_down) {
        (false, false) => 0,
        (false, true) => 0x8,
        (true, false) => csts,
        (true, true) => csts & !0xc | 0x8,
    };
    controller.csts.store(quiet, Ordering::Release);
}
