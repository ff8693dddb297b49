//! Admin commands.

use super::state::{Controller, EVENT_ANA, EVENT_DISCOVERY, EVENT_NAMESPACE, EVENT_RESERVATION};
use super::{Conn, Env, Pending, data};
use crate::mail::{Address, Msg};
use crate::media::ZEROES;
use crate::shared::lock;
use crate::store::Disk;
use polypath_nvme::features::{NumberOfQueues, fid};
use polypath_nvme::log::{AsyncEvent, EventKind, lid};
use polypath_nvme::reservation::mask;
use polypath_nvme::sqe::{NSID_ALL, admin as op};
use polypath_nvme::{Cqe, Sqe, StatusField};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Asynchronous Event Requests that may be outstanding.
pub(super) const EVENT_REQUESTS: usize = 4;
/// Events the host may ask for.
const EVENTS: u32 = EVENT_NAMESPACE | EVENT_ANA | EVENT_DISCOVERY;

impl Conn {
    pub(super) fn admin(&mut self, env: &Env<'_>, sqe: &Sqe) {
        let Some(controller) = self.controller.clone() else { return };
        let cid = sqe.cid();
        let enabled = controller.cc.load(Ordering::Acquire) & 1 != 0;
        if !enabled && sqe.opcode() != op::KEEP_ALIVE {
            return self.fail(env, cid, StatusField::COMMAND_SEQUENCE_ERROR);
        }
        let result = match sqe.opcode() {
            op::IDENTIFY => return self.identify(env, &controller, sqe),
            op::GET_LOG_PAGE => return self.log_page(env, &controller, sqe),
            op::KEEP_ALIVE => {
                controller.alive_us.store(env.now_us, Ordering::Release);
                Ok(0)
            }
            op::SET_FEATURES => self.set_feature(env, &controller, sqe),
            op::GET_FEATURES if sqe.fid() == fid::HOST_IDENTIFIER => {
                return self.admin_data(env, sqe, &controller.hostid);
            }
            op::GET_FEATURES => self.get_feature(env, &controller, sqe),
            op::ASYNC_EVENT_REQUEST => {
                if self.events.len() < EVENT_REQUESTS {
                    self.events.push(cid);
                    return self.tell_events(env, &controller);
                }
                Err(StatusField::ASYNC_EVENT_LIMIT_EXCEEDED)
            }
            op::ABORT => return self.abort_command(env, &controller, sqe),
            _ => Err(StatusField::INVALID_OPCODE),
        };
        match result {
            Ok(value) => self.complete(env, Cqe::new(cid, StatusField::SUCCESS).with_result(value)),
            Err(status) => self.fail(env, cid, status),
        }
    }

    /// Completes event requests while there is something to tell.
    pub(super) fn tell_events(&mut self, env: &Env<'_>, controller: &Controller) {
        while let Some(&cid) = self.events.first() {
            let event = {
                let mut inner = lock(&controller.inner);
                let ready = inner.pending & !inner.masked;
                let Some(bit) = [EVENT_ANA, EVENT_NAMESPACE, EVENT_RESERVATION, EVENT_DISCOVERY]
                    .into_iter()
                    .find(|b| ready & b != 0)
                else {
                    return;
                };
                inner.pending &= !bit;
                inner.masked |= bit;
                bit
            };
            let (kind, log_page) = match event {
                EVENT_ANA => (EventKind::AnaChanged, lid::ANA),
                EVENT_RESERVATION => (EventKind::ReservationLog, lid::RESERVATION),
                EVENT_NAMESPACE => (EventKind::NamespacesChanged, lid::CHANGED_NAMESPACES),
                _ => (EventKind::DiscoveryChanged, lid::DISCOVERY),
            };
            self.events.remove(0);
            let dw0 = AsyncEvent { kind, log_page }.to_dw0();
            self.complete(env, Cqe::new(cid, StatusField::SUCCESS).with_result(dw0.into()));
        }
    }

    /// Sends `page` to a command that asked for as much as its descriptor says; the rest reads as zero.
    fn admin_data(&mut self, env: &Env<'_>, sqe: &Sqe, page: &[u8]) {
        let len = sqe.sgl().length() as usize;
        if len == 0 || len > env.nvme.shared.config.mdts_bytes as usize || len > ZEROES.len() {
            return self.fail(env, sqe.cid(), StatusField::INVALID_SGL_DATA_LENGTH);
        }
        let mut data = page[..page.len().min(len)].to_vec();
        data.resize(len, 0);
        self.data_out(env, sqe.cid(), &data);
    }

