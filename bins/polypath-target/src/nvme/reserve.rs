//! Reservation commands and notifications (Base 2.1 section 8.1.22) over the reservations that belong to the disk.
//!
//! A host is known by its identifier, whatever controllers it has. Whoever has registered by another protocol is shown with an
//! identifier that is made of its name. Where they cannot persist through a loss of power RESCAP says so, and who wants it all the same (CPTPL 11b,
//! as Linux does always) is refused with Invalid Field in Command: a value that is not supported here.

use super::state::{Controller, EVENT_RESERVATION, Nvme};
use super::{Conn, Env};
use crate::media::{News, Party, Picture, Refusal, Told};
use crate::shared::lock;
use crate::store::Disk;
use polypath_block::ReservationType;
use polypath_nvme::nqn::HostId;
use polypath_nvme::reservation::{
    AcquireAction, AcquireData, ChangePersist, RegisterAction, RegisterData, RegisteredController, ReleaseAction,
    ReleaseData, ReservationCommand, ReservationNotification, ReservationStatus,
};
use polypath_nvme::{Cqe, Sqe, StatusField};
use std::sync::Arc;

/// Notifications that one controller keeps for its host.
const NOTIFICATIONS: usize = 256;

/// The user of disks that a host is.
pub(super) fn party(host: [u8; 16]) -> Party {
    Party { initiator: format!("uuid.{}", HostId::from_bytes(host)), port: Party::EVERY_PORT }
}

impl From<Refusal> for StatusField {
    fn from(refusal: Refusal) -> StatusField {
        match refusal {
            Refusal::Conflict => StatusField::RESERVATION_CONFLICT.with_dnr(),
            Refusal::InvalidRelease | Refusal::NoKey | Refusal::CannotPersist => StatusField::INVALID_FIELD.with_dnr(),
            Refusal::Full => StatusField::CAPACITY_EXCEEDED.with_dnr(),
            Refusal::NotKept => StatusField::INTERNAL_ERROR,
        }
    }
}

impl Conn {
    pub(super) fn reservation(&mut self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) {
        let cid = sqe.cid();
        match self.reserve(env, sqe, data) {
            Ok(Some(report)) => self.data_out(env, cid, &report),
            Ok(None) => self.complete(env, Cqe::new(cid, StatusField::SUCCESS)),
            Err(status) => self.complete(env, Cqe::new(cid, status)),
        }
    }

    fn reserve(&self, env: &Env<'_>, sqe: &Sqe, data: &[u8]) -> Result<Option<Vec<u8>>, StatusField> {
        use ReservationCommand as Command;
        let invalid = StatusField::INVALID_FIELD.with_dnr();
        let short = |_| StatusField::INVALID_SGL_DATA_LENGTH.with_dnr();
        let disk = self.namespace(env, sqe.nsid())?.clone();
        let (all, party) = (&disk.reservations, &*self.party);
        let mut aborts = false;
        let told = match Command::of(sqe).map_err(StatusField::with_dnr)? {
            Command::Report { len, extended } => return self.report(env, sqe, &disk, len, extended).map(Some),
            Command::Register { action, ignore_key, persist } => {
                let persist = match persist {
                    ChangePersist::Keep => None,
                    ChangePersist::Clear => Some(false),
                    ChangePersist::Set => Some(true),
                };
                let RegisterData { current_key, new_key } = RegisterData::parse(data).map_err(short)?;
                let have = all.picture().key_of(party);
                let current = (!ignore_key).then_some(current_key);
                match (action, have) {
                    (RegisterAction::Register | RegisterAction::Replace, _) if new_key == 0 => return Err(invalid),
                    (RegisterAction::Register, Some(key)) if key == new_key => {
                        persist.map_or(Ok(()), |on| all.persist(on))?;
                        Told::new()
                    }
                    (RegisterAction::Register, _) => all.register_and(party, Some(0), new_key, persist)?,
                    (_, None) => return Err(Refusal::Conflict.into()),
                    (RegisterAction::Unregister, _) => all.register_and(party, current, 0, persist)?,
                    (RegisterAction::Replace, _) => all.register_and(party, current, new_key, persist)?,
                }
            }
            Command::Acquire { ignore_key: true, .. } | Command::Release { ignore_key: true, .. } => {
                return Err(invalid);
            }
            Command::Acquire { action, rtype, .. } => {
                let AcquireData { current_key, victim_key } = AcquireData::parse(data).map_err(short)?;
                let hold = ReservationType::from_nvme_number(rtype).ok_or(invalid)?.into();
                aborts = action == AcquireAction::PreemptAndAbort;
                match action {
                    AcquireAction::Acquire => all.reserve(party, current_key, hold).map(|()| Told::new())?,
                    AcquireAction::Preempt | AcquireAction::PreemptAndAbort => {
                        all.preempt(party, current_key, victim_key, hold)?
                    }
                }
            }
            Command::Release { action, rtype, .. } => {
                let ReleaseData { current_key } = ReleaseData::parse(data).map_err(short)?;
                match action {
                    ReleaseAction::Clear => all.clear(party, current_key)?,
                    ReleaseAction::Release => {
                        let hold = ReservationType::from_nvme_number(rtype).ok_or(invalid)?.into();
                        all.release(party, current_key, hold)?
                    }
                }
            }
        };
        if aborts {
            // They are carried out before the answer: nothing of theirs lands after it. What was put off meets the reservation.
            let gone = |party: &Party| told.iter().any(|(p, news)| p == party && *news == News::RegistrationsPreempted);
            env.nvme.shared.land_held(|w| {
                let owner = w.owner.as_ref().filter(|(store, _)| store + 1 == self.subsystem);
                !w.beyond && w.unit == disk.lun && owner.is_some_and(|(_, party)| gone(party))
            });
        }
        env.nvme.tell_of_reservations(self.subsystem, &disk, told);
        Ok(None)
    }