    fn identify(&mut self, env: &Env<'_>, controller: &Controller, sqe: &Sqe) {
        match data::identify(env.nvme, controller, sqe) {
            Ok(page) => self.admin_data(env, sqe, &page),
            Err(status) => self.fail(env, sqe.cid(), status),
        }
    }

    fn log_page(&mut self, env: &Env<'_>, controller: &Controller, sqe: &Sqe) {
        let cid = sqe.cid();
        let (len, offset) = (sqe.log_length(), sqe.log_offset());
        if len > u64::from(env.nvme.shared.config.mdts_bytes) || offset % 4 != 0 {
            return self.fail(env, cid, StatusField::INVALID_FIELD);
        }
        if len != u64::from(sqe.sgl().length()) {
            return self.fail(env, cid, StatusField::INVALID_SGL_DATA_LENGTH);
        }
        match data::log_page(env.nvme, controller, self.info.local, sqe) {
            Ok(page) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(page.len());
                self.admin_data(env, sqe, &page[from..]);
            }
            Err(status) => return self.fail(env, cid, status),
        }
        // Reading the page of an event lets the event be told again.
        let event = match sqe.lid() {
            lid::CHANGED_NAMESPACES => EVENT_NAMESPACE,
            lid::ANA => EVENT_ANA,
            lid::DISCOVERY => EVENT_DISCOVERY,
            lid::RESERVATION => EVENT_RESERVATION,
            _ => 0,
        };
        if event != 0 && !sqe.rae() {
            let mut inner = lock(&controller.inner);
            inner.masked &= !event;
            if event == EVENT_NAMESPACE {
                inner.changed.clear();
            }
            drop(inner);
            self.tell_events(env, controller);
        }
    }

    fn set_feature(&mut self, env: &Env<'_>, controller: &Arc<Controller>, sqe: &Sqe) -> Result<u64, StatusField> {
        if sqe.feature_save() {
            return Err(StatusField::FEATURE_NOT_SAVEABLE);
        }
        let value = sqe.feature_value();
        let discovery = env.nvme.subsystems[controller.subsystem].discovery;
        match sqe.fid() {
            fid::NUMBER_OF_QUEUES if !discovery => {
                let asked = NumberOfQueues::from_dword(value);
                if asked.submission_z == u16::MAX || asked.completion_z == u16::MAX {
                    return Err(StatusField::INVALID_FIELD);
                }
                if !lock(&controller.inner).queues.is_empty() {
                    return Err(StatusField::COMMAND_SEQUENCE_ERROR);
                }
                let granted = asked.usable_pairs().min(env.nvme.max_io_queues.load(Ordering::Relaxed).into());
                controller.granted.store(granted as u16, Ordering::Relaxed);
                Ok(NumberOfQueues::pairs(granted).to_dword().into())
            }
            fid::ASYNC_EVENT_CONFIG => {
                let mut inner = lock(&controller.inner);
                inner.wanted = value & EVENTS;
                inner.pending &= inner.wanted | EVENT_RESERVATION;
                Ok(0)
            }
            fid::KEEP_ALIVE_TIMER => {
                controller.kato_ms.store(value, Ordering::Relaxed);
                controller.alive_us.store(env.now_us, Ordering::Release);
                Ok(0)
            }
            fid::VOLATILE_WRITE_CACHE => match data::has_write_cache(env.nvme, controller) {
                // It is the operating system's and cannot be switched off.
                true if value & 1 != 0 => Ok(0),
                true => Err(StatusField::FEATURE_NOT_CHANGEABLE),
                false => Err(StatusField::INVALID_FIELD),
            },
            fid::ARBITRATION | fid::POWER_MANAGEMENT | fid::TEMPERATURE_THRESHOLD | fid::ERROR_RECOVERY => Ok(0),
            fid::WRITE_ATOMICITY => Ok(0),
            fid::HOST_IDENTIFIER => Err(StatusField::COMMAND_SEQUENCE_ERROR),
            fid::RESERVATION_NOTIFICATION_MASK if !discovery => {
                self.each_namespace(sqe.nsid(), |disk| {
                    lock(&controller.inner).notification_mask.insert(disk.nsid, value & mask::ALL);
                })?;
                Ok(0)
            }
            fid::RESERVATION_PERSISTENCE if !discovery => {
                // All of them are those that can.
                let all = sqe.nsid() == NSID_ALL;
                let mut result = Ok(0);
                self.each_namespace(sqe.nsid(), |disk| {
                    if !all || disk.reservations.can_persist() {
                        result = result.and(disk.reservations.persist(value & 1 != 0).map(|()| 0));
                    }
                })?;
                Ok(result?)
            }
            _ => Err(StatusField::INVALID_FIELD),
        }
    }

    /// Does `what` for the namespace, or for all of them.
    fn each_namespace(&self, nsid: u32, mut what: impl FnMut(&Disk)) -> Result<(), StatusField> {
        let mut meant = self.namespaces.iter().filter(|n| nsid == NSID_ALL || nsid == n.nsid).peekable();
        if meant.peek().is_none() {
            return Err(StatusField::INVALID_NAMESPACE);
        }
        meant.for_each(|disk| what(disk));
        Ok(())
    }

    fn get_feature(&mut self, env: &Env<'_>, controller: &Controller, sqe: &Sqe) -> Result<u64, StatusField> {
        if sqe.feature_select() == 3 {
            // Capabilities: changeable, not saveable, not per namespace.
            return Ok(4);
        }
        match sqe.fid() {
            fid::NUMBER_OF_QUEUES => {
                Ok(NumberOfQueues::pairs(controller.granted.load(Ordering::Relaxed).into()).to_dword().into())
            }
            fid::ASYNC_EVENT_CONFIG => Ok(lock(&controller.inner).wanted.into()),
            fid::KEEP_ALIVE_TIMER => Ok(controller.kato_ms.load(Ordering::Relaxed).into()),
            fid::VOLATILE_WRITE_CACHE => match data::has_write_cache(env.nvme, controller) {
                true => Ok(1),
                false => Err(StatusField::INVALID_FIELD),
            },
            fid::ARBITRATION | fid::POWER_MANAGEMENT | fid::ERROR_RECOVERY | fid::WRITE_ATOMICITY => Ok(0),
            fid::TEMPERATURE_THRESHOLD => Ok(0xffff),
            fid::RESERVATION_NOTIFICATION_MASK | fid::RESERVATION_PERSISTENCE if sqe.nsid() == NSID_ALL => {
                Err(StatusField::INVALID_NAMESPACE)
            }
            fid::RESERVATION_NOTIFICATION_MASK => {
                self.each_namespace(sqe.nsid(), |_| ())?;
                Ok(lock(&controller.inner).notification_mask.get(&sqe.nsid()).copied().unwrap_or(0).into())
            }
            fid::RESERVATION_PERSISTENCE => {
                let mut persists = false;
                self.each_namespace(sqe.nsid(), |disk| persists = disk.reservations.picture().persists)?;
                Ok(persists.into())
            }
            _ => Err(StatusField::INVALID_FIELD),
        }
    }

    /// Abort: asks the thread that owns the command's connection, and answers when it has.
    fn abort_command(&mut self, env: &Env<'_>, controller: &Controller, sqe: &Sqe) {
        let (cid, qid, victim) = (sqe.cid(), sqe.abort_sqid(), sqe.abort_cid());
        let owner = match qid {
            0 => Some(controller.admin),
            _ => lock(&controller.inner).queues.get(&qid).copied(),
        };
        // Bit 0 of dword 0 says that the command was not aborted.
        let not_aborted = Cqe::new(cid, StatusField::SUCCESS).with_result(1);
        let Some((thread, conn)) = owner else {
            return self.complete(env, not_aborted);
        };
        if conn == self.info.id {
            let aborted = self.abort(env, victim);
            return self.complete(env, Cqe::new(cid, StatusField::SUCCESS).with_result(u64::from(!aborted)));
        }
        let Some(handle) = env.nvme.shared.threads.get().and_then(|t| t.get(thread)) else {
            return self.complete(env, not_aborted);
        };
        if self.wait(Pending::Silent { cid }).is_err() {
            return self.complete(env, Cqe::new(cid, StatusField::ABORT_LIMIT_EXCEEDED));
        }
        let reply = Address { thread: self.info.thread, conn: self.info.id, tag: cid.into() };
        handle.send(Msg::Abort { conn, victim: victim.into(), reply });
    }
}