    fn report(&self, env: &Env<'_>, sqe: &Sqe, disk: &Disk, len: u64, extended: bool) -> Result<Vec<u8>, StatusField> {
        if !extended {
            // Ours have 128 bits.
            return Err(StatusField::HOST_ID_INCONSISTENT.with_dnr());
        }
        if len > u64::from(env.nvme.shared.config.mdts_bytes) {
            return Err(StatusField::INVALID_FIELD.with_dnr());
        }
        if len != u64::from(sqe.sgl().length()) {
            return Err(StatusField::INVALID_SGL_DATA_LENGTH.with_dnr());
        }
        let mut report = env.nvme.reservation_status(self.subsystem, &disk.reservations.picture()).to_bytes();
        report.resize(len as usize, 0);
        Ok(report)
    }
}

impl Nvme {
    fn reservation_status(&self, subsystem: usize, picture: &Picture) -> ReservationStatus {
        let controllers = self.controllers(subsystem);
        let mut registered = Vec::new();
        for (party, key) in &picture.registered {
            let status = u8::from(picture.holds(party));
            let ours: Vec<_> = controllers.iter().filter(|c| *c.party == *party).collect();
            let host_id = ours.first().map_or_else(|| shown_id(party), |c| c.hostid);
            let cntlids: Vec<u16> = if ours.is_empty() { vec![u16::MAX] } else { ours.iter().map(|c| c.id).collect() };
            let entry = |cntlid| RegisteredController { cntlid, status, key: *key, host_id };
            registered.extend(cntlids.into_iter().map(entry));
        }
        let rtype = picture.held.as_ref().map_or(0, |(hold, _)| ReservationType::from(*hold).nvme_number());
        let count = u16::try_from(registered.len()).unwrap_or(u16::MAX);
        ReservationStatus { generation: picture.generation, rtype, count, persists: picture.persists, registered }
    }

    /// Tells hosts what has become of their registrations and reservations, and leaves there what is for users of another protocol.
    pub(super) fn tell_of_reservations(&self, subsystem: usize, disk: &Disk, told: Told) {
        if told.is_empty() {
            return;
        }
        let (hosts, others): (Told, Told) = told.into_iter().partition(|(party, _)| party.is_everywhere());
        for (party, news) in hosts {
            for controller in self.controllers(subsystem).iter().filter(|c| *c.party == party) {
                controller.notify(disk.nsid, news);
            }
        }
        disk.reservations.leave_news(others);
        self.shared.wake_all();
    }

    fn controllers(&self, subsystem: usize) -> Vec<Arc<Controller>> {
        lock(&self.subsystems[subsystem].controllers).values().cloned().collect()
    }
}

impl Controller {
    fn notify(&self, nsid: u32, news: News) {
        let kind = match news {
            News::RegistrationsPreempted => ReservationNotification::REGISTRATION_PREEMPTED,
            News::ReservationsReleased => ReservationNotification::RESERVATION_RELEASED,
            News::ReservationsPreempted => ReservationNotification::RESERVATION_PREEMPTED,
        };
        let mut inner = lock(&self.inner);
        if inner.notification_mask.get(&nsid).is_some_and(|mask| mask & 1 << kind != 0) {
            return;
        }
        if inner.notifications.len() >= NOTIFICATIONS {
            inner.notifications.pop_front();
        }
        inner.notified += 1;
        let count = inner.notified;
        inner.notifications.push_back(ReservationNotification { count, kind, left: 0, nsid });
        inner.pending |= EVENT_RESERVATION;
    }

    /// The oldest notification; `take`: it was read.
    pub(super) fn notification(&self, take: bool) -> ReservationNotification {
        let mut inner = lock(&self.inner);
        let first = inner.notifications.front().cloned().unwrap_or_default();
        let left = u8::try_from(inner.notifications.len().saturating_sub(1)).unwrap_or(u8::MAX);
        if take {
            inner.notifications.pop_front();
            if !inner.notifications.is_empty() {
                inner.pending |= EVENT_RESERVATION;
            }
        }
        ReservationNotification { left, ..first }
    }
}

/// The host identifier that somebody is shown with: a host's own, or one that is made of a name (FNV-1a, 128 bits).
fn shown_id(party: &Party) -> [u8; 16] {
    if let Some(id) = party.initiator.strip_prefix("uuid.").and_then(|text| text.parse::<HostId>().ok()) {
        return *id.as_bytes();
    }
    let octets = party.initiator.bytes().chain(party.port.to_le_bytes());
    let hash = octets.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, octet| {
        (hash ^ u128::from(octet)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    hash.to_be_bytes()
}
